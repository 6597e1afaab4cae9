"""Resuming a run: many versions of one forward pass, each computed from where it first differs.

A sweep changes one state at a time: at a layer l and a position p. Nothing changes below l, and under a causal mask nothing
changes left of p. So the model runs once, unchanged, and what enters each layer and the keys and values made there are
stored. A version is then computed by calling the layers from l on again, for the positions from p on, with the stored keys
and values in the place of the rest. The image tower, the layers below and the positions left of p are not run again.

*Where a version begins.* Not every mask is causal: in an image block, or in a prefix, p is seen from its left. The leftmost
position that may differ is read from the masks themselves (`leftmost`), so windows, blocks and prefixes need no special case.

*How versions are run together.* Those that begin at one position are rows of one batch. The rows of layer l join the batch
when the others have reached that layer, so a sweep over all layers of a column is one pass from bottom to top.

*What is left out at the end.* The readout takes the last position alone, or those that judge an answer. In the last layer the
others are needed for their keys and values only, so the layer is left as soon as it has these, and called again for those.

*What the model adds between its layers*, as DeepStack does, is the same in every version and added to it again.

*What is assumed of a layer:* that it is a function of its states and of the arguments of its call, that these have the
sequence in their leftmost axis of its length, and that its keys and values go through a cache of transformers' kind,
`update(keys, values, layer)`. Without the last two a run can still be resumed from a layer, at all positions, which is
needed where a layer mixes positions by a recurrence or a convolution. None of this is trusted: whoever resumes runs compares
some with whole forward passes first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import nnsight
import torch
from torch import Tensor

from interp.errors import LayoutError
from interp.models.running.masks import PATTERNED, as_allowed, none_is_causal
from interp.models.running.places import CACHE, CALL, MASK, find_argument, place
from interp.models.running.replay import Cache, Run, Signature, call_changed, call_for_last, call_layer, with_cache
from interp.models.running.steps import Edit, Read, follow, schedule, whole
from interp.models.running.structure import resolve
from interp.models.running.surroundings import around_run
from interp.models.running.trace import inputs_for_logits

if TYPE_CHECKING:
    from interp.models.batches.batch import Batch
    from interp.models.running.core import Core

# Versions of one pass, and positions of all of them together: the memory that a pass may take.
ROWS_AT_ONCE = 64
POSITIONS_AT_ONCE = 16_384
# Sites that hold what enters or leaves a layer: they are changed between two layers, the others inside one.
BETWEEN = ("resid_pre", "resid_post")
MetricFunction = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Cell:
    """One version of a run: the states of a layer's site at a group of positions are other ones, of one head or of all."""

    layer: int
    group: int
    head: int | None = None


@dataclass(frozen=True)
class Versions:
    """The cells of a sweep over one row. `groups` are their positions (Int), and `states[layer]` are the states to write,
    Float `[position, ...]` at the positions of `columns`, which are those of all groups in order."""

    site: str
    cells: Sequence[Cell]
    groups: Sequence[Tensor]
    columns: Tensor
    states: Mapping[int, Tensor]


def run_from_positions(core: Core, batch: Batch, versions: Versions, measure: MetricFunction) -> tuple[Tensor, Tensor]:
    """The measure of one row's untouched run `[1, ...]` and of each version `[cell, ...]`, each version resumed from the
    layer and the position where it first differs.

    `measure` maps logits `[version, vocab]`, of an answered batch `[version, token, vocab]`, to `[version, ...]` and is called
    inside the trace. A version whose states are those of the untouched run is not run. Raises `LayoutError` for a layer
    without softmax attention or that takes no cache, `InputError` for masks that cannot be read, and whatever a layer raises.
    """
    return _run(core, batch, versions, measure, Cache())


def run_from_layers(core: Core, batch: Batch, versions: Versions, measure: MetricFunction) -> tuple[Tensor, Tensor]:
    """The same, each version resumed from the layer where it first differs, at all positions.

    For layers that mix positions otherwise than by softmax attention, or keep more of the past than keys and values.
    """
    return _run(core, batch, versions, measure, None)


