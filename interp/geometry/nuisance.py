"""Nuisances: what two clouds share for a reason that is not the question, such as the length of a caption.

A long caption has another state than a short one, and its image has more objects than that of a short one. So the two
clouds are alike because of length alone, and a null that shuffles all rows rejects although nothing else is shared. Two ways
out, each for another case:

- `strata=` wherever rows are shuffled: a row changes places only with rows of its own stratum (its length, or a bin of lengths).
  The null then contains what the nuisance explains, whatever the form of its effect; chance is the mean over such shuffles, since
  a formula such as k/(n-1) does not know of strata. p is exact where rows of one stratum differ by chance alone. Half of all
  rows or more should share their stratum with several others.
- `partial_out`: the linear effect of the nuisance is taken out of each cloud by regression. It changes the values themselves and
  takes several nuisances at once; but an effect that is not linear stays. Residuals are not exactly exchangeable (Freedman and
  Lane 1983): p holds about, and better the more rows there are for each column of the nuisance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.geometry.clouds import States, as_cloud, as_states, precision
from interp.statistics.categories import Labels, labels_of
from interp.statistics.permutation import read_strata

_ROUNDING = 1e-10


def partial_out(x: States, nuisance: Any) -> Float[Tensor, "*state n d"]:
    """The residuals of each feature of `x` after a regression on `nuisance`, with an intercept: x - Q Q'x.

    >>> length = torch.tensor([[3.0], [5.0], [9.0], [4.0]])
    >>> partial_out(length @ torch.ones(1, 2) + 7, length).abs().max() < 1e-5
    tensor(True)

    `x` is a cloud `[example, feature]` or a stack `[state, example, feature]`; `nuisance` `[example]` or `[example, column]` are
    numbers, such as lengths. Q is an orthonormal basis of 1 and the columns of `nuisance`, of rank r, and all is computed in
    float64. The residuals have r degrees of freedom less than the examples are, and the mean of every feature is 0. Take the same
    nuisance out of both clouds that are compared.

    Raises the errors of `as_cloud` and `as_states`, and `InputError` where `nuisance` is not one finite row an example, or has
    nearly as many columns as there are examples.
    """
    stack = as_cloud(x)[None] if getattr(x, "ndim", 3) == 2 else as_states(x)
    n = stack.shape[1]
    columns = np.asarray(nuisance.cpu() if isinstance(nuisance, Tensor) else nuisance)
    if (
        columns.dtype.kind not in "fiub"
        or columns.ndim not in (1, 2)
        or len(columns) != n
        or not np.isfinite(columns).all()
    ):
        raise InputError(
            f"nuisance of shape {columns.shape} and type {columns.dtype} for {n} examples: expected finite numbers, [example] or"
            " [example, column]; for names pass strata="
        )
    design = torch.from_numpy(columns.reshape(n, -1).astype(np.float64))
    design = design - design.mean(dim=0)
    design = torch.cat([torch.ones(n, 1, dtype=torch.float64), design / design.norm(dim=0).clamp(min=1e-300)], dim=1)
    left, sizes, _ = torch.linalg.svd(design, full_matrices=False)
    basis = left[:, sizes > _ROUNDING * sizes[0]].to(stack.device)
    if basis.shape[1] > n - 2:
        raise InputError(
            f"nuisance has rank {basis.shape[1] - 1} for {n} examples, which leaves nothing: pass fewer columns"
        )
    wide = stack.double()
    rest = (wide - basis @ (basis.T @ wide)).to(precision(stack))
    return rest[0] if getattr(x, "ndim", 3) == 2 else rest


def strata_of(strata: Labels | None, visual: Any, n: int) -> Int[np.ndarray, " n"] | None:
    """The number of each example's stratum; a string names a label of `visual`, where that is activations."""
    if strata is not None and isinstance(visual, Mapping):
        strata = labels_of(strata, visual, next(iter(visual)), "strata")
    return read_strata(strata, n)


def fingerprint_of_strata(strata: Int[np.ndarray, " n"] | None) -> str:
    """A hash of the strata of all examples, empty without strata."""
    return "" if strata is None else hashlib.sha256(strata.astype(np.int64).tobytes()).hexdigest()[:16]


def notes_of_strata(strata: Int[np.ndarray, " n"] | None) -> tuple[str, ...]:
    """A line about the strata within which rows were shuffled."""
    if strata is None:
        return ()
    sizes = np.bincount(strata)
    alone = int((sizes == 1).sum())
    stay = f"; {alone} of {len(strata)} examples are alone in theirs and stay in their pairs" if alone else ""
    return (f"rows were shuffled within {len(sizes)} strata, so chance and p leave out what the strata explain{stay}",)


def notes_of_pooling(visual: Any, textual: Any) -> tuple[str, ...]:
    """A line where the examples of two captures are means of unequally many positions, which decides how noisy they are."""
    if not all(callable(getattr(each, "pooled", None)) for each in (visual, textual)):
        return ()
    first, second = (acts.pooled(next(iter(acts))) for acts in (visual, textual))
    if not first or not second or first == second:
        return ()
    most = min(first["least"], second["least"])
    instead = (
        f'reduce="mean:k" for both, with one k of at most {most}, or pool_sizes of reduce="none", shows what depends on it'
        if most > 1
        else 'one position each, reduce="last" or "sample" for both, is the same for both'
    )
    return (
        f"visual examples are means of {first['mean']:.3g} positions and textual ones of {second['mean']:.3g}, so one cloud is"
        f" less noisy and the layers that are alike may be others: {instead}",
    )
