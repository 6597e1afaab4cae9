"""Data, wherever a lens takes it, as batches of one model.

A list of batches is taken as it is. Pairs of image and text, scenes, a data set of the `datasets` package and a folder
are rows, which are opened and prepared a few at a time, in their own order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp.arguments import as_int
from interp.data.sources import Batches, open_row, source_of
from interp.errors import InputError, shown
from interp.models import Batch

if TYPE_CHECKING:
    from interp.models import VLM


def batches_of(vlm: VLM, data: Any, size: int) -> list[Batch]:
    """Data as batches: batches as they are, anything else prepared `size` rows at a time.

    Raises `InputTypeError` for what is no data, `InputError` for data without rows, for a row that cannot be read, for a
    size below 1, and what `VLM.prepare` raises.
    """
    at_once = as_int(size)
    if at_once is None or at_once < 1:
        raise InputError(f"batch_size={shown(size)}: expected 1 or more rows")
    source = source_of(data)
    if isinstance(source, Batches):
        return list(source.batches)
    batches, start = list[Batch](), 0
    while rows := source.read(start, start + at_once):
        pictures = [open_row(row) for row in rows]
        batches.append(vlm.prepare([row.text for row in rows], pictures if any(pictures) else None))
        start += at_once
    if not batches:
        raise InputError("data is empty: expected at least one row")
    return batches
