"""Reductions: what becomes of the selected positions of a row.

"mean" is their mean, "last" the last of them, "sample" one that is drawn, and "none" leaves each as an example of its own.
"mean:k" is the mean of k of them, drawn without replacement. Means of many positions are less noisy than means of few, so how
alike two clouds are depends on how many positions an example is the mean of: an image has 576 of them, its caption 9. With the
same k for both, the clouds differ in what they hold and not in how much of it was averaged.

What is drawn depends on the seed and on the row's number in the data alone: not on its batch, nor on other rows. All sites
and layers of a row have the same positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from torch import Tensor

from interp.errors import InputError, shown

REDUCTIONS = ("mean", "last", "none", "sample")
_MEAN_OF = "mean:"


def checked_reduction(reduce: Any) -> str:
    """A reduction by its name.

    >>> checked_reduction("mean:4")
    'mean:4'

    Raises `InputError` for anything else.
    """
    if isinstance(reduce, str):
        number = reduce.removeprefix(_MEAN_OF)
        if reduce in REDUCTIONS or (number != reduce and number.isdecimal() and str(int(number)) == number != "0"):
            return reduce
    known = ", ".join(map(repr, REDUCTIONS))
    raise InputError(
        f"reduce={shown(reduce)} is unknown: expected one of {known}, or 'mean:4' for the mean of 4 drawn positions"
    )


def is_mean(reduce: str) -> bool:
    """Whether examples are means: "mean" and "mean:k"."""
    return reduce.startswith("mean")


def drawn_number(reduce: str) -> int | None:
    """How many positions of each row are drawn: k for "mean:k", 1 for "sample", None where none is.

    >>> drawn_number("mean:4"), drawn_number("mean")
    (4, None)
    """
    return 1 if reduce == "sample" else int(reduce.removeprefix(_MEAN_OF)) if reduce.startswith(_MEAN_OF) else None


def draw_places(places: Int[Tensor, " place"], reduce: str, seed: int, number: int) -> Int[Tensor, " drawn"]:
    """The places of a row that are drawn, in ascending order, for the row with this number in the data."""
    rng = np.random.default_rng([seed, number])
    if reduce == "sample":
        return places[int(rng.integers(len(places)))][None]
    return places[np.sort(rng.choice(len(places), drawn_number(reduce), replace=False))]


def shortfall(counts: Int[Tensor, " row"], reduce: str, what: str) -> dict[int, tuple[str, str]]:
    """The rows of a batch that have too few positions for the reduction, with the words of an error before and after the row."""
    least = drawn_number(reduce) or 1
    return {
        row: (
            f"reduce={reduce!r} draws {least} positions and {what} {count} of ",
            f": expected {least} or more in each row, take a smaller k, or leave such rows out (on_error='skip')",
        )
        for row, count in enumerate(counts.tolist())
        if 0 < count < least
    }


def count_pooled(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, dict[str, int]]:
    """How many positions the rows of some batches have: rows, total, least and most for each kind of example."""
    together = {}
    for kind in parts[0] if parts else ():
        counts = [count for part in parts for count in part[kind].tolist()]
        together[kind] = {"rows": len(counts), "total": sum(counts), "least": min(counts), "most": max(counts)}
    return together


def add_pooled(counts: Sequence[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """The count of all these together."""
    together = {}
    for kind in dict.fromkeys(kind for count in counts for kind in count):
        known = [count[kind] for count in counts if kind in count]
        total = {name: sum(each[name] for each in known) for name in ("rows", "total")}
        together[kind] = {**total, "least": min(e["least"] for e in known), "most": max(e["most"] for e in known)}
    return together
