"""Rows: what every kind of data becomes before a model sees it.

A data set may be far larger than memory, so nothing here holds all of one. A `Rows` gives a range of rows at a time, and
a `Row` carries its pictures unopened, in any form that `interp.models.batches.images` opens. `open_row` opens them, one row
at a time: ids and labels are read without decoding a picture, and a picture that cannot be read is an error of its row
alone. Data that names its pictures relative to a folder can name none outside it.
"""

from __future__ import annotations

import ntpath
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from interp.errors import InputError, RowError, shown
from interp.models import Batch
from interp.models.batches.images import images_in, is_url, open_image
from interp.models.batches.prompts import PLACEHOLDER

# A row with its pictures opened.
OpenRow = tuple["Row", list[Image.Image]]
# A function that takes a row that cannot be used, and its error.
Skip = Callable[["Row", InputError], None]


def check_range(start: int, stop: int) -> None:
    """Refuse a range of rows that starts below 0 or after its stop."""
    if not 0 <= start <= stop:
        raise InputError(f"rows {start!r} to {stop!r}: expected 0 <= start <= stop")


def pictures_in(folder: Path, image: Any, place: object) -> Any:
    """A row's pictures with names made paths of files in a folder; pictures that are not names stay as they are.

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
    absolute = name.startswith(("/", "\\")) or ntpath.splitdrive(name)[0]
    inside = not absolute or (os.path.isabs(name) and Path(name).is_relative_to(os.path.abspath(folder)))
    if not inside or ".." in re.split(r"[/\\]", name):
        return InputError(
            f"{place} names the picture {shown(name)}, which leads out of the folder {shown(folder.name)}: expected a name "
            "inside it, or Data(..., root=FOLDER) with the folder that has all pictures"
        )
    return folder / name


def open_rows(rows: Sequence[Row], skip: Skip | None) -> list[OpenRow]:
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
        if row.error is not None:
            raise row.error
        if not row.text:
            raise InputError("its text is empty, or a column that it is made of is: fill it in or leave the row out")
        return _pictures_of(row, row.text, "text")
    except InputError as error:
        raise InputError(f"{row.name}: {error}") from error.__cause__


def open_turns(row: Row) -> list[Image.Image]:
    """The pictures as `open_row` opens them, of a row whose exchanges are read: ``<image>`` may stand in any human turn.

    Raises `InputError`, one line that names the row, also for a row without an answer and for one with a `fault`.
    """
    try:
        fault = fault_of_turns(row)
        if fault is not None:
            raise fault
        said = [text for turn in row.turns for text in turn]
        return _pictures_of(row, "\n".join(said if row.system is None else [row.system, *said]), "conversation")
    except InputError as error:
        raise InputError(f"{row.name}: {error}") from error.__cause__


def fault_of_turns(row: Row) -> InputError | None:
    """Why a row has no exchanges to train on; pictures are not looked at."""
    if row.error is None and row.fault is None and not row.turns:
        return InputError('it has no answer: expected a column answer, columns={"answer": ...} or a conversation')
    return row.error or row.fault


def _pictures_of(row: Row, text: str, what: str) -> list[Image.Image]:
    pictures = images_in(row.image)
    if not is_unicode(text):
        raise InputError(f"its {what} {shown(text)} is not Unicode: expected a whole string")
    if text.count(PLACEHOLDER) != len(pictures):
        raise InputError(
            f"its {what} {shown(text)} has {text.count(PLACEHOLDER)} {PLACEHOLDER} and the row has {len(pictures)} images: "
            "expected one each"
        )
    return [_open(picture) for picture in pictures]


def is_unicode(text: str) -> bool:
    """Whether a string has no half letter, which no tokenizer takes."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def without_faults(rows: Sequence[Row], error: RowError, skip: Skip | None) -> list[int]:
    """The numbers, in these rows, of those that an error does not concern; the others go to `skip`.

    Without `skip` the first of them is an `InputError` that names the row as the data does.
    """
    messages = error.messages([row.name for row in rows])
    for index, message in sorted(messages.items(), key=lambda each: rows[each[0]].index):
        if skip is None:
            raise InputError(message) from error.__cause__
        skip(rows[index], InputError(message))
    return [index for index in range(len(rows)) if index not in error.faults]


def _open(picture: Any) -> Image.Image:
    if isinstance(picture, InputError):  # a name that is refused
        raise picture
    return open_image(picture, hint=", or Data(..., root=FOLDER) if it is relative to another folder")


@dataclass(frozen=True)
class Row:
    """One row of a data set: its number from 0, its name, its pictures (not opened), its text and its labels.

    `image` is a PIL image, a path, the bytes of a file, a dict of "bytes" and "path", a list of these, or None; an
    `InputError` stands for a picture that cannot be opened. `text` has one ``<image>`` for each of them; it is empty where
    the data has nothing to make a text from. `error` says why the row cannot be read, where that shows before it is opened.
    `spans` are the parts of the text that have a name, None where the row has no such part.

    `turns` are the exchanges of a row that has answers, each (what the human says, the answer), and `system` what stands
    before them; the text of a conversation is the first thing that the human says. Without an answer there are none, and
    with a `fault`: why the row cannot be trained on, although its text can be read. `masks` are dicts of "words" and "mask",
    what words stand where in the picture, unopened, as `interp.tuning` opens them; an `InputError` stands for one that cannot
    be opened.
    """

    index: int
    id: str
    image: Any
    text: str
    labels: Mapping[str, Any]
    error: InputError | None = None
    spans: Mapping[str, str | None] = field(default_factory=dict)
    turns: tuple[tuple[str, str], ...] = ()
    system: str | None = None
    fault: InputError | None = None
    masks: tuple[Mapping[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"row {self.index} ({self.id!r})"


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
