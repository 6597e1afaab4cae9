"""Activation patching over a whole grid: every layer, every position, and every head if heads are asked for.

A sweep compares two runs of one prompt layout, a *clean* one and a *corrupted* one with another answer. It writes the clean
state of one layer and position into the corrupted run, and the metric says how much of the clean answer comes back:
``effect = (patched - corrupted) / (clean - corrupted)``, 0 = nothing, 1 = all of it. The other direction, `noise`, writes
corrupted states into the clean run and reports on the same scale: 1 = still clean, 0 = as corrupted.

The grid is exact, and yet most of each forward pass is not run: a cell is computed from the layer and the leftmost position
at which it can differ. ``provenance.notes`` says whether that was so, or why not (`interp.patching.cells`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from interp.models import VLM, Batch, Intervention, Read
from interp.models.running.resume import Cell, Versions
from interp.models.running.steps import take_each
from interp.models.running.trace import run_forward
from interp.patching.cells import run_cells
from interp.patching.grid import SweepGrid, SweepRequest
from interp.patching.metrics import Metric, MetricFunction, RowMetric, apply_rule, difference_of_terms, rows_to_run
from interp.patching.patch_result import PatchResult
from interp.progress import Bar, progress_bar


def patch_sweep(
    vlm: VLM,
    clean: Batch,
    corrupted: Batch,
    site: str = "resid_pre",
    layers: Any = "all",
    positions: Any = "all",
    heads: int | str | Iterable[int] | None = None,
    direction: str = "denoise",
    *,
    metric: Metric | MetricFunction,
    interventions: Sequence[Intervention] = (),
    seed: int = 0,
    progress: bool = True,
) -> PatchResult:
    """Patch each layer and position on its own and measure how much of the answer moves with it.

    `clean` and `corrupted` have as many rows, and each pair has one layout: as many tokens, images in the same places.
    `positions` are either single tokens, one column of the grid each, in the order of the prompt (a name, ints or a mask, as
    many in every row), or groups that are patched together: a list of names, ``["image", "question", "last"]``, or a dict
    from names to anything that selects positions, ``{"object": mask}``. `site` is any that `Patch` takes. With `heads`
    ("all", an int or ints) at a site that has heads, each head is patched on its own, and the grid has a third axis.

    `effect` is a ratio of means over rows, ``mean(patched - corrupted) / mean(clean - corrupted)``. Its interval is
    `interp.statistics.ratio_interval`, with `seed`. `interventions` hold in all runs, in each row alone; every cell is a whole
    forward pass then.

    Raises `InputError` for batches with different layouts, for a metric that is the same in both runs or that does not give
    one number a row, for rows that select different numbers of positions, for an unknown name, and for an intervention that
    does not hold in each row alone; `LayoutError` for a site that was not proved.

    A long sweep shows its progress on a terminal or in a notebook; ``progress=False`` hides it.

    Source: activation patching as in Meng et al. 2022 and Heimersheim and Nanda 2024.

    >>> import interp
    >>> from interp.patching import patch_sweep, logit_difference
    >>> vlm = interp.load("toy")
    >>> clean = vlm.prepare(texts=["a red 3 at top . what colour is the 3 ?"])
    >>> corrupted = vlm.prepare(texts=["a blue 3 at top . what colour is the 3 ?"])
    >>> result = patch_sweep(vlm, clean, corrupted, positions=[2, -1], metric=logit_difference("red", "blue"))
    >>> result.effect.shape
    torch.Size([8, 2])
    """
    request = SweepRequest(site, layers, positions, heads, direction, metric, interventions, seed)
    grid = request.grid(vlm, clean, corrupted)
    each_head = [None] if grid.heads is None else grid.heads
    cells = [Cell(*place) for place in product(grid.layers, range(len(grid.pairs.columns)), each_head)]
    source, target = grid.source_and_target
    ends: list[tuple[Tensor, Tensor]] = []
    values, notes = [], []
    done = 0
    with progress_bar("patching", sum(map(len, grid.metrics)) * len(cells), "cells", progress) as bar:
        for row, terms in enumerate(grid.metrics):
            sides, groups = (source.row(row), target.row(row)), grid.pairs.groups[row]
            parts = []
            for term in terms:
                of_source, of_target, of_cells, note = _run_row(grid, term, sides, cells, groups, bar)
                parts.append((of_source, of_target, of_cells))
                notes.append(note)
                done += len(cells)
                bar.reach(done)
            of_source, of_target, of_cells = map(difference_of_terms, zip(*parts, strict=True))
            ends.append((of_source, of_target))
            values.append(of_cells)
    both = grid.clean_and_corrupted(*(torch.cat(end) for end in zip(*ends, strict=True)))
    per_row = torch.stack(values).reshape(len(values), *grid.shape)
    return grid.result(per_row, *both, tuple(dict.fromkeys(notes)), "exact")


def _run_row(
    grid: SweepGrid,
    metric: RowMetric,
    sides: tuple[Batch, Batch],
    cells: Sequence[Cell],
    groups: Sequence[Tensor],
    bar: Bar,
) -> tuple[Tensor, Tensor, Tensor, str]:
    """The metric of one row's source `[1]`, of its target `[1]` and of every cell `[cell]`, and a note on the cells."""
    vlm = grid.vlm
    source, target = (rows_to_run(vlm, side, [metric]) for side in sides)
    versions, logits = _versions(grid, source, cells, groups)
    of_source = metric.of_run(logits, grid.metric).cpu()
    in_trace = partial(apply_rule, rule=metric.rule, references=metric.references)
    counted = in_trace if vlm.remote else partial(_counted, in_trace, bar)
    of_target, of_cells, note = run_cells(vlm, target, versions, counted, grid.interventions, grid.seed)
    return of_source, of_target, of_cells, note


def _counted(metric: MetricFunction, bar: Bar, logits: Tensor) -> Tensor:
    """The metric, which is called for some cells at a time, and these counted. A server has no bar."""
    values = metric(logits)
    bar.advance(len(values))
    return values


def _versions(
    grid: SweepGrid, source: Batch, cells: Sequence[Cell], groups: Sequence[Tensor]
) -> tuple[Versions, Tensor]:
    """The states that one row of the source writes into its cells, and the logits of that row."""
    columns = torch.cat(list(groups)).unique()
    places = torch.zeros_like(columns), columns, None
    reads = [Read(layer, grid.site, layer, take_each, places) for layer in grid.layers]
    outputs = run_forward(grid.vlm, source, grid.vlm.edits_of(source, grid.interventions), reads)
    states = {layer: outputs[layer] for layer in grid.layers}
    return Versions(grid.site, cells, groups, columns, states), outputs["logits"]
