"""Attention shares: how much of their attention the queries of one kind give to the keys of another.

The weights of a query sum to one, so the part of them that lies on image tokens is a share. Averaged over the text
tokens of a row it says how much each head of each layer looks at the image; and the shares of all kinds of key sum to
one. A share alone says little: 36 of 40 keys will get most of the attention from a head that looks at nothing in
particular. So beside each share stands its chance level, what attention spread evenly over the keys that the query may
see would give, and `lift` is the one over the other.

The *deficit* is this toolkit's own reading of the imbalance between modalities that MODA (arXiv 2507.04635) describes:

    deficit = 1 - lift(queries -> other kind) / lift(queries -> their own kind)

0 where a key of the other kind gets as much as one of the query's own kind, 1 where it gets nothing, below 0 where it
gets more. Being a ratio of lifts it does not depend on how many keys of each kind there are.

A share says where a head looks, not what it does with what it sees: cut the edge (`interp.interventions.Knockout`) to
know that.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import checked_seed
from interp.errors import InputError, LayoutError, shown
from interp.models import VLM, Batch, Intervention
from interp.models.running.steps import Read
from interp.models.running.trace import run_forward
from interp.provenance import Provenance, fingerprint
from interp.results import Result
from interp.statistics.bootstrap import bootstrap_mean


@dataclass(frozen=True)
class ShareResult(Result):
    """How much attention queries of one kind give to keys of another, in every head.

    `values[layer, head]` is the mean over rows of `per_row[row, layer, head]`, the mean over the row's queries; `low` and
    `high` bound it (95 %, bootstrap over rows; NaN for one row). `chance[layer]` is what attention spread evenly over the
    visible keys gives, the mean over rows of `chance_rows[row, layer]`. `by_position[row, layer, position]` says how much
    each key gets, mean over queries and heads, 0 for keys that were not asked about; its sum over positions is the share.

    A layer without attention weights (linear attention, convolutions, weights that could not be proved) is NaN, and so
    are heads that a layer has fewer of than others, and rows that lack queries or keys, which do not count: the provenance
    notes how many these are.
    """

    values: Float[Tensor, "layer head"]
    low: Float[Tensor, "layer head"]
    high: Float[Tensor, "layer head"]
    chance: Float[Tensor, " layer"]
    per_row: Float[Tensor, "row layer head"]
    chance_rows: Float[Tensor, "row layer"]
    by_position: Float[Tensor, "row layer position"]
    queries: str
    keys: str

    def __post_init__(self) -> None:
        if self.per_row.shape[1:] != self.values.shape or self.chance_rows.shape != self.per_row.shape[:2]:
            raise InputError(
                f"per_row of shape {tuple(self.per_row.shape)} does not fit values {tuple(self.values.shape)}: expected "
                "[row, layer, head]"
            )

    @property
    def lift(self) -> Float[Tensor, "layer head"]:
        """Each share over its chance level: 1 for a head that does not care."""
        return self.values / self.chance[:, None]

    def decay(self, seed: int = 0) -> tuple[float, float, float]:
        """The slope of the share over depth, per layer, with its 95 % interval: least squares on the mean over heads of
        each row, then the mean over rows and its bootstrap. Layers without weights are left out.

        Raises `InputError` where fewer than two layers have weights, and for a seed that is no int from 0 on.
        """
        of_rows = self.per_row.nanmean(dim=-1)
        of_rows = of_rows[~of_rows.isnan().all(dim=1)]
        layers = (~of_rows.isnan().any(dim=0)).nonzero().flatten()
        if len(layers) < 2:
            raise InputError(f"{len(layers)} of {len(self.values)} layers have a share: a slope needs two or more")
        depth = layers.double() - layers.double().mean()
        slopes = of_rows[:, layers].double() @ depth / depth.square().sum()
        low, high = bootstrap_mean(slopes, checked_seed(seed))
        return float(slopes.mean()), float(low), float(high)

    def to_frame(self) -> pd.DataFrame:
        rows = []
        for layer, head in torch.cartesian_prod(*map(torch.arange, self.values.shape)).tolist():
            at = {name: float(getattr(self, name)[layer, head]) for name in ("values", "low", "high")}
            at["value"] = at.pop("values")
            named = {"layer": layer, "head": head, "queries": self.queries, "keys": self.keys}
            rows.append({**named, **at, "chance": float(self.chance[layer])})
        return pd.DataFrame(rows)


@dataclass(frozen=True)
class MassResult(Result):
    """The attention between two kinds of position, all four ways: a `ShareResult` for each pair of query and key.

    `values[query, key, layer]` are means over heads, `chance` their levels; the kinds are counted as in `kinds`.
    """

    kinds: tuple[str, str]
    shares: list[ShareResult]

    def __post_init__(self) -> None:
        if len(self.shares) != 4:
            raise InputError(f"{len(self.shares)} shares: expected four, one for each query and key of two kinds")

    @property
    def values(self) -> Float[Tensor, "query key layer"]:
        return torch.stack([share.values.nanmean(dim=1) for share in self.shares]).unflatten(0, (2, 2))

    @property
    def chance(self) -> Float[Tensor, "query key layer"]:
        return torch.stack([share.chance for share in self.shares]).unflatten(0, (2, 2))

    @property
    def deficit(self) -> Float[Tensor, "query layer"]:
        """``1 - lift(to the other kind) / lift(to its own)`` of the queries of each kind; NaN where they cannot see the other
        kind at all."""
        lift = self.values / self.chance
        return torch.stack([1 - lift[0, 1] / lift[0, 0], 1 - lift[1, 0] / lift[1, 1]])

    def to_frame(self) -> pd.DataFrame:
        deficit, values, chance = self.deficit, self.values, self.chance
        return pd.DataFrame(
            {
                "queries": self.kinds[query],
                "keys": self.kinds[key],
                "layer": layer,
                "value": float(values[query, key, layer]),
                "chance": float(chance[query, key, layer]),
                "deficit": float(deficit[query, layer]),
            }
            for query, key, layer in torch.cartesian_prod(*map(torch.arange, values.shape)).tolist()
        )


def attention_share(
    vlm: VLM,
    batch: Batch,
    queries: Any = "text",
    keys: Any = "image",
    interventions: Sequence[Intervention] = (),
    seed: int = 0,
) -> ShareResult:
    """The share of their attention that `queries` give to `keys`, both whatever is taken as positions.

    One forward pass with eager attention, reduced where the weights are made. `seed` is that of the bootstrap.

    Raises `InputError` where no row has both queries and keys, for a seed that is no int from 0 on, for weights that are no
    numbers, and for a model on a server whose attention is not eager; `LayoutError` where the weights were proved in no
    layer.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> scene = interp.toy.scenes(1, seed=0)[0]
    >>> batch = vlm.prepare(texts=[scene.questions[0].prompt], images=[scene.image])
    >>> interp.lens.attention_share(vlm, batch, queries="last", keys="image").values.shape
    torch.Size([8, 4])
    """
    vlm.refuse_unfit(batch, interventions)
    masks = (batch.positions.select(queries), batch.positions.select(keys))
    return _shares(vlm, batch, {(_said(queries), _said(keys)): masks}, interventions, seed)[0]


def attention_masses(
    vlm: VLM,
    batch: Batch,
    kinds: Sequence[str] = ("image", "text"),
    interventions: Sequence[Intervention] = (),
    seed: int = 0,
) -> MassResult:
    """The attention within and between two kinds of position, in one forward pass: self and cross mass.

    Rows that have positions of both kinds count, the others do not, so that all four are of the same rows.

    Raises what `attention_share` raises, and `InputError` where the kinds are not two names that differ.
    """
    named = isinstance(kinds, list | tuple) and all(isinstance(kind, str) for kind in kinds)
    if not named or not len(kinds) == len(set(kinds)) == 2:
        raise InputError(f"kinds={shown(kinds)}: expected two names of positions that differ, as in ('image', 'text')")
    vlm.refuse_unfit(batch, interventions)
    first, second = kinds
    masks = {kind: batch.positions.select(kind) for kind in kinds}
    both = torch.stack([mask.any(dim=1) for mask in masks.values()]).all(dim=0)[:, None]
    asked = {(a, b): (masks[a] & both, masks[b] & both) for a in kinds for b in kinds}
    shares = _shares(vlm, batch, asked, interventions, seed)
    return MassResult((first, second), shares, provenance=shares[0].provenance)


def _said(positions: Any) -> str:
    """Positions as a result names them."""
    return positions if isinstance(positions, str) else shown(positions)


def _shares(
    vlm: VLM,
    batch: Batch,
    asked: Mapping[tuple[str, str], tuple[Tensor, Tensor]],
    interventions: Sequence[Intervention],
    seed: int,
) -> list[ShareResult]:
    """One result for each pair of queries and keys, of which the names and the masks are given; rows that lack one lack it
    in all pairs."""
    edits, seed = vlm.edits_of(batch, interventions), checked_seed(seed)
    counted = {pair: torch.stack([mask.any(dim=1) for mask in masks]).all(dim=0) for pair, masks in asked.items()}
    for (queries, keys), rows in counted.items():
        if not rows.any():
            raise InputError(
                f"queries={queries!r}, keys={keys!r}: no row of this batch has positions of both, expected one"
            )
    layers = [layer for layer, place in enumerate(vlm.trait("pattern")) if place is not None]
    if not layers:
        raise LayoutError(f"{vlm.name!r} has no layer whose attention weights could be proved: no share is to be had")
    reads = []
    for pair, masks in asked.items():
        for layer in layers:
            reads.append(Read(("weights", pair, layer), "pattern", layer, mean_to_keys, masks))
            reads.append(Read(("chance", pair, layer), "mask", layer, even_share, masks))
    seen = {key: value.cpu() for key, value in run_forward(vlm, batch, edits, reads, logits=None).items()}
    left_out = int((~torch.stack(list(counted.values())).all(dim=0)).sum())
    needed = " or ".join(dict.fromkeys(itertools.chain.from_iterable(asked)))
    provenance = Provenance(
        model=vlm.name,
        revision=vlm.revision,
        data=fingerprint(batch),
        seed=seed,
        interventions=tuple(map(repr, interventions)),
        notes=(f"{left_out} of {len(batch)} rows lack {needed} and do not count",) if left_out else (),
    )
    results = []
    for pair in asked:
        weights = {layer: seen["weights", pair, layer] for layer in layers}
        chances = {layer: seen["chance", pair, layer] for layer in layers}
        results.append(_result(vlm, pair, counted[pair], weights, chances, seed, provenance))
    return results


def _result(
    vlm: VLM,
    pair: tuple[str, str],
    counted: Tensor,
    weights: dict[int, Tensor],
    chances: dict[int, Tensor],
    seed: int,
    made: Provenance,
) -> ShareResult:
    """The shares of one pair, of which the rows that are `counted` (Bool `[row]`) have queries and keys."""
    depth, n_heads = vlm.structure.n_layers, vlm.structure.n_heads
    rows, _, length = next(iter(weights.values())).shape
    by_head = torch.full((rows, depth, n_heads), torch.nan)
    by_position = torch.full((rows, depth, length), torch.nan)
    chance = torch.full((rows, depth), torch.nan)
    for layer, each in weights.items():
        _refuse_no_numbers(vlm, layer, each, counted)
        by_head[:, layer, : each.shape[1]] = each.sum(dim=-1)
        by_position[:, layer] = each.mean(dim=1)
        chance[:, layer] = chances[layer]
    low, high = bootstrap_mean(by_head[counted], seed)
    return ShareResult(
        values=by_head[counted].mean(dim=0),
        low=low,
        high=high,
        chance=chance.nanmean(dim=0),
        per_row=by_head,
        chance_rows=chance,
        by_position=by_position,
        queries=pair[0],
        keys=pair[1],
        provenance=made,
    )


def _refuse_no_numbers(vlm: VLM, layer: int, weights: Tensor, counted: Tensor) -> None:
    wrong = (weights.isnan().flatten(1).any(dim=1) & counted).nonzero().flatten().tolist()
    if wrong:
        raise InputError(
            f"the attention weights of row {wrong[0]} in layer {layer} are no numbers in this run of {vlm.name!r}: expected "
            "states that it can take, make the interventions smaller"
        )


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def mean_to_keys(pattern, queries, keys):
    """How much each key gets, `[row, head, key]`, mean over a row's queries; 0 for keys that are not asked about, NaN for a
    row that lacks either."""
    queries, keys = queries.to(pattern.device), keys.to(pattern.device)
    counts = (queries.sum(dim=1) * keys.any(dim=1))[:, None, None]
    total = torch.einsum("bqhk,bq->bhk", pattern.float(), queries.float()) * keys[:, None, :]
    return (total / counts).masked_fill(counts == 0, torch.nan)


def even_share(allowed, queries, keys):
    """What attention spread evenly over the keys that may be seen, `[batch, head, query, key]`, gives these keys; `[row]`."""
    queries, keys = queries.to(allowed.device), keys.to(allowed.device)
    sees = allowed.expand(len(queries), -1, -1, -1).float()
    shares = (sees * keys[:, None, None, :]).sum(dim=-1) / sees.sum(dim=-1).clamp(min=1)
    counts = queries.sum(dim=1) * keys.any(dim=1)
    total = (shares.mean(dim=1) * queries).sum(dim=1)
    return (total / counts).masked_fill(counts == 0, torch.nan)
