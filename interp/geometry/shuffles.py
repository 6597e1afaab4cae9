"""The null of a whole grid at once: every shuffle of the rows of one stack, without a new graph or table.

Most measures of two clouds are sums over pairs of examples, sum_ij F[i, j] G[i, j] of a table F of the one cloud and a table
G of the other: who is a neighbour of whom, ranks of distances, a centred kernel. Another order s of the rows changes nothing
in either table but where it stands:

    null[s] = sum_ij F[i, j] G[s(i), s(j)]

So each table is computed once, and a shuffle is one look-up of the pairs where F is not 0, and one product of matrices for all
layers of both stacks. All layers, measures and states share the orders of one seed, so the null of their maximum is
there too (`interp.statistics.corrections`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.geometry.distances import (
    PairTable,
    centred_table,
    check_left,
    mean_ranks,
    sorted_squares,
    squared_distances,
)
from interp.geometry.imbalance import rank_rows
from interp.geometry.neighbors import Graph, Neighbors, Points, blocks, graph_of, points_of
from interp.geometry.overlap import cycle_knn, label_classes, neighborhoods, neighborhoods_in
from interp.geometry.scaling import centred, doubles, unit_rows
from interp.progress import progress_bar
from interp.statistics.categories import Labels
from interp.statistics.corrections import family_p
from interp.statistics.permutation import permutation_p

if TYPE_CHECKING:
    from interp.geometry.layer_grids import LayerStacks

_SAME = 1e-6  # a draw that differs from the value by less than this part of it differs by rounding
_HELD = 2**26  # numbers of whole tables in memory at once
Table = Callable[[], Float[Tensor, "n n"]]


def overlap_shuffles(
    stacks: LayerStacks, orders: Sequence[Int[Tensor, " n"]], k: int, metric: str
) -> Float[Tensor, "draw a b"]:
    """The overlaps of neighbourhoods after each shuffle: who is whose neighbour in both."""
    graphs = [[graph_of(cloud, k, metric, name) for cloud, name in stack] for stack in stacks.named]
    ties = any(bool(graph.tied(k).any()) for stack in graphs for graph in stack)
    kind = torch.float64 if ties or stacks.n * k >= 2**24 else torch.float32  # float32 counts so far without an error
    first, second = ([_neighbours(graph, k, kind) for graph in stack] for stack in graphs)
    return table_products(first, second, orders) / (stacks.n * k)


def imbalance_shuffles(stacks: LayerStacks, orders: Sequence[Int[Tensor, " n"]], k: int) -> Float[Tensor, "draw a b"]:
    """1 less the mean information imbalance of both directions: the ranks in the one of the neighbours in the other."""
    points = [[points_of(cloud, "euclidean", name) for cloud, name in stack] for stack in stacks.named]
    near, ranks = ([[_ranked(each, k, which) for each in stack] for stack in points] for which in (0, 1))
    forth = table_products(near[0], ranks[1], orders)
    back = table_products(near[1], ranks[0], [order.argsort() for order in orders]).mT
    return 1 - (forth + back) / (stacks.n**2 * k)


def kernel_shuffles(
    stacks: LayerStacks,
    orders: Sequence[Int[Tensor, " n"]],
    k: None,
    table: Callable[[Tensor, str], PairTable],
    debiased: bool = True,
) -> Float[Tensor, "draw a b"]:
    """The cosines of centred tables of all pairs (`interp.geometry.kernels`) after each shuffle."""
    first, second = ([_cosine_table(table, cloud, name, debiased) for cloud, name in stack] for stack in stacks.named)
    return table_products([_half(each) for each in first], second, orders)


def rank_shuffles(stacks: LayerStacks, orders: Sequence[Int[Tensor, " n"]], k: None) -> Float[Tensor, "draw a b"]:
    """The rank correlations of the distances of all pairs, `rsa`, after each shuffle."""
    first, second = ([_rank_table(cloud, name) for cloud, name in stack] for stack in stacks.named)
    return table_products([_half(each) for each in first], second, orders)


def cycle_shuffles(stacks: LayerStacks, orders: Sequence[Int[Tensor, " n"]], k: int) -> Float[Tensor, "draw a b"]:
    """The shares of ways back, `cycle_knn`, after each shuffle, which renames the points of one graph."""
    first, second = ([graph_of(cloud, k, "cosine", name) for cloud, name in stack] for stack in stacks.named)
    drawn = torch.empty(len(orders), len(first), len(second), dtype=torch.float64)
    for draw, order in enumerate(orders):
        for number, graph in enumerate(second):
            renamed = graph.permuted(order)
            for left, x in enumerate(first):
                drawn[draw, left, number] = cycle_knn(x, renamed, k)
    return drawn


def cosine_shuffles(stacks: LayerStacks, orders: Sequence[Int[Tensor, " n"]], k: None) -> Float[Tensor, "draw a b"]:
    """The median cosines of pairs, `paired_cosine`, after each shuffle."""
    first, second = ([unit_rows(doubles(cloud), name) for cloud, name in stack] for stack in stacks.named)
    order = torch.stack(list(orders)).to(first[0].device)
    rows = torch.arange(stacks.n, device=order.device)
    drawn = [torch.stack([(x @ y.T)[rows, order].quantile(0.5, dim=1) for y in second], dim=1) for x in first]
    return torch.stack(drawn, dim=1).cpu()


def label_shuffles(x: Graph, labels: Labels, orders: Sequence[Int[Tensor, " n"]], k: int) -> Float[Tensor, " draw"]:
    """`label_overlap` after each shuffle of the labels among the examples."""
    graph = graph_of(x, k)
    classes, numbers = label_classes(labels, len(graph))
    own = torch.from_numpy(numbers).to(graph.indices.device)
    near = neighborhoods(graph, slice(0, len(graph)), k)
    values = []
    for order in orders:
        drawn = own[order.to(own.device)]
        same = (drawn[near.lists] == drawn[:, None]).double().mean(dim=1)
        if len(near.tied):
            alike = (drawn[near.tied, None] == drawn).float()
            same[near.tied] = (alike * near.parts).sum(dim=1).double() / k
        sums = same.new_zeros(len(classes)).index_add_(0, drawn, same)
        values.append((sums / drawn.bincount(minlength=len(classes))).mean())
    return torch.stack(values).cpu()


def table_products(
    first: Sequence[Table], second: Sequence[Table], orders: Sequence[Int[Tensor, " n"]]
) -> Float[Tensor, "draw a b"]:
    """sum_ij F[i, j] G[s(i), s(j)] of each table F of `first` with each G of `second`, for each order s.

    >>> table = torch.tensor([[0.0, 1.0], [3.0, 0.0]])
    >>> table_products([lambda: table], [lambda: table], [torch.tensor([0, 1]), torch.tensor([1, 0])]).flatten().tolist()
    [10.0, 6.0]
    """
    n = len(orders[0])
    together = max(1, _HELD // n**2)
    drawn = torch.empty(len(orders), len(first), len(second), dtype=torch.float64)
    count = len(orders) * -(-len(first) // together) * -(-len(second) // together)
    with progress_bar("shuffles", count, "shuffles") as bar:
        for left in _chunks(len(first), together):
            tables = torch.stack([table() for table in first[left]])
            rows, columns = (tables != 0).any(dim=0).nonzero(as_tuple=True)
            weights = tables[:, rows, columns]
            for right in _chunks(len(second), together):
                others = torch.stack([table() for table in second[right]], dim=2).flatten(end_dim=1)
                moved = others.new_empty(len(rows), others.shape[1])
                for draw, order in enumerate(orders):
                    place = order.to(rows.device)
                    torch.index_select(others, 0, place[rows] * n + place[columns], out=moved)
                    drawn[draw, left, right] = (weights @ moved).cpu()
                    bar.advance()
    return drawn


def _chunks(count: int, together: int) -> list[slice]:
    return [slice(start, min(start + together, count)) for start in range(0, count, together)]


# The p of many cells ---------------------------------------------------------------------------------------------------


def cell_p(values: Float[Tensor, " ..."], null: Float[Tensor, "draw ..."]) -> Float[Tensor, " ..."]:
    """The share of draws that reach each value, the value counted; NaN where a value or a draw is."""
    drawn = _settled(values, null)
    p = permutation_p((drawn >= values).sum(dim=0).double(), len(null))
    return p.masked_fill(values.isnan() | drawn.isnan().any(dim=0), torch.nan)


def joint_p(values: Float[Tensor, " ..."], null: Float[Tensor, "draw ..."]) -> Float[Tensor, " ..."]:
    """The p of each cell among all cells, from draws that all cells share (`family_p`); what is equal up to rounding is equal."""
    return family_p(values, _settled(values, null))


def _settled(values: Tensor, null: Tensor) -> Float[Tensor, "draw ..."]:
    null = null.to(values)
    return torch.where((null - values).abs() <= _SAME * values.abs(), values, null)


# Tables of one cloud --------------------------------------------------------------------------------------------------


def _neighbours(graph: Neighbors, k: int, kind: torch.dtype) -> Table:
    def table() -> Tensor:
        n = len(graph)
        return torch.cat([neighborhoods(graph, rows, k).dense() for rows in blocks(n, n)]).to(kind)

    return table


def _ranked(points: Points, k: int, which: int) -> Table:
    """Who is whose neighbour (`which` 0), or the ranks of all as neighbours of each (1)."""

    def table() -> Tensor:
        parts = []
        for rows in blocks(points.n, points.n):
            squared = points.squared(rows)
            parts.append(rank_rows(squared) if which else neighborhoods_in(squared, k).dense().double())
        return torch.cat(parts).fill_diagonal_(0)

    return table


def _cosine_table(table: Callable[[Tensor, str], PairTable], cloud: Tensor, name: str, debiased: bool) -> Table:
    rest = centred(cloud, name)
    scaled, n = rest / rest.abs().amax(), len(rest)
    rows, size = centred_table(table(scaled, name), n, debiased)

    def whole() -> Tensor:
        centred_rows = rows(slice(0, n))
        own = centred_rows.square().sum()
        check_left(own, size, n, name)
        return centred_rows / own.sqrt()

    return whole


def _rank_table(cloud: Tensor, name: str) -> Table:
    def table() -> Tensor:
        rest = centred(cloud, name)
        scaled, n = rest / rest.abs().amax(), len(rest)
        ordered, squared = sorted_squares(scaled), squared_distances(scaled)
        ranks = torch.cat([mean_ranks(ordered, squared(rows).float().flatten()) for rows in blocks(n, 4 * n)])
        ranks = (ranks.view(n, n) - (len(ordered) + 1) / 2).fill_diagonal_(0)
        return ranks / ranks.square().sum().sqrt()

    return table


def _half(table: Table) -> Table:
    """A symmetric table with each pair once: the upper half counts twice."""

    def upper() -> Tensor:
        whole = table()
        return whole.triu(diagonal=1) * 2 + whole.diagonal().diag()

    return upper
