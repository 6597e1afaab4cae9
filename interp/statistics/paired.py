"""Paired comparisons: the same items measured twice, such as two checkpoints on the same questions.

Items differ from each other more than two checkpoints do on one item. To compare two intervals throws that away: they can
overlap by half and the difference be beyond doubt, since ``var(after - before)`` lacks what the items share.

- Answers right or wrong, each item on its own: the exact McNemar test. Of the items that changed, half would have changed
  either way: ``p = min(1, 2 P(X <= fewer))`` with X binomial of (changed, 1/2). The interval of the difference is that of
  Agresti and Min (2005): ``d -+ z sqrt((gained + lost - d^2) / (n + 2))``, with half an item added to each of the four kinds of
  pairs. Simulated coverage: .95 to .96 at 5 to 200 items, averaged over all shares; up to .99 where few items change.
- All else: signs. Without a difference, before and after could change places in each item or group. So p is the share of all
  signs of the groups' summed differences whose sum is as far from 0 as the observed one: all signs up to 12 groups, 9,999 random
  ones from there on. The interval is `difference_interval`; for answers in groups that of Agresti and Min, with an
  effective number of items and Student's quantile.

The exact McNemar test is conservative: an interval can exclude 0 where p is a little above .05. With 5 units there are 32 signs,
so p is .0625 at least: fewer than 6 can show nothing at .05.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from interp.displays import Display
from interp.errors import InputError
from interp.statistics.categories import Labels
from interp.statistics.half_samples import NORMAL_95
from interp.statistics.intervals import Spread, difference_interval, unit_numbers
from interp.statistics.permutation import permutation_p

_ALL_SIGNS = 12  # groups: up to 4,096 signs, all of them are tried
_FLIPS = 9999
_ROUNDING = 1e-9
_AT_ONCE = 2**22


def paired_change(
    before: Shaped[Tensor, "row ..."], after: Shaped[Tensor, "row ..."], groups: Labels | None = None, seed: int = 0
) -> Change:
    """The change of the mean from `before` to `after`, measured on the same rows, with its 95 % bounds and p, for each cell.

    >>> before = torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 1, 1])  # two of ten answers are right
    >>> change = paired_change(before, torch.ones(10))
    >>> float(change.difference), float(change.p)  # eight gained, none lost: 2 / 2^8
    (0.8, 0.0078125)

    Tables of 0 and 1 are answers; all other numbers are compared by signs. `groups` has a label for each row, and groups stay
    whole. `seed` is that of random signs and of the bootstrap. A cell with NaN has NaN; so have the bounds for a single unit.

    Raises `InputError` where the shapes differ or there is no row.
    """
    if before.shape != after.shape or not before.ndim or not len(before):
        raise InputError(
            f"before has shape {tuple(before.shape)} and after {tuple(after.shape)}: expected the same rows and cells twice"
        )
    shape = before.shape[1:]
    one, other = (each.detach().cpu().double().reshape(len(each), -1) for each in (before, after))
    difference = other - one
    numbers = unit_numbers(groups, len(one))
    low, high = paired_interval(one, other, groups, seed)
    is_alone = int(numbers.max()) + 1 == len(numbers)
    p = _mcnemar_p(difference) if _are_answers(one, other) and is_alone else _sign_p(difference, numbers, seed)
    cells = [one.mean(dim=0), other.mean(dim=0), difference.mean(dim=0), low, high, p]
    mean_before, mean_after, change, low, high, p = (each.reshape(shape) for each in cells)
    return Change(mean_before, mean_after, change, low, high, p, int(numbers.max()) + 1)


def paired_interval(
    before: Shaped[Tensor, "row ..."], after: Shaped[Tensor, "row ..."], groups: Labels | None = None, seed: int = 0
) -> tuple[Float[Tensor, ...], Float[Tensor, ...]]:
    """The 95 % bounds of `paired_change` alone, without its p."""
    if _are_answers(before, after):
        return _answer_bounds((after - before).double(), unit_numbers(groups, len(before)))
    return difference_interval(after - before, groups, seed)


def _are_answers(before: Tensor, after: Tensor) -> bool:
    return all(bool(((each == 0) | (each == 1) | each.isnan()).all()) for each in (before, after))


def _mcnemar_p(difference: Float[Tensor, "row cell"]) -> Float[Tensor, " cell"]:
    from scipy.special import bdtr

    gained, lost = (difference > 0).sum(dim=0), (difference < 0).sum(dim=0)
    p = torch.as_tensor(2 * bdtr(torch.minimum(gained, lost).numpy(), (gained + lost).numpy(), 0.5)).clamp(max=1)
    return torch.where(difference.isnan().any(dim=0), torch.nan, p)


def _answer_bounds(
    difference: Float[Tensor, "row cell"], numbers: Int[np.ndarray, " row"]
) -> tuple[Float[Tensor, " cell"], Float[Tensor, " cell"]]:
    """Agresti and Min's interval of a difference of paired shares; in groups with an effective number of items."""
    n, quantile = torch.full_like(difference[0], len(difference)), NORMAL_95
    if not numbers.any():
        return torch.full_like(n, math.nan), torch.full_like(n, math.nan)
    gained, lost = (difference > 0).double().mean(dim=0), (difference < 0).double().mean(dim=0)
    if int(numbers.max()) + 1 < len(numbers):
        spread = Spread(difference, torch.ones(len(difference), dtype=torch.float64), numbers)
        n, quantile = spread.trials(gained + lost - (gained - lost).square()), spread.quantile
    gained, lost = ((n * share + 0.5) / (n + 2) for share in (gained, lost))
    middle = gained - lost
    half_width = quantile * ((gained + lost - middle.square()) / (n + 2)).sqrt()
    half_width = torch.where(difference.isnan().any(dim=0), torch.nan, half_width)
    return (middle - half_width).clamp(min=-1), (middle + half_width).clamp(max=1)


def _sign_p(
    difference: Float[Tensor, "row cell"], numbers: Int[np.ndarray, " row"], seed: int
) -> Float[Tensor, " cell"]:
    units = torch.from_numpy(numbers)
    count = int(units.max()) + 1
    sums = torch.zeros(count, difference.shape[1], dtype=torch.float64).index_add_(0, units, difference)
    observed = sums.sum(dim=0).abs()
    is_small = count <= _ALL_SIGNS
    total = 2**count if is_small else _FLIPS
    generator = torch.Generator().manual_seed(seed)
    reached = torch.zeros_like(observed)
    for places in torch.arange(total).split(max(1, _AT_ONCE // max(count, len(observed)))):
        if is_small:
            bits = places[:, None] >> torch.arange(count) & 1
        else:
            bits = torch.randint(2, (len(places), count), generator=generator)
        flipped = ((1 - 2 * bits).double() @ sums).abs()
        reached += (flipped >= observed - _ROUNDING * sums.abs().sum(dim=0)).sum(dim=0)
    p = reached / total if is_small else permutation_p(reached, total)
    return torch.where(observed.isnan(), torch.nan, p)


@dataclass(frozen=True)
class Change(Display):
    """A paired change for each cell, Float [...]: the means `before` and `after`, their `difference` with its 95 % bounds `low`
    and `high`, and its `p`. `n` is the number of units, rows or groups."""

    before: Float[Tensor, ...]
    after: Float[Tensor, ...]
    difference: Float[Tensor, ...]
    low: Float[Tensor, ...]
    high: Float[Tensor, ...]
    p: Float[Tensor, ...]
    n: int
