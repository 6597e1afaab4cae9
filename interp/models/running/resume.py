"""Resuming a run: many versions of one forward pass, each computed from where it first differs.

A sweep changes one state at a time: at a layer l and a position p. Below l nothing changes, and under a causal mask nothing
left of p does. So the model runs once, unchanged, and keeps what enters each layer and the keys and values made there; a
version is then made by calling the layers from l on again, for the positions from p on, with the kept keys and values
standing for the rest. The image tower, the layers below and the positions left of p are not run again.

*Where a version begins.* Not every mask is causal: in an image block, or in a prefix, p is seen from its left. The leftmost
position that may differ is read from the masks themselves (`leftmost`), so windows, blocks and prefixes need no word here.

*How versions are run together.* Those that begin at one position are rows of one batch, into which the rows of layer l come
when the others have reached it. A sweep over all layers of a column is so one pass from bottom to top.

*What is left out at the end.* The readout looks at the last position alone. In the last layer the others are needed for
their keys and values only, so the layer is left as soon as it has these, and called again for the last position.

*What the model adds between its layers*, as DeepStack does, is the same in every version and added to it again.

*What is assumed of a layer:* that it is a function of the states given and of the arguments of its call, that these lie
along the sequence in their leftmost axis of its length, and that its keys and values go through a cache of transformers'
kind, `update(keys, values, layer)`. Without the last two a run can still be resumed from a layer, at all positions, as it
must be where a layer mixes positions by a recurrence or a convolution. Nothing of this is trusted: whoever resumes runs
compares some with whole forward passes first.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from torch import Tensor

from interp.errors import LayoutError
from interp.models.batches.encodings import explained
from interp.models.running.masks import PATTERNED, as_allowed, none_is_causal
from interp.models.running.places import CALL, place
from interp.models.running.replay import About, Keys, Run, call_changed, call_for_last, call_layer, with_cache
from interp.models.running.structure import resolve
from interp.models.running.tower_places import argument
from interp.models.running.trace import Edit, Read, follow, let_go, logits_wanted, schedule, whole

if TYPE_CHECKING:
    from interp.models.batches.batch import Batch
    from interp.models.running.core import Core

# Versions of one pass, and positions of all of them together: the memory that a pass may take.
ROWS_AT_ONCE = 64
POSITIONS_AT_ONCE = 16_384
# Sites that hold what enters or leaves a layer: they are changed between two layers, the others inside of one.
BETWEEN = ("resid_pre", "resid_post")


Measure = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Cell:
    """One version of a run: the states of a layer's site at a group of positions are other ones, of one head or of all."""

    layer: int
    group: int
    head: int | None = None


@dataclass(frozen=True)
class Versions:
    """The cells of a sweep over one row: `groups` are their positions (Int), `given[layer]` the states to write there,
    Float `[position, ...]` at the positions of `columns`, which are those of all groups in order."""

    site: str
    cells: Sequence[Cell]
    groups: Sequence[Tensor]
    columns: Tensor
    given: Mapping[int, Tensor]


def run_from_positions(core: Core, batch: Batch, versions: Versions, measure: Measure) -> tuple[Tensor, Tensor]:
    """The measure of one row's untouched run `[1, ...]` and of each version `[cell, ...]`, each version resumed from the
    layer and the position where it first differs.

    `measure` maps logits `[version, vocab]` to `[version, ...]` and is called inside the trace. A version whose states are
    those of the untouched run is not run. Raises `LayoutError` for a layer without softmax attention or that takes no
    cache, `InputError` for masks that cannot be read, and whatever a layer raises.
    """
    about = {layer: _about(core, layer) for layer in _layers_run(core, versions)}
    keys = Keys()
    edits = [Edit(CALL, layer, with_cache, (keys, about[layer])) for layer in about]
    return _run(core, batch, versions, measure, about, edits, keys.of)


def run_from_layers(core: Core, batch: Batch, versions: Versions, measure: Measure) -> tuple[Tensor, Tensor]:
    """The same, each version resumed from the layer where it first differs, at all positions.

    For layers that mix positions otherwise than by softmax attention, or keep more of the past than keys and values.
    """
    about = {layer: _about_call(core, layer) for layer in _layers_run(core, versions)}
    return _run(core, batch, versions, measure, about, [], None)


