"""How the blocks of an image tower weigh, found by name and proved by what their heads give.

To give a block other attention weights three things must be known: who sees whom, the weights as they are, and that what
the heads give is the mean of the values with these and no more. One equation holds only where all three are right,

    z = pattern @ v

at every token that sees something, with `z` what the last projection of the attention is given and the projection of it
what the attention gives, bit for bit. It is tried on the sites as an edit sees them (`interp.models.running.slots`),
so the way to them is proved with them. It is tried on pictures of noise: what equal ones show is the same whether they see each
other or not. Values that are alike everywhere have one mean under any weights: the same equation with even weights must
fail. Besides, no weight is below zero, each token's sum to one, what a token may not see has none, and what it may see has
one in some head.

The candidates are the parts of a block's attention that bear the names of projections, laid out in either way in which one
projection holds queries, keys and values. The weights are one of the things that the attention gives, or else the softmax
of its q and k, with the norms behind these and turned by angles or not. What holds first is what a block has; where nothing
does, the reason is kept instead and said to whoever asks for that block.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interp.models.layout.heads import as_if, candidates, watch_parts
from interp.models.layout.patches import other_picture
from interp.models.layout.patterns import are_shares, explains
from interp.models.running.attention import eager_tower, tower_attention
from interp.models.running.places import takes_angles, visibility_of
from interp.models.running.steps import Read, whole
from interp.models.running.structure import Heads, TowerWeights, resolve
from interp.models.running.trace import Visit, run_forward

if TYPE_CHECKING:
    from interp.models.batches.batch import Batch
    from interp.models.running.core import Core

_READ = ("vision_mask", "vision_v", "vision_z", "vision_pattern")


def prove_weighings(core: Core, batch: Batch) -> tuple[TowerWeights | str, ...]:
    """For each block of the image tower how it weighs, or why that could not be proved; tried on a batch with images.

    Raises what `interp.models.running.attention.eager_tower` raises where attention cannot be switched.
    """
    batch = _pictures_apart(batch)
    parts = tower_attention(core)
    paths = {block: f"{core.structure.blocks}.{block}.{part}" for block, part in enumerate(parts) if part is not None}
    with eager_tower(core):
        visits = watch_parts(core, batch, paths)
    found: list[TowerWeights | str] = ["it has no attention of its own"] * len(parts)
    for block, path in paths.items():
        times = len(visits[block].get("", ()))
        found[block] = f"its attention runs {times} times in one forward pass, expected once"
        if times == 1:
            once = {name: each[0] for name, each in visits[block].items() if len(each) == 1}
            options = _options(parts[block] or "", resolve(core.model, path), once)
            found[block] = _first_that_holds(core, batch, block, options)
    return tuple(found)


def _pictures_apart(batch: Batch) -> Batch:
    """Two rows with images at least, and noise for these."""
    pictured = batch.positions["image"].any(dim=1).nonzero().flatten().tolist()
    batch = batch.row(pictured[0]).repeat(2) if len(pictured) == 1 else batch
    return replace(batch, inputs=other_picture(batch.inputs))


def _first_that_holds(core: Core, batch: Batch, block: int, options: Iterable[TowerWeights]) -> TowerWeights | str:
    """The first of these ways in which a block weighs, or what speaks against the last."""
    why = "which parts of its attention hold its values and what its heads give cannot be told"
    for weighs in options:
        against = _try(core, batch, block, weighs)
        if against is None:
            return weighs
        why = against
    return why


def _try(core: Core, batch: Batch, block: int, weighs: TowerWeights) -> str | None:
    """Why a block does not weigh so; None where it does."""
    others: list[TowerWeights | str] = ["it is not tried now"] * len(tower_attention(core))
    others[block] = weighs
    trial = as_if(core, vision_weighed=tuple(others))
    try:
        seen = run_forward(trial, batch, reads=[Read(site, site, block, whole) for site in _READ], logits=None)
    except Exception as error:  # a mask of another form, angles of another width
        return f"its weights could not be computed ({' '.join(f'{type(error).__name__}: {error}'.split())[:120]})"
    allowed, v, z, pattern = (seen[site].cpu() for site in _READ)
    weights, real = pattern.transpose(1, 2), allowed.any(dim=-1).any(dim=1)
    if not are_shares(weights, allowed, real) or not _has_weight(weights, allowed):
        return "the weights of its attention are not shares of one among the keys that it is told it may see"
    if not explains(weights, [v.flatten(2)], [z], real):
        if weighs.weights_at is not None:
            return "the weights that it gives do not make what its heads give"
        return (
            "it gives no weights, and those of its q and k do not make what its heads give (where attention is chosen when a "
            "model is loaded, attn_implementation='eager' gives them)"
        )
    return None


def _has_weight(weights: Tensor, allowed: Tensor) -> bool:
    """Whether each key that may be seen has a weight in some head: then nothing else decides who sees whom."""
    return bool(((weights > 0).any(dim=1) | ~allowed.any(dim=1)).all())


# Candidates --------------------------------------------------------------------------------------------------------------


def _options(part: str, attention: Any, visits: Mapping[str, Visit]) -> Iterator[TowerWeights]:
    """The ways in which a block may weigh, by the names and widths of the parts of its attention."""
    hidden = visits[""].input
    if hidden is None or hidden.ndim < 2:
        return
    rows = 1 if hidden.ndim == 2 else hidden.shape[0]
    tokens = hidden.shape[:-1].numel()
    flat = {
        name: replace(visit, input=_flat(visit.input, tokens), output=_flat(visit.output, tokens))
        for name, visit in visits.items()
    }
    given = _given(visits[""], rows, tokens // rows)
    numbers = [given[1]] if given is not None else _numbers_of_heads(attention)
    for n_heads in numbers:
        places = candidates(part, flat, n_heads, n_heads)
        for site in ("q", "k", "v"):
            places[site] = [*places.get(site, []), *_normed(part, flat, site, places.get("z", []))]
        for z, v in itertools.product(places.get("z", []), places["v"]):
            first = TowerWeights(part, visibility_of(attention), v, z)
            if given is not None:
                yield replace(first, weights_at=given[0])
                continue
            turns = (True, False) if takes_angles(attention) else (False,)
            for (q, k), rotated in itertools.product(_pairs(places), turns):
                yield replace(first, q=q, k=k, rotary=rotated)


def _flat(value: Tensor | None, tokens: int) -> Tensor | None:
    """What a part was given or gave as `[token, width]`, whatever shape it has; None where that cannot be."""
    return value.reshape(tokens, -1) if value is not None and value.numel() and value.numel() % tokens == 0 else None


def _given(attention: Visit, rows: int, length: int) -> tuple[int, int] | None:
    """Which of the things that an attention gave may be its weights, and for how many heads."""
    square = rows * length * length
    for index, other in enumerate(attention.others):
        if other is not None and other.shape[-2:] == (length, length) and other.numel() % square == 0:
            return index + 1, other.numel() // square
    return None


def _numbers_of_heads(attention: Any) -> list[int]:
    """The numbers of heads that an attention or its config names."""
    holders = [holder for holder in (attention, getattr(attention, "config", None)) if holder is not None]
    named = [item for holder in holders for item in vars(holder).items()]
    return list(
        dict.fromkeys(value for name, value in named if "heads" in name and isinstance(value, int) and value > 0)
    )


def _normed(part: str, visits: Mapping[str, Visit], site: str, z: list[Heads]) -> Iterator[Heads]:
    """The norm behind a projection, where there is one of the same width as what the heads give."""
    name = f"{site}_norm"
    gave = visits[name].output if name in visits else None
    for heads in z:
        if gave is not None and gave.shape[-1] == heads.width:
            yield replace(heads, module=f"{part}.{name}", side="output", turn=list(visits).index(name))


def _pairs(places: Mapping[str, list[Heads]]) -> list[tuple[Heads, Heads]]:
    """Queries with keys: those of one layout, the norms behind them first."""
    return list(zip(reversed(places["q"]), reversed(places["k"]), strict=False))
