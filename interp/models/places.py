"""Where the sites of a model are, and what stands there: an edit or a read names a site, here is the module that has it.

A place is an nnsight envoy, the side of it that is taken, and what must be known to see the site's value in what the
module holds: a factor, rows that come one after the other, the name of an argument. `take` and `put` run inside the
trace, so they are plain torch.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from interp.errors import InputError, LayoutError
from interp.models.masks import PATTERNED, as_allowed, like, none_is_causal
from interp.models.structure import resolve

if TYPE_CHECKING:
    from interp.models.vlm import VLM

# The sites in the order in which a model computes them. `projector` is the one before the layers; `mask` is what the
# attention of a layer is told about who may see whom, as Bool [batch, 1 or heads, query, key].
SITES = ("projector", "resid_pre", "mask", "attn_out", "resid_mid", "mlp_out", "resid_post")
# Those of them that hold states [batch, position, width].
STATES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
_BEFORE_LAYERS = -1


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


def take(envoy, side, detail, entered):
    """What a module holds at one side, and the value of the site there.

    `side` is "input" or "output"; `detail` is a factor that makes the value what the site means, and the number of rows
    where they come one after the other. Or it is "sum", the output added to the state that `entered` the layer. Or it is
    "mask", and `detail` says by which name and place the module gets its mask, and whether it is causal without one.
    """
    if side == "mask":
        name, place, causal = detail
        args, kwargs = envoy.inputs
        given = kwargs[name] if name in kwargs else args[place] if place < len(args) else None
        hidden = args[0] if args else next(iter(kwargs.values()))
        return (args, kwargs, given, hidden), as_allowed(given, hidden, causal)
    held = envoy.input if side == "input" else envoy.output
    factor, rows = detail
    value = first(held) if factor == 1 else first(held) * factor
    value = value if rows is None else value.unflatten(0, (rows, -1))
    return held, entered + value if side == "sum" else value


def put(envoy, side, detail, entered, held, before, value):
    """The site's new value in the place of what `take` found there."""
    if side == "mask":
        name, place, _ = detail
        args, kwargs, given, hidden = held
        new = like(value, before, given, hidden)
        by_name = name in kwargs or place >= len(args)
        args, kwargs = (args, {**kwargs, name: new}) if by_name else ((*args[:place], new, *args[place + 1 :]), kwargs)
        envoy.inputs = (args, kwargs)
    elif side == "input":
        envoy.input = value
    else:
        factor, rows = detail
        value = value - entered if side == "sum" else value
        value = value if rows is None else value.flatten(0, 1)
        envoy.output = put_first(held, value if factor == 1 else value / factor)


# Around the trace --------------------------------------------------------------------------------------------------------


def when(vlm: VLM, layer: int, site: str) -> tuple[int, int]:
    """The place of a site in forward order. Raises `InputError` for a site or a layer that there is not."""
    if site not in SITES:
        raise InputError(f"site={site!r} is unknown: use one of {', '.join(SITES)}")
    return (_BEFORE_LAYERS if site == "projector" else vlm.layer_indices([layer])[0]), SITES.index(site)


def place(vlm: VLM, rows: int, layer: int, site: str) -> tuple[Any, str, Any]:
    """Where a site is: the envoy, the side of it that is taken, and what `follow` must know about that side."""
    if site == "projector":
        if vlm.structure.projector is None:
            raise LayoutError(f"{vlm.name!r} has no projector of its own: its site is not to be had")
        return resolve(vlm.nnsight, vlm.structure.projector), "output", (1, None)
    envoy = vlm.layers[layer]
    if site == "resid_pre":
        return envoy, "input", (1, None)
    if site == "resid_post":
        return envoy, "output", (1, None)
    if site == "mask":
        return _place_of_mask(vlm, layer)
    if site == "resid_mid" and not vlm.trait("mid")[layer]:
        raise LayoutError(
            f"{vlm.name!r} has no state between attention and MLP in layer {layer}: there is no resid_mid"
        )
    adds = "attn_out" if site == "resid_mid" else site
    added = vlm.trait(adds)[layer]
    if added is None:
        raise LayoutError(f"{vlm.name!r} adds nothing to the stream in layer {layer} that could be proved to be {adds}")
    side = "sum" if site == "resid_mid" else "output"
    return resolve(envoy, added.module), side, (added.scale, rows if added.flat else None)


def _place_of_mask(vlm: VLM, layer: int) -> tuple[Any, str, Any]:
    kind, part = vlm.structure.attention[layer], vlm.structure.attn[layer]
    if part is None or kind not in PATTERNED:
        raise LayoutError(f"layer {layer} of {vlm.name!r} has no softmax attention ({kind}): there is no mask to it")
    module = resolve(vlm.model, f"{vlm.structure.layers}.{layer}.{part}")
    parameters = list(inspect.signature(type(module).forward).parameters)[1:]
    name = next((name for name in parameters if name.endswith("mask")), None)
    if name is None:
        raise LayoutError(f"layer {layer} of {vlm.name!r}: {type(module).__name__} takes no mask")
    detail = (name, parameters.index(name), none_is_causal(module))
    return resolve(vlm.layers[layer], part), "mask", detail
