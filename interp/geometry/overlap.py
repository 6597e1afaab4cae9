"""Neighbourhood overlap: do two representations of the same examples put the same ones close together?

Take each example's k nearest neighbours in one cloud and in another, and count those in both:

    NO(X, Y) = 1/(n k) * sum_i |N_k^X(i) & N_k^Y(i)|

It is 1 where the neighbourhoods are the same and k/(n-1), `overlap_chance`, where they are unrelated. The clouds may have
different widths and no map is fitted between them, so it compares layers, models and modalities. `label_overlap` asks the
same question of one cloud and a partition into classes. (Doimo et al. 2020, Ansuini et al. 2019; `mutual_knn`, Huh et al.
2024, is the same measure on rows of unit length, and their `cycle_knn` asks whether a step to a neighbour and a step back
lead to the start.)

All of them take graphs of `nearest_neighbors` in place of clouds. Intervals come from half-samples without replacement
(`interp.statistics.half_samples` says why), with neighbourhoods that reach as far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.geometry.clouds import check_k
from interp.geometry.neighbors import Graph, Neighbors, blocks, graph_of, level, pair_of, shares
from interp.statistics.categories import Label, Labels, read_labels
from interp.statistics.half_samples import half_samples, interval, reach, standard_error, wide

_PLACES = 0.7


def neighbor_overlap(x: Graph, y: Graph, k: int = 30, metric: str = "euclidean") -> float:
    """The share of `k` nearest neighbours that paired rows of `x` and `y`, both `[example, feature]`, have in common.

    >>> x = np.random.default_rng(0).normal(size=(100, 5))
    >>> neighbor_overlap(x, -3 * x, k=10)
    1.0

    In [0, 1], symmetric; `overlap_chance(n, k)` for unrelated clouds. Unchanged by rotation, shift and scaling
    of either cloud. Rows are used as they are; `metric="cosine"` compares directions only. Where points are tied
    for the k-th place the value is the mean over random choices among them, independent for each cloud: a cloud of equal
    points gives chance, and two equal clouds give 1 only without such ties.

    Raises `InputError` where rows are not paired, k >= n, a cloud is not finite, or a graph has fewer than k neighbours.
    """
    first, second = pair_of(x, y, k, metric)
    return float(overlap_values([first], [second], k))


def mutual_knn(x: Graph, y: Graph, k: int = 10) -> float:
    """The mutual k-nearest-neighbour alignment of Huh et al. (2024): `neighbor_overlap` by cosine, with their k.

    They use the largest inner products; on rows of unit length these are the smallest distances. (Their code expects such
    rows and does not normalise them.)

    >>> x = np.random.default_rng(0).normal(size=(100, 5))
    >>> mutual_knn(x, x * np.arange(1, 101)[:, None])
    1.0
    """
    return neighbor_overlap(x, y, k=k, metric="cosine")


def cycle_knn(x: Graph, y: Graph, k: int = 10, metric: str = "cosine") -> float:
    """The share of examples with a way back: one of i's neighbours in y has i among its own neighbours in x.

        1/n sum_i [ exists j in N_k^Y(i): i in N_k^X(j) ]

    (`cycle_knn` of Huh et al. 2024, platonic-rep.) In [0, 1] and not symmetric. For equal clouds it is 1 only where each
    example is a neighbour of one of its neighbours. Unrelated clouds come near 1 - (1 - k/(n-1))^k, k chances of k/(n-1)
    each. Where the k-th place is tied, the order of the graph decides.

    Raises the errors of `neighbor_overlap`.

    >>> x = np.arange(20.0)[:, None]
    >>> cycle_knn(x, x, k=2, metric="euclidean")
    1.0
    """
    first, second = pair_of(x, y, k, metric)
    onward = first.indices[:, :k][second.indices[:, :k].to(first.indices.device)]
    rows = torch.arange(len(first), device=onward.device)
    return float((onward == rows[:, None, None]).flatten(start_dim=1).any(dim=1).double().mean())


def overlap_chance(n: int, k: int) -> float:
    """The overlap of unrelated clouds of `n` points, k/(n-1): each of a point's k neighbours is one of n-1 others.

    >>> overlap_chance(301, 30)
    0.1
    """
    check_k(k, n)
    return k / (n - 1)


def overlap_interval(
    x: Graph, y: Graph, k: int = 30, subsamples: int = 50, seed: int = 0, metric: str = "euclidean"
) -> tuple[float, float, float]:
    """`neighbor_overlap(x, y)` with its 95 % interval, as (value, low, high), from half-samples without replacement.

    Raises the errors of `neighbor_overlap`, and `InputError` for fewer than two subsamples or fewer than four examples.

    >>> x = np.random.default_rng(0).normal(size=(100, 5))
    >>> overlap_interval(x, x, k=10)
    (1.0, 1.0, 1.0)
    """
    first, second = pair_of(x, y, k, metric, columns=wide(k))
    n = len(first)
    halves = half_samples(n, subsamples, seed)
    value = overlap_values([first], [second], k)
    parts = torch.stack([overlap_within([first], [second], half, k) for half in halves])
    low, high = interval(value, standard_error(parts, n), (0.0, 1.0), len(parts))
    return float(value), float(low), float(high)


def label_overlap(x: Graph, labels: Labels, k: int = 30, metric: str = "euclidean") -> float:
    """The share of its `k` nearest neighbours that have an example's own label: the mean over classes of class means.

    >>> x = np.array([[0.0], [0.1], [0.2], [9.0], [9.1], [9.2]])
    >>> label_overlap(x, ["low"] * 3 + ["high"] * 3, k=2)
    1.0

    All classes have the same weight, whatever their sizes. Chance is the mean over classes of (n_c - 1)/(n - 1), about one
    over their number. A value of 1 needs more than k examples in every class. Ties as in `neighbor_overlap`.

    Raises `InputError` where there is not one label for each example, some are missing, all are the same, k >= n, or `x` is
    not finite.
    """
    graph = graph_of(x, k, metric)
    classes, of = label_classes(labels, len(graph))
    own = torch.from_numpy(of).to(graph.indices.device)
    same = torch.empty(len(graph), dtype=torch.float64)
    for rows in blocks(len(graph), len(graph)):
        alike = (own[rows, None] == own).float()
        near = neighborhoods(graph, rows, k)
        same[rows] = sums_over(alike, [near], near.lists)[0].double().cpu()
    return float(np.mean([same[of == number].mean() / k for number in range(len(classes))]))


def label_classes(labels: Labels, n: int) -> tuple[list[Label], np.ndarray]:
    """The classes, and the number of each example's class.

    Raises `InputError` where there is not one label for each of `n` examples, some are missing, or all are the same.
    """
    classes, of = read_labels(labels)
    if len(of) != n:
        raise InputError(f"labels have shape {of.shape!r} for {n} examples: pass one label an example")
    if len(classes) < 2:
        raise InputError(f"all labels are {classes!r}: expected two classes or more")
    return classes, of


@dataclass(frozen=True)
class Neighborhoods:
    """The k neighbours of some rows: `lists` `[row, k]`, and for the rows `tied`, where the last places are a matter of
    chance, the part of each example in them, `parts` `[tied, n]`."""

    lists: Int[Tensor, "r k"]
    tied: Int[Tensor, " t"]
    parts: Float[Tensor, "t n"]

    def dense(self) -> Float[Tensor, "r n"]:
        """Each example's part in each row's neighbourhood: 1, 0, or between."""
        weights = self.parts.new_zeros(len(self.lists), self.parts.shape[1]).scatter_(1, self.lists, 1.0)
        weights[self.tied] = self.parts
        return weights

    def add_columns(self, weights: Float[Tensor, "r n"], to: Float[Tensor, " n"]) -> None:
        """Add to each example of `to` its `weights` in the rows whose neighbours include it, times its part there."""
        added = weights.gather(1, self.lists)
        if len(self.tied):
            added[self.tied] = 0
            to += (weights[self.tied] * self.parts).sum(dim=0)
        to.index_add_(0, self.lists.flatten(), added.flatten())


def joined(sets: Sequence[Neighborhoods]) -> Int[Tensor, "r ck"]:
    """The lists of several sets of neighbourhoods side by side."""
    return torch.cat([each.lists for each in sets], dim=1)


def sums_over(
    weights: Float[Tensor, "r n"], sets: Sequence[Neighborhoods], lists: Int[Tensor, "r ck"]
) -> Float[Tensor, "c r"]:
    """The sum of each row's `weights` over its neighbourhood in each of `sets`, whose joined lists are `lists`."""
    sums = weights.gather(1, lists).view(len(lists), len(sets), -1).sum(dim=2).T
    for number, each in enumerate(sets):
        if len(each.tied):
            sums[number, each.tied] = (weights[each.tied] * each.parts).sum(dim=1)
    return sums


