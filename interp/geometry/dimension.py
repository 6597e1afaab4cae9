"""Intrinsic dimension: how many coordinates does a cloud of points really use?

States of a model have thousands of features, but lie near a surface of ten or fifty dimensions. Close to a point such
a surface is flat, and the number of neighbours within a radius r grows as r^d. So the *ratio* of a point's distances to
two of its neighbours depends on d alone, whatever the density. Three estimators use it:

- **2NN** (Facco et al. 2017): mu = r_2 / r_1, of the two nearest, is Pareto distributed, P(mu > m) = m^-d.
- **GRIDE** (Denti et al. 2022): the same for neighbours n1 and n2 further out, where noise does not inflate d.
- **MLE** (Levina and Bickel 2004): all of the k nearest at once.

All measure at one scale, the distance of the neighbours, and all are too low in high dimensions (a Gaussian in 20 dimensions,
2,000 points: 14 by GRIDE 16/32). The reason is the distance: where the neighbours are 0.6 times as far as any two points, the
surface is neither flat nor evenly filled. The estimate then has a `warning`; on Gaussians, cubes and spheres of 2 to 40
dimensions with 500 to 5,000 points it was 10 to 50 % too low wherever it had one. Compare values only at equal numbers of
points and equal ranks, and look for a `plateau` in `dimension_scaling`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import checked_choice, checked_int
from interp.errors import InputError, shown
from interp.geometry.clouds import as_cloud, check_k, checked_within
from interp.geometry.neighbors import Graph, Neighbors, graph_of, level, refuse_copies, size_of
from interp.geometry.outlying import notes_of_outlying
from interp.geometry.preprocessing import PREPROCESS, notes_of_massive, preprocess
from interp.results import Result

LONELY, TOO_MANY = 50.0, 0.05  # a nearest neighbour so many times nearer than the next, and the share of such points
FAR = 0.6  # neighbours farther than this part of the distance of any two points are too far
_RANGE = (1e-3, 1e3)  # where GRIDE looks for its dimension
_HALVINGS = 100
_SKEW = 0.125  # a variance over this part of the squared value comes from too few points to be corrected
Terms = tuple[float, float, Tensor]  # a value, its error if points were independent, and each point's part in it
Estimator = Callable[[Tensor], Terms]


@dataclass(frozen=True)
class Estimate(Result):
    """An intrinsic dimension: its `value`, standard `error`, the number `n` of points, and its `scale`.

    `scale` is the mean distance to the farthest neighbour in use: the 2nd for 2NN, n2-th for GRIDE, k-th for MLE.
    `ranks` are the two neighbours with the ratio of distances, and `reach` is the scale as a part of the distance of any two
    points (the root of its mean square). `twins` is the number of points whose nearest neighbour is over 50 times nearer than
    the next, for estimates that use it; in one dimension that is 2 % of points by chance, in more it is less. `preprocess` is
    what was done to the cloud, and `massive` a note of the few features or rows that make up most of its distances.
    `independent_error` is the error if no two points shared neighbours.
    """

    value: float
    error: float
    n: int
    scale: float
    method: str = "2nn"
    ranks: tuple[int, int] = (1, 2)
    reach: float = math.nan
    twins: int = 0
    preprocess: str = field(default="none", repr=False)
    massive: str = field(default="", repr=False)
    independent_error: float = field(default=math.nan, repr=False)

    @property
    def warning(self) -> str:
        """Why the value is surely too low, or that of a few features alone, in one line; empty where it is neither."""
        return "; ".join(filter(None, (self.massive, self.too_low)))

    @property
    def too_low(self) -> str:
        """The part of the `warning` on the scale and on copies."""
        if self.twins > TOO_MANY * self.n:
            return (
                f"too low: {self.twins} of {self.n} points have one neighbour over {LONELY:g} times nearer than the next, as"
                " copies with small changes have; drop one of each pair, or use gride"
            )
        if not self.reach > FAR:
            return ""
        return (
            f"too low by 10 % or more: neighbour {self.ranks[1]} of {self.n} points is {self.reach:.2f} as far as any two"
            f" points are, over {FAR:g}; use more points or smaller ranks"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row: method, ranks, value, error, n, scale, reach, warning."""
        row = {"method": self.method, "first_rank": self.ranks[0], "last_rank": self.ranks[1], "value": self.value}
        how = {"error": self.error, "n": self.n, "scale": self.scale, "reach": self.reach, "warning": self.warning}
        return pd.DataFrame([{**row, **how}])


