"""Intervals of shares: how far could an accuracy differ by luck?

`wilson_interval` is for a share of independent trials. Examples in groups are not independent: 108 patches of 18 images
are 18 trials, not 108. `bootstrap_shares` draws as many groups as there are, with replacement, and computes the share of
hits of each draw. Without groups, such a share is a binomial draw.

The bootstrap has no width where every draw gives the same share: all examples are hits, none is, or there is one group.
There `bootstrap_shares` gives Wilson's interval, with one trial a group.
"""

from __future__ import annotations

import math
from numbers import Real

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError, shown
from interp.statistics.bootstrap import BOUNDS, DRAWS
from interp.statistics.half_samples import NORMAL_95


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `n` trials: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

    >>> [round(bound, 3) for bound in wilson_interval(0.5, 100)]
    [0.404, 0.596]

    Unlike p -+ z sqrt(p(1-p)/n), it stays within [0, 1] and has a width at p = 0 and p = 1.

    Raises `InputError` for a share outside [0, 1] and for `n` that is not a positive number.
    """
    share, n = (each.item() if isinstance(each, Tensor) and not each.ndim else each for each in (share, n))
    if not (isinstance(share, Real) and isinstance(n, Real) and 0 <= share <= 1 and 0 < n < math.inf):
        raise InputError(f"share={shown(share)} of n={shown(n)}: expected a share in [0, 1] of a positive number")
    low, high = wilson_bounds(torch.tensor(float(share)).double(), torch.tensor(float(n)).double(), NORMAL_95)
    return float(low), float(high)


def wilson_bounds(
    share: Float[Tensor, "*cell"], n: Float[Tensor, "*cell"], quantile: float
) -> tuple[Float[Tensor, "*cell"], Float[Tensor, "*cell"]]:
    """Wilson's bounds of many shares, `quantile` standard errors on either side."""
    square = quantile**2 / n
    half_width = quantile * (share * (1 - share) / n + square / (4 * n)).sqrt()
    low, high = ((share + square / 2 + side) / (1 + square) for side in (-half_width, half_width))
    return torch.minimum(share, low).clamp(min=0), torch.maximum(share, high).clamp(
        max=1
    )  # rounding must not cross the share


def bootstrap_shares(hits: np.ndarray, blocks: np.ndarray | None, seed: int) -> tuple[Tensor, Tensor]:
    """The 95 % bounds of each state's share of hits: bootstrap percentiles over groups, Float [state] twice.

    `hits` is Bool [state, example]. `blocks` is the group of each example, or None where every example is its own group.

    >>> low, high = bootstrap_shares(np.array([[True, True, False, True]]), None, seed=0)
    >>> bool(low < 0.75 < high)
    True
    """
    rng = np.random.default_rng([seed, 2])
    shares = hits.mean(axis=1)
    if blocks is None:
        units = hits.shape[1]
        drawn = rng.binomial(units, shares, size=(DRAWS, len(shares))) / units
    else:
        _, numbers, sizes = np.unique(blocks, return_inverse=True, return_counts=True)
        units = len(sizes)
        right = np.stack([np.bincount(numbers, weights=row, minlength=units) for row in hits], axis=1)
        drawn = np.stack([_share_of_draw(right, sizes, rng) for _ in range(DRAWS)])
    low, high = np.quantile(drawn, BOUNDS, axis=0)
    for state in np.flatnonzero(np.ptp(drawn, axis=0) == 0):
        low[state], high[state] = wilson_interval(shares[state], units)
    return torch.from_numpy(np.minimum(low, shares)), torch.from_numpy(np.maximum(high, shares))


def _share_of_draw(right: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each state's share in one draw of groups; `right` [group, state] counts the hits."""
    times = np.bincount(rng.integers(len(sizes), size=len(sizes)), minlength=len(sizes))
    return times @ right / (times @ sizes)
