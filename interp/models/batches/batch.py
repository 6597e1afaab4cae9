"""Making a batch: texts and images become one encoding of n rows, with the positions computed from it.

In texts ``<image>`` stands for an image on every model and becomes the model's own placeholder. Padding is on the
left, so that the last position of every row is its last real token. Everything a caller can get wrong is refused here,
before a model is run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from interp.errors import InputError, shown
from interp.models.batches.encodings import check_ids, check_pixels, images_of, own_counts, pixels_of
from interp.models.batches.grids import Sheet, Window, boxes_of, find_sheets, measure_window
from interp.models.batches.positions import Positions, find_positions, row_index
from interp.models.batches.prompts import PLACEHOLDER, Heard, Images, as_chat, encode, offsets_of
from interp.models.batches.spans import Wording, find_spans

_TEXT_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


@dataclass(frozen=True)
class Batch:
    """Rows of one encoding: the model's `inputs`, the `tokens` as strings, and the `positions` of every kind.

    `texts` and `images` are what the rows were made from; empty for a batch made from an encoding.
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

    def row(self, index: int) -> Batch:
        """Row `index` alone, without the padding it had among the others."""
        return self.part([row_index(index, len(self))])

    def part(self, rows: Sequence[int]) -> Batch:
        """These rows, without the padding that the others made them have."""
        if list(rows) == list(range(len(self))):
            return self
        chosen = torch.tensor([row_index(row, len(self)) for row in rows])
        keep = self.positions["all"][chosen].any(dim=0)
        spans = {name: mask[chosen][:, keep] for name, mask in self.positions.spans.items()}
        if self.texts:
            few = self._maker.from_texts([self.texts[row] for row in chosen], [self.images[row] for row in chosen])
            return replace(few, positions=few.positions.named(spans))
        uneven = [name for name in self.inputs if self._row_axis(name) is None]
        if uneven:
            raise InputError(
                f"row {rows[0]!r}: {', '.join(uneven)} have no row axis, prepare this batch from texts and images"
            )
        inputs = {}
        for name, tensor in self.inputs.items():
            mine = tensor.index_select(self._row_axis(name) or 0, chosen)
            inputs[name] = mine[..., keep] if tensor.shape[-2:] == self.positions["all"].shape else mine
        few = self._maker.from_encoding(inputs)
        return replace(few, positions=few.positions.named(spans))

    def repeat(self, times: int) -> Batch:
        """A one-row batch as `times` equal rows: patching runs many versions of one prompt in one forward pass."""
        if len(self) != 1:
            raise InputError(f"a batch of {len(self)} rows cannot be repeated: take row(i) first")
        # Images that are packed one behind the other have no row axis: for more rows, there are more of them.
        inputs = {name: torch.cat([t] * times, dim=self._row_axis(name) or 0) for name, t in self.inputs.items()}
        positions = self.positions.repeated(times)
        return Batch(inputs, self.tokens * times, positions, self.texts * times, self.images * times, self._maker)

    def _row_axis(self, name: str) -> int | None:
        """The axis of an input along which the rows lie; None where it has none (images packed together)."""
        tensor = self.inputs[name]
        if tensor.ndim == 3 and tensor.shape[1:] == self.positions["all"].shape and not tensor.is_floating_point():
            return 1  # multimodal rotary positions: one plane each for time, height and width
        if tensor.ndim == 2 and tensor.shape == self.positions["all"].shape:
            return 0
        # As many images as rows are one each only where every row has image tokens.
        return 0 if tensor.shape[:1] == (len(self),) and self.positions["image"].any(dim=1).all() else None


