"""Making a batch: texts and images become one encoding of n rows, with the positions computed from it.

In texts ``<image>`` stands for an image on every model and becomes the model's own placeholder. Padding is on the
left, so that the last position of every row is its last real token. Everything a caller can get wrong is refused here,
before a model is run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from interp.errors import InputError
from interp.models.positions import NAMES, Positions, find_positions

PLACEHOLDER = "<image>"
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

    def row(self, index: int) -> Batch:
        """Row `index` alone, without the padding it had among the others."""
        if not -len(self) <= index < len(self):
            raise InputError(f"row {index!r}: this batch has {len(self)} rows, counted from 0")
        index %= len(self)
        if len(self) == 1:
            return self
        if self.texts:
            return self._maker.from_texts([self.texts[index]], [self.images[index]], self._spans_of(index))
        uneven = [name for name, tensor in self.inputs.items() if tensor.shape[:1] != (len(self),)]
        if uneven:
            raise InputError(
                f"row {index!r}: {', '.join(uneven)} have no row axis, prepare this batch from texts and images"
            )
        keep = self.positions["all"][index]
        inputs = {
            name: tensor[index : index + 1, keep]
            if tensor.shape == self.positions["all"].shape
            else tensor[index : index + 1]
            for name, tensor in self.inputs.items()
        }
        return self._maker.from_encoding(inputs)

    def repeat(self, times: int) -> Batch:
        """A one-row batch as `times` equal rows: patching runs many versions of one prompt in one forward pass."""
        if len(self) != 1:
            raise InputError(f"a batch of {len(self)} rows cannot be repeated: take row(i) first")
        masks = {name: mask.expand(times, -1) for name, mask in self.positions.masks.items()}
        return Batch(
            inputs={name: torch.cat([tensor] * times) for name, tensor in self.inputs.items()},
            tokens=self.tokens * times,
            positions=Positions(masks, list(self.positions.grids) * times),
        )

    def _spans_of(self, index: int) -> dict[str, Tensor]:
        """The named spans of one row, as masks over its real tokens."""
        keep = self.positions["all"][index]
        return {n: m[index : index + 1, keep] for n, m in self.positions.masks.items() if n not in NAMES}


class BatchMaker:
    """Makes batches for one model: what its processor, its tokenizer and its image token need to know, in one place."""

    def __init__(self, processor: Any, tokenizer: Any, image_token_id: int | None):
        self.processor, self.tokenizer, self.image_token_id = processor, tokenizer, image_token_id

    def prepare(self, texts: Any, images: Any, chat: bool, spans: Mapping[str, Any] | None) -> Batch:
        """A batch from texts and images. Raises `InputError` for whatever does not fit together."""
        if isinstance(texts, str):
            raise InputError(f"texts={texts!r} is one string: expected a list of strings, one a row")
        texts = list(texts or ())
        if not texts:
            raise InputError("the batch is empty: expected at least one text")
        wrong = next((text for text in texts if not isinstance(text, str)), None)
        if wrong is not None:
            raise InputError(f"{wrong!r} among the texts is a {type(wrong).__name__}: expected strings")
        nested = [[] for _ in texts] if images is None else [_as_list(item) for item in images]
        if len(nested) != len(texts):
            raise InputError(
                f"{len(texts)} texts and {len(nested)} images: expected one entry of images a text, None for none"
            )
        for row, (text, given) in enumerate(zip(texts, nested, strict=True)):
            _match_placeholders(row, text, len(given))
        pictures = [tuple(open_image(item) for item in given) for given in nested]
        if chat:
            texts = [self._as_chat(text) for text in texts]
        return self.from_texts(texts, pictures, spans or {})

    def from_texts(
        self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]], spans: Mapping[str, Any]
    ) -> Batch:
        if self.processor is None:
            raise InputError("this model was loaded without a processor: pass encoding=, or load it with processor=")
        own = getattr(self.processor, "image_token", PLACEHOLDER) or PLACEHOLDER
        written = [text.replace(PLACEHOLDER, own) for text in texts]
        flat = [image for row in images for image in row]
        encoding = self.processor(
            text=written, images=flat or None, return_tensors="pt", padding=True, padding_side="left"
        )
        inputs = {name: value for name, value in encoding.items() if isinstance(value, Tensor)}
        located = self._locate(spans, written, inputs)
        return self._finish(inputs, self._pixel_sizes(inputs, images), located, tuple(texts), tuple(map(tuple, images)))

    def from_encoding(self, encoding: Mapping[str, Any]) -> Batch:
        """A batch from a processor's output. Its rows may be padded on either side."""
        inputs = {name: value for name, value in encoding.items() if isinstance(value, Tensor)}
        if "input_ids" not in inputs or inputs["input_ids"].ndim != 2 or not inputs["input_ids"].numel():
            seen = {name: tuple(value.shape) for name, value in inputs.items()}
            raise InputError(
                f"encoding={seen!r}: expected tensors with input_ids of shape (batch, seq), neither of them 0"
            )
        rows = len(inputs["input_ids"])
        pixels = inputs.get("pixel_values")
        size = tuple(pixels.shape[-2:]) if pixels is not None and pixels.ndim == 4 and len(pixels) == rows else None
        sizes = [[size] if size else [] for _ in range(rows)]
        return self._finish(inputs, sizes, {}, (), ())

    def _finish(self, inputs, sizes, spans, texts, images) -> Batch:
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids))
        special = getattr(self.tokenizer, "all_special_ids", [])
        positions = find_positions(ids, mask, self.image_token_id, special, sizes, spans)
        empty = (~positions["all"].any(dim=1)).nonzero().flatten().tolist()
        if empty:
            raise InputError(f"row {empty[0]} has no token: expected text or an image in every row")
        if set(inputs) <= _TEXT_INPUTS and not mask.bool().all():
            inputs = {**inputs, "position_ids": _own_positions(mask)}
        names = (
            self.tokenizer.convert_ids_to_tokens if self.tokenizer is not None else lambda row: [str(i) for i in row]
        )
        tokens = [list(names(row.tolist())) for row in ids]
        return Batch(inputs, tokens, positions, texts, images, self)

    def _pixel_sizes(self, inputs: Mapping[str, Tensor], images: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """(height, width) in pixels of each image as the tower gets it, None where the encoding does not say."""
        pixels = inputs.get("pixel_values")
        count = sum(len(row) for row in images)
        known = pixels is not None and pixels.ndim == 4 and len(pixels) == count
        size = tuple(pixels.shape[-2:]) if known and pixels is not None else None
        return [[size] * len(row) for row in images]

    def _as_chat(self, text: str) -> str:
        if not getattr(self.processor, "chat_template", None):
            raise InputError(
                "chat=True: this model's processor has no chat template, write the prompt yourself with chat=False"
            )
        content: list[dict[str, str]] = []
        for index, piece in enumerate(text.split(PLACEHOLDER)):
            content += [{"type": "image"}] if index else []
            content += [{"type": "text", "text": piece.strip()}] if piece.strip() else []
        messages = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def _locate(
        self, spans: Mapping[str, Any], texts: Sequence[str], inputs: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Masks of the named spans: each a string that stands once in the text, one for all rows or one a row."""
        located: dict[str, Tensor] = {}
        for name, wanted in spans.items():
            if name in NAMES:
                raise InputError(f"spans={name!r} is the name of a kind of position: choose another name")
            if isinstance(wanted, Tensor):
                located[name] = wanted
                continue
            each = [wanted] * len(texts) if isinstance(wanted, str) else list(wanted)
            if len(each) != len(texts):
                raise InputError(
                    f"span {name!r}: {len(each)} strings for {len(texts)} rows, expected one a row or one for all"
                )
            rows = [
                self._span_of_row(name, s, t, inputs, row) for row, (s, t) in enumerate(zip(each, texts, strict=True))
            ]
            located[name] = torch.stack(rows)
        return located

    def _span_of_row(self, name: str, span: str, text: str, inputs: Mapping[str, Tensor], row: int) -> Tensor:
        """The text is tokenized once more with offsets; its words stand in the encoding in the same order.

        The processor may have put many image tokens in the place of one, so they are left out on both sides.
        """
        if text.count(span) != 1 or not span:
            raise InputError(
                f"span {name!r}: {span!r} stands {text.count(span)} times in row {row}, {text!r}; expected once"
            )
        plain = self.tokenizer(text, return_offsets_mapping=True)
        ids = inputs["input_ids"][row]
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))[row].bool()
        places = (mask & (ids != self.image_token_id)).nonzero().flatten()
        kept = [index for index, token in enumerate(plain["input_ids"]) if token != self.image_token_id]
        if [plain["input_ids"][index] for index in kept] != ids[places].tolist():
            raise InputError(
                f"span {name!r} cannot be found: the processor rewrites the text of row {row}; pass a mask instead"
            )
        start = text.index(span)
        found = torch.zeros_like(mask)
        for index, place in zip(kept, places, strict=True):
            begin, end = plain["offset_mapping"][index]
            found[place] = begin < start + len(span) and end > start and end > begin
        return found


def fingerprint(*batches: Batch) -> str:
    """A hash of what the model gets from these batches, so that equal data has an equal name."""
    digest = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch.inputs):
            tensor = batch.inputs[name]
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _own_positions(mask: Tensor) -> Tensor:
    """Each row's tokens counted from its first real one: Int `[batch, seq]`, for rows padded on the left.

    nnsight adds these to a padded batch of text; said here, the inputs of a batch are all that the model gets.
    """
    counted = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    on_the_left = (mask.long().diff(dim=1) >= 0).all(dim=1, keepdim=True)
    return torch.where(on_the_left, counted, torch.arange(mask.shape[1]).expand_as(counted))


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
    """A picture in hand, or the file at a path, as RGB. Raises `InputError` where there is none."""
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if not isinstance(image, str | os.PathLike):
        raise InputError(f"{image!r} is no image: expected a PIL image or the path of a file")
    if not Path(image).is_file():
        raise InputError(f"{str(image)!r} is no file: expected the path of an image")
    try:
        with Image.open(image) as opened:
            return opened.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(
            f"{str(image)!r} is no image that Pillow can read: expected a PNG, JPEG or the like"
        ) from error
