"""How far an accuracy could differ by luck: intervals of a share of test examples.

With groups the unit that is drawn is a group: 108 patches of 18 images are not 108 independent examples. The bootstrap
draws as many groups as there are, with replacement, and takes the share of right answers anew; without groups that share
is a binomial draw. It is blind where each draw gives the same: every answer is right, every one wrong, or the test part is
one group. There Wilson's interval is given, with a group for an example.
"""

from __future__ import annotations

import math
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from interp.errors import InputError, shown

_Z = 1.959964
_DRAWS = 1000
_BOUNDS = (0.025, 0.975)


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `n` trials: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

    Unlike p -+ z sqrt(p(1-p)/n) it stays within [0, 1] and has a width at p = 0 and 1. Raises `InputError` for a share that
    is none and for trials that are no positive number.

    >>> [round(bound, 3) for bound in wilson_interval(0.5, 100)]
    [0.404, 0.596]
    """
    share, n = (each.item() if isinstance(each, Tensor) and not each.ndim else each for each in (share, n))
    if not (isinstance(share, Real) and isinstance(n, Real) and 0 <= share <= 1 and 0 < n < math.inf):
        raise InputError(f"share={shown(share)} of n={shown(n)}: expected a share in [0, 1] of a positive number")
    square = _Z**2 / n
    middle = share + square / 2
    reach = _Z * math.sqrt(share * (1 - share) / n + square / (4 * n))
    low, high = (middle - reach) / (1 + square), (middle + reach) / (1 + square)
    return max(0.0, min(share, low)), min(1.0, max(share, high))  # rounding must not put the share outside


def bootstrap_bounds(hits: np.ndarray, blocks: np.ndarray | None, seed: int) -> tuple[Tensor, Tensor]:
    """The 95 % percentile interval of each state's accuracy, Float [state] twice.

    `hits` is Bool [state, test], `blocks` the group of each test example, None where every example is its own.
    """
    rng = np.random.default_rng([seed, 2])
    shares = hits.mean(axis=1)
    if blocks is None:
        units = hits.shape[1]
        drawn = rng.binomial(units, shares, size=(_DRAWS, len(shares))) / units
    else:
        _, numbers, sizes = np.unique(blocks, return_inverse=True, return_counts=True)
        units = len(sizes)
        right = np.stack([np.bincount(numbers, weights=row, minlength=units) for row in hits], axis=1)
        drawn = np.stack([_of_groups(right, sizes, rng) for _ in range(_DRAWS)])
    low, high = np.quantile(drawn, _BOUNDS, axis=0)
    for state in np.flatnonzero(np.ptp(drawn, axis=0) == 0):
        low[state], high[state] = wilson_interval(shares[state], units)
    return torch.from_numpy(np.minimum(low, shares)), torch.from_numpy(np.maximum(high, shares))


def _of_groups(right: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The accuracies of one draw of groups; `right` is [group, state]."""
    times = np.bincount(rng.integers(len(sizes), size=len(sizes)), minlength=len(sizes))
    return times @ right / (times @ sizes)
