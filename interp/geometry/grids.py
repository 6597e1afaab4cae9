"""Every layer against every layer: how the measures of two clouds are taken for two whole stacks of them.

A grid of L x L comparisons has 2 L clouds. What belongs to one cloud, its graph of neighbours or its distances, is made
L + L times, not L x L; the comparison itself is then cheap. Each function here takes two lists of clouds with paired rows
and some halves of the examples, and gives a `Grid`: the values, the values among each half alone, and, where that is
known, how much each example bears on a value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.geometry.centring import centred
from interp.geometry.imbalance import mean_rank
from interp.geometry.kernels import centred_table, check_left
from interp.geometry.neighbors import Graph, blocks, graph_of, ready
from interp.geometry.overlap import neighborhoods_in, overlap_influence, overlap_within
from interp.geometry.pairs import Table
from interp.statistics.half_samples import reach, wide

Clouds = Sequence[Tensor]
Names = tuple[Sequence[str], Sequence[str]]  # how errors call each cloud of both stacks


@dataclass(frozen=True)
class Grid:
    """`values[a, b]` of two stacks, `parts[half, a, b]` of each half of the examples, and `influence[a, b, n]`, how much each
    example bears on a value, which is the mean; None where that is not known.

    A value compares examples with each other, so that an example counts in its own comparisons and in those of others. Where
    the two are alike (`twice`) its influence is twice its own part, less the mean. The standard error that influences give
    for the difference of two values is 1 to 2 times the spread of it over draws of examples, on the safe side; own parts
    alone may give half of it.
    """

    values: Float[Tensor, "a b"]
    parts: Float[Tensor, "s a b"]
    influence: Float[Tensor, "a b n"] | None = None


def overlap_grid(
    first: Sequence[Graph], second: Sequence[Graph], names: Names, halves: Int[Tensor, "s h"], k: int, metric: str
) -> Grid:
    """The overlap of neighbourhoods, from one graph a cloud; a graph that was made before is taken as it is."""
    columns = min(wide(k) if len(halves) else k, len(first[0]) - 1)
    graphs = [
        [graph_of(cloud, k, metric, name, columns) for cloud, name in zip(stack, called, strict=True)]
        for called, stack in zip(names, (first, second), strict=True)
    ]
    values, influence = overlap_influence(graphs[0], graphs[1], k)
    parts = [overlap_within(graphs[0], graphs[1], half, k) for half in halves]
    return Grid(values, _stacked(parts, influence), influence)


def imbalance_grid(first: Clouds, second: Clouds, names: Names, halves: Int[Tensor, "s h"], k: int) -> Grid:
    """1 less the mean of the information imbalance there and back; every cloud's distances are made once."""
    stacks = [
        [ready(cloud, name=name) for cloud, name in zip(stack, called, strict=True)]
        for called, stack in zip(names, (first, second), strict=True)
    ]
    n, a, b = len(first[0]), len(first), len(second)
    terms = torch.empty(a, b, n, dtype=torch.float64)
    parts = torch.zeros(len(halves), a, b, dtype=torch.float64)
    for rows in blocks(n, n * (a + b + k)):
        squared = [[points.squared(rows) for points in stack] for stack in stacks]
        terms[:, :, rows] = _likeness(squared[0], squared[1], k, n)
        for number, half in enumerate(halves):
            inside = half[(half >= rows.start) & (half < rows.stop)] - rows.start
            cut = [[block[inside][:, half] for block in stack] for stack in squared]
            found = _likeness(cut[0], cut[1], reach(k, n, len(half)), len(half))
            parts[number] += found.sum(dim=2) / len(half)
    return Grid(terms.mean(dim=2), parts, twice(terms))


def _likeness(first: Sequence[Tensor], second: Sequence[Tensor], k: int, n: int) -> Float[Tensor, "a b r"]:
    near, others = ([neighborhoods_in(block, k) for block in stack] for stack in (first, second))
    rows = [
        torch.stack(
            [
                1 - (mean_rank(here, to).cpu() + mean_rank(there, block).cpu()) / n
                for there, to in zip(others, second, strict=True)
            ]
        )
        for here, block in zip(near, first, strict=True)
    ]
    return torch.stack(rows)