class BatchMaker:
    """Makes batches for one model: what its processor, its tokenizer and its image token need to know, in one place.

    `vocab_size` bounds the ids, `patch_size` is that of the image tower where the processor does not say it, and
    `find_images` gives the Bool `[batch, seq]` mask of image positions for a model without an image token. `token_types` are
    the inputs by which the model's forward pass knows where images are.
    """

    def __init__(
        self,
        processor: Any,
        tokenizer: Any,
        image_token_id: int | None,
        vocab_size: int | None = None,
        find_images: Callable[[Mapping[str, Tensor]], Tensor | None] | None = None,
        patch_size: int | None = None,
        token_types: Sequence[str] = (),
    ):
        self.processor, self.tokenizer, self.image_token_id = processor, tokenizer, image_token_id
        self.vocab_size, self.find_images, self.token_types = vocab_size, find_images, token_types
        sizes = (getattr(part, "patch_size", None) for part in (processor, getattr(processor, "image_processor", None)))
        self.patch_size = next((size for size in sizes if isinstance(size, int)), patch_size)
        self._windows: dict[tuple[int, int], Window | None] = {}
        self._lengths: dict[tuple[int, int], int] = {}

    def prepare(self, texts: Any, images: Any, chat: bool, spans: Any = None) -> Batch:
        """A batch from texts and images. Raises `InputError` for whatever does not fit together."""
        texts = [] if texts is None else _as_rows("texts", texts, "strings")
        if not texts:
            raise InputError("the batch is empty: expected at least one text")
        wrong = [text for text in texts if not isinstance(text, str)]
        if wrong:
            raise InputError(f"{shown(wrong[0])} among the texts is a {type(wrong[0]).__name__}: expected strings")
        nested = [[]] * len(texts) if images is None else [_as_list(i) for i in _as_rows("images", images, "pictures")]
        if len(nested) != len(texts):
            raise InputError(
                f"{len(texts)} texts and {len(nested)} images: expected one entry of images a text, None for none"
            )
        for row, (text, given) in enumerate(zip(texts, nested, strict=True)):
            _match_placeholders(row, text, len(given))
        pictures = [tuple(open_image(item) for item in given) for given in nested]
        prompts = [as_chat(self.processor, text) for text in texts] if chat else texts
        return self.from_texts(prompts, pictures, spans, said=texts)

    def from_texts(
        self, texts: Sequence[str], images: Images, spans: Any = None, said: Sequence[str] | None = None
    ) -> Batch:
        """Rows of prompts as they are; `spans` refer to what the user `said`, where a template was put around that."""
        inputs, heard = encode(self.processor, texts, images)
        batch = self._finish(inputs, images, tuple(texts))
        for row, given in enumerate(images):
            if heard and not given and texts[row].strip() not in heard[row].text:
                raise InputError(
                    f"row {row} has no image, and the processor breaks its text into {heard[row].text!r}: "
                    "put it into a batch without images"
                )

        def wording(row: int) -> Wording:
            return self._wording(row, (said or texts)[row], heard, batch)

        return replace(batch, positions=batch.positions.named(find_spans(spans or {}, batch.positions, wording)))

    def from_encoding(self, encoding: Mapping[str, Any], spans: Any = None) -> Batch:
        """A batch from a processor's output. Its rows may be padded on either side; its spans are masks or ints."""
        if not isinstance(encoding, Mapping):
            raise InputError(f"encoding={shown(encoding)}: expected a dict of tensors, as a processor gives it")
        inputs = {name: _as_tensor(name, value) for name, value in encoding.items() if value is not None}
        batch = self._finish(inputs)

        def wording(row: int) -> Wording:
            raise InputError(f"the text of row {row} of an encoding is not known: give its spans as masks or ints")

        return replace(batch, positions=batch.positions.named(find_spans(spans or {}, batch.positions, wording)))

    def length_of(self, text: str, images: Sequence[Image.Image]) -> int:
        """About how many tokens a row of these will have, from its words and from what pictures of these sizes make."""
        words = len(self.tokenizer(text)["input_ids"]) if self.tokenizer is not None else len(text)
        for image in images:
            if image.size not in self._lengths:
                self._lengths[image.size] = sum(self._counts_alone([image]) or [0])
            words += self._lengths[image.size]
        return words

    def _finish(self, inputs: dict[str, Tensor], images: Images | None = None, texts: tuple[str, ...] = ()) -> Batch:
        """The batch of an encoding, checked, without its spans; `images` where it is known what it was made from."""
        check_ids(inputs, self.vocab_size, self.image_token_id)
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids))
        found = self._image_tokens(inputs) & mask.bool()
        if images is not None:
            self._match_images(found, images)
        check_pixels(inputs, found, self.image_token_id)
        self._check_token_types(inputs)
        counts = self._counts(inputs, found, images)
        sheets = self._sheets(inputs, counts, images)
        special = getattr(self.tokenizer, "all_special_ids", [])
        positions = find_positions(ids, mask, found, special, sheets, counts)
        if images is not None:
            positions = replace(
                positions, find_boxes=lambda row: self._boxes(images[row], positions.grids[row], sheets[row])
            )
        if set(inputs) <= _TEXT_INPUTS and not mask.bool().all():
            inputs = {**inputs, "position_ids": _own_positions(mask)}
        names = (
            self.tokenizer.convert_ids_to_tokens if self.tokenizer is not None else lambda row: [str(i) for i in row]
        )
        tokens = [list(names(row.tolist())) for row in ids]
        return Batch(inputs, tokens, positions, texts, tuple(map(tuple, images or ())), self)

    def _check_token_types(self, inputs: Mapping[str, Tensor]) -> None:
        """Refuse images without the token types that the model's forward pass takes.

        Some models raise without them; others run all the same and see the image as if it were text.
        """
        missing = [name for name in self.token_types if name not in inputs]
        if missing and pixels_of(inputs):
            raise InputError(
                f"the encoding has images but no {missing[0]!r}, by which the model knows where they are: pass all that its "
                f"processor gives, with return_{missing[0]}=True"
            )

    def _wording(self, row: int, said: str, heard: Sequence[Heard], batch: Batch) -> Wording:
        """How the row's text became its tokens."""
        ids = batch.inputs["input_ids"][row][batch.positions["all"][row]].tolist()
        offsets = offsets_of(self.processor.tokenizer, heard[row], ids) if heard else None
        if offsets is None:
            raise InputError(
                f"the text of row {row} cannot be followed to its tokens: give its spans as masks or lists of ints"
            )
        return Wording(said, heard[row].text, offsets, self._image_word)

    # Images

    @property
    def _image_word(self) -> str | None:
        """The text of one image token."""
        if self.tokenizer is None or self.image_token_id is None:
            return None
        return self.tokenizer.convert_ids_to_tokens(self.image_token_id)

    def _image_tokens(self, inputs: Mapping[str, Tensor]) -> Tensor:
        ids = inputs["input_ids"]
        found = None
        if self.image_token_id is not None:
            found = ids == self.image_token_id
        elif self.find_images is not None and pixels_of(inputs):
            found = self.find_images(inputs)
        return torch.zeros_like(ids, dtype=torch.bool) if found is None else found

    def _match_images(self, found: Tensor, images: Images) -> None:
        """Refuse a processor that writes no image token of this model for an image."""
        for row, given in enumerate(images):
            if given and self.image_token_id is not None and not found[row].any():
                own = getattr(self.processor, "image_token", None)
                raise InputError(
                    f"the processor writes {own!r} for an image, which makes no image token of this model "
                    f"(id {self.image_token_id}): load the model with the processor that belongs to it"
                )

    def _counts(self, inputs: Mapping[str, Tensor], found: Tensor, images: Images | None) -> list[list[int] | None]:
        """How many image tokens each image of each row has, None for a row where that cannot be said."""
        totals = found.sum(dim=1).tolist()
        if images is not None and all(len(given) < 2 for given in images):
            return [[total] * len(given) for total, given in zip(totals, images, strict=True)]
        own = own_counts(self.processor, inputs, self._image_word)
        if images is None:
            return images_of(inputs, found, own)
        by_rule = iter(own if own is not None and len(own) == sum(map(len, images)) else ())
        counts: list[list[int] | None] = []
        for total, given in zip(totals, images, strict=True):
            ruled = [next(by_rule, 0) for _ in given]
            counts.append(ruled if sum(ruled) == total else self._counts_alone(given))
        return counts

    def _counts_alone(self, images: Sequence[Image.Image]) -> list[int] | None:
        """The image tokens of each image, from a row of as many images, all of which are this one."""
        if self.image_token_id is None:
            return None
        by_size: dict[tuple[int, int], int] = {}
        for image in images:
            if image.size not in by_size:
                same = [image] * len(images)
                inputs, _ = encode(self.processor, [" ".join([PLACEHOLDER] * len(same))], [same])
                by_size[image.size] = int((inputs["input_ids"] == self.image_token_id).sum()) // len(same)
        return [by_size[image.size] for image in images]

    def _sheets(
        self, inputs: Mapping[str, Tensor], counts: Sequence[Sequence[int] | None], images: Images | None
    ) -> list[list[Sheet | None]]:
        """How the tower sees each image of each row; one unknown where it is not even clear how many images there are."""
        held = [1 if mine is None else len(mine) for mine in counts] if images is None else [len(row) for row in images]
        known = images is not None or None not in counts
        sheets = iter(find_sheets(inputs, sum(held), self.patch_size) if known else [None] * sum(held))
        return [[next(sheets) for _ in range(number)] for number in held]

    def _boxes(self, images: Sequence[Image.Image], grids: Sequence[Any], sheets: Sequence[Any]) -> list[Tensor | None]:
        """The boxes of each image's tokens, from what the processor does to a picture of its size."""
        boxes: list[Tensor | None] = []
        for image, grid, sheet in zip(images, grids, sheets, strict=True):
            window = self._window(image.size) if grid is not None else None
            boxes.append(None if window is None else boxes_of(grid, sheet, window))
        return boxes

    def _window(self, size: tuple[int, int]) -> Window | None:
        """Measured once for each size of picture."""
        if size not in self._windows:
            self._windows[size] = measure_window(
                lambda image: encode(self.processor, [PLACEHOLDER], [[image]])[0], size
            )
        return self._windows[size]


