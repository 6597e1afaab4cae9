"""The one place that runs a trace: edits are applied and states are read in the order the model computes them.

A method says *what* it wants as `Edit`s and `Read`s on sites of layers; `run_forward` and `run_generate` put them in
forward order and carry them out in one nnsight trace, with nothing leaving it but what was asked for.

What runs inside the trace is plain torch: the functions of an edit or a read take a tensor (and the tensors they were
given) and return one, so the trace can be shipped to a server on which this package is not installed.
"""

from __future__ import annotations

import gc
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from torch import Tensor

from interp.errors import InputError
from interp.models.batches.encodings import explained
from interp.models.running.attention import eager, eager_tower
from interp.models.running.places import (
    BEFORE_LAYERS,
    WEIGHTS,
    first,
    kept_for,
    listed,
    place,
    put,
    take,
    when,
    when_rebuilt,
)

if TYPE_CHECKING:
    from interp.models.batches.batch import Batch
    from interp.models.running.core import Core


@dataclass(frozen=True)
class Edit:
    """Change `site` of `layer`: its value becomes `function(value, *context, *arguments)`, a new tensor of the same shape.

    `context` names sites of the same layer that are computed before; the function gets their values, after every edit there.
    It may also name "past", the number of positions before the first that the value holds: 0 but in generation, where each
    new token comes alone.

    An edit of "pattern" changes what the heads give: where a query's weights change, z becomes the mean of v with the
    new ones, at the output of the attention. It needs what a read of "pattern" needs, and a layer in which that mean
    was proved to be z. So does one of "vision_pattern" in a block of the image tower. "vision_mask" is read alone.
    """

    site: str
    layer: int
    function: Callable[..., Tensor]
    arguments: tuple[Any, ...] = ()
    context: tuple[str, ...] = ()


@dataclass(frozen=True)
class Read:
    """Take `function(value, *arguments)` of `site` of `layer`, after every edit there, out of the trace under `key`."""

    key: Any
    site: str
    layer: int
    function: Callable[..., Tensor]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Shapes:
    """The shape of what a module was given first and those of all that it gave, on one visit; `listed` where that was a
    list of features."""

    given: tuple[int, ...] | None
    gave: list[tuple[int, ...]]
    listed: bool


@dataclass(frozen=True)
class Visit:
    """What a module was given first and gave first when it ran, None where that is no tensor of numbers, and the `others`
    that it gave behind the first."""

    given: Tensor | None
    gave: Tensor | None
    others: tuple[Tensor | None, ...] = ()


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def whole(value):
    """All of it, as it is now."""
    return value.clone()


def write(value, rows, columns, new):
    """`new` at the selected positions, nothing else changed."""
    value = value.clone()
    value[rows.to(value.device), columns.to(value.device)] = new.to(value.device, value.dtype)
    return value


def disturb(value, mask=None):
    """Noise of its own size on a value, at the positions of a mask or everywhere."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(value.shape, generator=generator).to(value.device, value.dtype) * value.std()
    return value + (noise if mask is None else noise * mask.to(value.device)[..., None])


def take_each(value, rows, columns, dtype):
    """The selected positions, one after the other."""
    taken = value[rows.to(value.device), columns.to(value.device)]
    return taken if dtype is None else taken.to(dtype)


def take_mean(value, mask, dtype):
    """The mean over each row's selected positions, accumulated in float32 at least."""
    weights = mask.to(value.device)
    wide = torch.promote_types(value.dtype, torch.float32)
    total = torch.einsum("bs,bs...->b...", weights.to(wide), value.to(wide))
    mean = total / weights.sum(dim=1).to(wide).reshape(-1, *[1] * (total.ndim - 1))
    return mean.to(value.dtype if dtype is None else dtype)


def shapes_of(cache):
    """For each module in a cache, each of its visits: the shape of what it was given first, and those of what it gave."""
    shapes = {}
    for path in cache.keys():  # noqa: SIM118  a cache's iteration is over what is below it, by number
        once = len(cache[path]) == 1
        given, gave = ([seen] if once else seen for seen in (cache[path].input, cache[path].output))
        shapes[path] = [(shapes_in(a), shapes_in(b), listed(b)) for a, b in zip(given, gave, strict=True)]
    return shapes


