"""Which implementation of attention runs: all compute the same outputs, but only one returns attention weights.

transformers has several. ``sdpa`` and the flash kinds never hold the weights of query and key as a tensor and return None
in their place; ``eager`` returns them. So weights can be read while eager attention runs:

    with eager(core):           # the decoder alone; eager_tower(core): the image tower alone
        ...                     # afterwards the old implementation is back, whatever happens

An implementation is a word in a config, which each forward pass looks up. Weights, masks and nnsight's wrapping stay as
they are. `output_attentions` is not needed: eager attention returns its weights to the layer, which drops them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from interp.errors import InputError, LayoutError
from interp.models.running.masks import PATTERNED
from interp.models.running.structure import resolve

if TYPE_CHECKING:
    from interp.models.running.core import Core

# The names that the attention of a block of an image tower may have.
_ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")


def implementation(core: Core) -> str | None:
    """The implementation that the decoder's attention runs with, by transformers' name."""
    return _owner(core, core.structure.layers).config._attn_implementation


def tower_implementation(core: Core) -> str | None:
    """The implementation that the image tower's attention runs with, None for a model without blocks."""
    blocks = core.structure.blocks
    return None if blocks is None else _owner(core, blocks).config._attn_implementation


def tower_attention(core: Core) -> tuple[str | None, ...]:
    """The name of the attention in each block of the image tower, None where the block has none."""
    if core.structure.blocks is None:
        return ()
    children = [dict(block.named_children()) for block in resolve(core.model, core.structure.blocks)]
    return tuple(next((name for name in _ATTENTION_NAMES if name in of_block), None) for of_block in children)


def eager(core: Core) -> AbstractContextManager[None]:
    """Eager attention in the decoder's layers for as long as this lasts, and then what was there before.

    Raises `InputError` for a model that runs on a server, whose config cannot be changed here, and `LayoutError` for one
    whose attention cannot be switched.
    """
    kinds = zip(core.structure.attn, core.structure.attention, strict=True)
    parts = [part if kind in PATTERNED else None for part, kind in kinds]
    return _eager_in(core, core.structure.layers, parts, "attention")


def eager_tower(core: Core) -> AbstractContextManager[None]:
    """The same in the blocks of the image tower. Raises what `eager` raises."""
    if core.structure.blocks is None:
        return nullcontext()
    return _eager_in(core, core.structure.blocks, tower_attention(core), "attention in its image tower")


@contextmanager
def _eager_in(core: Core, stack: str, parts: Sequence[str | None], what: str) -> Iterator[None]:
    """Eager attention in a stack of layers; `parts` are the names of their attention."""
    owner = _owner(core, stack)
    before = owner.config._attn_implementation
    paths = [f"{stack}.{layer}.{part}" for layer, part in enumerate(parts) if part is not None]
    if before == "eager" and _is_eager(core, paths):
        yield
        return
    if core.remote and core.remote != "local":
        raise InputError(
            f"{core.name!r} runs on a server, where {what} is {before!r} and cannot be switched: attention weights need a "
            f"model loaded here, or one hosted with attn_implementation='eager'"
        )
    try:
        _switch(owner, "eager")
        if not _is_eager(core, paths):
            raise LayoutError(
                f"{core.name!r} cannot switch its {before!r} {what}: load it with attn_implementation='eager'"
            )
        yield
    finally:
        _switch(owner, before)


def _switch(owner: Any, name: str | None) -> None:
    """Set this model's own implementation; with an empty key, those of the models inside it stay as they are."""
    owner.set_attn_implementation({"": name})


def _owner(core: Core, stack: str) -> Any:
    """The innermost transformers model around a stack of layers, whose config their attention looks up."""
    from transformers import PreTrainedModel

    names = stack.split(".")
    above = [resolve(core.model, ".".join(names[:depth])) for depth in range(1, len(names))]
    return next((m for m in reversed(above) if isinstance(m, PreTrainedModel)), core.model)


def _is_eager(core: Core, paths: Sequence[str]) -> bool:
    """Whether the attention at each of these paths finds "eager" in its config."""
    parts = (resolve(core.model, path) for path in paths)
    return all(part.config._attn_implementation == "eager" for part in parts if hasattr(part, "config"))
