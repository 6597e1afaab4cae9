"""Finite numbers: logits and states that are NaN or infinite are refused, with the place where that begins.

Float16 ends at 65,504, and some models, trained in bfloat16, have larger states. A damaged weight is another cause, an
intervention a third. Nothing that is computed from such a state is a number, so no analysis returns it:

    layer 3 of 'x' gives states that are not finite in float16: load it with dtype='bfloat16' or 'float32'

Captures write what they get, and count what is not finite (`interp.activations.shards`). Minus infinity among logits is fine:
models give it to words that they never say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from interp.displays import dtype_name
from interp.models.running.steps import Read
from interp.models.running.structure import resolve

if TYPE_CHECKING:
    from interp.models.running.core import Core

# Runs reads and returns what they give.
Run = Callable[[list[Read]], dict[Any, Tensor]]


def holds_no_numbers(values: Tensor) -> bool:
    """Whether NaN or plus infinity is among some values, by their largest.

    >>> import torch
    >>> holds_no_numbers(torch.tensor([1.0, float("-inf")])), holds_no_numbers(torch.tensor([1.0, float("nan")]))
    (False, True)
    """
    return values.numel() > 0 and not bool(values.max() < float("inf"))


def cause_of(core: Core, run: Run, has_images: bool) -> str:
    """Where the untouched run stops being finite, in one line; empty where its states and the weights of its readout are. `run`
    runs reads on its inputs."""
    dtype = dtype_name(core)
    for part, paths, reads in _places(core, has_images):
        try:
            values = run(reads)
        except Exception:  # a block that these inputs do not reach
            continue
        numbers = [number for number, value in values.items() if bool(value)]
        if not numbers:
            continue
        number = min(numbers)
        where = part.format(number)
        weight = _damaged_weight(core, [path.format(number) for path in paths])
        if weight:
            return f"{where} of {core.name!r} has weights that are not finite ({weight}): load a copy that is whole"
        what = f"{where} of {core.name!r} gives states that are not finite in {dtype}"
        advice = "load it with dtype='bfloat16' or 'float32'" if dtype == "float16" else "its weights are too large"
        return f"{what}: {advice}"
    weight = _damaged_weight(core, [core.structure.norm, core.structure.head])
    if weight:
        return f"the readout of {core.name!r} has weights that are not finite ({weight}): load a copy that is whole"
    return ""


def _places(core: Core, has_images: bool) -> Iterator[tuple[str, list[str], list[Read]]]:
    """Parts of the model in forward order: their name, the paths of their weights, and reads that tell what is not finite."""
    parts = core.structure
    if has_images and parts.blocks is not None:
        reads = [Read(n, "vision_post", n, is_not_finite) for n in range(len(core.blocks))]
        yield "block {} of the image tower", [f"{parts.blocks}.{{}}"], reads
    before = [path for path in (parts.embed, parts.vision, parts.projector) if path]
    yield "the part before layer {}", before, [Read(0, "resid_pre", 0, is_not_finite)]
    reads = [Read(n, "resid_post", n, is_not_finite) for n in range(parts.n_layers)]
    yield "layer {}", [f"{parts.layers}.{{}}"], reads


def _damaged_weight(core: Core, paths: list[str]) -> str:
    """The first weight of these parts that holds NaN or infinity; empty where none does or the weights are not here."""
    for path in paths:
        module: nn.Module = resolve(core.model, path)
        for name, weight in module.named_parameters():
            if not weight.is_meta and weight.is_floating_point() and not weight.isfinite().all():
                return f"{path}.{name}"
    return ""


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def is_not_finite(value):
    """Whether a state holds NaN or infinity."""
    return ~value.isfinite().all()