def shapes_in(value):
    """The shapes of the tensors among what a module was given or gave; of named ones only that of the first."""
    value = first(value) if isinstance(value, dict) and len(value) else value
    values = value if isinstance(value, tuple | list) else [value]
    return [tuple(each.shape) for each in values if isinstance(each, torch.Tensor)]


def follow(steps, saved, past=0, values=None):
    """Go through the steps in forward order: (envoy, side, detail, name, changes, readers). What has a name is kept under it
    for later steps of the layer.

    `past` is the number of positions that a cache holds, and `values` the v of these, by step; new ones are put behind.
    """
    kept = {"past": past}
    values = {} if values is None else values
    for number, (envoy, side, detail, name, changes, readers) in enumerate(steps):
        held, before = take(envoy, side, detail, kept)
        value = before
        for function, given, arguments in changes:
            value = function(value, *[kept[site] for site in given], *arguments)
        if changes:
            put(envoy, side, detail, kept, held, before, value)
        if name == "v":
            values[number] = torch.cat([values[number], value], dim=1) if past else value
            kept[name] = values[number]
        elif name is not None:
            kept[name] = value
        for key, function, arguments in readers:
            saved[key] = function(value, *arguments)


# Around the trace --------------------------------------------------------------------------------------------------------


@contextmanager
def let_go() -> Iterator[None]:
    """Around a trace: what it held is free when it is done.

    A trace that is stopped leaves its frames in a cycle with the exception that stopped it, and in them the states and
    the keys and values of the pass. They would stay in memory until Python next looks at its oldest objects; as they
    are kept among the youngest, they are found at once.
    """
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()
        gc.collect(1)


def run_forward(
    core: Core,
    batch: Batch,
    edits: Sequence[Edit] = (),
    reads: Sequence[Read] = (),
    logits: str | Tensor | None = "last",
) -> dict[Any, Tensor]:
    """One forward pass: the value of each read under its key, and under ``"logits"`` the logits.

    `logits` is "last" (of each row's last real token, `[batch, vocab]`), "all" (`[batch, seq, vocab]`), a Bool `[batch,
    seq]` (`[position, vocab]`, row after row) or None (not computed further than the last read needs).

    A read or an edit of "pattern" makes the decoder's attention eager for this run, one of "vision_pattern" the tower's; see
    `interp.models.running.attention`.
    """
    with as_needed(core, edits, reads):
        return _run_forward(core, batch, edits, reads, logits)


@contextmanager
def as_needed(core: Core, edits: Sequence[Edit], reads: Sequence[Any]) -> Iterator[None]:
    """Eager attention where an edit or something that is read asks for its weights."""
    sites = {*(edit.site for edit in edits), *(read.site for read in reads)}
    with (
        eager(core) if "pattern" in sites else nullcontext(),
        eager_tower(core) if "vision_pattern" in sites else nullcontext(),
    ):
        yield


def _run_forward(
    core: Core, batch: Batch, edits: Sequence[Edit], reads: Sequence[Read], logits: str | Tensor | None
) -> dict[Any, Tensor]:
    model = core.nnsight
    steps = schedule(core, len(batch), edits, reads)
    mask = batch.positions["last"] if isinstance(logits, str) and logits == "last" else logits
    rows, columns = mask.nonzero(as_tuple=True) if isinstance(mask, Tensor) else (None, None)
    inputs, at_end = logits_wanted(core, batch, logits, touched=bool(edits or reads))
    with let_go(), explained(), torch.no_grad(), model.trace(**inputs, **core.trace_options) as tracer:
        saved = nnsight.save({})
        follow(steps, saved)
        if logits is None:
            tracer.stop()
        elif at_end:
            saved["logits"] = model.output.logits[:, -1]
        elif rows is None:
            saved["logits"] = model.output.logits
        else:
            saved["logits"] = take_each(model.output.logits, rows, columns, None)
    return dict(saved)


def logits_wanted(core: Core, batch: Batch, logits: str | Tensor | None, touched: bool) -> tuple[dict[str, Any], bool]:
    """The inputs of a run that is asked for these logits, and whether they are those of the last position of every row,
    where the model is told to make no others. `touched` says whether its layers are looked at or edited."""
    inputs = core.inputs_of(batch)
    at_end = isinstance(logits, str) and logits == "last" and bool(batch.positions["last"][:, -1].all())
    # A model that trims would show its last layers without the other positions.
    whole_states = core.structure.trims is False or not touched
    if at_end and whole_states and core.accepts("logits_to_keep"):
        inputs = {**inputs, "logits_to_keep": 1}
    return inputs, at_end


