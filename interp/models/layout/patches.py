"""Patches: which row, and which image token, each token of the image tower or the projector belongs to.

The tower does not see rows. It sees sequences (an image, or one tile of an image) or the patches of all images in one
packed sequence, and it may hold tokens that are not patches: a class token, registers, padding. So before the states of
the tower are read, two questions are answered for this batch.

*What is a patch?* A token of state 0 that another picture moves, unless the encoding marks it as padding. A class token
enters the first block as the same constant for any picture, and so do the separators that a projector adds.

*Which row is it from?* Tokens come in the order of the rows. The number of tokens of each row follows from totals that
must agree with the tower's tokens, in this order: as many sequences as images, or as tiles that are not empty; the grids
of the images; the image tokens of the rows, each of which is one patch or equally many. In a batch of one row everything
is that row's. Where no total agrees, the batch is refused, never guessed at.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from interp.errors import InputError, LayoutError
from interp.models.batches.batch import Batch
from interp.models.batches.encodings import pixels_of
from interp.models.batches.grids import patch_grids
from interp.models.layout.additions import tolerance
from interp.models.layout.image_positions import other_picture
from interp.models.running.core import Core
from interp.models.running.places import place
from interp.models.running.steps import Read, take_each, whole
from interp.models.running.trace import Shapes, run_for_shapes, run_until_reads

# The sites whose examples are patches, and the site at which a run shows which tokens these are.
_PLACES = {"vision": "vision_pre", "projector": "projector"}
# These inputs say which pixels, patches or tiles are real.
_MASKS = ("pixel_attention_mask", "pixel_mask")


class RowsNotApart(LayoutError):
    """It is not clear which row each patch of a batch belongs to. For each row alone it may be."""


@dataclass(frozen=True)
class Patches:
    """The examples of a site of the tower: Int `[example]` each, in the order of the rows.

    `index` is the place of an example among the tokens of the module, with all axes but the last made one. `rows` is the
    row of the batch that it belongs to, and `columns` the position in that row of the image token that it becomes, -1 where
    it becomes no image token of its own.
    """

    rows: Tensor
    columns: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)


def take_patches(value, index, dtype):
    """The examples among the tokens of a module, `[example, width]`."""
    examples = value[index.to(value.device)]
    return examples if dtype is None else examples.to(dtype)


def patches_of(core: Core, batch: Batch, site: str) -> Patches:
    """The patches that are the examples of `site` ("vision" or "projector") for this batch.

    They are in the order of the module: that of the rows, of the images of a row and, within an image, the tower's own order
    (row by row of the picture in most, by squares of patches that are merged in some, by windows in a few). Examples of
    the projector whose image tokens are known are in the order of these.

    Raises `InputError` for an unknown site or a batch without images, `RowsNotApart` where only a row alone has clear
    patches, `LayoutError` where the model has no such site.
    """
    if site not in _PLACES:
        raise InputError(f"site={site!r} has no patches: use one of {', '.join(_PLACES)}")
    if not core.takes_images:
        raise LayoutError(f"{core.name!r} takes no image, so it has no site {site}: expected one of the decoder")
    if not batch.has_images:
        raise InputError(f"the batch has no image, so its {site} has no patches: expected images")
    kind, results = _kind(batch), _RESULTS.setdefault(core, {})
    if site not in results or results[site][0] != kind:
        results[site] = kind, _find(core, batch, site)
    rows, index, tokens = results[site][1]
    columns = batch.positions["image"].nonzero(as_tuple=True)[1]
    return Patches(rows, torch.full_like(rows, -1) if tokens is None else columns[tokens], index)


def times_run(core: Core, batch: Batch) -> int:
    """The number of times that the image tower runs in one forward pass of this batch: the visits to its first block.

    Most towers run once, over all images. Some run once for each image, or once more for the tiles of a large one.
    """
    kind, results = _kind(batch), _RESULTS.setdefault(core, {})
    if "times" not in results or results["times"][0] != kind:
        block = core.blocks[0]
        results["times"] = kind, len(run_for_shapes(core, batch.inputs, [block]).get(block.path, []))
    return results["times"][1]


# What a run shows --------------------------------------------------------------------------------------------------------

# The last result for each model, by site, or "times" for those of `times_run`: one run is enough for batches of one kind.
_RESULTS: WeakKeyDictionary[Core, dict[str, tuple[Any, Any]]] = WeakKeyDictionary()


def _kind(batch: Batch) -> tuple[Any, ...]:
    """All that decides how the tower sees a batch, except the pictures themselves."""
    parts: list[Any] = [batch.positions["image"].sum(dim=1).tolist()]
    for name, value in sorted(batch.inputs.items()):
        if name in pixels_of(batch.inputs):
            # Tiles and patches of zeros may be padding.
            zeros = _digest((value != 0).any(dim=-1)) if value.ndim == 3 else _tiles_in_use(value)
            parts.append((name, tuple(value.shape), zeros))
        elif value.shape != batch.inputs["input_ids"].shape:
            parts.append((name, _digest(value)))
    return tuple(parts)


def _digest(value: Tensor) -> str:
    return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()


def _find(core: Core, batch: Batch, site: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """The rows and the index of `Patches`, and the number of each one's image token among those of the batch if known."""
    lead = _shape(core, batch, site)
    token_rows, columns = batch.positions["image"].nonzero(as_tuple=True)
    reads = [Read("value", _PLACES[site], 0, whole)]
    if site == "projector":
        reads.append(Read("tokens", "resid_pre", 0, take_each, (token_rows, columns, None)))
    before = run_until_reads(core, batch.inputs, reads)
    after = run_until_reads(core, other_picture(batch.inputs, torch.Generator().manual_seed(0)), reads)
    if before["value"].shape != after["value"].shape or len(before["value"]) != math.prod(lead):
        raise LayoutError(f"{core.name!r} has another number of patches for another picture: it has no site {site}")
    moved = {key: (before[key] != after[key]).any(dim=-1).cpu() for key in before}
    patches = moved["value"].reshape(lead[0], -1)
    real = patches & (
        _unpadded(core, batch.inputs, patches) if site == "vision" else _marked(batch.inputs, patches.shape)
    )
    numbers = _numbers(batch, real, packed=len(lead) == 1 or lead[0] == 1)
    if numbers is None:
        raise RowsNotApart(
            f"it is not clear which row of this batch each of the {int(real.sum())} patches of {core.name!r} belongs to at "
            f"its {site}: run the rows one by one"
        )
    rows, index = torch.arange(len(batch)).repeat_interleave(torch.tensor(numbers)), real.flatten().nonzero().flatten()
    if site == "vision":
        return rows, index, None
    tokens = moved["tokens"].nonzero().flatten()
    features = _features_of(before["value"].cpu()[index], rows, before["tokens"].cpu()[tokens], token_rows[tokens])
    return (rows, index, None) if features is None else (rows[features], index[features], tokens)


