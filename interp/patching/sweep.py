"""Activation patching over the whole grid: every layer, every position, every head where asked.

Two runs of one prompt layout, a *clean* one and a *corrupted* one with another answer. The clean state of one layer
and position is written into the corrupted run, and the metric says how much of the clean answer comes back:
``effect = (patched - corrupted) / (clean - corrupted)``, 0 = nothing, 1 = all of it. The other direction, `noise`,
writes corrupted states into the clean run and reports on the same scale: 1 = still clean, 0 = as corrupted.

The grid is exact, and yet most of each forward pass is not run: a cell is computed from the layer and the leftmost
position at which it can differ. ``provenance.notes`` says whether that was so, or why not (`interp.patching.cells`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from interp.arguments import checked_seed
from interp.models import VLM, Batch
from interp.models.running.resume import Cell, Versions
from interp.models.running.steps import Read, take_each
from interp.models.running.trace import run_forward
from interp.models.vlm import Intervention
from interp.patching.cells import run_cells
from interp.patching.grid import Grid, grid_of, result_of
from interp.patching.metrics import Bound, Measure, Metric, measured, name_of, of_run
from interp.patching.result import PatchResult


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
    metric: Metric | Measure,
    interventions: Sequence[Intervention] = (),
    seed: int = 0,
) -> PatchResult:
    """Patch each layer and position on its own and measure how much of the answer moves with it.

    `clean` and `corrupted` have as many rows, each pair of equal layout: as many tokens, images in the same places.
    `positions` are single tokens, a column of the grid each, in the order of the prompt (a name, ints or a mask, as many in
    every row), or groups that are patched together: a list of names, ``["image", "question", "last"]``, or a dict of
    anything that selects positions, ``{"object": mask}``. `site` is any that `Patch` takes; with `heads` ("all", an int or
    ints) at one that has heads, each head is patched on its own, and the grid has a third axis.

    `effect` is a ratio of means over rows, ``mean(patched - corrupted) / mean(clean - corrupted)``; its interval is a
    bootstrap over rows, drawn with `seed`. `interventions` hold in all runs, in each row alone; each cell is a whole forward
    pass then.

    Raises `InputError` where the two batches do not have the same layout, the metric does not tell the two runs apart,
    rows select different numbers of positions, a name is unknown, the metric does not give one number a row, or an
    intervention does not hold in each row alone; `LayoutError` for a site that was not proved.

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
    seed = checked_seed(seed)
    grid = grid_of(vlm, clean, corrupted, site, layers, positions, heads, direction, metric, interventions)
    each_head = [None] if grid.heads is None else grid.heads
    cells = [Cell(*at) for at in product(grid.layers, range(len(grid.pairs.names)), each_head)]
    source, target = grid.sides
    ends: list[tuple[Tensor, Tensor]] = []
    values, notes = [], []
    for row, measure in enumerate(grid.measures(vlm)):
        versions, given_end = _versions(vlm, source.row(row), grid, cells, grid.pairs.groups[row], measure)
        in_trace = partial(measured, rule=measure.rule, against=measure.against)
        base, of_cells, note = run_cells(vlm, target.row(row), versions, in_trace, grid.interventions, seed)
        ends.append((given_end.cpu(), base))
        values.append(of_cells)
        notes.append(note)
    both = grid.ends(*(torch.cat(end) for end in zip(*ends, strict=True)))
    per_row = torch.stack(values).reshape(len(values), *grid.shape)
    return result_of(vlm, grid, per_row, both, seed, tuple(dict.fromkeys(notes)))


def _versions(
    vlm: VLM, source: Batch, grid: Grid, cells: Sequence[Cell], groups: Sequence[Tensor], measure: Bound
) -> tuple[Versions, Tensor]:
    """What one row's run gives to all cells, and the metric of that run."""
    columns = torch.cat(list(groups)).unique()
    places = torch.zeros_like(columns), columns, None
    reads = [Read(layer, grid.site, layer, take_each, places) for layer in grid.layers]
    seen = run_forward(vlm, source, vlm.edits_of(source, grid.interventions), reads)
    given = {layer: seen[layer] for layer in grid.layers}
    return Versions(grid.site, cells, groups, columns, given), of_run(measure, seen["logits"], name_of(grid.metric))
