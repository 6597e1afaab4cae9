"""The cells of a sweep over one row: each is what the metric becomes when a few states are other ones.

There are three ways to compute them, which must give the same. Cells are *resumed* (`interp.models.running.resume`) from the
layer and the position where they first differ; or from the layer, at all positions; or each is a *whole* forward pass, which
assumes nothing of layers. A model's first sweep of a kind, a site with or without pictures, computes a few cells in the
first way and as whole passes and compares all logits. Where they disagree, or a layer cannot be called so, the second
way is tried, and where that fails cells are whole passes, as they are where interventions hold in all runs. What was seen
holds for the layers that were called again, and for one position or for more: a sweep that reaches further is tried anew.

Whole passes are made of many cells at once, as rows of the encoding repeated. Not every model gives a row the same among
others as alone, nor takes an encoding repeated, nor do all interventions: `Reweight` draws for each row. That is tried too,
and where it is so one cell is run at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from interp.errors import InterpError
from interp.models import VLM, Batch
from interp.models.layout.additions import tolerance
from interp.models.running.resume import (
    POSITIONS_AT_ONCE,
    ROWS_AT_ONCE,
    Measure,
    Versions,
    at_columns,
    changes_of,
    differing,
    run_from_layers,
    run_from_positions,
    write_versions,
)
from interp.models.running.steps import Edit, Read
from interp.models.running.trace import run_forward
from interp.models.vlm import Intervention

# The ways to resume cells, best first, and what is said of them.
_WAYS = {
    "each cell was resumed from where it first differs": run_from_positions,
    "each cell was resumed from the layer where it first differs": run_from_layers,
}
_WHOLE = "each cell was a whole forward pass"
# How many parts of a first sweep, from its lowest layers to its highest, have a cell that is computed in both ways.
_COMPARED = 4
# No logit is as large as what stands for a token that is ruled out, in any precision.
_RULED_OUT = 6e4


def run_cells(
    vlm: VLM, row: Batch, versions: Versions, measure: Measure, interventions: Sequence[Intervention], seed: int
) -> tuple[Tensor, Tensor, str]:
    """The measure of a row's own run `[1]` and of every cell `[cell]`, and how the cells were computed."""
    if interventions:
        return *run_whole(vlm, row, versions, measure, interventions), f"{_WHOLE}: interventions hold in them"
    way, note = way_of(vlm, row, versions, seed)
    if way in _WAYS:
        try:
            return *_WAYS[way](vlm, row, versions, measure), note
        except Exception as error:  # of a layer that none of the cells compared went through in this way
            _raise_if_full(error)
            note = f"{_WHOLE}: {_said(error)}"
    return *run_whole(vlm, row, versions, measure), note