def neighborhoods(graph: Neighbors, rows: slice, k: int) -> Neighborhoods:
    """The k neighbours of each of `rows`; tied rows use all their distances."""
    tied = graph.tied(k)[rows].nonzero().flatten()
    lists = graph.indices[rows, :k]
    if not len(tied):
        return Neighborhoods(lists, tied, torch.zeros(0, len(graph), dtype=torch.float32, device=lists.device))
    return Neighborhoods(lists, tied, shares(graph.points.squared(tied + rows.start), k).float())


def neighborhoods_in(squared: Float[Tensor, "r n"], k: int) -> Neighborhoods:
    """The k neighbours of some rows, from their squared distances to all examples, infinite to themselves."""
    nearest = squared.topk(min(k + 1, squared.shape[1] - 1), largest=False)
    tied = nearest.indices.new_zeros(0)
    if k < nearest.values.shape[1]:
        tied = level(nearest.values[:, k - 1], nearest.values[:, k]).nonzero().flatten()
    parts = (
        shares(squared[tied], k).float()
        if len(tied)
        else torch.zeros(0, squared.shape[1], dtype=torch.float32, device=squared.device)
    )
    return Neighborhoods(nearest.indices[:, :k], tied, parts)


def neighborhoods_within(graph: Neighbors, subset: Int[Tensor, " s"], k: int) -> Neighborhoods:
    """The k neighbours of each of `subset` among the others of the subset, with their numbers within it.

    Long lists of the whole graph contain them. Rows with lists that are too short, and tied ones, use all their distances.
    """
    n, size = len(graph), len(subset)
    place = torch.full((n,), -1, dtype=torch.int64, device=subset.device)
    place[subset] = torch.arange(size, device=subset.device)
    listed = graph.indices.index_select(0, subset)
    near = place.index_select(0, listed.flatten()).view_as(listed)
    among = (near >= 0).cumsum(dim=1, dtype=torch.int32)
    unknown = among[:, -1] < min(k + 1, size - 1)  # the list ends before the neighbour after the last
    if graph.level_anywhere and size - 1 > k:
        unknown |= _level_after(among, graph.distances[subset], k)
    rest = unknown.nonzero().flatten()
    chosen = (near >= 0) & (among <= k)
    lists = near.new_zeros(size, k)
    if len(rest):
        lists[~unknown] = near[~unknown][chosen[~unknown]].view(-1, k)
    else:
        lists = near[chosen].view(size, k)
    parts = torch.zeros(0, size, dtype=torch.float32, device=subset.device)
    if len(rest):
        parts = shares(graph.points.squared(subset[rest])[:, subset], k).float()
    return Neighborhoods(lists, rest, parts)