def run_until_layers(core: Core, inputs: Mapping[str, Tensor], edits: Sequence[Edit] = ()) -> Tensor:
    """What enters layer 0, `[batch, seq, width]`, for inputs of which no positions are known; the rest is not computed."""
    return run_until_reads(core, inputs, [Read("state", "resid_pre", 0, whole)], edits)["state"]


def run_until_reads(
    core: Core, inputs: Mapping[str, Tensor], reads: Sequence[Read], edits: Sequence[Edit] = ()
) -> dict[Any, Tensor]:
    """The value of each read under its key, for inputs of which no positions are known; the rest is not computed."""
    steps = schedule(core, len(inputs["input_ids"]), edits, reads)
    options = {**core.on_device(inputs), **core.trace_options}
    with let_go(), explained(), torch.no_grad(), core.nnsight.trace(**options) as tracer:
        saved = nnsight.save({})
        follow(steps, saved)
        tracer.stop()
    return dict(saved)


def run_for_shapes(core: Core, inputs: Mapping[str, Tensor], envoys: Sequence[Any]) -> dict[str, list[Shapes]]:
    """The shapes at each visit to these modules before layer 0, by their nnsight paths; nothing else leaves the trace."""
    options = {**core.on_device(inputs), **core.trace_options}
    # A layer is named here, or the trace would be sent with all of this package's Core.
    steps = [(core.layers[0], "input", (1, None), None, (), ())]
    with let_go(), explained(), torch.no_grad(), core.nnsight.trace(**options) as tracer:
        cache = tracer.cache(modules=list(envoys), include_inputs=True)
        follow(steps, {})
        seen = nnsight.save(shapes_of(cache))
        tracer.stop()
    return {
        path: [Shapes(given[0] if given else None, gave, listed) for given, gave, listed in visits]
        for path, visits in seen.items()
    }


def run_watched(
    core: Core, inputs: Mapping[str, Tensor], envoys: Sequence[Any], **options: Any
) -> dict[str, list[Visit]]:
    """One forward pass: the visits to these modules by their nnsight paths, in the order in which they began."""
    with (
        explained(),
        torch.no_grad(),
        core.nnsight.trace(**core.on_device(inputs), **options, **core.trace_options) as tracer,
    ):
        cache = tracer.cache(modules=list(envoys), include_inputs=True).save()
    watched = {}
    for path in cache.keys():  # noqa: SIM118  a cache's iteration is over what is below it, by number
        once = len(cache[path]) == 1
        given, gave = ([seen] if once else seen for seen in (cache[path].input, cache[path].output))
        watched[path] = [Visit(_tensor(a), _tensor(b), _others(b)) for a, b in zip(given, gave, strict=True)]
    return watched


def _tensor(value: Any) -> Tensor | None:
    value = first(value) if isinstance(value, tuple | list | dict) and len(value) else value
    return value if isinstance(value, Tensor) and value.is_floating_point() else None


def _others(value: Any) -> tuple[Tensor | None, ...]:
    return (
        tuple(_tensor(other) if isinstance(other, Tensor) else None for other in value[1:])
        if isinstance(value, tuple | list)
        else ()
    )


def run_generate(core: Core, batch: Batch, edits: Sequence[Edit], max_new_tokens: int, **options: Any) -> Tensor:
    """Greedy generation with these edits in every forward pass: the ids of prompt and continuation `[batch, seq]`.

    The first pass is of the prompt, each later one of one new token, whose keys and values the cache keeps as they were
    made, edits and all. So it is what passes of the growing text would give, in which every position is edited as it was
    when it came.
    """
    model, inputs = core.nnsight, core.inputs_of(batch)
    length = batch.inputs["input_ids"].shape[1]
    # The image tower runs with the prompt alone.
    seeing = schedule(core, len(batch), [edit for edit in edits if edit.site in BEFORE_LAYERS], ())
    steps = schedule(core, len(batch), [edit for edit in edits if edit.site not in BEFORE_LAYERS], ())
    if edits and core.structure.trims is not False and core.accepts("logits_to_keep"):
        options = {**options, "logits_to_keep": 0}  # or some layers would show their last position alone
    options = {**options, **core.trace_options, "max_new_tokens": max_new_tokens}
    values: dict[int, Tensor] = {}
    rounds = max_new_tokens if steps else min(1, len(seeing))
    # Rows that all end early end the loop, and all that stands behind it in its block: the ids are read in another.
    with _generating(core, edits), model.generate(**options) as tracer:
        with tracer.invoke(**inputs):
            for step in tracer.iter[:rounds]:
                follow([] if step else seeing, {})
                follow(steps, {}, length + step - 1 if step else 0, values)
        with tracer.invoke():
            ids = nnsight.save(tracer.result)
    return ids


