"""Data as batches of one model, wherever a whole data set is run at once: to fit a lens, to measure the projector.

Batches stay as they are. All other data is rows, which are opened and prepared a few at a time, in their own order.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from interp.arguments import checked_int
from interp.data.data import as_data
from interp.data.rows import Batches, OpenRow, Skip, open_rows, without_faults
from interp.data.sources import source_of
from interp.errors import InputError, RowError
from interp.models import Batch
from interp.models.running.position_limits import refuse_too_long

if TYPE_CHECKING:
    from interp.models import VLM


def batches_of(vlm: VLM, data: Any, size: int) -> list[Batch]:
    """Data as batches: batches as they are, anything else prepared `size` rows at a time.

    `data` is a `Data` or what it is made from. With ``on_error="skip"`` rows that cannot be read, that the processor refuses
    or that are too long for the model are left out, with one warning that has their number.

    Raises `InputTypeError` for anything that is not data, `InputError` for data without rows, a row that cannot be read, a
    size below 1, and what `VLM.prepare` raises.
    """
    size = checked_int(size, "batch_size", least=1)
    data = as_data(data)
    source = source_of(data)
    if isinstance(source, Batches):
        return list(source.batches)
    skipped: list[InputError] = []
    skip: Skip | None = (lambda row, error: skipped.append(error)) if data.on_error == "skip" else None
    batches, start = list[Batch](), 0
    while rows := source.read(start, start + size):
        batch, _ = prepare_rows(vlm, open_rows(rows, skip), data.chat, skip)
        if batch is not None:
            batches.append(batch)
        start += size
    if not batches and skipped:
        raise InputError(f"none of {len(skipped)} rows of the data could be read: the first error was {skipped[0]}")
    if not batches:
        raise InputError("data is empty: expected at least one row")
    if skipped:
        warnings.warn(f"{len(skipped)} rows of the data are left out: the first error was {skipped[0]}", stacklevel=2)
    return batches


def prepare_rows(
    vlm: VLM, rows: Sequence[OpenRow], chat: bool, skip: Skip | None
) -> tuple[Batch | None, list[OpenRow]]:
    """The batch of these rows, and the rows that are in it; None where no row is left.

    A row that the model's processor does not take, or that is too long for the model, goes to `skip`; without `skip` it is an
    `InputError` that names it.
    """
    rows = list(rows)
    while rows:
        texts, images = [row.text for row, _ in rows], [pictures for _, pictures in rows]
        spans = [row.spans for row, _ in rows] if any(row.spans for row, _ in rows) else None
        try:
            batch = vlm.prepare(texts, images if any(images) else None, chat=chat, spans=spans)
            refuse_too_long(vlm, batch.inputs)
            return batch, rows
        except RowError as error:
            rows = [rows[index] for index in without_faults([row for row, _ in rows], error, skip)]
    return None, []
