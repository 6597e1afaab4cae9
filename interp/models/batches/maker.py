"""Making a batch: texts and images become one encoding of n rows, with the positions computed from it.

In texts ``<image>`` stands for an image on every model and becomes the model's own placeholder. Padding is on the
left, so that the last position of every row is its last real token. Every mistake of a caller that can be seen without
running the model is refused here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from operator import getitem
from typing import Any
from uuid import uuid4

import torch
from PIL import Image
from torch import Tensor

from interp.errors import InputError, RowError, shown
from interp.models.batches.batch import Batch
from interp.models.batches.chats import as_chat
from interp.models.batches.encodings import (
    as_made,
    check_companions,
    check_ids,
    check_pixels,
    images_of,
    inputs_in,
    own_counts,
    pixels_of,
    refuse_unmasked,
)
from interp.models.batches.grids import Sheet, Window, boxes_of, find_sheets, measure_window
from interp.models.batches.images import images_in, is_one_picture, open_image
from interp.models.batches.keys import MAKERS, maker_of
from interp.models.batches.positions import find_positions
from interp.models.batches.prompts import PLACEHOLDER, Images, Refusal, TokenizerInput, encode, offsets_of
from interp.models.batches.sink_mask import SinkMask
from interp.models.batches.spans import Wording, find_spans

_TEXT_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
# Of pictures from which is seen what a processor makes of any.
_SIZES = ((64, 48), (40, 120))
# A number of image tokens for each image of each row, None for a row where they are not known.
Counts = Sequence[Sequence[int] | None]


@dataclass(frozen=True)
class ModelInputs:
    """What a model takes as inputs, as far as making a batch depends on it.

    `image_token_id` is the id of its image token. A model without one has `find_images`, which returns the image positions
    of an encoding, Bool `[batch, seq]`. `find_sinks` returns the attention sinks of a batch, Bool `[batch, seq]` too.
    `vocab_size` bounds the ids, `patch_size` is the image tower's, for a processor that has none. `named` are the arguments of
    the model's forward pass, and `takes_others` is False where it takes no others. `takes_images` is False for a language
    model alone.
    """

    image_token_id: int | None = None
    vocab_size: int | None = None
    find_images: Callable[[Mapping[str, Tensor]], Tensor | None] | None = None
    find_sinks: Callable[[Batch], Tensor] | None = None
    patch_size: int | None = None
    named: Sequence[str] = ()
    takes_others: bool = True
    takes_images: bool = True

    @property
    def token_types(self) -> list[str]:
        """The inputs that tell the model's forward pass where images are."""
        return [name for name in self.named if name.endswith("token_type_ids")]


