"""Verdicts: what an interval says of a claim, given the smallest effect of interest.

A verdict has three values, so "not shown" is never read as "is not". With the smallest effect of interest s:

- *supported*: ``low > 0`` and ``estimate >= s / 2``;
- *contradicted*: else, where ``high < s``;
- *undecided*: else. It says which effect could have been seen, `detectable`: ``max(estimate - low, s / 2)``. An estimate of that
  size would have been supported with an interval as wide, so a true effect of that size is seen in about half of all samples.

Let h be half the width of the interval. A true effect of 2 s is supported in 97.5 % of samples where ``h <= s``. Where there is
no effect, 2.5 % are supported, and at least 80 % contradicted where ``h <= 0.7 s``. With wider intervals the rule rarely
contradicts: then more rows are needed. A whole interval within (0, s) is supported from an estimate of s / 2 on, and the
sentence says that the effect is smaller than s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, SupportsFloat

from interp.arguments import as_number
from interp.errors import InputError, shown


def verdict(estimate: SupportsFloat, low: SupportsFloat, high: SupportsFloat, smallest: SupportsFloat) -> Verdict:
    """Supported, contradicted or undecided: what a 95 % interval says of an effect, by the rule above.

    >>> verdict(0.3, 0.1, 0.5, smallest=0.2).value
    'supported'
    >>> verdict(0.02, -0.05, 0.09, smallest=0.2).value
    'contradicted'
    >>> print(verdict(0.1, -0.2, 0.4, smallest=0.2))
    undecided: 0.1 [-0.2, 0.4] neither shows an effect nor excludes one of 0.2; one of 0.3 could have been seen

    `smallest` is the smallest effect of interest, in the units of the estimate and above 0. Turn the sign where the claim is of
    a decrease. The interval may come from anything with 95 % coverage, such as `mean_interval` or `paired_change`.

    Raises `InputError` for a number that is not finite, for an estimate outside its interval, and for `smallest` not above 0.
    """
    names = {"estimate": estimate, "low": low, "high": high, "smallest": smallest}
    numbers = {name: _finite(value, name) for name, value in names.items()}
    estimate, low, high, smallest = numbers.values()
    if smallest <= 0:
        raise InputError(f"smallest={smallest:g}: expected a number above 0, the smallest effect of interest")
    slack = 1e-6 * max(abs(low), abs(high))  # values of float32 differ from their own mean by as much
    if not low - slack <= estimate <= high + slack:
        raise InputError(f"estimate={estimate:g} is outside low={low:g} and high={high:g}: expected it between them")
    detectable = max(estimate - low, smallest / 2)
    value: Literal["supported", "contradicted", "undecided"] = "undecided"
    if low > 0 and estimate >= smallest / 2:
        value = "supported"
    elif high < smallest:
        value = "contradicted"
    return Verdict(value, estimate, low, high, smallest, detectable)


def _finite(value: Any, name: str) -> float:
    number = as_number(value)
    if number is None or not math.isfinite(number):
        raise InputError(f"{name}={shown(value)}: expected a finite number; a single row or group has no interval")
    return number


@dataclass(frozen=True)
class Verdict:
    """What an interval says of a claim. `detectable` is the smallest estimate that an interval as wide would have supported."""

    value: Literal["supported", "contradicted", "undecided"]
    estimate: float
    low: float
    high: float
    smallest: float
    detectable: float

    def __str__(self) -> str:
        seen = f"{self.value}: {self.estimate:.3g} [{self.low:.3g}, {self.high:.3g}]"
        if self.value == "supported":
            return f"{seen} is above 0" + (f", and below {self.smallest:.3g}" if self.high < self.smallest else "")
        if self.value == "contradicted":
            return f"{seen} excludes an effect of {self.smallest:.3g}"
        neither = f"neither shows an effect nor excludes one of {self.smallest:.3g}"
        size = f"one of {self.detectable:.3g}" if math.isfinite(self.detectable) else "none of any size"
        return f"{seen} {neither}; {size} could have been seen"
