"""Layer against layer: measures of two clouds for two whole stacks of them.

A grid of L x L comparisons has 2 L clouds. What belongs to one cloud, its graph of neighbours or its distances, is computed
L + L times, not L x L times; the comparison itself is then cheap. Each function here takes two stacks with paired rows and
some halves of the examples, and returns a `LayerGrid`: the values, the values among each half alone, and, where the
measure knows it, the influence of each example. `pairwise_grid` does so for any function of two clouds.

The null of a grid is the same grid after a random change of the clouds: the rows of the second stack in another order
(`shuffled_values`), or the members of some pairs exchanged between two clouds in one space (`exchanged_values`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.displays import Display
from interp.errors import InputError
from interp.geometry.distances import PairTable, centred_table, check_left
from interp.geometry.imbalance import mean_rank
from interp.geometry.neighbors import Graph, Neighbors, blocks, graph_of, ready
from interp.geometry.overlap import Neighborhoods, neighborhoods_in, overlap_influence, overlap_within
from interp.geometry.scaling import centred
from interp.progress import progress_bar
from interp.statistics.half_samples import generator, reach, wide
from interp.statistics.permutation import random_order

_AS_NEIGHBOUR = 1 / 3
_TOGETHER = 4  # shuffled clouds that are in memory at once, where a stack has one layer
NO_HALVES = torch.zeros(0, 0, dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class Resampling:
    """The halves of the examples from which errors come, the number of random orders or exchanges in a null, and the number
    of each example's stratum, within which orders shuffle."""

    halves: Int[Tensor, "s h"]
    permutations: int
    seed: int
    strata: Int[np.ndarray, " n"] | None = None

    def orders(self, n: int) -> list[Int[Tensor, " n"]]:
        """Random orders of n examples, the same ones at every layer."""
        rng = generator(self.seed)
        return [torch.from_numpy(random_order(n, rng, self.strata)) for _ in range(self.permutations)]

    def exchanges(self, n: int) -> Bool[np.ndarray, "draw n"]:
        """Which of n examples change sides in each draw, the same ones at every layer."""
        return generator(self.seed).random((self.permutations, n)) < 1 / 2


@dataclass(frozen=True, eq=False)
class LayerStacks(Display):
    """Two stacks of clouds, or of their graphs, with paired rows; `names` has the words of error messages for each cloud."""

    first: Sequence[Graph]
    second: Sequence[Graph]
    names: tuple[Sequence[str], Sequence[str]]

    @property
    def n(self) -> int:
        """The number of examples."""
        return len(self.first[0])

    @property
    def named(self) -> list[list[tuple[Any, str]]]:
        """The clouds of each stack with their names."""
        return [
            list(zip(stack, names, strict=True))
            for stack, names in zip((self.first, self.second), self.names, strict=True)
        ]


@dataclass(frozen=True)
class LayerGrid:
    """`values[a, b]` of two stacks, `parts[half, a, b]` of each half of the examples, and `influence[a, b, n]`, the
    influence of each example on a value, which is their mean; None where it is unknown.

    A value compares examples with each other, so an example counts in its own comparisons and in those of others. The
    standard error that influences give for the difference of two values is 0.95 to 1.3 times its spread over draws of
    examples in simulations; own parts alone may give 0.7 times.
    """

    values: Float[Tensor, "a b"]
    parts: Float[Tensor, "s a b"]
    influence: Float[Tensor, "a b n"] | None = None


# Grids that share what belongs to one cloud ---------------------------------------------------------------------------


def overlap_grid(stacks: LayerStacks, halves: Int[Tensor, "s h"], k: int, metric: str) -> LayerGrid:
    """The overlap of neighbourhoods, from one graph for each cloud; graphs in the stacks are used as they are."""
    first, second = _graphs(stacks, k, metric)
    values, influence = overlap_influence(first, second, k)
    with progress_bar("overlap in halves", len(halves), "halves") as bar:
        parts = [overlap_within(first, second, half, k) for half in bar.each(halves)]
    return LayerGrid(values, _stacked(parts, influence), influence)


def with_graphs(stacks: LayerStacks, k: int, metric: str) -> LayerStacks:
    """The stacks with the graph of neighbours in place of each cloud, of enough of them for half-samples."""
    first, second = _graphs(stacks, k, metric)
    return replace(stacks, first=first, second=second)


def _graphs(stacks: LayerStacks, k: int, metric: str) -> list[list[Neighbors]]:
    columns = min(wide(k), stacks.n - 1)
    with progress_bar("graphs of neighbours", len(stacks.first) + len(stacks.second), "clouds") as bar:
        return [
            [graph_of(cloud, k, metric, name, columns) for cloud, name in bar.each(stack)] for stack in stacks.named
        ]


