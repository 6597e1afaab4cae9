"""Threads: a small model runs on one thread of the CPU.

torch divides each product of matrices among all cores. For the matrices of a tiny model that costs more than it brings: the
threads wait for each other, and where other programs use the cores too they wait for those, in every product. A toy call then
takes 20 to 60 times longer than on one thread. So a model of fewer than `SMALL` weights on a CPU runs on one thread, and
afterwards torch has as many as before. Larger models, GPUs and whoever chose one thread anyway are left alone.

OpenMP keeps the number of threads for each thread of Python on its own, and a new one takes over the last number that was set
anywhere. nnsight runs what stands in a trace in new threads, so that the number holds for them too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch

# Weights below which one thread is faster: with 20 million, products of some 500 x 500 matrices.
SMALL = 20_000_000


class HasSize(Protocol):
    """The part of a model that decides how many threads it runs on."""

    @property
    def is_small(self) -> bool: ...

    @property
    def device(self) -> torch.device: ...


class _Runs(threading.local):
    """Whether this thread of Python is within a run on one thread."""

    inside = False


_runs = _Runs()
_lock = threading.Lock()
# The runs on one thread that are under way in this process, and the number of threads before the first of them.
_under_way = {"runs": 0, "before": 0}


@contextmanager
def few_threads(core: HasSize) -> Iterator[None]:
    """One thread for as long as this lasts, where the model is small and on a CPU. May be nested, and used by many threads."""
    chosen = _runs.inside or torch.get_num_threads() == 1
    if chosen or not core.is_small or core.device.type not in ("cpu", "meta"):
        yield
        return
    with _lock:
        if not _under_way["runs"]:
            _under_way["before"] = torch.get_num_threads()
        _under_way["runs"] += 1
        before = _under_way["before"]
        torch.set_num_threads(1)
    _runs.inside = True
    try:
        yield
    finally:
        _runs.inside = False
        with _lock:
            _under_way["runs"] -= 1
            torch.set_num_threads(before)
            if _under_way["runs"]:  # others still run, and their new threads shall have one too
                _set_for_new_threads(1)


def _set_for_new_threads(number: int) -> None:
    """The number that new threads take over; this thread keeps its own."""
    setter = threading.Thread(target=torch.set_num_threads, args=(number,))
    setter.start()
    setter.join()
