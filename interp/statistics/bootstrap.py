"""Bootstrap intervals of means over rows.

A bootstrap draws the rows of a result with replacement many times and computes the statistic of each draw. The middle 95 %
of these values is the interval. Rows are drawn whole, so what belongs together stays together: the two ends of a pair, all
cells of a grid. Every draw is a vector of weights over rows, so all draws of all cells are one matrix product, and a grid
of 20,000 cells takes seconds.

With few rows a bootstrap interval is too narrow. In simulations an interval of 95 % held the true mean in 85 % of cases
for 5 rows, 90 % for 10 and 94 % for 20.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

DRAWS = 1000
BOUNDS = (0.025, 0.975)  # the quantiles that bound the middle 95 %


def bootstrap_mean(
    values: Float[Tensor, "row ..."], seed: int = 0, draws: int = DRAWS
) -> tuple[Float[Tensor, ...], Float[Tensor, ...]]:
    """The 95 % bounds of each cell's mean over rows: percentiles of `draws` bootstrap means; NaN for a single row.

    >>> import torch
    >>> low, high = bootstrap_mean(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    >>> bool(low < 2.5 < high)
    True
    """
    return bootstrap_ratio(values, torch.ones(len(values), dtype=torch.float64), seed, draws)


def bootstrap_ratio(
    values: Float[Tensor, "row ..."], whole: Float[Tensor, " row"], seed: int = 0, draws: int = DRAWS
) -> tuple[Float[Tensor, ...], Float[Tensor, ...]]:
    """The 95 % bounds of ``mean(values) / mean(whole)`` over rows; NaN for a single row.

    A drawn row counts in both means, so rows with a small `whole` count for little.

    >>> low, high = bootstrap_ratio(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 6.0]))
    >>> float(low), float(high)
    (0.5, 0.5)
    """
    if len(values) < 2:
        nothing = torch.full(values.shape[1:], math.nan, dtype=values.dtype)
        return nothing, nothing.clone()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (draws, len(values)), generator=generator)
    weights = torch.nn.functional.one_hot(drawn, len(values)).sum(dim=1).double()
    above = weights @ values.double().reshape(len(values), -1)
    ratios = above / (weights @ whole.double())[:, None]
    bounds = torch.quantile(ratios, torch.tensor(BOUNDS, dtype=torch.float64), dim=0)
    low, high = bounds.to(values.dtype).reshape(2, *values.shape[1:])
    return low, high
