"""Keys of makers: how a pickled batch finds its maker again.

A maker holds a processor, a tokenizer and the way to the model, so it is not pickled with a batch. The batch takes the
maker's key along. In a process that has the maker, such as the one that a worker sends its batches to, the key leads to
it. In any other an `AbsentMaker` stands for it, and rows are cut out of the batch instead of made anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary


class MakersByKey(WeakValueDictionary[str, Any]):
    """The makers of this process. A trace that is sent to a server takes none of them along."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


MAKERS = MakersByKey()


@dataclass(frozen=True)
class AbsentMaker:
    """Stands for a maker that is not in this process. `model_inputs` says for which models its batches are."""

    key: str
    model_inputs: Any

    def __reduce__(self) -> tuple[Any, ...]:
        return maker_of, (self.key, self.model_inputs)


def maker_of(key: str, model_inputs: Any) -> Any:
    """The maker with this key, or a stand-in for it in a process that does not have it."""
    return MAKERS.get(key) or AbsentMaker(key, model_inputs)
