"""Which positions of a batch are image, text, special or padding, computed from the ids the model really gets.

A Bool `[batch, seq]` mask selects what a method reads or changes. A mask comes from a name (``"image"``, ``"last"``, a
span's name), from ints that count a row's real tokens (0 the first, -1 the last), or from a mask in hand.

A row may hold several images. Between the tokens of *one* image there may be nothing, a break after each row of patches,
or words that name its tiles. So images are told apart by their numbers of tokens, never by gaps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.arguments import as_int, as_ints
from interp.displays.brief import Display, in_lines
from interp.errors import InputError, NothingSelected, RowError, for_each_row, shown
from interp.models.batches.grids import Grid, Sheet, find_grid
from interp.models.batches.sink_mask import SinkMask

NAMES = ("image", "text", "special", "padding", "all", "question", "after_image", "last", "last_image")
# The kinds without attention sinks, which only a run of the model can tell, and the kinds that they are a part of.
WITHOUT_SINKS = {"content": "text", "image_content": "image"}

# The names of the tokens of a row's first image, of its second, ...
_NUMBERED = re.compile(r"image_\d+")


@dataclass(frozen=True)
class Positions(Display):
    """The kinds of position in a batch, by name: `positions["image"]` is Bool `[batch, seq]`.

    ================= ==================================================================================
    ``image``         image tokens
    ``image_0``       those of each row's first image, ``image_1`` of its second, ...
    ``special``       the tokenizer's special tokens, other than image tokens and padding
    ``padding``       positions that the attention mask leaves out
    ``text``          every other token
    ``all``           everything but padding
    ``last``          the last real token of each row
    ``question``      text but the last token
    ``last_image``    the last image token of each row that has one
    ``after_image``   real tokens after a row's last image token (all of them where a row has no image)
    ``content``       text without attention sinks
    ``image_content`` image tokens without attention sinks
    ================= ==================================================================================

    A sink is a token whose norm in some state is over 20 times that of other tokens, such as the first of a row. Its
    state says nothing of the word or the patch, and outweighs all others in a mean. `content` and `image_content` run the
    model once on the batch, at their first use; `interp.models.running.sinks` states the rule.

    The spans of the batch have their own names. A row without a second image has no position in ``image_1``. Where the
    image tokens of a batch cannot be divided among its images, these numbered names are missing.

    >>> import interp
    >>> batch = interp.load("toy").prepare(texts=["a red 3 at top ."], spans={"digit": "3"})
    >>> batch.positions["digit"].nonzero().tolist(), batch.positions.select([-1]).nonzero().tolist()
    ([[0, 3]], [[0, 6]])
    """

    masks: Mapping[str, Tensor]
    grids: Sequence[Sequence[Grid | None]] = field(default=(), repr=False)
    find_boxes: Callable[[int], list[Tensor | None]] | None = field(default=None, repr=False, compare=False)
    sinks: SinkMask | None = field(default=None, repr=False, compare=False)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            if _NUMBERED.fullmatch(name) and ("image_0" in self or not self["image"].any()):
                raise NothingSelected(f"positions={name!r} selects nothing in this batch: no row has so many images")
            raise InputError(
                f"positions={name!r} is unknown: use one of {', '.join(self.names)}, a list of ints or a mask"
            )
        if name in self.masks:
            return self.masks[name]
        assert self.sinks is not None  # as the name is among ours
        return self.masks[WITHOUT_SINKS[name]] & ~self.sinks()

    def __contains__(self, name: str) -> bool:
        return name in self.names

    @property
    def names(self) -> tuple[str, ...]:
        """All names that these positions know."""
        return (*self.masks, *(() if self.sinks is None else WITHOUT_SINKS))

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.names)

    def __repr__(self) -> str:
        counts = [f"{name} {int(mask.sum())}" for name, mask in self.masks.items()]
        rows, length = self.masks["all"].shape
        return in_lines("Positions", [f"{rows} x {length}", *counts])

    def grid(self, row: int) -> list[Grid | None]:
        """(rows, columns) of the patches of each image in this row, None where they do not form a rectangle."""
        return list(self.grids[row_index(row, len(self.grids))])

    def boxes(self, row: int) -> list[Tensor | None]:
        """The box of each token of each image of this row on its picture: Float `[token, 4]`, None where not known.

        The four numbers are left, top, right and bottom as shares of the original picture, from 0 to 1, so that
        ``box * (width, height, width, height)`` are its pixels whatever its size. What a processor crops away lies in
        no box, and a token that sees only padding has a box without area. Boxes are known for images that were passed to
        `prepare` and whose tokens have a grid.
        """
        row = row_index(row, len(self.grids))
        return [None] * len(self.grids[row]) if self.find_boxes is None else self.find_boxes(row)

    def named(self, spans: Mapping[str, Tensor]) -> Positions:
        """These positions, and spans under their names."""
        return replace(self, masks={**self.masks, **spans})

    @property
    def spans(self) -> dict[str, Tensor]:
        """The masks of the named spans alone."""
        return {name: mask for name, mask in self.masks.items() if not is_kind(name)}

    def part(self, rows: Sequence[int], columns: Tensor) -> Positions:
        """The positions of these rows at these columns (Bool `[seq]`), cut out of this batch's; a row may come several times."""
        masks = {name: mask[list(rows)][:, columns] for name, mask in self.masks.items()}
        # A row that has no second image has no positions of that name.
        masks = {name: mask for name, mask in masks.items() if mask.any() or not _NUMBERED.fullmatch(name)}
        find_boxes = None if self.find_boxes is None else BoxesOfRows(self.find_boxes, tuple(rows))
        sinks = self.sinks and self.sinks.part(rows, columns)
        return Positions(masks, [self.grids[row] for row in rows], find_boxes, sinks)

    def select(self, positions: Any) -> Tensor:
        """Any value of an argument `positions=` of this package, as a Bool `[batch, seq]` mask.

        Raises `InputError` for an unknown name, an index that a row does not have, or a mask of another shape.
        """
        if isinstance(positions, str):
            return self[positions]
        real = self.masks["all"]
        if isinstance(positions, np.ndarray) and positions.dtype == bool:
            positions = torch.tensor(positions)
        if isinstance(positions, Tensor) and positions.dtype == torch.bool:
            if positions.shape != real.shape:
                raise InputError(
                    f"positions is a mask of shape {tuple(positions.shape)}, expected {tuple(real.shape)} (batch, seq)"
                )
            return positions.cpu()
        indices = as_ints(positions)
        if indices is None:
            raise InputError(
                f"positions={shown(positions)}: expected a name ({', '.join(self.names)}), a list of ints or a bool mask"
            )
        return torch.stack(for_each_row(lambda row: count_tokens(real[row], indices, row), len(real)))


