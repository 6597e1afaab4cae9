"""Attention knockout: cut edges of attention and see what the model can no longer do.

An edge runs from a *source*, the key that is read, to a *target*, the query that reads it. Two ways to cut are in use,
and they are not the same.

*Before the softmax* a cut edge gets the score of minus infinity (Geva et al. 2023, "Dissecting Recall of Factual
Associations in Auto-Regressive Language Models"), so that its weight is exactly 0 and what the target still sees shares
its whole attention. The cut is made in the layer's attention mask; windows, padding and image blocks stay as they are:

    weight[q, k] = exp(s[q, k]) / sum of exp(s[q, j]) over the edges j -> q that are left

*After the softmax* its weight is set to 0 and the others stay as they are (Serra et al. 2024, "The Narrow Gate"), so that
a row's mass shrinks by exactly what was cut, and with it what the heads give:

    z[q] = sum of weight[q, k] * v[k] over the edges k -> q that are left

That needs the weights, so attention is eager for such a run, and a layer in which ``z = pattern @ v`` was proved. The
layer computes z before its weights can be seen, so what it gives is made anew: the output projection of the new z.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.arguments import as_int, as_ints
from interp.errors import InputError, shown
from interp.interventions.selection import (
    chosen_heads,
    chosen_layers,
    chosen_positions,
    keep_iterators,
    with_new_tokens,
)
from interp.models.running.masks import PATTERNED
from interp.models.running.steps import Edit
from interp.models.running.trace import visible

if TYPE_CHECKING:
    from interp.models import VLM, Batch

MODES = ("pre_softmax", "post_softmax")


@dataclass(frozen=True, kw_only=True)
class Knockout:
    """No position of `target` attends to a position of `source`, in these layers.

    `source` and `target` are taken like `positions=` anywhere (a name, ints, a mask), `heads` are query heads as an int
    or ints, None for all. A position that is in both keeps seeing itself unless `self_edges` is True. With `mode`
    "pre_softmax" what is left of a row of attention sums to 1, with "post_softmax" it stays as it was and sums to less.

    In generation the cut holds for new tokens too: each is "text", "all", "last" and "after_image", so that a knockout
    from "image" to "last" keeps every new token from the image. A target stays cut when it is no longer the last.

    Raises `InputError` for an unknown position, layer, head or mode, for no layer or head, for a name or ints that select
    nothing in the batch (an empty mask cuts nothing), for a layer without softmax attention, and before the softmax where a
    target would be left without any key: its attention would be undefined. Knockouts that leave it none only together are
    seen when the model runs, and raise `ValueError` there. After the softmax, `LayoutError` for a layer whose z is not
    ``pattern @ v``.

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

    @property
    def needs_weights(self) -> bool:
        """Whether it edits the weights of attention, for which the run is eager."""
        return self.mode == "post_softmax"

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]:
        if self.mode not in MODES:
            raise InputError(f"mode={self.mode!r}: expected {' or '.join(map(repr, MODES))}")
        if not isinstance(self.self_edges, bool):
            raise InputError(f"self_edges={self.self_edges!r}: expected True or False")
        layers = patterned(vlm, chosen_layers(vlm, self.layers))
        chosen = {layer: _as_mask(vlm, self.heads, layer) for layer in layers}
        real = batch.positions["all"]
        source, target = (_ends(batch, name, getattr(self, name)) & real for name in ("source", "target"))
        if self.self_edges and self.mode == "pre_softmax":  # else every target keeps one key at least, itself
            _refuse_blind(vlm, batch, layers, source, target)
        source, target = with_new_tokens(source, self.source, new), with_new_tokens(target, self.target, new)
        site, function = ("mask", cut) if self.mode == "pre_softmax" else ("pattern", drop)
        return [
            Edit(site, layer, function, (source, target, chosen[layer], self.self_edges), ("past",)) for layer in layers
        ]


