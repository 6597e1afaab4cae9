"""Attribution patching: the whole grid of a patching sweep from two forward passes and one backward pass.

A sweep asks, cell by cell, what the metric becomes when a state of one run is written into another. To first order this
needs no further run. The metric is a function of the states of the patched run (the target), and its gradient there says
what any small change of any of them does:

    metric(patched) ~ metric(target) + (source state - target state) . d metric / d state

summed over what the cell holds: the features of a position, or of one head, at all positions of a group. One backward
pass gives the gradient at every layer, position and head, so the cost of the grid does not depend on its size.

It is an approximation. It is exact if the metric is linear in the state between its two values, and wrong elsewhere:

- a softmax that is saturated in the target run has almost no gradient, though a whole patch would change it;
- a state whose two values lie far apart is judged by the slope at one of them, so early layers and `resid_pre` do worse than
  single heads late in the model, and a softmax inside attention (q and k) does worse than z.

Check what it shows on the exact grid: `PatchResult.rank_correlation` and `PatchResult.top_found` say how well it orders the
cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from interp.errors import InputError, LayoutError, reason_of
from interp.models import VLM, Batch, Intervention, Read
from interp.models.running.gradients import GradientRead, run_gradients
from interp.models.running.steps import take_each
from interp.models.running.trace import no_numbers, run_forward
from interp.patching.grid import SweepGrid, SweepRequest
from interp.patching.metrics import Metric, MetricFunction, RowMetric, difference_of_terms, rows_to_run
from interp.patching.patch_result import PatchResult
from interp.patching.right_rows import measure_rows, row_measure
from interp.progress import Bar, progress_bar

# Positions of all rows that share a backward pass, whose memory is the graph. For a model of 7 B parameters in 16 bits that is
# 6 MB a position, 6 GB in all, which fits beside the weights on a card of 24 GB. A row of image tokens fills a pass alone.
_POSITIONS_AT_ONCE = 1024


class PositionsOfCells(NamedTuple):
    """The positions that the cells of one layer patch: for each position its row and column in the batch and the number of
    its cell, and how many cells there are. With `heads` each cell is one for each of these heads."""

    rows: Tensor
    columns: Tensor
    cells: Tensor
    n_cells: int
    heads: list[int] | None


@torch.inference_mode(False)  # a caller may be in it, and a tensor that is made in it has no gradient
def attribution_patch(
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
    """The gradient approximation of the grid that `patch_sweep` gives for the same arguments, as one of its results.

    `values` approximates the metric of the patched run, so `effect` is on the same scale, 0 = corrupted and 1 = clean, but it
    may lie outside. The gradient is taken in the patched run: the corrupted one for `denoise`, the clean one for `noise`.
    Rows share passes, as many as fit into some memory. Rows with `interventions` run alone, because these may depend on the
    rest of a batch. `keep` and `control` are as in `patch_sweep`.

    Raises what `patch_sweep` raises; `InputError` for a metric without a gradient (an argmax), `LayoutError` for a model
    without one.

    A long run shows its progress on a terminal or in a notebook; ``progress=False`` hides it.

    Source: attribution patching as in Nanda 2023, Syed et al. 2023 and Kramar et al. 2024 (AtP).

    To see how well it orders the cells, compare it with the exact grid of some pairs, and as a control with the exact grid of
    other pairs of this layout:

    >>> import interp
    >>> from interp.patching import attribution_patch, logit_difference, patch_sweep
    >>> vlm = interp.load("toy")
    >>> def sides(word, other, digit):
    ...     texts = [f"a {colour} {digit} at top . what colour is the {digit} ?" for colour in (word, other)]
    ...     return [vlm.prepare(texts=[text]) for text in texts]
    >>> metric = logit_difference("red", "blue")
    >>> exact = patch_sweep(vlm, *sides("red", "blue", 3), site="z", heads="all", metric=metric)
    >>> guess = attribution_patch(vlm, *sides("red", "blue", 3), site="z", heads="all", metric=metric)
    >>> other = logit_difference("green", "yellow")
    >>> elsewhere = patch_sweep(vlm, *sides("green", "yellow", 7), site="z", heads="all", metric=other)
    >>> guess.rank_correlation(exact) > guess.rank_correlation(elsewhere)
    True
    """
    request = SweepRequest(site, layers, positions, heads, direction, metric, interventions, keep, control, seed)
    grid = request.grid(vlm, clean, corrupted)
    with progress_bar("attribution patching", len(grid.pairs) * (1 + control), "pairs", progress) as bar:
        source, target, per_row = _run_slopes(grid, bar)
        of_donors = _run_slopes(grid.of_donors, bar)[2] if control else None
    note = f"first order in the states of the {'corrupted' if direction == 'denoise' else 'clean'} run"
    return grid.result((source, target), per_row, of_donors, (note,), "gradient")


def _run_slopes(grid: SweepGrid, bar: Bar) -> list[Tensor]:
    """What `measured` gives of the source and of the target run, both `[row, 2]`, and the metric of every cell, `[row, layer,
    position(, head)]`."""
    parts = []
    for rows in grid.portions(_POSITIONS_AT_ONCE):
        terms = [
            _attribution(grid, rows, metrics) for metrics in zip(*(grid.metrics[row] for row in rows), strict=True)
        ]
        parts.append([difference_of_terms(each) for each in zip(*terms, strict=True)])
        bar.advance(len(rows))
    return [torch.cat(each) for each in zip(*parts, strict=True)]


def _attribution(grid: SweepGrid, rows: Sequence[int], metrics: Sequence[RowMetric]) -> tuple[Tensor, Tensor, Tensor]:
    """What `measured` gives of these rows in the source and in the target run, `[row, 2]`, and the metrics of their cells
    `[row, layer, position(, head)]`."""
    vlm = grid.vlm
    source, target = (rows_to_run(vlm, side.part(rows), metrics) for side in grid.source_and_target)
    groups = [grid.pairs.groups[row] for row in rows]
    reads = [
        Read(layer, grid.site, layer, take_each, (*_rows_and_columns(source, groups), None)) for layer in grid.layers
    ]
    outputs = run_forward(vlm, source, vlm.edits_of(source, grid.interventions), reads)
    logits = outputs["logits"]
    for row, each in enumerate(metrics):
        each.of_run(logits[[row]], grid.metric)
    measures = [row_measure(each) for each in metrics]
    of_source = measure_rows(logits, measures)
    counts = [len(group) for of_row in groups for group in of_row]
    cells = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    positions = PositionsOfCells(*_rows_and_columns(target, groups), cells, len(counts), grid.heads)
    slopes = [
        GradientRead(layer, grid.site, layer, first_order_change, (outputs[layer], positions)) for layer in grid.layers
    ]
    in_trace = partial(measure_rows, measures=measures)
    gradients = _gradients(grid, target, in_trace, slopes)
    of_target = gradients["measure"].cpu()
    change = torch.stack([gradients[layer].cpu() for layer in grid.layers])
    change = rearrange(change, "layer (row position) ... -> row layer position ...", row=len(rows)).to(of_target)
    return of_source.cpu(), of_target, change + of_target[:, 0].reshape(-1, *[1] * (change.ndim - 1))


def _rows_and_columns(batch: Batch, groups: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
    """The row and the column in the batch of each position of each group, row after row."""
    rows, columns = [], []
    for row, of_row in enumerate(groups):
        real = batch.positions["all"][row].nonzero().flatten()
        columns.append(real[torch.cat(list(of_row))])
        rows.append(torch.full_like(columns[-1], row))
    return torch.cat(rows), torch.cat(columns)


def _gradients(grid: SweepGrid, batch: Batch, metric: Any, slopes: Sequence[GradientRead]) -> dict[Any, Tensor]:
    """The slopes of the target run. An operation without a gradient becomes an error of one line."""
    vlm = grid.vlm
    try:
        gradients = run_gradients(vlm, batch, metric, slopes, vlm.edits_of(batch, grid.interventions))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:  # each operation without a gradient has a message of its own
        raise LayoutError(
            f"no gradient can be taken through {vlm.name!r} ({reason_of(error)}): patch_sweep needs none"
        ) from error
    if gradients is None:
        raise InputError(
            f"the metric {grid.metric!r} has no gradient: expected a differentiable function of the logits, such as "
            "logit_difference(a, b), or use patch_sweep"
        )
    if any(value.isnan().any() for value in gradients.values()):
        raise no_numbers(vlm, batch, "slopes of the metric")
    return gradients


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def first_order_change(value, gradient, source, positions):
    """The first-order change of the metric when the states become those of the source: the sum over each cell's positions
    and features of ``(source - state) * gradient``, `[cell]`, or of each head `[cell, head]`, in float32 at least."""
    index = positions.rows.to(value.device), positions.columns.to(value.device)
    wide = torch.promote_types(value.dtype, torch.float32)
    each = (source.to(value.device, wide) - value[index].to(wide)) * gradient[index].to(wide)
    each = each.flatten(1).sum(dim=1) if positions.heads is None else each.sum(dim=-1)[:, positions.heads]
    total = torch.zeros(positions.n_cells, *each.shape[1:], dtype=wide, device=value.device)
    return total.index_add(0, positions.cells.to(value.device), each)
