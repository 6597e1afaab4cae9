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
from interp.patching.metrics import Metric, MetricFunction, RowMetric, difference_of_terms, rows_to_run
from interp.patching.patch_result import PatchResult
from interp.patching.right_rows import row_measure
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
    keep: str | None = None,
    control: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> PatchResult:
    """Patch each layer and position on its own and measure how much of the answer moves with it.

    `clean` and `corrupted` have as many rows, and each pair has one layout: as many tokens, images in the same places.
    `positions` are either single tokens, one column of the grid each, in the order of the prompt (a name, ints or a mask, as
    many in every row), or groups that are patched together: a list of names, ``["image", "question", "last"]``, or a dict
    from names to anything that selects positions, ``{"object": mask}``. `site` is any that `Patch` takes. With `heads`
    ("all", an int or ints) at a site that has heads, each head is patched on its own, and the grid has a third axis.

    `effect` is a ratio of means over rows, ``mean(patched - corrupted) / mean(clean - corrupted)``, with a 95 % interval over
    rows. `interventions` hold in all runs, in each row alone; every cell is a whole forward pass then.

    The result says which rows the model answers rightly (`right_clean`, `right_corrupted`): a clean row where it prefers a to
    b, a corrupted one where it prefers b to a, by ``logit_difference(a, b)`` and ``logprob_difference(a, b)``; where each token
    of a is the most likely, and where one is not, by ``probability(a)``, ``cross_entropy(a)`` and ``logprob(a)``.
    ``keep="right"`` sweeps the rows alone that are right on both sides. With `control`, which doubles the time, each row's cells
    are also patched from a *random donor*, another row of equal layout and with another answer, drawn with `seed`:
    `PatchResult.control` is the effect that any such state has.

    Raises `InputError` for batches with different layouts, for a metric that is the same in both runs or that does not give
    one number a row, for rows that select different numbers of positions, for an unknown name, for an intervention that
    does not hold in each row alone, where no row is to be kept, and for a row without a donor; `LayoutError` for a site that was
    not proved.

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
    request = SweepRequest(site, layers, positions, heads, direction, metric, interventions, keep, control, seed)
    grid = request.grid(vlm, clean, corrupted)
    each_head = [None] if grid.heads is None else grid.heads
    cells = [Cell(*place) for place in product(grid.layers, range(len(grid.pairs.columns)), each_head)]
    total = sum(map(len, grid.metrics)) * len(cells)
    with progress_bar("patching", total * (1 + control), "cells", progress) as bar:
        *runs, per_row, notes = _run_grid(grid, cells, bar, 0)
        of_donors = _run_grid(grid.of_donors, cells, bar, total)[2] if control else None
    return grid.result((runs[0], runs[1]), per_row, of_donors, tuple(dict.fromkeys(notes)), "exact")


def _run_grid(grid: SweepGrid, cells: Sequence[Cell], bar: Bar, done: int) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """What `measured` gives of the source and of the target run, both `[row, 2]`, the metric of every cell in every row
    `[row, layer, position(, head)]`, and notes on how cells were computed. `done` counts the cells that were run before."""
    source, target = grid.source_and_target
    rows, notes = [], []
    for row, terms in enumerate(grid.metrics):
        sides, groups = (source.row(row), target.row(row)), grid.pairs.groups[row]
        parts = []
        for term in terms:
            *part, note = _run_row(grid, term, sides, cells, groups, bar)
            parts.append(part)
            notes.append(note)
            done += len(cells)
            bar.reach(done)
        rows.append([difference_of_terms(each) for each in zip(*parts, strict=True)])
    of_source, of_target, of_cells = zip(*rows, strict=True)
    per_row = torch.stack(of_cells)[..., 0].reshape(len(rows), *grid.shape)
    return torch.cat(of_source), torch.cat(of_target), per_row, notes


def _run_row(
    grid: SweepGrid,
    metric: RowMetric,
    sides: tuple[Batch, Batch],
    cells: Sequence[Cell],
    groups: Sequence[Tensor],
    bar: Bar,
) -> tuple[Tensor, Tensor, Tensor, str]:
    """What `measured` gives of one row's source `[1, 2]`, of its target `[1, 2]` and of every cell `[cell, 2]`, and a note on
    the cells."""
    vlm = grid.vlm
    source, target = (rows_to_run(vlm, side, [metric]) for side in sides)
    versions, logits = _versions(grid, source, cells, groups)
    metric.of_run(logits, grid.metric)
    in_trace = row_measure(metric)
    counted = in_trace if vlm.remote else partial(_counted, in_trace, bar)
    of_target, of_cells, note = run_cells(vlm, target, versions, counted, grid.interventions, grid.seed)
    return in_trace(logits).cpu(), of_target, of_cells, note


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
