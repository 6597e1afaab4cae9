"""Rows: what every kind of data becomes before a model sees it.

A data set may be far larger than memory, so nothing here holds one. A `Rows` is asked for a stretch of rows at a time,
and a `Row` carries its pictures as they were found: a path, the bytes of a file, an image in hand. They are opened by
`open_row`, one row at a time, so that ids and labels can be read without decoding a picture, and so that one picture
that cannot be read is an error of its row and not the end of a run.

What a picture's file holds is not trusted. Only formats that Pillow decodes by itself are opened, for some others
(EPS) it starts another program.
"""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from interp.errors import InputError, shown
from interp.models import Batch
from interp.models.batches.prompts import PLACEHOLDER

# The pictures that are opened: the endings of their files, and Pillow's names of their formats.
PICTURES = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "JPEG"),
    **dict.fromkeys((".png", ".apng"), "PNG"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm"), "PPM"),
    **dict.fromkeys((".jp2", ".j2k", ".jpx"), "JPEG2000"),
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    ".webp": "WEBP",
    ".gif": "GIF",
    ".avif": "AVIF",
    ".tga": "TGA",
    ".ico": "ICO",
}


@dataclass(frozen=True)
class Row:
    """One row of a data set: its number from 0, its name, its pictures (not opened), its text and its labels.

    `image` is a PIL image, a path, the bytes of a file, a dict of "bytes" and "path", a list of these, or None.
    `text` has one ``<image>`` for each of them; it is empty where the data has nothing to make a text from.
    """

    index: int
    id: str
    image: Any
    text: str
    labels: Mapping[str, Any]


class Rows(ABC):
    """A source of rows. `size` is how many there are, None for a stream of unknown length."""

    size: int | None

    @abstractmethod
    def read(self, start: int, stop: int) -> list[Row]:
        """The rows from `start` up to `stop`, fewer only where the data ends; no picture is opened.

        Raises `InputError` for a range that is none, a stream that is asked to go back, a text that leaves no place for
        the row's images.
        """


@dataclass(frozen=True)
class Batches:
    """Batches in hand, taken as they are; their rows are numbered through and named by their numbers."""

    batches: tuple[Batch, ...]

    @property
    def size(self) -> int:
        return sum(len(batch) for batch in self.batches)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(str(index) for index in range(self.size))


def check_range(start: int, stop: int) -> None:
    """Refuse a range of rows that is none."""
    if not 0 <= start <= stop:
        raise InputError(f"rows {start!r} to {stop!r} were asked for: expected 0 <= start <= stop")


def pictures_of(image: Any) -> list[Any]:
    """A row's pictures as a list: none, one, or those of a list."""
    if image is None:
        return []
    return list(image) if isinstance(image, list | tuple) else [image]


def open_row(row: Row) -> list[Image.Image]:
    """The row's pictures in RGB, upright where a file says how it was held.

    Raises `InputError`, one line that names the row, for a picture that cannot be read and for a row whose text and
    pictures do not fit together.
    """
    try:
        given = pictures_of(row.image)
        if not row.text:
            raise InputError("its text is empty, or a column that it is made of is: fill it in or leave the row out")
        if any("\ud800" <= letter <= "\udfff" for letter in row.text):
            raise InputError(f"its text {shown(row.text)} is no Unicode: expected a whole string")
        if row.text.count(PLACEHOLDER) != len(given):
            raise InputError(
                f"its text {shown(row.text)} has {row.text.count(PLACEHOLDER)} {PLACEHOLDER} and the row has "
                f"{len(given)} images: expected one each"
            )
        return [_opened(picture) for picture in given]
    except InputError as error:
        raise InputError(f"row {row.index} ({row.id!r}): {error}") from error.__cause__


def _opened(picture: Any) -> Image.Image:
    name, held = _source(picture)
    try:
        if isinstance(held, Image.Image):
            image = held.convert("RGB")
        else:
            with Image.open(held, formats=_formats()) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGB")
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is no image that is known here: expected a PNG, JPEG or the like") from error
    except Exception as error:  # a decoder raises whatever the bytes of a broken file lead it to
        raise InputError(f"{name} cannot be read ({shown(error)}): expected a whole PNG, JPEG or the like") from error
    if not all(image.size):
        raise InputError(f"{name} has the size {image.size}: expected a picture of one pixel or more")
    return image


def _source(picture: Any) -> tuple[str, Any]:
    """What a message calls a picture, and what Pillow takes of it: the image itself or an open file."""
    if isinstance(picture, Image.Image):
        return f"the image of size {picture.size}", picture
    if isinstance(picture, bytes):
        return f"an image of {len(picture)} bytes", io.BytesIO(picture)
    if isinstance(picture, str | os.PathLike):
        return shown(os.fspath(picture)), io.BytesIO(_bytes_of_file(os.fspath(picture)))
    if isinstance(picture, Mapping) and isinstance(picture.get("bytes"), bytes):
        return f"the image {shown(picture.get('path'))}", io.BytesIO(picture["bytes"])
    if isinstance(picture, Mapping) and isinstance(picture.get("path"), str):
        path = picture["path"]
        # A stream of the datasets package names files inside archives and on servers in this way.
        return shown(path), io.BytesIO(_bytes_from_afar(path) if "://" in path else _bytes_of_file(path))
    raise InputError(
        f"{shown(picture)} is a {type(picture).__name__} and no image: expected a PIL image, the path or bytes of a file"
    )


def _bytes_of_file(path: str | bytes) -> bytes:
    try:
        if not Path(os.fsdecode(path)).is_file():
            raise InputError(f"{shown(path)} is no file: expected the path of an image")
        return Path(os.fsdecode(path)).read_bytes()
    except OSError as error:
        raise InputError(f"{shown(path)} cannot be read ({shown(error)}): expected the path of an image") from error


def _bytes_from_afar(path: str) -> bytes:
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            return file.read()
    except Exception as error:  # each protocol has errors of its own
        raise InputError(f"{shown(path)} cannot be read ({shown(error)}): expected an image there") from error


def _formats() -> list[str]:
    Image.init()
    return [name for name in dict.fromkeys(PICTURES.values()) if name in Image.OPEN]