def name_of_positions(positions: Any) -> str:
    """Positions in a label: their own name, their ints, or how many a mask selects in each row.

    >>> name_of_positions("last"), name_of_positions([0, -1]), name_of_positions(torch.tensor([[True, True], [False, True]]))
    ('last', '[0, -1]', 'mask of 1 to 2 positions a row')
    """
    if isinstance(positions, str):
        return positions
    if getattr(positions, "ndim", 0) != 2:
        ints = as_ints(positions)
        return shown(positions if ints is None else ints)
    counts = [int(count) for count in positions.sum(-1)]
    reach = f"{min(counts)} to {max(counts)}" if len(set(counts)) > 1 else f"{counts[0]}"
    return f"mask of {reach} position{'s' * (max(counts) != 1)}{' a row' * (len(counts) > 1)}"


@dataclass(frozen=True)
class BoxesOfRows:
    """The boxes of some rows of a batch, found where those of the batch are."""

    find_boxes: Callable[[int], list[Tensor | None]]
    rows: tuple[int, ...]

    def __call__(self, row: int) -> list[Tensor | None]:
        return self.find_boxes(self.rows[row])


def is_kind(name: str) -> bool:
    """Whether a name is that of a kind of position; a span cannot have it."""
    return name in NAMES or name in WITHOUT_SINKS or is_of_images(name)


def is_of_images(name: str) -> bool:
    """Whether the positions of this name are image tokens alone, so that a row without an image has none."""
    return name in ("image", "last_image", "image_content") or _NUMBERED.fullmatch(name) is not None


def row_index(row: Any, rows: int) -> int:
    """A row of a batch as an int from 0; negative numbers count from the end. Raises `InputError` for any other row."""
    index = as_int(row)
    if index is None or not -rows <= index < rows:
        raise InputError(f"row={shown(row)}: this batch has {rows} rows, expected an int from 0 to {rows - 1}")
    return index % rows


def count_tokens(real: Tensor, indices: Sequence[int], row: int) -> Tensor:
    """Ints that count the real tokens of one row, 0 the first and -1 the last, as a Bool `[seq]` mask."""
    mask = torch.zeros_like(real)
    places = real.nonzero().flatten()
    for index in indices:
        if not -len(places) <= index < len(places):
            has = f" has {len(places)} real tokens, 0 to {len(places) - 1}"
            raise RowError({row: (f"position {index!r}: ", has)})
        mask[places[index]] = True
    return mask


def find_positions(
    input_ids: Tensor,
    attention_mask: Tensor,
    image_tokens: Tensor,
    special_ids: Sequence[int],
    sheets: Sequence[Sequence[Sheet | None]],
    counts: Sequence[Sequence[int] | None],
) -> Positions:
    """The positions of an encoding.

    `image_tokens` is the Bool `[batch, seq]` mask of the image tokens. For each image of each row, `sheets` holds how the
    tower sees it and `counts` the number of its tokens, None for a row where these are not known.
    """
    real = attention_mask.bool()
    images = real & image_tokens
    special = real & ~images & torch.isin(input_ids, torch.tensor(list(special_ids), dtype=input_ids.dtype))
    text = real & ~images & ~special
    last = last_true(real)
    totals = images.sum(dim=1).tolist()
    counts = [
        row if row is not None and sum(row) == total and len(row) == len(pictures) else None
        for row, total, pictures in zip(counts, totals, sheets, strict=True)
    ]
    masks = {
        "image": images,
        **_each_image(images, counts),
        "text": text,
        "special": special,
        "padding": ~real,
        "all": real,
        "question": text & ~last,
        "after_image": (images.flip(1).cumsum(1).flip(1) == 0) & real,
        "last": last,
        "last_image": last_true(images),
    }
    grids = [
        [None] * len(row) if share is None else [find_grid(n, sheet) for n, sheet in zip(share, row, strict=True)]
        for row, share in zip(sheets, counts, strict=True)
    ]
    return Positions(masks, grids)


def _each_image(images: Tensor, counts: Sequence[Sequence[int] | None]) -> dict[str, Tensor]:
    """``image_0``, ``image_1``, ...: a row's image tokens, divided in order. Empty where the counts of a row are unknown."""
    if None in counts:
        return {}
    masks = torch.zeros(max((len(row or ()) for row in counts), default=0), *images.shape, dtype=torch.bool)
    for number, row in enumerate(counts):
        columns = images[number].nonzero().flatten()
        for index, own in enumerate(columns.split(list(row or ()))):
            masks[index, number, own] = True
    return {f"image_{index}": mask for index, mask in enumerate(masks)}


def last_true(mask: Tensor) -> Tensor:
    """The last True of each row alone."""
    return mask & (mask.flip(1).cumsum(1).flip(1) == 1)
