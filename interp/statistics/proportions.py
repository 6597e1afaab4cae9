"""Wilson's interval of a share of independent trials. `interp.statistics.intervals` has the rule for trials in groups."""

from __future__ import annotations

import math
from numbers import Real

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError, shown
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
