"""Extraction: the states of one batch, at which sites and positions, and what becomes of them inside the trace.

Pooling, picking and casting are functions of plain torch that run where the activation is made, so nothing else leaves
the trace. The examples of the decoder's sites are tokens; a column counts the real tokens of its row, so that padding
never shows. The examples of `vision`, the states of the image tower, and of `projector`, its output, are patches:
`positions` does not select among them, each row has all of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.activations.container import Places, means
from interp.activations.reductions import draw_places, drawn_number, is_mean, shortfall
from interp.activations.sink_counts import SinkCount, count_sinks, reads_for_sinks
from interp.arguments import as_ints
from interp.errors import InputError, LayoutError, NothingSelected, RowError, shown
from interp.models import VLM, Batch, Edit, Intervention
from interp.models.batches.positions import last_true
from interp.models.layout.patches import patches_of, take_patches
from interp.models.running.places import HEADED, STATES
from interp.models.running.steps import Read, reads_of_states, reads_of_vision, take_each, take_mean
from interp.models.running.trace import run_forward

TOKENS = "tokens"
PATCHED = ("vision", "projector")
_SPAN = "captured positions"


def known_sites() -> tuple[str, ...]:
    """The names of all sites that can be captured."""
    return ("resid", *STATES, *HEADED, "pattern", *PATCHED)


def kind_of(site: str) -> str:
    """The kind of a site's examples: "tokens" of the stream, or patches of "vision" or of the "projector"."""
    return site if site in PATCHED else TOKENS


def layers_of(vlm: VLM, site: str, layers: Any) -> tuple[int, ...]:
    """The numbers of these layers at a site: of states for `resid` and `vision`, of layers for all others.

    The projector has one, 0. Raises `InputError` for a number that the site does not have.
    """
    depth = vlm.structure.n_layers
    count = {"resid": depth + 1, "projector": 1}.get(site, depth) if site != "vision" else len(vlm.blocks) + 1
    if isinstance(layers, str) and layers == "all":
        return tuple(range(count))
    chosen = None if isinstance(layers, str | Mapping) else as_ints(layers)
    if not chosen or any(not -count <= layer < count for layer in chosen):
        what = "states" if site in ("resid", "vision") else "layers"
        known = f"{what} 0 to {count - 1}" if count > 1 else "0 alone"
        raise InputError(
            f"layers={layers!r}: {site!r} of {vlm.name!r} has {known}: expected such numbers, 'all', or a dict by site"
        )
    return tuple(layer % count for layer in chosen)


def refuse_images(vlm: VLM, sites: Iterable[str], positions: Any) -> None:
    """Refuse what a language model alone does not have. Raises `LayoutError` for a site of images, `InputError` for their
    positions."""
    sites = list(sites)
    patched = [site for site in sites if site in PATCHED]
    if patched and not vlm.takes_images:
        raise LayoutError(f"{vlm.name!r} takes no image, so it has no site {patched[0]}: expected one of the decoder")
    if sites != patched:
        vlm.refuse_image_positions(positions)


def is_mask(positions: Any) -> bool:
    """Whether positions are a Bool `[batch, seq]`, which holds for the rows of one batch alone."""
    return getattr(positions, "dtype", None) in (torch.bool, np.dtype(bool))


def with_positions(batch: Batch, positions: Any) -> Batch:
    """The batch with the selected positions as a span, which stays with its rows when the batch is cut."""
    return replace(batch, positions=batch.positions.named({_SPAN: batch.positions.select(positions)}))


