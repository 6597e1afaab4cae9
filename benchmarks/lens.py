"""How much memory the logit lens needs for a large vocabulary, beyond the weights and the states.

``python benchmarks/lens.py memory``: the readout of the logit lens alone, as it runs inside a trace, on random weights and
states: a norm and a head of width 4,096 over 128,000 words, 600 positions. On a CPU all 33 states of a model with 32 layers
take four minutes (``memory 33``), so the default is 3 states. Each run is a process of its own, and its peak memory is compared
with what the process holds once weights and states exist. ``python benchmarks/lens.py once`` reads all positions at once.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from interp.lens import reading
from interp.models.running.readout import Readout

WIDTH, WORDS, POSITIONS, STATES = 4096, 128_000, 600, 3


def peak() -> float:
    """The largest memory of this process so far, in GiB. Creating weights and states needs no more than their own size."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def current() -> float:
    """The memory of this process now, in GiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


def measure(states: int, at_once: int) -> None:
    """Read this many states, and print memory and time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    norm, head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
    readout = Readout(norm, head, WORDS)
    states_by_number = {number: torch.randn(POSITIONS, WIDTH) for number in range(states - 1)}
    last = torch.randn(1, POSITIONS, WIDTH)
    rows, columns = torch.zeros(POSITIONS, dtype=torch.long), torch.arange(POSITIONS)
    before, start = current(), time.perf_counter()
    with torch.no_grad():
        chunking = reading.Chunking(torch.zeros_like(rows), readout, readout, 5, at_once)
        reading.read_vocabulary(last, rows, columns, states_by_number, states - 1, chunking)
    seconds = time.perf_counter() - start
    print(
        f"{states} states, {POSITIONS} positions ({at_once} at once), {WORDS} words, width {WIDTH}, float32, CPU: "
        f"{peak() - before:.2f} GiB above {before:.2f} GiB, {seconds:.0f} s"
    )


def main() -> None:
    """Run the part that the command line names, in its own process."""
    what, *numbers = sys.argv[1:] or ["memory"]
    states = int(numbers[0]) if numbers else STATES
    if what == "child":
        measure(states, int(numbers[1]))
        return
    at_once = POSITIONS if what == "once" else reading.positions_at_once(WORDS)
    subprocess.run([sys.executable, __file__, "child", str(states), str(at_once)], check=True)


if __name__ == "__main__":
    main()
