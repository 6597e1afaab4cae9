"""Attention shares: how much of their attention the queries of one kind give to the keys of another.

The attention weights of a query sum to one, so the part of them on image tokens is a share. Averaged over the text tokens
of a row, it says how much each head of each layer looks at the image; the shares over all kinds of key sum to one. A share
alone says little: a head without any preference gives most of its attention to 36 of 40 keys. So each share comes with its
chance level, the share under attention spread evenly over the keys that the query may see. `lift` is their ratio.

The *deficit* is this toolkit's own measure of the imbalance between modalities that MODA (arXiv 2507.04635) describes:

    deficit = 1 - lift(queries -> other kind) / lift(queries -> their own kind)

It is 0 where a key of the other kind gets as much as one of the query's own kind, 1 where it gets nothing, and negative
where it gets more. As a ratio of lifts it does not depend on how many keys of each kind there are.

A share says where a head looks, not what it does with what it reads there. To learn that, cut the edge
(`interp.interventions.Knockout`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from interp.activations.sink_counts import count_sinks, notes_of_sinks, reads_of_norms
from interp.arguments import checked_seed
from interp.errors import InputError, LayoutError, shown
from interp.models import VLM, Batch, Intervention
from interp.models.batches.positions import name_of_positions
from interp.models.running.steps import Read
from interp.models.running.trace import run_forward
from interp.provenance import provenance_of_run
from interp.results import Result
from interp.statistics.intervals import few_rows, mean_interval


@dataclass(frozen=True)
class ShareResult(Result):
    """How much attention queries of one kind give to keys of another, in every head.

    `values[layer, head]` is the mean over rows of `per_row[row, layer, head]`, itself the mean over the row's queries. `low`
    and `high` are its 95 % bounds (`interp.statistics.mean_interval`; NaN for one row). `chance[layer]` is the share under
    attention spread evenly over the visible keys, the mean over rows of `chance_rows[row, layer]`.
    `by_position[row, layer, position]` is what each key gets, mean over queries and heads, 0 for other keys; its sum over
    positions is the share.

    NaN stands for layers without attention weights (linear attention, convolutions, unproved weights), for heads that a
    layer lacks, and for rows without queries or keys. Such rows do not count, and the provenance notes their number.
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
        """Each share over its chance level: 1 for a head without a preference."""
        return self.values / self.chance[:, None]

    def decay(self, seed: int = 0) -> tuple[float, float, float]:
        """The slope of the share over depth, per layer, with its 95 % interval: a least-squares fit to the mean over heads
        of each row, then the mean over rows and its 95 % bounds. Layers without weights are left out.

        Raises `InputError` where fewer than two layers have weights, and for a seed that is not an int from 0.
        """
        of_rows = self.per_row.nanmean(dim=-1)
        of_rows = of_rows[~of_rows.isnan().all(dim=1)]
        layers = (~of_rows.isnan().any(dim=0)).nonzero().flatten()
        if len(layers) < 2:
            raise InputError(
                f"{len(layers)} of {len(self.values)} layers have a share: expected two or more, a slope needs them"
            )
        depth = layers.double() - layers.double().mean()
        slopes = of_rows[:, layers].double() @ depth / depth.square().sum()
        low, high = mean_interval(slopes, seed=checked_seed(seed))
        return float(slopes.mean()), float(low), float(high)

    def to_frame(self) -> pd.DataFrame:
        """One row a head: layer, head, queries, keys, its share with its bounds, and the chance level."""
        layers, heads = torch.cartesian_prod(*map(torch.arange, self.values.shape)).T
        columns = {"low": self.low, "high": self.high, "value": self.values}
        return pd.DataFrame(
            {
                "layer": layers.tolist(),
                "head": heads.tolist(),
                "queries": self.queries,
                "keys": self.keys,
                **{name: column.flatten().tolist() for name, column in columns.items()},
                "chance": self.chance[layers].tolist(),
            }
        )


