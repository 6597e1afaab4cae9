"""Intervals of means over rows, by drawing the rows anew.

A bootstrap: the rows of a result are drawn with replacement many times, the statistic is computed of each draw, and the
middle 95 % of what comes out bound it. Rows are drawn whole, so that what belongs together, such as the two ends of a pair
or all the cells of a grid, stays together. Every draw is a row of weights, so that all draws of all cells are one matrix
product: a grid of 20,000 cells takes seconds.

With few rows a bootstrap is too sure of itself: in simulations 95 % came out as 85 % for 5 rows, 90 % for 10, 94 % for 20.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

DRAWS = 1000
_TAIL = 0.025


def bootstrap_mean(
    values: Float[Tensor, "row ..."], seed: int = 0, draws: int = DRAWS
) -> tuple[Float[Tensor, ...], Float[Tensor, ...]]:
    """The bounds of the mean over rows of each cell, 95 %: percentiles of `draws` bootstrap means; NaN for a single row.

    >>> import torch
    >>> low, high = bootstrap_mean(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    >>> bool(low < 2.5 < high)
    True
    """
    return bootstrap_ratio(values, torch.ones(len(values)), seed, draws)


def bootstrap_ratio(
    values: Float[Tensor, "row ..."], whole: Float[Tensor, " row"], seed: int = 0, draws: int = DRAWS
) -> tuple[Float[Tensor, ...], Float[Tensor, ...]]:
    """The bounds of ``mean(values) / mean(whole)`` over rows, 95 %; NaN for a single row.

    A row brings its part of both means to a draw, so that rows in which `whole` is small count for little.
    """
    if len(values) < 2:
        nothing = torch.full(values.shape[1:], math.nan)
        return nothing, nothing.clone()
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (draws, len(values)), generator=generator)
    weights = torch.nn.functional.one_hot(drawn, len(values)).sum(dim=1).double()
    above = weights @ values.double().reshape(len(values), -1)
    ratios = above / (weights @ whole.double())[:, None]
    bounds = torch.quantile(ratios, torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64), dim=0)
    low, high = bounds.to(values.dtype).reshape(2, *values.shape[1:])
    return low, high
