"""Density: how crowded is a cloud at each of its points?

Where k other points lie within a distance r, and the cloud locally fills d dimensions, the density is k points of n in a
ball of volume V_d r^d. Two estimators use this. Both count volume in the *intrinsic* dimension d: in as many dimensions as
features every ball would be empty.

- **kNN**: the same k everywhere, with r the distance to the k-th neighbour: log rho = log k - log n - log V_d - d log r.
  Its error is 1/sqrt(k), that of a count. A small k is noisy, a large one flattens the cloud.
- **PAk** (Rodriguez et al. 2018): each point uses as many neighbours as the density around it is even, and a fit corrects
  for the slope that is left. Between two points of equal density the balls of their k nearest have equal volumes up to
  chance; a likelihood-ratio test of this between a point and each next neighbour says where to stop.

A density is in units of x^-d: only differences of its logarithm within one cloud have a meaning. They are proportional to
d, so an error in the dimension stretches all of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import checked_choice
from interp.errors import InputError
from interp.geometry.clouds import check_k, checked_within
from interp.geometry.dimension import intrinsic_dimension
from interp.geometry.neighbors import Graph, Neighbors, graph_of, refuse_copies, size_of
from interp.geometry.outlying import notes_of_outlying
from interp.provenance import Provenance
from interp.results import Result

METHODS = ("knn", "pak")
REACH = 128  # the most neighbours of each point where their number is not fixed
RANKS = (16, 32)  # the scale of GRIDE's dimension
_LEAST = 3  # the smallest k of PAk: its fit has two parameters
_UNEVEN = 23.928  # chi-squared with one degree of freedom is above this with a probability of 1e-6
_THINNEST = 1e-14  # relative width of a shell between two equal distances, whose volume has no logarithm
_STEPS, _CONVERGED = 100, 1e-10


@dataclass(frozen=True, eq=False)
class Density(Result):
    """The logarithm of the density at each example, `values`, with its statistical `errors`.

    `neighbors` is the number of neighbours of each estimate, `dimension` the dimension of the volumes.
    """

    values: Float[Tensor, " n"]
    errors: Float[Tensor, " n"]
    neighbors: Int[Tensor, " n"]
    dimension: float
    method: str = "knn"

    def to_frame(self) -> pd.DataFrame:
        """One row for each example: log_density, error, neighbors."""
        columns = {"log_density": self.values, "error": self.errors, "neighbors": self.neighbors}
        return pd.DataFrame({name: column.numpy() for name, column in columns.items()})


def log_density(
    x: Graph, k: int = 16, dimension: float | None = None, method: str = "knn", metric: str = "euclidean"
) -> Density:
    """The log density of `x` `[example, feature]`, a cloud or its graph, at each of its examples; the density integrates to 1.

    >>> import numpy as np
    >>> line = np.arange(100.0)[:, None] ** 2  # crowded at its start
    >>> density = log_density(line, k=4, dimension=1)
    >>> bool(density.values[2] > density.values[50] > density.values[90])
    True

    `method` is "knn", from `k` neighbours, or "pak", from 3 to 127 neighbours, which it chooses for each point (it does not
    use `k`). `dimension` is that of the volumes, by default GRIDE's at ranks 16 and 32.

    The errors, 1/sqrt(k) and sqrt((4k+2)/(k(k-1))), are those of counts. They do not include the error of the dimension,
    nor for kNN that of the slope within the ball.

    Raises `InputError` for an unknown method, too few examples, a dimension that is not positive, and for equal rows,
    between which the volume is 0: drop them in all paired clouds jointly with `distinct_rows`.
    """
    neighbors = graph_for(x, k, dimension, method, metric, 1 if method == "knn" else REACH)
    density = density_of(neighbors, k, volume_dimension(neighbors, dimension), method)
    return replace(density, provenance=Provenance(notes=notes_of_outlying(x=x)))


def graph_for(x: Graph, k: int, dimension: float | None, method: str, metric: str, reach: int) -> Neighbors:
    """The graph for a density: of `reach` neighbours, and of enough for the density and its dimension, where there are so
    many; raises `InputError` for an unknown method and too few examples."""
    n = size_of(x)
    if checked_choice(method, "density", METHODS) == "knn":
        check_k(k, n)
    if dimension is None and n <= RANKS[1]:
        raise InputError(f"{n} examples are too few for a dimension: pass {RANKS[1] + 1} or more, or dimension=")
    most = max(reach, k if method == "knn" else 1, RANKS[1] if dimension is None else 1)
    return graph_of(x, min(most, n - 1), metric)


def density_of(neighbors: Neighbors, k: int, dimension: float, method: str) -> Density:
    """`log_density` from a graph of nearest neighbours: k of them for kNN, up to 128 for PAk."""
    indices, distances = neighbors.indices.cpu(), neighbors.distances.cpu().double()
    n = len(distances)
    refuse_copies(neighbors, "density")
    log_radii = dimension * distances.log() + log_unit_ball(dimension)
    if method == "knn":
        used = torch.full((n,), k)
        values = math.log(k) - log_radii[:, k - 1]
        errors = torch.full((n,), 1 / math.sqrt(k), dtype=torch.float64)
    else:
        if n < _LEAST + 2:
            raise InputError(f"{n} examples are too few for method='pak': pass {_LEAST + 2} or more")
        used = even_neighborhoods(indices[:, :REACH], log_radii[:, :REACH])
        values = _fit_with_slope(log_shells(distances[:, :REACH], dimension), used)
        counts = used.double()
        errors = ((4 * counts + 2) / (counts * (counts - 1))).sqrt()
    return Density(values - math.log(n), errors, used, dimension, method)


def volume_dimension(neighbors: Neighbors, dimension: float | None) -> float:
    """The dimension of the volumes: the argument, or GRIDE's at ranks 16 and 32.

    Raises `InputError` for a dimension that is not positive and finite.
    """
    if dimension is None:
        return intrinsic_dimension(neighbors, "gride", n1=RANKS[0], n2=RANKS[1], metric=neighbors.metric).value
    return checked_within(dimension, "dimension", "a positive number, or None for an estimate")


def log_unit_ball(d: float) -> float:
    """The log volume of the ball of radius 1 in `d` dimensions, whole or not: pi^(d/2) / Gamma(d/2 + 1).

    >>> round(math.exp(log_unit_ball(2)), 4), round(math.exp(log_unit_ball(3)), 4)
    (3.1416, 4.1888)
    """
    return d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1)


def log_shells(distances: Float[Tensor, "n k"], d: float) -> Float[Tensor, "n k"]:
    """The log volumes between each neighbour and the one before it, the first from the point itself.

    >>> log_shells(torch.tensor([[1.0, 2.0]]), 1.0).exp().tolist()
    [[2.0, 2.0]]
    """
    inner = torch.nn.functional.pad(distances[:, :-1], (1, 0))
    ratio = (inner / distances).clamp(max=1 - _THINNEST)
    return log_unit_ball(d) + d * distances.log() + torch.log(-torch.expm1(d * ratio.log()))


def even_neighborhoods(indices: Int[Tensor, "n m"], log_volumes: Float[Tensor, "n m"]) -> Int[Tensor, " n"]:
    """The number of neighbours of each point that are as crowded as the point itself: at least 3, and less than m.

    The test of neighbour k+1 of point i compares the balls of the k nearest of each, V_i and V_j. If both have one density,

        D = -2k (ln V_i + ln V_j - 2 ln(V_i + V_j) + ln 4) = 4k ln cosh((ln V_i - ln V_j) / 2)

    is chi-squared with one degree of freedom. The first neighbour with D above 23.928 (a probability of 1e-6) is one too
    many. `log_volumes` are those of the balls up to each neighbour.
    """
    k = torch.arange(_LEAST, indices.shape[1] - 1)
    own = log_volumes[:, _LEAST - 1 : -2]
    other = log_volumes[indices[:, _LEAST:-1], k - 1]
    even = 4 * k * _log_cosh((own - other) / 2) <= _UNEVEN
    return _LEAST + even.int().cumprod(dim=1).sum(dim=1)


def _log_cosh(x: Tensor) -> Tensor:
    return x.abs() + torch.log1p(torch.exp(-2 * x.abs())) - math.log(2)


def _fit_with_slope(shells: Float[Tensor, "n m"], used: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """The log density F at each point, from the log volumes v_l of the shells up to neighbour k, one point in each.

    The density of the l-th shell is F + a l, with a slope a, and the likelihood is

        L(F, a) = k F + a k(k+1)/2 - sum_l v_l exp(F + a l).

    For any slope the best F is ln k - ln sum_l v_l exp(a l). One equation for a remains: the mean of l, weighted by
    v_l exp(a l), is (k+1)/2. The mean increases with a, and Newton's steps within a bracket solve the equation: where a is
    beyond the range of ln v, the weights are ordered and their mean rank lies to one side.
    """
    rank = torch.arange(1.0, shells.shape[1] + 1, dtype=shells.dtype)
    outside = rank > used[:, None]
    shells = shells.masked_fill(outside, -torch.inf)
    high = shells.amax(dim=1) - shells.masked_fill(outside, torch.inf).amin(dim=1)
    low, slope = -high, torch.zeros_like(high)
    for _ in range(_STEPS):
        weights = torch.softmax(shells + slope[:, None] * rank, dim=1)
        mean = weights @ rank
        excess = mean - (used + 1) / 2
        low, high = torch.where(excess < 0, slope, low), torch.where(excess > 0, slope, high)
        newton = slope - excess / (weights @ rank.square() - mean.square())
        inside = (newton >= low) & (newton <= high)
        step = torch.where(inside, newton, (low + high) / 2) - slope
        slope = slope + step
        if step.abs().max() < _CONVERGED:
            break
    return used.double().log() - torch.logsumexp(shells + slope[:, None] * rank, dim=1)