def _run(
    core: Core, batch: Batch, versions: Versions, measure: MetricFunction, cache: Cache | None
) -> tuple[Tensor, Tensor]:
    """`cache` records keys and values in the untouched run, None where versions are resumed from a layer."""
    site, layers = versions.site, range(min(versions.states), core.structure.n_layers)
    signatures = {layer: _signature(core, layer, cache is not None) for layer in layers}
    edits = [] if cache is None else [Edit(CALL, n, with_cache, (cache, signatures[n].cache)) for n in layers]
    reads = [Read(("own", n), site, n, at_columns, (versions.columns,)) for n in versions.states]
    around = {"call": (CALL, uncopied), "enters": ("resid_pre", whole), "leaves": ("resid_post", whole)}
    reads += [Read((name, n), at, n, function) for n in layers for name, (at, function) in around.items()]
    steps = schedule(core, 1, edits, reads)
    places = {} if site in BETWEEN else {layer: place(core, 1, layer, site) for layer in versions.states}
    inputs, tail = inputs_for_logits(core, batch, "last", inspected=True)[0], batch.tail
    model, envoys, readout = core.nnsight, {layer: core.layers[layer] for layer in layers}, core.readout
    keys = None if cache is None else cache.keys
    with around_run(core, inputs, edits, reads), model.trace(**inputs, **core.trace_options):
        saved = nnsight.save({})
        values: dict = {}
        follow(steps, values)
        saved["base"] = measure(at_end(model.output.logits, tail))
        run = Run(envoys, signatures, places, values, keys, tail)
        saved["values"] = measure_versions(run, readout, measure, saved["base"], versions)
    return saved["base"].cpu(), saved["values"]


def _signature(core: Core, layer: int, from_positions: bool) -> Signature:
    """The arguments of a layer, to call it from a position on or at all positions."""
    path, kind = f"{core.structure.layers}.{layer}", core.structure.attention[layer]
    module = resolve(core.model, path)
    cache, mask = (find_argument(module, name) for name in (CACHE, MASK))
    if not from_positions:
        return Signature(cache, mask)
    if kind not in PATTERNED:
        raise LayoutError(f"layer {layer} has {kind} instead of softmax attention")
    if cache is None:
        raise LayoutError(f"layer {layer} takes no cache of keys and values")
    if mask is None:
        raise LayoutError(f"layer {layer} takes no mask")
    return Signature(cache, mask, none_is_causal(resolve(core.model, f"{path}.{core.structure.attn[layer]}")))


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def uncopied(value):
    """The value itself, which must not be changed."""
    return value


def at_end(value, count):
    """The last position, without an axis for it, or so many last ones."""
    return value[:, -1] if count == 1 else value[:, -count:]


def at_columns(value, columns):
    """The selected positions of a single row."""
    return value[0, columns.to(value.device)]


def masks_of(run):
    """Which query sees which key in some head of the single row: Bool `[query, key]` of each mask that layers are called
    with. Most layers share one, which is read once."""
    masks = {}
    for layer, signature in run.signatures.items():
        mask = signature.mask.of(*run.values["call", layer])
        if (id(mask), signature.causal) not in masks:
            allowed = as_allowed(mask, run.values["enters", layer], signature.causal)
            masks[id(mask), signature.causal] = allowed[0].any(dim=0)
    return list(masks.values())


def leftmost(masks):
    """For each position the first that may differ when it does, as ints, by the masks `[query, key]` of some layers.

    Where a position differs, all that see it differ, and all between are taken along.
    """
    length = len(masks[0])
    # The first query that sees each key, by how far it is from the end: 0 where none does.
    # Layers may lie on different devices, and their masks with them.
    sees = torch.stack([(mask.any(dim=0) * (length - mask.int().argmax(dim=0))).cpu() for mask in masks]).amax(dim=0)
    nearest = torch.minimum(length - sees, torch.arange(length))
    reach = nearest.flip(0).cummin(dim=0).values.flip(0).tolist()
    starts = []
    for start in range(length):
        while reach[start] < start:
            start = reach[start]
        starts.append(start)
    return starts


def write_versions(value, rows, columns, heads, new):
    """`new` at these positions of these versions, of one head each where `heads` are given."""
    value = value.clone()
    index = (rows, columns) if heads is None else (rows, columns, heads)
    value[tuple(each.to(value.device) for each in index)] = new.to(value.device, value.dtype)
    return value


def of_cell(values, versions, cell):
    """The values of one cell, from those at all columns of its layer: `[position, ...]`, of its head where it has one."""
    value = values[cell.layer][torch.searchsorted(versions.columns, versions.groups[cell.group])]
    return value if cell.head is None else value[:, cell.head]


