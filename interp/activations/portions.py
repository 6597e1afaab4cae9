"""Portions: how a data set goes through the model, so that the same data makes the same bytes.

Rows are taken in windows of a few batches. Within a window they are sorted by length and cut into batches, which wastes
little on padding; the results are put back into the order of the data. A shard is whole windows. So which rows share a
batch depends on the data, its order and `batch_size`, and not on where a run was stopped or on how many processes share
it. Batches in memory stay as they are.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from PIL import Image

from interp.activations.shards import Contents, content_hash, row_hash
from interp.data.batches import prepare_rows
from interp.data.rows import Batches, Row, Rows, Skip, open_rows
from interp.errors import InputError, is_out_of_memory
from interp.models import VLM, Batch
from interp.provenance import fingerprint

# A window is this many batches.
WINDOW = 4
# A shard of pooled rows has about so many rows: 70 MB of a model of 7 B parameters. Where every position is an example
# it has one window.
SHARD_ROWS = 256
T = TypeVar("T")
# Portions that are read when they are called; None is the end of the data.
Work = Iterator["Callable[[], Portion | None]"]


def shard_rows(batch_size: int, pooled: bool, least: int | None) -> int:
    """How many rows a shard has: whole windows, with `least` rows or more."""
    window = WINDOW * batch_size
    if least is None:
        return max(window, SHARD_ROWS // window * window) if pooled else window
    return -(-least // window) * window


def portions(source: Rows | Batches, size: int) -> Work:
    """The portions of a data set with `size` rows each, unread."""
    if isinstance(source, Batches):
        return (partial(_of_batches, *group) for group in _groups(source.batches, size))
    counts = itertools.count() if source.size is None else range(-(-source.size // size))
    return (partial(_of_rows, source, index * size, (index + 1) * size) for index in counts)


def read_portions(work: Work, rank: int = 0, processes: int = 1) -> Iterator[tuple[int, Portion]]:
    """The portions of process `rank` with their numbers, read until the data ends; those of others stay unread."""
    for index, read in enumerate(work):
        if index % processes == rank:
            portion = read()
            if portion is None:
                return
            yield index, portion


def _of_rows(source: Rows, start: int, stop: int) -> Portion | None:
    rows = tuple(source.read(start, stop))
    if not rows:
        return None
    return Portion(start, tuple(row.id for row in rows), tuple(dict(row.labels) for row in rows), rows)


def _of_batches(first: int, batches: tuple[Batch, ...]) -> Portion:
    ids = tuple(map(str, range(first, first + sum(len(batch) for batch in batches))))
    return Portion(first, ids, tuple({} for _ in ids), batches=batches)


def _groups(batches: Sequence[Batch], size: int) -> Iterator[tuple[int, tuple[Batch, ...]]]:
    """Batches by shards, each with the number of its first row: windows of them until they have `size` rows."""
    first, group = 0, list[Batch]()
    for start in range(0, len(batches), WINDOW):
        group += batches[start : start + WINDOW]
        rows = sum(len(batch) for batch in group)
        if rows >= size or start + WINDOW >= len(batches):
            yield first, tuple(group)
            first, group = first + rows, []


def pieces(
    vlm: VLM, portion: Portion, batch_size: int, chat: bool, skip: Skip | None
) -> Iterator[tuple[Piece, dict[int, str], dict[int, Contents]]]:
    """The batches of a portion, each with a hash of the data of each row and with the rows' contents; a row that cannot be
    used goes to `skip`.

    Without `skip` such a row is an error. A batch in memory has one hash, under the number of its first row.
    """
    if portion.batches:
        number = portion.first
        for each in portion.batches:
            numbers = tuple(range(number, number + len(each)))
            contents = dict(zip(numbers, _contents_of(each), strict=True))
            yield Piece(each, numbers), {number: row_hash(number, fingerprint(each).encode())}, contents
            number += len(each)
        return
    window = WINDOW * batch_size
    for start in range(0, len(portion.rows), window):
        opened = open_rows(portion.rows[start : start + window], skip)
        opened.sort(key=lambda pair: vlm.length_of(pair[0].text, pair[1]))
        for first in range(0, len(opened), batch_size):
            batch, rows = prepare_rows(vlm, opened[first : first + batch_size], chat, skip)
            if batch is not None:
                numbers = tuple(row.index for row, _ in rows)
                raw = {row.index: (row.text.encode(), *map(_bytes_of, pictures)) for row, pictures in rows}
                hashes = {number: row_hash(number, b"".join(parts)) for number, parts in raw.items()}
                yield Piece(batch, numbers), hashes, {number: _contents(*parts) for number, parts in raw.items()}


def _bytes_of(picture: Image.Image) -> bytes:
    return str(picture.size).encode() + picture.tobytes()


def _contents(text: bytes, *pictures: bytes) -> Contents:
    """What says that two rows are about one thing: their pictures, or the text of a row without any."""
    return tuple(map(content_hash, pictures or (text,)))


def _contents_of(batch: Batch) -> list[Contents]:
    """The contents of each row of a batch; nothing is known of pictures that came as an encoding."""
    if batch.texts:
        rows = zip(batch.texts, batch.images or [()] * len(batch), strict=True)
        return [_contents(text.encode(), *map(_bytes_of, pictures)) for text, pictures in rows]
    if batch.has_images or "input_ids" not in batch.inputs:
        return [()] * len(batch)
    real = zip(batch.inputs["input_ids"], batch.positions["all"], strict=True)
    return [_contents(repr(ids[mask].tolist()).encode()) for ids, mask in real]


# When memory runs out ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A batch and the numbers of its rows in the data."""

    batch: Batch
    numbers: tuple[int, ...]

    def part(self, rows: Sequence[int]) -> Piece:
        """These rows of it."""
        return Piece(self.batch.part(rows), tuple(self.numbers[row] for row in rows))


