"""Corrections: one p of many. The smallest of 33 p values is under .05 by luck in 1 - .95^33 = 82 % of cases.

`holm` needs only the p values, and allows any dependence. `family_p` needs the shuffles behind them, shared by all cells: it
knows how cells depend on each other, so that it finds more where neighbouring layers nearly repeat each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError, shown
from interp.statistics.permutation import permutation_p

# Smaller differences, relative to the values, are rounding.
_ROUNDING = 1e-9


def holm(p: Any) -> Float[np.ndarray, " ..."]:
    """Holm's adjusted p values: the k-th smallest of m times ``m - k + 1``, at least the ones before it, at most 1.

    >>> holm([0.01, 0.04, 0.03, float("nan")]).tolist()
    [0.03, 0.06, 0.06, nan]

    A NaN is no test: it stays NaN and does not count in m. To reject where the adjusted p is at most .05 keeps the chance of any
    false rejection at .05, however the tests depend on each other (Holm 1979). The shape may be any; it is kept.

    Raises `InputError` for values outside [0, 1].
    """
    values = np.asarray(p, dtype=np.float64)
    adjusted = values.copy().reshape(-1)
    known = np.flatnonzero(~np.isnan(adjusted))
    if ((adjusted[known] < 0) | (adjusted[known] > 1)).any():
        raise InputError(f"p={shown(p)}: expected values in [0, 1], or NaN for no test")
    order = known[np.argsort(adjusted[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * adjusted[order]))
    return adjusted.reshape(values.shape)


def family_p(observed: Float[Tensor, ...], null: Float[Tensor, "draw ..."]) -> Float[Tensor, ...]:
    """The p of each cell among all cells: how often does the largest of all cells, by chance, reach it?

    ``z = (value - mean) / spread`` of each cell's own draws, the observed value among them; then
    ``p = (1 + draws whose largest z reaches the cell's) / (1 + draws)``.

    >>> null = torch.tensor([[0.1, 5.0], [0.2, 7.0], [0.3, 6.0]])  # three shuffles of two states, on scales of their own
    >>> family_p(torch.tensor([0.9, 6.0]), null).tolist()
    [0.25, 0.75]

    Large values count as evidence: pass absolute values for two sides. Each draw must come from one shuffle for all cells. Then
    the chance that any p is at most a is at most a, exactly, where the null holds in all cells (Westfall and Young 1993). A cell
    that has one value in all draws and in the data has p = 1, and a cell with a NaN has NaN; neither counts among the others.

    Raises `InputError` where the shapes do not fit or there is no draw.
    """
    observed, null = torch.as_tensor(observed), torch.as_tensor(null)
    if null.shape[1:] != observed.shape or not len(null):
        raise InputError(
            f"null has shape {tuple(null.shape)} and observed {tuple(observed.shape)}: expected one draw or more along the first"
            " dimension, and the shape of observed after it"
        )
    if not observed.numel():
        return observed.double()
    return family_p_of_parts([(observed.flatten(), null.reshape(len(null), -1))]).reshape(observed.shape)


def family_p_of_parts(
    parts: Iterable[tuple[Float[Tensor, " _"], Float[Tensor, "draw _"]]],
) -> Float[Tensor, " cell"]:
    """`family_p` of cells whose draws come in parts, some cells at a time, because they are too many to be held at once."""
    scores: list[Tensor] = []
    largest = torch.tensor(-torch.inf, dtype=torch.float64)
    for observed, null in parts:
        drawn = torch.cat([observed[None], null]).double()
        centred = drawn - drawn.mean(dim=0)
        spread = centred.square().mean(dim=0).sqrt()
        still = spread <= _ROUNDING * drawn.abs().amax(dim=0)
        unknown = drawn.isnan().any(dim=0)
        z = (centred / spread).masked_fill(still | unknown, -torch.inf)
        largest = torch.maximum(largest, z[1:].amax(dim=1))
        scores.append(z[0].masked_fill(unknown, torch.nan))
    z = torch.cat(scores)
    below = torch.searchsorted(largest.sort().values, z - _ROUNDING * z.abs())
    reached = torch.where(z == -torch.inf, len(largest), len(largest) - below)
    return permutation_p(reached.double(), len(largest)).masked_fill(z.isnan(), torch.nan)
