"""Intrinsic dimension: how many coordinates a cloud of points really uses.

States of a model have thousands of features, but lie near a surface of ten or fifty dimensions. Close to a point such
a surface is flat, and the number of neighbours within a radius r grows as r^d. So the *ratio* of a point's distances to
two of its neighbours says what d is, whatever the density. Three estimators use it:

- **2NN** (Facco et al. 2017): mu = r_2 / r_1, the two nearest, is Pareto distributed, P(mu > m) = m^-d.
- **GRIDE** (Denti et al. 2022): the same for neighbours n1 and n2 further out, where noise no longer inflates d.
- **MLE** (Levina and Bickel 2004): all of the k nearest at once.

All look at one scale, the distance over which the ratio is taken, and all come out too low in high dimensions (a
Gaussian in 20 dimensions, 2,000 points: 14 by GRIDE 16/32). Compare values at equal numbers of points and equal ranks
only, and see over `dimension_scaling` whether there is a plateau.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.geometry.clouds import Cloud, as_cloud, check_k, duplicates
from interp.geometry.neighbors import nearest_neighbors
from interp.results import Result

_RANGE = (1e-3, 1e3)  # where GRIDE looks for its dimension
_HALVINGS = 100


@dataclass(frozen=True)
class Estimate(Result):
    """An intrinsic dimension: its `value`, standard `error`, the number `n` of points, and its `scale`.

    `scale` is the mean distance to the farthest neighbour used: the 2nd for 2NN, n2-th for GRIDE, k-th for MLE.
    `ranks` are the neighbours whose distances were compared.
    """

    value: float
    error: float
    n: int
    scale: float
    method: str = "2nn"
    ranks: tuple[int, int] = (1, 2)

    def to_frame(self) -> pd.DataFrame:
        """One row: method, ranks, value, error, n, scale."""
        row = {"method": self.method, "first_rank": self.ranks[0], "last_rank": self.ranks[1], "value": self.value}
        return pd.DataFrame([{**row, "error": self.error, "n": self.n, "scale": self.scale}])


def intrinsic_dimension(
    x: Cloud,
    method: str = "2nn",
    fraction: float = 0.9,
    n1: int = 16,
    n2: int = 32,
    k: int = 20,
    metric: str = "euclidean",
) -> Estimate:
    """The intrinsic dimension d of the cloud `x` `[example, feature]`, with its error and scale.

    With mu_i = r_n2/r_n1 the ratio of point i's distances to two of its neighbours (r_2/r_1 for 2NN), and n all points:

    - "2nn": the slope through the origin of -ln(1 - i/n) on ln mu_(i), sorted, over the lowest `fraction` of them.
    - "2nn-ml": the maximum of the likelihood, (n - 1) / sum_i ln mu_i, over all points.
    - "gride": the maximum over d in [1e-3, 1e3] of
      (n-1) ln d + (n2-n1-1) sum_i ln(mu_i^d - 1) - ((n2-1) d + 1) sum_i ln mu_i.
    - "mle": the mean over points of (k-1) / sum_j ln(r_k/r_j), j < k (Levina and Bickel).
    - "mle-inverse": one over the mean of the inverses of those (MacKay and Ghahramani), 1 to 10 % lower.

    The error is the analytical standard error: d / sqrt(fraction n) for 2NN, from the Fisher information for GRIDE, the
    standard error of the mean over points for MLE. It takes points as independent, which neighbours are not quite: in
    simulations with Gaussians it is right from five dimensions on, and 0.6 of the true one for 2NN and GRIDE in two.
    Half-samples, which are used for overlaps, would change the scale itself, and overstate it twofold.

    Raises `InputError` for an unknown method, too few points, a fraction outside (0, 1), and for equal rows, which
    have no ratio of distances: drop them in all clouds jointly with `distinct_rows`.

    >>> import numpy as np
    >>> plane = np.random.default_rng(0).normal(size=(1000, 2)) @ np.array([[1.0, 2.0, 0.5], [0.0, 1.0, 3.0]])
    >>> round(intrinsic_dimension(plane).value)
    2
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction={fraction!r}: expected a share between 0 and 1; method='2nn-ml' uses all points")
    known: dict[str, tuple[tuple[int, int], Callable[[Tensor], tuple[float, float]]]] = {
        "2nn": ((1, 2), partial(_two_nn, fraction=fraction)),
        "2nn-ml": ((1, 2), _two_nn_likelihood),
        "gride": ((n1, n2), partial(_gride, n1=n1, n2=n2)),
        "mle": ((1, k), _levina_bickel),
        "mle-inverse": ((1, k), _mackay_ghahramani),
    }
    if method not in known:
        raise InputError(f"method={method!r} is unknown: use one of {tuple(known)}")
    (first, last), estimator = known[method]
    distances = _distances(as_cloud(x), first, last, metric)
    value, error = estimator(distances)
    return Estimate(value, error, len(distances), float(distances[:, last - 1].mean()), method, (first, last))