@contextmanager
def _generating(core: Core, edits: Sequence[Edit]) -> Iterator[None]:
    """Around a generation, in which it is no news that every row ended before the last step."""
    with as_needed(core, edits, ()), warnings.catch_warnings(), explained(), torch.no_grad():
        warnings.filterwarnings("ignore", message=".*was never reached: the loop asked for a step the run did not make")
        yield


def reads_of_states(
    core: Core, function: Callable[..., Any], arguments: tuple[Any, ...], edits: Sequence[Edit] = ()
) -> list[Read]:
    """The reads of `resid` under their numbers: state 0 enters layer 0, state l leaves layer l-1.

    A state that is edited on its way into layer l is read there, behind the edit. Elsewhere it makes a difference only
    where something is added between layers (DeepStack), which is no part of the state then.
    """
    depth = core.structure.n_layers
    entering = {0, *(core.layer_indices([edit.layer])[0] for edit in edits if edit.site == "resid_pre")}
    places = [("resid_pre", state) if state in entering else ("resid_post", state - 1) for state in range(depth + 1)]
    return [Read(state, *place, function, arguments) for state, place in enumerate(places)]


def reads_of_vision(
    core: Core,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    states: Sequence[int] | None = None,
    edits: Sequence[Edit] = (),
) -> list[Read]:
    """The reads of these states of the image tower (of all) under their numbers, numbered as those of `resid` are.

    Raises `LayoutError` for a model without blocks, `InputError` for a state that there is not.
    """
    depth = len(core.blocks)
    chosen = range(depth + 1) if states is None else states
    for state in chosen:
        if not 0 <= state <= depth:
            raise InputError(f"state {state!r}: the image tower of {core.name!r} has states 0 to {depth}")
    entering = {0, *(edit.layer for edit in edits if edit.site == "vision_pre")}
    places = [("vision_pre", state) if state in entering else ("vision_post", state - 1) for state in chosen]
    return [Read(state, *place, function, arguments) for state, place in zip(chosen, places, strict=True)]


def schedule(core: Core, rows: int, edits: Sequence[Edit], reads: Sequence[Read]) -> list[tuple[Any, ...]]:
    """Edits and reads as the steps of `follow`: one visit to each site of each layer, in forward order."""
    if any(edit.site == "vision_mask" for edit in edits):
        raise InputError(
            "site='vision_mask' is what the tower is told about who sees whom: read it, or edit vision_pattern"
        )
    weighed_anew = {(edit.layer, edit.site) for edit in edits if edit.site in WEIGHTS.values()}
    rebuilt = {at[0]: at for at in (when_rebuilt(core, *edited) for edited in weighed_anew)}

    def moment(each: Edit | Read) -> tuple[int, int, int, str]:
        found = when(core, each.layer, each.site)
        return rebuilt.get(found[0], found) if each.site in WEIGHTS else found

    changes: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    readers: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for edit in edits:
        changes[moment(edit)].append((edit.function, edit.context, edit.arguments))
    for read in reads:
        readers[moment(read)].append((read.key, read.function, read.arguments))
    # What is needed later in the layer: the state between attention and MLP is a sum, of what entered the layer too.
    touched: list[Edit | Read] = [*edits, *reads]
    needed = {
        when(core, each.layer, site)
        for each in touched
        for site in kept_for(core, each.layer, each.site, (each.layer, each.site) in weighed_anew)
    }
    needed |= {when(core, edit.layer, site) for edit in edits for site in edit.context if site != "past"}
    steps = []
    for at in sorted({*changes, *readers, *needed}):
        layer, site = at[0], at[-1]
        steps.append((*place(core, rows, layer, site), site if at in needed else None, changes[at], readers[at]))
    return steps
