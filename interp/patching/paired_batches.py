"""The pairs of runs that a patching sweep compares, and the positions that it patches.

A column of the grid is a single token, or a group of positions that are patched together: the patches of an object, a named
span, all of the image. The two rows of a pair must have the same layout, so that a position means the same in both.
Different pairs may have different layouts, as long as each of them has every column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from interp.errors import InputError, shown
from interp.models import Batch
from interp.models.batches.standings import common_name, common_patch, common_role, standings_of

# The longest side of the picture in a result, which is there to be looked at.
_LARGEST_PICTURE = 512


@dataclass(frozen=True)
class GridColumn:
    """One column of a grid, as far as the rows agree: its `name`, its `positions` (counted without padding; none where rows
    differ), their `role` and the row and column of the `patch` that it is, None where rows differ or there is none."""

    name: str
    positions: list[int]
    role: str | None
    patch: tuple[int, int] | None


@dataclass(frozen=True)
class PairedBatches:
    """Clean and corrupted rows of equal layouts. `groups[row][column]` are the positions (Int, counted without padding) that
    a column of the grid patches together, and `columns` what holds for each column in all rows; `names` are those of groups."""

    clean: Batch
    corrupted: Batch
    groups: list[list[Tensor]]
    columns: list[GridColumn]
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.clean)

    def part(self, rows: Sequence[int]) -> PairedBatches:
        """These pairs alone, with the labels that hold for them."""
        clean, corrupted, groups = self.clean.part(rows), self.corrupted.part(rows), [self.groups[row] for row in rows]
        return PairedBatches(
            clean, corrupted, groups, _describe_columns(clean, corrupted, groups, self.names), self.names
        )


def pair_batches(clean: Batch, corrupted: Batch, positions: Any) -> PairedBatches:
    """The pairs of two batches and the columns that `positions` selects.

    A name, ints or a mask select single tokens, as many in each row. A list of names, or a dict from names to anything that
    selects positions, makes groups.

    Raises `InputError` for batches with different numbers of rows or different layouts, for rows that select different
    numbers of single tokens, and for a group without a position in one of the rows.
    """
    for side, batch in (("clean", clean), ("corrupted", corrupted)):
        if not isinstance(batch, Batch):
            raise InputError(f"{side} is a {type(batch).__name__}: expected a batch, made with vlm.prepare")
    if len(clean) != len(corrupted):
        raise InputError(f"{len(clean)} clean and {len(corrupted)} corrupted rows: expected pairs")
    for row in range(len(clean)):
        _check_layout(clean, corrupted, row)
    groups_by_name = _groups_by_name(positions)
    if groups_by_name == {}:
        raise InputError("positions={} names no group: expected at least one")
    if groups_by_name is None:
        groups = [[column[None] for column in columns] for columns in _columns(clean, corrupted, positions)]
        counts = [len(columns) for columns in groups]
        if not counts[0] or len(set(counts)) > 1:
            raise InputError(f"positions={shown(positions)} selects {counts} positions: expected as many in each row")
        return PairedBatches(clean, corrupted, groups, _describe_columns(clean, corrupted, groups))
    columns_by_name = {name: _columns(clean, corrupted, group) for name, group in groups_by_name.items()}
    for name, rows in columns_by_name.items():
        empty = next((row for row, columns in enumerate(rows) if not len(columns)), None)
        if empty is not None:
            raise InputError(f"group {name!r} selects nothing in row {empty}: expected at least one position")
    groups = [list(row) for row in zip(*columns_by_name.values(), strict=True)]
    names = list(columns_by_name)
    return PairedBatches(clean, corrupted, groups, _describe_columns(clean, corrupted, groups, names), names)


def _describe_columns(
    clean: Batch, corrupted: Batch, groups: Sequence[Sequence[Tensor]], names: Sequence[str] = ()
) -> list[GridColumn]:
    """What holds for each column in all rows; without names, each column is a single token and gets the name of that."""
    in_clean, in_corrupted = ([standings_of(batch, row) for row in range(len(batch))] for batch in (clean, corrupted))
    columns = []
    for number in range(len(groups[0])):
        of_rows = [of_row[number].tolist() for of_row in groups]
        here, there = (
            [of_row[place] for of_row, places in zip(side, of_rows, strict=True) for place in places]
            for side in (in_clean, in_corrupted)
        )
        name = names[number] if names else common_name(here, there)
        same = all(places == of_rows[0] for places in of_rows)
        columns.append(GridColumn(name, of_rows[0] if same else [], common_role(here), common_patch(here)))
    return columns


def picture_of(pairs: PairedBatches) -> tuple[Tensor | None, Float[Tensor, "position 4"] | None]:
    """The picture of all clean rows, UInt8 `[height, width, 3]`, and the box of each column on it, as shares of its width
    and height.

    A mean over several pictures belongs to none of them, so the picture is None where they differ; boxes are those of all
    pictures of one size. Both are None if a row does not have exactly one picture, if the boxes of its tokens are unknown, or
    if no column is the same single patch in all rows.
    """
    images = pairs.clean.images
    if len(images) != len(pairs) or any(len(of_row) != 1 for of_row in images):
        return None, None
    (first, *others), row = [of_row[0] for of_row in images], pairs.clean.row(0)
    boxes = row.positions.boxes(0)
    if len(boxes) != 1 or boxes[0] is None or any(other.size != first.size for other in others):
        return None, None
    box_of = dict(zip(row.positions["image"][0].nonzero().flatten().tolist(), boxes[0], strict=True))
    nowhere = torch.full((4,), torch.nan, dtype=torch.float32)
    of_columns = [
        nowhere if column.patch is None or len(group) > 1 else box_of[int(group)]
        for group, column in zip(pairs.groups[0], pairs.columns, strict=True)
    ]
    stacked = torch.stack([box.float() for box in of_columns])
    if stacked.isnan().all():
        return None, None
    if not all(_is_same_picture(first, other) for other in others):
        return None, stacked
    picture = first.convert("RGB")
    picture.thumbnail((_LARGEST_PICTURE, _LARGEST_PICTURE))
    return torch.from_numpy(np.array(picture)), stacked


def _is_same_picture(first: Image.Image, other: Image.Image) -> bool:
    return first is other or (first.mode == other.mode and first.tobytes() == other.tobytes())


def _groups_by_name(positions: Any) -> dict[str, Any] | None:
    """Groups by their names; None if `positions` are single tokens."""
    if isinstance(positions, Mapping):
        return {str(name): group for name, group in positions.items()}
    if isinstance(positions, list | tuple) and positions and all(isinstance(each, str) for each in positions):
        repeated = next((name for name in positions if positions.count(name) > 1), None)
        if repeated is not None:
            raise InputError(f"positions={shown(positions)} names {repeated!r} more than once: name each once")
        return {name: name for name in positions}
    return None


def _columns(clean: Batch, corrupted: Batch, positions: Any) -> list[Tensor]:
    """The selected columns of each row, counted without padding. Raises `InputError` for a pair that does not agree."""
    columns = []
    for row in range(len(clean)):
        masks = [batch.positions.select(positions)[row][batch.positions["all"][row]] for batch in (clean, corrupted)]
        if not (masks[0] == masks[1]).all():
            raise InputError(
                f"positions={shown(positions)} selects other positions in clean than in corrupted row {row}: expected "
                "the same places"
            )
        columns.append(masks[0].nonzero().flatten())
    return columns


def _check_layout(clean: Batch, corrupted: Batch, row: int) -> None:
    """Raise `InputError` if the rows of a pair have different lengths, or images in different places."""
    kinds = [batch.positions["image"][row][batch.positions["all"][row]] for batch in (clean, corrupted)]
    if kinds[0].shape != kinds[1].shape or not bool((kinds[0] == kinds[1]).all()):
        sizes = [f"{len(kind)} tokens, {int(kind.sum())} of images" for kind in kinds]
        raise InputError(
            f"row {row}: clean has {sizes[0]} and corrupted {sizes[1]}, or images in other places: expected equal layouts, "
            "as interp.toy.pairs gives"
        )
    grids = [batch.positions.grid(row) for batch in (clean, corrupted)]
    if grids[0] != grids[1]:
        raise InputError(
            f"row {row}: the patches of clean lie in {grids[0]} and of corrupted in {grids[1]}: expected the same"
        )