def _shape(core: Core, batch: Batch, site: str) -> tuple[int, ...]:
    """The shape of the module's value, without its last axis. Raises where that is not one value, of all images."""
    tower = site == "vision"
    envoys, part = (core.blocks, "image tower") if tower else ([place(core, len(batch), 0, site)[0]], "projector")
    shapes = run_for_shapes(core, batch.inputs, list(envoys))
    visits = [shapes.get(envoy.path, []) for envoy in envoys]
    times = max(map(len, visits))
    if not all(visits):
        raise LayoutError(f"{core.name!r} runs its {part} in a way that no trace shows: it has no site {site}")
    if times > 1:
        kind, advice = LayoutError, f"it has no site {site}"
        if len(batch) > 1:
            kind, advice = RowsNotApart, "run the rows one by one"
        raise kind(f"{core.name!r} runs its {part} {times} times in one forward pass, expected once: {advice}")
    return _shape_of_states(core, [each[0] for each in visits]) if tower else _shape_of_features(core, visits[0][0])


def _shape_of_states(core: Core, visits: Sequence[Shapes]) -> tuple[int, ...]:
    first = visits[0].input or ()
    for block, visit in enumerate(visits):
        output = visit.outputs[0] if visit.outputs else None
        if len(first) < 2 or not first == visit.input == output:
            raise LayoutError(
                f"{core.name!r}: block {block} of its image tower takes {visit.input} to {output}, expected states of one "
                f"shape {first} through all blocks: it has no site vision"
            )
    return first[:-1]


