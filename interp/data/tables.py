"""Tables: data with named columns that is read a range of rows at a time, above all that of the `datasets` package.

An indexed table is read in any order, a stream only forward. Pictures stay undecoded: of a `datasets.Dataset` the Arrow
table itself is read, and decoding is switched off for a stream with known features. The objects of the package are known
by what they offer; it is imported for files alone (parquet, WebDataset tars), which are streamed without a copy.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from interp.data.conversations import conversation_column, is_empty_conversation, with_turns
from interp.data.data import Data
from interp.data.mask_columns import MASKS, mask_column, with_masks
from interp.data.roles import Roles, check_unique_ids, column_of, find_roles, is_plain, plain
from interp.data.rows import Row, Rows, check_range, pictures_in
from interp.errors import InputError, shown
from interp.models.batches.images import images_in, is_url
from interp.models.batches.prompts import PLACEHOLDER

# The pictures of a row and its cells by column.
PicturesAndCells = tuple[Any, Mapping[str, Any]]
_PLAIN = r"(large_)?string|bool|null|u?int\d+|float\d+"


def is_dataset(data: Any) -> bool:
    """Whether this is a data set (or several splits of one) of the `datasets` package."""
    return hasattr(data, "column_names") and (isinstance(data, Mapping) or hasattr(data, "features"))


def rows_of_dataset(table: Any, data: Data) -> Rows:
    """The rows of a `datasets.Dataset` or `IterableDataset`.

    Raises `InputError` for a dict of splits, a data set without rows or with a transform of its own, ids that repeat.
    """
    if isinstance(table, Mapping):
        splits = ", ".join(map(str, table))
        raise InputError(f"data is a {type(table).__name__} with the splits {splits}: take one of them, data[...]")
    return _indexed(table, data) if hasattr(table, "__len__") else _streamed(table, data)


def rows_of_files(files: Sequence[Path], data: Data) -> Rows:
    """The rows of parquet files, of tars in WebDataset's format, or of a folder that `save_to_disk` wrote.

    In a tar the id of a row is its key, and its image the first of its pictures. Names of pictures in parquet files and tars
    are relative to the folder of the files, or to `root`; names outside it and URLs cannot be read. Parquet files and tars
    are streams: their ids are not checked for repeats.

    Raises `InputError` where the `datasets` package is missing, for files that it cannot read and for files without rows.
    """
    name = shown(str(files[0]))
    reader = "save_to_disk" if files[0].is_dir() else {".parquet": "parquet"}.get(files[0].suffix, "webdataset")
    try:
        import datasets
    except ImportError:
        raise InputError(f"{name} is read with the datasets package: pip install datasets") from None
    try:
        if reader == "save_to_disk":
            table = datasets.load_from_disk(str(files[0]))
        else:
            paths = [glob.escape(str(file)) for file in files]
            table = datasets.load_dataset(reader, data_files={"train": paths}, split="train", streaming=True)
        if reader == "webdataset":
            images = [column for column, kind in table.features.items() if type(kind).__name__ == "Image"]
            columns = {"id": "__key__", **dict(zip(["image"], images, strict=False)), **(data.columns or {})}
            data, table = replace(data, columns=columns), table.decode(False).remove_columns("__url__")
    except Exception as error:  # its readers raise errors of any type
        raise InputError(f"{name} cannot be read ({shown(error)}): expected the format of {reader}") from error
    if data.root is None and reader != "save_to_disk":
        data = replace(data, root=os.path.commonpath([file.absolute().parent for file in files]))
    rows = rows_of_dataset(table, data)
    if not isinstance(rows, StreamedRows):
        return rows
    readable = _readable(rows.rows, name)
    first = next(readable, None)
    if first is None:
        raise InputError("data is empty: expected at least one row")
    return StreamedRows(chain([first], readable), rows.roles)


def _readable(rows: Iterator[PicturesAndCells], name: str) -> Iterator[PicturesAndCells]:
    """The rows of a file, which is not trusted: it cannot make this machine open a URL."""
    try:
        for image, cells in rows:
            pictures = [_local(picture) for picture in images_in(image)]
            yield pictures if isinstance(image, list | tuple) or not pictures else pictures[0], cells
    except Exception as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} cannot be read to its end ({shown(error)}): expected whole files") from error


def _local(picture: Any) -> Any:
    if not is_url(picture):
        return picture
    return InputError(f"it names the picture {shown(picture['path'])}: expected the name of a file, and no URL")


def _indexed(table: Any, data: Data) -> Rows:
    if not len(table):
        raise InputError("data is empty: expected at least one row")
    if table.format["type"] == "custom":
        raise InputError("data has a transform, which would have to decode every picture: apply it with map() before")
    columns = _columns(table.features, data)
    # As Arrow a picture stays the path and bytes that the data set holds.
    cells = table.select_columns(columns.names).with_format("arrow")
    if columns.roles.id is not None and columns.roles.id in columns.names:
        parts = table.select_columns([columns.roles.id]).with_format("arrow").iter(10_000)
        ids = (columns.with_classes(row)[columns.roles.id] for part in parts for row in part.to_pylist())
        check_unique_ids(ids, data)

    def fetch(start: int, stop: int) -> Iterable[PicturesAndCells]:
        return map(columns.row, range(start, stop), cells[start:stop].to_pylist())

    return IndexedRows(len(table), fetch, columns.roles)


def _streamed(table: Any, data: Data) -> Rows:
    table = table.with_format(None)
    if table.features:
        columns = _columns(table.features, data)
        table = table.decode(False).select_columns(columns.names)
        return StreamedRows(map(columns.row, count(), table), columns.roles)
    return rows_of_stream(iter(table), data)


def rows_of_stream(rows: Iterator[Any], data: Data) -> Rows:
    """The rows of a stream of dicts. The first of them shows which columns it has; a later one may lack some of them."""
    ahead = list[Any]()
    for row in rows:
        ahead.append(row)
        # One that cannot be read says nothing of the columns, and an empty conversation nothing of its format.
        if isinstance(row, Mapping) and not is_empty_conversation(row):
            break
    if not ahead:
        raise InputError("data is empty: expected at least one row")
    dicts = [row for row in ahead if isinstance(row, Mapping)]
    if not dicts:
        raise InputError(f"none of {len(ahead)} rows of the data is a dict, the first is {shown(ahead[0])}")
    rows = chain(ahead, rows)
    turns = conversation_column(dicts[-1])
    first = with_turns(dicts[0], turns, "row 0")
    held = first.get(MASKS, [])
    # A row without masks says nothing of their column.
    masks = MASKS if isinstance(held, list) and not held else mask_column(first)
    known = [name for name, cell in first.items() if is_plain(plain(cell))]
    # Nor does a conversation without a picture.
    names = [*first] if turns is None else [*first, "image"]
    image = column_of("image", data, names, _default_pictures(first, known, data, turns))
    known = [name for name in known if name != image]
    roles = find_roles(data, list(first), known, image, turns, masks)
    columns = _Columns([], image, {}, data.folder(), roles, turns, dict.fromkeys(known))
    return StreamedRows(map(columns.row, count(), rows), roles)


def _default_pictures(names: Collection[str], plain_names: Collection[str], data: Data, turns: str | None) -> str:
    """Where pictures stand unless the user names the column.

    `images` may be anything in a table, how many there are or where they lie. It is taken for pictures where the text has
    places for them: in conversations, and in a prompt with one.
    """
    held = "images" in names and "image" not in names and "images" not in plain_names
    return "images" if held and (turns is not None or PLACEHOLDER in (data.prompt or "")) else "image"


def _columns(features: Mapping[str, Any], data: Data) -> _Columns:
    # Strings, numbers, bools and classes are plain; lists, structures, arrays and dates are not.
    plain_names = [
        name
        for name, feature in features.items()
        if type(feature).__name__ in ("Value", "ClassLabel") and re.fullmatch(_PLAIN, feature.dtype)
    ]
    turns = conversation_column(features)
    image = column_of("image", data, list(features), _default_pictures(features, plain_names, data, turns))
    of_turns = [] if turns is None else ["text", "answer"]
    known = [name for name in dict.fromkeys([*plain_names, *of_turns]) if name != image]
    classes = {name: feature.names for name, feature in features.items() if type(feature).__name__ == "ClassLabel"}
    roles = find_roles(data, list(features), known, image, turns, mask_column(features))
    names = list(dict.fromkeys(name for name in (image, *plain_names, turns, roles.masks) if name is not None))
    return _Columns(names, image, classes, data.folder(), roles, turns)


@dataclass(frozen=True)
class IndexedRows(Rows):
    """Rows that are read in any order: `fetch(start, stop)` gives their pictures and cells."""

    size: int | None
    fetch: Callable[[int, int], Iterable[PicturesAndCells]]
    roles: Roles

    def read(self, start: int, stop: int) -> list[Row]:
        check_range(start, stop)
        stop = min(stop, self.size or 0)
        if start >= stop:
            return []
        return [self.roles.row(index, *row) for index, row in enumerate(self.fetch(start, stop), start)]


class StreamedRows(Rows):
    """Rows that are read once and forward; rows before the start of a range are passed over."""

    size = None

    def __init__(self, rows: Iterator[PicturesAndCells], roles: Roles):
        self.rows, self.roles, self._next = rows, roles, 0

    def read(self, start: int, stop: int) -> list[Row]:
        check_range(start, stop)
        if start < self._next:
            raise InputError(
                f"row {start} of a stream that is at row {self._next}: a stream is only read forward, make it anew"
            )
        self._next += sum(1 for _ in islice(self.rows, start - self._next))
        rows = list(islice(self.rows, stop - start))
        first, self._next = self._next, self._next + len(rows)
        return [self.roles.row(index, *row) for index, row in enumerate(rows, first)]


@dataclass(frozen=True)
class _Columns:
    """The columns that are read of a table, the one of its pictures, the names of classes, and its roles.

    `turns` is the column of conversations; `empty` has the cells of columns that a row may lack.
    """

    names: list[str]
    image: str | None
    classes: Mapping[str, Sequence[str]]
    root: Path | None
    roles: Roles
    turns: str | None
    empty: Mapping[str, Any] = field(default_factory=dict)

    def row(self, index: int, cells: Any) -> PicturesAndCells:
        """The pictures and the cells of one row; its text is the error of one that has no cells."""
        if not isinstance(cells, Mapping):
            told = isinstance(cells, InputError)  # why it cannot be read
            error = cells if told else InputError(f"it is {shown(cells)}: expected a dict as the rows before")
            return None, {**self.empty, "text": error}
        cells = self.with_classes(cells)
        cells = {**self.empty, **with_turns(cells, self.turns, "it")}
        cells = with_masks(cells, self.roles.masks, self.root, "it")
        image = None if self.image is None else cells.get(self.image)
        return image if self.root is None else pictures_in(self.root, image, "it"), cells

    def with_classes(self, cells: Mapping[str, Any]) -> Mapping[str, Any]:
        """The cells with the names of classes for their numbers; an unknown class is -1 and becomes None."""
        named = dict(cells)
        for column in self.classes.keys() & named.keys():
            number = named[column]
            named[column] = None if number is None or number < 0 else self.classes[column][number]
        return named
