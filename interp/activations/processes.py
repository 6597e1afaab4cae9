"""The processes of a capture: under `torchrun` or `accelerate launch` they share one data set, and the first shows progress.

torch.distributed says which process this is, or else the environment that the launcher sets; then a gloo group is made
for the few values that they exchange. No activations are exchanged: each process writes its own shards to one folder.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from interp.errors import InterpError
from interp.progress import progress_bar

# One process may wait for another as long as a run takes.
_PATIENCE = timedelta(days=30)
# Counts the groups that this process has made, as every other process counts its own.
_GROUPS = itertools.count()

Advance = Callable[[int, int], None]  # rows, bytes


@contextmanager
def processes() -> Iterator[Processes]:
    """All processes that the launcher started together; this one alone where no launcher is involved."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if dist.is_available() and dist.is_initialized():
        # The exchanged values are on the CPU, whatever group the caller has for the GPUs.
        group = dist.new_group(backend="gloo", timeout=_PATIENCE) if dist.get_world_size() > 1 else None
        try:
            yield Processes(dist.get_rank(), dist.get_world_size(), group)
        finally:
            if group is not None:
                dist.destroy_process_group(group)
    elif size > 1:
        store, rank, size = _meeting_place()
        # Each capture has its own keys in the store.
        store = dist.PrefixStore(f"capture {next(_GROUPS)}", store)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_PATIENCE)
        try:
            yield Processes(rank, size)
        finally:
            dist.destroy_process_group()
    else:
        yield Processes()


@functools.cache
def _meeting_place() -> tuple[Any, int, int]:
    """The store by which processes find each other, this process's rank and their number.

    It lives as long as the process. With a new store for each capture, a process that is ahead could still connect to the
    store of the last capture, which is about to close.
    """
    return next(rendezvous("env://", timeout=_PATIENCE))


@contextmanager
def rows_bar(total: int | None, visible: bool) -> Iterator[Advance]:
    """A bar over the rows, with the bytes that were captured; ``advance(rows, bytes)`` moves it."""
    with progress_bar("capture", total, "rows", visible) as bar:
        size = 0

        def advance(rows: int, new: int) -> None:
            nonlocal size
            size += new
            bar.advance(rows, f"{size / 1e6:,.1f} MB")

        yield advance


@dataclass(frozen=True)
class Processes:
    """This process among those that run the same: process `rank` of `size`."""

    rank: int = 0
    size: int = 1
    group: Any = None

    def exchange(self, value: Any) -> list[Any]:
        """The value of every process, in the order of their ranks; each process waits here for all."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(values, value, group=self.group)
        except RuntimeError as error:
            raise InterpError(
                f"process {self.rank} of {self.size} waited for one that has stopped: read that one's error, and run the "
                "same again"
            ) from error
        return values
