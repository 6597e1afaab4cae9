"""Clusters as density peaks: groups of examples that a region of lower density separates.

A cluster is a peak of the density with all that lies on its slopes, of whatever shape. A density estimated from a sample
has many peaks, most of which are noise, and the estimate's own error tells which: two peaks are one where the drop to the
saddle between them is less than Z errors. So the number of clusters is an outcome, and Z the confidence: 1.65 for 95 %.
(Advanced density peaks, d'Errico et al. 2021.) With the log density rho of each point, its error e, its k neighbours
(the ones the density was estimated from), and g = rho - e, in steps:

1. Peaks are the points with g at least that of all their k neighbours. A peak among the k neighbours of a point with
   higher g is dropped.
2. In decreasing order of g, every point joins its nearest neighbour that already belongs somewhere, among 128. A dropped
   peak without one joins the densest point that it was dropped for, or that another dropped peak near it was.
3. A point p of a cluster is on its border with another if p's nearest neighbour outside, among k, is q of that other, and
   p is the nearest of its own to q. The border point with the highest g is the saddle between the two.
4. Two clusters are one if rho(peak) - rho(saddle) < Z (e(peak) + e(saddle)) for either. Of all such pairs the one with the
   densest saddle merges first, under the peak that stands out more; of two borders with a third the denser saddle
   stays. Until no such pair is left.

The test is one of each pair of peaks, and large clouds have hundreds: 20,000 points of one Gaussian in two dimensions
make 530 to 570 peaks by kNN, and three to eight clusters remain at Z = 1.65, one of them perhaps a single point (one cluster
by PAk, one or two in five dimensions). Look at `z` in `Peaks.to_frame()` before believing in a small cluster, or ask for a
larger Z.

Every point has a cluster; none is set aside as noise. What a partition has to do with labels is said by `homogeneity`, which
does not know chance, and by `adjusted_rand`, which does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.geometry.clouds import Labels, as_labels
from interp.geometry.density import REACH, density_of, graph_for, volume_dimension
from interp.geometry.neighbors import Graph
from interp.results import Result


@dataclass(frozen=True, eq=False)
class Peaks(Result):
    """A cloud's clusters, and the density that they were found by.

    `clusters` says which cluster each example is in, 0 the one with the densest peak. `centres` are the examples at the
    peaks. `log_density` and `errors` are those of each example. `borders` is the log density of the saddle between two
    clusters, with `border_errors`: NaN where they do not touch, and for a cluster with itself.
    """

    clusters: Int[Tensor, " n"]
    centres: Int[Tensor, " c"]
    log_density: Float[Tensor, " n"]
    errors: Float[Tensor, " n"]
    borders: Float[Tensor, "c c"]
    border_errors: Float[Tensor, "c c"]
    dimension: float
    z: float
    density: str = "knn"

    def to_frame(self) -> pd.DataFrame:
        """One row a cluster: cluster, size, centre, log_density, error, neighbor, saddle, z.

        `neighbor` is the cluster with the densest saddle to this one, `saddle` its log density, and `z` by how many
        errors this peak stands above it; -1, NaN and infinity for a cluster that touches no other.
        """
        saddles = self.borders.nan_to_num(nan=-math.inf)
        rows = torch.arange(len(self.centres))
        nearest = saddles.argmax(dim=1)
        alone = saddles[rows, nearest].isinf()
        peak, error = self.log_density[self.centres], self.errors[self.centres]
        saddle = self.borders[rows, nearest]
        height = (peak - saddle) / (error + self.border_errors[rows, nearest])
        columns = {
            "cluster": rows,
            "size": self.clusters.bincount(minlength=len(rows)),
            "centre": self.centres,
            "log_density": peak,
            "error": error,
            "neighbor": nearest.masked_fill(alone, -1),
            "saddle": saddle,
            "z": height.masked_fill(alone, math.inf),
        }
        return pd.DataFrame({name: column.numpy() for name, column in columns.items()})


def density_peaks(
    x: Graph,
    z: float = 1.65,
    k: int = 16,
    density: str = "knn",
    dimension: float | None = None,
    metric: str = "euclidean",
) -> Int[Tensor, " n"] | Int[np.ndarray, " n"]:
    """Which cluster each example of `x` `[example, feature]`, a cloud or its graph, is in: Int[example], by density, 0 the
    densest.

    An array for an array, a tensor on the same device for a tensor. What it takes and raises is that of `find_peaks`,
    which also gives the peaks and borders.

    >>> rng = np.random.default_rng(0)
    >>> two = np.concatenate([rng.normal(size=(100, 2)), rng.normal(size=(60, 2)) + 10])
    >>> np.bincount(density_peaks(two)).tolist()
    [100, 60]
    """
    clusters = find_peaks(x, z, k, density, dimension, metric).clusters
    if isinstance(x, np.ndarray):
        return clusters.numpy()
    return clusters.to(x.device) if isinstance(x, Tensor) else clusters


def find_peaks(
    x: Graph,
    z: float = 1.65,
    k: int = 16,
    density: str = "knn",
    dimension: float | None = None,
    metric: str = "euclidean",
) -> Peaks:
    """The density peaks of the cloud `x` `[example, feature]` that stand `z` errors above their saddles.

    `density` is "knn", from `k` neighbours, or "pak", with a number of neighbours found for each point; the two may give
    different numbers of clusters. `dimension` is that of the density, by default GRIDE's at ranks 16 and 32.

    Raises `InputError` for an unknown density or metric, a z that is not positive, a k that is not less than the number of
    examples, 32 examples or fewer without a dimension, equal rows, and what is no finite cloud.
    """
    if isinstance(z, bool) or not isinstance(z, int | float | np.number) or not 0 < z < math.inf:
        raise InputError(f"z={z!r}: expected a positive number of errors, such as 1.65")
    neighbors = graph_for(x, k, dimension, density, metric, REACH)
    d = volume_dimension(neighbors, dimension)
    found = density_of(neighbors, k, d, density)
    indices = neighbors.indices[:, : max(k, REACH) if density == "knn" else REACH].cpu().numpy()
    rho, errors, sizes = found.values.numpy(), found.errors.numpy(), found.neighbors.numpy()

    g = rho - errors
    near = np.arange(indices.shape[1]) < sizes[:, None]
    peaks, dropped_for = _peaks(g, indices, near)
    cluster = _assign(g, indices, peaks, dropped_for)
    owner, edges, saddles = _merge(rho, errors, peaks, *_saddles(g, indices, near, peaks, cluster), z)

    kept = np.unique(owner)
    kept = kept[np.argsort(-rho[peaks[kept]], kind="stable")]
    number = np.empty_like(owner)
    number[kept] = np.arange(len(kept))
    return Peaks(
        clusters=torch.from_numpy(number[owner[cluster]]),
        centres=torch.from_numpy(peaks[kept]),
        log_density=found.values,
        errors=found.errors,
        borders=_symmetric(rho[saddles], number[edges], len(kept)),
        border_errors=_symmetric(errors[saddles], number[edges], len(kept)),
        dimension=d,
        z=float(z),
        density=density,
    )


def homogeneity(clusters: Labels, labels: Labels) -> float:
    """How much of what `labels` say the `clusters` say as well: 1 - H(labels | clusters) / H(labels), in [0, 1].

    1 where every cluster has one label only, 0 where all have the same mixture. It does not count against a partition
    that it is finer than the labels, and by chance it grows with the number of clusters: 1 for clusters of one example.
    As a measure of a gap between modalities, labels say which modality an example is of.

    Raises `InputError` where there is not one cluster and one label an example, where some are missing, and where all labels
    are the same.

    >>> homogeneity([0, 0, 1, 1, 2], ["image", "image", "text", "text", "text"])
    1.0
    """
    from sklearn.metrics import homogeneity_score

    found, wanted = _paired_labels(clusters, labels)
    if (wanted == wanted[0]).all():
        only = as_labels(labels)[0].tolist()[0]
        raise InputError(f"all labels are {only!r}: expected two or more, clusters cannot tell one apart")
    return float(homogeneity_score(wanted, found))


def adjusted_rand(clusters: Labels, labels: Labels) -> float:
    """How far two partitions put the same pairs of examples together: 1 for equal ones, 0 on average by chance.

    Symmetric, and whatever the clusters are called. It can be negative: less than chance.

    Raises `InputError` where there is not one cluster and one label an example, and where some are missing.

    >>> adjusted_rand([0, 0, 1, 1], ["b", "b", "a", "a"])
    1.0
    """
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(*_paired_labels(clusters, labels)))


def _peaks(
    g: Float[np.ndarray, " n"], indices: Int[np.ndarray, "n m"], near: Bool[np.ndarray, "n m"]
) -> tuple[Int[np.ndarray, " c"], Int[np.ndarray, " n"]]:
    """Step 1: the peaks, and of each point the densest one for which it was dropped as a peak, or -1."""
    around = np.where(near, g[indices], -np.inf)
    candidate = g >= around.max(axis=1)
    rows, columns = np.nonzero(near & candidate[indices] & (around < g[:, None]))
    order = np.argsort(g[rows], kind="stable")
    dropped_for = np.full(len(g), -1)
    dropped_for[indices[rows, columns][order]] = rows[order]  # of several the last stays, which is the densest
    return np.flatnonzero(candidate & (dropped_for < 0)), dropped_for


def _assign(
    g: Float[np.ndarray, " n"],
    indices: Int[np.ndarray, "n m"],
    peaks: Int[np.ndarray, " c"],
    dropped_for: Int[np.ndarray, " n"],
) -> Int[np.ndarray, " n"]:
    """Step 2: the peak, by its number among `peaks`, that each point belongs to.

    A point follows its first neighbour that is a peak or comes earlier in the order of density, and all of them are
    followed to the end at once. None follows itself round a circle, as only a peak is followed from higher up.
    """
    n = len(g)
    turn = np.empty(n, dtype=np.int64)
    turn[np.argsort(-g, kind="stable")] = np.arange(n)
    turn[peaks] = -1
    earlier = turn[indices] < turn[:, None]
    leader = indices[np.arange(n), earlier.argmax(axis=1)]
    leader[peaks] = peaks
    for point in np.flatnonzero(~earlier.any(axis=1) & (turn >= 0)):
        denser = dropped_for[np.append(indices[point], point)]
        denser = denser[denser >= 0]
        leader[point] = denser[g[denser].argmax()]
    while (leader[leader] != leader).any():
        leader = leader[leader]
    number = np.full(n, -1)
    number[peaks] = np.arange(len(peaks))
    return number[leader]


def _saddles(
    g: Float[np.ndarray, " n"],
    indices: Int[np.ndarray, "n m"],
    near: Bool[np.ndarray, "n m"],
    peaks: Int[np.ndarray, " c"],
    cluster: Int[np.ndarray, " n"],
) -> tuple[Int[np.ndarray, "b 2"], Int[np.ndarray, " b"]]:
    """Step 3: the pairs of clusters that touch, and the point at the saddle of each pair."""
    outside = near & (cluster[indices] != cluster[:, None])
    outside[peaks] = False
    p = np.flatnonzero(outside.any(axis=1))
    q = indices[p, outside[p].argmax(axis=1)]
    own = cluster[indices[q]] == cluster[p, None]
    nearest = indices[q, own.argmax(axis=1)]
    on_border = (nearest == p) | ~own.any(axis=1)
    p, q = p[on_border], q[on_border]
    order = np.argsort(-g[p], kind="stable")
    pairs = np.sort(np.stack([cluster[p], cluster[q]], axis=1), axis=1)[order]
    edges, first = np.unique(pairs, axis=0, return_index=True)
    return edges, p[order[first]]


def _merge(
    rho: Float[np.ndarray, " n"],
    errors: Float[np.ndarray, " n"],
    peaks: Int[np.ndarray, " c"],
    edges: Int[np.ndarray, "b 2"],
    saddles: Int[np.ndarray, " b"],
    z: float,
) -> tuple[Int[np.ndarray, " c"], Int[np.ndarray, "e 2"], Int[np.ndarray, " e"]]:
    """Step 4: which cluster each one became part of, and the borders that are left with their saddles.

    The borders are kept in the order of their saddles, densest first, so that the first of several is the one to take.
    """
    order = np.argsort(-rho[saddles], kind="stable")
    edges, saddles = edges[order], saddles[order]
    owner = np.arange(len(peaks))
    while True:
        height = rho[peaks[edges]] - rho[saddles, None]
        error = errors[peaks[edges]] + errors[saddles, None]
        weak = (height < z * error).any(axis=1)
        if not weak.any():
            return owner, edges, saddles
        first = weak.argmax()
        ratio = height[first] / error[first]
        kept, gone = edges[first] if ratio[0] >= ratio[1] else edges[first, ::-1]
        owner[owner == gone] = kept
        edges = np.where(edges == gone, kept, edges)
        third = edges.sum(axis=1) - kept
        touching = np.flatnonzero((edges == kept).any(axis=1) & (third != kept))
        stays = (edges != kept).all(axis=1)
        stays[touching[np.unique(third[touching], return_index=True)[1]]] = True
        edges, saddles = edges[stays], saddles[stays]


def _symmetric(values: Float[np.ndarray, " e"], edges: Int[np.ndarray, "e 2"], size: int) -> Float[Tensor, "c c"]:
    matrix = torch.full((size, size), torch.nan, dtype=torch.float64)
    one, other = torch.from_numpy(edges).T
    matrix[one, other] = matrix[other, one] = torch.from_numpy(values)
    return matrix


def _paired_labels(first: Labels, second: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Two partitions of the same examples, by the numbers of their classes."""
    (_, found), (_, wanted) = as_labels(first, "clusters"), as_labels(second)
    if len(found) != len(wanted):
        raise InputError(f"{len(found)} clusters and {len(wanted)} labels: expected one of each an example")
    return found, wanted
