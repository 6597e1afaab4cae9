"""Several processes that share one data set: under `torchrun` or `accelerate launch` each takes whole shards.

Who they are is what torch.distributed says, or else the environment that the launcher sets; then a gloo group is made
for the few words they exchange. The activations themselves never travel: each process writes its own to one folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from interp.errors import InterpError

# One process may wait for another as long as a run takes.
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Processes:
    """This process among those that run the same: process `rank` of `size`."""

    rank: int = 0
    size: int = 1
    group: Any = None

    def together(self, value: Any) -> list[Any]:
        """What every process says here, in the order of their ranks; each waits for all."""
        if self.size == 1:
            return [value]
        said: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(said, value, group=self.group)
        except RuntimeError as error:
            raise InterpError(
                f"process {self.rank} of {self.size} waited for one that has stopped: see what that one said, and run the "
                "same again"
            ) from error
        return said


@contextmanager
def processes() -> Iterator[Processes]:
    """All processes that were started together; this one alone where there are no others."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if dist.is_available() and dist.is_initialized():
        # What is exchanged lies on the CPU, whatever group the caller has for the GPUs.
        group = dist.new_group(backend="gloo", timeout=_PATIENCE) if dist.get_world_size() > 1 else None
        try:
            yield Processes(dist.get_rank(), dist.get_world_size(), group)
        finally:
            if group is not None:
                dist.destroy_process_group(group)
    elif size > 1:
        dist.init_process_group("gloo", timeout=_PATIENCE)
        try:
            yield Processes(dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()
    else:
        yield Processes()
