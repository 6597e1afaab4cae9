"""The toy's images: scenes of one to three coloured handwritten digits on a 3x3 grid.

A scene has 48x48 RGB pixels: nine cells of 16x16 pixels, and for the image tower 6x6 patches of 8x8 pixels, four in each
cell. The glyphs are the 1,797 handwritten digits of scikit-learn's `load_digits`, enlarged to a cell and coloured, on a
noisy dark background. Within a scene no digit occurs twice, so "the 3" is one object; colours may repeat.

Two things are held out from training. A fifth of the *glyphs* and a fifth of the *combinations* of colour, digit and
place belong to the test split only. Every object of a test scene has a glyph and a combination that training never used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
from PIL import Image

from interp.arguments import checked_choice, checked_int, checked_seed
from interp.displays import Display
from interp.errors import InputError
from interp.toy.language import COLOURS, IMAGE_TOKEN, KINDS, PLACES, Question, SceneObject, ask, write_caption

GRID, CELL, PATCH = 3, 16, 8
SIZE = GRID * CELL
PATCHES = SIZE // PATCH
SPLITS = ("train", "test")
_HELD_OUT = 0.2
_COUNTS = {1: 0.25, 2: 0.5, 3: 0.25}
TINTS = {
    "red": (235, 50, 50),
    "green": (50, 205, 60),
    "blue": (70, 90, 250),
    "yellow": (235, 220, 50),
    "magenta": (225, 55, 220),
    "cyan": (50, 215, 225),
}


@lru_cache(maxsize=1)
def glyph_bank() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All glyphs as ink in [0, 1] `[glyph, 16, 16]`, their digits `[glyph]`, and which are held out `[glyph]`."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    ink = np.stack(
        [
            np.asarray(Image.fromarray((image * 15.9).astype(np.uint8)).resize((CELL, CELL), Image.Resampling.BICUBIC))
            for image in raw.images
        ]
    )
    held_out = np.random.default_rng(1797).random(len(ink)) < _HELD_OUT
    return ink.astype(np.float32) / 255.0, raw.target.astype(int), held_out


@lru_cache(maxsize=1)
def held_out_combinations() -> np.ndarray:
    """Which combinations belong to the test split: Bool `[colour, digit, place]`, a fixed random fifth."""
    shape = (len(COLOURS), 10, len(PLACES))
    order = np.random.default_rng(540).permutation(int(np.prod(shape)))
    held_out = np.zeros(len(order), dtype=bool)
    held_out[order[: int(_HELD_OUT * len(order))]] = True
    return held_out.reshape(shape)


@lru_cache(maxsize=len(SPLITS))
def combinations(split: str) -> list[tuple[int, int, int]]:
    """The (colour, digit, place) indices that objects of this split may have."""
    held_out = held_out_combinations()
    rows = np.argwhere(held_out if split == "test" else ~held_out).tolist()
    return [(colour, digit, place) for colour, digit, place in rows]


@lru_cache(maxsize=len(SPLITS))
def glyphs_of(split: str) -> tuple[np.ndarray, ...]:
    """The glyph numbers of each digit in this split."""
    _, digits, held_out = glyph_bank()
    in_split = held_out if split == "test" else ~held_out
    return tuple(np.flatnonzero((digits == digit) & in_split) for digit in range(10))


def draw_objects(rng: np.random.Generator, split: str, count: int, repeat_digits: bool = False) -> list[SceneObject]:
    """Draw objects of this split: in reading order, in different places and, unless `repeat_digits`, with different digits.

    Two objects with different digits share a colour half of the time, so that "are both the same colour ?" cannot be guessed.
    """
    pool = combinations(split)
    objects: list[SceneObject] = []
    digits: set[int] = set()
    places: set[int] = set()
    paired = count == 2 and not repeat_digits
    same_colour = paired and rng.random() < 0.5
    while len(objects) < count:
        colour, digit, place = pool[rng.integers(len(pool))]
        if place in places or (digit in digits and not repeat_digits):
            continue
        if paired and objects and (COLOURS[colour] == objects[0].colour) != same_colour:
            continue
        places.add(place)
        digits.add(digit)
        objects.append(SceneObject(place, digit, COLOURS[colour]))
    return sorted(objects)


def draw_glyphs(rng: np.random.Generator, split: str, objects: Sequence[SceneObject]) -> tuple[int, ...]:
    """Draw a glyph number of this split for each object."""
    bank = glyphs_of(split)
    return tuple(int(bank[item.digit][rng.integers(len(bank[item.digit]))]) for item in objects)


def render(objects: Sequence[SceneObject], ink: np.ndarray, noise: int) -> np.ndarray:
    """The picture, UInt8 `[48, 48, 3]`: `ink` `[object, 16, 16]` in the objects' colours, on dark noise of seed `noise`."""
    rng = np.random.default_rng(noise)
    pixels = rng.normal(28.0, 9.0, size=(SIZE, SIZE, 3)).astype(np.float32)
    for item, glyph in zip(objects, ink, strict=True):
        rows, columns = _cell(item)
        alpha = glyph[..., None]
        tint = np.asarray(TINTS[item.colour], dtype=np.float32) * rng.uniform(0.85, 1.05)
        pixels[rows, columns] = pixels[rows, columns] * (1 - alpha) + tint * alpha
    return pixels.clip(0, 255).astype(np.uint8)


