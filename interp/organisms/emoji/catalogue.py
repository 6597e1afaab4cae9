"""The catalogue: which emoji there are, their names and Unicode's groups and subgroups.

It has the emoji of Unicode 15.0 that are one thing each: fully qualified, without skin tones, joined sequences, keycaps
and flags. A name is Unicode's short name in plain quotes, as a user would type it. ``data/emoji.csv`` has a row for each,
in Unicode's order; `interp.organisms.emoji.drawing` makes it from Unicode's ``emoji-test.txt``.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from interp.displays import Display

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Emoji(Display):
    """One emoji: its place in the catalogue and in the atlas, its code points, and what Unicode says of it."""

    number: int
    codepoints: str
    name: str
    group: str
    subgroup: str

    @property
    def character(self) -> str:
        """The text that a font draws."""
        return "".join(chr(int(point, 16)) for point in self.codepoints.split())


@cache
def catalogue() -> tuple[Emoji, ...]:
    """All emoji, in Unicode's order.

    >>> len(catalogue()), catalogue()[0].name, catalogue()[0].group
    (1372, 'grinning face', 'Smileys & Emotion')
    """
    with (DATA / "emoji.csv").open(encoding="utf-8", newline="") as file:
        return tuple(Emoji(number, **row) for number, row in enumerate(csv.DictReader(file)))
