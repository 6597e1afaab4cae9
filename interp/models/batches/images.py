"""Pictures: every picture that comes in is opened here, whatever it is, and becomes the same pixels.

A picture may be a PIL image, the path of a file, its bytes, an open file, a dict of "bytes" and "path" as the `datasets`
package has it, or an array of bytes. `open_image` makes 8-bit RGB of it, by these rules:

========================== ============================================================================================
orientation                turned upright as its Exif tag says, whether it is a file or a PIL image in hand; who turns a
                           picture by hand removes the tag, as `PIL.ImageOps.exif_transpose` does; a tag that
                           cannot be read counts as none
several frames             the first one of a file; of a PIL image the one that it stands at
transparency               laid on white: an alpha channel, a transparent colour or palette entry
16 bits (I;16, I)          the upper 8 bits of each value, ``value >> 8``, whatever the values are
floats (F)                 0 is black and 1 is white, ``round(255 * value)``
any other mode             as Pillow converts it to RGB: 1, L, P, CMYK, YCbCr, LAB, HSV
numpy array                uint8 ``[height, width]`` or ``[height, width, channel]`` with 1, 3 or 4 channels
torch tensor               uint8 ``[height, width]`` or ``[channel, height, width]`` with 1, 3 or 4 channels
========================== ============================================================================================

What would have to be guessed is refused: floats outside 0 to 1, 32-bit integers outside 16 bits or within 8, arrays of
any other form. A URL is not opened.

Files are not trusted. Only formats that Pillow decodes by itself are opened, and those of plugins that the user has
registered; for some others (EPS) Pillow starts another program.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from interp.errors import InputError, shown

# The pictures that are opened: the endings of their files, and Pillow's names of their formats.
PICTURES = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"), "JPEG"),
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
Opened = TypeVar("Opened")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:")
_KINDS = (
    "expected a PIL image, the path or the bytes of a file, or an array of uint8 [height, width, 3] (a torch tensor: "
    "[3, height, width])"
)


def images_in(entry: Any) -> list[Any]:
    """The pictures of one row, whose entry is None, one picture, or a list of them."""
    return [] if entry is None else list(entry) if isinstance(entry, list | tuple) else [entry]


def is_one_picture(entry: Any) -> bool:
    """Whether this is one picture, of the kinds that could be taken for a list: bytes, a dict, an open file, an array."""
    if isinstance(entry, bytes | bytearray | memoryview | Mapping) or hasattr(entry, "read"):
        return True
    return isinstance(entry, np.ndarray | torch.Tensor) and entry.ndim in (2, 3)


def is_url(picture: Any) -> bool:
    """Whether a picture is named by a URL alone, as a stream of the `datasets` package names files in archives."""
    return isinstance(picture, Mapping) and _bytes_in(picture) is None and "://" in str(picture.get("path"))


def open_image(picture: Any, hint: str = "") -> Image.Image:
    """A picture as an RGB image of its own, upright; opened once more it stays as it is.

    >>> open_image(Image.new("RGBA", (2, 1), (9, 9, 9, 0))).getpixel((0, 0))
    (255, 255, 255)

    `hint` ends the message for the relative name of a file that is not there. Raises `InputError` for anything but a picture,
    for a file that is missing, broken or of an unknown format, and for values whose scale is not known.
    """
    return open_as(picture, _as_rgb, hint)


def open_as(picture: Any, convert: Callable[[Image.Image, str], Opened], hint: str = "") -> Opened:
    """What `convert` makes of a picture, which it gets as Pillow opens it, with the name that messages call it.

    Raises `InputError` as `open_image` does, and what `convert` raises.
    """
    name, content = _name_and_content(picture, hint)
    try:
        if isinstance(content, Image.Image):
            return convert(content, name)
        with Image.open(content, formats=_formats()) as opened:
            return convert(opened, name)
    except (InputError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not an image of a known format: expected a PNG, JPEG or the like") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            f"{name} cannot be read ({shown(error)}): make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except Exception as error:  # decoders raise errors of any type on a broken file
        still = " in a file that is still open" if content is picture else ""
        raise InputError(
            f"{name} cannot be read ({shown(error)}): expected a whole PNG, JPEG or the like{still}"
        ) from error


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
    if not all(image.size):
        raise InputError(f"{name} has the size {image.size}: expected a picture of one pixel or more")
    if image.mode == "RGB" and not image.info and image.format is None and getattr(image, "_exif", None) is None:
        return image.convert("RGB")  # as this function leaves it
    image = upright(image)
    if image.mode == "F" or image.mode.startswith("I"):
        image = _as_grey(image, name)
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), _with_alpha(image))
    rgb = image.convert("RGB")
    rgb.info = {}  # what has been done to these pixels is not done to them again
    return rgb


def upright(image: Image.Image) -> Image.Image:
    """A copy of a picture, turned as its Exif tag says."""
    image.load()
    try:
        image.getexif()
    except Exception:  # no tag that can be read: any other program shows the pixels as they are stored
        return image.copy()
    return ImageOps.exif_transpose(image)


def _with_alpha(image: Image.Image) -> Image.Image:
    """The image in RGBA. Pillow has no way to it from premultiplied grey but through grey."""
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def _as_grey(image: Image.Image, name: str) -> Image.Image:
    """An image with values of more than 8 bits, in 8 bits."""
    values = np.asarray(image)
    low, high = values.min().item(), values.max().item()
    if image.mode == "F":
        if not (low >= 0 and high <= 1):  # not a number is neither
            raise InputError(
                f"{name} holds floats from {low:g} to {high:g}: expected 0 (black) to 1 (white), scale them first; "
                'image.convert("L") where they go from 0 to 255'
            )
        return Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if image.mode == "I" and not (low == high == 0 or (low >= 0 and 255 < high < 65536)):
        raise InputError(
            f"{name} holds 32-bit integers from {low} to {high}, whose scale is not known: expected 16-bit values up to "
            '65535; image.convert("L") where they go from 0 to 255'
        )
    grey = (values >> 8).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # the one value that is transparent
        grey[values == clear] = 255
    return Image.fromarray(grey)


# What a picture may be ---------------------------------------------------------------------------------------------------


def _name_and_content(picture: Any, hint: str) -> tuple[str, Any]:
    """What messages call a picture, and what Pillow opens: the image itself or a file in memory."""
    if isinstance(picture, Image.Image):
        file = getattr(picture, "filename", None)
        return f"the image {f'{shown(os.fspath(file))} ' if file else ''}of size {picture.size}", picture
    if isinstance(picture, str | os.PathLike):
        return shown(os.fspath(picture)), _read(os.fspath(picture), hint)
    if isinstance(picture, Mapping):
        content, path = _bytes_in(picture), picture.get("path")
        if content is not None:
            return f"the image {shown(path)}", io.BytesIO(content)
        if is_url(picture):
            return shown(path), _read_in_archive(str(path))
        if isinstance(path, str | os.PathLike):
            return shown(os.fspath(path)), _read(os.fspath(path), hint)
        raise InputError(
            f"{shown(picture)} is a dict and not an image: expected the bytes of a file as 'bytes' or its 'path'"
        )
    if isinstance(picture, bytes | bytearray | memoryview):
        return f"an image of {len(bytes(picture))} bytes", io.BytesIO(picture)
    if isinstance(picture, np.ndarray | torch.Tensor):
        return shown(picture), _of_array(picture)
    if hasattr(picture, "read"):
        return _of_open_file(picture)
    raise InputError(f"{shown(picture)} is a {type(picture).__name__} and not an image: {_KINDS}")


def _bytes_in(picture: Mapping[Any, Any]) -> bytes | None:
    content = picture.get("bytes")
    return bytes(content) if isinstance(content, bytes | bytearray | memoryview) else None


def _of_array(picture: Any) -> Image.Image:
    """An image of an array in numpy's order, channels last, or in torch's, channels first."""
    values = picture
    if isinstance(picture, torch.Tensor) and picture.dtype == torch.uint8 and not picture.is_meta:
        values = picture.detach().cpu().numpy()
        values = np.moveaxis(values, 0, -1) if values.ndim == 3 else values
    in_bytes = isinstance(values, np.ndarray) and values.dtype == np.uint8
    if not in_bytes or values.ndim < 2 or values.shape[2:] not in ((), (1,), (3,), (4,)):
        raise InputError(f"{shown(picture)} is not an image: {_KINDS}; this holds {picture.dtype}")
    if not values.size:
        raise InputError(f"{shown(picture)} has the size 0: expected a picture of one pixel or more")
    return Image.fromarray(np.ascontiguousarray(values[..., 0] if values.shape[2:] == (1,) else values))


def _of_open_file(file: Any) -> tuple[str, Any]:
    """All of an open file, from its start: a file that was read, or is read once more, is the same picture."""
    name = getattr(file, "name", None)
    name = shown(name) if isinstance(name, str) else f"an open file ({type(file).__name__})"
    try:
        place = file.tell() if file.seekable() else None
        if place is not None:
            file.seek(0)
        content = file.read()
        if place is not None:
            file.seek(place)
        return name, io.BytesIO(content)
    except Exception as error:  # closed, or opened as text
        raise InputError(
            f"{name} cannot be read ({shown(error)}): expected a file that is open for reading bytes, open(path, 'rb')"
        ) from error


def _read(path: str | bytes, hint: str) -> io.BytesIO:
    text = os.fsdecode(path)
    if _URL.match(text):
        raise InputError(
            f"{shown(path)} is a URL: expected a file, download the picture first and give its path or bytes"
        )
    try:
        if Path(text).is_file():
            return io.BytesIO(Path(text).read_bytes())
    except Exception as error:  # names that the system refuses, files without the right to read
        raise InputError(f"{shown(path)} cannot be read ({shown(error)}): expected the path of an image") from error
    what = "no file but a folder" if os.path.isdir(text) else "no file"
    raise InputError(f"{shown(path)} is {what}: expected the path of an image{'' if os.path.isabs(text) else hint}")


def _read_in_archive(url: str) -> io.BytesIO:
    """A file in an archive, as streams of the `datasets` package name them."""
    import fsspec

    try:
        with fsspec.open(url, "rb") as file:
            return io.BytesIO(file.read())
    except Exception as error:  # each protocol raises its own errors
        raise InputError(f"{shown(url)} cannot be read ({shown(error)}): expected the path of an image") from error


def _formats() -> list[str]:
    """Pillow's names of the formats that are opened."""
    Image.init()
    own = set(PICTURES.values())
    # A format of another package is there because the user has registered it.
    return [name for name, (make, _) in Image.OPEN.items() if name in own or not make.__module__.startswith("PIL.")]
