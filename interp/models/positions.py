"""Which positions of a batch are image, text, special or padding, computed from the ids the model really gets.

Everything a method wants to read or change is selected by a Bool `[batch, seq]` mask. A mask comes from a name
(``"image"``, ``"last"``, a span's name), from ints that count a row's real tokens (0 the first, -1 the last), or from
a mask in hand. The grid of an image's patches is derived from the number of its tokens and the shape of its pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interp.errors import InputError

NAMES = ("image", "text", "special", "padding", "all", "question", "after_image", "last", "last_image")


@dataclass(frozen=True)
class Positions:
    """The kinds of position in a batch, by name: `positions["image"]` is Bool `[batch, seq]`.

    =============== ==================================================================================
    ``image``       image tokens
    ``special``     the tokenizer's special tokens, other than image tokens and padding
    ``padding``     what the attention mask leaves out
    ``text``        every other token
    ``all``         everything but padding
    ``last``        the last real token of each row
    ``question``    text but the last token
    ``last_image``  the last image token of each row that has one
    ``after_image`` real tokens behind a row's last image token (all of them where a row has no image)
    =============== ==================================================================================

    Spans that were named when the batch was prepared come under their names.
    """

    masks: Mapping[str, Tensor]
    grids: Sequence[Sequence[tuple[int, int] | None]] = field(default=(), repr=False)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.masks:
            raise InputError(
                f"positions={name!r} is unknown: use one of {', '.join(self.masks)}, a list of ints or a mask"
            )
        return self.masks[name]

    def __contains__(self, name: str) -> bool:
        return name in self.masks

    def grid(self, row: int) -> list[tuple[int, int] | None]:
        """(rows, columns) of the patches of each image in this row, None where they are no rectangle."""
        if not 0 <= row < len(self.grids):
            raise InputError(f"row={row!r}: this batch has {len(self.grids)} rows, counted from 0")
        return list(self.grids[row])

    def select(self, positions: Any) -> Tensor:
        """Whatever is taken as `positions=` anywhere in this package, as a Bool `[batch, seq]` mask.

        Raises `InputError` for an unknown name, an index that a row does not have, or a mask of another shape.
        """
        if isinstance(positions, str):
            return self[positions]
        real = self.masks["all"]
        if isinstance(positions, Tensor) and positions.dtype == torch.bool:
            if positions.shape != real.shape:
                raise InputError(
                    f"positions is a mask of shape {tuple(positions.shape)}, expected {tuple(real.shape)} (batch, seq)"
                )
            return positions.cpu()
        try:
            indices = [int(index) for index in ([positions] if isinstance(positions, int) else positions)]
        except (TypeError, ValueError):
            raise InputError(
                f"positions={positions!r}: expected a name ({', '.join(self.masks)}), a list of ints or a bool mask"
            ) from None
        mask = torch.zeros_like(real)
        for row, columns in enumerate(real):
            places = columns.nonzero().flatten()
            for index in indices:
                if not -len(places) <= index < len(places):
                    raise InputError(
                        f"position {index!r}: row {row} has {len(places)} real tokens, 0 to {len(places) - 1}"
                    )
                mask[row, places[index]] = True
        return mask


def find_positions(
    input_ids: Tensor,
    attention_mask: Tensor,
    image_token_id: int | None,
    special_ids: Sequence[int],
    image_sizes: Sequence[Sequence[tuple[int, int] | None]],
    spans: Mapping[str, Tensor],
) -> Positions:
    """The positions of an encoding. `image_sizes` holds, for each image of each row, the (height, width) of its pixels."""
    real = attention_mask.bool()
    nowhere = torch.zeros_like(real)
    image = real & (input_ids == image_token_id) if image_token_id is not None else nowhere
    special = real & ~image & torch.isin(input_ids, torch.tensor(list(special_ids), dtype=input_ids.dtype))
    text = real & ~image & ~special
    last, last_image = _last_true(real), _last_true(image)
    past_image = (image.flip(1).cumsum(1).flip(1) == 0) & real
    masks = {
        "image": image,
        "text": text,
        "special": special,
        "padding": ~real,
        "all": real,
        "question": text & ~last,
        "after_image": past_image,
        "last": last,
        "last_image": last_image,
        **spans,
    }
    grids = [_grids(int(image[row].sum()), sizes) for row, sizes in enumerate(image_sizes)]
    return Positions(masks, grids)


def _last_true(mask: Tensor) -> Tensor:
    """The last True of each row alone."""
    return mask & (mask.flip(1).cumsum(1).flip(1) == 1)


def _grids(tokens: int, sizes: Sequence[tuple[int, int] | None]) -> list[tuple[int, int] | None]:
    """Each image's share of the row's tokens, laid out in the proportion of its pixels where that is a rectangle."""
    if not sizes or tokens % len(sizes):
        return [None] * len(sizes)
    return [_rectangle(tokens // len(sizes), size) for size in sizes]


def _rectangle(tokens: int, size: tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None or not tokens:
        return None
    height, width = size
    rows = math.isqrt(tokens * height // width)
    if rows and tokens % rows == 0 and rows * width == (tokens // rows) * height:
        return rows, tokens // rows
    return None