def intrinsic_dimension(
    x: Graph,
    method: str = "2nn",
    fraction: float = 0.9,
    n1: int = 16,
    n2: int = 32,
    k: int = 20,
    metric: str = "euclidean",
    *,
    preprocess: str = "none",
) -> Estimate:
    """The intrinsic dimension d of the cloud `x` `[example, feature]`, with its error and scale.

    >>> import numpy as np
    >>> plane = np.random.default_rng(0).normal(size=(1000, 2)) @ np.array([[1.0, 2.0, 0.5], [0.0, 1.0, 3.0]])
    >>> round(intrinsic_dimension(plane).value)
    2

    With mu_i = r_n2/r_n1 the ratio of point i's distances to two of its neighbours (r_2/r_1 for 2NN), and n all points:

    - "2nn": the slope through the origin of -ln(1 - i/n) on ln mu_(i), sorted, over the lowest `fraction` of them.
    - "2nn-ml": the maximum of the likelihood, (n - 1) / sum_i ln mu_i, over all points.
    - "gride": the maximum over d in [1e-3, 1e3] of
      (n-1) ln d + (n2-n1-1) sum_i ln(mu_i^d - 1) - ((n2-1) d + 1) sum_i ln mu_i.
    - "mle": the mean over points of (k-1) / sum_j ln(r_k/r_j), j < k (Levina and Bickel).
    - "mle-inverse": one over the mean of the inverses of those (MacKay and Ghahramani), 1 to 10 % lower.

    `independent_error` is the analytical standard error of independent points: d / sqrt(fraction n) for 2NN, from the Fisher
    information for GRIDE, the standard error of the mean over points for MLE. But neighbours share neighbours, so `error` is
    it times the root of the number of points over their effective number: 1.2 times for 2NN, up to twice for GRIDE 16/32 in
    one or two dimensions. Its 95 % interval held the mean of the estimator in 93 to 99 % of
    Gaussian clouds of 1 to 20 dimensions with 50 to 1,000 points, the analytical one in 71 to 97 %; estimates with a `warning`
    may have too small a one (0.87 for GRIDE 16/32 of 50 points). It says nothing of the bias.

    Where massive features make up the distances, the dimension is theirs, and the estimate has a `warning`:
    ``preprocess="clamp"`` measures without them ("none", "standardise", "clamp", "cosine" or "whiten", see
    `interp.geometry.preprocessing`). A graph of neighbours is taken as it is.

    Raises `InputError` for an unknown method, too few points, a fraction outside (0, 1), and for rows that are equal or equal
    but for rounding, which have no ratio of distances: drop them in all clouds jointly with `distinct_rows`.
    """
    checked_within(fraction, "fraction", "a share between 0 and 1; method='2nn-ml' uses all points", high=1.0)
    known: dict[str, tuple[tuple[int, int], Estimator]] = {
        "2nn": ((1, 2), partial(two_nn, fraction=fraction)),
        "2nn-ml": ((1, 2), _two_nn_likelihood),
        "gride": ((n1, n2), partial(_gride, n1=n1, n2=n2)),
        "mle": ((1, k), levina_bickel),
        "mle-inverse": ((1, k), _mackay_ghahramani),
    }
    ranks, estimator = known[checked_choice(method, "method", tuple(known))]
    x, how = _prepared(x, preprocess)
    return replace(_estimate(_graph(x, *ranks, metric), method, ranks, estimator), **how)


def dimension_scaling(
    x: Graph, range_max: int = 256, metric: str = "euclidean", *, preprocess: str = "none"
) -> list[Estimate]:
    """GRIDE over scales: one `Estimate` for each of the ranks (1, 2), (2, 4), (4, 8), ... up to `range_max`.

    >>> import numpy as np
    >>> [each.ranks for each in dimension_scaling(np.random.default_rng(0).normal(size=(100, 2)), range_max=8)]
    [(1, 2), (2, 4), (4, 8)]

    A dimension is a property of the cloud where it hardly changes with the scale; at the smallest scales noise raises
    it, at the largest ones curvature and borders change it either way. Ranks 16/32 are item 4. Too large a `range_max` is
    cut to the number of points; the `ranks` of the last item tell. `preprocess` is that of `intrinsic_dimension`.

    Raises the errors of `intrinsic_dimension`.
    """
    range_max, n = checked_int(range_max, "range_max", least=2), size_of(x)
    steps = int(math.log2(min(range_max, n - 1)))
    if steps < 1:
        raise InputError(f"{n} examples have no two neighbours each: pass 3 or more")
    x, how = _prepared(x, preprocess)
    graph = _graph(x, 1, 2**steps, metric)
    ranks = [(2**step, 2 ** (step + 1)) for step in range(steps)]
    return [replace(_estimate(graph, "gride", pair, partial(_gride, n1=pair[0], n2=pair[1])), **how) for pair in ranks]


