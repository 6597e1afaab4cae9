"""The layers, heads and positions that an intervention changes.

Users write `layers`, `heads` and `positions` in several forms. The functions here check them and return plain lists and
masks. A `Selection` brings them together for one site, and `AtSite` is the base class of interventions that have one.

Nothing here may be empty. A sweep over a range that came out empty would look like an intervention without an effect, so
an empty list of layers or heads is an error, and so are positions that select nothing.

Generation adds tokens after the prompt. A new token is "text", "content", "all", "last" and "after_image", so an
intervention on one of these names changes new tokens too. Every other name, ints and masks select positions of the prompt
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from interp.arguments import as_ints, checked_choice
from interp.displays import Display
from interp.errors import InputError, NothingSelected, shown
from interp.models import VLM, Batch, Edit
from interp.models.running.places import HEADED, STATES, proved_place

# The names that select every new token of a generation.
_NAMES_OF_NEW_TOKENS = ("text", "content", "last", "all", "after_image")


def select_layers(vlm: VLM, layers: Any) -> list[int]:
    """The numbers of these layers. Raises `InputError` for no layer, a repeated one and an unknown one."""
    return _checked_numbers(layers, vlm.layer_indices(layers), vlm.structure.n_layers)


def select_blocks(vlm: VLM, layers: Any) -> list[int]:
    """The numbers of these blocks of the image tower. Raises `InputError` as `select_layers` does, and `LayoutError` for a
    tower without blocks."""
    return _checked_numbers(layers, vlm.block_indices(layers), len(vlm.block_indices("all")))


def _checked_numbers(layers: Any, numbers: list[int], depth: int) -> list[int]:
    if not numbers:
        raise InputError(f"layers={shown(layers)} names no layer: expected 'all', an int or ints from 0 to {depth - 1}")
    repeated = next((number for number in numbers if numbers.count(number) > 1), None)
    if repeated is not None:
        raise InputError(f"layers={shown(layers)} names layer {repeated} more than once: name each once")
    return numbers


def select_heads(vlm: VLM, heads: int | Iterable[int] | None, count: int, layer: int) -> list[int] | None:
    """The numbers from 0 of these heads of a layer that has `count` heads; None for all of them.

    Raises `InputError` for no head, a repeated one and an unknown one.
    """
    if heads is None:
        return None
    numbers = as_ints(heads)
    if numbers is None:
        raise InputError(f"heads={shown(heads)}: expected None for all heads, an int or ints from 0 to {count - 1}")
    if not numbers:
        raise InputError(
            f"heads={shown(heads)} names no head: expected None for all heads, or ints from 0 to {count - 1}"
        )
    for head in numbers:
        if not -count <= head < count:
            raise InputError(f"head {head!r}: layer {layer} of {vlm.name!r} has heads 0 to {count - 1}")
    numbers = [head % count for head in numbers]
    if len(set(numbers)) < len(numbers):
        raise InputError(f"heads={shown(heads)} names a head of layer {layer} more than once: name each once")
    return numbers


def select_positions(batch: Batch, positions: Any, new: int = 0) -> Tensor:
    """The selected positions, Bool `[batch, seq + new]`: those of the prompt, then the `new` tokens of a generation.

    Raises `NothingSelected` if they select nothing in the prompt, and what `Positions.select` raises.
    """
    mask = batch.positions.select(positions)
    if not mask.any():
        raise nothing_selected("positions", positions)
    return extend_mask(mask, positions, new)


def nothing_selected(name: str, positions: Any) -> InputError:
    """The error of positions that select nothing in a batch: `NothingSelected`, but for no ints, which select nothing in any."""
    kind = InputError if as_ints(positions) == [] else NothingSelected
    return kind(f"{name}={shown(positions)} selects nothing in this batch, expected at least one position")


def extend_mask(mask: Tensor, positions: Any, new: int) -> Tensor:
    """The `mask` that `positions` select in a prompt, followed by `new` columns that say if they select new tokens."""
    value = isinstance(positions, str) and positions in _NAMES_OF_NEW_TOKENS
    return torch.nn.functional.pad(mask, (0, new), value=value)


@dataclass(frozen=True)
class Selection(Display):
    """A site of some layers at some positions.

    `mask` is Bool `[batch, seq + new tokens]`. For each layer, `heads` lists the selected heads (None for all heads, or for a
    site without heads) and `shapes` is the shape of the states at one position.
    """

    site: str
    layers: list[int]
    mask: Tensor
    heads: list[list[int] | None]
    shapes: Sequence[tuple[int, ...]]

    @property
    def counts(self) -> list[int]:
        """The number of selected positions in each row."""
        return self.mask.sum(dim=1).tolist()

    def edits(self, function: Callable[..., Tensor], values: Sequence[Tensor]) -> list[Edit]:
        """One edit a layer that calls `function`, such as `interp.interventions.writes.put_states`, with the layer's value."""
        rows, columns = self.mask.nonzero(as_tuple=True)
        indices = [None if heads is None else torch.tensor(heads) for heads in self.heads]
        return [
            Edit(self.site, layer, function, (rows, columns, index, value), ("past",))
            for layer, index, value in zip(self.layers, indices, values, strict=True)
        ]


class Reusable(Display):
    """Base of all interventions. One intervention is used many times, so iterators among its fields become tuples."""

    # The repr is part of a result's provenance: one line, with every digit.
    _digits, _broken = 17, False

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]
            value = getattr(self, each.name)
            if isinstance(value, Iterator):
                object.__setattr__(self, each.name, tuple(value))


class AtSite(Reusable):
    """Base of interventions on the states at a site of the decoder: it turns their fields into a `Selection`."""

    site: str
    layers: Any
    positions: Any
    heads: int | Iterable[int] | None

    def select(self, vlm: VLM, batch: Batch, new: int = 0) -> Selection:
        """The selected states of this batch and of `new` tokens after it.

        Raises `InputError` for an unknown site, layer, head or position, for none of them, and for heads at a site without
        heads; `LayoutError` for a layer in which the site could not be proved.
        """
        site = checked_choice(self.site, "site", (*STATES, *HEADED))
        check_heads_exist(site, self.heads)
        mask = select_positions(batch, self.positions, new)
        layers = select_layers(vlm, self.layers)
        if site in STATES:
            return Selection(site, layers, mask, [None] * len(layers), [(vlm.structure.d_model,)] * len(layers))
        kinds = [proved_place(vlm, layer, site) for layer in layers]
        heads = [select_heads(vlm, self.heads, kind.number, layer) for kind, layer in zip(kinds, layers, strict=True)]
        shapes = [(len(few) if few else kind.number, kind.d_head) for kind, few in zip(kinds, heads, strict=True)]
        return Selection(site, layers, mask, heads, shapes)


def check_heads_exist(site: str, heads: Any) -> None:
    """Raise `InputError` if heads are selected at a site that has none."""
    if site in STATES and heads is not None:
        raise InputError(
            f"heads={shown(heads)}: {site} has no heads, leave heads out or use one of the sites {', '.join(HEADED)}"
        )
