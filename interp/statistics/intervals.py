"""The 95 % interval of a mean or of a ratio of means, over rows or groups of rows.

Units are drawn from a population, not cells: all cells of a row belong together, and so do all rows of a group (the
patches of an image, the questions about a scene). So a grouped mean is a ratio too: the sums of the groups over their sizes.
Its standard error is ``sqrt(sum(e^2 / (1 - h))) / whole``, with each unit's residual ``e = values - ratio * whole`` and
its share h of the rows. Student's t has one degree of freedom less than the effective number of units,
``rows^2 / sum(sizes^2)``: one group with half of all rows makes it 4 at most, however many others there are.

- Values that are no shares: whatever Student's t or the studentised bootstrap takes in. The bootstrap draws units with
  replacement and divides each draw's difference by the draw's own standard error, which follows the skewness of rows. It
  reaches at most twice as far as Student's t.
- Tables of 0 and 1: Wilson's interval. With groups, its trials are the rows that would have the standard error of the
  groups if they were independent, at most all rows; and its quantile is Student's (Korn and Graubard 1998). Where all rows
  agree, an effective group counts as one trial. Ten right of ten give 0.72 to 1.
- Cells that are all the same number in a table of others, such as a patch that restores every row exactly: both bounds are that
  number. Rows differ by nothing, and nothing is known of rows unlike them.

Simulated coverage (3,000 to 8,000 samples a design; rows 5, 10, 20, 50 and 200): normal .967, .965, .959, .954, .951;
exponential .932, .945, .954, .954, .956; binary, averaged over p from .05 to .95, .960, .957, .957, .950, .950. In groups that
share half of their variance or more: normal .94 to .97, exponential .92 to .96 (the lowest for 10 groups of 1 to 27 rows), binary
.93 to .99, on the safe side with few or unequal groups. Nothing covers where rare rows far out carry the mean: lognormal values
.89 at 5 rows and .90 at 10. `few_rows` says so.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from interp.errors import InputError
from interp.statistics.categories import Labels, read_labels
from interp.statistics.half_samples import NORMAL_95
from interp.statistics.proportions import wilson_bounds

FEW = 20
_DRAWS = 999
_TAILS = (24, 974)  # the 25th smallest and the 25th largest draw: 2.5 % of 1000 beyond each
_WIDEST = 2.0  # of Student's t: with few units, a draw's own standard error can be nearly 0
_ALIKE = 0.5  # degrees of freedom
_AT_ONCE = 2**23  # numbers held at a time


def mean_interval(
    values: Shaped[Tensor, "row ..."], groups: Labels | None = None, seed: int = 0
) -> tuple[Float[Tensor, ...], Float[Tensor, ...]]:
    """The 95 % bounds of each cell's mean over rows, by the rule above.

    >>> low, high = mean_interval(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    >>> bool(low < 2.5 < high)
    True
    >>> low, high = mean_interval(torch.ones(10))  # ten right of ten
    >>> round(float(low), 2), float(high)
    (0.72, 1.0)

    `groups` has a label for each row; rows with the same label are drawn together. NaN for a single row or group, and for a cell
    that contains NaN. `seed` is that of the bootstrap.

    Raises `InputError` where there is not one label for each row.
    """
    return ratio_interval(values, torch.ones(len(values), dtype=torch.float64), groups, seed)


def difference_interval(
    values: Shaped[Tensor, "row ..."], groups: Labels | None = None, seed: int = 0
) -> tuple[Float[Tensor, ...], Float[Tensor, ...]]:
    """`mean_interval` for differences, in which 0 and 1 are no shares: where no row differs, both bounds are 0.

    >>> [float(bound) for bound in difference_interval(torch.zeros(10))]
    [0.0, 0.0]
    """
    return _interval(values, torch.ones(len(values), dtype=torch.float64), groups, seed, are_shares=False)


def ratio_interval(
    values: Shaped[Tensor, "row ..."], whole: Shaped[Tensor, " row"], groups: Labels | None = None, seed: int = 0
) -> tuple[Float[Tensor, ...], Float[Tensor, ...]]:
    """The 95 % bounds of each cell's ``mean(values) / mean(whole)`` over rows, by the rule above.

    >>> low, high = ratio_interval(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0]))
    >>> float(low), float(high)  # the same share in every row
    (0.5, 0.5)

    A row counts in both means, so rows with a small `whole` count for little. `groups`, NaN and `seed` are as in `mean_interval`.

    Raises `InputError` where there is not one label, or one `whole`, for each row.
    """
    if whole.shape != (len(values),):
        raise InputError(
            f"whole has shape {tuple(whole.shape)}: expected one number for each of the {len(values)} rows"
        )
    table, whole = values.detach().cpu().double().reshape(len(values), -1), whole.detach().cpu().double()
    is_share = (table == 0) | (table == whole[:, None]) | table.isnan()
    return _interval(values, whole, groups, seed, bool(is_share.all() and ((whole == 0) | (whole == 1)).all()))


def weighted_share_interval(
    hits: Bool[Tensor, " row"], weights: Float[Tensor, " row"], groups: Labels | None = None
) -> tuple[float, float]:
    """The 95 % bounds of a share ``sum(weights hits) / sum(weights)``, such as a mean over classes with few rows in some.

    >>> low, high = weighted_share_interval(torch.ones(12).bool(), torch.tensor([1.0] * 8 + [2.0] * 4))  # twelve right of twelve
    >>> round(low, 2), high
    (0.68, 1.0)

    Wilson's interval for groups, by the rule above. A row of a large weight counts for more: rows are worth
    ``sum(weights)^2 / sum(weights^2)`` of equal weight (Kish 1965), and so are groups. NaN for a single group.
    """
    numbers = unit_numbers(groups, len(hits))
    if not len(numbers) or not numbers.any():
        return math.nan, math.nan
    weights = weights.double() / weights.double().mean()
    low, high = _share_bounds(Spread((hits * weights)[:, None], weights, numbers, weights), grouped=True)
    return float(low), float(high)


def _interval(
    values: Tensor, whole: Tensor, groups: Labels | None, seed: int, are_shares: bool
) -> tuple[Tensor, Tensor]:
    dtype = values.dtype if values.is_floating_point() else torch.float64
    numbers = unit_numbers(groups, len(values))
    if not len(numbers) or not numbers.any():
        nothing = torch.full(values.shape[1:], math.nan, dtype=dtype)
        return nothing, nothing.clone()
    spread = Spread(values.detach().cpu().double().reshape(len(values), -1), whole, numbers)
    low, high = (
        _share_bounds(spread, grouped=len(spread.wholes) < len(values)) if are_shares else _mean_bounds(spread, seed)
    )
    return low.to(dtype).reshape(values.shape[1:]), high.to(dtype).reshape(values.shape[1:])


def few_rows(n: int) -> tuple[str, ...]:
    """The note of a result whose intervals come from `n` rows or groups: none from 20 on, and none for one, whose bounds are NaN.

    >>> few_rows(20), len(few_rows(19)), few_rows(1)
    ((), 1, ())
    """
    if n >= FEW or n < 2:
        return ()
    return (
        f"intervals of {n} rows or groups, under {FEW}: they are wide, and too narrow where rare rows far out carry the mean",
    )


def unit_numbers(groups: Labels | None, n: int) -> Int[np.ndarray, " n"]:
    """The number of each row's unit: its group, or the row itself without groups."""
    if groups is None:
        return np.arange(n)
    if isinstance(groups, np.ndarray | Tensor) and groups.shape == (n,) and "int" in str(groups.dtype):
        return np.unique(np.asarray(groups), return_inverse=True)[1]
    return read_labels(groups, n, "groups")[1]


