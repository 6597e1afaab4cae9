"""Which patch of which row each token of the image tower is.

The tower does not see rows. It sees sequences (an image, or one tile of an image) or the patches of all images packed one
behind the other, and beside the patches it may hold tokens that are none: a class token, registers, padding. So before
its states are read, two questions are answered for the batch in hand.

*What is a patch?* A token of state 0 that another picture moves, unless the encoding marks it as padding. A class token
enters the first block as the same constant whatever the picture is, and so does what a projector adds between patches.

*Whose is it?* Tokens come in the order of the rows. How many of them each row has follows from totals that must agree
with what the tower holds, in this order: as many sequences as images, or as tiles that are filled; the grids of the
images; the image tokens of the rows, of which each is one token or equally many. In a batch of one row everything is
that row's. Where no total agrees, the batch is refused, never guessed at.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from interp.errors import InputError, LayoutError
from interp.models.batches.encodings import pixels_of
from interp.models.batches.grids import patch_grids
from interp.models.layout.additions import tolerance
from interp.models.running.places import place
from interp.models.running.steps import Read, take_each, whole
from interp.models.running.trace import Shapes, run_for_shapes, run_until_reads

if TYPE_CHECKING:
    from interp.models.batches.batch import Batch
    from interp.models.running.core import Core

# The sites whose examples are patches, and where it is seen which tokens these are.
_PLACES = {"vision": "vision_pre", "projector": "projector"}
# Inputs that say which pixels, patches or tiles are real.
_MASKS = ("pixel_attention_mask", "pixel_mask")


class RowsNotApart(LayoutError):
    """The patches of a batch cannot be told apart by rows. Those of each of its rows, run alone, may be."""


@dataclass(frozen=True)
class Patches:
    """The examples of a site of the tower: Int `[example]` each, in the order of the rows.

    `index` is where an example stands among the tokens of the module, all axes but the last made one. `rows` is the row of
    the batch that it belongs to, and `columns` the position of that row whose image token it becomes, -1 where it becomes
    none alone.
    """

    rows: Tensor
    columns: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)


def take_patches(value, index, dtype):
    """The examples among the tokens of a module, `[example, width]`."""
    taken = value[index.to(value.device)]
    return taken if dtype is None else taken.to(dtype)


def patches_of(core: Core, batch: Batch, site: str) -> Patches:
    """The patches that are the examples of `site` ("vision" or "projector") for this batch.

    They stand in the order in which the module holds them: that of the rows, of the images of a row and, within an image,
    the tower's own (row by row of the picture in most, by squares of patches that are merged in some, by windows in a few).
    Examples of the projector whose image tokens are known stand in the order of these.

    Raises `InputError` for an unknown site or a batch without images, `RowsNotApart` where only rows run alone can be told
    apart, `LayoutError` where the model has no such site.
    """
    if site not in _PLACES:
        raise InputError(f"site={site!r} has no patches: use one of {', '.join(_PLACES)}")
    if not batch.has_images:
        raise InputError(f"the batch has no image, so its {site} has no patches: expected images")
    kind, last = _kind(batch), _LAST.setdefault(core, {})
    if site not in last or last[site][0] != kind:
        last[site] = kind, _look(core, batch, site)
    found = last[site][1]
    tokens = batch.positions["image"].nonzero(as_tuple=True)[1]
    columns = torch.full_like(found.rows, -1) if found.tokens is None else tokens[found.tokens]
    return Patches(found.rows, columns, found.index)


def times_run(core: Core, batch: Batch) -> int:
    """How many times the image tower runs in one forward pass of this batch, seen of its first block.

    Most run once, over all images. Some run once an image, or once more for the tiles of a large one.
    """
    kind = _kind(batch)
    if core not in _TIMES or _TIMES[core][0] != kind:
        block = core.blocks[0]
        _TIMES[core] = kind, len(run_for_shapes(core, batch.inputs, [block]).get(block.path, []))
    return _TIMES[core][1]


# What a run shows --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """As `Patches`, with the number of the image token among those of the batch, None where these are not known."""

    rows: Tensor
    index: Tensor
    tokens: Tensor | None = None


# What was found last in each model, by site: batches of one kind need no run each.
_LAST: WeakKeyDictionary[Core, dict[str, tuple[Any, _Found]]] = WeakKeyDictionary()
# The same for how many times its tower ran.
_TIMES: WeakKeyDictionary[Core, tuple[Any, int]] = WeakKeyDictionary()


def _kind(batch: Batch) -> tuple[Any, ...]:
    """All that decides what the tower makes of a batch, but for the pictures themselves."""
    said: list[Any] = [batch.positions["image"].sum(dim=1).tolist()]
    for name, value in sorted(batch.inputs.items()):
        if name in pixels_of(batch.inputs):
            # Tiles and patches that are zero throughout may be padding.
            said.append(
                (name, tuple(value.shape), _digest((value != 0).any(dim=-1)) if value.ndim == 3 else _filled(value))
            )
        elif value.shape != batch.inputs["input_ids"].shape:
            said.append((name, _digest(value)))
    return tuple(said)


def _digest(value: Tensor) -> str:
    return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()


def _look(core: Core, batch: Batch, site: str) -> _Found:
    lead = _shape(core, batch, site)
    token_rows, places = batch.positions["image"].nonzero(as_tuple=True)
    reads = [Read("value", _PLACES[site], 0, whole)]
    if site == "projector":
        reads.append(Read("tokens", "resid_pre", 0, take_each, (token_rows, places, None)))
    before = run_until_reads(core, batch.inputs, reads)
    after = run_until_reads(core, other_picture(batch.inputs), reads)
    if before["value"].shape != after["value"].shape or len(before["value"]) != math.prod(lead):
        raise LayoutError(f"{core.name!r} holds another number of patches for another picture: there is no site {site}")
    moved = {key: (before[key] != after[key]).any(dim=-1).cpu() for key in before}
    patches = moved["value"].reshape(lead[0], -1)
    real = patches & (
        _unpadded(core, batch.inputs, patches) if site == "vision" else _marked(batch.inputs, patches.shape)
    )
    shares = _shares(batch, real, packed=len(lead) == 1 or lead[0] == 1)
    if shares is None:
        raise RowsNotApart(
            f"which row of this batch each of the {int(real.sum())} patches of {core.name!r} belongs to cannot be told at its "
            f"{site}: run the rows one by one"
        )
    found = _Found(torch.arange(len(batch)).repeat_interleave(torch.tensor(shares)), real.flatten().nonzero().flatten())
    if site == "vision":
        return found
    tokens = moved["tokens"].nonzero().flatten()
    taken = _become(before["value"].cpu()[found.index], found.rows, before["tokens"].cpu()[tokens], token_rows[tokens])
    return found if taken is None else _Found(found.rows[taken], found.index[taken], tokens)


def _shape(core: Core, batch: Batch, site: str) -> tuple[int, ...]:
    """The shape of what the module holds, without its last axis. Raises where that is not one value, of all images."""
    if site == "vision":
        envoys, what = list(core.blocks), "image tower"
    else:
        envoys, what = [place(core, len(batch), 0, site)[0]], "projector"
    seen = run_for_shapes(core, batch.inputs, envoys)
    ran = [seen.get(envoy.path, []) for envoy in envoys]
    times = max(map(len, ran))
    if not all(ran):
        raise LayoutError(f"{core.name!r} runs its {what} in a way that shows nothing of it: there is no site {site}")
    if times > 1:
        kind, so = (
            (RowsNotApart, "run the rows one by one") if len(batch) > 1 else (LayoutError, f"there is no site {site}")
        )
        raise kind(f"{core.name!r} runs its {what} {times} times in one forward pass, expected once: {so}")
    return _shape_of_states(core, [visits[0] for visits in ran]) if site == "vision" else _shape_given(core, ran[0][0])


def _shape_of_states(core: Core, visits: Sequence[Shapes]) -> tuple[int, ...]:
    entered = visits[0].input or ()
    for block, visit in enumerate(visits):
        gave = visit.outputs[0] if visit.outputs else None
        if len(entered) < 2 or not entered == visit.input == gave:
            raise LayoutError(
                f"{core.name!r}: block {block} of its image tower takes {visit.input} to {gave}, expected states of one shape "
                f"{entered} through all blocks: there is no site vision"
            )
    return entered[:-1]


def _shape_given(core: Core, visit: Shapes) -> tuple[int, ...]:
    if not visit.outputs or len(visit.outputs[0]) < 2:
        raise LayoutError(f"{core.name!r}: its projector gives no features [.., width]: there is no site projector")
    if visit.is_list:
        return (sum(math.prod(shape[:-1]) for shape in visit.outputs),)
    return visit.outputs[0][:-1]


def other_picture(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same encoding with noise for its pixels, padding included, so that no patch stays as it was.

    Tiles that are zero throughout stay: by these, models tell how many tiles there are. So do columns of whole numbers
    among the values of patches, which are their places.
    """
    generator = torch.Generator().manual_seed(0)
    changed = {}
    for name in pixels_of(inputs):
        old = inputs[name]
        noise = torch.randn(old.shape, generator=generator) * old.float().std().clamp(min=0.1) + old.float().mean()
        keep = torch.zeros_like(old, dtype=torch.bool)
        if old.ndim == 5:
            keep = (old == 0).flatten(2).all(dim=2)[..., None, None, None].expand_as(old)
        elif old.ndim == 3:
            places = (old == old.round()).flatten(0, 1).all(dim=0)
            keep = (places & ~places.all()).expand_as(old)
        changed[name] = torch.where(keep, old, noise.to(old.dtype))
    return {**inputs, **changed}


