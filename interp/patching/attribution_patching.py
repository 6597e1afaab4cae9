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
from interp.patching.metrics import Metric, MetricFunction, RowMetric, apply_rule, difference_of_terms, rows_to_run
from interp.patching.patch_result import PatchResult
from interp.progress import progress_bar

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
    seed: int = 0,
    progress: bool = True,
) -> PatchResult:
    """The gradient approximation of the grid that `patch_sweep` gives for the same arguments, as one of its results.

    `values` approximates the metric of the patched run, so `effect` is on the same scale, 0 = corrupted and 1 = clean, but it
    may lie outside. The gradient is taken in the patched run: the corrupted one for `denoise`, the clean one for `noise`.
    Rows share passes, as many as fit into some memory. Rows with `interventions` run alone, because these may depend on the
    rest of a batch.

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
    request = SweepRequest(site, layers, positions, heads, direction, metric, interventions, seed)
    grid = request.grid(vlm, clean, corrupted)
    parts = []
    with progress_bar("attribution patching", len(grid.pairs), "pairs", progress) as bar:
        for rows in _portions(grid):
            terms = [
                _attribution(grid, rows, metrics) for metrics in zip(*(grid.metrics[row] for row in rows), strict=True)
            ]
            parts.append([difference_of_terms(each) for each in zip(*terms, strict=True)])
            bar.advance(len(rows))
    source, target, per_row = (torch.cat(each) for each in zip(*parts, strict=True))
    note = f"first order in the states of the {'corrupted' if direction == 'denoise' else 'clean'} run"
    return grid.result(per_row, *grid.clean_and_corrupted(source, target), (note,), "gradient")


def _portions(grid: SweepGrid) -> list[list[int]]:
    """The rows that share their passes."""
    rows = list(range(len(grid.pairs)))
    longest = grid.pairs.clean.inputs["input_ids"].shape[1]
    size = 1 if grid.interventions else max(1, _POSITIONS_AT_ONCE // longest)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _attribution(grid: SweepGrid, rows: Sequence[int], metrics: Sequence[RowMetric]) -> tuple[Tensor, Tensor, Tensor]:
    """The metrics of these rows in the source and in the target run `[row]`, and of their cells `[row, layer, position(,
    head)]`."""
    vlm = grid.vlm
    source, target = (rows_to_run(vlm, side.part(rows), metrics) for side in grid.source_and_target)
    groups = [grid.pairs.groups[row] for row in rows]
    reads = [
        Read(layer, grid.site, layer, take_each, (*_rows_and_columns(source, groups), None)) for layer in grid.layers
    ]
    outputs = run_forward(vlm, source, vlm.edits_of(source, grid.interventions), reads)
    logits = outputs["logits"]
    of_source = torch.cat([each.of_run(logits[[row]], grid.metric) for row, each in enumerate(metrics)])
    counts = [len(group) for of_row in groups for group in of_row]
    cells = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    positions = PositionsOfCells(*_rows_and_columns(target, groups), cells, len(counts), grid.heads)
    slopes = [
        GradientRead(layer, grid.site, layer, first_order_change, (outputs[layer], positions)) for layer in grid.layers
    ]
    in_trace = partial(apply_rules, rules=[(each.rule, each.references) for each in metrics])
    gradients = _gradients(grid, target, in_trace, slopes)
    of_target = gradients["measure"].cpu()
    change = torch.stack([gradients[layer].cpu() for layer in grid.layers])
    change = rearrange(change, "layer (row position) ... -> row layer position ...", row=len(rows)).to(of_target)
    return of_source.cpu(), of_target, change + of_target.reshape(-1, *[1] * (change.ndim - 1))


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


def apply_rules(logits, rules):
    """The metric of each row, `[row]`, every one with its own rule and references."""
    return torch.cat([apply_rule(logits[row : row + 1], *rule) for row, rule in enumerate(rules)])


def first_order_change(value, gradient, source, positions):
    """The first-order change of the metric when the states become those of the source: the sum over each cell's positions
    and features of ``(source - state) * gradient``, `[cell]`, or of each head `[cell, head]`, in float32 at least."""
    index = positions.rows.to(value.device), positions.columns.to(value.device)
    wide = torch.promote_types(value.dtype, torch.float32)
    each = (source.to(value.device, wide) - value[index].to(wide)) * gradient[index].to(wide)
    each = each.flatten(1).sum(dim=1) if positions.heads is None else each.sum(dim=-1)[:, positions.heads]
    total = torch.zeros(positions.n_cells, *each.shape[1:], dtype=wide, device=value.device)
    return total.index_add(0, positions.cells.to(value.device), each)