def run_whole(
    vlm: VLM, row: Batch, versions: Versions, measure: Measure, interventions: Sequence[Intervention] = ()
) -> tuple[Tensor, Tensor]:
    """The measure of a row's own run and of every cell, each a row of a whole forward pass.

    A cell whose states are those of the row's own run needs none.
    """
    different, seen = _different(vlm, row, versions, interventions)
    base = measure(seen["logits"]).cpu()
    values = base.expand(len(versions.cells), *base.shape[1:]).clone()
    together = len(different) > 1 and _repeats(vlm, row, seen["logits"], interventions)
    at_once = max(1, min(ROWS_AT_ONCE, POSITIONS_AT_ONCE // len(row.tokens[0]))) if together else 1
    for start in range(0, len(different), at_once):
        some = different[start : start + at_once]
        several = row.repeat(len(some))
        edits = vlm.edits_of(several, interventions) + _edits(
            replace(versions, cells=[versions.cells[n] for n in some])
        )
        values[some] = measure(run_forward(vlm, several, edits)["logits"]).to(values)
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
    seen = run_forward(vlm, row, vlm.edits_of(row, interventions), reads)
    return differing(versions, seen), seen


def _repeats(vlm: VLM, row: Batch, logits: Tensor, interventions: Sequence[Intervention]) -> bool:
    """Whether a row gives these logits too when it stands in a batch several times: tried once with pictures and without,
    and under interventions, which may draw something else for each row, every time."""
    if interventions:
        return _same_twice(vlm, row, logits, interventions)
    kind = "repeated", row.has_images
    if kind not in vlm.tried:
        vlm.tried[kind] = _same_twice(vlm, row, logits)
    return vlm.tried[kind]


def _same_twice(vlm: VLM, row: Batch, logits: Tensor, interventions: Sequence[Intervention] = ()) -> bool:
    try:
        twice = row.repeat(2)
        again = run_forward(vlm, twice, vlm.edits_of(twice, interventions))["logits"]
    except Exception as error:  # whatever a model says to an encoding that it does not take repeated
        _raise_if_full(error)
        return False
    return _off(again, logits) <= _allowed(vlm, logits)


# Which way ---------------------------------------------------------------------------------------------------------------


def way_of(vlm: VLM, row: Batch, versions: Versions, seed: int) -> tuple[str, str]:
    """The way in which cells of this kind are computed on this model, tried once, and what is to be said of it."""
    kind, reach = ("resumed", versions.site, row.has_images), _reach(row, versions)
    known = vlm.tried.get(kind, {})
    covering = [found for (lowest, last), found in known.items() if lowest <= reach[0] and last <= reach[1]]
    if covering:
        return covering[0]
    few = _drawn(vlm, row, versions, seed)
    if not few.cells:  # there is nothing to run, and nothing is known of the next row
        return _WHOLE, "no cell differs from the run it is written into"
    _, whole = run_whole(vlm, row, few, in_full)
    found = _first_that_agrees(vlm, row, few, whole)
    vlm.tried[kind] = {**known, (reach[0], _reach(row, few)[1]): found}
    return found


def _reach(row: Batch, versions: Versions) -> tuple[int, bool]:
    """How much is run again for these versions: the lowest layer, and whether it is the last position alone."""
    first = min(int(versions.groups[group].min()) for group in {cell.group for cell in versions.cells})
    return min(versions.states), first == len(row.tokens[0]) - 1


def _drawn(vlm: VLM, row: Batch, versions: Versions, seed: int) -> Versions:
    """A few cells that differ from the row's own run, lower layers first: one of the lowest layer, random ones from there to
    the highest, and one of the leftmost position."""
    different, _ = _different(vlm, row, versions)
    different.sort(key=lambda number: versions.cells[number].layer)
    count = min(_COMPARED, len(different))
    shares = torch.rand(count, generator=torch.Generator().manual_seed(seed)).tolist()
    numbers = [different[int((part + share) * len(different) / count)] for part, share in enumerate(shares)]
    begins = [int(group.min()) for group in versions.groups]
    ends = [different[0], min(different, key=lambda n: begins[versions.cells[n].group])] if different else []
    cells = [versions.cells[number] for number in dict.fromkeys([*ends, *numbers[1:]])]
    return replace(versions, cells=sorted(cells, key=lambda cell: cell.layer))


def _first_that_agrees(vlm: VLM, row: Batch, versions: Versions, whole: Tensor) -> tuple[str, str]:
    """The first way that gives these cells the logits of whole passes, and the reasons against those before it."""
    against: list[str] = []
    for way, run in _WAYS.items():
        try:
            off = _off(run(vlm, row, versions, in_full)[1], whole)
        except Exception as error:  # whatever a layer says to being called otherwise than by its model
            _raise_if_full(error)
            against.append(_said(error))
            continue
        if off <= _allowed(vlm, whole):
            return way, ": ".join([way, *against[:1]])
        against.append(f"cells resumed were off by {off:.2g} of logits, {_allowed(vlm, whole):.2g} was allowed")
    return _WHOLE, f"{_WHOLE}: {'; '.join(dict.fromkeys(against))}"


def _said(error: Exception) -> str:
    """What speaks against calling layers so, in a line."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return said if isinstance(error, InterpError) else f"its layers cannot be called so ({said[:200]})"


def in_full(logits):
    """Plain torch, run inside the trace: the logits themselves."""
    return logits.float()


def _off(found: Tensor, expected: Tensor) -> float:
    """The largest difference; tokens that a model rules out have the same lowest number in both, which may be infinite."""
    off = torch.where(found == expected, 0.0, (found.float() - expected.float()).abs())
    return off.nan_to_num(nan=torch.inf).max().item()


def _allowed(vlm: VLM, logits: Tensor) -> float:
    """How far off logits of this size may be in the model's precision."""
    sizes = logits.float().abs()
    return 10 * tolerance(vlm.dtype) * sizes[sizes < _RULED_OUT].max().item()


def _raise_if_full(error: Exception) -> None:
    """Memory that ran out says nothing about the model."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        raise error
