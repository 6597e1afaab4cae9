"""What is written, layer by layer: a tensor in hand, captured activations, or the states of a run.

A value meets the places it is written to in one form: for each layer Float `[selected positions, width]`, or `[selected
positions, heads, d_head]` at a site with heads, the positions in row order. Layers need not agree on the number and the
width of their heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import InputError, InputTypeError
from interp.interventions.selection import chosen_heads, chosen_layers, chosen_positions
from interp.models.running.places import HEADED, STATES, proved_place
from interp.models.running.steps import Edit, Read, whole
from interp.models.running.trace import run_forward

if TYPE_CHECKING:
    from interp.models import VLM, Batch


@dataclass(frozen=True)
class Where:
    """A site of some layers at some positions: `mask` Bool `[batch, seq + new tokens]`, and for each layer the `heads`
    (None for all, or where the site has none) and the `shape` of what stands at one position."""

    site: str
    layers: list[int]
    mask: Tensor
    heads: list[list[int] | None]
    shapes: Sequence[tuple[int, ...]]

    def per_row(self) -> list[int]:
        """How many positions each row selects."""
        return self.mask.sum(dim=1).tolist()

    def edits(self, function: Any, values: Sequence[Tensor]) -> list[Edit]:
        """The edits that call `function` (one of those below) with these values, one for each layer."""
        rows, columns = self.mask.nonzero(as_tuple=True)
        return [
            Edit(
                self.site, layer, function, (rows, columns, None if heads is None else torch.tensor(heads), value), PAST
            )
            for layer, heads, value in zip(self.layers, self.heads, values, strict=True)
        ]


# What these functions are given beside the value; see `interp.models.running.steps.Edit`.
PAST = ("past",)


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def put_states(value, past, rows, columns, heads, new):
    """`new` at the selected positions (of the chosen heads), nothing else changed. `value` begins at position `past`."""
    at, new = places_in(value, past, rows, columns, heads, new)
    value = value.clone()
    value[at] = new
    return value


def add_states(value, past, rows, columns, heads, new):
    """`new` added at the selected positions (to the chosen heads)."""
    at, new = places_in(value, past, rows, columns, heads, new)
    value = value.clone()
    value[at] += new
    return value


def multiply_states(value, past, rows, columns, heads, new):
    """The selected positions (of the chosen heads) times `new`."""
    at, new = places_in(value, past, rows, columns, heads, new)
    value = value.clone()
    value[at] *= new
    return value


def places_in(value, past, rows, columns, heads, new):
    """The index of the selected positions that `value` holds, and what belongs there."""
    at, here = places_of(value, past, rows, columns, heads)
    return at, new[here].to(value.device, value.dtype)


def places_of(value, past, rows, columns, heads):
    """The index of the selected positions that `value` holds, and which of all that are selected these are."""
    here = (columns >= past) & (columns < past + value.shape[1])
    rows, columns = rows[here].to(value.device), columns[here].to(value.device) - past
    at = (rows, columns) if heads is None else (rows[:, None], columns[:, None], heads.to(value.device))
    return at, here


# Where -------------------------------------------------------------------------------------------------------------------


def where(vlm: VLM, batch: Batch, site: str, layers: Any, positions: Any, heads: Any = None, new: int = 0) -> Where:
    """The places that an intervention names, checked.

    Raises `InputError` for an unknown site, layer, head or position, for none of one, and for heads at a site without;
    `LayoutError` for a layer in which the site could not be proved.
    """
    if site not in (*STATES, *HEADED):
        raise InputError(f"site={site!r} is unknown: use one of {', '.join((*STATES, *HEADED))}")
    if site in STATES and heads is not None:
        raise InputError(
            f"heads={heads!r}: {site} has no heads, leave heads out or use one of the sites {', '.join(HEADED)}"
        )
    mask = chosen_positions(batch, positions, new)
    layers = chosen_layers(vlm, layers)
    if site in STATES:
        return Where(site, layers, mask, [None] * len(layers), [(vlm.structure.d_model,)] * len(layers))
    found = [proved_place(vlm, layer, site) for layer in layers]
    chosen = [chosen_heads(vlm, heads, each.number, layer) for each, layer in zip(found, layers, strict=True)]
    shapes = [(each.number if few is None else len(few), each.d_head) for each, few in zip(found, chosen, strict=True)]
    return Where(site, layers, mask, chosen, shapes)


# Values ------------------------------------------------------------------------------------------------------------------


def spread(value: Tensor, places: Where, name: str = "value") -> list[Tensor]:
    """A tensor that broadcasts to `[layers, selected positions, width]`, or with heads `[layers, selected positions, heads,
    d_head]`, for each layer. Raises `InputError` where it does not fit, which says `name` of it."""
    count = int(places.mask.sum())
    return [
        _fitted(_of_layer(value, places, index), places, index, count, f"{name} of shape {tuple(value.shape)}")
        for index in range(len(places.layers))
    ]


def _of_layer(value: Tensor, places: Where, index: int) -> Tensor:
    """A layer's own part of a value that has an axis of layers."""
    if value.ndim != len(places.shapes[index]) + 2:
        return value
    return value[index if len(value) > 1 else 0] if len(value) in (1, len(places.layers)) else value


