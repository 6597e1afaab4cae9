"""Where the sites of a model are, and what stands there: an edit or a read names a site, here is the module that has it.

A place is an nnsight envoy, the side of it that is taken, and what must be known to see the site's value in what the
module holds: a factor, rows that come one after the other, the name of an argument. `take` and `put` run inside the
trace, so they are plain torch.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from interp.errors import InputError, LayoutError
from interp.models.running.masks import PATTERNED, as_allowed, like, none_is_causal
from interp.models.running.structure import resolve
from interp.models.running.tower_places import (
    IN_BLOCKS,
    argument,
    place_in_block,
    weighing,
    weights_in,
    weights_of,
    who_sees,
)

if TYPE_CHECKING:
    from interp.models.running.core import Core

# The sites in the order in which a model computes them. `vision_pre` and `vision_post` are what enters and leaves a block
# of the image tower, `projector` is what it gives; all three come before the layers, as [tokens, width] whatever shape
# the module holds (`interp.models.layout.patches` says which tokens are patches of which row). Between the first two are those of
# the block's attention, see `interp.models.running.tower_places`. `mask` is what the attention of a layer is told about who may
# see whom, as Bool [batch, 1 or heads, query, key].
SITES = (
    *("vision_pre", *IN_BLOCKS, "vision_post", "projector"),
    *("resid_pre", "mask", "q", "k", "v", "z", "pattern", "attn_out", "resid_mid", "mlp_out", "resid_post"),
)
# Those of them that hold states [batch, position, width].
STATES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
# Those that hold one vector a head, [batch, position, head, d_head].
HEADED = ("q", "k", "v", "z")
# The weights of a layer and of a block of the tower, by the site of what the heads give with them.
WEIGHTS = {"z": "pattern", "vision_z": "vision_pattern"}
# Those that come out of projections, which an architecture runs in an order of its own.
_PROJECTED, _PROJECTED_IN_BLOCKS = ("q", "k", "v"), ("vision_q", "vision_k", "vision_v")
_OF_BLOCKS = ("vision_pre", *IN_BLOCKS, "vision_post")
# Those that are computed once, before the first layer.
BEFORE_LAYERS = (*_OF_BLOCKS, "projector")
# Where they stand among the layers: the projector here, the blocks before it.
_LAST_BEFORE = -1
# The sites z of a layer and a block whose weights are edited.
REBUILT = {"pattern": "z of edited weights", "vision_pattern": "vision_z of edited weights"}
# All that a layer is called with, its arguments by place and by name.
CALL = "call of a layer"
# The sides of a module whose value is seen as [tokens, width].
_TOKENS = ("tokens in", "tokens out")


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def first(value):
    """The tensor of a module's output, which some modules give alone and some first among others."""
    if isinstance(value, dict):
        return next(iter(value.values()))
    return value[0] if isinstance(value, tuple | list) else value


def put_first(value, new):
    """A module's output with its tensor replaced."""
    if isinstance(value, dict):
        return type(value)(**{**value, next(iter(value)): new})
    return type(value)((new, *value[1:])) if isinstance(value, tuple | list) else new


def listed(held):
    """Whether a module holds features in a list, all of one width: of several images or tiles."""
    if not isinstance(held, list) or not held:
        return False
    return all(isinstance(each, torch.Tensor) and each.shape[-1] == held[0].shape[-1] for each in held)


def tokens_of(held):
    """What a module holds as `[tokens, width]`; one that gives a list of features gives them one behind the other."""
    if listed(held):
        return torch.cat([each.flatten(0, -2) for each in held])
    return first(held).flatten(0, -2)


def put_tokens(held, new):
    """What a module holds with its tokens replaced."""
    if listed(held):
        parts = new.split([each.shape[:-1].numel() for each in held])
        return [part.reshape(each.shape) for part, each in zip(parts, held, strict=True)]
    return put_first(held, new.reshape(first(held).shape))


