"""Sources: any data as rows that are read a range at a time.

=========================================== ===========================================================================
a `Batch`, or a list of them                taken as they are
a list of (image, text)                     either may be None; several images are a nested list
a list of texts                             rows without images
a list of PIL images or of `pathlib` paths  rows of a bare ``<image>``
a list of dicts                             a row each, with named columns; also LLaVA's conversations
a pandas or polars frame, an Arrow table    a row each, with its columns
an iterator, or a data set of torch         such pairs, texts or dicts, read once and in their order
anything with `pairs()`                     such pairs, with `ids` (a name a row) and `labels` (name -> one a row) where
                                            it has them, as `interp.toy.scenes(...)` and its `.captions()` have
a data set of the `datasets` package        in memory or streamed, see `interp.data.tables`
the path of a folder or a file              see `interp.data.folders`
=========================================== ===========================================================================

Pairs have the columns text and, where the data has them, id and its labels; a text that is None is a bare ``<image>``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image

from interp.data.data import Data, as_data
from interp.data.folders import rows_of_path
from interp.data.records import Record, rows_of_records
from interp.data.roles import check_unique_ids, find_roles, is_plain, plain
from interp.data.rows import Batches, Rows, pictures_in
from interp.data.tables import IndexedRows, PicturesAndCells, StreamedRows, is_dataset, rows_of_dataset, rows_of_stream
from interp.errors import InputError, InputTypeError, is_out_of_memory, shown
from interp.models import Batch
from interp.models.batches.images import PICTURES, images_in
from interp.models.batches.prompts import PLACEHOLDER


def source_of(data: Any, columns: Mapping[str, str | None] | None = None, prompt: str | None = None) -> Rows | Batches:
    """Any data as a source of rows; only what shows that the whole is sound is read.

    >>> rows = source_of([(None, "a red 3"), (None, "a blue 7")], prompt="see {text} .")
    >>> rows.size, rows.read(1, 2)[0].text
    (2, 'see a blue 7 .')

    `data` is a `Data` or what it is made from; `columns` and `prompt` are as there.

    Raises `InputTypeError` for anything that is not data, `InputError` for data without rows, a role or field that names no
    column, and ids that repeat.
    """
    data = as_data(data, columns=columns, prompt=prompt)
    source = data.source
    if isinstance(source, str | os.PathLike):
        return rows_of_path(data)
    if is_dataset(source):
        return rows_of_dataset(source, data)
    if isinstance(source, Batch):
        source = [source]
    pairs = _items_of(source)
    if isinstance(pairs, Iterator):
        return _rows_of_iterator(pairs, data)
    if not pairs:
        raise InputError("data is empty: expected at least one row")
    if all(isinstance(item, Batch) for item in pairs):
        if data.columns or data.prompt is not None or data.root is not None or data.spans:
            raise InputError("data is made of batches: leave columns= and prompt= out, and root= and spans=")
        return Batches(tuple(pairs))
    if data.on_error == "skip" and any(isinstance(item, Mapping) for item in pairs):
        pairs = [item if isinstance(item, Mapping) else {} for item in pairs]
    if all(isinstance(item, Mapping) for item in pairs):
        return rows_of_records([Record(cells, None, number) for number, cells in enumerate(pairs)], data)
    return _rows_of_pairs(pairs, getattr(source, "ids", None), getattr(source, "labels", None), data)


def _items_of(source: Any) -> Sequence[Any] | Iterator[Any]:
    """The items of a source in memory, or an iterator of them where they are made one by one."""
    if hasattr(source, "pairs"):
        return source.pairs()
    if hasattr(source, "iloc") and hasattr(source, "columns"):  # pandas, where an empty cell is a NaN or the like
        frame = source.rename(columns=str).astype(object)
        return frame.where(frame.notna(), None).to_dict("records")
    if hasattr(source, "to_pylist") or hasattr(source, "to_dicts"):  # tables of Arrow, frames of polars
        return source.to_pylist() if hasattr(source, "to_pylist") else source.to_dicts()
    if getattr(source, "ndim", None) == 1 and hasattr(source, "tolist"):
        return source.tolist()
    if isinstance(source, Iterator) or (isinstance(source, Sequence) and not isinstance(source, str | bytes)):
        return source
    indexed = hasattr(source, "__getitem__") and hasattr(source, "__len__") and not hasattr(source, "ndim")
    if indexed and not isinstance(source, str | bytes | bytearray | Mapping):
        # As torch's data sets are: each item may be made only when it is read.
        return (_item(source, index) for index in range(len(source)))
    raise InputTypeError(
        f"data is a {type(source).__name__}: expected a list of Batch, a list of (image, text), of texts or of dicts, a "
        "data set of scenes or of the datasets package, or the path of a folder or a file"
    )


def _rows_of_iterator(items: Iterator[Any], data: Data) -> Rows | Batches:
    """Items that are read once and in their order: pairs, texts or dicts as the first is, or batches."""
    ahead = list[Any]()
    for item in items:
        ahead.append(item)
        if not isinstance(item, InputError):
            break
    first, items = ahead[-1] if ahead else None, chain(ahead, items)
    if isinstance(first, Batch):
        return source_of(replace(data, source=list(items)))
    if first is None or isinstance(first, Mapping):
        return rows_of_stream(items, data)
    if isinstance(first, InputError):
        raise InputError(f"none of {len(ahead)} rows of the data can be read, of the first {ahead[0]}")
    roles = find_roles(data, ["text"], ["text"], image="image")
    root = data.folder()
    return StreamedRows((_pictures_and_cells(item, {}, root) for item in items), roles)


def _item(source: Any, index: int) -> Any:
    """An item of a data set that makes it when it is read, or an `InputError` in its place."""
    try:
        return source[index]
    except Exception as error:  # the data set's own, of any type
        if is_out_of_memory(error):
            raise
        return InputError(f"it cannot be read ({shown(error)}): expected an item of the data set")


def _pictures_and_cells(item: Any, labels: Mapping[str, Any], root: Path | None) -> PicturesAndCells:
    """The pictures and the cells of a pair or text; the text is the error of what is neither."""
    try:
        image, text = _pair(item, "it")
    except InputError as error:
        return None, {**labels, "text": error}
    image = image if root is None else pictures_in(root, image, "it")
    bare = " ".join([PLACEHOLDER] * len(images_in(image)))
    return image, {**labels, "text": bare if text is None else text}


def _rows_of_pairs(pairs: Sequence[Any], ids: Any, labels: Any, data: Data) -> Rows:
    # A sequence of another kind may make each item only when it is read.
    if isinstance(pairs, list | tuple) and data.on_error == "raise":
        for index, item in enumerate(pairs):
            _pair(item, f"row {index} of the data")
    if data.columns and "image" in data.columns:
        column = data.columns["image"]
        raise InputError(f"columns says {column!r} for image: in (image, text) that is the first, leave it out")
    known = {name: _one_a_row(f"labels[{name!r}]", cells, len(pairs)) for name, cells in dict(labels or {}).items()}
    known = {name: cells for name, cells in known.items() if all(map(is_plain, cells))}
    if ids is not None:
        known["id"] = _one_a_row("ids", ids, len(pairs))
    roles = find_roles(data, ["text", *known], ["text", *known], image="image")
    root = data.folder()

    def row(index: int) -> PicturesAndCells:
        return _pictures_and_cells(pairs[index], {name: cells[index] for name, cells in known.items()}, root)

    if roles.id is not None:
        texts = (row(index)[1]["text"] for index in range(len(pairs)))
        texts = (None if isinstance(text, InputError) else text for text in texts)
        check_unique_ids(texts if roles.id == "text" else known[roles.id], data)
    return IndexedRows(len(pairs), lambda start, stop: map(row, range(start, stop)), roles)


def _pair(item: Any, row: str) -> tuple[Any, str | None]:
    """The image and the text of an item, which is a pair of them or one of the two; messages begin with what they call it."""
    if isinstance(item, str):
        if len(item.split()) == 1 and Path(item).suffix.lower() in PICTURES:
            raise InputError(f"{row} is {shown(item)}, the name of a picture: expected (image, text) or a text")
        return None, item
    if isinstance(item, Image.Image | os.PathLike):
        return item, None
    if isinstance(item, InputError):  # why it cannot be read
        raise item
    if not isinstance(item, tuple) or len(item) != 2 or (item[0] is None and item[1] is None):
        raise InputError(f"{row} is {shown(item)}: expected (image, text), at most one of them None, or a text")
    if not isinstance(item[1], str | None):
        raise InputError(f"{row} has the text {shown(item[1])}: expected a string or None")
    return item


def _one_a_row(name: str, cells: Any, size: int) -> list[Any]:
    values = [plain(cell) for cell in cells]
    if len(values) != size:
        raise InputError(f"the data has {size} rows and {len(values)} {name}: expected one a row")
    return values
