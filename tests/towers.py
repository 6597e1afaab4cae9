"""A tiny model of every image tower, and transformers' own attention in it with another softmax.

That is an oracle for other attention weights. It knows nothing of what was proved, of masks or of the bounds of chunks:
what a token may see is what the softmax gave a weight.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

import interp
import zoo
from interp.models.architectures import architectures
from interp.models.running.attention import eager_tower, tower_attention
from interp.models.running.structure import TowerWeights, resolve

SUPPORTED = [row.name for row in architectures() if row.verdict == "supported"]
NO_BLOCKS = ("chameleon", "emu3", "fuyu", "gemma4_unified")
# The blocks that are refused, and why.
CHOSEN_WHEN_LOADED = ("deepseek_ocr2", "unlimited_ocr")
REFUSED = {
    **dict.fromkeys(CHOSEN_WHEN_LOADED, ((0, 1), "it gives no weights, and those of its q and k do not make")),
    "inkling_mm_model": ((0, 1, 2, 3), "it has no attention of its own"),
    "lfm3_vl": ((0,), "it has no attention of its own"),
    "step3p7": ((0, 1), "its attention runs 2 times in one forward pass, expected once"),
}
IN_SOME = [name for name in SUPPORTED if name not in NO_BLOCKS and len(REFUSED.get(name, ((),))[0]) < 2]


@functools.cache
def loaded(name: str) -> interp.VLM:
    """The tiny model, with a batch with pictures known to it: there is no processor to make one."""
    vlm = interp.load(model=zoo.build(name), device="cpu", check=False)
    vlm.checked_on = batch_of(name)
    return vlm


@functools.cache
def batch_of(name: str) -> Any:
    """Two rows with an image in each."""
    return interp.load(model=zoo.build(name), device="cpu", check=False).prepare(encoding=zoo.encode(name))


def fresh(name: str, change: Callable[[Any], None] | None = None) -> tuple[interp.VLM, Any]:
    """The same tiny model once more, changed, with its batch."""
    model = zoo.make(copy.deepcopy(zoo.build(name).config))
    if change is not None:
        change(resolve(model, loaded(name).structure.blocks))
    vlm = interp.load(model=model, device="cpu", check=False)
    return vlm, vlm.prepare(encoding=zoo.encode(name))


def weighing_blocks(vlm: interp.VLM) -> list[int]:
    """The blocks of which it is known how they weigh."""
    return [block for block, found in enumerate(vlm.trait("vision_weighed")) if isinstance(found, TowerWeights)]


@contextlib.contextmanager
def softmax_changed(vlm: Any, blocks: Iterable[int], change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the tower's attention is eager and the weights of these blocks are what `change` makes of them."""
    softmax = torch.nn.functional.softmax
    running: list[bool] = []

    def changed(*args: Any, **kwargs: Any) -> Tensor:
        weights = softmax(*args, **kwargs)
        return change(weights) if running else weights

    parts = tower_attention(vlm)
    modules = [resolve(vlm.model, f"{vlm.structure.blocks}.{block}.{parts[block]}") for block in blocks]
    handles = [module.register_forward_pre_hook(lambda *_: running.append(True)) for module in modules]
    handles += [module.register_forward_hook(lambda *_: running.clear()) for module in modules]
    torch.nn.functional.softmax = changed
    try:
        with eager_tower(vlm), torch.no_grad():
            yield
    finally:
        torch.nn.functional.softmax = softmax
        for handle in handles:
            handle.remove()


def even(weights: Tensor) -> Tensor:
    """The same for every key that has one."""
    there = (weights > 0).to(weights.dtype)
    return there / there.sum(dim=-1, keepdim=True)


def mirrored(weights: Tensor) -> Tensor:
    """Mirrored between a row's largest and its smallest."""
    there = weights > 0
    low = torch.where(there, weights, torch.inf).amin(dim=-1, keepdim=True)
    turned = (weights.amax(dim=-1, keepdim=True) + low - weights) * there
    return turned / turned.sum(dim=-1, keepdim=True)
