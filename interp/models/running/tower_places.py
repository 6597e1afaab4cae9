"""Where the sites of a tower's attention are, and what stands there.

The attention of an image tower is that of a decoder without the arrow of time: every token of a sequence may see every
other. What differs is how it is told where a sequence ends, and what shape the tokens have:

======================  ===================  ==========================================================================
the attention is given  shape of its states  a token sees
======================  ===================  ==========================================================================
nothing more            [image, token, ..]   all tokens of its image (of its window: [window, rows, columns, ..])
a mask                  [image, token, ..]   what the mask allows: padding is hidden, packed images from each other
bounds of chunks        [token, ..]          the tokens between the same two bounds, of one image or one window
======================  ===================  ==========================================================================

So `vision_mask` says it in one form, Bool [sequence, 1 or head, query, key], and everything else of a block takes the
numbers of its sequences and tokens from there: `vision_q`, `vision_k`, `vision_v`, `vision_z` are [sequence, token, head,
d_head] and `vision_pattern` is [sequence, query, head, key], zero for what is not seen.

Packed towers compute chunk after chunk and show no weights. There they are made here of what the projections gave, and
used where `interp.models.layout.tower_weights` has proved that the heads give the mean of the values with just these.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from interp.errors import LayoutError
from interp.models.running.masks import as_allowed
from interp.models.running.structure import Weighing, resolve

if TYPE_CHECKING:
    from interp.models.running.core import Core

# The sites of the attention of a block, in forward order.
IN_BLOCKS = ("vision_mask", "vision_q", "vision_k", "vision_v", "vision_z", "vision_pattern")
# The arguments by which an attention gets the bounds of chunks, and the cosines and sines of its angles.
BOUNDS, ANGLES = "cu_seqlens", "position_embeddings"


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def argument(args, kwargs, name, place):
    """What a module was given under this name or at this place; None where it was not."""
    return kwargs[name] if name in kwargs else args[place] if place < len(args) else None


def who_sees(hidden, sees, told):
    """Who may see whom, Bool `[sequence, 1 or head, query, key]`; `told` is the mask or the bounds, or None."""
    rows = 1 if hidden.ndim == 2 else hidden.shape[0]
    states = hidden.reshape(rows, -1, hidden.shape[-1])
    if sees != "chunks" or told is None:
        return as_allowed(told, states, False)
    chunk = torch.searchsorted(told, torch.arange(states.shape[1], device=told.device), right=True)
    return (chunk[:, None] == chunk)[None, None].expand(rows, -1, -1, -1).to(hidden.device)


def turned(value, angles):
    """Each head `[.., token, head, d_head]` turned by its token's angles: the first half of its features with the second."""
    cosines, sines = (each.unsqueeze(-2).float() for each in angles)
    first, second = value.chunk(2, dim=-1)
    return value * cosines + torch.cat([-second, first], dim=-1) * sines


def weights_of(q, k, allowed, angles):
    """The weights `[sequence, query, head, key]` of queries and keys; `angles` is None where none are turned."""
    q, k = q.float(), k.float().repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    if angles is not None:
        q, k = turned(q, angles), turned(k, angles)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1).transpose(1, 2)


def weights_in(held, which, allowed):
    """The weights among what an attention gives: it may have put sequences and heads on one axis."""
    rows, _, length, _ = allowed.shape
    return held[which].reshape(rows, -1, length, length).transpose(1, 2)


# Around the trace --------------------------------------------------------------------------------------------------------


def weighing(core: Core, block: int) -> Weighing:
    """How a block of the image tower weighs. Raises `LayoutError` where that could not be proved, with the reason."""
    found = core.trait("vision_weighed")
    if isinstance(found[block], str):
        others = ", ".join(str(index) for index, each in enumerate(found) if isinstance(each, Weighing))
        raise LayoutError(
            f"block {block % len(found)} of the image tower of {core.name!r}: {found[block]}, so its weights cannot be had: "
            f"blocks where they can are {others or 'none'}"
        )
    return found[block]


def place_in_block(core: Core, block: Any, of_block: Weighing, path: str, site: str) -> tuple[Any, str, Any]:
    """Where a site of a block is; `block` is its envoy, `path` leads to its module."""
    attention = resolve(block, of_block.module)
    if site == "vision_mask":
        taken = _arguments(resolve(core.model, f"{path}.{of_block.module}"))
        told = BOUNDS if of_block.sees == "chunks" else _mask_of(taken)
        detail = (of_block.sees, _place(taken, told), _place(taken, ANGLES if of_block.rotated else None))
        return attention, "who", detail
    projection = resolve(block, of_block.z.module)
    if site == "vision_pattern":
        return attention, "pattern", (of_block.given, projection, "vision_")
    heads = {"vision_q": of_block.q, "vision_k": of_block.k, "vision_v": of_block.v, "vision_z": of_block.z}.get(site)
    if heads is None:
        raise LayoutError(
            f"{core.name!r} has no {site} that could be proved: its attention gives the weights themselves"
        )
    return (
        resolve(block, heads.module),
        "heads",
        (heads.side, heads.groups, heads.offset, heads.width, heads.d_head, None),
    )


def ways_to_see(attention: Any) -> str:
    """By what an attention is told who sees whom: "chunks", "mask" or "all"."""
    taken = _arguments(attention)
    return "chunks" if BOUNDS in taken else "mask" if _mask_of(taken) else "all"


def takes_angles(attention: Any) -> bool:
    """Whether an attention is given angles, by which it turns queries and keys."""
    return ANGLES in _arguments(attention)


def _mask_of(taken: list[str]) -> str | None:
    return next((name for name in taken if name.endswith("mask")), None)


def _arguments(attention: Any) -> list[str]:
    return list(inspect.signature(type(attention).forward).parameters)[1:]


def _place(taken: list[str], name: str | None) -> tuple[str, int]:
    """The name of an argument and its place; of none, what nothing is given at."""
    return ("", len(taken)) if name is None else (name, taken.index(name))
