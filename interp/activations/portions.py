"""Windows: in what portions a data set goes through the model, so that the same data makes the same bytes.

Rows are taken in windows of a few batches. Within a window they are sorted by length and cut into batches, which wastes
little on padding; the results are put back into the order of the data. A shard is whole windows. Which rows share a
batch so depends on the data, its order and `batch_size`, and not on where a run was stopped or on how many processes
there are. Batches in hand are taken as they are.
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

from interp.activations.shards import add_hashes, row_hash
from interp.data.sources import Batches, Row, Rows, open_row
from interp.errors import InputError
from interp.models import VLM, Batch
from interp.provenance import fingerprint

# A window is this many batches.
WINDOW = 4
# A shard of pooled rows is about so many rows: 70 MB of a model of 7 B parameters. It is one window where every
# position is kept.
SHARD_ROWS = 256

T = TypeVar("T")


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
    """What goes into one shard: rows of the data not yet opened, or batches in hand."""

    first: int
    ids: tuple[str, ...]
    labels: tuple[dict[str, Any], ...]
    rows: tuple[Row, ...] = ()
    batches: tuple[Batch, ...] = ()

    @property
    def source(self) -> str:
        """A hash by which changed data is noticed: of the rows' ids, texts and labels, or of the batches' inputs and spans."""
        if self.batches:
            named = [{name: mask.tolist() for name, mask in batch.positions.spans.items()} for batch in self.batches]
            return hashlib.sha256(json.dumps([fingerprint(*self.batches), named]).encode()).hexdigest()
        said = [[row.id, row.text, dict(row.labels)] for row in self.rows]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def shard_rows(batch_size: int, pooled: bool, wanted: int | None) -> int:
    """How many rows a shard has: whole windows."""
    window = WINDOW * batch_size
    if wanted is None:
        return max(window, SHARD_ROWS // window * window) if pooled else window
    return -(-wanted // window) * window


def portions(source: Rows | Batches, size: int) -> Iterator[Callable[[], Portion | None]]:
    """The portions of a data set, each read when it is called for; it gives None where the data has ended."""
    if isinstance(source, Batches):
        return (partial(_of_batches, source, *taken) for taken in _grouped(source.batches, size))
    counts = itertools.count() if source.size is None else range(-(-source.size // size))
    return (partial(_of_rows, source, index * size, (index + 1) * size) for index in counts)


def _of_rows(source: Rows, start: int, stop: int) -> Portion | None:
    rows = tuple(source.read(start, stop))
    if not rows:
        return None
    return Portion(start, tuple(row.id for row in rows), tuple(dict(row.labels) for row in rows), rows)


def _of_batches(source: Batches, first: int, batches: tuple[Batch, ...]) -> Portion:
    ids = tuple(map(str, range(first, first + sum(len(batch) for batch in batches))))
    return Portion(first, ids, tuple({} for _ in ids), batches=batches)


def _grouped(batches: Sequence[Batch], size: int) -> Iterator[tuple[int, tuple[Batch, ...]]]:
    """Batches in hand by shards: windows of them until there are as many rows."""
    first, held = 0, list[Batch]()
    for start in range(0, len(batches), WINDOW):
        held += batches[start : start + WINDOW]
        rows = sum(len(batch) for batch in held)
        if rows >= size or start + WINDOW >= len(batches):
            yield first, tuple(held)
            first, held = first + rows, []


def pieces(
    vlm: VLM, portion: Portion, batch_size: int, chat: bool, skip: Callable[[Row, InputError], None] | None
) -> Iterator[tuple[Piece, str]]:
    """The batches of a portion, each with a hash of its data; a row that cannot be read is handed to `skip`.

    Without `skip` such a row is an error.
    """
    if portion.batches:
        number = portion.first
        for batch in portion.batches:
            yield Piece(batch, tuple(range(number, number + len(batch)))), row_hash(number, fingerprint(batch).encode())
            number += len(batch)
        return
    window = WINDOW * batch_size
    for start in range(0, len(portion.rows), window):
        opened = []
        for row in portion.rows[start : start + window]:
            try:
                opened.append((row, open_row(row)))
            except InputError as error:
                if skip is None:
                    raise
                skip(row, error)
        opened.sort(key=lambda pair: vlm.length_of(pair[0].text, pair[1]))
        for at in range(0, len(opened), batch_size):
            yield _prepared(vlm, opened[at : at + batch_size], chat)


def _prepared(vlm: VLM, opened: Sequence[tuple[Row, list[Image.Image]]], chat: bool) -> tuple[Piece, str]:
    texts, images = [row.text for row, _ in opened], [pictures for _, pictures in opened]
    numbers = tuple(row.index for row, _ in opened)
    batch = vlm.prepare(texts=texts, images=images if any(images) else None, chat=chat)
    hashes = []
    for row, pictures in opened:
        seen = row.text.encode() + b"".join(str(each.size).encode() + each.tobytes() for each in pictures)
        hashes.append(row_hash(row.index, seen))
    return Piece(batch, numbers), add_hashes(hashes)


# When memory runs out ----------------------------------------------------------------------------------------------------


class Halving:
    """Runs batches, and halves them from the moment on at which one did not fit in memory.

    `limit` is the number of rows that fits, None as long as all did.
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
                if not _is_out_of_memory(error):
                    raise
                said = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
                self._halve(part, said)
                waiting = [smaller for each in (part, *waiting) for smaller in self._cut(each)]
        return results

    def _cut(self, piece: Piece) -> list[Piece]:
        size = self.limit or len(piece.numbers)
        if size >= len(piece.numbers):
            return [piece]
        rows = range(len(piece.numbers))
        return [piece.part(rows[at : at + size]) for at in rows[::size]]

    def _halve(self, piece: Piece, said: str) -> None:
        rows = len(piece.numbers)
        if rows == 1:
            raise InputError(
                f"row {piece.numbers[0]} alone does not fit in memory ({said}): capture fewer sites or positions, or on a "
                "larger device"
            )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self.limit is None:
            self._warn(f"{rows} rows do not fit in memory ({said}): the run goes on with smaller batches")
        self.limit = -(-rows // 2)


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
