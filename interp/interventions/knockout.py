"""Attention knockout: cut edges of attention and see what the model can no longer do.

An edge runs from a *source*, the key that is read, to a *target*, the query that reads it. There are two ways to cut it, and
they differ.

*Before the softmax*, a cut edge gets a score of minus infinity (Geva et al. 2023, "Dissecting Recall of Factual Associations
in Auto-Regressive Language Models"). Its weight is exactly 0, and the target spreads its whole attention over the edges
that are left. The cut is made in the layer's attention mask; windows, padding and image blocks stay as they are:

    weight[q, k] = exp(s[q, k]) / sum of exp(s[q, j]) over the edges j -> q that are left

*After the softmax*, the weight is set to 0 and the others stay as they are (Serra et al. 2024, "The Narrow Gate"). A row loses
exactly the mass that was cut, and the output of the heads loses it too:

    z[q] = sum of weight[q, k] * v[k] over the edges k -> q that are left

This needs the weights. So the run uses eager attention, in layers in which ``z = pattern @ v`` was proved. The layer computes
z before its weights can be seen, so the output of its attention is computed again: the output projection of the new z.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.arguments import as_int, as_ints, checked_choice, checked_flag
from interp.errors import InputError, RowError, shown
from interp.interventions.selection import (
    Reusable,
    extend_mask,
    nothing_selected,
    select_heads,
    select_layers,
    select_positions,
)
from interp.models import VLM, Batch, Edit
from interp.models.running.masks import PATTERNED
from interp.models.running.trace import visible

MODES = ("pre_softmax", "post_softmax")


@dataclass(frozen=True, kw_only=True)
class Knockout(Reusable):
    """No position of `target` attends to a position of `source`, in these layers.

    `source` and `target` are positions in any form (a name, ints, a mask). `heads` are query heads, as an int or ints, None
    for all. A position in both still attends to itself unless `self_edges` is True. With `mode` "pre_softmax" the rest of a
    row of attention sums to 1; with "post_softmax" it keeps its weights and sums to less.

    In generation the cut holds for new tokens too. Each is "text", "content", "all", "last" and "after_image", so a knockout from
    "image" to "last" cuts off every new token from the image. A target stays cut when it is no longer the last.

    Raises `InputError` for an unknown position, layer, head or mode, for no layer or head, for a name or ints that select
    nothing in the batch (an empty mask cuts nothing), and for a layer without softmax attention. Before the softmax it also
    raises `InputError` if a target would have no key left, because its attention would be undefined; if several knockouts
    leave it no key only together, the run raises `ValueError`. After the softmax it raises `LayoutError` for a layer whose z
    is not ``pattern @ v``.

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

    @property
    def needs_weights(self) -> bool:
        """Whether it edits attention weights, which makes the run eager."""
        return self.mode == "post_softmax"

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]:
        before_softmax = checked_choice(self.mode, "mode", MODES) == "pre_softmax"
        self_edges = checked_flag(self.self_edges, "self_edges")
        layers = check_softmax(vlm, select_layers(vlm, self.layers))
        heads = {layer: _head_mask(vlm, self.heads, layer) for layer in layers}
        source, target = (
            _positions_of_end(batch, name, getattr(self, name)) & batch.positions["all"]
            for name in ("source", "target")
        )
        if self_edges and before_softmax:  # else every target has one key at least, itself
            _check_keys_left(vlm, batch, layers, source, target)
        source, target = extend_mask(source, self.source, new), extend_mask(target, self.target, new)
        site, function = ("mask", cut) if before_softmax else ("pattern", drop)
        return [Edit(site, layer, function, (source, target, heads[layer], self_edges), ("past",)) for layer in layers]


@dataclass(frozen=True, kw_only=True)
class Truncate(Reusable):
    """Nothing attends to these positions from this layer on: all other positions lose them.

    It is a `Knockout` before the softmax, with these positions as source and all others as target, in the layers
    `from_layer`, `from_layer` + 1, ... The positions themselves are still computed and attend to each other, but no other
    position reads them. `from_layer` is an int; a negative one counts from the end.

    In generation new tokens do not attend to them either.

    Raises `InputError` for an unknown layer or position, for positions that select nothing or everything, and if the layer
    or a later one has no softmax attention.

    Source: dropping visual tokens after a layer, as in FastV (Chen et al. 2024).

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . where is the 3 ?"])
    >>> drop = interp.interventions.Truncate(positions=[1, 2], from_layer=4)
    >>> bool((vlm.logits(batch) == vlm.logits(batch, interventions=[drop])).all())
    False
    """

    positions: Any
    from_layer: int

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]:
        first = as_int(self.from_layer)
        if first is None:
            raise InputError(f"from_layer={shown(self.from_layer)}: expected an int, the first layer without them")
        layers = check_softmax(vlm, list(range(vlm.layer_indices([first])[0], vlm.structure.n_layers)))
        source = select_positions(batch, self.positions, new)
        real = extend_mask(batch.positions["all"], "all", new)
        target, source = real & ~source, source & real
        if not source.any():
            raise InputError(
                f"positions={shown(self.positions)} are padding alone, which nothing attends to: choose tokens"
            )
        if not target[:, : target.shape[1] - new].any():
            raise InputError(f"positions={shown(self.positions)} are all positions: expected some to be left")
        return [Edit("mask", layer, cut, (source, target, None, False), ("past",)) for layer in layers]


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def cut(allowed, past, source, target, heads, self_edges):
    """`allowed` `[batch, heads, query, key]` without the edges from source to target.

    `source` and `target` are Bool `[batch, position]`, `heads` Bool `[head]` or None; the queries begin at position `past`.
    """
    return allowed & ~edges_between(allowed, past, source, target, heads, self_edges)


