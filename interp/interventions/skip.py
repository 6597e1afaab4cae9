"""Skipping layers: some positions go around a layer, the others do not.

    resid_post[layer, row, position] = resid_pre[layer, row, position]

A position that skips a layer is not updated by it, but the layer's attention still reads it: its keys and values are made
of the state that enters the layer, as ever. So what is taken away is what the layer does *to* these positions, not what
it does *with* them. What is added to the stream between layers (DeepStack) still is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from interp.interventions.selection import chosen_layers, chosen_positions, keep_iterators
from interp.models.running.steps import Edit

if TYPE_CHECKING:
    from interp.models import VLM, Batch


@dataclass(frozen=True, kw_only=True)
class Skip:
    """These positions leave each of these layers as they entered it; their keys and values stay readable.

    In generation new tokens that `positions` name skip the layers too.

    Raises `InputError` for an unknown layer or position, and where no layer or position is chosen.

    Source: freezing visual tokens in chosen layers, as in ShortV (Yuan et al. 2025).

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . where is the 3 ?"])
    >>> none = interp.interventions.Skip(layers=[3, 4])
    >>> bool((vlm.logits(batch) == vlm.logits(batch, interventions=[none])).all())
    False
    """

    layers: Any
    positions: Any = "all"

    def __post_init__(self) -> None:
        keep_iterators(self)

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]:
        mask = chosen_positions(batch, self.positions, new)
        layers = chosen_layers(vlm, self.layers)
        return [Edit("resid_post", layer, go_around, (mask,), ("resid_pre", "past")) for layer in layers]


def go_around(value, entered, past, mask):
    """Plain torch, run inside the trace: what entered the layer at the positions of the mask, else what left it."""
    here = mask[:, past : past + value.shape[1]].to(value.device)
    return torch.where(here[..., None], entered.to(value.device), value)
