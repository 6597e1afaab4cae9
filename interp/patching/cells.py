"""The cells of a sweep over one row: the metric of the row's run, with a few of its states replaced.

There are three ways to compute cells, and all must agree. The first *resumes* a cell (`interp.models.running.resume`) from the
layer and the position where it first differs. The second resumes it from the layer, at all positions. The third makes a
*whole* forward pass of it, which assumes nothing about layers.

A model's first sweep of a kind (a site, with or without pictures) computes a few cells in the first way and as whole passes,
and compares all logits. If they disagree, or if a layer cannot be called so, it tries the second way, and if that fails too,
cells are whole passes. They are also whole passes with interventions. The outcome holds for the layers that were called
again, and for one position or for more: a sweep that reaches further is tried again.

One whole pass computes many cells, as rows of the encoding repeated. Some models compute a row differently among others than
alone, some do not take a repeated encoding, and some interventions differ between rows: `Reweight` draws for each of them. That
is tried too, and then each cell gets a pass of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.models import VLM, Batch, Edit, Intervention, Read
from interp.models.running.resume import (
    POSITIONS_AT_ONCE,
    ROWS_AT_ONCE,
    MetricFunction,
    Versions,
    at_columns,
    changes_of,
    differing,
    run_from_layers,
    run_from_positions,
    write_versions,
)
from interp.models.running.trace import no_numbers, run_forward
from interp.patching.agreement import allowed_difference, largest_difference

# The ways to resume cells, best first, by the notes that describe them.
_WAYS = {
    "each cell was resumed from where it first differs": run_from_positions,
    "each cell was resumed from the layer where it first differs": run_from_layers,
}
_WHOLE = "each cell was a whole forward pass"
# A first sweep is divided into so many parts, from its lowest layers to its highest; a cell of each is computed in both ways.
_COMPARED = 4


def run_cells(
    vlm: VLM, row: Batch, versions: Versions, metric: MetricFunction, interventions: Sequence[Intervention], seed: int
) -> tuple[Tensor, Tensor, str]:
    """The metric of a row's own run `[1]` and of every cell `[cell]`, and a note on how the cells were computed.

    Raises `InputError` where one of them is NaN.
    """
    base, values, note = _run_cells(vlm, row, versions, metric, interventions, seed)
    if base.isnan().any() or values.isnan().any():
        raise no_numbers(vlm, row, "values of the metric")
    return base, values, note


def _run_cells(
    vlm: VLM, row: Batch, versions: Versions, metric: MetricFunction, interventions: Sequence[Intervention], seed: int
) -> tuple[Tensor, Tensor, str]:
    if interventions:
        return *run_whole(vlm, row, versions, metric, interventions), f"{_WHOLE}: interventions hold in them"
    way, note = choose_way(vlm, row, versions, seed)
    if way in _WAYS:
        try:
            return *_WAYS[way](vlm, row, versions, metric), note
        except Exception as error:  # in a layer that none of the compared cells went through
            _raise_if_out_of_memory(error)
            note = f"{_WHOLE}: {_reason(error)}"
    return *run_whole(vlm, row, versions, metric), note


def run_whole(
    vlm: VLM, row: Batch, versions: Versions, metric: MetricFunction, interventions: Sequence[Intervention] = ()
) -> tuple[Tensor, Tensor]:
    """The metric of a row's own run and of every cell, each a row of a whole forward pass.

    A cell whose states are those of the row's own run needs no pass.
    """
    different, outputs = _different(vlm, row, versions, interventions)
    base = metric(outputs["logits"]).cpu()
    values = base.expand(len(versions.cells), *base.shape[1:]).clone()
    together = len(different) > 1 and _can_repeat(vlm, row, outputs["logits"], interventions)
    at_once = max(1, min(ROWS_AT_ONCE, POSITIONS_AT_ONCE // len(row.tokens[0]))) if together else 1
    for start in range(0, len(different), at_once):
        some = different[start : start + at_once]
        several = row.repeat(len(some))
        edits = vlm.edits_of(several, interventions) + _edits(
            replace(versions, cells=[versions.cells[n] for n in some])
        )
        values[some] = metric(run_forward(vlm, several, edits)["logits"]).to(values)
    return base, values


def _edits(versions: Versions) -> list[Edit]:
    """The edits that make each row of a batch one of these cells."""
    edits = []
    for layer in sorted({cell.layer for cell in versions.cells}):
        rows = [row for row, cell in enumerate(versions.cells) if cell.layer == layer]
        change = changes_of(replace(versions, cells=[versions.cells[row] for row in rows]), rows, 0)
        edits.append(Edit(versions.site, layer, partial(write_versions, **change)))
    return edits


def _different(
    vlm: VLM, row: Batch, versions: Versions, interventions: Sequence[Intervention] = ()
) -> tuple[list[int], dict[Any, Tensor]]:
    """The numbers of the cells that are not the row's own run, and that run's logits."""
    reads = [Read(("own", layer), versions.site, layer, at_columns, (versions.columns,)) for layer in versions.states]
    outputs = run_forward(vlm, row, vlm.edits_of(row, interventions), reads)
    return differing(versions, outputs), outputs


def _can_repeat(vlm: VLM, row: Batch, logits: Tensor, interventions: Sequence[Intervention]) -> bool:
    """Whether a row gives these logits too when a batch repeats it. This is tried once with pictures and once without; with
    interventions, which may draw differently for each row, it is tried every time."""
    if interventions:
        return _is_same_repeated(vlm, row, logits, interventions)
    kind = "repeated", row.has_images
    if kind not in vlm.tried:
        vlm.tried[kind] = _is_same_repeated(vlm, row, logits)
    return vlm.tried[kind]


def _is_same_repeated(vlm: VLM, row: Batch, logits: Tensor, interventions: Sequence[Intervention] = ()) -> bool:
    try:
        twice = row.repeat(2)
        again = run_forward(vlm, twice, vlm.edits_of(twice, interventions))["logits"]
    except Exception as error:  # any error of a model that does not take a repeated encoding
        _raise_if_out_of_memory(error)
        return False
    return largest_difference(again, logits) <= allowed_difference(vlm, logits)


# Which way ---------------------------------------------------------------------------------------------------------------


def choose_way(vlm: VLM, row: Batch, versions: Versions, seed: int) -> tuple[str, str]:
    """The way to compute cells of this kind on this model, which is tried once, and the note that describes it."""
    behind = ("answered",) if row.tail > 1 else ()
    kind, reach = ("resumed", versions.site, row.has_images, *behind), _reach(row, versions)
    known = vlm.tried.get(kind, {})
    covering = [outcome for (lowest, last), outcome in known.items() if lowest <= reach[0] and last <= reach[1]]
    if covering:
        return covering[0]
    few = _draw_cells(vlm, row, versions, seed)
    if not few.cells:  # nothing to run, which says nothing about the next row
        return _WHOLE, "no cell differs from the run it is written into"
    _, whole = run_whole(vlm, row, few, full_logits)
    outcome = _first_that_agrees(vlm, row, few, whole)
    vlm.tried[kind] = {**known, (reach[0], _reach(row, few)[1]): outcome}
    return outcome


def _reach(row: Batch, versions: Versions) -> tuple[int, bool]:
    """What these versions run again: the lowest layer, and whether they run nothing before those that are read out."""
    first = min(int(versions.groups[group].min()) for group in {cell.group for cell in versions.cells})
    return min(versions.states), first == len(row.tokens[0]) - row.tail


def _draw_cells(vlm: VLM, row: Batch, versions: Versions, seed: int) -> Versions:
    """A few cells that differ from the row's own run, lower layers first: one of the lowest layer, one of the leftmost
    position, and random ones of all layers."""
    different, _ = _different(vlm, row, versions)
    different.sort(key=lambda number: versions.cells[number].layer)
    count = min(_COMPARED, len(different))
    shares = torch.rand(count, dtype=torch.float32, generator=torch.Generator().manual_seed(seed)).tolist()
    numbers = [different[int((part + share) * len(different) / count)] for part, share in enumerate(shares)]
    begins = [int(group.min()) for group in versions.groups]
    ends = [different[0], min(different, key=lambda n: begins[versions.cells[n].group])] if different else []
    cells = [versions.cells[number] for number in dict.fromkeys([*ends, *numbers[1:]])]
    return replace(versions, cells=sorted(cells, key=lambda cell: cell.layer))


def _first_that_agrees(vlm: VLM, row: Batch, versions: Versions, whole: Tensor) -> tuple[str, str]:
    """The first way that gives these cells the logits of whole passes, and a note with the reasons against better ways."""
    reasons: list[str] = []
    for way, run in _WAYS.items():
        try:
            difference = largest_difference(run(vlm, row, versions, full_logits)[1], whole)
        except Exception as error:  # any error of a layer that only its model can call
            _raise_if_out_of_memory(error)
            reasons.append(_reason(error))
            continue
        if difference <= allowed_difference(vlm, whole):
            return way, ": ".join([way, *reasons[:1]])
        reasons.append(
            f"logits of resumed cells were off by {difference:.2g}, {allowed_difference(vlm, whole):.2g} was allowed"
        )
    return _WHOLE, f"{_WHOLE}: {'; '.join(dict.fromkeys(reasons))}"


def _reason(error: Exception) -> str:
    """The last line of an error, as a reason not to call layers in a certain way."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return line if isinstance(error, InterpError) else f"its layers cannot be called so ({line[:200]})"


def full_logits(logits):
    """Plain torch, run inside the trace: the logits themselves."""
    return logits.float()


def _raise_if_out_of_memory(error: Exception) -> None:
    """Raise this error if memory ran out, which says nothing about the model."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        raise error
