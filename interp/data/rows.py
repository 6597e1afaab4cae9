"""Rows: what every kind of data becomes before a model sees it.

A data set may be far larger than memory, so nothing here holds all of one. A `Rows` gives a range of rows at a time, and
a `Row` carries its pictures unopened: a path, the bytes of a file, a PIL image. `open_row` opens them, one row at a time:
ids and labels are read without decoding a picture, and a picture that cannot be read is an error of its row alone.

The files of pictures are not trusted. Only formats that Pillow decodes by itself are opened; for some others (EPS) it
starts another program. Data that names its pictures relative to a folder can name none outside it.
"""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
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
# A function that takes a row that cannot be read, and its error.
Skip = Callable[["Row", InputError], None]


def check_range(start: int, stop: int) -> None:
    """Refuse a range of rows that starts below 0 or after its stop."""
    if not 0 <= start <= stop:
        raise InputError(f"rows {start!r} to {stop!r}: expected 0 <= start <= stop")


def pictures_of(image: Any) -> list[Any]:
    """A row's pictures as a list: none, one, or those of a list."""
    if image is None:
        return []
    return list(image) if isinstance(image, list | tuple) else [image]


def pictures_in(folder: Path, image: Any, place: str) -> Any:
    """A row's pictures with names made paths of files in a folder; pictures that are no names stay as they are.

    A name that leads out of the folder on any system becomes an `InputError`, which begins with the `place` of the name:
    `open_row` raises it.
    """
    if isinstance(image, list | tuple):
        return [pictures_in(folder, each, place) for each in image]
    if isinstance(image, Mapping) and not isinstance(image.get("bytes"), bytes) and not is_url(image):
        image = image.get("path") or image  # how the datasets package holds a path
    if not isinstance(image, str | os.PathLike):
        return image
    name = os.fspath(image)
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    absolute = posix.anchor or windows.anchor
    inside = not absolute or (os.path.isabs(name) and Path(name).is_relative_to(os.path.abspath(folder)))
    if not inside or ".." in (*posix.parts, *windows.parts):
        return InputError(
            f"{place} names the picture {shown(name)}, which leads out of the folder {shown(folder.name)}: expected a name "
            "inside it, or Data(..., root=FOLDER) with the folder that has all pictures"
        )
    return folder / name


def is_url(picture: Any) -> bool:
    """Whether a picture is named by a URL alone, as a stream of the `datasets` package names files in archives."""
    if not isinstance(picture, Mapping) or isinstance(picture.get("bytes"), bytes):
        return False
    return "://" in str(picture.get("path"))


def open_rows(rows: Sequence[Row], skip: Skip | None) -> list[tuple[Row, list[Image.Image]]]:
    """The rows with their pictures opened; a row that cannot be read goes to `skip`, or is an error without it."""
    opened = []
    for row in rows:
        try:
            opened.append((row, open_row(row)))
        except InputError as error:
            if skip is None:
                raise
            skip(row, error)
    return opened


def open_row(row: Row) -> list[Image.Image]:
    """The row's pictures in RGB, turned upright where their files say how the camera was held.

    Raises `InputError`, one line that names the row, for a picture that cannot be read and for a row whose text and
    pictures do not fit together.
    """
    try:
        pictures = pictures_of(row.image)
        if row.error is not None:
            raise row.error
        if not row.text:
            raise InputError("its text is empty, or a column that it is made of is: fill it in or leave the row out")
        if any("\ud800" <= letter <= "\udfff" for letter in row.text):
            raise InputError(f"its text {shown(row.text)} is no Unicode: expected a whole string")
        if row.text.count(PLACEHOLDER) != len(pictures):
            raise InputError(
                f"its text {shown(row.text)} has {row.text.count(PLACEHOLDER)} {PLACEHOLDER} and the row has "
                f"{len(pictures)} images: expected one each"
            )
        return [_open_picture(picture) for picture in pictures]
    except InputError as error:
        raise InputError(f"row {row.index} ({row.id!r}): {error}") from error.__cause__