def _cell(item: SceneObject) -> tuple[slice, slice]:
    row, column = divmod(item.place_index, GRID)
    return slice(row * CELL, (row + 1) * CELL), slice(column * CELL, (column + 1) * CELL)


@dataclass(frozen=True)
class Scene(Display):
    """One scene: what it shows (`objects`, `glyphs`, `noise`), and its picture, caption, labels and questions."""

    id: str
    objects: tuple[SceneObject, ...]
    glyphs: tuple[int, ...]
    noise: int

    @cached_property
    def image(self) -> Image.Image:
        """The picture, 48x48 RGB."""
        return Image.fromarray(render(self.objects, glyph_bank()[0][list(self.glyphs)], self.noise))

    @property
    def caption(self) -> str:
        return write_caption(self.objects)

    @cached_property
    def patch_labels(self) -> np.ndarray:
        """Int `[6, 6]`: the index in `objects` of what each patch shows, -1 for the background."""
        labels = np.full((PATCHES, PATCHES), -1)
        for index, item in enumerate(self.objects):
            rows, columns = _cell(item)
            labels[rows.start // PATCH : rows.stop // PATCH, columns.start // PATCH : columns.stop // PATCH] = index
        return labels

    @cached_property
    def masks(self) -> np.ndarray:
        """Bool `[object, 48, 48]`: the pixels that are more ink than background."""
        ink, _, _ = glyph_bank()
        masks = np.zeros((len(self.objects), SIZE, SIZE), dtype=bool)
        for mask, item, glyph in zip(masks, self.objects, self.glyphs, strict=True):
            mask[_cell(item)] = ink[glyph] > 0.5
        return masks

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """One question of each kind that makes sense for this scene; always the same questions."""
        rng = np.random.default_rng([self.noise, 1])
        questions = (ask(kind, self.objects, rng, self.caption) for kind in KINDS)
        return tuple(question for question in questions if question is not None)


@dataclass(frozen=True)
class SceneDataset(Display):
    """A sequence of scenes, as images or (after `captions()`) as text. An index gives a `Scene`, a slice a `SceneDataset`.

    `pairs()` gives the rows as (image, text): a picture with the image placeholder alone, or None with the caption. `ids`
    names the rows.
    """

    scenes: tuple[Scene, ...]
    modality: str = "image"

    def captions(self) -> SceneDataset:
        """The same rows as text: the caption of each scene, without its picture."""
        return replace(self, modality="text")

    @property
    def ids(self) -> list[str]:
        return [scene.id for scene in self.scenes]

    @property
    def labels(self) -> dict[str, list[str]]:
        """For each scene the number of objects, and the digit, colour and place of its first object in reading order."""
        return {
            "count": [str(len(scene.objects)) for scene in self.scenes],
            "digit": [str(scene.objects[0].digit) for scene in self.scenes],
            "colour": [scene.objects[0].colour for scene in self.scenes],
            "place": [scene.objects[0].place for scene in self.scenes],
        }

    def pairs(self) -> list[tuple[Image.Image | None, str]]:
        if self.modality == "text":
            return [(None, scene.caption) for scene in self.scenes]
        return [(scene.image, IMAGE_TOKEN) for scene in self.scenes]

    def __len__(self) -> int:
        return len(self.scenes)

    def __iter__(self) -> Iterator[Scene]:
        return iter(self.scenes)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return replace(self, scenes=self.scenes[index])
        return self.scenes[index]


def scenes(n: int, seed: int, split: str = "test", distinct: bool = False, objects: int | None = None) -> SceneDataset:
    """Draw `n` scenes with one, two or three objects each (shares 1/4, 1/2, 1/4), or with `objects` objects each.

    >>> scenes(2, seed=0)[0].caption.startswith("a ")
    True

    With `distinct`, no two scenes have the same caption. Measures of neighbours need this, because equal captions are
    equal points. The same seed gives the same scenes.

    Raises `InputError` for an unknown split, for an `n`, `seed` or `objects` out of range, and if the split does not have `n`
    distinct captions.
    """
    checked_choice(split, "split", SPLITS)
    n = checked_int(n, "n")
    if objects is not None:
        objects = checked_int(objects, "objects", min(_COUNTS), max(_COUNTS), "None or an int")
    rng = np.random.default_rng([checked_seed(seed), SPLITS.index(split)])
    rows: list[Scene] = []
    captions: set[str] = set()
    misses = 0
    while len(rows) < n:
        count = objects or int(rng.choice(list(_COUNTS), p=list(_COUNTS.values())))
        items = tuple(draw_objects(rng, split, count))
        caption = write_caption(items)
        if distinct and caption in captions:
            misses += 1
            if misses > 1000 + 20 * n:
                raise InputError(f"n={n!r}: expected at most {len(captions)}, no more distinct captions were found")
            continue
        captions.add(caption)
        glyphs = draw_glyphs(rng, split, items)
        rows.append(Scene(f"{split}-{seed}-{len(rows)}", items, glyphs, int(rng.integers(2**31))))
    return SceneDataset(tuple(rows))
