"""A batch: rows of one encoding, which a model runs together.

nnsight cannot batch two inputs with images, but one encoding of n rows works, so a batch *is* one encoding. It also keeps
what its rows are: their tokens, their positions, and the texts and images that they were made from.
`interp.models.batches.maker` makes batches. A batch gives its rows back one by one, and repeats a row, which is how patching
runs many versions of one prompt in one forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from interp.displays import Display
from interp.errors import InputError
from interp.models.batches.encodings import pixels_of
from interp.models.batches.keys import AbsentMaker
from interp.models.batches.positions import Positions, row_index


@dataclass(frozen=True)
class Batch(Display):
    """Rows of one encoding: the model's `inputs`, the `tokens` as strings, and the `positions` of every kind.

    `texts` and `images` are what the rows were made from; both are empty for a batch made from an encoding.

    >>> import interp
    >>> batch = interp.load("toy").prepare(texts=["where is the 3 ?", "a red 3 at top ."])
    >>> len(batch), batch.row(0).tokens
    (2, [['<bos>', 'where', 'is', 'the', '3', '?']])
    """

    inputs: dict[str, Tensor]
    tokens: list[list[str]]
    positions: Positions
    texts: tuple[str, ...] = ()
    images: tuple[tuple[Image.Image, ...], ...] = ()
    _maker: Any = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def has_images(self) -> bool:
        """Whether images are among the inputs."""
        return bool(pixels_of(self.inputs))

    @property
    def tail(self) -> int:
        """The number of positions at the end of each row whose logits are read: the last one, except behind an answer."""
        return 1

    def row(self, index: int) -> Batch:
        """Row `index` alone, without the padding it had beside the others."""
        return self.part([row_index(index, len(self))])

    def part(self, rows: Sequence[int]) -> Batch:
        """These rows, without the padding that they needed only beside the others."""
        if list(rows) == list(range(len(self))):
            return self
        chosen = torch.tensor([row_index(row, len(self)) for row in rows])
        keep = self.positions["all"][chosen].any(dim=0)
        if self._maker is None or isinstance(self._maker, AbsentMaker):
            return self._cut(chosen, keep)
        if self.texts:
            part = self._maker.from_texts([self.texts[row] for row in chosen], [self.images[row] for row in chosen])
        else:
            part = self._maker.from_encoding({name: self._rows_of(name, chosen, keep) for name in self.inputs})
        spans = {name: mask[chosen][:, keep] for name, mask in self.positions.spans.items()}
        positions = part.positions.named(spans)
        sinks = self.positions.sinks
        if sinks is not None and sinks.known:
            positions = replace(positions, sinks=sinks.part(chosen.tolist(), keep))
        return replace(part, positions=positions)

    def _cut(self, rows: Tensor, keep: Tensor) -> Batch:
        """These rows and columns, cut out of this batch where nothing can make them anew."""
        inputs = {name: self._rows_of(name, rows, keep) for name in self.inputs}
        chosen, columns = rows.tolist(), keep.nonzero().flatten().tolist()
        return Batch(
            inputs,
            [[self.tokens[row][column] for column in columns] for row in chosen],
            self.positions.part(chosen, keep),
            tuple(self.texts[row] for row in chosen if self.texts),
            tuple(self.images[row] for row in chosen if self.images),
            self._maker,
        )

    def repeat(self, times: int) -> Batch:
        """A one-row batch as `times` equal rows."""
        if len(self) != 1:
            raise InputError(f"a batch of {len(self)} rows cannot be repeated: take row(i) first")
        # Packed images have no row axis: more rows have more of them.
        inputs = {name: torch.cat([t] * times, dim=self._row_axis(name) or 0) for name, t in self.inputs.items()}
        positions = self.positions.part([0] * times, torch.ones(len(self.tokens[0]), dtype=torch.bool))
        return Batch(inputs, self.tokens * times, positions, self.texts * times, self.images * times, self._maker)

    def _rows_of(self, name: str, rows: Tensor, keep: Tensor) -> Tensor:
        """These rows of an input, and only the columns to `keep` where it has one value for each token."""
        axis = self._row_axis(name)
        if axis is None:
            absent = (
                "and the model that this batch was pickled from is not in this process: cut it before you pickle it"
            )
            remedy = absent if isinstance(self._maker, AbsentMaker) else "prepare this batch from texts and images"
            raise InputError(f"row {int(rows[0])}: {name} have no row axis, {remedy}")
        part = self.inputs[name].index_select(axis, rows)
        return part[..., keep] if self.inputs[name].shape[-2:] == self.positions["all"].shape else part

    def _row_axis(self, name: str) -> int | None:
        """The axis of an input along which the rows lie; None where it has none, as packed images."""
        tensor = self.inputs[name]
        if tensor.ndim == 3 and tensor.shape[1:] == self.positions["all"].shape and not tensor.is_floating_point():
            return 1  # multimodal rotary positions: one plane each for time, height and width
        if tensor.ndim == 2 and tensor.shape == self.positions["all"].shape:
            return 0
        # As many images as rows are one for each row only where every row has image tokens.
        return 0 if tensor.shape[:1] == (len(self),) and self.positions["image"].any(dim=1).all() else None