class BatchMaker:
    """Makes batches for one model, with its processor and its tokenizer."""

    def __init__(self, processor: Any, tokenizer: Any, model_inputs: ModelInputs):
        self.processor, self.tokenizer, self.model_inputs = processor, tokenizer, model_inputs
        self.key = uuid4().hex
        MAKERS[self.key] = self
        sizes = (getattr(part, "patch_size", None) for part in (processor, getattr(processor, "image_processor", None)))
        self._patch_size = next((size for size in sizes if isinstance(size, int)), model_inputs.patch_size)
        # What the processor does to pictures of one size: the part of them it shows, and about how many tokens they have.
        self._windows: dict[tuple[int, int], Window | None] = {}
        self._lengths: dict[tuple[int, int], int] = {}
        self._made: dict[str, list[Tensor]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return maker_of, (self.key, replace(self.model_inputs, find_images=None, find_sinks=None))

    def goes_by(self, key: str) -> None:
        """Take the key of a maker whose model this one's is a copy of, so that its batches find their maker here."""
        self.key = key
        MAKERS.setdefault(key, self)

    def prepare(self, texts: Any, images: Any, chat: bool, spans: Any = None) -> Batch:
        """A batch from texts and images. Raises `InputError` for texts, images and placeholders that do not fit."""
        texts = [] if texts is None else _as_rows("texts", texts, "strings")
        if not texts:
            raise InputError("the batch is empty: expected at least one text")
        wrong = [text for text in texts if not isinstance(text, str)]
        if wrong:
            raise InputError(f"{shown(wrong[0])} among the texts is a {type(wrong[0]).__name__}: expected strings")
        entries = [None] * len(texts) if images is None else _as_rows("images", images, "pictures")
        if len(entries) != len(texts):
            raise InputError(
                f"{len(texts)} texts and {len(entries)} images: expected one entry of images a text, None for none"
            )
        unopened = [images_in(entry) for entry in entries]
        if not self.model_inputs.takes_images:
            _refuse_images(texts, unopened)
        _match_placeholders(texts, unopened)
        pictures = _open_all(unopened)
        prompts = [as_chat(self.processor, text) for text in texts] if chat else texts
        return self.from_texts(prompts, pictures, spans, users_texts=texts)

    def from_texts(
        self,
        texts: Sequence[str],
        images: Images,
        spans: Any = None,
        users_texts: Sequence[str] | None = None,
        side: str = "left",
    ) -> Batch:
        """Rows of prompts as they are, padded on this side. `spans` refer to the `users_texts`, where a chat template was put
        around them."""
        inputs, prompts = self._encode(texts, images, side)
        batch = self._without_spans(inputs, images, tuple(texts))
        faults = {}
        for row, pictures in enumerate(images):
            if prompts and not pictures and self._is_broken(texts[row].strip(), prompts[row].text):
                reason = f"has no image, and the processor breaks its text into {prompts[row].text!r}"
                faults[row] = ("", f" {reason}: give it an image, or leave it out of this batch")
        if faults:
            raise RowError(faults)
        return _with_spans(batch, spans, lambda row: self._wording(row, (users_texts or texts)[row], prompts, batch))

    def from_encoding(self, encoding: Mapping[str, Any], spans: Any = None) -> Batch:
        """A batch from a processor's output. Its rows may be padded on either side; its spans are masks or ints."""
        model = self.model_inputs
        inputs = inputs_in(encoding, None if model.takes_others else model.named)
        refuse_unmasked(inputs, self.tokenizer)
        inputs = inputs if inputs.keys() <= _TEXT_INPUTS else as_made(inputs, self._made_of_pictures())
        if pixels_of(inputs) and not model.takes_images:
            raise InputError(f"the encoding has {pixels_of(inputs)[0]}, but this model takes no image: leave it out")

        def no_wording(row: int) -> Wording:
            raise InputError(f"the text of row {row} of an encoding is not known: give its spans as masks or ints")

        return _with_spans(self._without_spans(inputs), spans, no_wording)

    def length_of(self, text: str, images: Sequence[Image.Image]) -> int:
        """About how many tokens a row of these has: those of its words, and those of pictures of these sizes alone."""
        words = len(self.tokenizer(text)["input_ids"]) if self.tokenizer is not None else len(text)
        for image in images:
            if image.size not in self._lengths:
                try:
                    self._lengths[image.size] = sum(self._counts_by_size([image]) or [0])
                except Refusal:  # what the processor refuses is an error of its row, once that is prepared
                    self._lengths[image.size] = 0
            words += self._lengths[image.size]
        return words

    def _encode(
        self, texts: Sequence[str], images: Images, side: str
    ) -> tuple[dict[str, Tensor], list[TokenizerInput]]:
        """The encoding of all rows. Where the processor refuses them, each is tried alone to find out which it refuses."""
        try:
            return encode(self.processor, texts, images, side)
        except Refusal as error:
            faults = {}
            for row, (text, pictures) in enumerate(zip(texts, images, strict=True)):
                refusal = error if len(texts) == 1 else self._refusal(text, pictures)
                if refusal is not None:
                    faults[row] = ("", f": {refusal}")
            if not faults:
                raise
            raise RowError(faults) from error.__cause__

    def _is_broken(self, text: str, prompt: str) -> bool:
        """Whether a prompt does not have this text whole, or has its first token only behind it."""
        start = getattr(self.tokenizer, "bos_token", None) or ""
        return text not in prompt or prompt.find(start) > prompt.find(text)

    def _refusal(self, text: str, images: Sequence[Image.Image]) -> Refusal | None:
        try:
            encode(self.processor, [text], [images])
        except Refusal as error:
            return error
        return None

    def _without_spans(
        self, inputs: dict[str, Tensor], images: Images | None = None, texts: tuple[str, ...] = ()
    ) -> Batch:
        """The batch of an encoding, checked; `images` where they are known."""
        model = self.model_inputs
        if not model.takes_images:
            # Tokenizers give token types to any model, and a language model that does not name them takes none.
            inputs = {n: tensor for n, tensor in inputs.items() if n in model.token_types or "token_type_ids" not in n}
        check_ids(inputs, model.vocab_size, model.image_token_id)
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask", torch.ones_like(ids))
        image_tokens = self._image_tokens(inputs) & mask.bool()
        if images is not None:
            self._match_images(image_tokens, images)
        check_pixels(inputs, image_tokens, model.image_token_id, model.token_types)
        if images is None and pixels_of(inputs):
            check_companions(inputs, self._made_of_pictures(), image_tokens)
        counts = self._counts(inputs, image_tokens, images)
        sheets = self._sheets(inputs, counts, images)
        special = getattr(self.tokenizer, "all_special_ids", [])
        positions = find_positions(ids, mask, image_tokens, special, sheets, counts)
        if images is not None:
            positions = replace(positions, find_boxes=BoxFinder(self, images, positions.grids, sheets))
        if set(inputs) <= _TEXT_INPUTS and not mask.bool().all():
            inputs = {**inputs, "position_ids": _own_positions(mask)}
        names = (lambda row: list(map(str, row))) if self.tokenizer is None else self.tokenizer.convert_ids_to_tokens
        tokens = [list(names(row.tolist())) for row in ids]
        batch = Batch(inputs, tokens, positions, texts, tuple(map(tuple, images or ())), self)
        if model.find_sinks is None:
            return batch
        sinks = SinkMask(partial(model.find_sinks, batch))
        return replace(batch, positions=replace(positions, sinks=sinks))

    def _wording(self, row: int, text: str, prompts: Sequence[TokenizerInput], batch: Batch) -> Wording:
        """How the user's text of this row became its tokens."""
        ids = batch.inputs["input_ids"][row][batch.positions["all"][row]].tolist()
        offsets = offsets_of(self.tokenizer, prompts[row], ids) if prompts else None
        if offsets is None:
            raise InputError(
                f"the text of row {row} cannot be followed to its tokens: give its spans as masks or lists of ints"
            )
        return Wording(text, prompts[row].text, offsets, self._image_word)

    # Images

    def _made_of_pictures(self) -> dict[str, list[Tensor]]:
        """What the processor makes of a wide and of a tall picture, each in a row of its own, for each input that the model
        names; none without a processor, and none where it does not take a picture and its placeholder alone."""
        # Kept by hand: a trace that names the model is sent with this class, and a cached property cannot be.
        if self._made is None:
            made: list[Mapping[str, Tensor]] = []
            if getattr(self.processor, "image_processor", None) is not None:
                with suppress(Exception):  # each processor says in its own way what else it needs
                    made = [encode(self.processor, [PLACEHOLDER], [[Image.new("RGB", size)]])[0] for size in _SIZES]
            known = set(self.model_inputs.named) - _TEXT_INPUTS
            names = [name for name in made[0] if name in known and name in made[1]] if made else []
            self._made = {name: [inputs[name] for inputs in made] for name in names}
        return self._made

    @property
    def _image_word(self) -> str | None:
        """The text of one image token."""
        token = self.model_inputs.image_token_id
        return None if self.tokenizer is None or token is None else self.tokenizer.convert_ids_to_tokens(token)

    def _image_tokens(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Where the image tokens are, Bool `[batch, seq]`."""
        ids, model = inputs["input_ids"], self.model_inputs
        if model.image_token_id is not None:
            return ids == model.image_token_id
        mask = model.find_images(inputs) if model.find_images is not None and pixels_of(inputs) else None
        return torch.zeros_like(ids, dtype=torch.bool) if mask is None else mask

    def _match_images(self, image_tokens: Tensor, images: Images) -> None:
        """Refuse a processor that writes no image token of this model for an image."""
        token = self.model_inputs.image_token_id
        for mask, pictures in zip(image_tokens, images, strict=True):
            if pictures and token is not None and not mask.any():
                raise InputError(
                    f"the processor writes {getattr(self.processor, 'image_token', None)!r} for an image, which makes no "
                    f"image token of this model (id {token}): load the model with the processor that belongs to it"
                )

    def _counts(self, inputs: Mapping[str, Tensor], image_tokens: Tensor, images: Images | None) -> Counts:
        """The number of tokens of each image of each row."""
        totals = image_tokens.sum(dim=1).tolist()
        if images is not None and all(len(pictures) < 2 for pictures in images):
            return [[total] * len(pictures) for total, pictures in zip(totals, images, strict=True)]
        own = own_counts(self.processor, inputs, self._image_word)
        if images is None:
            return images_of(inputs, image_tokens, own)
        by_rule = iter(own if own is not None and len(own) == sum(map(len, images)) else ())
        counts: list[list[int] | None] = []
        for total, pictures in zip(totals, images, strict=True):
            of_row = [next(by_rule, 0) for _ in pictures]
            counts.append(of_row if sum(of_row) == total else self._counts_by_size(pictures))
        return counts

    def _counts_by_size(self, images: Sequence[Image.Image]) -> list[int] | None:
        """The tokens of each image of a row, counted in a row that repeats this image as often."""
        token, number = self.model_inputs.image_token_id, len(images)
        if token is None:
            return None
        counts: dict[tuple[int, int], int] = {}
        for image in images:
            if image.size not in counts:
                inputs, _ = encode(self.processor, [" ".join([PLACEHOLDER] * number)], [[image] * number])
                counts[image.size] = int((inputs["input_ids"] == token).sum()) // number
        return [counts[image.size] for image in images]

    def _sheets(self, inputs: Mapping[str, Tensor], counts: Counts, images: Images | None) -> list[list[Sheet | None]]:
        """How the tower sees each image of each row; one unknown sheet for a row whose number of images is not known."""
        numbers = [1 if row is None else len(row) for row in (counts if images is None else images)]
        known = images is not None or None not in counts
        sheets = iter(find_sheets(inputs, sum(numbers), self._patch_size) if known else [None] * sum(numbers))
        return [[next(sheets) for _ in range(number)] for number in numbers]

    def boxes(self, images: Sequence[Image.Image], grids: Sequence[Any], sheets: Sequence[Any]) -> list[Tensor | None]:
        """The boxes of the tokens of each image of a row, from what the processor does to a picture of its size."""
        boxes: list[Tensor | None] = []
        for image, grid, sheet in zip(images, grids, sheets, strict=True):
            window = self._window(image.size) if grid is not None else None
            boxes.append(None if window is None else boxes_of(grid, sheet, window))
        return boxes

    def _window(self, size: tuple[int, int]) -> Window | None:
        """The part of a picture of this size that the processor shows, measured once for each size."""
        if size not in self._windows:
            self._windows[size] = measure_window(
                lambda image: encode(self.processor, [PLACEHOLDER], [[image]])[0], size
            )
        return self._windows[size]


@dataclass(frozen=True)
class BoxFinder:
    """Finds the boxes of a row of a batch when they are asked for. Pickled, it is the boxes themselves."""

    maker: BatchMaker
    images: Images
    grids: Sequence[Sequence[Any]]
    sheets: Sequence[Sequence[Any]]

    def __call__(self, row: int) -> list[Tensor | None]:
        return self.maker.boxes(self.images[row], self.grids[row], self.sheets[row])

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (getitem, [self(row) for row in range(len(self.images))])


def _with_spans(batch: Batch, spans: Any, wording: Callable[[int], Wording]) -> Batch:
    return replace(batch, positions=batch.positions.named(find_spans(spans or {}, batch.positions, wording)))


def _own_positions(mask: Tensor) -> Tensor:
    """Each row's tokens counted from its first real one: Int `[batch, seq]`, for rows padded on the left.

    nnsight would add these to a padded batch of text. With them in the batch, the model gets the batch's inputs and no more.
    """
    counts = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    on_the_left = (mask.long().diff(dim=1) >= 0).all(dim=1, keepdim=True)
    return torch.where(on_the_left, counts, torch.arange(mask.shape[1]).expand_as(counts))


def _as_rows(name: str, entries: Any, expected: str) -> list[Any]:
    """Entries, one a row, as a list; one string or one picture is not a list."""
    if isinstance(entries, str) or not isinstance(entries, Iterable) or (name == "images" and is_one_picture(entries)):
        kind = type(entries).__name__
        raise InputError(f"{name}={shown(entries)} is one {kind}: expected a list of {expected}, one entry a row")
    return list(entries)


def _refuse_images(texts: Sequence[str], images: Sequence[Sequence[Any]]) -> None:
    """Refuse images, and places for them in texts, for a language model alone."""
    faults = {}
    for row, (text, own) in enumerate(zip(texts, images, strict=True)):
        if own:
            faults[row] = ("", f" has {len(own)} images, but this model takes no image: pass texts alone")
        elif PLACEHOLDER in text:
            faults[row] = (f"text {text!r} of ", f" has {PLACEHOLDER}, but this model takes no image: leave it out")
    if faults:
        raise RowError(faults)


def _match_placeholders(texts: Sequence[str], images: Sequence[Sequence[Any]]) -> None:
    """Refuse texts whose placeholders are not as many as their images."""
    faults = {}
    for row, (text, own) in enumerate(zip(texts, images, strict=True)):
        if text.count(PLACEHOLDER) != len(own):
            has = f" has {text.count(PLACEHOLDER)} {PLACEHOLDER}, but the row has {len(own)} images"
            faults[row] = (f"text {text!r} of ", f"{has}: put one {PLACEHOLDER} in the text for each image")
    if faults:
        raise RowError(faults)


def _open_all(images: Sequence[Sequence[Any]]) -> list[tuple[Image.Image, ...]]:
    """The pictures of all rows, opened."""
    opened, faults = [], {}
    for row, pictures in enumerate(images):
        try:
            opened.append(tuple(map(open_image, pictures)))
        except InputError as error:
            faults[row] = ("", f": {error}")
    if faults:
        raise RowError(faults)
    return opened