def plateau(estimates: Sequence[Estimate], tolerance: float = 0.1) -> range | None:
    """Where a dimension hardly depends on the scale: the longest run of `estimates` in which each differs from the one
    before by `tolerance` of it or less, as a half-open range of their numbers; None where no two do.

    Of runs of equal length it is the one that changes least from end to end. Estimates that are `too_low` do not count. (This
    definition is this package's own; studies choose the scale by eye.)

    Raises `InputError` where `estimates` are not a list of `Estimate`, and for a tolerance of 0 or less.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> sheet = np.pad(rng.uniform(size=(2000, 2)), ((0, 0), (0, 8))) + 0.003 * rng.normal(size=(2000, 10))
    >>> estimates = dimension_scaling(sheet)
    >>> [round(each.value, 1) for each in estimates][:3], plateau(estimates).start > 2  # noise first, then the sheet
    ([3.9, 2.9, 2.4], True)
    """
    if not (isinstance(estimates, Sequence) and estimates and all(isinstance(each, Estimate) for each in estimates)):
        raise InputError(f"estimates={shown(estimates)}: expected the list that dimension_scaling returns")
    checked_within(tolerance, "tolerance", "a share above 0")
    steady = [
        abs(after.value - before.value) <= tolerance * before.value and not before.too_low and not after.too_low
        for before, after in pairwise(estimates)
    ]
    runs = []
    for start in range(len(steady)):
        stop = next((end for end in range(start, len(steady)) if not steady[end]), len(steady))
        if stop > start:
            change = abs(math.log(estimates[stop].value / estimates[start].value))
            runs.append((start - stop, change, start, stop + 1))
    return range(*min(runs)[2:]) if runs else None


def _prepared(x: Graph, how: str) -> tuple[Graph, dict[str, Any]]:
    """The cloud after preprocessing, and what an estimate says of it. A graph stays as it is, and has no note."""
    checked_choice(how, "preprocess", tuple(PREPROCESS))
    if isinstance(x, Neighbors):
        if how != "none":
            raise InputError(
                f"preprocess={how!r} and x is a graph of neighbours: pass the cloud, which makes another graph"
            )
        return x, {}
    cloud = preprocess(as_cloud(x), how)
    return cloud, {"preprocess": how, "massive": "; ".join((*notes_of_outlying(x=cloud), *notes_of_massive(x=cloud)))}


def _graph(x: Graph, first: int, last: int, metric: str) -> Neighbors:
    n = size_of(x)
    check_k(first, n, "the first rank")
    check_k(last, n, "the last rank")
    if first >= last:
        raise InputError(f"ranks {first} and {last}: expected a first one that is smaller than the last")
    graph = graph_of(x, last, metric)
    refuse_copies(graph, "ratio of distances")
    return graph


def _estimate(graph: Neighbors, method: str, ranks: tuple[int, int], estimator: Estimator) -> Estimate:
    """The estimate from the distances to the neighbours up to the last of two ranks."""
    distances = graph.distances[:, : ranks[1]].cpu()
    _refuse_ties(distances, *ranks)
    value, alone, terms = estimator(distances)
    error = _dependent_error(value, alone, terms, graph.indices[:, : ranks[1]].cpu())
    scale = float(distances[:, -1].mean())
    twins = int((distances[:, 1] > LONELY * distances[:, 0]).sum()) if ranks[0] == 1 else 0
    return Estimate(
        value, error, len(distances), scale, method, ranks, scale / graph.extent, twins, independent_error=alone
    )