def _run(
    core: Core,
    batch: Batch,
    versions: Versions,
    measure: Measure,
    about: dict[int, About],
    edits: Sequence[Edit],
    keys: Any,
) -> tuple[Tensor, Tensor]:
    site = versions.site
    reads = [Read(("own", n), site, n, at_columns, (versions.columns,)) for n in versions.given]
    for layer in about:
        reads.append(Read(("call", layer), CALL, layer, as_it_is))
        reads.append(Read(("enters", layer), "resid_pre", layer, whole))
        reads.append(Read(("leaves", layer), "resid_post", layer, whole))
    steps = schedule(core, 1, edits, reads)
    places = {} if site in BETWEEN else {layer: place(core, 1, layer, site) for layer in versions.given}
    sweep = (site, as_tuples(versions.cells), versions.groups, versions.columns, versions.given)
    inputs, _ = logits_wanted(core, batch, "last", touched=True)
    model, envoys, readout = core.nnsight, {layer: core.layers[layer] for layer in about}, core.readout
    limits = (ROWS_AT_ONCE, POSITIONS_AT_ONCE)
    with let_go(), explained(), torch.no_grad(), model.trace(**inputs, **core.trace_options):
        saved = nnsight.save({})
        seen: dict = {}
        follow(steps, seen)
        saved["base"] = measure(model.output.logits[:, -1])
        run = Run(envoys, about, places, seen, keys)
        saved["values"] = measure_versions(run, readout, measure, saved["base"], limits, *sweep)
    return saved["base"].cpu(), saved["values"]


def as_tuples(cells: Sequence[Cell]) -> list[tuple[int, int, int | None]]:
    """Cells as plain values, which a trace can be sent with."""
    return [(cell.layer, cell.group, cell.head) for cell in cells]


def _layers_run(core: Core, versions: Versions) -> range:
    """The layers from the lowest that states are given for."""
    return range(min(versions.given), core.structure.n_layers)


def _about(core: Core, layer: int) -> About:
    """What must be known of a layer to call it from a position on."""
    kind, about = core.structure.attention[layer], _about_call(core, layer)
    if kind not in PATTERNED:
        raise LayoutError(f"layer {layer} has {kind} in place of softmax attention")
    if about.cache is None:
        raise LayoutError(f"layer {layer} takes no keys and values that were kept")
    if about.mask is None:
        raise LayoutError(f"layer {layer} takes no mask")
    attention = resolve(core.model, f"{core.structure.layers}.{layer}.{core.structure.attn[layer]}")
    return replace(about, causal=none_is_causal(attention))


def _about_call(core: Core, layer: int) -> About:
    """The names of what a layer is called with."""
    module = resolve(core.model, f"{core.structure.layers}.{layer}")
    names = tuple(inspect.signature(type(module).forward).parameters)[1:]
    cache = next((name for name in names if name.startswith(("past_key_value", "cache_params"))), None)
    return About(names, cache, next((name for name in names if name.endswith("mask")), None))


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def as_it_is(value):
    """The value itself, which must not be changed."""
    return value


def at_columns(value, columns):
    """The selected positions of a single row."""
    return value[0, columns.to(value.device)]


def masks_of(run):
    """Which query sees which key in some head of the single row: Bool `[query, key]` of each mask that layers are called
    with. Most layers share one, which is looked at once."""
    masks = {}
    for layer, about in run.about.items():
        args, kwargs = run.seen["call", layer]
        mask = argument(args, kwargs, about.mask, about.names.index(about.mask))
        if (id(mask), about.causal) not in masks:
            allowed = as_allowed(mask, run.seen["enters", layer], about.causal)
            masks[id(mask), about.causal] = allowed[0].any(dim=0)
    return list(masks.values())


