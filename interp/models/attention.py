"""Which implementation of attention runs: the same numbers come out of all, the weights of each pair out of one.

transformers computes attention in one of several ways. ``sdpa`` and the flash kinds never hold the weights of query and
key as a tensor, and give None in their place without a word; ``eager`` does. So the weights are to be had while eager
attention runs, and `eager` sees to that for the time of a run: in the decoder alone, since a vision tower that is
switched too would be slower for nothing, and with what was there before put back whatever happens.

An implementation is a word in a config, which each forward pass looks up. Weights, masks and nnsight's wrapping stay as
they are. No `output_attentions` is needed: eager attention hands its weights to the layer, which drops them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from interp.errors import InputError, LayoutError
from interp.models.masks import PATTERNED
from interp.models.structure import resolve

if TYPE_CHECKING:
    from interp.models.vlm import VLM


def implementation(vlm: VLM) -> str | None:
    """The name of the implementation that the decoder's attention runs with, as transformers has it."""
    return _owner(vlm).config._attn_implementation


@contextmanager
def eager(vlm: VLM) -> Iterator[None]:
    """Eager attention in the decoder's layers for as long as this lasts, and then what was there before.

    Raises `InputError` for a model that runs elsewhere, whose config is not ours to change, and `LayoutError` for one
    whose attention cannot be switched.
    """
    before = implementation(vlm)
    if before == "eager" and _is_eager(vlm):
        yield
        return
    if vlm.remote and vlm.remote != "local":
        raise InputError(
            f"{vlm.name!r} runs on a server, where attention is {before!r} and cannot be switched: attention weights need a "
            f"model loaded here, or one hosted with attn_implementation='eager'"
        )
    owner = _owner(vlm)
    try:
        _switch(owner, "eager")
        if not _is_eager(vlm):
            raise LayoutError(
                f"{vlm.name!r} keeps {before!r} attention when told otherwise: load it with attn_implementation='eager'"
            )
        yield
    finally:
        _switch(owner, before)


def _switch(owner: Any, name: str | None) -> None:
    """This model's own implementation; with an empty key, those of the models inside it stay as they are."""
    owner.set_attn_implementation({"": name})


def _owner(vlm: VLM) -> Any:
    """The innermost transformers model that the decoder's layers are in, whose config their attention looks up."""
    from transformers import PreTrainedModel

    names = vlm.structure.layers.split(".")
    above = [resolve(vlm.model, ".".join(names[:depth])) for depth in range(1, len(names))]
    return next((m for m in reversed(above) if isinstance(m, PreTrainedModel)), vlm.model)


def _is_eager(vlm: VLM) -> bool:
    """Whether every softmax attention of the decoder finds eager in the config it looks up."""
    structure = vlm.structure
    parts = [
        resolve(vlm.model, f"{structure.layers}.{layer}.{part}")
        for layer, (part, kind) in enumerate(zip(structure.attn, structure.attention, strict=True))
        if part is not None and kind in PATTERNED
    ]
    configs = [part.config for part in parts if hasattr(part, "config")]
    return all(config._attn_implementation == "eager" for config in configs)