def kernel_grid(
    first: Clouds,
    second: Clouds,
    names: Names,
    halves: Int[Tensor, "s h"],
    k: None,
    table: Callable[[Tensor, str], Table],
) -> Grid:
    """The debiased cosine of tables of all pairs (`interp.geometry.kernels`), each table made twice and never held."""
    n, a = len(first[0]), len(first)
    if (len(halves) and halves.shape[1] < 4) or n < 4:
        raise InputError(
            f"{n} examples leave nothing when debiased: pass four or more, eight for an interval from halves of them"
        )
    tables, sizes, called = [], [], [*names[0], *names[1]]
    for cloud, name in zip((*first, *second), called, strict=True):
        rest = centred(cloud, name)
        centred_rows, size = centred_table(table(rest / rest.abs().amax(), name), n, debiased=True)
        tables.append(centred_rows)
        sizes.append(size)
    count = len(tables)
    cross = torch.zeros(count, count, n, dtype=torch.float64)
    traces = torch.zeros(len(halves), count, count, dtype=torch.float64)
    sums = torch.zeros(len(halves), count, halves.shape[1] if len(halves) else 0, dtype=torch.float64)
    for rows in blocks(n, n * count):
        block = torch.stack([each(rows) for each in tables], dim=1)  # [row, table, example]
        cross[:, :, rows] = (block @ block.mT).permute(1, 2, 0).cpu()
        for number, half in enumerate(halves):
            here = (half >= rows.start) & (half < rows.stop)
            cut = block[half[here] - rows.start][:, :, half]
            flat = cut.transpose(0, 1).flatten(start_dim=1)
            traces[number] += (flat @ flat.T).cpu()
            sums[number][:, here.cpu()] = cut.sum(dim=2).T.cpu()
    size_of = cross.sum(dim=2).diagonal()
    for left, size, name in zip(size_of, sizes, called, strict=True):
        check_left(left, size, n, name)
    scaled_cross = n * _normalised(cross, size_of)
    terms = scaled_cross[:a, a:]
    own = scaled_cross.diagonal().T - 1  # what an example adds to the size of each table, of which a cosine is free
    influence = twice(terms) - terms.mean(dim=2, keepdim=True) * (own[:a, None] + own[None, a:])
    parts = _hsic(traces, sums, halves.shape[1])
    scaled = [_normalised(part[..., None], part.diagonal())[:a, a:, 0] for part in parts]
    return Grid(terms.mean(dim=2), _stacked(scaled, terms), influence)


def _hsic(traces: Tensor, sums: Tensor, m: int) -> Float[Tensor, "s c c"]:
    """m (m - 3) times the HSIC_1 of tables with an empty diagonal, from the sums of their products and of their rows."""
    totals = sums.sum(dim=2)
    across = totals[:, :, None] * totals[:, None] / ((m - 1) * (m - 2))
    return traces - 2 / (m - 2) * sums @ sums.mT + across


def _normalised(cross: Float[Tensor, "c c n"], own: Float[Tensor, " c"]) -> Float[Tensor, "c c n"]:
    return cross / (own[:, None] * own).clamp(min=torch.finfo(own.dtype).tiny).sqrt()[..., None]


def pairwise_grid(
    first: Clouds,
    second: Clouds,
    names: Names,
    halves: Int[Tensor, "s h"],
    k: int | None,
    measure: Callable[[Tensor, Tensor, int | None], float],
) -> Grid:
    """Any measure of two clouds and k, for one pair of layers after the other; among a half, k reaches as far as among all."""

    def value(one: int, other: int, rows: Tensor | slice, k: int | None, among: str) -> float:
        try:
            return measure(first[one][rows], second[other][rows], k)
        except InputError as error:
            raise InputError(f"{among}{names[0][one]} (x) and {names[1][other]} (y): {error}") from error

    def grid(rows: Tensor | slice, k: int | None, among: str = "") -> Tensor:
        return torch.tensor(
            [[value(one, other, rows, k, among) for other in range(len(second))] for one in range(len(first))],
            dtype=torch.float64,
        )

    values = grid(slice(None), k)
    n = len(first[0])
    parts = [
        grid(half, k if k is None else reach(k, n, len(half)), f"a half of {n} examples, for an interval, of ")
        for half in halves
    ]
    return Grid(values, _stacked(parts, values))


def twice(terms: Float[Tensor, "a b n"]) -> Float[Tensor, "a b n"]:
    """The influence of examples whose part in the comparisons of others is like that in their own."""
    return 2 * terms - terms.mean(dim=2, keepdim=True)


def _stacked(parts: Sequence[Tensor], shape_of: Tensor) -> Float[Tensor, "s a b"]:
    return torch.stack(list(parts)) if parts else torch.zeros(0, *shape_of.shape[:2], dtype=torch.float64)