def imbalance_grid(stacks: LayerStacks, halves: Int[Tensor, "s h"], k: int) -> LayerGrid:
    """1 less the mean of the information imbalance in both directions; distances are computed once for each cloud."""
    first, second = ([ready(cloud, name=name) for cloud, name in stack] for stack in stacks.named)
    n, a, b = stacks.n, len(first), len(second)
    terms = torch.empty(a, b, n, dtype=torch.float64)
    others = torch.zeros(a, b, n, dtype=torch.float64)
    parts = torch.zeros(len(halves), a, b, dtype=torch.float64)
    with progress_bar("information imbalance", n, "examples") as bar:
        for rows in blocks(n, n * (a + b + k)):
            squared = [[points.squared(rows) for points in stack] for stack in (first, second)]
            near = [[neighborhoods_in(block, k) for block in stack] for stack in squared]
            terms[:, :, rows] = _likeness(squared, near, n)
            others -= _passed(squared, near) + _passed(squared[::-1], near[::-1]).transpose(0, 1)
            for number, half in enumerate(halves):
                inside = half[(half >= rows.start) & (half < rows.stop)] - rows.start
                cut = [[block[inside][:, half] for block in stack] for stack in squared]
                inner = reach(k, n, len(half))
                within = _likeness(
                    cut, [[neighborhoods_in(block, inner) for block in stack] for stack in cut], len(half)
                )
                parts[number] += within.sum(dim=2) / len(half)
            bar.advance(rows.stop - rows.start)
    influence = terms + (others - others.mean(dim=2, keepdim=True)) / n
    return LayerGrid(terms.mean(dim=2), parts, influence)


def _likeness(
    squared: Sequence[Sequence[Tensor]], near: Sequence[Sequence[Neighborhoods]], n: int
) -> Float[Tensor, "a b r"]:
    rows = [
        torch.stack(
            [
                1 - (mean_rank(here, to).cpu() + mean_rank(there, block).cpu()) / n
                for there, to in zip(near[1], squared[1], strict=True)
            ]
        )
        for here, block in zip(near[0], squared[0], strict=True)
    ]
    return torch.stack(rows)


def _passed(squared: Sequence[Sequence[Tensor]], near: Sequence[Sequence[Neighborhoods]]) -> Float[Tensor, "a b n"]:
    """What each example adds to the mean ranks, in the second clouds, of others' neighbours in the first ones.

    It moves each neighbour that is farther than itself on by one rank. As a neighbour it displaces an average one. What it
    adds so is mostly the noise of a few ranks, which two neighbours of each other share: it counts for a third, with which
    the spread of influences is 0.95 to 1.1 times that of values over draws of examples in simulations.
    """
    n = squared[0][0].shape[1]
    added = torch.empty(len(near[0]), len(near[1]), n, dtype=torch.float64)
    for first, here in enumerate(near[0]):
        for second, to in enumerate(squared[1]):
            farther = (to[:, None] < to.gather(1, here.lists)[..., None]).to(to.dtype)
            ranks = farther.sum(dim=2)
            sums = farther.sum(dim=(0, 1))
            sums.index_add_(0, here.lists.flatten(), (ranks - ranks.mean()).flatten(), alpha=_AS_NEIGHBOUR)
            added[first, second] = (sums / here.lists.shape[1]).cpu()
    return added


def kernel_grid(
    stacks: LayerStacks, halves: Int[Tensor, "s h"], k: None, table: Callable[[Tensor, str], PairTable]
) -> LayerGrid:
    """The debiased cosine of tables of all pairs (`interp.geometry.kernels`); each table is computed twice, in blocks."""
    n, a = stacks.n, len(stacks.first)
    if (len(halves) and halves.shape[1] < 4) or n < 4:
        raise InputError(
            f"{n} examples leave nothing when debiased: pass four or more, eight for an interval from halves of them"
        )
    clouds = [*stacks.named[0], *stacks.named[1]]
    tables, sizes = [], []
    for cloud, name in clouds:
        rest = centred(cloud, name)
        centred_rows, size = centred_table(table(rest / rest.abs().amax(), name), n, debiased=True)
        tables.append(centred_rows)
        sizes.append(size)
    count = len(tables)
    cross = torch.zeros(count, count, n, dtype=torch.float64)
    traces = torch.zeros(len(halves), count, count, dtype=torch.float64)
    sums = torch.zeros(len(halves), count, halves.shape[1] if len(halves) else 0, dtype=torch.float64)
    with progress_bar("tables of all pairs", n, "examples") as bar:
        for rows in blocks(n, n * count):
            block = torch.stack([each(rows) for each in tables], dim=1)  # [row, table, example]
            cross[:, :, rows] = (block @ block.mT).permute(1, 2, 0).cpu()
            for number, half in enumerate(halves):
                here = (half >= rows.start) & (half < rows.stop)
                cut = block[half[here] - rows.start][:, :, half]
                flat = cut.transpose(0, 1).flatten(start_dim=1)
                traces[number] += (flat @ flat.T).cpu()
                sums[number][:, here.cpu()] = cut.sum(dim=2).T.cpu()
            bar.advance(rows.stop - rows.start)
    size_of = cross.sum(dim=2).diagonal()
    for left, size, (_, name) in zip(size_of, sizes, clouds, strict=True):
        check_left(left, size, n, name)
    scaled_cross = n * _normalised(cross, size_of)
    terms = scaled_cross[:a, a:]
    own = scaled_cross.diagonal().T - 1  # an example's part in the size of each table, which a cosine divides by
    influence = 2 * terms - terms.mean(dim=2, keepdim=True) * (1 + own[:a, None] + own[None, a:])
    parts = _hsic(traces, sums, halves.shape[1])
    scaled = [_normalised(part[..., None], part.diagonal())[:a, a:, 0] for part in parts]
    return LayerGrid(terms.mean(dim=2), _stacked(scaled, terms), influence)