def _level_after(among: Tensor, distances: Tensor, k: int) -> Tensor:
    """Where the neighbour after the k-th, by the counts `among`, is as far as the k-th, if the list has both."""
    last = distances.shape[1] - 1
    kth, after = (torch.searchsorted(among, torch.full_like(among[:, :1], number)) for number in (k, k + 1))
    border, beyond = (distances.gather(1, at.clamp(max=last)).squeeze(1) for at in (kth, after))
    return level(border, beyond)


def overlap_values(first: Sequence[Neighbors], second: Sequence[Neighbors], k: int) -> Float[Tensor, "a b"]:
    """The overlap of each graph of `first` with each of `second`."""
    n = len(first[0])
    sums = torch.zeros(len(first), len(second), dtype=torch.float64)
    for _, number, weights, sets, lists in _meetings(first, second, k):
        sums[number] += sums_over(weights, sets, lists).sum(dim=1, dtype=torch.float64).cpu()
    return sums / (n * k)


def overlap_influence(
    first: Sequence[Neighbors], second: Sequence[Neighbors], k: int
) -> tuple[Float[Tensor, "a b"], Float[Tensor, "a b n"]]:
    """The overlap of each graph of `first` with each of `second`, and the influence of each example; its mean is the overlap.

    An example counts by its own neighbourhood and by its places in those of others, where it displaces an average example.
    The places count 0.7 times: part of what they add is the noise of single neighbours, which is in both neighbourhoods of
    two examples that are neighbours of each other. So the spread of the differences of influences is 1.0 to 1.25 times that
    of the differences of overlaps over draws of examples, in simulations (4 and 16 dimensions, k of 5 to 30, overlaps at chance
    and near 1). Own neighbourhoods alone give 0.7 to 1.0 times, full places 1.2 to 1.5 times.
    """
    n = len(first[0])
    own = torch.zeros(len(first), len(second), n, dtype=torch.float64)
    others = torch.zeros(len(first), len(second), n, dtype=torch.float32, device=first[0].indices.device)
    for rows, number, weights, sets, lists in _meetings(first, second, k):
        own[number, :, rows] = sums_over(weights, sets, lists).double().cpu() / k
        for each, sums in zip(sets, others[number], strict=True):
            each.add_columns(weights, sums)
    mean = own.mean(dim=2, keepdim=True)
    standing = [torch.stack([_standing(graph, k) for graph in stack]) - 1 for stack in (first, second)]
    places = others.double().cpu() / k - mean * (1 + standing[0][:, None] + standing[1][None])
    influence = own + _PLACES * places
    return mean.squeeze(2), influence