# What is padding ---------------------------------------------------------------------------------------------------------


def _marked(inputs: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
    """What the encoding says of each patch where it has one value a patch, Bool `shape`; without it, all are real."""
    found = [inputs[name] != 0 for name in _MASKS if name in inputs]
    if "image_position_ids" in inputs:
        found.append((inputs["image_position_ids"] >= 0).all(dim=-1))
    if "flattened_patches" in inputs:
        found.append((inputs["flattened_patches"] != 0).any(dim=-1))
    found = [mask for mask in found if mask.shape == tuple(shape)]
    return found[0] if found else torch.ones(tuple(shape), dtype=torch.bool)


def _unpadded(core: Core, inputs: Mapping[str, Tensor], patches: Tensor) -> Tensor:
    """Which of the tower's `patches`, Bool `[sequence, token]`, show something of a picture: Bool of that shape.

    Raises `LayoutError` for a mask of pixels that cannot be brought to patches.
    """
    shown = _marked(inputs, patches.shape)
    of_pixels = [inputs[name] for name in _MASKS if name in inputs and inputs[name].ndim > 2]
    if not of_pixels:
        return shown
    pixels = of_pixels[0].flatten(0, -3) != 0
    pixels = pixels[pixels.flatten(1).any(dim=1)]
    side = getattr(getattr(core.model.config, "vision_config", None), "patch_size", None)
    counts = patches.sum(dim=1)
    if isinstance(side, int) and len(pixels) == len(patches):
        covered = torch.nn.functional.max_pool2d(pixels[:, None].float(), side).flatten(1) > 0
        if bool((counts == covered.shape[1]).all()):
            return torch.zeros_like(patches).masked_scatter(patches, covered)
    raise LayoutError(
        f"{core.name!r}: a mask of pixels {tuple(of_pixels[0].shape)} does not fit the {tuple(patches.shape)} patches of its "
        "tower, expected one value a pixel of each patch: there is no site vision"
    )


# Whose they are ----------------------------------------------------------------------------------------------------------


def _shares(batch: Batch, real: Tensor, packed: bool) -> list[int] | None:
    """How many patches each row has, by the first totals that agree; None where none do."""
    if len(batch) == 1:
        return [int(real.sum())]
    rules = [_by_grids, _by_tokens] if packed else [_by_sequences, _by_grids, _by_tokens]
    made = (rule(batch, real) for rule in rules)
    return next((shares for shares in made if shares is not None and _fit(batch, shares)), None)


def _fit(batch: Batch, shares: Sequence[int]) -> bool:
    """Whether those rows have patches that have image tokens."""
    return [share > 0 for share in shares] == batch.positions["image"].any(dim=1).tolist()


def _images_held(batch: Batch) -> list[int]:
    """How many images each row has. Where the batch does not say it, one in each row that has image tokens: so it is
    wherever there are as many images as such rows, and `_images_of_rows` asks for that."""
    if batch.images:
        return [len(images) for images in batch.images]
    names = itertools.takewhile(batch.positions.__contains__, (f"image_{index}" for index in itertools.count()))
    held = [batch.positions[name].any(dim=1) for name in names] or [batch.positions["image"].any(dim=1)]
    return torch.stack(held).sum(dim=0).tolist()


def _images_of_rows(batch: Batch, total: int) -> list[int] | None:
    """How many of `total` images each row has, None where they are not as many."""
    held = _images_held(batch)
    return held if sum(held) == total else None


def _by_sequences(batch: Batch, real: Tensor) -> list[int] | None:
    """A sequence for each image, or for each tile that is not left empty."""
    sequences = _images_of_rows(batch, len(real)) or _tiles_of_rows(batch, len(real))
    return None if sequences is None else _sums(real.sum(dim=1).tolist(), sequences)


def _tiles_of_rows(batch: Batch, total: int) -> list[int] | None:
    """How many tiles each row has, from pixels [image or row, tile, 3, height, width] or from counts beside them."""
    filled = [_filled(batch.inputs[name]) for name in pixels_of(batch.inputs)]
    filled += [
        mask.sum(dim=1).tolist() for name in _MASKS if (mask := batch.inputs.get(name)) is not None and mask.ndim == 2
    ]
    filled += [batch.inputs["image_num_crops"].tolist()] if "image_num_crops" in batch.inputs else []
    for tiles in filled:
        if not tiles or sum(tiles) != total:
            continue
        images = _images_of_rows(batch, len(tiles))
        if images is not None and all(tiles):
            return _sums(tiles, images)
        if len(tiles) == len(batch):
            return tiles
    return None


def _filled(pixels: Tensor) -> list[int]:
    """How many tiles are not zero in each of pixels [image or row, tile, 3, height, width]; nothing for other pixels."""
    return (pixels != 0).flatten(2).any(dim=2).sum(dim=1).tolist() if pixels.ndim == 5 else []


def _by_grids(batch: Batch, real: Tensor) -> list[int] | None:
    """The grids of the images, of whose patches each token here is one or equally many."""
    patches = [math.prod(grid) for grid in patch_grids(batch.inputs)]
    images = _images_of_rows(batch, len(patches))
    shares = _scaled(patches, int(real.sum()))
    return None if images is None or shares is None else _sums(shares, images)


def _by_tokens(batch: Batch, real: Tensor) -> list[int] | None:
    """The image tokens of the rows, of which each is one patch or equally many; no row ends inside a sequence."""
    shares = _scaled(batch.positions["image"].sum(dim=1).tolist(), int(real.sum()))
    ends = {0, *itertools.accumulate(real.sum(dim=1).tolist())}
    within = len(real) == 1 or (shares is not None and set(itertools.accumulate(shares)) <= ends)
    return shares if within else None


def _scaled(counts: Sequence[int], total: int) -> list[int] | None:
    """These counts times one factor, so that they add up to `total`; None where one of them would be no whole number."""
    if not sum(counts) or any(count * total % sum(counts) for count in counts):
        return None
    return [count * total // sum(counts) for count in counts]


def _sums(counts: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """The sum of as many of the counts as each of the lengths says, one behind the other."""
    left = iter(counts)
    return [sum(itertools.islice(left, length)) for length in lengths]


# Which image token they become -------------------------------------------------------------------------------------------


def _become(features: Tensor, rows: Tensor, tokens: Tensor, token_rows: Tensor) -> Tensor | None:
    """For each image token that depends on the picture the feature of its row which it is, Int `[token]`.

    It is the one that state 0 points along there. None where some token is no feature (features are added to embeddings,
    pooled, changed once more). What then becomes no token, such as patches on a border that the model cuts off, is left out.
    """
    given, state = (torch.nn.functional.normalize(each.float(), dim=-1) for each in (features, tokens))
    near, found = tolerance(features.dtype), []
    for row in token_rows.unique():
        mine, theirs = (rows == row).nonzero().flatten(), state[token_rows == row]
        if len(mine) < len(theirs):
            return None
        # Equal patches may have equal features: then their order decides.
        in_order = len(mine) == len(theirs) and _alike(given[mine], theirs, near)
        taken = mine if in_order else mine[_each_once(theirs @ given[mine].T)]
        if not _alike(given[taken], theirs, near):
            return None
        found.append(taken)
    return torch.cat(found)


def _each_once(nearness: Tensor) -> Tensor:
    """For each row the column of its largest value among those that no earlier row took."""
    columns: list[int] = []
    for row in nearness:
        columns.append(int(row.argmax()))
        nearness[:, columns[-1]] = -torch.inf
    return torch.tensor(columns)


def _alike(given: Tensor, state: Tensor, near: float) -> bool:
    return bool(((given - state).norm(dim=-1) <= near).all())