def drop(pattern, past, source, target, heads, self_edges):
    """The weights `[batch, query, head, key]`, with 0 for the edges from source to target."""
    edges = edges_between(pattern.transpose(1, 2), past, source, target, heads, self_edges)
    return pattern.masked_fill(edges.transpose(1, 2), 0)


def edges_between(scores, past, source, target, heads, self_edges):
    """The edges from source to target, Bool `[batch, 1 or heads, query, key]` for the queries and keys of `scores`."""
    queries, keys = scores.shape[-2:]
    length = past + queries
    if keys < length and not past:
        raise ValueError(
            f"the mask has {keys} keys for a prompt of {length} positions: expected a key for each position"
        )
    source, target = source[:, :length].to(scores.device), target[:, past:length].to(scores.device)
    edges = target[:, :, None] & source[:, None, :]
    if not self_edges:
        edges = edges & ~torch.ones(queries, length, dtype=torch.bool, device=scores.device).tril(past).triu(past)
    # A sliding cache has the last keys alone; a static cache has room for keys that do not exist yet.
    edges = torch.nn.functional.pad(edges[:, :, max(0, length - keys) :], (0, max(0, keys - length)))[:, None]
    return edges if heads is None else edges & heads.to(scores.device)[:, None, None]


# Layers, heads and keys --------------------------------------------------------------------------------------------------


def check_softmax(vlm: VLM, layers: list[int]) -> list[int]:
    """The same layers. Raises `InputError` if one of them has no softmax attention."""
    kinds = vlm.structure.attention
    for layer in layers:
        if kinds[layer] not in PATTERNED:
            others = [index for index, kind in enumerate(kinds) if kind in PATTERNED]
            raise InputError(
                f"layer {layer} of {vlm.name!r} has {kinds[layer]!r} in place of softmax attention, so it has no edge to "
                f"cut: choose from layers={others!r}"
            )
    return layers


def _positions_of_end(batch: Batch, name: str, positions: Any) -> Tensor:
    """The positions of source or target. A mask may be empty, as a control that cuts nothing; a name or ints may not."""
    mask = batch.positions.select(positions)
    if not mask.any() and (isinstance(positions, str) or as_ints(positions) is not None):
        raise nothing_selected(name, positions)
    return mask


def _head_mask(vlm: VLM, heads: int | Iterable[int] | None, layer: int) -> Tensor | None:
    """Bool `[head]` of this layer, None for all heads."""
    count = vlm.structure.heads[layer]
    numbers = select_heads(vlm, heads, count, layer)
    return None if numbers is None else torch.isin(torch.arange(count), torch.tensor(numbers))


def _check_keys_left(vlm: VLM, batch: Batch, layers: list[int], source: Tensor, target: Tensor) -> None:
    """Raise `InputError` if a cut, self edges included, leaves a target without any key in one of the layers."""
    if not (source & target).any():  # a position may attend to itself, so a target that is not a source has a key
        return
    edges = target[:, :, None] & source[:, None, :]

    def without_key(visibility: Tensor) -> Tensor:
        return target & ~(visibility & ~edges).any(dim=-1)

    # With full attention a query sees every earlier position at least. The model's masks are read only if that leaves a
    # target without a key, and for windows, which show less.
    earlier = (batch.positions["all"][:, None, :] & torch.ones_like(edges)).tril()
    if not without_key(earlier).any():
        layers = [layer for layer in layers if vlm.structure.attention[layer] != "softmax"]
    for layer, visibility in zip(layers, visible(vlm, batch, layers), strict=True):
        places = without_key(visibility).nonzero().tolist() if visibility is not None else []
        if places:
            row, column = places[0]
            position = int(batch.positions["all"][row, :column].sum())
            nothing = (
                f" would attend to nothing in layer {layer}: every key it sees is in source, leave one out or pass "
            )
            raise RowError({row: (f"position {position!r} of ", f"{nothing}self_edges=False")})
