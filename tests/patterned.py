"""A tiny model of every kind of mask, under either implementation, and the attention weights of its runs."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from typing import Any

from torch import Tensor

import interp
import zoo
from interp.models.running.masks import PATTERNED

# Causal; windows and image blocks; a prefix that sees both ways; chunks; one layer of softmax attention among linear ones.
KINDS = ("llava", "gemma3", "paligemma", "llama4", "qwen3_5")
# Those that run under sdpa too: paligemma's scores have a softcap, which only eager attention knows.
BOTH = tuple(name for name in KINDS if name != "paligemma")


@functools.cache
def load(name: str, implementation: str = "eager") -> interp.VLM:
    model = copy.deepcopy(zoo.build(name))
    model.set_attn_implementation(implementation)
    return interp.load(model=model)


@functools.cache
def batch_of(name: str, padded: bool) -> Any:
    """Two rows with an image in each, of equal length or not."""
    return load(name).prepare(encoding=zoo.encode(name, ((3, 6), (2, 4)) if padded else ((3, 6), (3, 6))))


def attention_modules(vlm: Any) -> dict[int, Any]:
    """The softmax attention of each layer that has one, as the model's own modules."""
    layers, structure = vlm.model.get_submodule(vlm.structure.layers), vlm.structure
    return {
        layer: getattr(layers[layer], structure.attn[layer])
        for layer, kind in enumerate(structure.attention)
        if kind in PATTERNED
    }


@contextlib.contextmanager
def weights_of(vlm: Any) -> Iterator[dict[int, Tensor]]:
    """The attention weights `[batch, head, query, key]` of the layers that run inside, under eager attention."""
    seen: dict[int, Tensor] = {}

    def keep(layer: int, module: Any, given: Any, out: Any) -> None:
        seen[layer] = out[1]

    handles = [
        module.register_forward_hook(functools.partial(keep, layer)) for layer, module in attention_modules(vlm).items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
