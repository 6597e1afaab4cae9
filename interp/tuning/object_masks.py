"""Masks: which pixels of a picture show an object, and what share of each image token's area that is.

A mask comes as a picture file, as run lengths of COCO (RLE, which pycocotools decodes) or as an array. It has the size of its
picture as that stands upright. What is not the object is 0, and all of the object has one other value: a mask with more values,
transparent pixels or another size is refused, because its meaning would be a guess.

A model sees neither picture nor mask. Its processor resizes, crops and pads the picture, and the image tower and the projector
make image tokens of the patches. Where each token lies on the original picture is known as a box (`Positions.boxes`), so the
mask stays as it is, and each token gets the *share* of its box that the mask covers: the area of the object in the box, divided
by the area of the box. A token on padding has a box without area and the share 0. Tokens that form no grid have no box: those
of tiles with a thumbnail, and learned queries, which belong to no place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from interp.arguments import as_int
from interp.data.rows import Row, is_unicode
from interp.displays import Display
from interp.errors import InputError, InterpError, shown
from interp.models.batches.images import open_as, upright

# In pixels.
_NEAR = 1e-3
_KINDS = (
    "expected the name of a picture file, a COCO RLE {'size': [height, width], 'counts': ...}, a Bool array [height, width] "
    "or a PIL image"
)


@dataclass(frozen=True)
class WordMask(Display):
    """An object of a row: the words that name it, the number of the picture that shows it, and its pixels there."""

    words: tuple[str, ...]
    image: int
    pixels: Bool[Tensor, "height width"]


def open_masks(row: Row, pictures: Sequence[Image.Image]) -> list[WordMask]:
    """The masks of a row, opened. `pictures` are those of the row as `interp.data` opens them.

    An entry of `row.masks` is a dict of `words` and `mask`. The words are a text, whose words are told apart by spaces, or a
    list, each of whose entries is one. In a row of several pictures the entry `image` is the number of the mask's own, from 0.

    Raises `InputError`, one line that names the row, for an entry of another form, an object without words, and what `open_mask`
    refuses.
    """
    opened = []
    for number, entry in enumerate(row.masks or ()):
        try:
            opened.append(_word_mask(entry, pictures))
        except InterpError as error:
            raise InputError(f"{row.name}, mask {number}: {error}") from error.__cause__
    return opened


def open_mask(mask: Any, size: tuple[int, int]) -> Bool[Tensor, "height width"]:
    """The pixels of a mask for a picture of this `size`, (height, width).

    >>> open_mask({"size": [2, 3], "counts": [2, 1, 1, 2]}, (2, 3)).int().tolist()
    [[0, 1, 1], [0, 0, 1]]

    `mask` is the name or the bytes of a picture file, a PIL image, a COCO RLE (compressed or not; its runs go down the columns),
    or a Bool array `[height, width]`.

    Raises `InputError` for a mask of another size, without a pixel, with more values than 0 and one other, with transparent
    pixels, for run lengths that do not fill their size, for anything else, and where pycocotools is missing.
    """
    if isinstance(mask, Mapping) and "counts" in mask:
        pixels = _of_runs(mask, size)
    elif hasattr(mask, "dtype") or isinstance(mask, list):
        pixels = _of_array(mask)
    else:
        pixels = open_as(mask, _of_picture)
    _check_size(pixels.shape, size)
    if not pixels.any():
        raise InputError("the mask is empty: expected one pixel or more that show the object")
    return torch.from_numpy(pixels)


def mask_shares(mask: Bool[Tensor, "height width"], boxes: Float[Tensor, "token 4"]) -> Float[Tensor, " token"]:
    """The share of each box's area that a mask covers: ``area of the object in the box / area of the box``.

    >>> half = torch.tensor([[True, False], [True, False]])
    >>> mask_shares(half, torch.tensor([[0.0, 0, 1, 1], [0, 0, 0.5, 1], [0.25, 0, 0.75, 1]], dtype=torch.float32)).tolist()
    [0.5, 1.0, 0.5]

    Boxes are left, top, right, bottom as shares of the picture, as `Positions.boxes` gives them. A box without area has 0.
    """
    height, width = mask.shape
    # The area of the object above and to the left of each corner of a pixel; between corners it is bilinear.
    areas = torch.nn.functional.pad(mask.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
    edges = boxes.double() * torch.tensor([width, height, width, height])
    # Boxes are float32: an edge this near to that of a pixel is that edge, or a neighbour would get a trace of the object.
    edges = torch.where((edges - edges.round()).abs() < _NEAR, edges.round(), edges)
    left, top, right, bottom = edges.unbind(dim=1)

    def area(x: Tensor, y: Tensor) -> Tensor:
        column, row = x.long().clamp(max=width - 1), y.long().clamp(max=height - 1)
        across, down = x - column, y - row
        upper = areas[row, column].lerp(areas[row, column + 1], across)
        lower = areas[row + 1, column].lerp(areas[row + 1, column + 1], across)
        return upper.lerp(lower, down)

    covered = area(right, bottom) - area(left, bottom) - area(right, top) + area(left, top)
    whole = (right - left) * (bottom - top)
    shares = torch.where(whole > 0, covered / whole.clamp(min=torch.finfo(whole.dtype).tiny), 0.0)
    return shares.clamp(0, 1).float()


def _word_mask(entry: Any, pictures: Sequence[Image.Image]) -> WordMask:
    if not isinstance(entry, Mapping) or not {"words", "mask"} <= entry.keys():
        raise InputError(f"it is {shown(entry)}: expected a dict, {{'words': 'red 3', 'mask': ...}}")
    if isinstance(entry["mask"], InterpError):  # of a name or an entry that is refused
        raise entry["mask"]
    words = entry["words"]
    words = words.split() if isinstance(words, str) else words
    several = isinstance(words, list | tuple) and bool(words)
    if not several or not all(isinstance(word, str) and word and is_unicode(word) for word in words):
        raise InputError(f"words={shown(entry['words'])}: expected a text or a list of texts, one word or more")
    number = entry.get("image")
    image = 0 if number is None and len(pictures) == 1 else as_int(number)
    if image is None or not 0 <= image < len(pictures):
        raise InputError(
            f"the row has {len(pictures)} pictures and the mask says image={shown(number)}: expected the number of its own"
        )
    width, height = pictures[image].size
    return WordMask(tuple(words), image, open_mask(entry["mask"], (height, width)))


# What a mask may be ------------------------------------------------------------------------------------------------------


def _check_size(seen: tuple[int, ...], size: tuple[int, int]) -> None:
    if seen != size:
        raise InputError(
            f"a mask of {seen[1]} x {seen[0]} pixels for a picture of {size[1]} x {size[0]} (width x height): expected the "
            "same size, nothing is resized"
        )


def _of_picture(image: Image.Image, name: str) -> np.ndarray:
    image = upright(image)
    if image.has_transparency_data:
        raise InputError(f"{name} has transparent pixels: expected 0 and one other value, without transparency")
    values = np.asarray(image)
    values = values.reshape(*values.shape[:2], -1)
    pixels = (values != 0).max(axis=2)
    others = np.unique(values[pixels], axis=0)
    if len(others) > 1:
        raise InputError(
            f"{name} has {len(others)} values beside 0, such as {shown(others[:2].tolist())}: expected one, a mask of one "
            "object without soft edges"
        )
    return pixels


def _of_array(mask: Any) -> np.ndarray:
    try:
        values = mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask)
    except ValueError:  # of a list whose rows differ in length
        raise InputError(f"the mask is {shown(mask)}, which is no array: {_KINDS}") from None
    if values.ndim != 2 or values.dtype != bool or not values.size:
        raise InputError(f"the mask is {shown(mask)} of {values.dtype}: {_KINDS}")
    return values.copy()


def _of_runs(mask: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """The pixels of an RLE. Its runs must fill its size: pycocotools leaves memory as it is behind runs that end early."""
    try:
        from pycocotools import mask as coco
    except ImportError:
        raise InputError(
            "the mask is a COCO RLE, which pycocotools decodes, and that is not installed: pip install 'interp-vlm[tuning]'"
        ) from None
    sides, counts = mask.get("size"), mask["counts"]
    ints = tuple(as_int(side) or 0 for side in sides) if isinstance(sides, Iterable) else ()
    if len(ints) != 2 or 0 in ints:
        raise InputError(f"an RLE of size {shown(sides)}: expected [height, width], two ints from 1")
    _check_size(ints, size)
    (height, width), pixels = size, size[0] * size[1]
    if not isinstance(counts, str | bytes):
        runs = [as_int(run) for run in counts] if isinstance(counts, Iterable) else []
        if not runs or not all(run is not None and 0 <= run <= pixels for run in runs):
            raise InputError(f"an RLE with counts {shown(counts)}: expected text of COCO or a list of ints from 0")
        counts = coco.frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"]

    def fit(number: int) -> bool:
        try:
            coco.decode({"size": [1, number], "counts": counts})
        except ValueError:
            return False
        return True

    # Runs that fill one pixel less as well end early.
    if not fit(pixels) or fit(pixels - 1):
        raise InputError(
            f"an RLE whose counts do not fill its size {[height, width]}: expected as many pixels, all or none"
        )
    return coco.decode({"size": [height, width], "counts": counts}).astype(bool)
