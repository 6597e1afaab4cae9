"""Answers to the same questions in several runs: two sources of chance, crossed.

A model is tuned three times, with three seeds, and every run answers the same 600 questions. Other questions would give another
score, and so would other seeds. An interval over questions says nothing of the next seed, and three scores alone say nothing of
other questions. So the squared error of a mean over runs and questions adds both:

    error^2 = error_rows^2 + error_runs^2

`error_rows` is the standard error over questions of their means over runs, with groups whole (the questions about one scene),
and `error_runs` the standard error over runs of their means over questions. What is peculiar to one question in one run counts in
both, so the sum is rather too large (Cameron, Gelbach and Miller 2011 subtract it, which needs more runs than three). Student's t
has Satterthwaite's degrees of freedom, ``error^4 / (error_rows^4 / f_rows + error_runs^4 / f_runs)``. For three runs f_runs is 2:
where runs differ by more than the chance among questions, the interval is wide, and only more runs make it narrower.

- *Share*: Wilson's interval, with the number of independent answers that would have this error (as in `intervals`).
- *Change* and *ratio* of paired answers: value -+ t error; that of a ratio is that of ``(part - ratio whole) / mean(whole)``.
  One more question counts as changed, half of it to either side (Agresti and Min 2005), or one more group where none changed.

With one run `error_runs` is unknown (NaN), and the interval is over questions alone: of this run, not of the next one.

Simulated coverage (60 to 600 questions, shares of .5 to .98, with and without groups): with three runs .91 to .99, with five .92
to .99; where seeds move a score by five points and more .89 at the lowest with three runs and .85 with two, so take three at
least. The interval of a share near 1 covers less: .87 for .98 that seeds move by three points, with three runs and with five.
Coverage is .98 and more where runs differ in single questions alone. Some designs are in docs/calibration.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from interp.displays import Display
from interp.errors import InputError
from interp.statistics.categories import Labels
from interp.statistics.intervals import Spread, unit_numbers
from interp.statistics.proportions import wilson_bounds

_ALIKE = 0.5  # degrees of freedom of the error of questions that are all alike, as in `intervals`


def crossed_share(right: Shaped[Tensor, "run row"], groups: Labels | None = None) -> Crossed:
    """The share of right answers, with its 95 % bounds over runs and rows.

    >>> share = crossed_share(torch.tensor([[1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 1]]))  # two runs, six questions
    >>> f"{share.value:.2f} [{share.low:.2f}, {share.high:.2f}]"
    '0.83 [0.45, 0.97]'

    `groups` has a label for each row, and groups stay whole. The bounds are NaN for a single row or group.

    Raises `InputError` without a run or a row, and where there is not one label for each row.
    """
    table = _table(right)
    value = float(table.mean())
    variance, spread = value * (1 - value), _spread(table - value, groups)
    freedom = max(spread.n_units - 1, 0.0)
    squared = freedom * float(spread.error) ** 2 + _ALIKE * variance / spread.n_units
    found = _crossed(value, math.sqrt(squared / (freedom + _ALIKE)), table - value, spread)
    if math.isnan(found.low):
        return found
    trials = spread.n_units if not variance else min(variance / found.error**2, float(table.numel()))
    share, n = (torch.tensor(each, dtype=torch.float64) for each in (value, trials))
    low, high = wilson_bounds(share, n, found.quantile)
    return replace(found, low=float(low), high=float(high))


def crossed_change(
    before: Shaped[Tensor, "#run row"], after: Shaped[Tensor, "run row"], groups: Labels | None = None
) -> Crossed:
    """The change of the share of right answers, paired by run and row, with its 95 % bounds and p over both.

    >>> before = torch.tensor([[0, 0, 0, 1, 0, 1, 0, 0], [0, 0, 0, 1, 0, 0, 0, 0]])
    >>> change = crossed_change(before, torch.ones(2, 8))
    >>> f"{change.value:.2f} [{change.low:.2f}, {change.high:.2f}], p {change.p:.1g}"
    '0.81 [0.41, 1.22], p 0.002'

    The p is that no change is there, of two sides, from the same error. `groups` and errors are as in `crossed_share`; the two
    tables have one shape, where one run of `before` may stand for all.
    """
    one, other = _tables(before, after)
    spread = _spread(other - one, groups)
    value = float((other - one).mean())
    return _paired(value, other - one - value, spread, 1.0, null=0.0)


def crossed_ratio(
    part: Shaped[Tensor, "run row"], whole: Shaped[Tensor, "#run row"], groups: Labels | None = None
) -> Crossed:
    """The right answers of `part` for each one of `whole`, ``mean(part) / mean(whole)``, paired by run and row.

    >>> draw = torch.rand(3, 400, generator=torch.Generator().manual_seed(0))
    >>> ratio = crossed_ratio(draw < 0.88, draw < 0.90)
    >>> f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    '0.974 [0.962, 0.986]'

    The p is that the ratio is 1. All is NaN where `whole` has no right answer. The rest is as in `crossed_change`.
    """
    whole, part = _tables(whole, part)
    size = float(whole.mean())
    if not size:
        return Crossed(math.nan, math.nan, math.nan, math.nan, math.nan, math.nan, null=1.0)
    value = float(part.mean()) / size
    residuals = (part - value * whole) / size
    return _paired(value, residuals, _spread(residuals, groups), size, null=1.0)


def _paired(value: float, residuals: Float[Tensor, "run row"], spread: Spread, size: float, null: float) -> Crossed:
    """A change or a ratio, in units of `size`, with one more question that changed."""
    changed = spread.n_rows if residuals.any() else spread.n_units
    rows = math.hypot(float(spread.error), 1 / (changed + 2) / size)
    return replace(_crossed(value, rows, residuals, spread), null=null)


def _crossed(value: float, rows: float, residuals: Float[Tensor, "run row"], spread: Spread) -> Crossed:
    """A value with its error over rows and that of its residuals over runs; the bounds are those of Student's t."""
    runs, of_rows = residuals.mean(dim=1), max(spread.n_units - 1, 0.5)
    if len(spread.wholes) < 2:
        rows = math.nan
    if len(runs) < 2:
        return _with_bounds(Crossed(value, math.nan, math.nan, rows, math.nan, of_rows))
    of_runs = float(runs.std() / math.sqrt(len(runs)))
    both = rows**2 + of_runs**2
    freedom = both**2 / (rows**4 / of_rows + of_runs**4 / (len(runs) - 1)) if both else of_rows
    return _with_bounds(Crossed(value, math.nan, math.nan, rows, of_runs, freedom))