def extract(vlm: VLM, batch: Batch, selection: CaptureRequest, numbers: Sequence[int]) -> BatchStates:
    """Run the batch and read the selection; `numbers` are those of its rows in the data.

    Raises `RowError` where no position of a row is selected or a row has no image for a site of patches, and
    `RowsNotApart` where patches can be told apart only in rows that are run alone.
    """
    edits, idle = _edits(vlm, batch, selection.interventions)
    reads: list[Read] = []
    places: dict[str, Places] = {}
    pooled: dict[str, Tensor] = {}
    of_tokens = {site: layers for site, layers in selection.sites.items() if kind_of(site) == TOKENS}
    mask = _selected_tokens(batch, selection, numbers) if of_tokens else None
    for site, layers in selection.sites.items():
        kind = kind_of(site)
        examples = (
            _patches(vlm, batch, site, selection, numbers)
            if mask is None or kind != TOKENS
            else _tokens(batch, mask, selection)
        )
        places[kind] = examples.places
        if examples.pooled is not None:
            pooled[kind] = examples.pooled
        function, arguments = _reduction(batch, site, examples, selection.dtype)
        if site == "resid":
            of_site = [read for read in reads_of_states(vlm, function, arguments, edits) if read.key in layers]
        elif site == "vision":
            of_site = reads_of_vision(vlm, function, arguments, layers, edits)
        else:
            of_site = [Read(layer, site, layer, function, arguments) for layer in layers]
        reads += [replace(read, key=(site, read.key)) for read in of_site]
    norms = reads_for_sinks(vlm, of_tokens, edits)
    values = run_forward(vlm, batch, edits, [*reads, *norms], logits=None)
    sinks = None if mask is None else count_sinks(vlm, batch, edits, norms, values, mask)
    tensors = {site: _stack(vlm, site, layers, values) for site, layers in selection.sites.items()}
    return BatchStates(tensors, places, sinks, idle, pooled)


def _edits(vlm: VLM, batch: Batch, interventions: Sequence[Intervention]) -> tuple[list[Edit], frozenset[int]]:
    """The edits of all interventions, and the numbers of those whose positions select nothing in this batch.

    A row without such positions stays as it is beside others that have them, so it does in a batch of its own.
    """
    vlm.refuse_unfit(batch, interventions)
    edits, idle = list[Edit](), set[int]()
    for number, intervention in enumerate(interventions):
        try:
            edits += intervention.edits(vlm, batch)
        except NothingSelected:
            idle.add(number)
    return edits, frozenset(idle)


def _reduction(
    batch: Batch, site: str, examples: _Examples, dtype: torch.dtype | None
) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
    """The function that takes the examples inside the trace, and its arguments."""
    arguments = (*examples.arguments, dtype)
    if site in PATCHED:
        pooled = examples.pooled is not None
        return (take_patch_means, arguments) if pooled else (take_patches, (examples.arguments[0], dtype))
    function = take_each if examples.pooled is None else take_mean
    if site != "pattern":
        return function, arguments
    return take_over_keys, (function, arguments, _keys(batch.positions["all"])[examples.places.rows])


def _stack(vlm: VLM, site: str, layers: Sequence[int], values: Mapping[Any, Tensor]) -> Tensor:
    states = [values[site, layer].to("cpu") for layer in layers]
    shapes: dict[tuple[int, ...], list[int]] = {}
    for layer, state in zip(layers, states, strict=True):
        shapes.setdefault(tuple(state.shape[1:]), []).append(layer)
    if len(shapes) > 1:
        known = "; ".join(f"{list(shape)} in layers {', '.join(map(str, mine))}" for shape, mine in shapes.items())
        raise InputError(
            f"examples of {site!r} of {vlm.name!r} have more than one shape, {known}: capture layers of one shape, as in "
            f"layers={{{site!r}: {next(iter(shapes.values()))}}}"
        )
    return torch.stack(states)


# Tokens ------------------------------------------------------------------------------------------------------------------