def _meetings(
    first: Sequence[Neighbors], second: Sequence[Neighbors], k: int
) -> Iterator[tuple[slice, int, Float[Tensor, "r n"], list[Neighborhoods], Int[Tensor, "r ck"]]]:
    """Block by block of rows: the number of each graph of `first`, the parts of all examples in its neighbourhoods, and the
    neighbourhoods of all of `second` with their joined lists."""
    n = len(first[0])
    uncertain = sum(bool(graph.tied(k).any()) for graph in (*first, *second))
    for rows in blocks(n, max(n * (1 + uncertain), k * len(second))):
        sets = [neighborhoods(graph, rows, k) for graph in second]
        lists = joined(sets)
        for number, graph in enumerate(first):
            yield rows, number, neighborhoods(graph, rows, k).dense(), sets, lists


def _standing(graph: Neighbors, k: int) -> Float[Tensor, " n"]:
    """The number of neighbourhoods that include each example, over k; 1 on average."""
    n = len(graph)
    counts = torch.zeros(n, dtype=torch.float32, device=graph.indices.device)
    for rows in blocks(n, n * (1 + bool(graph.tied(k).any()))):
        neighborhoods(graph, rows, k).add_columns(counts.new_ones(1, 1).expand(rows.stop - rows.start, n), counts)
    return counts.double().cpu() / k


def overlap_within(
    first: Sequence[Neighbors], second: Sequence[Neighbors], subset: Int[Tensor, " s"], k: int
) -> Float[Tensor, "a b"]:
    """The overlap of each graph of `first` with each of `second` among `subset` alone, with as many neighbours as reach as far
    as k among all examples."""
    inner = reach(k, len(first[0]), len(subset))
    subset = subset.to(first[0].indices.device)
    others = [neighborhoods_within(graph, subset, inner) for graph in second]
    lists = joined(others)
    weights = (neighborhoods_within(graph, subset, inner).dense() for graph in first)
    return torch.stack([sums_over(each, others, lists).double().mean(dim=1).cpu() for each in weights]) / inner
