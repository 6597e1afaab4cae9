"""Places: where each image token lies, on its picture and among the outputs of the projector.

Two things must be known of an image token before a mask can say anything about what the projector makes: its box on the original
picture, and which output of the projector it is. The box follows from what the processor does to pictures of one size
(`Positions.boxes`). Which output it is, is proved by effect (`interp.models.layout.patches`), on a batch of two equal rows: some
projectors work in windows, and their outputs come in another order. The second row shows that the outputs of rows follow
each other. The order depends on the grids of the pictures alone, so it is proved once for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from interp.errors import InputError, LayoutError
from interp.models import VLM, Batch
from interp.models.batches.grids import Grid
from interp.models.batches.prompts import PLACEHOLDER
from interp.models.layout.patches import patches_of


def token_boxes(batch: Batch, row: int) -> list[Float[Tensor, "token 4"]]:
    """The box of each image token of a row on its picture, for each of the row's pictures, as `Positions.boxes` has them.

    Raises `LayoutError` where the tokens of a picture form no grid on it, as those of tiles and of learned queries.
    """
    boxes = []
    for picture, own in zip(batch.images[row], batch.positions.boxes(row), strict=True):
        if own is None:
            width, height = picture.size
            raise LayoutError(
                f"the image tokens of a picture of {width} x {height} form no grid on it (tiles, learned queries, a "
                "processor that cannot be followed): masks cannot be carried to them, expected a processor without tiles"
            )
        boxes.append(own)
    return boxes


class OutputOrder:
    """Which output of the projector each image token of a row is, for rows of one model.

    >>> import interp
    >>> vlm, picture = interp.load("toy"), interp.toy.scenes(1, seed=0)[0].image
    >>> OutputOrder(vlm)(vlm.prepare(["<image>"], [picture]), 0)[:4].tolist()
    [0, 1, 2, 3]
    """

    def __init__(self, vlm: VLM) -> None:
        self._vlm: VLM | None = vlm
        self._orders: dict[tuple[Grid | None, ...], Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_vlm": None}  # workers get no copy of the model

    def __call__(self, batch: Batch, row: int) -> Int[Tensor, " token"]:
        """For each image token of a row, in their order, its place among the projector's outputs for this row.

        Raises `LayoutError` where that was not proved, and `InputError` for grids that were not met before in a worker of a
        `DataLoader`, which cannot run the model.
        """
        grids = tuple(batch.positions.grid(row))
        if grids not in self._orders:
            if self._vlm is None or get_worker_info() is not None:
                raise InputError(
                    "patch alignment runs the model to find the image tokens of pictures of each new shape, which a worker "
                    "cannot: expected dataloader_num_workers=0"
                )
            self._orders[grids] = _find_order(self._vlm, [picture.size for picture in batch.images[row]])
        return self._orders[grids]


def _find_order(vlm: VLM, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """The order for pictures of these sizes, (width, height), tried on noise, of which all patches differ."""
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(256, size=(height, width, 3), dtype=np.uint8)) for width, height in sizes]
    batch = vlm.prepare([" ".join([PLACEHOLDER] * len(sizes))] * 2, [pictures] * 2)
    patches, number = patches_of(vlm, batch, "projector"), int(batch.positions["image"][0].sum())
    first, second = (
        patches.index[patches.rows == row][patches.columns[patches.rows == row].argsort()] for row in range(2)
    )
    one_each = bool((patches.columns >= 0).all()) and sorted(first.tolist()) == list(range(number))
    if not one_each or second.tolist() != (first + number).tolist():
        raise LayoutError(
            f"the outputs of the projector of {vlm.name!r} were not proved to be its {number} image tokens, one each and row "
            "by row: masks cannot be carried to them"
        )
    return first
