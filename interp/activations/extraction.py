"""What is taken of one batch: which positions, at which sites, and what becomes of them inside the trace.

Pooling, picking and casting are functions of plain torch that run where the activation is made, so nothing else leaves
the trace. The examples of the decoder's sites are tokens; a column counts the real tokens of its row, so that padding
never shows. The examples of `vision`, the states of the image tower, and of `projector`, what it gives to the stream,
are patches: `positions` does not speak of them, a row has all of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.activations.container import Places, means
from interp.arguments import as_ints
from interp.errors import InputError, shown
from interp.models import VLM, Batch, Intervention
from interp.models.layout.patches import patches_of, take_patches
from interp.models.running.places import HEADED, STATES
from interp.models.running.steps import Read, reads_of_states, reads_of_vision, take_each, take_mean
from interp.models.running.trace import run_forward

REDUCTIONS = ("mean", "last", "none", "sample")
TOKENS = "tokens"
PATCHED = ("vision", "projector")
_PICKED = "picked positions"


@dataclass(frozen=True)
class Wanted:
    """What a capture takes of each batch: sites and their layers, positions, and what becomes of those."""

    sites: Mapping[str, tuple[int, ...]]
    positions: Any
    reduce: str
    dtype: torch.dtype | None
    interventions: Sequence[Intervention]
    seed: int


@dataclass(frozen=True)
class Taken:
    """`[state, example, ...]` of each site, and the places of each kind of example, rows counted within the batch."""

    tensors: dict[str, Tensor]
    places: dict[str, Places]


def known_sites() -> tuple[str, ...]:
    """The names of all sites that can be captured."""
    return ("resid", *STATES, *HEADED, "pattern", *PATCHED)


def kind_of(site: str) -> str:
    """What the examples of a site are: "tokens" of the stream, or patches of "vision" or of the "projector"."""
    return site if site in PATCHED else TOKENS


def layers_of(vlm: VLM, site: str, layers: Any) -> tuple[int, ...]:
    """The numbers of these layers at a site: of states where it is `resid` or `vision`, of layers elsewhere.

    The projector has one, 0. Raises `InputError` for a number that the site does not have.
    """
    depth = vlm.structure.n_layers
    count = {"resid": depth + 1, "projector": 1}.get(site, depth) if site != "vision" else len(vlm.blocks) + 1
    if isinstance(layers, str) and layers == "all":
        return tuple(range(count))
    chosen = None if isinstance(layers, str | Mapping) else as_ints(layers)
    if not chosen or any(not -count <= layer < count for layer in chosen):
        what = "states" if site in ("resid", "vision") else "layers"
        there = f"{what} 0 to {count - 1}" if count > 1 else "0 alone"
        raise InputError(
            f"layers={layers!r}: {site!r} of {vlm.name!r} has {there}: expected such numbers, 'all', or a dict by site"
        )
    return tuple(layer % count for layer in chosen)


def is_mask(positions: Any) -> bool:
    """Whether positions are a Bool `[batch, seq]`, which speaks of the rows of one batch."""
    return getattr(positions, "dtype", None) in (torch.bool, np.dtype(bool))


def hold_positions(batch: Batch, positions: Any) -> Batch:
    """The batch with the selected positions as a span, which stays with its rows where the batch is cut."""
    return replace(batch, positions=batch.positions.named({_PICKED: batch.positions.select(positions)}))


def take(vlm: VLM, batch: Batch, wanted: Wanted, numbers: Sequence[int]) -> Taken:
    """Run the batch and take what is wanted; `numbers` are those of its rows in the data.

    Raises `InputError` where no position of a row is selected or a row has no image whose patches are wanted,
    `RowsNotApart` where patches can be told apart only in rows that are run alone.
    """
    edits = vlm.edits_of(batch, wanted.interventions)
    reads: list[Read] = []
    places: dict[str, Places] = {}
    for site, layers in wanted.sites.items():
        kind = kind_of(site)
        if kind == TOKENS:
            mask = _picked(batch, wanted, numbers)
            places[kind] = _places(batch, mask, wanted.reduce)
            of_site = _reads(vlm, batch, site, layers, mask, wanted, edits)
        else:
            patches = _patches(vlm, batch, site, wanted, numbers)
            places[kind] = patches.places
            of_site = _reads_of_patches(vlm, site, layers, patches, wanted, edits)
        reads += [replace(read, key=(site, read.key)) for read in of_site]
    seen = run_forward(vlm, batch, edits, reads, logits=None)
    return Taken({site: _stacked(vlm, site, layers, seen) for site, layers in wanted.sites.items()}, places)


def _stacked(vlm: VLM, site: str, layers: Sequence[int], seen: Mapping[Any, Tensor]) -> Tensor:
    taken = [seen[site, layer].to("cpu") for layer in layers]
    alike: dict[tuple[int, ...], list[int]] = {}
    for layer, each in zip(layers, taken, strict=True):
        alike.setdefault(tuple(each.shape[1:]), []).append(layer)
    if len(alike) > 1:
        there = "; ".join(f"{list(shape)} in layers {', '.join(map(str, mine))}" for shape, mine in alike.items())
        raise InputError(
            f"examples of {site!r} of {vlm.name!r} have more than one shape, {there}: capture layers of one shape, as in "
            f"layers={{{site!r}: {next(iter(alike.values()))}}}"
        )
    return torch.stack(taken)


# Tokens ------------------------------------------------------------------------------------------------------------------


def _reads(
    vlm: VLM, batch: Batch, site: str, layers: Sequence[int], mask: Tensor, wanted: Wanted, edits: Sequence[Any]
) -> list[Read]:
    pooled = wanted.reduce == "mean"
    function = take_mean if pooled else take_each
    arguments: tuple[Any, ...] = (mask, wanted.dtype) if pooled else (*mask.nonzero(as_tuple=True), wanted.dtype)
    if site == "resid":
        return [read for read in reads_of_states(vlm, function, arguments, edits) if read.key in layers]
    if site == "pattern":
        rows = torch.arange(len(batch)) if pooled else arguments[0]
        arguments = (function, arguments, _keys(batch.positions["all"])[rows])
        function = take_over_keys
    return [Read(layer, site, layer, function, arguments) for layer in layers]


def _keys(real: Bool[Tensor, "batch seq"]) -> Int[Tensor, "batch key"]:
    """The columns of each row's real tokens, -1 behind them."""
    keys = torch.full((len(real), int(real.sum(dim=1).max())), -1)
    for row, mine in enumerate(real):
        places = mine.nonzero().flatten()
        keys[row, : len(places)] = places
    return keys


