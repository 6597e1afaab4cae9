"""Drawing the atlas: every emoji of the catalogue, 64 pixels wide, on one transparent picture.

    python -m interp.organisms.emoji.drawing --names emoji-test.txt --font NotoColorEmoji.ttf --out FOLDER

``--names`` is Unicode's list (Debian's package ``unicode-data`` has it) and ``--font`` Google's Noto Color Emoji (Debian's
``fonts-noto-color-emoji``, under the SIL Open Font License). With ``--pictures`` in place of the font, the drawings are the
picture files of a folder that are named by their code points, as npm's ``emoji-datasource-twitter`` has them.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from interp.files import whole_file
from interp.organisms.emoji.atlas import CELL, COLUMNS, empty_atlas, place_of

_FONT_SIZE = 109  # the only size that this font's pictures have
_SKIN_TONES = {f"{point:X}" for point in range(0x1F3FB, 0x1F400)}
_LEFT_OUT = {"200D", "20E3"} | _SKIN_TONES  # joiner, keycap
_STEP = 5  # 52 shades a channel: half the file, and nobody sees it
_QUOTES = str.maketrans("\u2019\u201c\u201d", '\'""')
_LINE = re.compile(r"([0-9A-F ]+?) *; fully-qualified +# \S+ E[\d.]+ (.+)")


def read_names(path: Path) -> Iterator[dict[str, str]]:
    """The rows of the catalogue, from Unicode's ``emoji-test.txt``."""
    heads = {"group": "", "subgroup": ""}
    for line in path.read_text(encoding="utf-8").splitlines():
        head = re.match(r"# (group|subgroup): (.+)", line)
        entry = _LINE.match(line)
        if head:
            heads[head[1]] = head[2]
        elif entry and heads["group"] not in ("Flags", "Component") and not _LEFT_OUT & set(entry[1].split()):
            yield {"codepoints": entry[1], "name": entry[2].translate(_QUOTES), **heads}


def font_drawing(path: Path) -> Callable[[str], Image.Image]:
    """A function that draws the code points with a colour font."""
    font = ImageFont.truetype(str(path), _FONT_SIZE)

    def draw(codepoints: str) -> Image.Image:
        text = "".join(chr(int(point, 16)) for point in codepoints.split())
        box = font.getbbox(text)
        picture = Image.new("RGBA", (round(box[2] - box[0]), round(box[3] - box[1])))
        ImageDraw.Draw(picture).text((-box[0], -box[1]), text, font=font, embedded_color=True)
        return picture

    return draw


def file_drawing(folder: Path) -> Callable[[str], Image.Image]:
    """A function that opens the picture file of the code points, with or without their variation selector."""

    def draw(codepoints: str) -> Image.Image:
        stem = codepoints.lower().replace(" ", "-")
        names = [f"{stem}.png", f"{stem.replace('-fe0f', '')}.png"]
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is None:
            raise SystemExit(f"error: {names[0]!r} is not in {str(folder)!r}: expected a picture for each emoji")
        return Image.open(path).convert("RGBA")

    return draw


def fitted(picture: Image.Image) -> Image.Image:
    """What is not transparent, scaled to touch the border of a cell, in the middle of it."""
    box = picture.getchannel("A").getbbox()
    if box is None:
        raise SystemExit("error: a drawing is empty: expected a font or a folder that has every emoji of the catalogue")
    inner = picture.crop(box)
    scale = CELL / max(inner.size)
    inner = inner.resize([max(1, round(side * scale)) for side in inner.size], Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (CELL, CELL))
    cell.paste(inner, ((CELL - inner.width) // 2, (CELL - inner.height) // 2))
    return cell


def main(arguments: list[str] | None = None) -> None:
    """Write ``emoji.csv`` and ``atlas.webp``."""
    parser = argparse.ArgumentParser(prog="python -m interp.organisms.emoji.drawing", description="Draw the atlas.")
    parser.add_argument("--names", type=Path, required=True, help="Unicode's emoji-test.txt")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--font", type=Path, help="a colour font with pictures of 109 points")
    source.add_argument("--pictures", type=Path, help="a folder of picture files, named by code points")
    parser.add_argument("--out", type=Path, required=True, help="folder for emoji.csv and atlas.webp")
    options = parser.parse_args(arguments)
    draw = font_drawing(options.font) if options.font else file_drawing(options.pictures)
    rows = list(read_names(options.names))
    atlas = empty_atlas(len(rows))
    for number, row in enumerate(rows):
        atlas.paste(fitted(draw(row["codepoints"])), place_of(number))
    atlas = atlas.point(lambda value: round(value / _STEP) * _STEP)
    options.out.mkdir(parents=True, exist_ok=True)
    with whole_file(options.out / "emoji.csv") as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    with whole_file(options.out / "atlas.webp") as partial:
        atlas.save(partial, format="WEBP", lossless=True, method=6)
    print(f"{len(rows)} emoji in {COLUMNS} columns, {(options.out / 'atlas.webp').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
