"""Steps: what is done in a trace, as edits and reads of sites, put into the order in which the model computes them.

An `Edit` changes a site of a layer, a `Read` takes a function of it out of the trace. `schedule` sorts both into steps, one
for each site of each layer, and `follow` goes through the steps inside the trace:

    take the value of the site -> apply its edits -> put it back -> keep it for later steps -> apply its reads

The functions of edits and reads are plain torch. They get a tensor and their own arguments and return a tensor, so that a
trace can be sent to a server that does not have this package.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import InputError
from interp.models.running.places import WEIGHTS, Moment, context_of, moment, place, rebuilt_moment
from interp.models.running.slots import Slot

if TYPE_CHECKING:
    from interp.models.running.core import Core


@dataclass(frozen=True)
class Edit:
    """Change `site` of `layer`: its value becomes `function(value, *context, *arguments)`, a new tensor of the same shape.

    `context` names sites of the same layer that are computed before; the function gets their values, after every edit there.
    It may also name "past", the number of positions before the first that the value holds: 0 but in generation, where each
    new token comes alone.

    An edit of "pattern" changes the outputs of the heads: where a query's weights change, z becomes the mean of v with the
    new ones, at the output of the attention. It needs what a read of "pattern" needs, and a layer in which that mean
    was proved to be z. The same holds for "vision_pattern" in a block of the image tower. "vision_mask" can only be read.
    """

    site: str
    layer: int
    function: Callable[..., Tensor]
    arguments: tuple[Any, ...] = field(default=(), repr=False)
    context: tuple[str, ...] = ()


@dataclass(frozen=True)
class Read:
    """Take `function(value, *arguments)` of `site` of `layer`, after every edit there, out of the trace under `key`."""

    key: Any
    site: str
    layer: int
    function: Callable[..., Tensor]
    arguments: tuple[Any, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Step:
    """All edits and reads of one place. Its value is kept for later steps of the layer under `name`, unless that is None."""

    envoy: Any
    slot: Slot
    name: str | None = None
    edits: Sequence[Edit] = ()
    reads: Sequence[Read] = ()


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
    noise = (
        torch.randn(value.shape, dtype=torch.float32, generator=generator).to(value.device, value.dtype) * value.std()
    )
    return value + (noise if mask is None else noise * mask.to(value.device)[..., None])


def take_each(value, rows, columns, dtype):
    """The selected positions, one after the other."""
    states = value[rows.to(value.device), columns.to(value.device)]
    return states if dtype is None else states.to(dtype)


def take_mean(value, mask, dtype):
    """The mean over each row's selected positions, accumulated in float32 at least."""
    weights = mask.to(value.device)
    wide = torch.promote_types(value.dtype, torch.float32)
    total = torch.einsum("bs,bs...->b...", weights.to(wide), value.to(wide))
    mean = total / weights.sum(dim=1).to(wide).reshape(-1, *[1] * (total.ndim - 1))
    return mean.to(value.dtype if dtype is None else dtype)


def follow(steps, saved, past=0, values=None):
    """Go through the steps in forward order, and save the reads under their keys.

    `past` is the number of positions in the cache, and `values` has the v of these positions by the number of the step; the
    new ones are put after them.
    """
    context = {"past": past}
    values = {} if values is None else values
    for number, step in enumerate(steps):
        content, before = step.slot.take(step.envoy, context)
        value = before
        for edit in step.edits:
            value = edit.function(value, *[context[site] for site in edit.context], *edit.arguments)
        if step.edits:
            step.slot.put(step.envoy, context, content, before, value)
        if step.name == "v":
            values[number] = torch.cat([values[number], value], dim=1) if past else value
            context["v"] = values[number]
        elif step.name is not None:
            context[step.name] = value
        for read in step.reads:
            saved[read.key] = read.function(value, *read.arguments)


# Before the trace --------------------------------------------------------------------------------------------------------


def schedule(core: Core, rows: int, edits: Sequence[Edit], reads: Sequence[Read]) -> list[Step]:
    """The steps of these edits and reads, in forward order, for a batch of so many rows."""
    if any(edit.site == "vision_mask" for edit in edits):
        raise InputError(
            "site='vision_mask' says who may see whom in the image tower and can only be read: edit vision_pattern instead"
        )
    weights = {(edit.layer, edit.site) for edit in edits if edit.site in WEIGHTS.values()}
    rebuilt = {time.layer: time for time in (rebuilt_moment(core, *edited) for edited in weights)}

    def moment_of(each: Edit | Read) -> Moment:
        time = moment(core, each.layer, each.site)
        return rebuilt.get(time.layer, time) if each.site in WEIGHTS else time

    work: dict[Moment, tuple[list[Edit], list[Read]]] = defaultdict(lambda: ([], []))
    for edit in edits:
        work[moment_of(edit)][0].append(edit)
    for read in reads:
        work[moment_of(read)][1].append(read)
    # What later steps of the layer need: the state between attention and MLP is a sum with what entered the layer.
    both: list[Edit | Read] = [*edits, *reads]
    needed = {
        moment(core, each.layer, site)
        for each in both
        for site in context_of(core, each.layer, each.site, (each.layer, each.site) in weights)
    }
    needed |= {moment(core, edit.layer, site) for edit in edits for site in edit.context if site != "past"}
    return [
        Step(*place(core, rows, at.layer, at.site), at.site if at in needed else None, *work[at])
        for at in sorted({*work, *needed})
    ]


def reads_of_states(
    core: Core, function: Callable[..., Any], arguments: tuple[Any, ...], edits: Sequence[Edit] = ()
) -> list[Read]:
    """The reads of `resid` under their numbers: state 0 enters layer 0, state l leaves layer l-1.

    A state that is edited on its way into layer l is read there, after the edit. Elsewhere it makes a difference only
    where something is added between layers (DeepStack), which is not part of the state.
    """
    entering = {core.layer_indices([edit.layer])[0] for edit in edits if edit.site == "resid_pre"}
    states = range(core.structure.n_layers + 1)
    return [Read(*at, function, arguments) for at in _at_states(states, {0, *entering}, "resid_pre", "resid_post")]


def reads_of_vision(
    core: Core,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    states: Sequence[int] | None = None,
    edits: Sequence[Edit] = (),
) -> list[Read]:
    """The reads of these states of the image tower (by default of all) under their numbers, as those of `resid`.

    Raises `LayoutError` for a model without blocks, `InputError` for a state that does not exist.
    """
    depth = len(core.blocks)
    numbers = range(depth + 1) if states is None else states
    for state in numbers:
        if not 0 <= state <= depth:
            raise InputError(f"state {state!r}: the image tower of {core.name!r} has states 0 to {depth}")
    entering = {edit.layer for edit in edits if edit.site == "vision_pre"}
    return [Read(*at, function, arguments) for at in _at_states(numbers, {0, *entering}, "vision_pre", "vision_post")]


def _at_states(states: Iterable[int], entering: set[int], pre: str, post: str) -> list[tuple[int, str, int]]:
    """Number, site and layer of each state: read where it enters a layer if it is one of `entering`, else where it leaves
    the layer before."""
    return [(state, pre, state) if state in entering else (state, post, state - 1) for state in states]