def _own_positions(mask: Tensor) -> Tensor:
    """Each row's tokens counted from its first real one: Int `[batch, seq]`, for rows padded on the left.

    nnsight adds these to a padded batch of text; said here, the inputs of a batch are all that the model gets.
    """
    counted = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    on_the_left = (mask.long().diff(dim=1) >= 0).all(dim=1, keepdim=True)
    return torch.where(on_the_left, counted, torch.arange(mask.shape[1]).expand_as(counted))


def _as_rows(name: str, given: Any, expected: str) -> list[Any]:
    """What is given a row, as a list: one string is none, nor is one picture."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        kind = type(given).__name__
        raise InputError(f"{name}={shown(given)} is one {kind}: expected a list of {expected}, one entry a row")
    return list(given)


def _as_tensor(name: str, value: Any) -> Tensor:
    """One input of an encoding, on the CPU, where batches are put together."""
    try:
        return value.cpu() if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except (TypeError, ValueError):  # rows of different length, or what is no number
        raise InputError(
            f"encoding[{name!r}] is a {type(value).__name__} that makes no tensor: expected what a processor gives with "
            "return_tensors='pt', or leave it out"
        ) from None


def _as_list(item: Any) -> list[Any]:
    if item is None:
        return []
    return list(item) if isinstance(item, list | tuple) else [item]


def _match_placeholders(row: int, text: str, images: int) -> None:
    placeholders = text.count(PLACEHOLDER)
    if images and not placeholders:
        raise InputError(
            f"text {text!r} of row {row} has no {PLACEHOLDER}, but an image is given: put {PLACEHOLDER} in the text"
        )
    if placeholders != images:
        raise InputError(
            f"text {text!r} of row {row} has {placeholders} {PLACEHOLDER}, but {images} images are given: expected one each"
        )


def open_image(image: Any) -> Image.Image:
    """A picture in hand, or the file at a path, upright as its camera held it, as RGB.

    Raises `InputError` where there is none.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if not isinstance(image, str | os.PathLike):
        raise InputError(f"{shown(image)} is no image: expected a PIL image or the path of a file")
    if not Path(image).is_file():
        raise InputError(f"{str(image)!r} is no file: expected the path of an image")
    try:
        with Image.open(image) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(
            f"{str(image)!r} is no image that Pillow can read: expected a PNG, JPEG or the like"
        ) from error
