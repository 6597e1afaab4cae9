"""Sources: any data as rows that are read a range at a time.

=========================================== ===========================================================================
a `Batch`, or a list of them                taken as they are
a list of (image, text)                     either may be None; several images are a nested list
a list of texts                             rows without images
a list of dicts                             a row each, with named columns; also LLaVA's conversations
anything with `pairs()`                     such pairs, with `ids` (a name a row) and `labels` (name -> one a row) where
                                            it has them, as `interp.toy.scenes(...)` and its `.captions()` have
a data set of the `datasets` package        in memory or streamed, see `interp.data.tables`
the path of a folder or a file              see `interp.data.folders`
=========================================== ===========================================================================

Pairs have the columns text and, where the data has them, id and its labels; a text that is None is a bare ``<image>``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from interp.data.data import Data, as_data
from interp.data.folders import rows_of_path
from interp.data.records import Record, rows_of_records
from interp.data.roles import check_unique_ids, find_roles, is_plain, plain
from interp.data.rows import PICTURES, Batches, Rows, pictures_in, pictures_of
from interp.data.tables import IndexedRows, PicturesAndCells, is_dataset, rows_of_dataset
from interp.errors import InputError, InputTypeError, shown
from interp.models import Batch
from interp.models.batches.prompts import PLACEHOLDER


def source_of(data: Any, columns: Mapping[str, str | None] | None = None, prompt: str | None = None) -> Rows | Batches:
    """Any data as a source of rows; only what shows that the whole is sound is read.

    >>> rows = source_of([(None, "a red 3"), (None, "a blue 7")], prompt="see {text} .")
    >>> rows.size, rows.read(1, 2)[0].text
    (2, 'see a blue 7 .')

    `data` is a `Data` or what it is made from; `columns` and `prompt` are as there.

    Raises `InputTypeError` for what is no data, `InputError` for data without rows, a role or field that names no column,
    and ids that repeat.
    """
    data = as_data(data, columns=columns, prompt=prompt)
    source = data.source
    if isinstance(source, str | os.PathLike):
        return rows_of_path(data)
    if is_dataset(source):
        return rows_of_dataset(source, data)
    if isinstance(source, Batch):
        source = [source]
    pairs = source.pairs() if hasattr(source, "pairs") else source
    if isinstance(pairs, str | bytes | Mapping) or not isinstance(pairs, Sequence):
        raise InputTypeError(
            f"data is a {type(source).__name__}: expected a list of Batch, a list of (image, text), of texts or of dicts, a "
            "data set of scenes or of the datasets package, or the path of a folder or a file"
        )
    if not pairs:
        raise InputError("data is empty: expected at least one row")
    if all(isinstance(item, Batch) for item in pairs):
        if data.columns or data.prompt is not None or data.root is not None:
            raise InputError("data is made of batches: leave columns= and prompt= out, and root=")
        return Batches(tuple(pairs))
    if all(isinstance(item, Mapping) for item in pairs):
        return rows_of_records([Record(cells, None, number) for number, cells in enumerate(pairs)], data)
    return _rows_of_pairs(pairs, getattr(source, "ids", None), getattr(source, "labels", None), data)


def _rows_of_pairs(pairs: Sequence[Any], ids: Any, labels: Any, data: Data) -> Rows:
    if isinstance(pairs, list | tuple):  # another sequence may make each item only when it is read
        for index, item in enumerate(pairs):
            _pair(item, index)
    if data.columns and "image" in data.columns:
        column = data.columns["image"]
        raise InputError(f"columns says {column!r} for image: in (image, text) that is the first, leave it out")
    known = {name: _one_a_row(f"labels[{name!r}]", cells, len(pairs)) for name, cells in dict(labels or {}).items()}
    known = {name: cells for name, cells in known.items() if all(map(is_plain, cells))}
    if ids is not None:
        known["id"] = _one_a_row("ids", ids, len(pairs))
    roles = find_roles(data, ["text", *known], ["text", *known], image="image")
    if roles.id is not None:
        texts = (_pair(item, index)[1] for index, item in enumerate(pairs))
        check_unique_ids(texts if roles.id == "text" else known[roles.id])
    root = data.folder()

    def row(index: int) -> PicturesAndCells:
        image, text = _pair(pairs[index], index)
        image = image if root is None else pictures_in(root, image, "it")
        bare = " ".join([PLACEHOLDER] * len(pictures_of(image)))
        return image, {**{name: cells[index] for name, cells in known.items()}, "text": bare if text is None else text}

    return IndexedRows(len(pairs), lambda start, stop: map(row, range(start, stop)), roles)


def _pair(item: Any, index: int) -> tuple[Any, str | None]:
    """The image and the text of an item, which is a pair of them or a text alone."""
    row = f"row {index} of the data"
    if isinstance(item, str):
        if len(item.split()) == 1 and Path(item).suffix.lower() in PICTURES:
            raise InputError(f"{row} is {shown(item)}, the name of a picture: expected (image, text) or a text")
        return None, item
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
