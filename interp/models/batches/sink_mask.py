"""The attention sinks of a batch, as a mask that is computed when it is first read.

Which tokens are sinks only a run of the model can tell (`interp.models.running.sinks`), and most batches are never asked. So
a batch carries a `SinkMask`, which knows how to find out, once. Its parts share what is known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from interp.errors import InputError


class SinkMask:
    """Which tokens of a batch are attention sinks: called, it gives Bool `[batch, seq]`, found at the first call by `find`.

    What `find` needs is the model. A copy from another process or from a file has none, so it knows the sinks if they
    were known when it was made.
    """

    def __init__(self, find: Callable[[], Tensor] | None = None, mask: Tensor | None = None) -> None:
        self._find, self._mask = find, mask

    def __call__(self) -> Tensor:
        if self._mask is None:
            if self._find is None:
                raise InputError(
                    "content and image_content need a run of the model, which a stored batch does not have: read them before "
                    "it is stored, or make the batch with vlm.prepare"
                )
            self._mask = self._find()
        return self._mask

    @property
    def known(self) -> bool:
        """Whether the model has been run for it."""
        return self._mask is not None

    def part(self, rows: Sequence[int], columns: Tensor) -> SinkMask:
        """Those of these rows at these columns (Bool `[seq]`)."""
        return SinkMask(
            lambda: self()[list(rows)][:, columns], None if self._mask is None else self()[list(rows)][:, columns]
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> SinkMask:
        return self  # what it gives never changes

    def __reduce__(self) -> tuple[Any, ...]:
        return SinkMask, (None, self._mask)
