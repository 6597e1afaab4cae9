"""Clusters as density peaks: groups of examples with a region of lower density between them.

A cluster is a peak of the density with all points on its slopes, of any shape. A density estimated from a sample has many
peaks, most of them noise, and the error of the estimate tells which: two peaks are one where the drop to the saddle between
them is less than Z errors. So the number of clusters is a result, and Z the confidence: 1.65 for 95 %. (Advanced density
peaks, d'Errico et al. 2021.) With the log density rho of each point, its error e, its k neighbours (those of the density
estimate), and g = rho - e, in steps:

1. Peaks are the points with g at least that of all their k neighbours. A peak among the k neighbours of a point with
   higher g is dropped.
2. In decreasing order of g, every point joins its nearest neighbour with a cluster, among 128. A dropped peak without one
   joins the densest of the points for which it, or another dropped peak near it, was dropped.
3. A point p of a cluster is on its border with another if p's nearest neighbour outside, among k, is q of that other, and
   p is the nearest of its own to q. The border point with the highest g is the saddle between the two.
4. Two clusters are one if rho(peak) - rho(saddle) < Z (e(peak) + e(saddle)) for either. Of all such pairs the one with the
   densest saddle merges first, under the peak that is more errors above it; of two borders with a third cluster the denser
   saddle stays. Repeat until no such pair is left.

The test is one of each pair of peaks, and large clouds have hundreds: 20,000 points of one Gaussian in two dimensions
make 530 to 570 peaks by kNN, and three to eight clusters remain at Z = 1.65, one of them perhaps a single point (one cluster
by PAk, one or two in five dimensions). Look at `z` in `Peaks.to_frame()` before you believe in a small cluster, or use a
larger Z.

Every point has a cluster; none is noise. `homogeneity` and `adjusted_rand` compare a partition with labels: the first
without a correction for chance, the second with one.
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
from interp.geometry.clouds import checked_within
from interp.geometry.density import REACH, density_of, graph_for, volume_dimension
from interp.geometry.neighbors import Graph
from interp.geometry.outlying import notes_of_outlying
from interp.provenance import Provenance
from interp.results import Result
from interp.statistics.categories import Labels, read_labels

# Arrays of the steps: of values and numbers of points, of peaks, and of the neighbours of points.
PerPoint = Float[np.ndarray, " n"]
Index = Int[np.ndarray, " n"]
PeakIndex = Int[np.ndarray, " c"]
Lists = Int[np.ndarray, "n m"]
Near = Bool[np.ndarray, "n m"]
Edges = Int[np.ndarray, "b 2"]
Saddles = Int[np.ndarray, " b"]


@dataclass(frozen=True, eq=False)
class Peaks(Result):
    """The clusters of a cloud, and the density behind them.

    `clusters` is the number of each example's cluster, 0 the one with the densest peak. `centres` are the examples at the
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
        """One row for each cluster: cluster, size, centre, log_density, error, neighbor, saddle, z.

        `neighbor` is the cluster with the densest saddle to this one, `saddle` its log density, and `z` the height of this
        peak above it in errors; -1, NaN and infinity for a cluster that touches no other.
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
    """The cluster of each example of `x` `[example, feature]`, a cloud or its graph: Int[example], 0 the densest cluster.

    >>> rng = np.random.default_rng(0)
    >>> two = np.concatenate([rng.normal(size=(100, 2)), rng.normal(size=(60, 2)) + 10])
    >>> np.bincount(density_peaks(two)).tolist()
    [100, 60]

    Returns an array for an array, a tensor on the same device for a tensor. Arguments and errors are those of `find_peaks`,
    which also returns the peaks and borders.
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
    """The density peaks of the cloud `x` `[example, feature]` that are `z` errors above their saddles.

    `density` is "knn", from `k` neighbours, or "pak", from a number of neighbours that it chooses for each point; the two may
    give different numbers of clusters. `dimension` is that of the density, by default GRIDE's at ranks 16 and 32.

    Raises `InputError` for an unknown density or metric, a z that is not positive, a k that is not less than the number of
    examples, 32 examples or fewer without a dimension, equal rows, and a cloud that is not finite.
    """
    z = checked_within(z, "z", "a positive number of errors, such as 1.65")
    neighbors = graph_for(x, k, dimension, density, metric, REACH)
    d = volume_dimension(neighbors, dimension)
    estimate = density_of(neighbors, k, d, density)
    indices = neighbors.indices[:, : max(k, REACH) if density == "knn" else REACH].cpu().numpy()
    rho, errors, sizes = estimate.values.numpy(), estimate.errors.numpy(), estimate.neighbors.numpy()
    g = rho - errors
    near = np.arange(indices.shape[1]) < sizes[:, None]
    peaks, dropped_for = _peaks(g, indices, near)
    cluster = _assign(g, indices, peaks, dropped_for)
    owner, edges, saddles = _merge(rho, errors, peaks, *_saddles(g, indices, near, peaks, cluster), z)

    left = np.unique(owner)
    left = left[np.argsort(-rho[peaks[left]], kind="stable")]
    number = np.empty_like(owner)
    number[left] = np.arange(len(left))
    return Peaks(
        clusters=torch.from_numpy(number[owner[cluster]]),
        centres=torch.from_numpy(peaks[left]),
        log_density=estimate.values,
        errors=estimate.errors,
        borders=_symmetric(rho[saddles], number[edges], len(left)),
        border_errors=_symmetric(errors[saddles], number[edges], len(left)),
        dimension=d,
        z=z,
        density=density,
        provenance=Provenance(notes=notes_of_outlying(x=x)),
    )