@dataclass(frozen=True)
class Portion:
    """What goes into one shard: unopened rows of the data, or batches."""

    first: int
    ids: tuple[str, ...]
    labels: tuple[dict[str, Any], ...]
    rows: tuple[Row, ...] = ()
    batches: tuple[Batch, ...] = ()

    def row(self, number: int) -> Row:
        """The row with this number in the data; one of a batch in memory has no name and no text of its own."""
        return self.rows[number - self.first] if self.rows else Row(number, str(number), None, "", {})

    @property
    def source(self) -> str:
        """A hash that shows changed data: of the rows' ids, texts and labels, or of the batches' inputs and spans."""
        content: list[Any] = [[row.id, row.text, dict(row.labels)] for row in self.rows]
        if self.batches:
            spans = [{name: mask.tolist() for name, mask in batch.positions.spans.items()} for batch in self.batches]
            content = [fingerprint(*self.batches), spans]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class Halving:
    """Runs batches, and halves all of them after one did not fit in memory.

    `limit` is the number of rows that fits; None while every batch has fitted.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self.limit: int | None = None
        self._warn = warn

    def run(self, piece: Piece, function: Callable[[Piece], T]) -> list[T]:
        """`function` of the piece, or of its parts in their order. Raises `InputError` where one row does not fit."""
        results: list[T] = []
        waiting = self._cut(piece)
        while waiting:
            part = waiting.pop(0)
            try:
                results.append(function(part))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                text = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                self._halve(part, text)
                waiting = [smaller for each in (part, *waiting) for smaller in self._cut(each)]
        return results

    def _cut(self, piece: Piece) -> list[Piece]:
        size = self.limit or len(piece.numbers)
        if size >= len(piece.numbers):
            return [piece]
        rows = range(len(piece.numbers))
        return [piece.part(rows[first : first + size]) for first in rows[::size]]

    def _halve(self, piece: Piece, reason: str) -> None:
        rows = len(piece.numbers)
        if rows == 1:
            raise InputError(
                f"row {piece.numbers[0]} alone does not fit in memory ({reason}): capture fewer sites or positions, or on a "
                "larger device"
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.limit is None:
            self._warn(f"{rows} rows do not fit in memory ({reason}): the run goes on with smaller batches")
        self.limit = -(-rows // 2)
