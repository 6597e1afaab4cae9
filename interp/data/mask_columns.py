"""Masks of a row: which words stand where in its picture, as a column holds them.

The column is a list of ``{"words": "red 3", "mask": ...}`` a row; `interp.tuning.object_masks` says what a mask may be and opens
it. Here names become paths of files, and nothing else is looked at: a capture that reads the same rows needs no mask. A column
``masks`` in another format is an ordinary column, unless the user says that it holds the masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.data.conversations import holds_dicts
from interp.data.rows import pictures_in
from interp.errors import InputError, shown
from interp.models.batches.images import is_url

MASKS = "masks"


def mask_column(columns: Mapping[str, Any]) -> str | None:
    """The column that holds masks, of columns with the features or the cells of each."""
    return MASKS if holds_dicts(columns.get(MASKS), "words") else None


def with_masks(cells: Mapping[str, Any], column: str | None, folder: Path | None, place: object) -> Mapping[str, Any]:
    """The cells with the masks in a column as a tuple of dicts of "words" and "mask", with names as `pictures_in` makes them.

    An `InputError` stands for a mask that cannot be opened, and for all of an entry of another form.
    """
    entries = None if column is None else cells.get(column)
    if column is None or entries is None:
        return cells
    lists = [each for each in entries.values() if isinstance(each, list)] if isinstance(entries, Mapping) else []
    if lists and len(lists) == len(entries) and len({*map(len, lists)}) == 1:  # as `datasets` may keep a list of dicts
        entries = [dict(zip(entries, each, strict=True)) for each in zip(*lists, strict=True)]
    if not isinstance(entries, list | tuple):
        return {**cells, column: (_refused(entries, place),)}
    return {**cells, column: tuple(_with_mask(entry, folder, place) for entry in entries)}


def _with_mask(entry: Any, folder: Path | None, place: object) -> Mapping[str, Any]:
    words, mask = (entry.get("words"), entry.get("mask")) if isinstance(entry, Mapping) else (None, None)
    several = words if isinstance(words, list | tuple) else [words]
    if mask is None or not several or not all(isinstance(word, str) and word.strip() for word in several):
        return _refused(entry, place)
    if isinstance(mask, Mapping) and is_url(mask):
        mask = InputError(f"{place} names the mask {shown(mask['path'])}: expected the name of a file, and no URL")
    elif folder is not None and not isinstance(mask, list):  # a list holds the pixels themselves
        mask = pictures_in(folder, mask, place)
    return {**entry, "mask": mask}


def _refused(entry: Any, place: object) -> Mapping[str, Any]:
    what = 'expected a list of {"words": "red 3", "mask": ...}'
    return {"words": (), "mask": InputError(f"{place} has the mask {shown(entry)}: {what}")}