def homogeneity(clusters: Labels, labels: Labels) -> float:
    """The part of the labels' entropy that the clusters explain: 1 - H(labels | clusters) / H(labels), in [0, 1].

    1 where every cluster has only one label, 0 where all have the same mixture. A partition that is finer than the labels
    costs nothing, and by chance the value grows with the number of clusters: 1 for clusters of one example. To measure a
    gap between modalities, use the modality of each example as its label.

    Raises `InputError` where there is not one cluster and one label for each example, where some are missing, and where all
    labels are the same.

    >>> homogeneity([0, 0, 1, 1, 2], ["image", "image", "text", "text", "text"])
    1.0
    """
    from sklearn.metrics import homogeneity_score

    first, second = _paired_labels(clusters, labels)
    if (second == second[0]).all():
        raise InputError(f"all labels are {read_labels(labels)[0][0]!r}: expected two different ones or more")
    return float(homogeneity_score(second, first))


def adjusted_rand(clusters: Labels, labels: Labels) -> float:
    """How far two partitions put the same pairs of examples together: 1 for equal ones, 0 on average by chance.

    Symmetric; the names of clusters do not matter. A negative value is less than chance.

    Raises `InputError` where there is not one cluster and one label for each example, and where some are missing.

    >>> adjusted_rand([0, 0, 1, 1], ["b", "b", "a", "a"])
    1.0
    """
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(*_paired_labels(clusters, labels)))


def _peaks(g: PerPoint, indices: Lists, near: Near) -> tuple[PeakIndex, Index]:
    """Step 1: the peaks, and for each point the densest one for which it was dropped as a peak, or -1."""
    around = np.where(near, g[indices], -np.inf)
    candidate = g >= around.max(axis=1)
    rows, columns = np.nonzero(near & candidate[indices] & (around < g[:, None]))
    order = np.argsort(g[rows], kind="stable")
    dropped_for = np.full(len(g), -1)
    dropped_for[indices[rows, columns][order]] = rows[order]  # of several the last stays: the densest
    return np.flatnonzero(candidate & (dropped_for < 0)), dropped_for


def _assign(g: PerPoint, indices: Lists, peaks: PeakIndex, dropped_for: Index) -> Index:
    """Step 2: the number among `peaks` of the peak of each point.

    A point follows its first neighbour that is a peak or comes earlier in the order of density, and the loop follows all
    points to the end at once. There are no circles, as only peaks are followed from points of higher density.
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


def _saddles(g: PerPoint, indices: Lists, near: Near, peaks: PeakIndex, cluster: Index) -> tuple[Edges, Saddles]:
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
    rho: PerPoint, errors: PerPoint, peaks: PeakIndex, edges: Edges, saddles: Saddles, z: float
) -> tuple[PeakIndex, Int[np.ndarray, "e 2"], Int[np.ndarray, " e"]]:
    """Step 4: the cluster that each cluster became part of, and the remaining borders with their saddles.

    The borders are in the order of their saddles, densest first, so that the first of several is the one that stays.
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
        winner, loser = edges[first] if ratio[0] >= ratio[1] else edges[first, ::-1]
        owner[owner == loser] = winner
        edges = np.where(edges == loser, winner, edges)
        third = edges.sum(axis=1) - winner
        touching = np.flatnonzero((edges == winner).any(axis=1) & (third != winner))
        stays = (edges != winner).all(axis=1)
        stays[touching[np.unique(third[touching], return_index=True)[1]]] = True
        edges, saddles = edges[stays], saddles[stays]


def _symmetric(values: PerPoint, edges: Int[np.ndarray, "n 2"], size: int) -> Float[Tensor, "c c"]:
    matrix = torch.full((size, size), torch.nan, dtype=torch.float64)
    one, other = torch.from_numpy(edges).T
    matrix[one, other] = matrix[other, one] = torch.from_numpy(values)
    return matrix


def _paired_labels(first: Labels, second: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Two partitions of the same examples, as numbers of their classes."""
    (_, one), (_, other) = read_labels(first, name="clusters"), read_labels(second)
    if len(one) != len(other):
        raise InputError(f"{len(one)} clusters and {len(other)} labels: expected one of each for each example")
    return one, other