def as_heads(value, groups, offset, width, d_head, rows):
    """The heads that lie in the last axis of a value in groups, `[batch, position, head, d_head]`."""
    parts = value.reshape(rows, -1, groups, value.shape[-1] // groups)[..., offset : offset + width]
    return parts.flatten(2).unflatten(2, (-1, d_head))


def in_rows(value, rows, kept):
    """A value as `[row, position, width]`, in as many rows; where they are None, in the sequences of a block of the tower."""
    if rows is not None:
        return value.reshape(rows, -1, value.shape[-1])
    sequences, _, length, _ = kept["vision_mask"].shape
    return value.reshape(sequences, length, -1)


def mean_of_values(pattern, v):
    """What the heads give with these weights, `[batch, query, head, d_head]`: heads of a group share a value. A window
    shows the last keys alone."""
    v = v[:, -pattern.shape[-1] :]
    each = v.repeat_interleave(pattern.shape[2] // v.shape[2], dim=2)
    return torch.einsum("bqhk,bkhd->bqhd", pattern.to(v.dtype), each)


def unmoved(value, before):
    """Where a site's value is what it was. Nowhere, where gradients are recorded: these must pass through the value."""
    return (value == before) & (not value.requires_grad)


def give_anew(envoy, projection, before, z):
    """The attention's output, made of another `z` at the positions at which that is not as `before`."""
    held = envoy.output
    gave = first(held)
    same = unmoved(z, before).flatten(2).all(dim=2, keepdim=True)
    new = projection(z.flatten(2))
    envoy.output = put_first(held, torch.where(same, gave.reshape(new.shape), new).reshape(gave.shape))


def take(envoy, side, detail, kept):
    """What a module holds at one side, and the value of the site there.

    `side` is "input" or "output"; `detail` is a factor that makes the value what the site means, and the number of rows
    where they come one after the other. Or it is "sum", the output added to the state that entered the layer. Or it is
    "mask", and `detail` says by which name and place the module gets its mask, and whether it is causal without one. Or
    it is "heads", and `detail` says on which side of the module they are, how they lie in its last axis, and the number
    of rows. Or it is "pattern", and `detail` says which of the things that the attention gives are its weights, and has
    the projection behind its heads. Or it is "rebuilt": what its heads give with edited weights, with that projection.
    Or it is "call": all that the module is called with.
    `kept` are the values of sites of this layer that came before.
    """
    if side == "mask":
        name, place, causal = detail
        args, kwargs = envoy.inputs
        given = kwargs[name] if name in kwargs else args[place] if place < len(args) else None
        hidden = args[0] if args else next(iter(kwargs.values()))
        return (args, kwargs, given, hidden), as_allowed(given, hidden, causal, kept["past"])
    if side == "who":
        sees, told, angles = detail
        args, kwargs = envoy.inputs
        kept["angles"] = argument(args, kwargs, *angles)
        hidden = args[0] if args else next(iter(kwargs.values()))
        return None, who_sees(hidden, sees, argument(args, kwargs, *told))
    if side == "heads":
        where, groups, offset, width, d_head, rows = detail
        held = envoy.input if where == "input" else envoy.output
        value = in_rows(first(held), rows, kept)
        return held, as_heads(value, groups, offset, width, d_head, len(value))
    if side == "pattern":
        which, _, of = detail
        held = envoy.output
        if not of:
            return held, held[which].transpose(1, 2)
        allowed = kept["vision_mask"]
        if which is not None:
            return held, weights_in(held, which, allowed)
        return held, weights_of(kept["vision_q"], kept["vision_k"], allowed, kept["angles"])
    if side == "rebuilt":
        return None, kept[detail[1]]
    if side == "call":
        return None, envoy.inputs
    held = envoy.input if side in ("input", "tokens in") else envoy.output
    if side in _TOKENS:
        return held, tokens_of(held)
    factor, rows = detail
    value = first(held) if factor == 1 else first(held) * factor
    value = value if rows is None else value.unflatten(0, (rows, -1))
    return held, kept["resid_pre"] + value if side == "sum" else value


def put(envoy, side, detail, kept, held, before, value):
    """The site's new value in the place of what `take` found there."""
    if side == "mask":
        name, place, _ = detail
        args, kwargs, given, hidden = held
        new = like(value, before, given, hidden)
        by_name = name in kwargs or place >= len(args)
        args, kwargs = (args, {**kwargs, name: new}) if by_name else ((*args[:place], new, *args[place + 1 :]), kwargs)
        envoy.inputs = (args, kwargs)
    elif side == "heads":
        where, groups, offset, width, _, rows = detail
        whole = first(held)
        new = in_rows(whole, rows, kept).clone().unflatten(2, (groups, -1))
        new[..., offset : offset + width] = value.flatten(2).unflatten(2, (groups, width))
        new = new.reshape(whole.shape)
        if where == "input":
            envoy.input = new
        else:
            envoy.output = put_first(held, new)
    elif side == "pattern":
        which, projection, of = detail
        moved = (value != before).any(dim=-1, keepdim=True)
        z = torch.where(moved, mean_of_values(value, kept[f"{of}v"]), kept[f"{of}z"])
        if which is not None:
            weights = value.transpose(1, 2).reshape(held[which].shape)
            envoy.output = type(held)((*held[:which], weights, *held[which + 1 :]))
        give_anew(envoy, projection, kept[f"{of}z"], z)
        kept[f"{of}z"] = z
    elif side == "rebuilt":
        give_anew(envoy, detail[0], before, value)
    elif side == "call":
        envoy.inputs = value
    elif side == "input":
        envoy.input = value
    elif side == "tokens in":
        envoy.input = put_tokens(held, value)
    elif side == "tokens out":
        envoy.output = put_tokens(held, value)
    else:
        factor, rows = detail
        new = value - kept["resid_pre"] if side == "sum" else value
        new = new if factor == 1 else new / factor
        own = first(held) if rows is None else first(held).unflatten(0, (rows, -1))
        # What rounds on the way to the site and back stays to the bit.
        new = torch.where(unmoved(value, before), own, new)
        envoy.output = put_first(held, new if rows is None else new.flatten(0, 1))


# Around the trace --------------------------------------------------------------------------------------------------------


def when(core: Core, layer: int, site: str) -> tuple[int, int, int, str]:
    """The place of a site in forward order, and its name. Raises `InputError` for a site or a layer that there is not."""
    if site == CALL:
        return core.layer_indices([layer])[0], SITES.index("resid_pre"), -1, site
    if site not in SITES:
        raise InputError(f"site={site!r} is unknown: use one of {', '.join(SITES)}")
    if site in _OF_BLOCKS:
        depth = len(core.blocks)
        if not 0 <= layer < depth:
            raise InputError(f"block {layer!r}: the image tower of {core.name!r} has blocks 0 to {depth - 1}")
        number = _LAST_BEFORE - depth + layer
        if site in _PROJECTED_IN_BLOCKS:
            heads = getattr(weighing(core, layer), site.removeprefix("vision_"))
            return number, SITES.index(_PROJECTED_IN_BLOCKS[0]), heads.turn if heads else 0, site
        return number, SITES.index(site), 0, site
    if site == "projector":
        return _LAST_BEFORE, SITES.index(site), 0, site
    layer = core.layer_indices([layer])[0]
    if site in _PROJECTED:
        return layer, SITES.index(_PROJECTED[0]), proved(core, layer, site).turn, site
    return layer, SITES.index(site), 0, site


def when_rebuilt(core: Core, layer: int, weights: str) -> tuple[int, int, int, str]:
    """The place of z in a layer whose `weights` are edited ("pattern", in a block of the tower "vision_pattern"): behind
    them, when the attention has given its output.

    Raises `LayoutError` where z was not proved to be the mean of v with these weights.
    """
    number, order, _, _ = when(core, layer, weights)
    if weights == "pattern":
        _refuse_unweighed(core, number)
    else:
        weighing(core, layer)
    return number, order, 1, REBUILT[weights]


def kept_for(core: Core, layer: int, site: str, edited: bool) -> tuple[str, ...]:
    """The sites of the same layer whose values are needed to see this one, or to edit it."""
    if site == "resid_mid":
        return ("resid_pre",)
    if site == "pattern":
        return ("v", "z") if edited else ()
    if site == "vision_pattern":
        made = () if weighing(core, layer).given is not None else ("vision_q", "vision_k")
        return ("vision_mask", *made, *(("vision_v", "vision_z") if edited else ()))
    return ("vision_mask",) if site in IN_BLOCKS else ()


def _refuse_unweighed(core: Core, layer: int) -> None:
    for site in ("pattern", "v", "z"):
        proved(core, layer, site)
    weighed = core.trait("weighed")
    if not weighed[layer]:
        others = ", ".join(str(index) for index, holds in enumerate(weighed) if holds)
        raise LayoutError(
            f"the pattern of layer {layer} of {core.name!r} cannot be edited, as its z is not pattern @ v alone: layers where "
            f"it is are {others or 'none'}"
        )


def place(core: Core, rows: int, layer: int, site: str) -> tuple[Any, str, Any]:
    """Where a site is: the envoy, the side of it that is taken, and what `follow` must know about that side.

    `layer` is as `when` gives it, so that blocks of the tower are counted from its end.
    """
    if site == "projector":
        if core.structure.projector is None:
            raise LayoutError(f"{core.name!r} has no projector of its own: its site is not to be had")
        return resolve(core.nnsight, core.structure.projector), "tokens out", None
    if site in ("vision_pre", "vision_post"):
        return core.blocks[layer - _LAST_BEFORE], "tokens in" if site == "vision_pre" else "tokens out", None
    if site in IN_BLOCKS or site == REBUILT["vision_pattern"]:
        return _place_in_tower(core, layer - _LAST_BEFORE, site)
    envoy = core.layers[layer]
    if site == CALL:
        return envoy, "call", None
    if site == "resid_pre":
        return envoy, "input", (1, None)
    if site == "resid_post":
        return envoy, "output", (1, None)
    if site == "mask":
        return _place_of_mask(core, layer)
    if site in HEADED:
        heads = proved(core, layer, site)
        detail = (heads.side, heads.groups, heads.offset, heads.width, heads.d_head, rows)
        return resolve(envoy, heads.module), "heads", detail
    if site == "pattern":
        which = proved(core, layer, site)
        return resolve(envoy, core.structure.attn[layer] or ""), "pattern", (which, _projection(core, layer), "")
    if site == REBUILT["pattern"]:
        return resolve(envoy, core.structure.attn[layer] or ""), "rebuilt", (_projection(core, layer), "z")
    if site == "resid_mid":
        proved(core, layer, site)
    added = proved(core, layer, "attn_out" if site == "resid_mid" else site)
    side = "sum" if site == "resid_mid" else "output"
    return resolve(envoy, added.module), side, (added.scale, rows if added.flat else None)


def proved(core: Core, layer: int, site: str) -> Any:
    """Where a layer keeps a site. Raises `LayoutError` where that could not be proved, with the layers in which it was."""
    found = core.trait("mid" if site == "resid_mid" else site)
    if not found[layer]:
        others = ", ".join(str(index) for index, place in enumerate(found) if place)
        there = f"layers with one are {others}" if others else "no layer has one"
        raise LayoutError(f"{core.name!r} has no {site} that could be proved in layer {layer}: {there}")
    return found[layer]


def _projection(core: Core, layer: int) -> Any:
    """What the heads of a layer are given to, as an nnsight envoy; None where they are not known."""
    z = core.structure.z
    found = None if z is None else z[layer]
    return None if found is None else resolve(core.layers[layer], found.module)


def _place_in_tower(core: Core, block: int, site: str) -> tuple[Any, str, Any]:
    """`place` for the attention of a block, counted from the tower's end."""
    found, envoy = weighing(core, block), core.blocks[block]
    if site == REBUILT["vision_pattern"]:
        return resolve(envoy, found.module), "rebuilt", (resolve(envoy, found.z.module), "vision_z")
    path = f"{core.structure.blocks}.{block % len(core.blocks)}"
    return place_in_block(core, envoy, found, path, site)


def _place_of_mask(core: Core, layer: int) -> tuple[Any, str, Any]:
    kind, part = core.structure.attention[layer], core.structure.attn[layer]
    if part is None or kind not in PATTERNED:
        raise LayoutError(f"layer {layer} of {core.name!r} has no softmax attention ({kind}): there is no mask to it")
    module = resolve(core.model, f"{core.structure.layers}.{layer}.{part}")
    parameters = list(inspect.signature(type(module).forward).parameters)[1:]
    name = next((name for name in parameters if name.endswith("mask")), None)
    if name is None:
        raise LayoutError(f"layer {layer} of {core.name!r}: {type(module).__name__} takes no mask")
    detail = (name, parameters.index(name), none_is_causal(module))
    return resolve(core.layers[layer], part), "mask", detail