def _hsic(traces: Tensor, sums: Tensor, m: int) -> Float[Tensor, "s c c"]:
    """m (m - 3) times the HSIC_1 of tables with an empty diagonal, from the sums of their products and of their rows."""
    totals = sums.sum(dim=2)
    across = totals[:, :, None] * totals[:, None] / ((m - 1) * (m - 2))
    return traces - 2 / (m - 2) * sums @ sums.mT + across


def _normalised(cross: Float[Tensor, "c c n"], own: Float[Tensor, " c"]) -> Float[Tensor, "c c n"]:
    return cross / (own[:, None] * own).clamp(min=torch.finfo(own.dtype).tiny).sqrt()[..., None]


# Any function, and nulls ----------------------------------------------------------------------------------------------


def pairwise_grid(
    stacks: LayerStacks, halves: Int[Tensor, "s h"], k: int | None, function: Callable[[Tensor, Tensor, Any], float]
) -> LayerGrid:
    """Any function of two clouds and k, for one pair of layers after the other.

    Among a half of the examples, k shrinks so that neighbourhoods reach as far as among all.
    """
    n = stacks.n
    with progress_bar("layers and halves", 1 + len(halves), "grids") as bar:
        values = _each_pair(stacks, lambda x, y: function(x, y, k))
        bar.advance()
        parts = [
            _each_pair(
                stacks,
                lambda x, y, half=half: function(x[half], y[half], k and reach(k, n, len(half))),
                f"a half of {n} examples, for an interval, of ",
            )
            for half in bar.each(halves)
        ]
    return LayerGrid(values, _stacked(parts, values))


def _each_pair(stacks: LayerStacks, function: Callable[..., float], among: str = "") -> Float[Tensor, "a b"]:
    """The value of each pair of clouds; an error names the pair."""
    first, second = stacks.named
    values = []
    with progress_bar("pairs of layers", len(first) * len(second), "pairs") as bar:
        for (x, name), (y, other) in bar.each(itertools.product(first, second)):
            try:
                values.append(function(x, y))
            except InputError as error:
                raise InputError(f"{among}{name} (x) and {other} (y): {error}") from error
    return torch.tensor(values, dtype=torch.float64).view(len(first), len(second))


def shuffled_values(
    stacks: LayerStacks, resampling: Resampling, grid: Callable[[LayerStacks], LayerGrid]
) -> Float[Tensor, "draw a b"]:
    """The values of a grid after each shuffle of the rows of the second stack. A graph is shuffled by renaming its points."""
    orders, b = resampling.orders(stacks.n), len(stacks.second)
    together = max(1, _TOGETHER // b) if len(stacks.first) == b == 1 else 1
    values = []
    with progress_bar("shuffles", len(orders), "shuffles") as bar:
        for start in range(0, len(orders), together):
            some = orders[start : start + together]
            second = [_reordered(cloud, order) for order in some for cloud in stacks.second]
            names = stacks.names[0], [*stacks.names[1]] * len(some)
            drawn = grid(replace(stacks, second=second, names=names)).values
            values += drawn.split(b, dim=1)
            bar.advance(len(some))
    return torch.stack(values)


def _reordered(cloud: Graph, order: Int[Tensor, " n"]) -> Graph:
    return cloud.permuted(order) if isinstance(cloud, Neighbors) else cloud[order.to(cloud.device)]


def exchanged_values(
    stacks: LayerStacks, resampling: Resampling, function: Callable[[Tensor, Tensor], float]
) -> Float[Tensor, "draw a b"]:
    """The values of each pair of clouds in one space, after each exchange of the members of some pairs of rows."""

    def exchanged(sides: Bool[Tensor, "n 1"]) -> Tensor:
        return _each_pair(
            stacks, lambda x, y: function(torch.where(sides.to(x.device), y, x), torch.where(sides.to(x.device), x, y))
        )

    return torch.stack([exchanged(torch.from_numpy(sides)[:, None]) for sides in resampling.exchanges(stacks.n)])


def _stacked(parts: Sequence[Tensor], shape_of: Tensor) -> Float[Tensor, "s a b"]:
    return torch.stack(list(parts)) if parts else torch.zeros(0, *shape_of.shape[:2], dtype=torch.float64)