class Spread:
    """How much a ratio of sums differs between units, for all cells: the numbers that intervals are made of.

    `ratio` and `error` (its standard error) are Float [cell], `residuals` Float [unit, cell], `wholes` Float [unit]; `n_rows`
    counts the rows with a whole other than 0, and `n_units` the units of equal size that would be worth as much. With `weights`,
    1 on average, a row is as large as its weight, and `n_rows` counts what rows of one weight would be worth as much.
    """

    def __init__(
        self,
        values: Float[Tensor, "row cell"],
        whole: Float[Tensor, " row"],
        numbers: Int[np.ndarray, " row"],
        weights: Float[Tensor, " row"] | None = None,
    ):
        units = torch.from_numpy(numbers)
        sizes = torch.bincount(units, weights).double()
        sums = values
        self.wholes = whole
        if len(sizes) < len(values):
            sums = torch.zeros(len(sizes), values.shape[1], dtype=torch.float64).index_add_(0, units, values)
            self.wholes = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, units, whole)
        total = self.wholes.sum()
        self.ratio = sums.sum(dim=0) / total
        self.residuals = sums - self.ratio * self.wholes[:, None]
        left = 1 - sizes / len(values)
        self.error = (1 / left @ self.residuals.square()).sqrt() / total.abs()
        self.n_rows = float((whole != 0).sum() if weights is None else len(values) ** 2 / weights.square().sum())
        self.n_units = float(len(values) ** 2 / sizes.square().sum())

    @property
    def quantile(self) -> float:
        """Student's 97.5 % quantile, with half a degree of freedom at least."""
        from scipy.special import stdtrit

        return float(stdtrit(max(self.n_units - 1, 0.5), 0.975))

    def trials(self, variance: Float[Tensor, " cell"]) -> Float[Tensor, " cell"]:
        """The independent rows of this variance that would have the same standard error; one a unit where no row differs.

        Few groups can be alike by luck. So the squared error is averaged with the error of groups whose rows are all the same,
        `variance / n_units`, which counts for half a degree of freedom.
        """
        freedom, alike = max(self.n_units - 1, 0), variance / self.n_units
        squared = (freedom * self.error.square() + _ALIKE * alike) / (freedom + _ALIKE)
        return torch.where(variance > 0, (variance / squared).clamp(max=self.n_rows), min(self.n_units, self.n_rows))