def _shape_of_features(core: Core, visit: Shapes) -> tuple[int, ...]:
    if not visit.outputs or len(visit.outputs[0]) < 2:
        raise LayoutError(f"{core.name!r}: its projector has no output [.., width]: it has no site projector")
    if visit.is_list:
        return (sum(math.prod(shape[:-1]) for shape in visit.outputs),)
    return visit.outputs[0][:-1]


# Padding -----------------------------------------------------------------------------------------------------------------


def _marked(inputs: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
    """The patches that the encoding marks as real, Bool `shape`; all of them where it has no mark for each patch."""
    marks = [inputs[name] != 0 for name in _MASKS if name in inputs]
    if "image_position_ids" in inputs:
        marks.append((inputs["image_position_ids"] >= 0).all(dim=-1))
    if "flattened_patches" in inputs:
        marks.append((inputs["flattened_patches"] != 0).any(dim=-1))
    return next((mark for mark in marks if mark.shape == tuple(shape)), torch.ones(tuple(shape), dtype=torch.bool))


def _unpadded(core: Core, inputs: Mapping[str, Tensor], patches: Tensor) -> Tensor:
    """Which of the tower's `patches`, Bool `[sequence, token]`, show a part of a picture: Bool of that shape.

    Raises `LayoutError` for a mask of pixels that does not fit the patches.
    """
    of_pixels = [inputs[name] for name in _MASKS if name in inputs and inputs[name].ndim > 2]
    if not of_pixels:
        return _marked(inputs, patches.shape)
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
        "tower, expected one value for each pixel of each patch: it has no site vision"
    )


# The patches of each row -------------------------------------------------------------------------------------------------


def _numbers(batch: Batch, real: Tensor, packed: bool) -> list[int] | None:
    """The number of patches of each row, by the first total that agrees; None where none does."""
    if len(batch) == 1:
        return [int(real.sum())]
    rules = [_by_grids, _by_tokens] if packed else [_by_sequences, _by_grids, _by_tokens]
    pictured = batch.positions["image"].any(dim=1).tolist()
    candidates = (rule(batch, real) for rule in rules)
    # The rows with patches must be those with image tokens.
    return next((c for c in candidates if c is not None and [number > 0 for number in c] == pictured), None)


def _images_by_row(batch: Batch, total: int) -> list[int] | None:
    """How many of `total` images each row has, None where the rows have another total.

    A batch that does not know its images has one in each row with image tokens, if that makes the total.
    """
    names = itertools.takewhile(batch.positions.__contains__, (f"image_{index}" for index in itertools.count()))
    masks = [batch.positions[name].any(dim=1) for name in names] or [batch.positions["image"].any(dim=1)]
    images = list(map(len, batch.images)) if batch.images else torch.stack(masks).sum(dim=0).tolist()
    return images if sum(images) == total else None


def _by_sequences(batch: Batch, real: Tensor) -> list[int] | None:
    """By a sequence for each image, or for each tile that is not empty."""
    sequences = _images_by_row(batch, len(real)) or _tiles_by_row(batch, len(real))
    return None if sequences is None else _sums(real.sum(dim=1).tolist(), sequences)