@dataclass(frozen=True)
class MassResult(Result):
    """The attention within and between two kinds of position: a `ShareResult` for each of the four pairs of query and key.

    `values[query, key, layer]` are means over heads, `chance` their chance levels. Both kinds are in the order of `kinds`.
    """

    kinds: tuple[str, str]
    shares: list[ShareResult]

    def __post_init__(self) -> None:
        if len(self.shares) != 4:
            raise InputError(f"{len(self.shares)} shares: expected four, one for each pair of query and key")

    @property
    def values(self) -> Float[Tensor, "query key layer"]:
        """The mean share over heads."""
        shares = [share.values.nanmean(dim=1) for share in self.shares]
        return rearrange(shares, "(query key) layer -> query key layer", query=2)

    @property
    def chance(self) -> Float[Tensor, "query key layer"]:
        """The chance level of each share."""
        return rearrange([share.chance for share in self.shares], "(query key) layer -> query key layer", query=2)

    @property
    def deficit(self) -> Float[Tensor, "query layer"]:
        """``1 - lift(to the other kind) / lift(to its own)`` of the queries of each kind; NaN where they see nothing of the
        other kind."""
        lift = self.values / self.chance
        return torch.stack([1 - lift[0, 1] / lift[0, 0], 1 - lift[1, 0] / lift[1, 1]])

    def to_frame(self) -> pd.DataFrame:
        """One row a pair and layer: queries, keys, layer, value, chance, and the deficit of the queries."""
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
    """The share of their attention that `queries` give to `keys`, in every head; both are positions in any form.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> scene = interp.toy.scenes(1, seed=0)[0]
    >>> batch = vlm.prepare(texts=[scene.questions[0].prompt], images=[scene.image])
    >>> interp.lens.attention_share(vlm, batch, queries="last", keys="image").values.shape
    torch.Size([8, 4])

    It takes one forward pass with eager attention, reduced where the weights are computed. `seed` is for the bootstrap.

    Raises `InputError` where no row has both queries and keys, for a seed that is not an int from 0, for weights that are
    not finite, and for a model on a server without eager attention. Raises `LayoutError` for a model without a layer whose
    weights were proved.
    """
    vlm.refuse_unfit(batch, interventions)
    for positions in (queries, keys):
        vlm.refuse_image_positions(positions)
    masks = (batch.positions.select(queries), batch.positions.select(keys))
    return _shares(vlm, batch, {(name_of_positions(queries), name_of_positions(keys)): masks}, interventions, seed)[0]


def attention_masses(
    vlm: VLM,
    batch: Batch,
    kinds: Sequence[str] = ("image", "text"),
    interventions: Sequence[Intervention] = (),
    seed: int = 0,
) -> MassResult:
    """The attention within and between two kinds of position, in one forward pass: self and cross mass.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> scene = interp.toy.scenes(1, seed=0)[0]
    >>> batch = vlm.prepare(texts=[scene.questions[0].prompt], images=[scene.image])
    >>> interp.lens.attention_masses(vlm, batch).values.shape
    torch.Size([2, 2, 8])

    Only rows with positions of both kinds count, so that all four shares are of the same rows.

    Raises what `attention_share` raises, and `InputError` unless the kinds are two different names.
    """
    named = isinstance(kinds, list | tuple) and all(isinstance(kind, str) for kind in kinds)
    if not named or not len(kinds) == len(set(kinds)) == 2:
        raise InputError(f"kinds={shown(kinds)}: expected two different names of positions, as in ('image', 'text')")
    vlm.refuse_unfit(batch, interventions)
    first, second = kinds
    for kind in kinds:
        vlm.refuse_image_positions(kind)
    masks = {kind: batch.positions.select(kind) for kind in kinds}
    both = torch.stack([mask.any(dim=1) for mask in masks.values()]).all(dim=0)[:, None]
    pairs = {(a, b): (masks[a] & both, masks[b] & both) for a in kinds for b in kinds}
    shares = _shares(vlm, batch, pairs, interventions, seed)
    return MassResult((first, second), shares, provenance=shares[0].provenance)


