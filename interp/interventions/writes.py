"""The values that interventions write, and the functions that write them.

A value may be a tensor, captured `Activations`, or the states of a run. Before it is written it takes one form: for each
layer Float `[selected positions, width]`, or `[selected positions, heads, d_head]` at a site with heads. Positions are in
row order. Layers may have different numbers of heads, and heads of different widths.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interp.activations import Activations
from interp.errors import InputError, InputTypeError
from interp.interventions.selection import Selection
from interp.models import VLM, Batch, Read
from interp.models.running.places import STATES
from interp.models.running.steps import whole
from interp.models.running.trace import run_forward

# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def put_states(value, past, rows, columns, heads, new):
    """`value`, which begins at position `past`, with `new` at the selected positions (of the selected heads)."""
    index, present = index_of(value, past, rows, columns, heads)
    value = value.clone()
    value[index] = new[present].to(value.device, value.dtype)
    return value


def add_states(value, past, rows, columns, heads, new):
    """`value` plus `new` at the selected positions (of the selected heads)."""
    index, present = index_of(value, past, rows, columns, heads)
    value = value.clone()
    value[index] += new[present].to(value.device, value.dtype)
    return value


def multiply_states(value, past, rows, columns, heads, new):
    """`value` times `new` at the selected positions (of the selected heads)."""
    index, present = index_of(value, past, rows, columns, heads)
    value = value.clone()
    value[index] *= new[present].to(value.device, value.dtype)
    return value


def index_of(value, past, rows, columns, heads):
    """The index into `value` of the selected positions that it contains, and a mask that says which positions these are."""
    present = (columns >= past) & (columns < past + value.shape[1])
    rows, columns = rows[present].to(value.device), columns[present].to(value.device) - past
    index = (rows, columns) if heads is None else (rows[:, None], columns[:, None], heads.to(value.device))
    return index, present


# Values ------------------------------------------------------------------------------------------------------------------


def broadcast_value(value: Tensor, selection: Selection, name: str = "value") -> list[Tensor]:
    """The part of a tensor for each layer. The tensor broadcasts to `[layers, selected positions, width]`, or with heads to
    `[layers, selected positions, heads, d_head]`. Raises `InputError`, which calls it `name`, if it does not."""
    layers, count = len(selection.layers), sum(selection.counts)
    parts = []
    for index, shape in enumerate(selection.shapes):
        has_layers = value.ndim == len(shape) + 2 and len(value) in (1, layers)
        part = value[index if len(value) > 1 else 0] if has_layers else value
        try:
            parts.append(part.expand(count, *shape))
        except RuntimeError:
            axes = "layers, selected positions, " + ("width" if selection.site in STATES else "heads, d_head")
            raise InputError(
                f"{name} of shape {tuple(value.shape)} does not fit {(layers, count, *shape)} ({axes})"
            ) from None
    return parts


def is_same_everywhere(value: Tensor, selection: Selection) -> bool:
    """Whether a value is the same at every position, so that it can be written to new tokens too."""
    axes = len(selection.shapes[0])
    return value.ndim <= axes or value.shape[-axes - 1] == 1


def checked_direction(direction: Any) -> Tensor:
    """A finite tensor. Raises `InputTypeError` for another type, `InputError` for numbers that are not finite."""
    if not isinstance(direction, Tensor):
        raise InputTypeError(f"direction is a {type(direction).__name__}: expected a tensor")
    if not direction.isfinite().all():
        raise InputError(f"direction of shape {tuple(direction.shape)} has numbers that are not finite: repair it")
    return direction


def unchanged_states(vlm: VLM, batch: Batch, selection: Selection) -> list[Tensor]:
    """The selected states of the batch's run without interventions, for each layer."""
    reads = [Read(layer, selection.site, layer, whole) for layer in selection.layers]
    outputs = run_forward(vlm, batch, reads=reads, logits=None)
    states = [outputs[layer][selection.mask.to(outputs[layer].device)] for layer in selection.layers]
    return [_some_heads(each, heads) for each, heads in zip(states, selection.heads, strict=True)]


def captured_examples(acts: Activations, selection: Selection) -> list[Tensor]:
    """The examples `[example, ...]` of captured activations, with the selected heads alone, for each layer.

    Raises `InputError` for a site or a layer that was not captured, and for states of another shape than the model's.
    """
    site, layers = selection.site, list(acts.layers.get(selection.site, ()))
    missing = [layer for layer in selection.layers if layer not in layers]
    if missing:
        contents = ", ".join(f"{name} of layers {', '.join(map(str, acts.layers[name]))}" for name in acts)
        raise InputError(f"value has no {site} of layer {missing[0]}: it has {contents}")
    examples = []
    for layer, heads, shape in zip(selection.layers, selection.heads, selection.shapes, strict=True):
        states = torch.as_tensor(acts[site][layers.index(layer)])
        fits = heads is None or max(heads) < states.shape[1]
        if not fits or tuple(_some_heads(states, heads).shape[1:]) != shape:
            raise InputError(
                f"value has {site} of shape {tuple(states.shape[1:])} in layer {layer}, expected "
                f"{shape if heads is None else f'heads {heads} of width {shape[-1]}'}: capture it with a model of these sizes"
            )
        examples.append(_some_heads(states, heads))
    return examples


def examples_by_position(acts: Activations, selection: Selection) -> list[Tensor]:
    """The captured example for each selected position, for each layer.

    If every row has as many examples as it selects positions, they are matched one by one. If every row has one example,
    it serves all positions of the row, and a single example serves all positions. Raises `InputError` otherwise.
    """
    examples, counts = captured_examples(acts, selection), selection.counts
    rows = acts.places(selection.site).rows
    per_row = torch.bincount(rows, minlength=len(counts)).tolist()
    if per_row == counts:
        index = torch.arange(len(rows))
    elif per_row == [1] * len(counts):
        index = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    elif len(rows) == 1:
        index = torch.zeros(sum(counts), dtype=torch.long)
    else:
        raise InputError(
            f"value has {per_row} examples in its rows and {counts} positions are selected in those of the batch: "
            "expected as many, one a row, or one in all"
        )
    return [states[index.to(states.device)] for states in examples]


def _some_heads(states: Tensor, heads: list[int] | None) -> Tensor:
    return states if heads is None else states[:, heads]
