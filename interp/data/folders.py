"""Folders of pictures, in the convention that the `datasets` package calls imagefolder.

A ``metadata.jsonl`` or ``metadata.csv`` has a row for each picture, or, as ``file_names``, for several; the names are
relative to the file that says them, which may lie in a subfolder. Without one each picture is a row: its path in the
folder is its id, and the name of the subfolder it lies in its label. A folder that `save_to_disk` wrote is opened with
the `datasets` package.

A folder is read whole, subfolders and all; for one split of it, give the subfolder. The metadata are held in memory, the
pictures are not opened. All that a table says is data: a name that leads out of the folder is refused, and of a csv,
which has no types, a column becomes numbers where every cell is written as one (``3``, ``-0.5``, ``1e-05``; not ``007`` or
``1,5``) and stays text otherwise; an empty cell is None.
"""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from interp.data.roles import Roles, check_ids, column_of, find_roles, is_plain
from interp.data.rows import PICTURES, Rows
from interp.data.tables import Record, Table, rows_of_dataset
from interp.errors import InputError, InputTypeError, shown

_METADATA = ("metadata.jsonl", "metadata.csv")
_SAVED = (("dataset_info.json", "state.json"), ("dataset_dict.json",))
# Longer ones are names: a float would round them.
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a metadata file: its cells, and the file and line where they stand."""

    cells: Mapping[str, Any]
    file: Path
    line: int


def rows_of_folder(data: str | os.PathLike[str], columns: Mapping[str, str], prompt: str | None) -> Rows:
    """The rows of a folder.

    Raises `InputTypeError` where there is no folder, `InputError` for one without pictures, for metadata that cannot be
    read or lead out of it, and for what `interp.data.roles` refuses.
    """
    folder = Path(data)
    if not folder.is_dir():
        what = "a file" if folder.is_file() else "no folder there"
        raise InputTypeError(
            f"data is a {type(data).__name__}, {shown(os.fspath(data))}, and {what}: expected the path of a folder, a list "
            "of Batch, a list of (image, text) or a data set"
        )
    if any(all((folder / name).is_file() for name in names) for names in _SAVED):
        return rows_of_dataset(_saved(folder), columns, prompt)
    files = sorted(_files(folder), key=lambda file: file.relative_to(folder).as_posix())
    metadata = [file for file in files if file.name in _METADATA]
    if len({file.suffix for file in metadata}) > 1:
        raise InputError(f"{shown(str(folder))} has a metadata.csv and a metadata.jsonl: expected one kind of them")
    if metadata:
        return _rows_of_metadata(metadata, columns, prompt)
    if any(file.name == "metadata.parquet" for file in files):
        raise InputError(
            f"{shown(str(folder))} has a metadata.parquet: expected metadata.jsonl or metadata.csv, or give "
            "datasets.load_dataset('imagefolder', data_dir=..., split=...)"
        )
    return _rows_of_pictures(folder, files, columns, prompt)


def _saved(folder: Path) -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError(f"{shown(str(folder))} was saved by the datasets package: pip install datasets") from None
    try:
        return datasets.load_from_disk(str(folder))
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise InputError(
            f"{shown(str(folder))} was saved by the datasets package and cannot be opened ({shown(error)}): save it again"
        ) from error


def _files(folder: Path) -> Iterator[Path]:
    """The files of a folder and its subfolders, but those that are hidden."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


# Pictures alone ----------------------------------------------------------------------------------------------------------


def _rows_of_pictures(folder: Path, files: list[Path], columns: Mapping[str, str], prompt: str | None) -> Rows:
    found = [file.relative_to(folder).as_posix() for file in files if file.suffix.lower() in PICTURES]
    if not found:
        raise InputError(
            f"{shown(str(folder))} has no pictures: expected files as {', '.join(list(PICTURES)[:5])}, ..."
        )
    labelled = any("/" in name for name in found)
    known = ["id", "label"] if labelled else ["id"]
    image = column_of("image", columns, ["file_name"], default="file_name")
    roles = find_roles(columns, prompt, ["file_name", *known], known, image)

    def record(name: str) -> Record:
        parts = name.split("/")
        return folder / name, {"id": name, "label": parts[-2] if len(parts) > 1 else None}

    if roles.id != "id":
        check_ids(record(name)[1][str(roles.id)] for name in found)
    return Table(len(found), lambda start, stop: map(record, found[start:stop]), roles)


# Pictures with metadata --------------------------------------------------------------------------------------------------


def _rows_of_metadata(files: list[Path], columns: Mapping[str, str], prompt: str | None) -> Rows:
    entries = [entry for file in files for entry in _entries(file)]
    if not entries:
        raise InputError(f"{shown(str(files[0]))} has no rows: expected one for each picture")
    names = list(dict.fromkeys(name for entry in entries for name in entry.cells))
    default = next((name for name in ("file_name", "file_names") if name in names), None)
    image = column_of("image", columns, names, default)
    if image is None:
        raise InputError(
            f"{shown(str(files[0]))} has the columns {', '.join(names)}: expected file_name, or say which it is with "
            'columns={"image": ...}'
        )
    for entry in entries:
        _check_names(entry, entry.cells.get(image))
    known = [name for name in names if name != image and all(is_plain(entry.cells.get(name)) for entry in entries)]
    kinds = _kinds(entries, known) if files[0].suffix == ".csv" else {}
    roles: Roles = find_roles(columns, prompt, names, known, image, kinds)
    if roles.id is not None:
        check_ids(entry.cells.get(roles.id) for entry in entries)
    empty = dict.fromkeys(known)

    def record(entry: Entry) -> Record:
        return _paths(entry.file.parent, entry.cells.get(image)), {**empty, **entry.cells}

    return Table(len(entries), lambda start, stop: map(record, entries[start:stop]), roles)


def _entries(file: Path) -> Iterator[Entry]:
    read = _read_csv if file.suffix == ".csv" else _read_jsonl
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            for number, cells in read(lines):
                # Every line of JSON says the names again: held once, they are no part of what a row takes.
                yield Entry({sys.intern(name): cell for name, cell in cells.items()}, file, number)
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


def _kinds(entries: list[Entry], names: list[str]) -> dict[str, Callable[[str], Any]]:
    """Which columns of text are numbers in every cell that is not empty."""
    kinds: dict[str, Callable[[str], Any]] = {}
    for name in names:
        cells = [entry.cells[name] for entry in entries if entry.cells.get(name) is not None]
        if cells and all(map(_NUMBER.fullmatch, cells)):
            kinds[name] = int if all(map(_WHOLE.fullmatch, cells)) else float
    return kinds


def _check_names(entry: Entry, given: Any) -> None:
    """Refuse names of pictures that lead out of the folder of their table, in the manner of any system."""
    for name in given if isinstance(given, list) else [given] if given is not None else []:
        if not isinstance(name, str) or not name:
            raise InputError(
                f"line {entry.line} of {shown(str(entry.file))} names the picture {shown(name)}: expected the name of a file"
            )
        for path in (PurePosixPath(name), PureWindowsPath(name)):
            if path.anchor or ".." in path.parts:
                raise InputError(
                    f"line {entry.line} of {shown(str(entry.file))} names the picture {shown(name)}, which leads out of its "
                    "folder: expected a name inside it"
                )


def _paths(folder: Path, given: Any) -> Any:
    if given is None:
        return None
    return [folder / name for name in given] if isinstance(given, list) else folder / given