def _with_bounds(found: Crossed) -> Crossed:
    reach = found.quantile * found.error
    return replace(found, low=found.value - reach, high=found.value + reach)


def _spread(residuals: Float[Tensor, "run row"], groups: Labels | None) -> Spread:
    """How the mean over runs differs between rows, or groups of rows."""
    means = residuals.mean(dim=0)[:, None]
    return Spread(means, torch.ones(len(means), dtype=torch.float64), unit_numbers(groups, len(means)))


def _tables(one: Tensor, other: Tensor) -> tuple[Float[Tensor, "run row"], Float[Tensor, "run row"]]:
    one, other = _table(one), _table(other)
    if one.shape[1] != other.shape[1] or len(one) not in (1, len(other)):
        raise InputError(
            f"tables of {tuple(one.shape)} and {tuple(other.shape)} runs and rows: expected the same runs and rows twice"
        )
    return one.expand_as(other), other


def _table(answers: Tensor) -> Float[Tensor, "run row"]:
    if answers.ndim != 2 or not answers.numel():
        raise InputError(f"answers of shape {tuple(answers.shape)}: expected one run and one row at least, [run, row]")
    return answers.detach().cpu().double()


@dataclass(frozen=True)
class Crossed(Display):
    """A number over runs and rows: its 95 % bounds, its standard errors over rows and over runs (NaN for one run), the
    `freedom` of Student's t, and the value that it has where nothing is there, `null`."""

    value: float
    low: float
    high: float
    error_rows: float
    error_runs: float
    freedom: float
    null: float = math.nan

    @property
    def error(self) -> float:
        """Both errors together; that over rows alone for one run."""
        return self.error_rows if math.isnan(self.error_runs) else math.hypot(self.error_rows, self.error_runs)

    @property
    def quantile(self) -> float:
        """Student's 97.5 % quantile."""
        from scipy.special import stdtrit

        return float(stdtrit(self.freedom, 0.975))

    @property
    def p(self) -> float:
        """The p of two sides that the value is `null`, NaN for a share and for a value without an error."""
        from scipy.special import stdtr

        if not self.error:
            return math.nan
        return float(2 * stdtr(self.freedom, -abs(self.value - self.null) / self.error))
