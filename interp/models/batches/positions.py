"""Which positions of a batch are image, text, special or padding, computed from the ids the model really gets.

Everything a method wants to read or change is selected by a Bool `[batch, seq]` mask. A mask comes from a name
(``"image"``, ``"last"``, a span's name), from ints that count a row's real tokens (0 the first, -1 the last), or from
a mask in hand.

A row may hold several images, and what stands between the tokens of *one* image differs: nothing, a break behind each
row of patches, words that name its tiles. So images are told apart by how many tokens each has, never by gaps.
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
from interp.errors import InputError, shown
from interp.models.batches.grids import Grid, Sheet, find_grid

NAMES = ("image", "text", "special", "padding", "all", "question", "after_image", "last", "last_image")


@dataclass(frozen=True)
class Positions:
    """The kinds of position in a batch, by name: `positions["image"]` is Bool `[batch, seq]`.

    =============== ==================================================================================
    ``image``       image tokens
    ``image_0``     those of each row's first image, ``image_1`` of its second, ...
    ``special``     the tokenizer's special tokens, other than image tokens and padding
    ``padding``     what the attention mask leaves out
    ``text``        every other token
    ``all``         everything but padding
    ``last``        the last real token of each row
    ``question``    text but the last token
    ``last_image``  the last image token of each row that has one
    ``after_image`` real tokens behind a row's last image token (all of them where a row has no image)
    =============== ==================================================================================

    Spans that were named when the batch was prepared come under their names. A row without a second image has no
    position in ``image_1``; where the tokens of a batch cannot be shared out among its images, these names are missing.
    """

    masks: Mapping[str, Tensor]
    grids: Sequence[Sequence[Grid | None]] = field(default=(), repr=False)
    find_boxes: Callable[[int], list[Tensor | None]] | None = field(default=None, repr=False, compare=False)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.masks:
            raise InputError(
                f"positions={name!r} is unknown: use one of {', '.join(self.masks)}, a list of ints or a mask"
            )
        return self.masks[name]

    def __contains__(self, name: str) -> bool:
        return name in self.masks

    def grid(self, row: int) -> list[Grid | None]:
        """(rows, columns) of the patches of each image in this row, None where they are no rectangle."""
        return list(self.grids[row_index(row, len(self.grids))])

    def boxes(self, row: int) -> list[Tensor | None]:
        """Where each token of each image of this row lies on the picture: Float `[token, 4]`, None where not known.

        The four are left, top, right and bottom as shares of the picture *as it was given*, from 0 to 1, so that
        ``box * (width, height, width, height)`` are its pixels whatever its size. What a processor crops away lies in
        no box, and a token that sees only padding has a box without area. Known for images that were given to
        `prepare` and whose tokens have a grid.
        """
        row = row_index(row, len(self.grids))
        return [None] * len(self.grids[row]) if self.find_boxes is None else self.find_boxes(row)

    def named(self, spans: Mapping[str, Tensor]) -> Positions:
        """These positions and the spans' under their names."""
        return replace(self, masks={**self.masks, **spans})

    @property
    def spans(self) -> dict[str, Tensor]:
        """The masks of the named spans alone."""
        return {name: mask for name, mask in self.masks.items() if not is_kind(name)}

    def repeated(self, times: int) -> Positions:
        """The positions of a one-row batch, for `times` equal rows."""
        masks = {name: mask.expand(times, -1) for name, mask in self.masks.items()}
        return Positions(masks, list(self.grids) * times, self.find_boxes and (lambda row: self.boxes(0)))

    def select(self, positions: Any) -> Tensor:
        """Whatever is taken as `positions=` anywhere in this package, as a Bool `[batch, seq]` mask.

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
                f"positions={shown(positions)}: expected a name ({', '.join(self.masks)}), a list of ints or a bool mask"
            )
        return torch.stack([count_tokens(real[row], indices, row) for row in range(len(real))])


def is_kind(name: str) -> bool:
    """Whether a name is that of a kind of position, and so none for a span."""
    return name in NAMES or re.fullmatch(r"image_\d+", name) is not None


def row_index(row: Any, rows: int) -> int:
    """A row of a batch, counted from 0, or with a negative number from the end. Raises `InputError` if there is none."""
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
            raise InputError(f"position {index!r}: row {row} has {len(places)} real tokens, 0 to {len(places) - 1}")
        mask[places[index]] = True
    return mask


def find_positions(
    input_ids: Tensor,
    attention_mask: Tensor,
    image: int | Tensor | None,
    special_ids: Sequence[int],
    sheets: Sequence[Sequence[Sheet | None]],
    counts: Sequence[Sequence[int] | None] | None = None,
) -> Positions:
    """The positions of an encoding.

    `image` is the id of the image token, or a Bool `[batch, seq]` mask of the image tokens where a model has no such
    id. `sheets` holds, for each image of each row, how the tower sees it, and `counts` the number of its tokens, None
    for a row where that is not known. Without `counts`, a row's only image has all of the row's.
    """
    real = attention_mask.bool()
    given = image if isinstance(image, Tensor) else input_ids == image
    images = real & given if image is not None else torch.zeros_like(real)
    special = real & ~images & torch.isin(input_ids, torch.tensor(list(special_ids), dtype=input_ids.dtype))
    text = real & ~images & ~special
    last = _last_true(real)
    shares = _shares(images, sheets, counts)
    masks = {
        "image": images,
        **_each_image(images, shares),
        "text": text,
        "special": special,
        "padding": ~real,
        "all": real,
        "question": text & ~last,
        "after_image": (images.flip(1).cumsum(1).flip(1) == 0) & real,
        "last": last,
        "last_image": _last_true(images),
    }
    grids = [
        [None] * len(row) if share is None else [find_grid(n, sheet) for n, sheet in zip(share, row, strict=True)]
        for row, share in zip(sheets, shares, strict=True)
    ]
    return Positions(masks, grids)


def _shares(
    images: Tensor, sheets: Sequence[Sequence[Any]], counts: Sequence[Sequence[int] | None] | None
) -> list[list[int] | None]:
    """The number of tokens of each image of each row, None for a row where they do not add up to the row's tokens."""
    shares: list[list[int] | None] = []
    for row, (total, pictures) in enumerate(zip(images.sum(dim=1).tolist(), sheets, strict=True)):
        given = [total] * (len(pictures) == 1) if counts is None else counts[row]
        fits = given is not None and sum(given) == total and len(given) == len(pictures)
        shares.append(list(given) if fits and given is not None else None)
    return shares


def _each_image(images: Tensor, shares: Sequence[Sequence[int] | None]) -> dict[str, Tensor]:
    """``image_0``, ``image_1``, ...: a row's image tokens, shared out in order. None of them where one row is unclear."""
    if any(share is None for share in shares):
        return {}
    masks = torch.zeros(max((len(share or ()) for share in shares), default=0), *images.shape, dtype=torch.bool)
    for row, share in enumerate(shares):
        places = images[row].nonzero().flatten()
        for index, mine in enumerate(places.split(list(share or ()))):
            masks[index, row, mine] = True
    return {f"image_{index}": mask for index, mask in enumerate(masks)}


def _last_true(mask: Tensor) -> Tensor:
    """The last True of each row alone."""
    return mask & (mask.flip(1).cumsum(1).flip(1) == 1)