def _dependent_error(value: float, alone: float, terms: Float[Tensor, " n"], neighbors: Int[Tensor, "n k"]) -> float:
    """The standard error of an estimate whose points share neighbours, from that of independent points and each point's term.

    Of two points with o of k + 1 neighbours in common (themselves counted) the terms are taken to be correlated by o / (k + 1):
    the variance of their sum is then sum_p (sum of the terms of the neighbourhoods with p)^2 / (k + 1). Terms about their mean
    sum to 0, so what any two points share by chance, (k + 1) / n, has to be added again. The variance is at least so much
    larger: where a neighbourhood is a large part of the cloud, all points depend on the same few in the middle.
    """
    n, k = neighbors.shape
    terms = terms - terms.mean()
    sums = terms.index_add(0, neighbors.flatten(), terms.repeat_interleave(k))
    apart = 1 - min(k + 1, n - 1) / n
    together = float(sums.square().sum()) / (k + 1) / apart
    times = max(1 / apart, together / (float(terms.square().sum()) or 1.0))
    # A dimension is one over a mean of logarithms. Of m independent ones it varies by 1 / (m - 4) of its square, not by 1 / m.
    part = min((alone / value) ** 2 * times, _SKEW)
    return max(alone, value * math.sqrt(part / (1 - 4 * part)))


def _refuse_ties(distances: Float[Tensor, "n k"], first: int, last: int) -> None:
    """Refuse ratios of 1, up to rounding: with ranks between, a single one has no likelihood, and where half the ratios
    of next neighbours are 1 their logarithms are rounding errors."""
    n = len(distances)
    tied = int(level(distances[:, first - 1], distances[:, last - 1]).sum())
    if 2 * tied >= n or (tied and last - first > 1):
        raise InputError(
            f"{tied} of {n} examples have neighbours {first} and {last} at the same distance:"
            " points on a lattice have no intrinsic dimension at this scale, use ranks farther apart"
        )


def two_nn(distances: Tensor, fraction: float) -> Terms:
    """2NN and its error, from distances to the two nearest, in order."""
    n = len(distances)
    size = int(n * fraction)
    if size < 1:
        raise InputError(f"fraction={fraction!r} of {n} examples is less than one: pass more examples")
    ratios = (distances[:, 1] / distances[:, 0]).log()
    log_mu = torch.sort(ratios)[0][:size]
    height = -torch.log1p(-torch.arange(1, size + 1, dtype=log_mu.dtype) / n)
    value = float((log_mu @ height) / (log_mu @ log_mu))
    return value, value / math.sqrt(size), ratios


def _two_nn_likelihood(distances: Tensor) -> Terms:
    n = len(distances)
    ratios = (distances[:, 1] / distances[:, 0]).log()
    value = (n - 1) / float(ratios.sum())
    return value, value / math.sqrt(n), ratios


def _gride(distances: Tensor, n1: int, n2: int) -> Terms:
    """The root of the likelihood's derivative by bisection, and the inverse root of minus its second derivative."""
    log_mu = (distances[:, n2 - 1] / distances[:, n1 - 1]).log()
    n, between, total = len(log_mu), n2 - n1 - 1, float(log_mu.sum())

    def derivative(d: float) -> float:
        inner = float((log_mu / -torch.expm1(-d * log_mu)).sum()) if between else 0.0
        return (n - 1) / d + between * inner - (n2 - 1) * total

    low, high = _RANGE
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if derivative(middle) > 0 else (low, middle)
    value = (low + high) / 2
    decay = torch.exp(-value * log_mu)
    inner = float((log_mu.square() * decay / (1 - decay).square()).sum()) if between else 0.0
    slopes = (between * log_mu / (1 - decay) if between else 0.0) - (n2 - 1) * log_mu
    return value, ((n - 1) / value**2 + between * inner) ** -0.5, slopes


def _inverse_dimensions(distances: Tensor) -> Float[Tensor, " n"]:
    k = distances.shape[1]
    inverse = (distances[:, -1:] / distances[:, :-1]).log().sum(dim=1) / (k - 1)
    if (inverse == 0).any():
        raise InputError(f"{int((inverse == 0).sum())} examples have {k} neighbours at one distance: use a larger k")
    return inverse


def levina_bickel(distances: Tensor) -> Terms:
    """MLE and its error, from distances to the nearest, in order."""
    dimensions = 1 / _inverse_dimensions(distances)
    return float(dimensions.mean()), float(dimensions.std() / math.sqrt(len(dimensions))), dimensions


def _mackay_ghahramani(distances: Tensor) -> Terms:
    inverse = _inverse_dimensions(distances)
    value = 1 / float(inverse.mean())
    return value, value**2 * float(inverse.std() / math.sqrt(len(inverse))), inverse
