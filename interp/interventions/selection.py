"""What an intervention says of where it acts, checked and made plain: layers, heads, and positions also of new tokens.

An empty choice is a mistake: a sweep over a range that came out empty would look like an intervention without effect.
So no layer, no head and no selected position are refused by name.

In generation a text grows. What a name means goes on behind the prompt where it can: a new token is "text", "all" and
"last" when it is fed to the model, and it stands "after_image". Other names, ints and masks mean positions of the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.arguments import as_ints
from interp.errors import InputError, shown

if TYPE_CHECKING:
    from interp.models import VLM, Batch

# The names that each new token of a generation belongs to.
_OF_NEW_TOKENS = ("text", "last", "all", "after_image")


def keep_iterators(intervention: Any) -> None:
    """Make tuples of the iterators among its fields: an intervention is used many times, they would be empty after one."""
    for each in fields(intervention):
        value = getattr(intervention, each.name)
        if isinstance(value, Iterator):
            object.__setattr__(intervention, each.name, tuple(value))


def chosen_layers(vlm: VLM, layers: Any) -> list[int]:
    """One layer at least, each once. Raises `InputError` for none, for one named twice and for one that there is not."""
    return _each_once(layers, vlm.layer_indices(layers), vlm.structure.n_layers)


def chosen_blocks(vlm: VLM, layers: Any) -> list[int]:
    """One block of the image tower at least, each once. Raises what `chosen_layers` raises, `LayoutError` for no blocks."""
    return _each_once(layers, vlm.block_indices(layers), len(vlm.block_indices("all")))


def _each_once(layers: Any, chosen: list[int], depth: int) -> list[int]:
    if not chosen:
        raise InputError(f"layers={shown(layers)} names no layer: expected 'all', an int or ints from 0 to {depth - 1}")
    twice = next((layer for layer in chosen if chosen.count(layer) > 1), None)
    if twice is not None:
        raise InputError(f"layers={shown(layers)} names layer {twice} more than once: name each once")
    return chosen


def chosen_heads(vlm: VLM, heads: int | Iterable[int] | None, count: int, layer: int) -> list[int] | None:
    """The numbers from 0 of these heads of a layer that has `count`, None for all.

    Raises `InputError` for none, for one named twice and for one that there is not.
    """
    if heads is None:
        return None
    indices = as_ints(heads)
    if indices is None:
        raise InputError(f"heads={shown(heads)}: expected None for all heads, an int or ints from 0 to {count - 1}")
    if not indices:
        raise InputError(
            f"heads={shown(heads)} names no head: expected None for all heads, or ints from 0 to {count - 1}"
        )
    for head in indices:
        if not -count <= head < count:
            raise InputError(f"head {head!r}: layer {layer} of {vlm.name!r} has heads 0 to {count - 1}")
    chosen = [head % count for head in indices]
    if len(set(chosen)) < len(chosen):
        raise InputError(f"heads={shown(heads)} names a head of layer {layer} more than once: name each once")
    return chosen


def chosen_positions(batch: Batch, positions: Any, new: int = 0) -> Tensor:
    """One position at least, Bool `[batch, seq + new]`, the `new` tokens of a generation behind those of the prompt.

    Raises `InputError` where nothing is selected in the prompt, and what `Positions.select` raises.
    """
    mask = batch.positions.select(positions)
    if not mask.any():
        raise InputError(f"positions={shown(positions)} selects nothing in this batch, expected at least one position")
    return with_new_tokens(mask, positions, new)


def with_new_tokens(mask: Tensor, positions: Any, new: int) -> Tensor:
    """The `mask` that `positions` select in a prompt, and behind it whether they select new tokens too."""
    theirs = isinstance(positions, str) and positions in _OF_NEW_TOKENS
    return torch.nn.functional.pad(mask, (0, new), value=theirs)
