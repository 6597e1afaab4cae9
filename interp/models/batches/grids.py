"""Where an image's tokens lie on the picture: their grid, and the box of each on the original picture.

A tower sees a picture as a sheet of patches. A projector may merge neighbours, and the language model gets the result,
row by row. So the grid is the one rectangle with as many cells as there are tokens that has the sheet's proportions and
whose cells are whole patches. Tiles of a large picture, newline tokens and learned queries make no such rectangle: they
have no grid. The shape of the sheet is read from the encoding:

====================== ==============================================================================
``image_grid_thw``     rows and columns of patches (also ``image_grid_hw``, ``spatial_shapes``)
``image_position_ids`` column and row of each patch, -1 for padding
``image_sizes``        pixels of each image, where the pictures are padded to the largest of them
``pixel_values``       pixels, where every image is one picture of one size
====================== ==============================================================================

A processor resizes, crops and pads the original picture. What it does is measured: a picture of the same size that
grows brighter from left to right says, at each of its prepared pixels, from which column that came.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

Grid = tuple[int, int]
Window = tuple[float, float, float, float]
Prepare = Callable[[Image.Image], Mapping[str, Any]]

WHOLE: Window = (0.0, 0.0, 1.0, 1.0)
# A pixel belongs to the picture, not to its padding, where it is at least half as bright as white.
_INSIDE = 0.5
# How far a prepared picture may be from a straight line, in shares of the picture: eight bits and a resampling filter.
_STRAIGHT = 0.03


@dataclass(frozen=True)
class Sheet:
    """One image as the tower sees it: `rows` and `columns` of patches (pixels where the size of a patch is not known).

    `height` and `width` are the share of the prepared picture that these cover: a rest narrower than a patch is not seen.
    """

    rows: int
    columns: int
    height: float = 1.0
    width: float = 1.0


def find_sheets(inputs: Mapping[str, Tensor], images: int, patch_size: int | None = None) -> list[Sheet | None]:
    """The sheet of each of the `images` of an encoding, in its order; None where the encoding does not say."""
    unknown: list[Sheet | None] = [None] * images
    grids = patch_grids(inputs)
    if not grids and "spatial_shapes" in inputs:  # one for each tile, and an image may have several
        grids = [(1, rows, columns) for rows, columns in inputs["spatial_shapes"].tolist()]
    if grids:
        # Several frames are several sheets, which no one rectangle holds.
        known = [Sheet(rows, columns) if frames == 1 else None for frames, rows, columns in grids]
        return known if len(known) == images else unknown
    pictures = _pictures(inputs)
    if pictures is None or len(pictures) != images:
        return unknown
    size = tuple(pictures.shape[-2:])
    sizes = [size] * images
    if "image_sizes" in inputs:
        sizes = [tuple(pair) for pair in inputs["image_sizes"].reshape(-1, 2).tolist()]
        if len(sizes) != images or tuple(map(max, zip(*sizes, strict=True))) != size:
            return unknown
    return [_in_patches(height, width, patch_size) for height, width in sizes]


def patch_grids(inputs: Mapping[str, Tensor]) -> list[tuple[int, int, int]]:
    """(frames, rows, columns) of the patches of each image, where an encoding says them; else nothing."""
    if "image_grid_thw" in inputs:
        return [(frames, rows, columns) for frames, rows, columns in inputs["image_grid_thw"].reshape(-1, 3).tolist()]
    if "image_grid_hw" in inputs:
        return [(1, rows, columns) for rows, columns in inputs["image_grid_hw"].reshape(-1, 2).tolist()]
    if "image_position_ids" in inputs:
        last = inputs["image_position_ids"].amax(dim=-2).reshape(-1, 2).tolist()
        return [(1, row + 1, column + 1) for column, row in last]
    return []


def _pictures(inputs: Mapping[str, Tensor]) -> Tensor | None:
    """All pictures of an encoding, Float `[picture, 3, height, width]`, without those that only fill up a row."""
    pixels = inputs.get("pixel_values")
    if pixels is None or pixels.ndim not in (4, 5):
        return None
    filled = inputs.get("pixel_attention_mask", pixels)
    if pixels.ndim == 5 and filled.ndim >= 4:
        # [row, tile, ...]: the tiles a row does not have are zeros.
        return pixels.flatten(0, 1)[filled.flatten(2).any(dim=2).flatten()]
    return pixels if pixels.ndim == 4 else None


def _in_patches(height: int, width: int, patch: int | None) -> Sheet:
    if patch is None or patch > min(height, width):
        return Sheet(height, width)
    rows, columns = height // patch, width // patch
    return Sheet(rows, columns, rows * patch / height, columns * patch / width)


def find_grid(tokens: int, sheet: Sheet | None) -> Grid | None:
    """(rows, columns) of this many tokens on the sheet, None where they do not form a rectangle of whole patches.

    >>> find_grid(24, Sheet(8, 12)), find_grid(25, Sheet(8, 12))
    ((4, 6), None)
    """
    if sheet is None or not tokens:
        return None
    rows = math.isqrt(tokens * sheet.rows // sheet.columns)
    if not rows or tokens % rows:
        return None
    columns = tokens // rows
    fits = rows * sheet.columns == columns * sheet.rows and sheet.rows % rows == 0
    return (rows, columns) if fits else None


def boxes_of(grid: Grid, sheet: Sheet, window: Window) -> Tensor:
    """The box of each token, Float `[token, 4]`: left, top, right, bottom as shares of the original picture.

    `window` is the part of that picture which the prepared one shows. The box of a token on padding has no area.
    """
    rows, columns = grid
    left, top, right, bottom = window
    across = left + torch.linspace(0, sheet.width, columns + 1, dtype=torch.float64) * (right - left)
    down = top + torch.linspace(0, sheet.height, rows + 1, dtype=torch.float64) * (bottom - top)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    edges = torch.stack([across[column], down[row], across[column + 1], down[row + 1]])
    return rearrange(edges, "side row column -> (row column) side").clamp(0, 1).float()


# What an image processor does to a picture --------------------------------------------------------------------------


def measure_window(prepare: Prepare, size: tuple[int, int]) -> Window | None:
    """Which part of a picture of this (width, height) the prepared one shows, None where that is not clear.

    An edge below 0 or above 1 means padding. `prepare` makes the inputs of a picture.
    """
    width, height = size
    black, white = (_prepared(prepare, np.array([[level]]), size) for level in (0, 255))
    if black is None or white is None:
        return None
    if black.ndim < 3:
        # Patches in a row: the picture was resized as a whole, unless some of a white one is not white.
        levels = (white - black).unique()
        return WHOLE if len(levels) <= 3 and levels.min() > _INSIDE * levels.max() else None
    span = (white - black).mean(dim=0)
    inside = span > _INSIDE * span.max()
    edges = []
    for axis, length in ((1, width), (0, height)):
        steps = max(length - 1, 1)
        step = 255 // steps or 255 / steps  # whole steps from pixel to pixel are exact, as long as eight bits have them
        ramp = np.arange(length) * step
        light = _prepared(prepare, ramp[None, :] if axis else ramp[:, None], size)
        if light is None:
            return None
        source = ((light - black).mean(dim=0) / span * 255 / step).where(inside, torch.nan)
        edge = _edges_of(source.nanmean(dim=1 - axis).double().numpy(), length)
        if edge is None:
            return None
        edges.append(edge)
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def _prepared(prepare: Prepare, grey: np.ndarray, size: tuple[int, int]) -> Tensor | None:
    """The prepared picture of a grey one: Float `[3, height, width]`, or its patches, Float `[patch, value]`."""
    picture = Image.fromarray(np.broadcast_to(grey.round().astype(np.uint8), size[::-1])).convert("RGB")
    inputs = {name: value for name, value in prepare(picture).items() if isinstance(value, Tensor)}
    if "pixel_values" not in inputs:
        return None
    pictures = _pictures(inputs)
    if pictures is None:
        return _patches(inputs)
    return pictures[0].float() if len(pictures) == 1 else None


def _patches(inputs: Mapping[str, Tensor]) -> Tensor | None:
    """All patches of an encoding whose images are patches in a row, Float `[patch, value]`, without padding."""
    pixels = inputs["pixel_values"].float()
    if pixels.ndim == 3 and "image_position_ids" in inputs:
        return pixels[(inputs["image_position_ids"] >= 0).all(dim=-1)]
    if pixels.ndim == 3 and "pixel_attention_mask" in inputs:
        return pixels[inputs["pixel_attention_mask"].bool()]
    return pixels if pixels.ndim == 2 else None


def _edges_of(source: np.ndarray, length: int) -> tuple[float, float] | None:
    """First and last edge of a prepared picture, as shares of a picture `length` pixels long.

    `source` holds, for each pixel along the prepared picture, the pixel of that picture which it shows; NaN on padding.
    """
    places = np.flatnonzero(~np.isnan(source))
    if len(places) < 2 or length < 2:
        return None
    # A filter bends the ramp at the picture's own ends, so the line is fitted to the pixels between them.
    margin = (len(places) - 1) // 4
    places = places[margin : len(places) - margin]
    shares = (source[places] + 0.5) / length
    slope, first = np.polyfit(places + 0.5, shares, 1)
    last = first + slope * len(source)
    if slope <= 0 or np.abs(shares - (first + slope * (places + 0.5))).max() > _STRAIGHT:
        return None
    # Within half a prepared pixel of the picture's own edge, it is that edge.
    first, last = (round(edge) if abs(edge - round(edge)) < slope / 2 else edge for edge in (first, last))
    return float(first), float(last)
