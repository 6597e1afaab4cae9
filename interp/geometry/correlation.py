"""Correlation by dimension: do two representations of the same examples depend on each other, in any way?

Put two clouds side by side, [x, y]. If each has directions of its own, the joint cloud has d_x + d_y dimensions; where y is
a function of x it has no more than x. The difference is shared:

    value = (d_x + d_y - d_xy) / max(d_x, d_y)

(Basile et al. 2024). It detects dependence that is not linear, and the clouds may have different widths. Every column gets
mean 0 and standard deviation 1 first, since the two lie side by side in one space.

**Do not read the value alone.** Estimates of intrinsic dimensions are too low, the more so the higher they are, so d_xy is
too low by most and the value of independent clouds is far from 0: 0.1 to 0.4 for two Gaussians in ten dimensions, 1,000
points. The evidence is the p of a permutation test: x and shuffled y have the same d_x, d_y and bias, and no dependence. p
is the share of shuffles whose joint dimension is at most the observed one, with the observed one among them.

A shuffle needs no distances of its own. Squared distances side by side are sums, D_x[i, j] + D_y[s(i), s(j)], so both
tables are computed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import checked_choice, checked_int
from interp.errors import InputError
from interp.geometry.clouds import Cloud, as_pair
from interp.geometry.copies import duplicates
from interp.geometry.dimension import levina_bickel, two_nn
from interp.geometry.neighbors import blocks, ready
from interp.geometry.outlying import notes_of_outlying
from interp.progress import progress_bar
from interp.provenance import Provenance
from interp.results import Result
from interp.statistics.categories import Labels
from interp.statistics.half_samples import generator
from interp.statistics.permutation import permutation_p, random_order, read_strata

FRACTION = 0.9  # the lowest part of the ratios of distances, for the fit of 2NN
HELD = 2**29  # the most bytes of a table of all distances in memory
DistanceTable = Callable[[Tensor], Tensor]  # from the numbers of some rows to these rows
NEIGHBOURS = {"2nn": 2, "mle": 100}


@dataclass(frozen=True, eq=False)
class IdCorrelation(Result):
    """How much intrinsic dimension two clouds share.

    `value` is (d_x + d_y - d_joint) / max(d_x, d_y), `p` that of the permutation test, NaN without shuffles. `d_x`,
    `d_y` and `d_joint` are the dimensions, `null` the values under each shuffle, and `n` the number of examples.
    """

    value: float
    p: float
    d_x: float
    d_y: float
    d_joint: float
    null: Float[Tensor, " permutations"]
    n: int
    method: str = "2nn"

    def to_frame(self) -> pd.DataFrame:
        """One row: value, p, chance (the mean of the null), d_x, d_y, d_joint, n, permutations, method."""
        row = {"value": self.value, "p": self.p, "chance": float(self.null.mean())}
        dimensions = {"d_x": self.d_x, "d_y": self.d_y, "d_joint": self.d_joint}
        return pd.DataFrame([{**row, **dimensions, "n": self.n, "permutations": len(self.null), "method": self.method}])


def id_correlation(
    x: Cloud,
    y: Cloud,
    permutations: int = 100,
    method: str = "2nn",
    seed: int = 0,
    *,
    strata: Labels | None = None,
    progress: bool = True,
) -> IdCorrelation:
    """The correlation by intrinsic dimension of `x` and `y`, `[example, feature]` with paired rows, and its p.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(300, 2))
    >>> dependent = id_correlation(x, np.sin(x), permutations=20)
    >>> dependent.value > 0.8, round(dependent.p, 3)
    (True, 0.048)

    p = (#{shuffles with a joint dimension <= the observed one} + 1) / (permutations + 1), at best 0.01 with 100 shuffles.
    The value is **far from 0 on independent data**, and may exceed 1: compare it with `null`, never with 0.

    `method` is "2nn" (the slope over the lowest 90 % of ratios) or "mle" (100 neighbours), as in `intrinsic_dimension`. Columns
    are standardised, constant ones dropped. With `permutations=0` p is NaN. `strata`, one label an example, keep shuffles within
    them, so that p leaves out what they explain (`interp.geometry.nuisance`).

    It needs 8 n^2 bytes of memory as long as that is at most 1 GiB; above, it computes distances again for each shuffle. For
    5,000 examples that is 0.2 GB, and 0.1 to 0.2 seconds for each shuffle on one core. A long run shows its progress on a
    terminal or in a notebook; ``progress=False`` hides it.

    Raises `InputError` where rows are not paired or not finite, where all columns of a cloud are constant, where rows are
    equal (drop them in both clouds with `distinct_rows`), for too few examples, and for an unknown method.
    """
    k = NEIGHBOURS[checked_choice(method, "method", NEIGHBOURS)]
    permutations = checked_int(permutations, "permutations")
    first, second = as_pair(x, y)
    n, estimator = len(first), partial(_dimension, method)
    if k >= n:
        raise InputError(f"method={method!r} takes {k} neighbours and there are {n} examples: pass {k + 1} or more")
    standard_x, standard_y = _standardised(first, "x"), _standardised(second, "y")
    for cloud, name in ((first, "x"), (second, "y")):
        _refuse_copies(cloud, name)
    table_x, table_y = _table(standard_x), _table(standard_y)
    same = torch.arange(n, device=first.device)
    d_x, d_y = (estimator(_nearest(table, None, same, k)) for table in (table_x, table_y))
    for dimension, name in ((d_x, "x"), (d_y, "y")):
        if not math.isfinite(dimension):
            raise InputError(f"{name} has neighbours at equal distances: a lattice has no intrinsic dimension")
    rng = generator(seed)
    within = read_strata(strata, n)
    orders = [same, *(torch.from_numpy(random_order(n, rng, within)).to(same.device) for _ in range(permutations))]
    with progress_bar("correlation by dimension", len(orders), "orders", progress) as bar:
        joint, *shuffled = (estimator(_nearest(table_x, table_y, order, k)) for order in bar.each(orders))
    p = permutation_p(sum(dimension <= joint for dimension in shuffled), permutations) if permutations else math.nan
    value, *null = ((d_x + d_y - dimension) / max(d_x, d_y) for dimension in (joint, *shuffled))
    under = torch.tensor(null, dtype=torch.float64)
    provenance = Provenance(seed=seed, notes=notes_of_outlying(x=first, y=second))
    return IdCorrelation(value, p, d_x, d_y, joint, under, n, method, provenance=provenance)


def _standardised(cloud: Float[Tensor, "n d"], name: str) -> Float[Tensor, "n e"]:
    """The columns that are not constant, with mean 0 and standard deviation 1, in float64."""
    varies = (cloud != cloud[0]).any(dim=0)
    if not varies.any():
        raise InputError(f"all {cloud.shape[1]} columns of {name} are constant: expected one or more that vary")
    columns = cloud[:, varies].double()
    return (columns - columns.mean(dim=0)) / columns.std(dim=0)


def _refuse_copies(cloud: Float[Tensor, "n d"], name: str) -> None:
    """Refuse a cloud with copies, before its columns are standardised, which changes the size of rounding."""
    equal = len(duplicates(cloud))
    if equal:
        raise InputError(
            f"{equal} of {len(cloud)} rows of {name} equal an earlier one (up to rounding) and have no ratio of distances: keep"
            " distinct_rows(x, y) of both"
        )


def _table(cloud: Float[Tensor, "n d"]) -> DistanceTable:
    """Some rows of all squared distances, infinity from a point to itself: computed in float64, stored in float32.

    Rounding changes a ratio of distances by 1e-7 of itself, far less than the ratios of two points differ. The table is
    stored where it is small enough; otherwise its rows are computed again at each call.
    """
    n = len(cloud)
    points = ready(cloud)

    def rows_of(rows: Tensor) -> Tensor:
        return (points.squared(rows) * points.unit**2).float()

    if 4 * n**2 > HELD:
        return rows_of
    table = cloud.new_empty(n, n, dtype=torch.float32)
    for rows in blocks(n, n):
        table[rows] = rows_of(torch.arange(n, device=cloud.device)[rows])
    return lambda rows: table[rows]


def _nearest(
    first: DistanceTable, second: DistanceTable | None, order: Int[Tensor, " n"], k: int
) -> Float[Tensor, "n k"]:
    """The k smallest squared distances of each point of x, or of [x, y[order]], from the tables of x and y."""
    n, here = len(order), torch.arange(len(order), device=order.device)
    nearest = []
    for rows in blocks(n, n):
        joint = first(here[rows])
        if second is not None:
            joint = joint + second(order[rows]).index_select(1, order)
        nearest.append(joint.topk(k, largest=False).values)
    return torch.cat(nearest)


def _dimension(method: str, squared: Float[Tensor, "n k"]) -> float:
    """The estimate of `intrinsic_dimension` from squared distances to the nearest, in order."""
    distances = squared.double().sqrt().cpu()
    return (two_nn(distances, FRACTION) if method == "2nn" else levina_bickel(distances))[0]