def _open_picture(picture: Any) -> Image.Image:
    name, content = _name_and_content(picture)
    try:
        if isinstance(content, Image.Image):
            image = content.convert("RGB")
        else:
            with Image.open(content, formats=_formats()) as opened:
                image = ImageOps.exif_transpose(opened).convert("RGB")
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is no image of a known format: expected a PNG, JPEG or the like") from error
    except Exception as error:  # decoders raise errors of any type on a broken file
        raise InputError(f"{name} cannot be read ({shown(error)}): expected a whole PNG, JPEG or the like") from error
    if not all(image.size):
        raise InputError(f"{name} has the size {image.size}: expected a picture of one pixel or more")
    return image


def _name_and_content(picture: Any) -> tuple[str, Any]:
    """What messages call a picture, and what Pillow opens: the image itself or an open file."""
    if isinstance(picture, InputError):
        raise picture
    if isinstance(picture, Image.Image):
        return f"the image of size {picture.size}", picture
    if isinstance(picture, bytes):
        return f"an image of {len(picture)} bytes", io.BytesIO(picture)
    if isinstance(picture, str | os.PathLike):
        return shown(os.fspath(picture)), _read(os.fspath(picture))
    if isinstance(picture, Mapping) and isinstance(picture.get("bytes"), bytes):
        return f"the image {shown(picture.get('path'))}", io.BytesIO(picture["bytes"])
    if isinstance(picture, Mapping) and isinstance(picture.get("path"), str):
        path = picture["path"]
        return shown(path), _read(path, remote=is_url(picture))
    raise InputError(
        f"{shown(picture)} is a {type(picture).__name__} and no image: expected a PIL image, the path or bytes of a file"
    )


def _read(path: str | bytes, remote: bool = False) -> io.BytesIO:
    try:
        if remote:
            import fsspec

            with fsspec.open(path, "rb") as file:
                return io.BytesIO(file.read())
        if Path(os.fsdecode(path)).is_file():
            return io.BytesIO(Path(os.fsdecode(path)).read_bytes())
    except Exception as error:  # each protocol raises its own errors
        raise InputError(f"{shown(path)} cannot be read ({shown(error)}): expected the path of an image") from error
    hint = "" if os.path.isabs(path) else ", or Data(..., root=FOLDER) if it is relative to another folder"
    raise InputError(f"{shown(path)} is no file: expected the path of an image{hint}")


def _formats() -> list[str]:
    Image.init()
    return [name for name in dict.fromkeys(PICTURES.values()) if name in Image.OPEN]


@dataclass(frozen=True)
class Row:
    """One row of a data set: its number from 0, its name, its pictures (not opened), its text and its labels.

    `image` is a PIL image, a path, the bytes of a file, a dict of "bytes" and "path", a list of these, or None; an
    `InputError` stands for a picture that cannot be opened. `text` has one ``<image>`` for each of them; it is empty where
    the data has nothing to make a text from. `error` says why the row cannot be read, where that shows before it is opened.
    """

    index: int
    id: str
    image: Any
    text: str
    labels: Mapping[str, Any]
    error: InputError | None = None


class Rows(ABC):
    """A source of rows. `size` is how many there are, None for a stream of unknown length."""

    size: int | None

    @abstractmethod
    def read(self, start: int, stop: int) -> list[Row]:
        """The rows from `start` up to `stop`, fewer only where the data ends; no picture is opened.

        Raises `InputError` for a start after the stop and for a stream that would have to go back.
        """


@dataclass(frozen=True)
class Batches:
    """Batches, taken as they are; their rows are counted through all of them, and a row's id is its number."""

    batches: tuple[Batch, ...]

    @property
    def size(self) -> int:
        return sum(len(batch) for batch in self.batches)
