"""Pictures of emoji: one or two things on a coloured ground, 64 x 64 pixels, with exact labels.

For the image tower a picture has 4 x 4 patches of 16 pixels. A large thing stands in the middle. A small one fills one
quarter, four patches: the place of a thing is its quarter, and two things stand in different ones. Scale, angle, shade and
exact place vary, and so do the shade of the ground and its noise.

For each emoji two of the eight grounds are held out: the first thing of a test picture stands on a ground on which no picture
has it that connector or language model were trained with. The image tower, like any that a VLM is built on, has seen all
combinations (the split "tower"). The drawing itself is one of those of training; with `style`, it is another artist's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from interp.arguments import checked_choice, checked_int, checked_seed
from interp.displays import Display
from interp.organisms.emoji.atlas import drawing_of
from interp.organisms.emoji.catalogue import Emoji, catalogue

SIZE, PATCH = 64, 16
PATCHES = SIZE // PATCH
PLACES = ("top left", "top right", "bottom left", "bottom right", "middle")
GROUNDS = {
    "white": (240, 240, 240),
    "black": (20, 20, 20),
    "gray": (128, 128, 128),
    "red": (205, 45, 45),
    "yellow": (235, 210, 60),
    "green": (50, 160, 70),
    "blue": (50, 80, 205),
    "pink": (240, 150, 190),
}
SPLITS = ("train", "test", "tower")
_HELD_OUT = 2  # grounds of each emoji
_LARGE, _SMALL = (38, 60), (24, 30)  # pixels, from and to
_TWO, _ONE_SMALL = 0.4, 0.3  # the share of pictures with two things; of those with one, the share with a small thing
_ANGLE = 12.0  # degrees to both sides; clocks and arrows would become others
_COVERED = 0.15  # the share of a patch that makes it the thing's


@dataclass(frozen=True)
class Thing(Display):
    """One thing of a picture: which emoji, where, how large in pixels, turned by how many degrees, and on which pixels."""

    emoji: Emoji
    place: str
    size: int
    angle: float
    mask: Bool[Tensor, "64 64"]


@dataclass(frozen=True)
class EmojiPicture(Display):
    """A picture, its things in reading order and the colour of its ground."""

    image: Image.Image
    things: tuple[Thing, ...]
    ground: str

    @cached_property
    def patches(self) -> Int[Tensor, 16]:
        """The number of the thing in each patch, in reading order; -1 for the ground."""
        masks = torch.stack([thing.mask for thing in self.things]).float()
        share = torch.nn.functional.avg_pool2d(masks[None], PATCH)[0].flatten(1)
        most, which = share.max(dim=0)
        return torch.where(most >= _COVERED, which, torch.full_like(which, -1))


def pictures(
    n: int, seed: int, split: str = "test", things: int | None = None, style: str | Path | None = None
) -> list[EmojiPicture]:
    """Draw `n` pictures with `things` things each, 1 or 2; with None, two in five pictures have two.

    >>> picture = pictures(1, seed=0)[0]
    >>> picture.image.size, picture.ground, [(thing.emoji.name, thing.place) for thing in picture.things]
    ((64, 64), 'gray', [('Japanese "congratulations" button', 'top right')])

    `split` is "train", "test" or "tower". Each emoji comes equally often, to within one. `style` is the file of another atlas,
    see `interp.organisms.emoji.atlas`.

    Raises `InputError` for a number, a seed or a split that cannot be used, and an atlas that cannot be read.
    """
    n, seed = checked_int(n, "n", least=1), checked_seed(seed)
    checked_choice(split, "split", SPLITS)
    if things is not None:
        things = checked_int(things, "things", least=1, most=2)
    stream = [seed, SPLITS.index(split)]
    numbers = _numbers(np.random.default_rng([*stream, 0]))
    return [_drawn(np.random.default_rng([*stream, 1, place]), numbers, split, things, style) for place in range(n)]


def pictures_of(
    emoji: Sequence[Emoji], seed: int, split: str = "test", style: str | Path | None = None
) -> list[EmojiPicture]:
    """Draw a picture of each of these emoji, with that one thing.

    >>> [picture.things[0].emoji.name for picture in pictures_of(catalogue()[:2], seed=0)]
    ['grinning face', 'grinning face with big eyes']

    Raises what `pictures` raises.
    """
    stream = [checked_seed(seed), SPLITS.index(checked_choice(split, "split", SPLITS)), 2]
    numbers = [each.number for each in emoji]
    return [
        _drawn(np.random.default_rng([*stream, place]), iter([number]), split, 1, style)
        for place, number in enumerate(numbers)
    ]


def _numbers(rng: np.random.Generator) -> Iterator[int]:
    """Numbers of emoji without end, each once before any comes again."""
    while True:
        yield from rng.permutation(len(catalogue())).tolist()


@lru_cache(maxsize=1)
def held_out_grounds() -> Bool[Tensor, "emoji ground"]:
    """Which grounds belong to the test split alone, for each emoji."""
    rng = np.random.default_rng(1372)
    order = rng.permuted(np.tile(np.arange(len(GROUNDS)), (len(catalogue()), 1)), axis=1)
    return torch.from_numpy(order < _HELD_OUT)


def _drawn(
    rng: np.random.Generator, numbers: Iterator[int], split: str, things: int | None, style: str | Path | None
) -> EmojiPicture:
    count = things or 1 + int(rng.random() < _TWO)
    chosen = [next(numbers)]
    if count == 2:
        chosen.append(next(number for number in numbers if number != chosen[0]))
    held_out = held_out_grounds()[chosen]
    allowed = {"test": held_out[0], "train": ~held_out.any(dim=0), "tower": torch.ones(len(GROUNDS), dtype=torch.bool)}
    ground = list(GROUNDS)[rng.choice(allowed[split].nonzero().flatten().numpy())]
    small = count == 2 or rng.random() < _ONE_SMALL
    quarters = sorted(rng.choice(4, size=count, replace=False).tolist()) if small else [4]
    canvas = _ground(rng, ground)
    placed = []
    for number, quarter in zip(chosen, quarters, strict=True):
        size = int(rng.integers(*(_SMALL if small else _LARGE), endpoint=True))
        angle = round(float(rng.uniform(-_ANGLE, _ANGLE)), 1)
        cell = drawing_of(number, style).resize((size, size), Image.Resampling.LANCZOS)
        cell = cell.rotate(angle, Image.Resampling.BICUBIC)
        layer = Image.new("RGBA", (SIZE, SIZE))
        layer.paste(cell, _corner(rng, quarter, size))
        alpha = np.asarray(layer)[..., 3:] / 255.0
        shade = rng.uniform(0.85, 1.15)
        canvas = canvas * (1 - alpha) + np.asarray(layer)[..., :3] * shade * alpha
        placed.append(Thing(catalogue()[number], PLACES[quarter], size, angle, torch.from_numpy(alpha[..., 0] > 0.5)))
    canvas = canvas + rng.normal(scale=rng.uniform(0, 10), size=canvas.shape)
    image = Image.fromarray(canvas.round().clip(0, 255).astype(np.uint8))
    return EmojiPicture(image, tuple(placed), ground)


def _ground(rng: np.random.Generator, ground: str) -> np.ndarray:
    """The colour of a ground, a little lighter or darker: Float `[64, 64, 3]`."""
    colour = np.array(GROUNDS[ground]) + rng.uniform(-18, 18) + rng.uniform(-8, 8, size=3)
    return np.tile(colour, (SIZE, SIZE, 1))


def _corner(rng: np.random.Generator, quarter: int, size: int) -> tuple[int, int]:
    """Where the upper left corner of a thing of this size stands: within its quarter, or near the middle."""
    side = SIZE if quarter == 4 else SIZE // 2
    slack = (side - size) // 2
    across, down = (slack + int(rng.integers(-min(slack, 6), min(slack, 6), endpoint=True)) for _ in range(2))
    return (across, down) if quarter == 4 else (quarter % 2 * side + across, quarter // 2 * side + down)
