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
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from interp.data.data import Data
from interp.data.records import Record, read_records, rows_of_records
from interp.data.roles import column_of
from interp.data.rows import Rows
from interp.data.tables import rows_of_files
from interp.errors import InputError, InputTypeError, shown
from interp.models.batches.images import PICTURES

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
    if path.is_file() and path.suffix in (".json", ".jsonl", ".csv"):
        return rows_of_records(read_records([path]), data)
    what = "a file" if path.is_file() else "no folder there"
    raise InputTypeError(
        f"data is a {type(data.source).__name__}, {shown(os.fspath(data.source))}, and {what}: expected the path of a folder, "
        "of a .json, .jsonl, .csv, .parquet or .tar file, a list of Batch, a list of (image, text) or a data set"
    )


def _rows_of_folder(folder: Path, data: Data) -> Rows:
    if any(all((folder / name).is_file() for name in names) for names in _SAVED):
        return rows_of_files([folder], data)
    files = sorted(_files(folder), key=lambda file: file.relative_to(folder).as_posix())
    metadata = sorted((file for file in files if _METADATA.fullmatch(file.name)), key=partial(_order, folder))
    if len({file.suffix for file in metadata}) > 1:
        raise InputError(f"{shown(str(folder))} has a metadata.csv and a metadata.jsonl: expected one kind of them")
    if metadata:
        return rows_of_records(read_records(metadata), data, metadata=True)
    if any(file.name == "metadata.parquet" for file in files):
        advice = "give datasets.load_dataset('imagefolder', data_dir=..., split=...)"
        raise InputError(f"{shown(str(folder))} has a metadata.parquet: expected metadata.jsonl or .csv, or {advice}")
    pictures = [file.relative_to(folder).as_posix() for file in files if file.suffix.lower() in PICTURES]
    tables = sorted((file for file in files if file.suffix in _TABLES), key=partial(_order, folder))
    if tables and not pictures and len({file.suffix for file in tables}) == 1:
        return rows_of_files(tables, data)
    return _rows_of_pictures(folder, pictures, data)


def _files(folder: Path) -> Iterator[Path]:
    """The files of a folder and its subfolders without those that are hidden."""
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _order(folder: Path, file: Path) -> list[str | int]:
    """A key that sorts files by their paths in the folder, but with 2 before 10 in the names of files."""
    parent, slash, name = file.relative_to(folder).as_posix().rpartition("/")
    first, *others = re.split(r"([0-9]+)", name)
    return [parent + slash + first, *(int(part) if index % 2 == 0 else part for index, part in enumerate(others))]


def _rows_of_pictures(folder: Path, pictures: list[str], data: Data) -> Rows:
    if not pictures:
        raise InputError(
            f"{shown(str(folder))} has no pictures: expected files as {', '.join(list(PICTURES)[:5])}, ..."
        )
    if data.root is not None:
        raise InputError(
            f"root={shown(os.fspath(data.root))}: {shown(str(folder))} has its pictures itself, leave root out"
        )
    column_of("image", data, ["file_name"])
    records = []
    for number, name in enumerate(pictures):
        label = {"label": name.split("/")[-2]} if "/" in name else {}
        records.append(Record({"file_name": folder / name, "id": name, **label}, None, number))
    return rows_of_records(records, data)
