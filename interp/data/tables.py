"""Tables: data with named columns, read a stretch at a time; above all those of the Hugging Face `datasets` package.

A table at hand is read in any order, a stream only forward. Pictures are taken undecoded: of a `datasets.Dataset` the
Arrow table itself is read, of a stream with known features decoding is switched off. The package is recognised by what
its objects offer and is never imported here, so nobody needs it who does not hold such an object.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

from interp.data.roles import Roles, check_ids, column_of, find_roles, is_plain, plain
from interp.data.rows import Row, Rows, check_range
from interp.errors import InputError

# A row as a table gives it: its pictures and its cells by column.
Record = tuple[Any, Mapping[str, Any]]
_PLAIN = r"(large_)?string|bool|null|u?int\d+|float\d+"
_AT_ONCE = 10_000


@dataclass(frozen=True)
class Table(Rows):
    """A table at hand: `fetch(start, stop)` gives its records there, whatever was read before."""

    size: int | None
    fetch: Callable[[int, int], Iterable[Record]]
    roles: Roles

    def read(self, start: int, stop: int) -> list[Row]:
        check_range(start, stop)
        stop = min(stop, self.size or 0)
        if start >= stop:
            return []
        return [self.roles.row(index, *record) for index, record in enumerate(self.fetch(start, stop), start)]


class Stream(Rows):
    """A table that comes by once: records are read forward, and those that nobody asked for are passed over."""

    size = None

    def __init__(self, records: Iterator[Record], roles: Roles):
        self.records, self.roles = records, roles
        self._next = 0

    def read(self, start: int, stop: int) -> list[Row]:
        check_range(start, stop)
        if start < self._next:
            raise InputError(
                f"row {start} of a stream was asked for, which has been read up to row {self._next}: a stream is only "
                "read forward, make it anew"
            )
        self._next += sum(1 for _ in islice(self.records, start - self._next))
        taken = list(islice(self.records, stop - start))
        first, self._next = self._next, self._next + len(taken)
        return [self.roles.row(index, *record) for index, record in enumerate(taken, first)]


def is_dataset(data: Any) -> bool:
    """Whether this is a data set (or several splits of one) of the `datasets` package."""
    return hasattr(data, "column_names") and (isinstance(data, Mapping) or hasattr(data, "features"))


def rows_of_dataset(data: Any, columns: Mapping[str, str], prompt: str | None) -> Rows:
    """The rows of a `datasets.Dataset` or `IterableDataset`.

    Raises `InputError` for a dict of splits, a data set without rows or with a transform of its own, ids that repeat.
    """
    if isinstance(data, Mapping):
        splits = list(map(str, data))
        raise InputError(
            f"data is a {type(data).__name__} with the splits {', '.join(splits)}: take one of them, data[...]"
        )
    return _at_hand(data, columns, prompt) if hasattr(data, "__len__") else _streamed(data, columns, prompt)


def _at_hand(data: Any, columns: Mapping[str, str], prompt: str | None) -> Rows:
    if not len(data):
        raise InputError("data is empty: expected at least one row")
    if data.format["type"] == "custom":
        raise InputError("data has a transform, which would have to decode every picture: apply it with map() before")
    image, roles = _roles(data.features, columns, prompt)
    wanted, names = _wanted(data.features, image), _class_names(data.features)
    # As Arrow a picture stays the path and bytes that it is stored as.
    table = data.select_columns(wanted).with_format("arrow")
    if roles.id is not None:
        ids = data.select_columns([roles.id]).with_format("arrow")
        parts = (ids[start : start + _AT_ONCE] for start in range(0, len(ids), _AT_ONCE))
        check_ids(_named(cells, names)[roles.id] for part in parts for cells in part.to_pylist())

    def fetch(start: int, stop: int) -> list[Record]:
        return [_record(cells, image, names) for cells in table[start:stop].to_pylist()]

    return Table(len(data), fetch, roles)


def _streamed(data: Any, columns: Mapping[str, str], prompt: str | None) -> Rows:
    data = data.with_format(None)
    if data.features:
        image, roles = _roles(data.features, columns, prompt)
        names = _class_names(data.features)
        rows = iter(data.decode(False).select_columns(_wanted(data.features, image)))
        return Stream((_record(cells, image, names) for cells in rows), roles)
    rows = iter(data)
    first = next(rows, None)
    if first is None:
        raise InputError("data is empty: expected at least one row")
    # Nothing is known of the columns of a generator but what its first row shows.
    image = column_of("image", columns, list(first), default="image")
    known = [name for name, cell in first.items() if name != image and is_plain(plain(cell))]
    roles = find_roles(columns, prompt, list(first), known, image)
    empty = dict.fromkeys(known)
    return Stream((_record({**empty, **cells}, image, {}) for cells in chain([first], rows)), roles)


def _roles(features: Mapping[str, Any], columns: Mapping[str, str], prompt: str | None) -> tuple[str | None, Roles]:
    image = column_of("image", columns, list(features), default="image")
    known = [name for name in _plain_columns(features) if name != image]
    return image, find_roles(columns, prompt, list(features), known, image)


def _plain_columns(features: Mapping[str, Any]) -> list[str]:
    """The columns of strings, numbers, bools and classes: no lists, structures, arrays, dates."""
    return [
        name
        for name, feature in features.items()
        if type(feature).__name__ in ("Value", "ClassLabel") and re.fullmatch(_PLAIN, feature.dtype)
    ]


def _wanted(features: Mapping[str, Any], image: str | None) -> list[str]:
    known = _plain_columns(features)
    return known if image is None or image in known else [image, *known]


def _class_names(features: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    return {name: feature.names for name, feature in features.items() if type(feature).__name__ == "ClassLabel"}


def _record(cells: Mapping[str, Any], image: str | None, names: Mapping[str, Sequence[str]]) -> Record:
    cells = _named(cells, names)
    return (None if image is None else cells[image]), cells


def _named(cells: Mapping[str, Any], names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The cells with classes by name; a class that is not known is written as -1 and becomes None."""
    named = dict(cells)
    for column in names.keys() & named.keys():
        number = named[column]
        named[column] = None if number is None or number < 0 else names[column][number]
    return named