def _tiles_by_row(batch: Batch, total: int) -> list[int] | None:
    """How many tiles each row has, from pixels [image or row, tile, 3, height, width] or from counts beside them."""
    inputs = batch.inputs
    counts = [_tiles_in_use(inputs[name]) for name in pixels_of(inputs)]
    counts += [inputs[name].sum(dim=1).tolist() for name in _MASKS if name in inputs and inputs[name].ndim == 2]
    counts += [inputs["image_num_crops"].tolist()] if "image_num_crops" in inputs else []
    for tiles in counts:
        if not tiles or sum(tiles) != total:
            continue
        images = _images_by_row(batch, len(tiles))
        if images is not None and all(tiles):
            return _sums(tiles, images)
        if len(tiles) == len(batch):
            return tiles
    return None


def _tiles_in_use(pixels: Tensor) -> list[int]:
    """How many tiles are not zero in each of pixels [image or row, tile, 3, height, width]; empty for other pixels."""
    return (pixels != 0).flatten(2).any(dim=2).sum(dim=1).tolist() if pixels.ndim == 5 else []


def _by_grids(batch: Batch, real: Tensor) -> list[int] | None:
    """By the grids of the images: each token here is one of their patches, or equally many."""
    patches = [math.prod(grid) for grid in patch_grids(batch.inputs)]
    images = _images_by_row(batch, len(patches))
    numbers = _scaled(patches, int(real.sum()))
    return None if images is None or numbers is None else _sums(numbers, images)


def _by_tokens(batch: Batch, real: Tensor) -> list[int] | None:
    """By the image tokens of the rows: each is one patch or equally many, and no row ends inside a sequence."""
    numbers = _scaled(batch.positions["image"].sum(dim=1).tolist(), int(real.sum()))
    ends = {0, *itertools.accumulate(real.sum(dim=1).tolist())}
    fits = len(real) == 1 or (numbers is not None and set(itertools.accumulate(numbers)) <= ends)
    return numbers if fits else None


def _scaled(counts: Sequence[int], total: int) -> list[int] | None:
    """These counts times one factor, so that they add up to `total`; None where one of them would be no whole number."""
    if not sum(counts) or any(count * total % sum(counts) for count in counts):
        return None
    return [count * total // sum(counts) for count in counts]


def _sums(counts: Sequence[int], lengths: Sequence[int]) -> list[int]:
    """The sums of consecutive parts of the counts that have these lengths."""
    rest = iter(counts)
    return [sum(itertools.islice(rest, length)) for length in lengths]


# The image token of each patch -------------------------------------------------------------------------------------------


def _features_of(features: Tensor, rows: Tensor, tokens: Tensor, token_rows: Tensor) -> Tensor | None:
    """For each image token that depends on the picture, the feature of its row that it is, Int `[token]`.

    It is the one with the direction of state 0 there. None where some token is not a feature (features are added to
    embeddings, pooled, changed once more). Features that become no token, such as patches on a border that the model cuts
    off, are left out.
    """
    directions, states = (torch.nn.functional.normalize(each.float(), dim=-1) for each in (features, tokens))
    near, parts = tolerance(features.dtype), []
    for row in token_rows.unique():
        own, state = (rows == row).nonzero().flatten(), states[token_rows == row]
        if len(own) < len(state):
            return None
        # Equal patches may have equal features: then their order decides.
        if len(own) != len(state) or not _alike(directions[own], state, near):
            own = own[_each_once(state @ directions[own].T)]
        if not _alike(directions[own], state, near):
            return None
        parts.append(own)
    return torch.cat(parts)


def _each_once(nearness: Tensor) -> Tensor:
    """For each row the column of its largest value among the columns of no earlier row."""
    columns: list[int] = []
    for row in nearness:
        columns.append(int(row.argmax()))
        nearness[:, columns[-1]] = -torch.inf
    return torch.tensor(columns)


def _alike(directions: Tensor, states: Tensor, near: float) -> bool:
    return bool(((directions - states).norm(dim=-1) <= near).all())