def _fitted(part: Tensor, places: Where, index: int, count: int, said: str) -> Tensor:
    try:
        return part.expand(count, *places.shapes[index])
    except RuntimeError:
        axes = "width" if places.site in STATES else "heads, d_head"
        expected = (len(places.layers), count, *places.shapes[index])
        raise InputError(f"{said} does not fit {expected} (layers, selected positions, {axes})") from None


def is_one_for_all(value: Tensor, places: Where) -> bool:
    """Whether a value is the same at every position, so that it can be written to new tokens too."""
    behind = len(places.shapes[0])
    return value.ndim <= behind or value.shape[-behind - 1] == 1


def states_of(vlm: VLM, batch: Batch, places: Where) -> list[Tensor]:
    """What stands there in a batch's own unchanged run, for each layer."""
    seen = run_forward(
        vlm, batch, reads=[Read(layer, places.site, layer, whole) for layer in places.layers], logits=None
    )
    found = [seen[layer][places.mask.to(seen[layer].device)] for layer in places.layers]
    return [_of_heads(states, heads) for states, heads in zip(found, places.heads, strict=True)]


def is_activations(value: Any) -> bool:
    """Whether this is what `interp.capture` gives, told by what it has: it is made in a room above this one."""
    return isinstance(value, Mapping) and hasattr(value, "layers") and hasattr(value, "places")


def examples_of(acts: Any, places: Where) -> list[Tensor]:
    """The examples `[example, ...]` of captured activations for each layer, of the chosen heads alone.

    Raises `InputError` for a site or a layer that was not captured, and for states of another shape than the model's own.
    """
    captured = list(acts.layers.get(places.site, ()))
    missing = [layer for layer in places.layers if layer not in captured]
    if missing:
        there = ", ".join(f"{site} of layers {', '.join(map(str, acts.layers[site]))}" for site in acts)
        raise InputError(f"value has no {places.site} of layer {missing[0]}: captured was {there}")
    found = [torch.as_tensor(acts[places.site][captured.index(layer)]) for layer in places.layers]
    return [_as_here(states, places, index) for index, states in enumerate(found)]


def _as_here(states: Tensor, places: Where, index: int) -> Tensor:
    """A layer's captured examples, of the chosen heads alone. Raises `InputError` where this model has another shape there."""
    heads = places.heads[index]
    there = heads is None or max(heads) < states.shape[1]
    few = _of_heads(states, heads) if there else states
    if not there or tuple(few.shape[1:]) != places.shapes[index]:
        wanted = places.shapes[index] if heads is None else f"heads {heads} of width {places.shapes[index][-1]}"
        raise InputError(
            f"value has {places.site} of shape {tuple(states.shape[1:])} in layer {places.layers[index]}, expected {wanted}: "
            "capture it with a model of these sizes"
        )
    return few


def finite_direction(direction: Any) -> Tensor:
    """A direction as it was given. Raises `InputTypeError` for what is no tensor, `InputError` for one that is not finite."""
    if not isinstance(direction, Tensor):
        raise InputTypeError(f"direction is a {type(direction).__name__}: expected a tensor")
    if not direction.isfinite().all():
        raise InputError(f"direction of shape {tuple(direction.shape)} has numbers that are not finite: repair it")
    return direction


def _of_heads(states: Tensor, heads: list[int] | None) -> Tensor:
    return states if heads is None else states[:, heads]


def landed(acts: Any, places: Where) -> list[Tensor]:
    """Captured examples on the selected positions, for each layer.

    As many examples of each row as the row selects land one by one; one example a row lands on all of the row's
    positions, and a single one on all. Raises `InputError` where they are neither.
    """
    examples, selected = examples_of(acts, places), places.per_row()
    rows = acts.places(places.site).rows
    captured = torch.bincount(rows, minlength=len(selected)).tolist()
    if captured == selected:
        index = torch.arange(len(rows))
    elif captured == [1] * len(selected):
        index = torch.arange(len(selected)).repeat_interleave(torch.tensor(selected))
    elif len(rows) == 1:
        index = torch.zeros(sum(selected), dtype=torch.long)
    else:
        raise InputError(
            f"value has {captured} examples in its rows and {selected} positions are selected in the batch's: expected as "
            "many, one a row, or one in all"
        )
    return [states[index.to(states.device)] for states in examples]
