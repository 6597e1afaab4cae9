"""Data, wherever it is taken: batches as they are, pairs of (image, text), or a data set that gives such pairs.

A data set is anything with `pairs()`, a list of (image, text) of which either may be None, and where it has them
`ids` (a name a row) and `labels` (name -> one label a row), as `interp.toy.scenes(...)` and its `.captions()` have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from interp.errors import InputError, InputTypeError
from interp.models import VLM, Batch
from interp.models.batch import PLACEHOLDER


@dataclass(frozen=True)
class Rows:
    """Data in one form: either batches in hand or pairs to be made into batches, with names and labels of the rows."""

    batches: tuple[Batch, ...] = ()
    pairs: tuple[tuple[Any, str], ...] = ()
    ids: tuple[str, ...] = ()
    labels: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(batch) for batch in self.batches) + len(self.pairs)

    def prepared(self, vlm: VLM, batch_size: int) -> Iterator[Batch]:
        """The rows as batches, in order."""
        yield from self.batches
        for start in range(0, len(self.pairs), batch_size):
            part = self.pairs[start : start + batch_size]
            yield vlm.prepare(texts=[text for _, text in part], images=[image for image, _ in part])


def rows_of(data: Any) -> Rows:
    """Any data as `Rows`. Raises `InputTypeError` for what is no data, `InputError` for data without rows."""
    if isinstance(data, Batch):
        data = [data]
    pairs = data.pairs() if hasattr(data, "pairs") else data
    if isinstance(pairs, str | bytes | Mapping) or not isinstance(pairs, Sequence):
        raise InputTypeError(
            f"data is a {type(data).__name__}: expected a list of Batch, a list of (image, text) or a data set of scenes"
        )
    if not pairs:
        raise InputError("data is empty: expected at least one row")
    if all(isinstance(item, Batch) for item in pairs):
        rows = sum(len(batch) for batch in pairs)
        return Rows(batches=tuple(pairs), ids=tuple(str(index) for index in range(rows)))
    made = tuple(_as_pair(item, index) for index, item in enumerate(pairs))
    ids = tuple(getattr(data, "ids", None) or (str(index) for index in range(len(made))))
    return Rows(pairs=made, ids=ids, labels=dict(getattr(data, "labels", None) or {}))


def _as_pair(item: Any, index: int) -> tuple[Any, str]:
    if not isinstance(item, tuple) or len(item) != 2 or (item[0] is None and item[1] is None):
        raise InputError(f"row {index} of the data is {item!r}: expected (image, text), at most one of them None")
    image, text = item
    return image, PLACEHOLDER if text is None else text