def _shares(
    vlm: VLM,
    batch: Batch,
    pairs: Mapping[tuple[str, str], tuple[Tensor, Tensor]],
    interventions: Sequence[Intervention],
    seed: int,
) -> list[ShareResult]:
    """One result for each pair of queries and keys, given by their names and masks."""
    edits, seed = vlm.edits_of(batch, interventions), checked_seed(seed)
    counted = {pair: torch.stack([mask.any(dim=1) for mask in masks]).all(dim=0) for pair, masks in pairs.items()}
    for (queries, keys), rows in counted.items():
        if not rows.any():
            raise InputError(
                f"queries={queries!r}, keys={keys!r}: no row of this batch has positions of both, expected one"
            )
    layers = [layer for layer, place in enumerate(vlm.trait("pattern")) if place is not None]
    if not layers:
        raise LayoutError(f"{vlm.name!r}: attention weights were proved in no layer, so they have no shares")
    reads = []
    for pair, masks in pairs.items():
        for layer in layers:
            reads.append(Read(("weights", pair, layer), "pattern", layer, mean_to_keys, masks))
            reads.append(Read(("chance", pair, layer), "mask", layer, even_share, masks))
    norms = reads_of_norms(vlm, edits)
    outputs = {key: value.cpu() for key, value in run_forward(vlm, batch, edits, [*reads, *norms], logits=None).items()}
    read = torch.stack([mask for masks in pairs.values() for mask in masks]).any(dim=0)
    sinks = count_sinks(vlm, batch, edits, norms, outputs, read)
    left_out = int((~torch.stack(list(counted.values())).all(dim=0)).sum())
    needed = " or ".join(dict.fromkeys(itertools.chain.from_iterable(pairs)))
    lacking = (f"{left_out} of {len(batch)} rows lack {needed} and do not count",) if left_out else ()
    notes = (*lacking, *few_rows(min(int(rows.sum()) for rows in counted.values())))
    notes = (*notes, *notes_of_sinks(sinks, len(batch), "which draw attention whatever they hold"))
    provenance = provenance_of_run(vlm, [batch], interventions, seed, notes)
    results = []
    for pair, rows in counted.items():
        weights = {layer: outputs["weights", pair, layer] for layer in layers}
        per_row, by_position = _by_head_and_position(vlm, weights, rows)
        chance = torch.full((len(batch), len(per_row[0])), torch.nan, dtype=torch.float32)
        chance[:, layers] = torch.stack([outputs["chance", pair, layer] for layer in layers], dim=1)
        low, high = (bound.clamp(0, 1) for bound in mean_interval(per_row[rows], seed=seed))
        share = ShareResult(
            values=per_row[rows].mean(dim=0),
            low=low,
            high=high,
            chance=chance.nanmean(dim=0),
            per_row=per_row,
            chance_rows=chance,
            by_position=by_position,
            queries=pair[0],
            keys=pair[1],
            provenance=provenance,
        )
        results.append(share)
    return results


def _by_head_and_position(vlm: VLM, weights: dict[int, Tensor], counted: Tensor) -> tuple[Tensor, Tensor]:
    """The weights `[row, head, key]` of some layers, summed over keys `[row, layer, head]` and averaged over heads `[row,
    layer, key]`; NaN elsewhere. Rows that are `counted` must have finite weights."""
    rows, _, length = next(iter(weights.values())).shape
    by_head = torch.full((rows, vlm.structure.n_layers, vlm.structure.n_heads), torch.nan, dtype=torch.float32)
    by_position = torch.full((rows, vlm.structure.n_layers, length), torch.nan, dtype=torch.float32)
    for layer, of_layer in weights.items():
        _refuse_no_numbers(vlm, layer, of_layer, counted)
        by_head[:, layer, : of_layer.shape[1]] = of_layer.sum(dim=-1)
        by_position[:, layer] = of_layer.mean(dim=1)
    return by_head, by_position


def _refuse_no_numbers(vlm: VLM, layer: int, weights: Tensor, counted: Tensor) -> None:
    wrong = (weights.isnan().flatten(1).any(dim=1) & counted).nonzero().flatten().tolist()
    if wrong:
        raise InputError(
            f"the attention weights of row {wrong[0]} in layer {layer} are not numbers in this run of {vlm.name!r}: expected "
            "states that it can take, make the interventions smaller"
        )


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def mean_to_keys(pattern, queries, keys):
    """How much each key gets, `[row, head, key]`, mean over a row's queries; 0 for positions that are not keys, NaN for a
    row without queries or keys."""
    queries, keys = queries.to(pattern.device), keys.to(pattern.device)
    counts = (queries.sum(dim=1) * keys.any(dim=1))[:, None, None]
    total = torch.einsum("bqhk,bq->bhk", pattern.float(), queries.float()) * keys[:, None, :]
    return (total / counts).masked_fill(counts == 0, torch.nan)


def even_share(allowed, queries, keys):
    """The share of these keys under attention spread evenly over visible keys, `[row]`; `allowed` `[batch, head, query, key]`
    says which keys a query may see."""
    queries, keys = queries.to(allowed.device), keys.to(allowed.device)
    visible = allowed.expand(len(queries), -1, -1, -1).float()
    shares = (visible * keys[:, None, None, :]).sum(dim=-1) / visible.sum(dim=-1).clamp(min=1)
    counts = queries.sum(dim=1) * keys.any(dim=1)
    total = (shares.mean(dim=1) * queries).sum(dim=1)
    return (total / counts).masked_fill(counts == 0, torch.nan)
