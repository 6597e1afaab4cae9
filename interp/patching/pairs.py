"""What a patching sweep compares: pairs of runs of one layout, and the positions of the grid.

A column of the grid is a single token, or a group of positions that are patched together: the patches of an object, a
named span, all of the image. The rows of a pair must have the same layout, so that a position means the same in both;
different pairs need not, as long as every one of them has the columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError, shown
from interp.models import Batch

DIRECTIONS = ("denoise", "noise")
# A picture in a result is for looking at: it need not be larger than this.
_LARGEST_PICTURE = 512


@dataclass(frozen=True)
class Pairs:
    """Clean and corrupted rows of equal layouts. `groups[row][column]` are the positions (Int, counted without padding)
    that are patched together in a column of the grid, `names` what the columns are called."""

    clean: Batch
    corrupted: Batch
    groups: list[list[Tensor]]
    names: list[str]

    def __len__(self) -> int:
        return len(self.clean)


def matched(clean: Batch, corrupted: Batch, positions: Any) -> Pairs:
    """The pairs of two batches and the columns that `positions` name.

    A name, ints or a mask are single tokens, as many in each row; a list of names, or a dict that gives a name to
    anything else, are groups.

    Raises `InputError` where the batches have other numbers of rows or other layouts, where rows select different
    numbers of single tokens, and for a group without a position in one of the rows.
    """
    for what, batch in (("clean", clean), ("corrupted", corrupted)):
        if not isinstance(batch, Batch):
            raise InputError(f"{what} is a {type(batch).__name__}: expected a batch, made with vlm.prepare")
    if len(clean) != len(corrupted):
        raise InputError(f"{len(clean)} clean and {len(corrupted)} corrupted rows: expected pairs")
    for row in range(len(clean)):
        _check_layout(clean, corrupted, row)
    named = _as_groups(positions)
    if named == {}:
        raise InputError("positions={} names no group: expected one at least")
    if named is None:
        groups = [[column[None] for column in columns] for columns in _columns(clean, corrupted, positions)]
        counts = [len(columns) for columns in groups]
        if not counts[0] or len(set(counts)) > 1:
            raise InputError(f"positions={shown(positions)} selects {counts} positions: expected as many in each row")
        first = clean.row(0)
        return Pairs(clean, corrupted, groups, [first.tokens[0][int(group)] for group in groups[0]])
    found = {name: _columns(clean, corrupted, place) for name, place in named.items()}
    for name, rows in found.items():
        empty = next((row for row, columns in enumerate(rows) if not len(columns)), None)
        if empty is not None:
            raise InputError(f"group {name!r} selects nothing in row {empty}: expected one position at least")
    return Pairs(clean, corrupted, [list(row) for row in zip(*found.values(), strict=True)], list(found))


def picture_of(pairs: Pairs) -> tuple[Tensor | None, Float[Tensor, "position 4"] | None]:
    """The first clean row's picture, UInt8 `[height, width, 3]`, and where on it each column of the grid lies, as shares.

    None twice where the row has not exactly one picture, where it is not known what its tokens see, or where no column is
    a single one of them.
    """
    row = pairs.clean.row(0)
    boxes = row.positions.boxes(0)
    if len(boxes) != 1 or boxes[0] is None or len(row.images) != 1 or len(row.images[0]) != 1:
        return None, None
    box_of = dict(zip(row.positions["image"][0].nonzero().flatten().tolist(), boxes[0], strict=True))
    nowhere = torch.full((4,), torch.nan)
    of_columns = [box_of.get(int(group), nowhere) if len(group) == 1 else nowhere for group in pairs.groups[0]]
    placed = torch.stack([box.float() for box in of_columns])
    if placed.isnan().all():
        return None, None
    picture = row.images[0][0].convert("RGB")
    picture.thumbnail((_LARGEST_PICTURE, _LARGEST_PICTURE))
    return torch.from_numpy(np.array(picture)), placed


def _as_groups(positions: Any) -> dict[str, Any] | None:
    """Groups by their names, None for single tokens."""
    if isinstance(positions, Mapping):
        return {str(name): place for name, place in positions.items()}
    if isinstance(positions, list | tuple) and positions and all(isinstance(each, str) for each in positions):
        twice = next((name for name in positions if positions.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"positions={shown(positions)} names {twice!r} more than once: name each once")
        return {name: name for name in positions}
    return None


def _columns(clean: Batch, corrupted: Batch, positions: Any) -> list[Tensor]:
    """The selected columns of each row, counted without padding. Raises `InputError` where a pair does not agree."""
    found = []
    for row in range(len(clean)):
        mine, theirs = (
            batch.positions.select(positions)[row][batch.positions["all"][row]] for batch in (clean, corrupted)
        )
        if not (mine == theirs).all():
            raise InputError(
                f"positions={shown(positions)} selects other positions in clean than in corrupted row {row}: expected "
                "the same places"
            )
        found.append(mine.nonzero().flatten())
    return found


def _check_layout(clean: Batch, corrupted: Batch, row: int) -> None:
    """Refuse a pair whose rows have other lengths, or images in other places."""
    kinds = [batch.positions["image"][row][batch.positions["all"][row]] for batch in (clean, corrupted)]
    if kinds[0].shape != kinds[1].shape or not bool((kinds[0] == kinds[1]).all()):
        seen = [f"{len(kind)} tokens, {int(kind.sum())} of images" for kind in kinds]
        raise InputError(
            f"row {row}: clean has {seen[0]} and corrupted {seen[1]}, or images in other places: expected equal layouts, "
            "as interp.toy.pairs gives"
        )
    grids = [batch.positions.grid(row) for batch in (clean, corrupted)]
    if grids[0] != grids[1]:
        raise InputError(
            f"row {row}: the patches of clean lie in {grids[0]} and of corrupted in {grids[1]}: expected the same"
        )