def leftmost(masks):
    """For each position the first that may differ when it does, as ints, by the masks `[query, key]` of some layers.

    A position that differs takes with it all that see it, and whatever stands between.
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


def changes_of(cells, rows, start, groups, columns, given):
    """What `write_versions` is given for these cells, which are those `rows` of a pass that begins at `start`."""
    rows = [torch.full_like(groups[group], row) for row, (_, group, _) in zip(rows, cells, strict=True)]
    places = [groups[group] for _, group, _ in cells]
    which = [torch.searchsorted(columns, each) for each in places]
    if cells[0][2] is None:
        heads, new = None, [given[layer][at] for (layer, _, _), at in zip(cells, which, strict=True)]
    else:
        heads = torch.cat([torch.full_like(groups[group], head) for _, group, head in cells])
        new = [given[layer][at, head] for (layer, _, head), at in zip(cells, which, strict=True)]
    return {"rows": torch.cat(rows), "columns": torch.cat(places) - start, "heads": heads, "new": torch.cat(new)}


def differing(cells, groups, columns, given, seen):
    """The numbers of the cells whose states are not those of the untouched run."""
    moved = {}
    for layer, states in given.items():
        own = seen["own", layer]
        moved[layer] = (states.to(own.device, own.dtype) != own).flatten(2 if own.ndim > 2 else 1).any(dim=-1).cpu()
    found = []
    for number, (layer, group, head) in enumerate(cells):
        at = moved[layer][torch.searchsorted(columns, groups[group])]
        if (at if head is None else at[:, head]).any():
            found.append(number)
    return found


def run_pass(run, readout, site, cells, start, sweep):
    """The logits `[cell, vocab]` of versions that begin at one position, those of lower layers first."""
    lowest = cells[0][0]
    hidden = run.seen["enters", lowest][:0, start:]
    for layer in range(lowest, run.last + 1):
        coming = [cell for cell in cells if cell[0] == layer]
        if site == "resid_post":
            hidden = call_some(run, layer, hidden, start)
            hidden = with_changed(hidden, run.seen["leaves", layer], coming, start, sweep)
        elif site == "resid_pre":
            hidden = with_changed(hidden, run.seen["enters", layer], coming, start, sweep)
            hidden = call_some(run, layer, hidden, start)
        elif coming:
            before = len(hidden)
            hidden = with_more(hidden, run.seen["enters", layer], len(coming), start)
            made = changes_of(coming, range(before, len(hidden)), start, *sweep)
            hidden = call_changed(run, layer, hidden, start, partial(write_versions, **made))
        else:
            hidden = call_some(run, layer, hidden, start)
        added = run.added.get(layer + 1)
        hidden = hidden if added is None else hidden + added[:, start:].to(hidden.device)
    return readout.logits(hidden[:, -1])


def call_some(run, layer, hidden, start):
    """What leaves a layer, of the last one only what is read out."""
    if not len(hidden):
        return hidden
    if layer == run.last and run.keys is not None and run.length - start > 1:
        return call_for_last(run, layer, hidden, start)
    return call_layer(run, layer, hidden, start, run.keys)


def with_more(hidden, states, count, start):
    """The versions so far, and so many more of the states of the untouched run."""
    return torch.cat([hidden, states[:, start:].to(hidden.device).expand(count, -1, -1)])


def with_changed(hidden, states, coming, start, sweep):
    """The versions so far, and behind them those that come with a change to these states of the untouched run."""
    if not coming:
        return hidden
    new = with_more(states[:0, start:], states, len(coming), start)
    new = write_versions(new, **changes_of(coming, range(len(coming)), start, *sweep))
    # Behind the last layer the versions have the last position alone.
    return torch.cat([hidden, new[:, -hidden.shape[1] :].to(hidden.device)]) if len(hidden) else new


def measure_versions(run, readout, measure, base, limits, site, cells, groups, columns, given):
    """The measure of each cell, `[cell, ...]`; the cells that do not differ have that of the untouched run."""
    given = {layer: states.to(run.seen["own", layer].device) for layer, states in given.items()}
    numbers = differing(cells, groups, columns, given, run.seen)
    values = base.cpu().expand(len(cells), *base.shape[1:]).clone()
    everywhere = run.keys is None
    starts = [0] * run.length if everywhere else leftmost(masks_of(run))
    passes = defaultdict(list)
    for number in sorted(numbers, key=lambda number: cells[number][0]):
        passes[starts[int(groups[cells[number][1]].min())]].append(number)
    for start, members in passes.items():
        rows = max(1, min(limits[0], limits[1] // (run.length - start)))
        for begin in range(0, len(members), rows):
            some = members[begin : begin + rows]
            few = [cells[number] for number in some]
            values[some] = measure(run_pass(run, readout, site, few, start, (groups, columns, given))).to(values)
    return values
