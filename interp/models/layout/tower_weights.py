"""Attention weights of the image tower: where each block keeps them, found by name and proved by its heads' outputs.

To replace the attention weights of a block three things must be known: who sees whom, the weights themselves, and that
the heads' outputs are the mean of the values with these weights and no more. One equation holds only where all three
are right,

    z = pattern @ v

at every token that sees something. `z` is the input of the attention's last projection, whose output is the attention's,
bit for bit. The equation is tried on the sites as an edit sees them (`interp.models.running.slots`), so the way to
them is proved too. The pictures are noise: equal pictures would look the same whether they see each other or not. Values
that are alike everywhere have one mean under any weights, so the equation must fail with even weights. Besides, no
weight is negative, those of each token sum to one, a token that is hidden has none, and one that is visible has a weight
in some head.

The candidates are the parts of a block's attention with the names of projections, in either layout of one projection for
queries, keys and values. The weights are one of the attention's outputs, or else the softmax of its q and k, with the
norms after these, and rotated by angles or not. The first candidate that passes counts. Where none does, the reason takes
its place, for the message to whoever asks for that block.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interp.errors import reason_of
from interp.models.batches.batch import Batch
from interp.models.layout.additions import visits_to_parts
from interp.models.layout.heads import as_if, candidates, visits_once
from interp.models.layout.image_positions import other_picture
from interp.models.layout.patterns import are_shares, is_plain_mean
from interp.models.running.attention import eager_tower, tower_attention
from interp.models.running.core import Core
from interp.models.running.places import takes_angles, visibility_of
from interp.models.running.steps import Read, whole
from interp.models.running.structure import Heads, TowerWeights, resolve
from interp.models.running.trace import Visit, run_forward

_SITES = ("vision_mask", "vision_v", "vision_z", "vision_pattern")


def prove_tower_weights(core: Core, batch: Batch) -> tuple[TowerWeights | str, ...]:
    """For each block of the image tower where its weights are, or why no proof holds; tried on a batch with images.

    Raises the errors of `interp.models.running.attention.eager_tower` where attention cannot be switched.
    """
    batch = _two_pictures(batch)
    parts = tower_attention(core)
    paths = {block: f"{core.structure.blocks}.{block}.{part}" for block, part in enumerate(parts) if part is not None}
    with eager_tower(core):
        visits = visits_to_parts(core, batch, paths)
    outcomes: list[TowerWeights | str] = ["it has no attention of its own"] * len(parts)
    for block, path in paths.items():
        times = len(visits[block].get("", ()))
        outcomes[block] = f"its attention runs {times} times in one forward pass, expected once"
        if times == 1:
            options = _options(parts[block] or "", resolve(core.model, path), visits_once(visits[block]))
            outcomes[block] = _first_proved(core, batch, block, options)
    return tuple(outcomes)


def _two_pictures(batch: Batch) -> Batch:
    """At least two rows with images, and noise in place of these."""
    pictured = batch.positions["image"].any(dim=1).nonzero().flatten().tolist()
    batch = batch.row(pictured[0]).repeat(2) if len(pictured) == 1 else batch
    return replace(batch, inputs=other_picture(batch.inputs, torch.Generator().manual_seed(0)))


def _first_proved(core: Core, batch: Batch, block: int, options: Iterable[TowerWeights]) -> TowerWeights | str:
    """The first of these options that passes, or the reason against the last one."""
    reason = "it is not clear which parts of its attention hold its values and its heads' outputs"
    for option in options:
        failure = _failure(core, batch, block, option)
        if failure is None:
            return option
        reason = failure
    return reason


def _failure(core: Core, batch: Batch, block: int, option: TowerWeights) -> str | None:
    """Why the weights of a block are not there; None where they are."""
    outcomes: list[TowerWeights | str] = ["it is not tried now"] * len(tower_attention(core))
    outcomes[block] = option
    trial = as_if(core, vision_weighed=tuple(outcomes))
    try:
        values = run_forward(trial, batch, reads=[Read(site, site, block, whole) for site in _SITES], logits=None)
    except Exception as error:  # a mask of another form, angles of another width
        return f"its weights could not be computed ({reason_of(error, 120)})"
    allowed, v, z, pattern = (values[site].cpu() for site in _SITES)
    weights, real = pattern.transpose(1, 2), allowed.any(dim=-1).any(dim=1)
    if not are_shares(weights, allowed, real) or not _has_weight(weights, allowed):
        return "the weights of its attention are not shares of one among the keys that its mask allows"
    if is_plain_mean(real, v, z, pattern):
        return None
    if option.weights_at is not None:
        return "the weights that its attention returns do not make its heads' outputs"
    return (
        "its attention returns no weights, and those of its q and k do not make its heads' outputs (a model that chooses its "
        "attention at load returns them with attn_implementation='eager')"
    )


def _has_weight(weights: Tensor, allowed: Tensor) -> bool:
    """Whether each visible key has a weight in some head: then nothing else decides who sees whom."""
    return bool(((weights > 0).any(dim=1) | ~allowed.any(dim=1)).all())


# Candidates --------------------------------------------------------------------------------------------------------------


def _options(part: str, attention: Any, visits: Mapping[str, Visit]) -> Iterator[TowerWeights]:
    """The places where a block may keep its weights, by the names and widths of the parts of its attention."""
    hidden = visits[""].input
    if hidden is None or hidden.ndim < 2:
        return
    rows = 1 if hidden.ndim == 2 else hidden.shape[0]
    tokens = hidden.shape[:-1].numel()
    flat = {
        name: replace(visit, input=_flat(visit.input, tokens), output=_flat(visit.output, tokens))
        for name, visit in visits.items()
    }
    output = _output_of_weights(visits[""], rows, tokens // rows)
    for n_heads in _numbers_of_heads(attention) if output is None else [output[1]]:
        places = candidates(part, flat, n_heads, n_heads)
        for site in ("q", "k", "v"):
            places[site] = [*places.get(site, []), *_normed(part, flat, site, places.get("z", []))]
        for z, v in itertools.product(places.get("z", []), places["v"]):
            option = TowerWeights(part, visibility_of(attention), v, z)
            if output is not None:
                yield replace(option, weights_at=output[0])
                continue
            rotations = (True, False) if takes_angles(attention) else (False,)
            # Queries and keys of one layout, the norms after them first.
            pairs = zip(reversed(places["q"]), reversed(places["k"]), strict=False)
            for (q, k), rotated in itertools.product(pairs, rotations):
                yield replace(option, q=q, k=k, rotary=rotated)


def _flat(value: Tensor | None, tokens: int) -> Tensor | None:
    """The input or output of a part as `[token, width]`; None where it has no such form."""
    return value.reshape(tokens, -1) if value is not None and value.numel() and value.numel() % tokens == 0 else None


def _output_of_weights(attention: Visit, rows: int, length: int) -> tuple[int, int] | None:
    """The index of the first output of an attention that may be its weights, and its number of heads."""
    square = rows * length * length
    for index, output in enumerate(attention.others):
        if output is not None and output.shape[-2:] == (length, length) and output.numel() % square == 0:
            return index + 1, output.numel() // square
    return None


def _numbers_of_heads(attention: Any) -> list[int]:
    """The numbers of heads that an attention or its config has as fields."""
    holders = [holder for holder in (attention, getattr(attention, "config", None)) if holder is not None]
    fields = [field for holder in holders for field in vars(holder).items()]
    numbers = [value for name, value in fields if "heads" in name and isinstance(value, int) and value > 0]
    return list(dict.fromkeys(numbers))


def _normed(part: str, visits: Mapping[str, Visit], site: str, z: list[Heads]) -> Iterator[Heads]:
    """The norm after a projection, where its output is as wide as those of the heads."""
    name = f"{site}_norm"
    output = visits[name].output if name in visits else None
    for heads in z:
        if output is not None and output.shape[-1] == heads.width:
            yield replace(heads, module=f"{part}.{name}", side="output", turn=list(visits).index(name))