def take_over_keys(value, function, arguments, keys):
    """Plain torch, run inside the trace: `function` of an attention pattern, `[example, head, key]`.

    Of its keys those of each example's row are taken, Int `[example, key]`, and 0 where that is -1.
    """
    taken = function(value, *arguments)
    keys = keys.to(taken.device)[:, None, :].expand(-1, taken.shape[1], -1)
    return taken.gather(-1, keys.clamp(min=0)) * (keys >= 0)


def _picked(batch: Batch, wanted: Wanted, numbers: Sequence[int]) -> Bool[Tensor, "batch seq"]:
    """The positions that are read: all selected ones, or the one of each row that the reduction wants."""
    mask = batch.positions[_PICKED] if _PICKED in batch.positions else batch.positions.select(wanted.positions)
    for number, row in zip(numbers, mask, strict=True):
        if not row.any():
            raise InputError(
                f"positions={shown(wanted.positions)} selects no position of row {number}: expected one or more in each row"
            )
    if wanted.reduce == "last":
        return mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    if wanted.reduce == "sample":
        of_row = [row.nonzero().flatten() for row in mask]
        chosen = [_one_of(mine, wanted.seed, number) for mine, number in zip(of_row, numbers, strict=True)]
        return torch.zeros_like(mask).scatter(1, torch.stack(chosen)[:, None], True)
    return mask


def _one_of(places: Tensor, seed: int, number: int) -> Tensor:
    """One of a row's places: which depends on the seed and on the row's number, not on its batch."""
    return places[int(np.random.default_rng([seed, number]).integers(len(places)))]


def _places(batch: Batch, mask: Tensor, reduce: str) -> Places:
    if reduce == "mean":
        return means(len(mask))
    rows, columns = mask.nonzero(as_tuple=True)
    counted = batch.positions["all"].long().cumsum(dim=1) - 1
    return Places(rows, counted[rows, columns])


# Patches -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Patches:
    """The patches that are read, as indices of the tokens of their module; and the places of the examples they make."""

    index: Tensor
    rows: Tensor
    places: Places


def _patches(vlm: VLM, batch: Batch, site: str, wanted: Wanted, numbers: Sequence[int]) -> _Patches:
    """All patches of each row, or the one of each row that the reduction wants."""
    found = patches_of(vlm, batch, site) if batch.has_images else None
    counts = torch.bincount(found.rows if found else torch.zeros(0, dtype=torch.long), minlength=len(batch))
    for number, count in zip(numbers, counts.tolist(), strict=True):
        if not count:
            raise InputError(f"row {number} has no image, so no {site}: expected an image in each row")
    assert found is not None
    columns = torch.arange(len(found)) - (counts.cumsum(0) - counts)[found.rows]
    if wanted.reduce == "mean":
        return _Patches(found.index, found.rows, means(len(batch)))
    chosen = torch.arange(len(found))
    if wanted.reduce == "last":
        chosen = counts.cumsum(0) - 1
    elif wanted.reduce == "sample":
        of_row = [chosen[found.rows == row] for row in range(len(batch))]
        chosen = torch.stack([_one_of(mine, wanted.seed, number) for mine, number in zip(of_row, numbers, strict=True)])
    rows = found.rows[chosen]
    return _Patches(found.index[chosen], rows, Places(rows, columns[chosen]))


def _reads_of_patches(
    vlm: VLM, site: str, layers: Sequence[int], patches: _Patches, wanted: Wanted, edits: Sequence[Any]
) -> list[Read]:
    pooled = wanted.reduce == "mean"
    function = take_patch_means if pooled else take_patches
    arguments = (patches.index, patches.rows, wanted.dtype) if pooled else (patches.index, wanted.dtype)
    if site == "vision":
        return reads_of_vision(vlm, function, arguments, layers, edits)
    return [Read(layer, site, layer, function, arguments) for layer in layers]


def take_patch_means(value, index, rows, dtype):
    """Plain torch, run inside the trace: the mean over each row's patches, accumulated in float32 at least."""
    patches = value[index.to(value.device)]
    wide = patches.to(torch.promote_types(value.dtype, torch.float32))
    rows = rows.to(value.device)
    count = int(rows.max()) + 1
    total = torch.zeros(count, *wide.shape[1:], dtype=wide.dtype, device=wide.device).index_add(0, rows, wide)
    mean = total / torch.bincount(rows, minlength=count)[:, None]
    return mean.to(value.dtype if dtype is None else dtype)
