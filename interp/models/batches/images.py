"""Images as a caller passes them: pictures in hand or paths of files, one entry for each row of a batch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from interp.errors import InputError, shown


def images_in(entry: Any) -> list[Any]:
    """The pictures and paths of one row, whose entry is None, one picture or path, or a list of them."""
    return [] if entry is None else list(entry) if isinstance(entry, list | tuple) else [entry]


def open_image(image: Any) -> Image.Image:
    """A PIL image as RGB; the file at a path too, turned upright as its camera recorded it.

    Raises `InputError` for a path without a file, a file that Pillow cannot read, and anything else.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    if not isinstance(image, str | os.PathLike):
        raise InputError(f"{shown(image)} is no image: expected a PIL image or the path of a file")
    if not Path(image).is_file():
        raise InputError(f"{str(image)!r} is no file: expected the path of an image")
    try:
        with Image.open(image) as file:
            return ImageOps.exif_transpose(file).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(
            f"{str(image)!r} is no image that Pillow can read: expected a file such as a PNG or JPEG"
        ) from error