def _selected_tokens(batch: Batch, selection: CaptureRequest, numbers: Sequence[int]) -> Bool[Tensor, "batch seq"]:
    """The selected tokens, or those of each row that the reduction picks."""
    mask = _selected(batch, selection.positions)
    empty = (~mask.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        before = f"positions={shown(selection.positions)} selects no position of "
        raise RowError(dict.fromkeys(empty, (before, ": expected one or more in each row")))
    if selection.reduce == "last":
        return last_true(mask)
    if drawn_number(selection.reduce):
        few = shortfall(mask.sum(dim=1), selection.reduce, f"positions={shown(selection.positions)} selects")
        if few:
            raise RowError(few)
        drawn = [
            draw_places(row.nonzero().flatten(), selection.reduce, selection.seed, number)
            for row, number in zip(mask, numbers, strict=True)
        ]
        return torch.zeros_like(mask).scatter(1, torch.stack(drawn).to(mask.device), True)
    return mask


def _tokens(batch: Batch, mask: Bool[Tensor, "batch seq"], selection: CaptureRequest) -> _Examples:
    if is_mean(selection.reduce):
        return _Examples((mask,), means(len(mask)), mask.sum(dim=1))
    rows, columns = mask.nonzero(as_tuple=True)
    real = batch.positions["all"].long().cumsum(dim=1) - 1
    return _Examples((rows, columns), Places(rows, real[rows, columns]))


def _selected(batch: Batch, positions: Any) -> Tensor:
    """The selected positions, Bool `[batch, seq]`; none in a batch where no row has as many images as the name counts."""
    own = batch.positions
    if _SPAN in own:
        return own[_SPAN]
    try:
        return own.select(positions)
    except NothingSelected:
        return torch.zeros_like(own["all"])


def _keys(real: Bool[Tensor, "batch seq"]) -> Int[Tensor, "batch key"]:
    """The columns of each row's real tokens, -1 after them."""
    keys = torch.full((len(real), int(real.sum(dim=1).max())), -1)
    for row, mine in enumerate(real):
        columns = mine.nonzero().flatten()
        keys[row, : len(columns)] = columns
    return keys


def take_over_keys(value, function, arguments, keys):
    """Plain torch, run inside the trace: `function` of an attention pattern, `[example, head, key]`.

    Of its keys those of each example's row are taken, Int `[example, key]`, and 0 where that is -1.
    """
    weights = function(value, *arguments)
    keys = keys.to(weights.device)[:, None, :].expand(-1, weights.shape[1], -1)
    return weights.gather(-1, keys.clamp(min=0)) * (keys >= 0)


# Patches -----------------------------------------------------------------------------------------------------------------


def _patches(vlm: VLM, batch: Batch, site: str, selection: CaptureRequest, numbers: Sequence[int]) -> _Examples:
    """All patches of each row, or those of each row that the reduction picks."""
    patches = patches_of(vlm, batch, site) if batch.has_images else None
    counts = torch.bincount(patches.rows if patches else torch.zeros(0, dtype=torch.long), minlength=len(batch))
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        raise RowError(dict.fromkeys(empty, ("", f" has no image, so no {site}: expected an image in each row")))
    assert patches is not None
    few = shortfall(counts, selection.reduce, f"site {site!r} has")
    if few:
        raise RowError(few)
    picks = torch.arange(len(patches))
    if selection.reduce == "last":
        picks = counts.cumsum(0) - 1
    elif drawn_number(selection.reduce):
        of_row = [picks[patches.rows == row] for row in range(len(batch))]
        drawn = [
            draw_places(mine, selection.reduce, selection.seed, number)
            for mine, number in zip(of_row, numbers, strict=True)
        ]
        picks = torch.cat(drawn)
    rows = patches.rows[picks]
    if is_mean(selection.reduce):
        pooled = torch.bincount(rows, minlength=len(batch))
        return _Examples((patches.index[picks], rows), means(len(batch)), pooled)
    return _Examples((patches.index[picks], rows), Places(rows, picks - (counts.cumsum(0) - counts)[rows]))


def take_patch_means(value, index, rows, dtype):
    """Plain torch, run inside the trace: the mean over each row's patches, accumulated in float32 at least."""
    patches = value[index.to(value.device)]
    wide = patches.to(torch.promote_types(value.dtype, torch.float32))
    rows = rows.to(value.device)
    count = int(rows.max()) + 1
    total = torch.zeros(count, *wide.shape[1:], dtype=wide.dtype, device=wide.device).index_add(0, rows, wide)
    mean = total / torch.bincount(rows, minlength=count)[:, None]
    return mean.to(value.dtype if dtype is None else dtype)


@dataclass(frozen=True)
class CaptureRequest:
    """What a capture reads of each batch: sites and their layers, positions, and what becomes of those."""

    sites: Mapping[str, tuple[int, ...]]
    positions: Any
    reduce: str
    dtype: torch.dtype | None
    interventions: Sequence[Intervention]
    seed: int


@dataclass(frozen=True)
class BatchStates:
    """`[state, example, ...]` of each site, the places of each kind of example, rows counted within the batch, the count of
    attention sinks among the tokens, the numbers of the interventions that select nothing, and for means how many positions
    of each row they are of."""

    tensors: dict[str, Tensor]
    places: dict[str, Places]
    sinks: SinkCount | None = None
    idle: frozenset[int] = frozenset()
    pooled: Mapping[str, Int[Tensor, " row"]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Examples:
    """Where the examples of one site are: `arguments` select them inside the trace, for means all that are pooled, so many of
    each row as `pooled` says."""

    arguments: tuple[Tensor, ...]
    places: Places
    pooled: Int[Tensor, " row"] | None = None