def dimension_scaling(x: Cloud, range_max: int = 256, metric: str = "euclidean") -> list[Estimate]:
    """GRIDE over scales: one `Estimate` for each of the ranks (1, 2), (2, 4), (4, 8), ... up to `range_max`.

    A dimension is a property of the cloud where it hardly changes with the scale; at the smallest scales noise raises
    it, at the largest ones curvature and borders do what they like. Ranks 16/32 are item 4.

    Raises what `intrinsic_dimension` raises; `range_max` is cut to what the number of points allows, the last item's
    `ranks` say to what.

    >>> import numpy as np
    >>> [found.ranks for found in dimension_scaling(np.random.default_rng(0).normal(size=(100, 2)), range_max=8)]
    [(1, 2), (2, 4), (4, 8)]
    """
    if isinstance(range_max, bool) or not isinstance(range_max, int) or range_max < 2:
        raise InputError(f"range_max={range_max!r}: expected an integer of 2 or more")
    cloud = as_cloud(x)
    steps = int(math.log2(min(range_max, len(cloud) - 1)))
    if steps < 1:
        raise InputError(f"{len(cloud)} examples have no two neighbours each: pass 3 or more")
    distances = _distances(cloud, 1, 2**steps, metric)
    found = []
    for step in range(steps):
        first, last = 2**step, 2 ** (step + 1)
        value, error = _gride(distances, first, last)
        found.append(Estimate(value, error, len(cloud), float(distances[:, last - 1].mean()), "gride", (first, last)))
    return found


def _distances(cloud: Tensor, first: int, last: int, metric: str) -> Float[Tensor, "n k"]:
    """Distances to the neighbours up to rank `last`, on the CPU, after refusing what has no ratio of them."""
    check_k(first, len(cloud), "the first rank")
    check_k(last, len(cloud), "the last rank")
    if first >= last:
        raise InputError(f"ranks {first} and {last}: the first must be smaller than the last")
    distances = nearest_neighbors(cloud, last, metric).distances.cpu()
    if (distances[:, 0] == 0).any():
        rows = duplicates(cloud)
        raise InputError(
            f"{int((distances[:, 0] == 0).sum())} of {len(cloud)} examples equal another (rows {_some(rows)} repeat"
            " earlier ones) and have no ratio of distances: keep distinct_rows(x), of all paired clouds jointly"
        )
    level = distances[:, first - 1] == distances[:, last - 1]
    if level.all() or (level.any() and last - first > 1):
        raise InputError(
            f"{int(level.sum())} of {len(cloud)} examples have neighbours {first} and {last} at the same distance:"
            " points on a lattice have no intrinsic dimension at this scale, use ranks farther apart"
        )
    return distances


def _some(rows: Tensor) -> str:
    shown = ", ".join(str(row) for row in rows[:3].tolist())
    return f"{shown}, ..." if len(rows) > 3 else shown


def _two_nn(distances: Tensor, fraction: float) -> tuple[float, float]:
    n = len(distances)
    kept = int(n * fraction)
    if kept < 1:
        raise InputError(f"fraction={fraction!r} of {n} examples is none: pass more examples")
    log_mu = torch.sort((distances[:, 1] / distances[:, 0]).log())[0][:kept]
    height = -torch.log1p(-torch.arange(1, kept + 1, dtype=log_mu.dtype) / n)
    value = float((log_mu @ height) / (log_mu @ log_mu))
    return value, value / math.sqrt(kept)


def _two_nn_likelihood(distances: Tensor) -> tuple[float, float]:
    n = len(distances)
    value = (n - 1) / float((distances[:, 1] / distances[:, 0]).log().sum())
    return value, value / math.sqrt(n)


def _gride(distances: Tensor, n1: int, n2: int) -> tuple[float, float]:
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
    return value, ((n - 1) / value**2 + between * inner) ** -0.5


def _inverse_dimensions(distances: Tensor) -> Float[Tensor, " n"]:
    k = distances.shape[1]
    inverse = (distances[:, -1:] / distances[:, :-1]).log().sum(dim=1) / (k - 1)
    if (inverse == 0).any():
        raise InputError(
            f"{int((inverse == 0).sum())} examples have all their {k} neighbours equally far: use a larger k"
        )
    return inverse


def _levina_bickel(distances: Tensor) -> tuple[float, float]:
    dimensions = 1 / _inverse_dimensions(distances)
    return float(dimensions.mean()), float(dimensions.std() / math.sqrt(len(dimensions)))


def _mackay_ghahramani(distances: Tensor) -> tuple[float, float]:
    inverse = _inverse_dimensions(distances)
    value = 1 / float(inverse.mean())
    return value, value**2 * float(inverse.std() / math.sqrt(len(inverse)))
