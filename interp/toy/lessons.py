"""What the toy is trained on: batches of text, of labelled patches, and of images with captions or questions.

A lesson is a batch of sequences with a target and a weight at each position, drawn from the train split. Six questions
follow each caption (or image), so that one sequence trains many look-ups. Targets are separate from inputs: after the last
word of a caption and after an answer the target is ``<eos>``, although the sequence continues.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from einops import rearrange, repeat
from scipy.ndimage import affine_transform
from torch import Tensor

from interp.toy.language import (
    COLOURS,
    IDS,
    IMAGE_TOKEN,
    KINDS,
    LOOK_UPS,
    PERCEPTION,
    SPECIAL,
    SceneObject,
    ask,
    write_caption,
)
from interp.toy.model import PIXEL_MEAN, PIXEL_STD
from interp.toy.scenes import CELL, GRID, PATCH, PATCHES, PLACES, draw_glyphs, draw_objects, glyph_bank, render

BOS, EOS, PAD = (IDS[SPECIAL[name]] for name in ("bos_token", "eos_token", "pad_token"))
QUESTIONS = 6
CAPTION_WEIGHT = 0.2
RESTATED_WEIGHT = 0.5
VARIANTS = 24
_OBJECT_COUNTS = (1, 2, 2, 3)


@dataclass(frozen=True)
class Lesson:
    """A batch: `input_ids`, `targets`, `weights` and `kinds`, each `[row, token]`, and the pixels of its images, if any.

    `kinds` holds the number of the question's kind at the position that predicts an answer, and -1 elsewhere.
    """

    input_ids: Tensor
    targets: Tensor
    weights: Tensor
    kinds: Tensor
    pixel_values: Tensor | None = None


class _Row:
    """One sequence while it is written."""

    def __init__(self) -> None:
        self.ids: list[int] = [BOS]
        self.targets: list[int] = [PAD]
        self.weights: list[float] = [0.0]
        self.kinds: list[int] = [-1]

    def read(self, words: str) -> None:
        """Append words as context, without a target."""
        ids = [IDS[word] for word in words.split()]
        self.ids += ids
        self.targets += [PAD] * len(ids)
        self.weights += [0.0] * len(ids)
        self.kinds += [-1] * len(ids)

    def write(self, words: str, weight: float, kind: int = -1) -> None:
        """Append words that the model must predict from the tokens before them, then an end as the last target."""
        self.kinds[-1] = kind
        for word in words.split():
            self.targets[-1], self.weights[-1] = IDS[word], weight
            self.read(word)
        self.targets[-1], self.weights[-1] = EOS, weight


def _collate(rows: list[_Row], pixel_values: Tensor | None = None) -> Lesson:
    """Pad on the right. Under a causal mask no real token attends to padding, so no mask is needed."""
    length = max(len(row.ids) for row in rows)

    def pad(name: str, fill: float, dtype: torch.dtype) -> Tensor:
        return torch.tensor([getattr(row, name) + [fill] * (length - len(row.ids)) for row in rows], dtype=dtype)

    return Lesson(
        input_ids=pad("ids", PAD, torch.long),
        targets=pad("targets", PAD, torch.long),
        weights=pad("weights", 0.0, torch.float32),
        kinds=pad("kinds", -1, torch.long),
        pixel_values=pixel_values,
    )


def _add_questions(row: _Row, objects: list[SceneObject], rng: np.random.Generator, kinds: tuple[str, ...]) -> None:
    count = 0
    while count < QUESTIONS:
        kind = kinds[rng.integers(len(kinds))]
        question = ask(kind, objects, rng, caption="")
        if question is not None:
            row.read(question.text)
            row.write(question.answer, weight=1.0, kind=list(KINDS).index(kind))
            count += 1


def text_lesson(rng: np.random.Generator, size: int, split: str = "train") -> Lesson:
    """Captions with objects in random order, a third of them repeated in reading order, then six questions of both groups."""
    rows = []
    for _ in range(size):
        objects = draw_objects(rng, split, int(rng.choice(_OBJECT_COUNTS)))
        row = _Row()
        row.write(write_caption([objects[i] for i in rng.permutation(len(objects))]), CAPTION_WEIGHT)
        if rng.random() < 1 / 3:
            # The first word is context: the target of a caption's full stop is the end, not another caption.
            opening, _, rest = write_caption(objects).partition(" ")
            row.read(opening)
            row.write(rest, RESTATED_WEIGHT)
        _add_questions(row, objects, rng, (*KINDS, *LOOK_UPS))
        rows.append(row)
    return _collate(rows)


def to_pixel_values(images: np.ndarray) -> Tensor:
    """UInt8 images `[row, 48, 48, 3]` as the processor passes them to the tower: Float `[row, 3, 48, 48]`."""
    mean, std = np.asarray(PIXEL_MEAN, np.float32), np.asarray(PIXEL_STD, np.float32)
    scaled = (images.astype(np.float32) / 255.0 - mean) / std
    return torch.from_numpy(np.ascontiguousarray(rearrange(scaled, "row y x colour -> row colour y x")))


@lru_cache(maxsize=1)
def glyph_variants() -> np.ndarray:
    """Each glyph slightly rotated, scaled and shifted: `[glyph, variant, 16, 16]`. Variant 0 is unchanged.

    Only the tower is trained on variants: a thousand handwritten digits are too few to generalise to new ones.
    """
    ink, _, _ = glyph_bank()
    rng = np.random.default_rng(0)
    middle = (CELL - 1) / 2
    variants = np.repeat(ink[:, None], VARIANTS, axis=1)
    for glyph in range(len(ink)):
        for variant in range(1, VARIANTS):
            angle, shift = np.deg2rad(rng.uniform(-20, 20)), rng.uniform(-2, 2, size=2)
            rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            matrix = rotation * rng.uniform(0.9, 1.15, 2)
            offset = middle - matrix @ (middle + shift)
            variants[glyph, variant] = affine_transform(ink[glyph], matrix, offset, order=1)
    return variants.clip(0, 1)


def patch_lesson(rng: np.random.Generator, size: int, split: str = "train") -> tuple[Tensor, Tensor]:
    """Pixels of crowded scenes (half of them with 9 objects, others with 2 or 5; digits repeat), and labels of all patches.

    The labels are Int `[row, 36, 3]`: digit (10 = background), colour (6 = background) and place.
    """
    images, labels = [], []
    for _ in range(size):
        objects = draw_objects(rng, split, int(rng.choice((2, 5, 9, 9))), repeat_digits=True)
        variants = rng.integers(VARIANTS, size=len(objects)) if split == "train" else 0
        ink = glyph_variants()[list(draw_glyphs(rng, split, objects)), variants]
        images.append(render(objects, ink, int(rng.integers(2**31))))
        grid = np.empty((GRID, GRID, 3), dtype=int)
        grid[..., 0], grid[..., 1] = 10, len(COLOURS)
        grid[..., 2] = np.arange(len(PLACES)).reshape(GRID, GRID)
        for item in objects:
            grid[divmod(item.place_index, GRID)][:2] = item.digit, COLOURS.index(item.colour)
        labels.append(repeat(grid, "y x label -> (y down x across) label", down=CELL // PATCH, across=CELL // PATCH))
    return to_pixel_values(np.stack(images)), torch.from_numpy(np.stack(labels))


def image_lesson(rng: np.random.Generator, size: int, task: str, split: str = "train") -> Lesson:
    """Images of scenes, each followed by its caption (`task="caption"`) or by six perception questions."""
    rows, images = [], []
    for _ in range(size):
        objects = draw_objects(rng, split, int(rng.choice(_OBJECT_COUNTS)))
        ink = glyph_bank()[0][list(draw_glyphs(rng, split, objects))]
        images.append(render(objects, ink, int(rng.integers(2**31))))
        row = _Row()
        row.read(" ".join([IMAGE_TOKEN] * PATCHES**2))
        if task == "caption":
            row.write(write_caption(objects), weight=1.0)
        else:
            _add_questions(row, objects, rng, tuple(PERCEPTION))
        rows.append(row)
    return _collate(rows, to_pixel_values(np.stack(images)))
