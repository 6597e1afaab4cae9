"""The atlas: one drawing of every emoji, 64 x 64 pixels with transparency.

The package ships Google's drawings (Noto Color Emoji, under the SIL Open Font License, see ``data/LICENSE-atlas``). Another style
is an atlas of one's own: `interp.organisms.emoji.drawing` makes it from a font or from a folder of picture files.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import Image

from interp.errors import InputError, reason_of, shown
from interp.organisms.emoji.catalogue import DATA, catalogue

CELL, COLUMNS = 64, 40  # pixels of a cell, cells of a row


def empty_atlas(count: int) -> Image.Image:
    """A transparent picture with room for `count` drawings."""
    return Image.new("RGBA", (COLUMNS * CELL, -(-count // COLUMNS) * CELL))


def place_of(number: int) -> tuple[int, int]:
    """The left and upper pixel of a drawing."""
    return number % COLUMNS * CELL, number // COLUMNS * CELL


def drawing_of(number: int, style: str | Path | None = None) -> Image.Image:
    """The drawing of the emoji with this number, RGBA: the shipped one, or that of the atlas in the file `style`.

    >>> drawing_of(600).size
    (64, 64)
    """
    x, y = place_of(number)
    return _atlas(DATA / "atlas.webp" if style is None else Path(style)).crop((x, y, x + CELL, y + CELL))


@cache
def _atlas(path: Path) -> Image.Image:
    try:
        atlas = Image.open(path).convert("RGBA")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"style {shown(str(path))} cannot be read as a picture: {reason_of(error)}") from error
    expected = empty_atlas(len(catalogue())).size
    if atlas.size != expected:
        raise InputError(
            f"style {shown(str(path))} has {atlas.width} x {atlas.height} pixels: expected an atlas of {expected[0]} x "
            f"{expected[1]}, as python -m interp.organisms.emoji.drawing makes it"
        )
    return atlas
