"""Folders and files of data, in the conventions of the `datasets` package and of LLaVA and COCO.

A folder in the imagefolder convention has a ``metadata.jsonl`` or ``metadata.csv`` (or several, ``metadata-0001.jsonl``,
read in the order of their numbers) with a row for each picture, or, as ``file_names``, for several. The names are
relative to that file, which may be in a subfolder. Without metadata each picture is a row: its path in the folder is its
id, and the name of its subfolder its label. A folder that `save_to_disk` wrote is opened with the `datasets` package, and
so are the parquet files or WebDataset tars of a folder that has nothing else.

A folder is read whole, with its subfolders; for one split of it, give the subfolder. A file is read by its ending:
``.jsonl`` and ``.csv`` as records, ``.json`` as annotations, ``.parquet`` and ``.tar`` with the `datasets` package.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from interp.data.annotations import read_json
from interp.data.data import Data
from interp.data.records import Record, read_table, rows_of_records
from interp.data.roles import check_ids, column_of, find_roles
from interp.data.rows import PICTURES, Rows
from interp.data.tables import IndexedRows, rows_of_dataset, rows_of_files
from interp.errors import InputError, InputTypeError, shown

_METADATA = re.compile(r"metadata(?:[-_.]?\d[\w.-]*)?\.(?:jsonl|csv)")
_SAVED = (("dataset_info.json", "state.json"), ("dataset_dict.json",))
_TABLES = (".parquet", ".tar")


def rows_of_path(data: Data) -> Rows:
    """The rows of the folder or file whose path is the source of `data`.

    Raises `InputTypeError` where there is no folder and no file of a known ending, and `InputError` for a folder without
    pictures, for a file that cannot be read or names pictures outside its folder, and for what `interp.data.roles` refuses.
    """
    path = Path(data.source)
    if path.is_dir():
        return _rows_of_folder(path, data)
    if path.is_file() and path.suffix in _TABLES:
        return rows_of_files([path], data)
    if path.is_file() and path.suffix == ".json":
        return _rows_of_file(path, (Record(cells, path, number) for number, cells in enumerate(read_json(path))), data)
    if path.is_file() and path.suffix in (".jsonl", ".csv"):
        return _rows_of_file(path, read_table(path), data)
    what = "a file" if path.is_file() else "no folder there"
    raise InputTypeError(
        f"data is a {type(data.source).__name__}, {shown(os.fspath(data.source))}, and {what}: expected the path of a folder, "
        "of a .json, .jsonl, .csv, .parquet or .tar file, a list of Batch, a list of (image, text) or a data set"
    )


def _rows_of_file(path: Path, records: Iterable[Record], data: Data) -> Rows:
    rows = list(records)
    if not rows:
        raise InputError(f"{shown(str(path))} has no rows: expected at least one")
    return rows_of_records(rows, data)


def _rows_of_folder(folder: Path, data: Data) -> Rows:
    if any(all((folder / name).is_file() for name in names) for names in _SAVED):
        return rows_of_dataset(_open_saved(folder), data)
    files = sorted(_files(folder), key=lambda file: file.relative_to(folder).as_posix())
    metadata = sorted((file for file in files if _METADATA.fullmatch(file.name)), key=_in_order_of_numbers)
    if len({file.suffix for file in metadata}) > 1:
        raise InputError(f"{shown(str(folder))} has a metadata.csv and a metadata.jsonl: expected one kind of them")
    if metadata:
        return _rows_of_metadata(metadata, data)
    if any(file.name == "metadata.parquet" for file in files):
        raise InputError(
            f"{shown(str(folder))} has a metadata.parquet: expected metadata.jsonl or metadata.csv, or give "
            "datasets.load_dataset('imagefolder', data_dir=..., split=...)"
        )
    pictures = [file.relative_to(folder).as_posix() for file in files if file.suffix.lower() in PICTURES]
    tables = sorted((file for file in files if file.suffix in _TABLES), key=_in_order_of_numbers)
    if tables and not pictures and len({file.suffix for file in tables}) == 1:
        return rows_of_files(tables, data)
    return _rows_of_pictures(folder, pictures, data)


def _open_saved(folder: Path) -> Any:
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
    """The files of a folder and its subfolders without those that are hidden."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _in_order_of_numbers(file: Path) -> tuple[str, list[str | int]]:
    """A key that sorts 2 before 10 among the names of one folder."""
    return f"{file.parent.as_posix()}/", [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)]


def _rows_of_metadata(files: list[Path], data: Data) -> Rows:
    records = [record for file in files for record in read_table(file)]
    if not records:
        raise InputError(f"{shown(str(files[0]))} has no rows: expected one for each picture")
    names = list(dict.fromkeys(name for record in records for name in record.cells))
    if not {"file_name", "file_names"} & set(names) and "image" not in (data.columns or {}):
        raise InputError(
            f"{shown(str(files[0]))} has the columns {', '.join(names)}: expected file_name, or say which it is with "
            'columns={"image": ...}'
        )
    return rows_of_records(records, data, ("file_name", "file_names"))


def _rows_of_pictures(folder: Path, pictures: list[str], data: Data) -> Rows:
    if not pictures:
        raise InputError(
            f"{shown(str(folder))} has no pictures: expected files as {', '.join(list(PICTURES)[:5])}, ..."
        )
    if data.root is not None:
        raise InputError(f"root={shown(os.fspath(data.root))}: {shown(str(folder))} has its pictures itself, leave root out")
    known = ["id", "label"] if any("/" in name for name in pictures) else ["id"]
    image = column_of("image", data, ["file_name"], default="file_name")
    roles = find_roles(data, ["file_name", *known], known, image)

    def row(name: str) -> tuple[Any, Mapping[str, Any]]:
        parts = name.split("/")
        return folder / name, {"id": name, "label": parts[-2] if len(parts) > 1 else None}

    if roles.id != "id":
        check_ids(row(name)[1][str(roles.id)] for name in pictures)
    return IndexedRows(len(pictures), lambda start, stop: map(row, pictures[start:stop]), roles)