@dataclass(frozen=True, kw_only=True)
class Truncate:
    """Nothing attends to these positions from this layer on: for all others they are gone.

    A `Knockout` with these positions as source and all others as target, before the softmax, in the layers
    `from_layer`, `from_layer` + 1, ... The positions themselves go on as they were and keep seeing each other, which
    nobody reads. `from_layer` is an int, a negative one counts from the end.

    In generation new tokens do not attend to them either.

    Raises `InputError` for an unknown layer or position, for positions that are none or all, and for a layer without
    softmax attention from there on.

    Source: dropping visual tokens behind a layer, as in FastV (Chen et al. 2024).

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . where is the 3 ?"])
    >>> gone = interp.interventions.Truncate(positions=[1, 2], from_layer=4)
    >>> bool((vlm.logits(batch) == vlm.logits(batch, interventions=[gone])).all())
    False
    """

    positions: Any
    from_layer: int

    def __post_init__(self) -> None:
        keep_iterators(self)

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]:
        first = as_int(self.from_layer)
        if first is None:
            raise InputError(f"from_layer={shown(self.from_layer)}: expected an int, the first layer without them")
        layers = patterned(vlm, list(range(vlm.layer_indices([first])[0], vlm.structure.n_layers)))
        gone = chosen_positions(batch, self.positions, new)
        real = with_new_tokens(batch.positions["all"], "all", new)
        others, gone = real & ~gone, gone & real
        if not gone.any():
            raise InputError(
                f"positions={shown(self.positions)} are padding alone, which nothing attends to: choose tokens"
            )
        if not others[:, : others.shape[1] - new].any():
            raise InputError(f"positions={shown(self.positions)} are all positions: expected some to be left")
        return [Edit("mask", layer, cut, (gone, others, None, False), ("past",)) for layer in layers]


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def cut(allowed, past, source, target, heads, self_edges):
    """`allowed` `[batch, heads, query, key]` without the edges from source to target.

    `source` and `target` are Bool `[batch, position]`, `heads` Bool `[head]` or None; the queries begin at position `past`.
    """
    return allowed & ~edges_among(allowed, past, source, target, heads, self_edges)


def drop(pattern, past, source, target, heads, self_edges):
    """The weights `[batch, query, head, key]`, those of the edges from source to target 0."""
    edges = edges_among(pattern.transpose(1, 2), past, source, target, heads, self_edges)
    return pattern.masked_fill(edges.transpose(1, 2), 0)


def edges_among(like, past, source, target, heads, self_edges):
    """The edges from source to target, Bool `[batch, 1 or heads, query, key]` of the queries and keys of `like`."""
    queries, keys = like.shape[-2:]
    seen = past + queries
    if keys < seen and not past:
        raise ValueError(f"the mask has {keys} keys for a prompt of {seen} positions: its edges cannot be told")
    source, target = source[:, :seen].to(like.device), target[:, past:seen].to(like.device)
    edges = target[:, :, None] & source[:, None, :]
    if not self_edges:
        edges = edges & ~torch.ones(queries, seen, dtype=torch.bool, device=like.device).tril(past).triu(past)
    # A cache of a window has the last keys alone, and a static one has room for more than there are.
    edges = torch.nn.functional.pad(edges[:, :, max(0, seen - keys) :], (0, max(0, keys - seen)))[:, None]
    return edges if heads is None else edges & heads.to(like.device)[:, None, None]


# Choices -----------------------------------------------------------------------------------------------------------------


def _ends(batch: Batch, name: str, positions: Any) -> Tensor:
    """The positions of source or target. A mask may be empty, as a control that cuts nothing; a name or ints mean something."""
    mask = batch.positions.select(positions)
    if not mask.any() and (isinstance(positions, str) or as_ints(positions) is not None):
        raise InputError(f"{name}={shown(positions)} selects nothing in this batch, expected at least one position")
    return mask


def patterned(vlm: VLM, layers: list[int]) -> list[int]:
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


def _as_mask(vlm: VLM, heads: int | Iterable[int] | None, layer: int) -> Tensor | None:
    """Bool `[head]` of this layer, None for all heads."""
    count = vlm.structure.heads[layer]
    chosen = chosen_heads(vlm, heads, count, layer)
    if chosen is None:
        return None
    return torch.isin(torch.arange(count), torch.tensor(chosen))


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
