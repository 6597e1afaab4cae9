"""Data, wherever it is taken: any kind of it becomes a source of rows that is read a stretch at a time.

=========================================== ===========================================================================
a `Batch`, or a list of them                taken as they are
a list of (image, text)                     either may be None; several images are a nested list
anything with `pairs()`                     such pairs, with `ids` (a name a row) and `labels` (name -> one a row) where
                                            it has them, as `interp.toy.scenes(...)` and its `.captions()` have
a data set of the `datasets` package        at hand or streamed, see `interp.data.tables`
the path of a folder                        of pictures, with or without a table, see `interp.data.folders`
=========================================== ===========================================================================

Pairs have the columns text and, where the data has them, id and its labels; a text that is None is a bare ``<image>``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from interp.data.folders import rows_of_folder
from interp.data.roles import check_ids, find_roles, is_plain, plain
from interp.data.rows import Batches, Row, Rows, open_row, pictures_of
from interp.data.tables import Record, Table, is_dataset, rows_of_dataset
from interp.errors import InputError, InputTypeError, shown
from interp.models import Batch
from interp.models.batches.prompts import PLACEHOLDER

__all__ = ["Batches", "Row", "Rows", "open_row", "source_of"]


def source_of(data: Any, columns: Mapping[str, str] | None = None, prompt: str | None = None) -> Rows | Batches:
    """Any data as a source of rows, of which none is read further than to know that the whole is sound.

    `columns` says which of the data's columns play the roles image, text, id, label and group; a role it leaves out is
    played by the column of that name. `prompt` writes the text of every row, with columns in braces: ``"<image> {text}"``.

    Raises `InputTypeError` for what is no data, `InputError` for data without rows, a role or field that names no column,
    and ids that repeat.

    >>> rows = source_of([(None, "a red 3"), (None, "a blue 7")], prompt="see {text} .")
    >>> rows.size, rows.read(1, 2)[0].text
    (2, 'see a blue 7 .')
    """
    columns = dict(columns or {})
    if isinstance(data, str | os.PathLike):
        return rows_of_folder(data, columns, prompt)
    if is_dataset(data):
        return rows_of_dataset(data, columns, prompt)
    if isinstance(data, Batch):
        data = [data]
    pairs = data.pairs() if hasattr(data, "pairs") else data
    if isinstance(pairs, str | bytes | Mapping) or not isinstance(pairs, Sequence):
        raise InputTypeError(
            f"data is a {type(data).__name__}: expected a list of Batch, a list of (image, text), a data set of scenes "
            "or of the datasets package, or the path of a folder"
        )
    if not pairs:
        raise InputError("data is empty: expected at least one row")
    if all(isinstance(item, Batch) for item in pairs):
        if columns or prompt is not None:
            raise InputError("data is made of batches, which have their texts: leave columns= and prompt= out")
        return Batches(tuple(pairs))
    return _rows_of_pairs(pairs, getattr(data, "ids", None), getattr(data, "labels", None), columns, prompt)


def _rows_of_pairs(pairs: Sequence[Any], ids: Any, labels: Any, columns: Mapping[str, str], prompt: str | None) -> Rows:
    if isinstance(pairs, list | tuple):  # a sequence of another kind may make its items when they are asked for
        for index, item in enumerate(pairs):
            _check_pair(item, index)
    if "image" in columns:
        raise InputError(
            f"columns says {columns['image']!r} for image: in (image, text) that is the first, leave it out"
        )
    known = _columns_of_labels(len(pairs), labels)
    if ids is not None:
        known["id"] = _one_a_row("ids", ids, len(pairs))
    roles = find_roles(columns, prompt, ["text", *known], ["text", *known], image="image")
    if roles.id is not None:
        check_ids([text for _, text in pairs] if roles.id == "text" else known[roles.id])

    def record(index: int) -> Record:
        _check_pair(pair := pairs[index], index)
        image, text = pair
        bare = " ".join([PLACEHOLDER] * len(pictures_of(image)))
        return image, {**{name: cells[index] for name, cells in known.items()}, "text": bare if text is None else text}

    return Table(len(pairs), lambda start, stop: [record(index) for index in range(start, stop)], roles)


def _check_pair(item: Any, index: int) -> None:
    if not isinstance(item, tuple) or len(item) != 2 or (item[0] is None and item[1] is None):
        raise InputError(f"row {index} of the data is {shown(item)}: expected (image, text), at most one of them None")
    if not isinstance(item[1], str | None):
        raise InputError(f"row {index} of the data has the text {shown(item[1])}: expected a string or None")


def _columns_of_labels(size: int, labels: Any) -> dict[str, list[Any]]:
    """The labels of a data set as columns of plain values; those of other kinds are left out."""
    columns = {name: _one_a_row(f"labels[{name!r}]", cells, size) for name, cells in dict(labels or {}).items()}
    return {name: cells for name, cells in columns.items() if all(map(is_plain, cells))}


def _one_a_row(name: str, cells: Any, size: int) -> list[Any]:
    values = [plain(cell) for cell in cells]
    if len(values) != size:
        raise InputError(f"the data has {size} rows and {len(values)} {name}: expected one a row")
    return values
