"""Attribution patching: the whole grid of a patching sweep from two forward passes and one backward pass.

A sweep asks, cell by cell, what the metric becomes when a state of one run is written into another. To first order that
needs no further run. The metric is a function of the states of the run that is patched (the target), and its gradient
there says what any small change of any of them would do:

    metric(patched) ~ metric(target) + (source state - target state) . d metric / d state

summed over what the cell holds: the features of a position, or of one head, at all positions of a group. One backward
pass gives the gradient at every layer, position and head at once, so the grid costs the same whatever its size.

It is an approximation. It is exact where the metric is linear in the state between its two values, and wrong where it is
not: a softmax that is saturated in the target run hardly has a gradient, though a whole patch would turn it over; a
state whose two values lie far apart is judged by the slope at one of them, so early layers and `resid_pre` fare worse
than single heads late in the model; a softmax inside attention (q and k) worse than z. What it finds is to be checked on
the exact grid: `PatchResult.rank_correlation` and `PatchResult.top_found` say how well it orders the cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from interp.arguments import checked_seed
from interp.errors import InputError, LayoutError
from interp.models import VLM, Batch
from interp.models.running.gradients import GradientRead, run_gradients
from interp.models.running.steps import Read, take_each
from interp.models.running.trace import run_forward
from interp.models.vlm import Intervention
from interp.patching.grid import Grid, grid_of, result_of
from interp.patching.metrics import Bound, Measure, Metric, measured, name_of, of_run
from interp.patching.result import PatchResult

# Positions of all rows that share a backward pass. Its memory is the graph: of a model of 7 B parameters in 16 bits 6 MB a
# position, which makes 6 GB, and fits beside the weights on a card of 24 GB. A row of an image's tokens fills a pass alone.
_POSITIONS_AT_ONCE = 1024


@torch.inference_mode(False)  # a caller may be in it, and nothing that is made there can take part in a gradient
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
    metric: Metric | Measure,
    interventions: Sequence[Intervention] = (),
    seed: int = 0,
) -> PatchResult:
    """The gradient approximation of the grid that `patch_sweep` gives for the same arguments, as one of its results.

    `values` is the approximated metric of the patched run, so `effect` is on the same scale, 0 = corrupted and 1 = clean;
    nothing keeps it between them. The gradient is taken in the run that is patched: the corrupted one for `denoise`, the
    clean one for `noise`. Rows share passes, as many as some memory allows; rows with `interventions` go alone, as these
    may look at what is beside them.

    Raises what `patch_sweep` raises; `InputError` for a metric without a gradient (an argmax), `LayoutError` for a model
    through which none can be taken.

    Source: attribution patching as in Nanda 2023, Syed et al. 2023 and Kramar et al. 2024 (AtP).

    How well it orders the cells is seen on some pairs, beside what any grid of this layout would reach, that of other
    pairs:

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
    seed = checked_seed(seed)
    grid = grid_of(vlm, clean, corrupted, site, layers, positions, heads, direction, metric, interventions)
    measures = grid.measures(vlm)
    portions = _portions(grid)
    parts = [_attributed(vlm, grid, rows, [measures[row] for row in rows]) for rows in portions]
    source, target, per_row = (torch.cat(each) for each in zip(*parts, strict=True))
    note = f"first order in the states of the {'corrupted' if direction == 'denoise' else 'clean'} run"
    return result_of(vlm, grid, per_row, grid.ends(source, target), seed, (note,), method="gradient")


def _portions(grid: Grid) -> list[list[int]]:
    """The rows that share their passes."""
    rows = list(range(len(grid.pairs)))
    longest = grid.pairs.clean.inputs["input_ids"].shape[1]
    size = 1 if grid.interventions else max(1, _POSITIONS_AT_ONCE // longest)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _attributed(vlm: VLM, grid: Grid, rows: Sequence[int], measures: Sequence[Bound]) -> tuple[Tensor, Tensor, Tensor]:
    """The metric of these rows on the source and on the target side `[row]`, and of their cells `[row, layer, position(,
    head)]`."""
    source, target = (side.part(rows) for side in grid.sides)
    groups = [grid.pairs.groups[row] for row in rows]
    measure = partial(measured_each, measures=[(each.rule, each.against) for each in measures])
    places = (*_places(source, groups), None)
    reads = [Read(layer, grid.site, layer, take_each, places) for layer in grid.layers]
    seen = run_forward(vlm, source, vlm.edits_of(source, grid.interventions), reads)
    name = name_of(grid.metric)
    of_source = torch.cat([of_run(each, seen["logits"][row : row + 1], name) for row, each in enumerate(measures)])
    counts = [len(group) for of_row in groups for group in of_row]
    cells = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    common = *_places(target, groups), cells, len(counts), grid.heads
    slopes = [GradientRead(layer, grid.site, layer, toward, (seen[layer], *common)) for layer in grid.layers]
    found = _gradients(vlm, target, measure, slopes, grid)
    change = torch.stack([found[layer].cpu() for layer in grid.layers], dim=1)
    of_target = found["measure"].cpu()
    change = change.unflatten(0, (len(rows), -1)).transpose(1, 2).to(of_target)
    return of_source.cpu(), of_target, change + of_target.reshape(-1, *[1] * (change.ndim - 1))


def _places(batch: Batch, groups: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
    """Row and column in the batch of each position of each group, row after row."""
    rows, columns = [], []
    for row, of_row in enumerate(groups):
        real = batch.positions["all"][row].nonzero().flatten()
        columns.append(real[torch.cat(list(of_row))])
        rows.append(torch.full_like(columns[-1], row))
    return torch.cat(rows), torch.cat(columns)


def _gradients(vlm: VLM, batch: Batch, measure: Any, slopes: Sequence[GradientRead], grid: Grid) -> dict[Any, Tensor]:
    """The slopes of the target run. Whatever keeps a gradient from being taken becomes an error of one line."""
    try:
        found = run_gradients(vlm, batch, measure, slopes, vlm.edits_of(batch, grid.interventions))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except RuntimeError as error:  # each operation without a gradient says so in its own way
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise LayoutError(f"no gradient can be taken through {vlm.name!r} ({said}): patch_sweep needs none") from error
    if found is None:
        raise InputError(
            f"the metric {name_of(grid.metric)!r} has no gradient: expected a differentiable function of the logits, such as "
            "logit_difference(a, b), or use patch_sweep"
        )
    return found


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def measured_each(logits, measures):
    """The metric of each row, every one with its own rule and targets, `[row]`."""
    return torch.cat([measured(logits[row : row + 1], *bound) for row, bound in enumerate(measures)])


def toward(value, gradient, given, rows, columns, cells, count, heads):
    """What the way from the states to given ones adds to the measure, to first order: the sum over each cell's positions
    and features of ``(given - state) * gradient``, `[cell]`, or of some heads `[cell, head]`, in float32 at least."""
    at = rows.to(value.device), columns.to(value.device)
    wide = torch.promote_types(value.dtype, torch.float32)
    each = (given.to(value.device, wide) - value[at].to(wide)) * gradient[at].to(wide)
    each = each.flatten(1).sum(dim=1) if heads is None else each.sum(dim=-1)[:, heads]
    total = torch.zeros(count, *each.shape[1:], dtype=wide, device=value.device)
    return total.index_add(0, cells.to(value.device), each)
