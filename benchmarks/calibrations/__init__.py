"""The rows of the calibration table: one file a room, each with a list `ROWS` of `Row`.

A row is a design (what the data are and how many) and a function that draws one data set from a seed, makes one public call on
it, and says whether the number was right: did the test reject, did the interval hold the truth, how far is the value from its
chance level? `benchmarks/calibration.py` repeats it and writes the table. To add a number, add a row.

>>> def draw(seed):
...     rng = np.random.default_rng(seed)
...     low, high = mean_interval(torch.from_numpy(rng.normal(size=20)))
...     return low <= 0 <= high
>>> ROWS = [Row("mean_interval", "20 normal rows", "coverage", draw)]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from interp.statistics import wilson_interval

# What a rate has to be within. The first bound of the kinds "coverage" and "false positives" is the risky or the safe side.
BANDS = {"false positives": (0.02, 0.075), "coverage": (0.93, 0.98), "power": (0.8, 1.0), "chance": (-0.01, 0.01)}
QUICK = 0.05  # seconds: a call under it is simulated more often
SIMULATIONS, SLOW_SIMULATIONS = 2000, 400


@dataclass(frozen=True)
class Row:
    """One line of the table.

    `number` is the public call and the number of it, as in "compare p_holm". `design` says what is drawn. `kind` is one of:

    - "false positives": `draw(seed)` is True where a test of .05 rejects although nothing is there;
    - "coverage": True where a 95 % interval holds the truth;
    - "power": True where a real effect, whose size `design` states, is found;
    - "chance": the value less the chance level that is reported beside it, where nothing is there.

    A draw may also return the share of several cells of one call. `reason` says why a rate on the safe side (fewer false
    positives, more coverage than the band) is right; without a reason such a row fails. `band` replaces the band of the kind.
    """

    number: str
    design: str
    kind: str
    draw: Callable[[int], float | bool]
    reason: str = ""
    band: tuple[float, float] | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        return self.band or BANDS[self.kind]


@dataclass(frozen=True)
class Outcome:
    """What simulations gave: the rate or the mean difference, its 95 % interval, and how many there were."""

    rate: float
    low: float
    high: float
    simulations: int


def outcome_of(values: list[float], kind: str) -> Outcome:
    """The mean of the draws with its interval: Wilson's for rates, 1.96 standard errors for differences from chance."""
    n = len(values)
    mean = sum(values) / n
    if kind != "chance":
        return Outcome(mean, *wilson_interval(min(1.0, mean), n), n)
    error = (sum((value - mean) ** 2 for value in values) / max(1, n - 1) / n) ** 0.5
    return Outcome(mean, mean - 1.96 * error, mean + 1.96 * error, n)


def judged(row: Row, outcome: Outcome) -> str:
    """ "passes", "safe side" (beyond the band where it does no harm, with a reason) or "fails"."""
    low, high = row.bounds
    if outcome.high >= low and outcome.low <= high:
        return "passes"
    is_safe = outcome.high < low if row.kind == "false positives" else outcome.low > high
    return "safe side" if is_safe and row.reason and row.kind in ("false positives", "coverage") else "fails"
