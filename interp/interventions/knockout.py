"""Attention knockout: cut edges of attention and see what the model can no longer do.

An edge runs from a *source*, the key that is read, to a *target*, the query that reads it. Before the softmax a cut edge
gets the score of minus infinity (Geva et al. 2023, "Dissecting Recall of Factual Associations in Auto-Regressive Language
Models"), so that its weight is exactly 0 and what the target still sees shares its whole attention:

    weight[q, k] = exp(s[q, k]) / sum of exp(s[q, j]) over the edges j -> q that are left

The cut is made in the layer's attention mask. Windows, padding and image blocks stay as they are: nothing is opened.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import InputError
from interp.interventions.states import keep_iterators
from interp.models.encodings import shown
from interp.models.forward import Edit
from interp.models.masks import PATTERNED
from interp.models.positions import as_ints
from interp.models.visibility import visible

if TYPE_CHECKING:
    from interp.models import VLM, Batch

MODES = ("pre_softmax",)


@dataclass(frozen=True, kw_only=True)
class Knockout:
    """No position of `target` attends to a position of `source`, in these layers.

    `source` and `target` are taken like `positions=` anywhere (a name, ints, a mask), `heads` are query heads as an int
    or ints, None for all. A position that is in both keeps seeing itself unless `self_edges` is True. `mode` is
    "pre_softmax": what is left of a row of attention sums to 1.

    In generation the prompt's forward pass is cut; the tokens that follow attend to everything again.

    Raises `InputError` for an unknown position, layer, head or mode, for a name that selects nothing in the batch (an
    empty mask cuts nothing), for a layer without softmax attention, and where a target would be left without any key: its
    attention would be undefined. Knockouts that leave it none only together are seen when the model runs, and raise
    `ValueError` there.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> scene = interp.toy.scenes(1, seed=0)[0]
    >>> batch = vlm.prepare(texts=[scene.questions[0].prompt], images=[scene.image])
    >>> blind = interp.interventions.Knockout(source="image", target="after_image", layers="all")
    >>> bool((vlm.logits(batch) == vlm.logits(batch, interventions=[blind])).all())
    False
    """

    source: Any
    target: Any
    layers: Any
    heads: int | Iterable[int] | None = None
    mode: str = "pre_softmax"
    self_edges: bool = False

    def __post_init__(self) -> None:
        keep_iterators(self)

    def edits(self, vlm: VLM, batch: Batch) -> list[Edit]:
        if self.mode not in MODES:
            raise InputError(f"mode={self.mode!r}: expected {' or '.join(map(repr, MODES))}")
        layers = _patterned(vlm, vlm.layer_indices(self.layers))
        chosen = {layer: _chosen_heads(vlm, self.heads, layer) for layer in layers}
        real = batch.positions["all"]
        source, target = (_ends(batch, name, getattr(self, name)) & real for name in ("source", "target"))
        if self.self_edges:  # else every target keeps one key at least, itself
            _refuse_blind(vlm, batch, layers, source, target)
        return [Edit("mask", layer, cut, (source, target, chosen[layer], self.self_edges)) for layer in layers]


def cut(allowed, source, target, heads, self_edges):
    """Plain torch, run inside the trace: `allowed` `[batch, heads, query, key]` without the edges from source to target.

    `source` and `target` are Bool `[batch, seq]`, `heads` Bool `[head]` or None.
    """
    source, target = source.to(allowed.device), target.to(allowed.device)
    edges = target[:, :, None] & source[:, None, :]
    if not self_edges:
        edges = edges & ~torch.eye(edges.shape[-1], dtype=torch.bool, device=edges.device)
    edges = edges[:, None]
    if heads is not None:
        edges = edges & heads.to(edges.device)[:, None, None]
    # A layer may compute its last queries alone (gemma4, where only these reach the logits), and a static cache has
    # room for more keys than the prompt has.
    queries, keys = allowed.shape[-2:]
    if keys < edges.shape[-1]:
        raise ValueError(
            f"the mask has {keys} keys for a prompt of {edges.shape[-1]} positions: its edges cannot be told"
        )
    return allowed & ~torch.nn.functional.pad(edges[:, :, -queries:], (0, keys - edges.shape[-1]))


def _ends(batch: Batch, name: str, positions: Any) -> Tensor:
    """The positions of source or target. A mask may be empty, as a control that cuts nothing; a name means something."""
    mask = batch.positions.select(positions)
    if isinstance(positions, str) and not mask.any():
        raise InputError(f"{name}={positions!r} selects nothing in this batch, expected at least one position")
    return mask


def _patterned(vlm: VLM, layers: list[int]) -> list[int]:
    """The same layers, all of which have softmax attention."""
    kinds = vlm.structure.attention
    for layer in layers:
        if kinds[layer] not in PATTERNED:
            others = [index for index, kind in enumerate(kinds) if kind in PATTERNED]
            raise InputError(
                f"layer {layer} of {vlm.name!r} has {kinds[layer]!r} in place of softmax attention, so it has no edge to "
                f"cut: choose from layers={others!r}"
            )
    return layers


def _chosen_heads(vlm: VLM, heads: int | Iterable[int] | None, layer: int) -> Tensor | None:
    """Bool `[head]` of this layer, None for all heads."""
    if heads is None:
        return None
    count = vlm.structure.heads[layer]
    indices = as_ints(heads)
    if indices is None:
        raise InputError(f"heads={shown(heads)}: expected None for all heads, an int or ints from 0 to {count - 1}")
    chosen = torch.zeros(count, dtype=torch.bool)
    for head in indices:
        if not -count <= head < count:
            raise InputError(f"head {head!r}: layer {layer} of {vlm.name!r} has heads 0 to {count - 1}")
        chosen[head] = True
    return chosen


def _refuse_blind(vlm: VLM, batch: Batch, layers: list[int], source: Tensor, target: Tensor) -> None:
    """Refuse a cut, self edges included, that leaves a target without any key in one of the layers."""
    if not (source & target).any():  # every position may attend to itself, so no target is blind that keeps itself
        return
    edges = target[:, :, None] & source[:, None, :]

    def blind(sees: Tensor) -> Tensor:
        return target & ~(sees & ~edges).any(dim=-1)

    # Full attention shows a query all that is before it, or more. Only where that is not enough to know that it keeps a
    # key, and in windows, which show less, is the model asked.
    before = (batch.positions["all"][:, None, :] & torch.ones_like(edges)).tril()
    if not blind(before).any():
        layers = [layer for layer in layers if vlm.structure.attention[layer] != "softmax"]
    for layer, sees in zip(layers, visible(vlm, batch, layers), strict=True):
        found = blind(sees).nonzero().tolist() if sees is not None else []
        if found:
            row, column = found[0]
            position = int(batch.positions["all"][row, :column].sum())
            raise InputError(
                f"position {position!r} of row {row} would attend to nothing in layer {layer}: every key it sees is in "
                f"source, leave one out or pass self_edges=False"
            )