def changes_of(versions, rows, start):
    """The arguments of `write_versions` for the cells of `versions`, which are those `rows` of a pass that begins at
    `start`."""
    cells, columns = versions.cells, [versions.groups[cell.group] for cell in versions.cells]
    rows = [torch.full_like(group, row) for row, group in zip(rows, columns, strict=True)]
    heads = [torch.full_like(group, cell.head or 0) for cell, group in zip(cells, columns, strict=True)]
    return {
        "rows": torch.cat(rows),
        "columns": torch.cat(columns) - start,
        "heads": None if cells[0].head is None else torch.cat(heads),
        "new": torch.cat([of_cell(versions.states, versions, cell) for cell in cells]),
    }


def differing(versions, values):
    """The numbers of the cells whose states are not those of the untouched run."""
    moved = {}
    for layer, states in versions.states.items():
        own = values["own", layer]
        moved[layer] = (states.to(own.device, own.dtype) != own).flatten(2 if own.ndim > 2 else 1).any(dim=-1).cpu()
    return [number for number, cell in enumerate(versions.cells) if of_cell(moved, versions, cell).any()]


def run_pass(run, readout, versions, start):
    """The logits `[cell, vocab]` of versions that begin at one position, those of lower layers first."""
    lowest = versions.cells[0].layer
    hidden = run.values["enters", lowest][:0, start:]
    for layer in range(lowest, run.last + 1):
        coming = replace(versions, cells=[cell for cell in versions.cells if cell.layer == layer])
        if versions.site == "resid_pre":
            hidden = with_changed(hidden, run.values["enters", layer], coming, start)
        if versions.site in BETWEEN or not coming.cells:
            hidden = call_some(run, layer, hidden, start)
        else:
            before = len(hidden)
            hidden = with_more(hidden, run.values["enters", layer], len(coming.cells), start)
            changes = changes_of(coming, range(before, len(hidden)), start)
            hidden = call_changed(run, layer, hidden, start, partial(write_versions, **changes))
        if versions.site == "resid_post":
            hidden = with_changed(hidden, run.values["leaves", layer], coming, start)
        added = run.added.get(layer + 1)
        hidden = hidden if added is None else hidden + added[:, start:].to(hidden.device)
    return readout.logits(at_end(hidden, run.tail))


def call_some(run, layer, hidden, start):
    """What leaves a layer, of the last one only what is read out."""
    if not len(hidden):
        return hidden
    if layer == run.last and run.keys is not None and run.length - start > run.tail:
        return call_for_last(run, layer, hidden, start)
    return call_layer(run, layer, hidden, start, run.keys)


def with_more(hidden, states, count, start):
    """The versions so far, and so many more of the states of the untouched run."""
    return torch.cat([hidden, states[:, start:].to(hidden.device).expand(count, -1, -1)])


def with_changed(hidden, states, coming, start):
    """The versions so far, and after them those that begin here with a change to these states of the untouched run."""
    if not coming.cells:
        return hidden
    count = len(coming.cells)
    new = write_versions(states[:, start:].expand(count, -1, -1), **changes_of(coming, range(count), start))
    # After the last layer the versions have the positions that are read out alone.
    return torch.cat([hidden, new[:, -hidden.shape[1] :].to(hidden.device)]) if len(hidden) else new


def measure_versions(run, readout, measure, base, versions):
    """The measure of each cell, `[cell, ...]`; the cells that do not differ have that of the untouched run, `base`."""
    states = {layer: new.to(run.values["own", layer].device) for layer, new in versions.states.items()}
    cells, versions = versions.cells, replace(versions, states=states)
    values = base.cpu().expand(len(cells), *base.shape[1:]).clone()
    starts = [0] * run.length if run.keys is None else leftmost(masks_of(run))
    passes = defaultdict(list)
    for number in sorted(differing(versions, run.values), key=lambda number: cells[number].layer):
        passes[starts[int(versions.groups[cells[number].group].min())]].append(number)
    for start, members in passes.items():
        rows = max(1, min(ROWS_AT_ONCE, POSITIONS_AT_ONCE // (run.length - start)))
        for begin in range(0, len(members), rows):
            numbers = members[begin : begin + rows]
            some = replace(versions, cells=[cells[number] for number in numbers])
            values[numbers] = measure(run_pass(run, readout, some, start)).to(values)
    return values
