"""Records: rows of named cells, as text files of tables and lists of dicts hold them.

A ``.jsonl`` file has one JSON object on each line, a ``.csv`` file one row of cells; a list in memory has one dict a row.
All are held in memory, and their pictures are not opened. The content of a file is not trusted: the pictures that it names
are paths relative to the file or to `root`, and a name that leads out of that folder is refused.

A csv has no types. A column of it becomes numbers where every cell is written as one (``3``, ``-0.5``, ``1e-05``; not
``007`` or ``1,5``) and stays text otherwise; an empty cell is None.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from interp.data.annotations import read_json
from interp.data.conversations import conversation_column, with_turns
from interp.data.data import Data
from interp.data.mask_columns import mask_column, with_masks
from interp.data.roles import check_unique_ids, column_of, find_roles, is_plain, plain
from interp.data.rows import Rows, pictures_in
from interp.data.tables import IndexedRows
from interp.errors import InputError, shown
from interp.models.batches.images import images_in

# Where pictures stand unless the user names the column; in the metadata of a folder, the last two alone.
_PICTURES = ("image", "images", "file_name", "file_names")
# A longer number is a name: a float would round it.
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")


def rows_of_records(records: Sequence[Record], data: Data, metadata: bool = False) -> Rows:
    """The rows of records; of the `metadata` of a folder, each of pictures.

    Raises `InputError` for names of pictures that lead out of their folder, unless rows that cannot be read are skipped, and
    for what `interp.data.roles` refuses.
    """
    turns = next(filter(None, (conversation_column(record.cells) for record in records)), None)
    masks = next(filter(None, (mask_column(record.cells) for record in records)), None)
    names = [] if turns is None else ["text", "answer"]
    names = list(dict.fromkeys(chain(names, *(record.cells for record in records))))
    default = next((name for name in _PICTURES[2 if metadata else 0 :] if name in names), None)
    image = column_of("image", data, names, default)
    if metadata and image is None and "image" not in (data.columns or {}):
        raise InputError(
            f"{shown(str(records[0].file))} has the columns {', '.join(names)}: expected file_name, or say which it is with "
            'columns={"image": ...}'
        )
    known = [name for name in names if name != image and all(is_plain(plain(r.cells.get(name))) for r in records)]
    in_csv = records[0].file is not None and records[0].file.suffix == ".csv"
    roles = find_roles(data, names, known, image, turns, masks)
    roles = replace(roles, kinds=_kinds(records, known)) if in_csv else roles
    root, empty = data.folder(), dict.fromkeys(known)

    def folder_of(record: Record) -> Path | None:
        return record.file.parent if root is None and record.file is not None else root

    def cells_of(record: Record) -> Mapping[str, Any]:
        return {**empty, **with_turns(record.cells, turns, record)}

    def images_of(record: Record) -> Any:
        images = None if image is None else record.cells.get(image)
        folder = folder_of(record)
        for name in () if record.file is None else images_in(images):
            if not isinstance(name, str) or not name:
                return InputError(f"{record} names the picture {shown(name)}: expected the name of a file")
        return images if folder is None else pictures_in(folder, images, record)

    if data.on_error == "raise":  # before a model runs on the rows that come first
        for error in (picture for record in records for picture in images_in(images_of(record))):
            if isinstance(error, InputError):
                raise error
    if roles.id is not None:
        ids = ((record.cells if roles.id in record.cells else cells_of(record)).get(roles.id) for record in records)
        check_unique_ids(ids, data)

    def fetch(start: int, stop: int) -> Iterator[tuple[Any, Mapping[str, Any]]]:
        for record in records[start:stop]:
            yield images_of(record), with_masks(cells_of(record), roles.masks, folder_of(record), record)

    return IndexedRows(len(records), fetch, roles)


def read_records(files: Sequence[Path]) -> list[Record]:
    """The records of ``.json``, ``.jsonl`` or ``.csv`` files. Raises `InputError` for one that cannot be read."""
    records = [record for file in files for record in _read_file(file)]
    if not records:
        raise InputError(f"{shown(str(files[0]))} has no rows: expected one or more")
    return records


def _read_file(file: Path) -> Iterator[Record]:
    if file.suffix == ".json":
        yield from (Record(cells, file, number) for number, cells in enumerate(read_json(file)))
        return
    read = _read_csv if file.suffix == ".csv" else _read_jsonl
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            for number, cells in read(lines):
                # Every line of JSON repeats the names; interned they take no memory of a row.
                yield Record({sys.intern(name): cell for name, cell in cells.items()}, file, number)
    except InputError as error:
        raise InputError(f"{shown(str(file))}: {error}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{shown(str(file))} cannot be read ({shown(error)}): expected a table in UTF-8") from error


def _read_jsonl(lines: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError):
            cells = None
        if not isinstance(cells, dict):
            raise InputError(f'line {number} is {shown(line)}: expected one JSON object, as {{"file_name": "1.png"}}')
        yield number, cells


def _read_csv(lines: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    table = csv.reader(lines, strict=True)
    header = next(table, [])
    if len(set(header)) != len(header):
        raise InputError(f"line 1 is {shown(header)}: expected names of columns, each once")
    for cells in table:
        if not cells:
            continue
        if len(cells) != len(header):
            raise InputError(
                f"line {table.line_num} has {len(cells)} cells and the first line {len(header)}: expected as many, put cells "
                "with commas in quotes"
            )
        yield table.line_num, {name: cell or None for name, cell in zip(header, cells, strict=True)}


def _kinds(records: Sequence[Record], names: Sequence[str]) -> dict[str, Callable[[str], Any]]:
    """The type of each column of text that has a number in every cell that is not empty."""
    kinds: dict[str, Callable[[str], Any]] = {}
    for name in names:
        cells = [record.cells[name] for record in records if record.cells.get(name) is not None]
        if cells and all(map(_NUMBER.fullmatch, cells)):
            kinds[name] = int if all(map(_WHOLE.fullmatch, cells)) else float
    return kinds


@dataclass(frozen=True, slots=True)
class Record:
    """The cells of one row by column, the file that they are from, and their line or place in it."""

    cells: Mapping[str, Any]
    file: Path | None
    number: int

    def __str__(self) -> str:
        """What messages call it. A manifest may be published, so it names no folders."""
        if self.file is None:
            return f"row {self.number} of the data"
        return f"{'item' if self.file.suffix == '.json' else 'line'} {self.number} of {shown(self.file.name)}"
