"""The rows of the tables of docs/organisms.md: one file an organism, each with a list `ROWS` of `Row`.

A row is a detector, that is a public call of the package, and what the planted truth says of it. It is measured on the organism
and on its opposite, where the truth does not hold, and both numbers stand side by side with their intervals or p. To add
a number, add a row; to add an organism, add a file and a pair of marks on the page (`benchmarks/organisms.py`).

>>> def image_cut(vlm):
...     result = flow(vlm, batch(), edges=[("image", "last")], window=1, metric=metric())
...     return Reading(result.values[...], low=result.low[...], high=result.high[...])
>>> ROWS = [Row("unmixed", "toy:tuned", "`flow`, image to last, layer 3", "0 in every layer", image_cut)]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from interp.models import VLM


@dataclass(frozen=True)
class Reading:
    """What a detector says of one model: a value, with its 95 % interval, its p, and the level of chance, where it has them."""

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    chance: float | None = None

    def __str__(self) -> str:
        text = f"{self.value:.3g}"
        if self.low is not None and self.high is not None:
            text += f" ({self.low:.3g} to {self.high:.3g})"
        further = {"p": self.p, "chance": self.chance}
        return text + "".join(f", {name} {each:.3g}" for name, each in further.items() if each is not None)


@dataclass(frozen=True)
class Row:
    """One line of a table.

    `organism` and `opposite` are names: of a planted organism, or what `interp.load` takes, such as "toy:tuned". `detector`
    is the public call and the number of it; `truth` is what the planted truth says of that number, in words; `measure`
    makes the call on a model. It returns a `Reading`, or several numbers as text.
    """

    organism: str
    opposite: str
    detector: str
    truth: str
    measure: Callable[[VLM], Reading | str]
