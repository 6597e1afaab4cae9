"""The surroundings of a run: what holds while a model runs, whatever it runs for.

    with around_run(core, inputs, edits, reads), core.nnsight.trace(**inputs):
        ...

- A small model runs on one thread (`interp.models.running.threads`).
- Attention is eager where an edit or a read needs its weights (`interp.models.running.attention`).
- The memory of the run is free when it ends.
- A complaint of the model about its inputs becomes one line (`interp.models.batches.encodings`).
- No gradients are recorded.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from interp.models.batches.encodings import explained
from interp.models.running.attention import eager, eager_tower
from interp.models.running.steps import Edit, Read
from interp.models.running.threads import few_threads

if TYPE_CHECKING:
    from interp.models.running.core import Core


@contextmanager
def around_run(
    core: Core, inputs: Mapping[str, Any], edits: Sequence[Edit] = (), reads: Sequence[Read] = ()
) -> Iterator[None]:
    """Around a run on these inputs with these edits and reads. Raises what `eager` and `explained` raise."""
    sites = {edit.site for edit in edits} | {read.site for read in reads}
    with (
        few_threads(core),
        eager(core) if "pattern" in sites else nullcontext(),
        eager_tower(core) if "vision_pattern" in sites else nullcontext(),
        memory_freed(),
        explained(inputs, core),
        torch.no_grad(),
    ):
        yield


@contextmanager
def memory_freed() -> Iterator[None]:
    """Around a trace: the memory that it used is free when it ends.

    A trace that is stopped leaves its frames in a cycle with the exception that stopped it, and in them the states and
    the keys and values of the pass. They would stay in memory until Python next looks at its oldest objects. No garbage is
    collected during the trace, so that they are among the youngest and are freed at once.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
        gc.collect(1)