def _share_bounds(spread: Spread, grouped: bool) -> tuple[Tensor, Tensor]:
    """Wilson's interval; where `grouped`, with an effective number of trials and Student's quantile."""
    share = spread.ratio
    if not grouped:
        return wilson_bounds(share, torch.full_like(share, spread.n_rows), NORMAL_95)
    return wilson_bounds(share, spread.trials(share * (1 - share)), spread.quantile)


def _mean_bounds(spread: Spread, seed: int) -> tuple[Tensor, Tensor]:
    """What Student's t or the studentised bootstrap takes in; the bootstrap at most `_WIDEST` times as far as Student's t."""
    student = spread.quantile
    below, above = _studentised(spread, seed).double()
    below, above = below.clamp(-_WIDEST * student, -student), above.clamp(student, _WIDEST * student)
    return spread.ratio - above * spread.error, spread.ratio - below * spread.error


def _studentised(spread: Spread, seed: int) -> Float[Tensor, "tail cell"]:
    """The 2.5 % and 97.5 % quantiles of (a draw's ratio - the ratio) / the draw's own standard error.

    Each draw is a vector of weights w over units. With its total W and its residuals' sum ``E = sum(w e)``, its ratio differs by
    ``E / W``, and its squared error is ``sum(w (e - (E / W) whole)^2) / W^2``: three matrix products for all cells. Where
    all units drawn are the same one, the error is 0, and the quotient infinite.
    """
    units, cells = spread.residuals.shape
    residuals = (spread.residuals / spread.residuals.square().sum(dim=0).sqrt()).nan_to_num().float().T.contiguous()
    wholes = (spread.wholes / spread.wholes.abs().mean()).float()
    is_even = bool((wholes == wholes[0]).all())
    squares, crossed = residuals.square(), residuals * wholes
    generator = torch.Generator().manual_seed(seed)
    quotients = torch.empty(cells, _DRAWS, dtype=torch.float32)
    for draws in torch.arange(_DRAWS).split(max(1, _AT_ONCE // max(units, cells))):
        drawn = torch.randint(units, (len(draws), units), generator=generator)
        weights = torch.zeros(len(draws), units, dtype=torch.float32)
        weights = weights.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float32)).T.contiguous()
        totals = wholes @ weights
        sums = residuals @ weights
        moves = sums / totals
        products = wholes[0] * sums if is_even else crossed @ weights
        variances = squares @ weights - 2 * moves * products + moves.square() * (wholes.square() @ weights)
        quotients[:, draws[0] : draws[-1] + 1] = sums * totals.sign() / variances.clamp(min=0).sqrt()
    quotients = quotients.nan_to_num_(nan=0.0, posinf=math.inf, neginf=-math.inf)
    tails = np.partition(quotients.numpy(), _TAILS, axis=1)[:, _TAILS]
    return torch.from_numpy(tails.T) * math.sqrt((units - 1) / units)
