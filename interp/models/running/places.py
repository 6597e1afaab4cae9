"""Places: where a model keeps its sites, and in which order it computes them.

A site is a named point of the forward pass. `place` says where a layer keeps it, as an nnsight envoy and a slot
(`interp.models.running.slots`), and `moment` when it is computed. Most places are measured and proved by
`interp.models.layout` before they are used; `proved_place` refuses the others by name.

The sites in the order in which a model computes them:

- `vision_pre` and `vision_post` are what enters and leaves a block of the image tower. Between them are the sites of the
  block's attention, see below. `projector` is the output of the projector.
- `resid_pre` and `resid_post` are what enters and leaves a layer. `mask` is who may attend to whom there. `q`, `k`, `v` and
  `z` hold one vector a head, and `pattern` holds the attention weights. `attn_out` and `mlp_out` are what is added to the
  stream, and `resid_mid` is the state between these two.

The attention of an image tower lets every token of a sequence see every other. Towers differ in how they say where a
sequence ends, and in the shape of their states:

======================  ===================  ==========================================================================
arguments of attention  shape of its states  a token sees
======================  ===================  ==========================================================================
states                  [image, token, ..]   all tokens of its image (of its window: [window, rows, columns, ..])
states, mask            [image, token, ..]   what the mask allows: padding is hidden, packed images from each other
states, chunk bounds    [token, ..]          the tokens between the same two bounds, of one image or one window
======================  ===================  ==========================================================================

`vision_mask` says it in one form, Bool [sequence, 1 or head, query, key], and the other sites of a block take the numbers
of sequences and tokens from there: `vision_q`, `vision_k`, `vision_v`, `vision_z` are [sequence, token, head, d_head] and
`vision_pattern` is [sequence, query, head, key], zero for what is not seen. Towers of chunks return no weights, so these
are computed from q and k where `interp.models.layout.tower_weights` has proved that they are right.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from interp.errors import InputError, LayoutError
from interp.models.running.masks import PATTERNED, none_is_causal
from interp.models.running.slots import (
    Argument,
    CallSlot,
    HeadsSlot,
    InputSlot,
    MaskSlot,
    MidSlot,
    OutputSlot,
    PatternSlot,
    RebuiltSlot,
    Slot,
    TokensSlot,
    TowerMaskSlot,
    TowerPatternSlot,
)
from interp.models.running.structure import TowerWeights, resolve

if TYPE_CHECKING:
    from interp.models.running.core import Core

# The sites of the attention of a block of the image tower, in forward order.
IN_BLOCKS = ("vision_mask", "vision_q", "vision_k", "vision_v", "vision_z", "vision_pattern")
_OF_BLOCKS = ("vision_pre", *IN_BLOCKS, "vision_post")
# Those that are computed once, before the first layer.
BEFORE_LAYERS = (*_OF_BLOCKS, "projector")
# All sites in forward order.
SITES = (
    *BEFORE_LAYERS,
    *("resid_pre", "mask", "q", "k", "v", "z", "pattern", "attn_out", "resid_mid", "mlp_out", "resid_post"),
)
# The sites that hold states [batch, position, width].
STATES = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
# The sites that hold one vector a head, [batch, position, head, d_head].
HEADED = ("q", "k", "v", "z")
# The attention weights of a layer and of a block, by the site of the outputs of the heads.
WEIGHTS = {"z": "pattern", "vision_z": "vision_pattern"}
# The same outputs where these weights are edited: attention has returned by then.
REBUILT = {"pattern": "z of edited weights", "vision_pattern": "vision_z of edited weights"}
# All that a layer is called with, its arguments by place and by name.
CALL = "call of a layer"
# The outputs of projections, which each architecture runs in an order of its own.
_PROJECTED = ("q", "k", "v", "vision_q", "vision_k", "vision_v")
# The number of the projector among the layers; the blocks have those before it.
_LAST_BEFORE = -1
# The arguments of a tower's attention with the bounds of chunks, and with the cosines and sines of angles.
BOUNDS, ANGLES = "cu_seqlens", "position_embeddings"
MASK = ".*mask"
CACHE = "(past_key_value|cache_params|layer_past).*"
# The slots at a layer itself.
_AROUND_LAYERS = {CALL: CallSlot(), "resid_pre": InputSlot(), "resid_post": OutputSlot()}


class Moment(NamedTuple):
    """When a site is computed; moments sort in forward order. Blocks of the image tower have numbers below zero."""

    layer: int
    order: int
    turn: int
    site: str


class Place(NamedTuple):
    """Where a site is: the module inside a trace, and how it holds the value."""

    envoy: Any
    slot: Slot


# Order -------------------------------------------------------------------------------------------------------------------


def moment(core: Core, layer: int, site: str) -> Moment:
    """When a site of a layer is computed. Raises `InputError` for a site or a layer that does not exist."""
    if site == CALL:
        return Moment(core.layer_indices([layer])[0], SITES.index("resid_pre"), -1, site)
    if site not in SITES:
        raise InputError(f"site={site!r} is unknown: use one of {', '.join(SITES)}")
    if site == "projector":
        return Moment(_LAST_BEFORE, SITES.index(site), 0, site)
    if site in _OF_BLOCKS:
        depth = len(core.blocks)
        if not 0 <= layer < depth:
            raise InputError(f"block {layer!r}: the image tower of {core.name!r} has blocks 0 to {depth - 1}")
        heads = getattr(tower_weights(core, layer), site.removeprefix("vision_")) if site in _PROJECTED else None
        number, first = _LAST_BEFORE - depth + layer, "vision_q"
    else:
        number, first = core.layer_indices([layer])[0], "q"
        heads = proved_place(core, number, site) if site in _PROJECTED else None
    order = SITES.index(first if site in _PROJECTED else site)
    return Moment(number, order, heads.turn if heads else 0, site)


def rebuilt_moment(core: Core, layer: int, weights: str) -> Moment:
    """When z is rebuilt in a layer whose `weights` ("pattern" or "vision_pattern") are edited: after attention.

    Raises `LayoutError` where z was not proved to be the mean of v with these weights.
    """
    time = moment(core, layer, weights)
    if weights == "vision_pattern":
        tower_weights(core, layer)
        return time._replace(turn=1, site=REBUILT[weights])
    for site in ("pattern", "v", "z"):
        proved_place(core, time.layer, site)
    weighed = core.trait("weighed")
    if not weighed[time.layer]:
        raise LayoutError(
            f"the pattern of layer {time.layer} of {core.name!r} cannot be edited, because its z is not pattern @ v alone: "
            f"layers where it is are {_numbers_of(weighed) or 'none'}"
        )
    return time._replace(turn=1, site=REBUILT[weights])


def context_of(core: Core, layer: int, site: str, edited: bool) -> tuple[str, ...]:
    """The sites of the same layer whose values are needed to read this one, or to edit it."""
    if site == "resid_mid":
        return ("resid_pre",)
    if site == "pattern":
        return ("v", "z") if edited else ()
    if site == "vision_pattern":
        computed = () if tower_weights(core, layer).weights_at is not None else ("vision_q", "vision_k")
        return ("vision_mask", *computed, *(("vision_v", "vision_z") if edited else ()))
    return ("vision_mask",) if site in IN_BLOCKS else ()


# What was proved ---------------------------------------------------------------------------------------------------------


def proved_place(core: Core, layer: int, site: str) -> Any:
    """Where a layer keeps a site, as the structure has it. Raises `LayoutError` where that could not be proved, with the
    layers in which it was."""
    places = core.trait("mid" if site == "resid_mid" else site)
    if not places[layer]:
        others = _numbers_of(places)
        there = f"layers with one are {others}" if others else "no layer has one"
        raise LayoutError(f"{core.name!r} has no {site} that could be proved in layer {layer}: {there}")
    return places[layer]


def tower_weights(core: Core, block: int) -> TowerWeights:
    """Where the weights of a block of the image tower are. Raises `LayoutError` where that could not be proved, with the
    reason."""
    blocks = core.trait("vision_weighed")
    if isinstance(blocks[block], str):
        others = _numbers_of([isinstance(each, TowerWeights) for each in blocks])
        raise LayoutError(
            f"block {block % len(blocks)} of the image tower of {core.name!r} has no attention weights: {blocks[block]}; "
            f"blocks that have them are {others or 'none'}"
        )
    return blocks[block]


def _numbers_of(places: Any) -> str:
    """The numbers of the layers that have something."""
    return ", ".join(str(number) for number, place in enumerate(places) if place)


# Places ------------------------------------------------------------------------------------------------------------------


def place(core: Core, rows: int, layer: int, site: str) -> Place:
    """Where a site is, for a batch of so many rows. `layer` is that of its `moment`."""
    if site == "projector":
        if core.structure.projector is None:
            raise LayoutError(f"{core.name!r} has no projector of its own, so it has no site projector")
        return Place(resolve(core.nnsight, core.structure.projector), TokensSlot())
    if site in _OF_BLOCKS or site == REBUILT["vision_pattern"]:
        return _place_in_tower(core, layer - _LAST_BEFORE, site)
    envoy = core.layers[layer]
    if site in _AROUND_LAYERS:
        return Place(envoy, _AROUND_LAYERS[site])
    if site == "mask":
        return _place_of_mask(core, layer)
    if site in HEADED:
        heads = proved_place(core, layer, site)
        return Place(resolve(envoy, heads.module), HeadsSlot(heads, rows))
    if site in ("pattern", REBUILT["pattern"]):
        index = proved_place(core, layer, "pattern")
        z = None if core.structure.z is None else core.structure.z[layer]
        projection = None if z is None else resolve(envoy, z.module)
        attention = resolve(envoy, core.structure.attn[layer] or "")
        rebuilt = site != "pattern"
        return Place(attention, RebuiltSlot(projection, "z") if rebuilt else PatternSlot(index, projection))
    if site == "resid_mid":
        proved_place(core, layer, site)
    added = proved_place(core, layer, "attn_out" if site == "resid_mid" else site)
    output = OutputSlot(added.scale, rows if added.flat else None)
    return Place(resolve(envoy, added.module), MidSlot(output) if site == "resid_mid" else output)


def _place_of_mask(core: Core, layer: int) -> Place:
    kind, part = core.structure.attention[layer], core.structure.attn[layer]
    if part is None or kind not in PATTERNED:
        raise LayoutError(f"layer {layer} of {core.name!r} has no softmax attention ({kind}), so it has no mask")
    module = resolve(core.model, f"{core.structure.layers}.{layer}.{part}")
    argument = find_argument(module, MASK)
    if argument is None:
        raise LayoutError(f"layer {layer} of {core.name!r}: {type(module).__name__} takes no mask")
    return Place(resolve(core.layers[layer], part), MaskSlot(argument, none_is_causal(module)))


def _place_in_tower(core: Core, block: int, site: str) -> Place:
    """`place` for a block of the image tower, counted from the tower's end."""
    envoy = core.blocks[block]
    if site in ("vision_pre", "vision_post"):
        return Place(envoy, TokensSlot("input" if site == "vision_pre" else "output"))
    weights = tower_weights(core, block)
    attention, projection = resolve(envoy, weights.module), resolve(envoy, weights.z.module)
    if site == REBUILT["vision_pattern"]:
        return Place(attention, RebuiltSlot(projection, "vision_z"))
    if site == "vision_pattern":
        return Place(attention, TowerPatternSlot(weights.weights_at, projection))
    if site == "vision_mask":
        module = resolve(core.model, f"{core.structure.blocks}.{block % len(core.blocks)}.{weights.module}")
        limits = find_argument(module, BOUNDS if weights.visibility == "chunks" else MASK)
        angles = find_argument(module, ANGLES) if weights.rotary else None
        return Place(attention, TowerMaskSlot(weights.visibility, limits, angles))
    heads = getattr(weights, site.removeprefix("vision_"))
    if heads is None:
        raise LayoutError(
            f"{core.name!r} has no {site} that could be proved: its attention returns the weights themselves"
        )
    return Place(resolve(envoy, heads.module), HeadsSlot(heads, None))


# Arguments of modules ----------------------------------------------------------------------------------------------------


def find_argument(module: Any, pattern: str) -> Argument | None:
    """The first argument of a module's forward pass whose whole name matches a pattern; None where none does."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    return next((Argument(name, at) for at, name in enumerate(names) if re.fullmatch(pattern, name)), None)


def visibility_of(attention: Any) -> str:
    """How an attention of the image tower learns who may see whom: "chunks", "mask" or "all"."""
    if find_argument(attention, BOUNDS):
        return "chunks"
    return "mask" if find_argument(attention, MASK) else "all"


def takes_angles(attention: Any) -> bool:
    """Whether an attention takes angles, by which it rotates queries and keys."""
    return find_argument(attention, ANGLES) is not None
