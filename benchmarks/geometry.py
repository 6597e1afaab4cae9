"""What geometry costs, compared with the matrix products that it needs at least, and with DADApy.

``python benchmarks/geometry.py graph``: the graph of 100 neighbours of 10,000 points with 4,096 features, compared with x x'.
``python benchmarks/geometry.py pair``: GRIDE of both clouds, neighbour overlap, information imbalance and debiased CKA of a pair
of clouds of 5,000 points with 1,024 features, as five separate calls, compared with x x' and y y'.
``python benchmarks/geometry.py grid``: the overlap of 33 x 33 layers of 2,500 points with 1,024 features at 30 neighbours, with
and without intervals, compared with the 66 graphs.
``python benchmarks/geometry.py memory``: the peak memory beyond the data at 20,000 points with 1,024 features, for each measure.
``python benchmarks/geometry.py gpu``: graph and pair on a CUDA device, compared with the CPU.

Everything is float32, in one process, alternating; medians of the ratios are printed. With ``--dadapy PYTHON``, the interpreter
of an environment with DADApy (which cannot share ours), graph and pair are also timed with DADApy on all cores, in a process
that waits while ours is timed.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from interp.geometry import (
    alignment_matrix,
    cka,
    information_imbalance,
    intrinsic_dimension,
    nearest_neighbors,
    neighbor_overlap,
)

PEER = Path(__file__).parent / "peers" / "dadapy_timing.py"


def seconds(run: Callable[[], Any]) -> float:
    """How long a call takes, including the work of a GPU."""
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


class Peer:
    """DADApy in its own process, which loads two clouds and times its side of a comparison."""

    def __init__(self, python: str, x: torch.Tensor, y: torch.Tensor) -> None:
        self.folder = tempfile.TemporaryDirectory()
        for name, cloud in (("x", x), ("y", y)):
            np.save(Path(self.folder.name) / f"{name}.npy", cloud.numpy())
        command = [python, str(PEER), self.folder.name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def seconds(self, what: str) -> float:
        """How long DADApy takes for "graph" or "pair"."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return float(json.loads(self.process.stdout.readline())["seconds"])


def report(name: str, ratios: list[float], bar: str) -> None:
    """Print the median of some ratios, their range, and the bar for the median."""
    low, high = min(ratios), max(ratios)
    print(f"{name}: {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f}; {bar})", flush=True)


def graph(rounds: int, python: str | None) -> None:
    """Compare the graph with the product and with DADApy's distances."""
    x = torch.randn(10_000, 4096, generator=torch.Generator().manual_seed(0))
    ours, theirs = [], []
    peer = Peer(python, x, x[:2]) if python else None
    for _ in range(rounds):
        product = seconds(lambda: x @ x.T)
        mine = seconds(lambda: nearest_neighbors(x, 100))
        ours.append(mine / product)
        if peer:
            theirs.append(peer.seconds("graph") / mine)
        print(f"  product {product:.2f} s, graph {mine:.2f} s", *(f"DADApy x {each:.1f}" for each in theirs[-1:]))
    report("graph / product", ours, "at most 1.5")
    if theirs:
        report("DADApy's distances / graph", theirs, "at least 1.5")


def pair(rounds: int, python: str | None) -> None:
    """Compare five calls with two products, and all but CKA with DADApy."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 1024, generator=generator)
    y = x + torch.randn(5000, 1024, generator=generator)
    calls = {
        "gride x": lambda: intrinsic_dimension(x, "gride"),
        "gride y": lambda: intrinsic_dimension(y, "gride"),
        "overlap": lambda: neighbor_overlap(x, y),
        "imbalance": lambda: information_imbalance(x, y),
        "cka": lambda: cka(x, y),
    }
    ours, theirs = [], []
    peer = Peer(python, x, y) if python else None
    for call in calls.values():  # loads what is loaded only once
        call()
    for _ in range(rounds):
        products = seconds(lambda: (x @ x.T, y @ y.T))
        times = {name: seconds(call) for name, call in calls.items()}
        ours.append(sum(times.values()) / products)
        if peer:
            theirs.append(peer.seconds("pair") / (sum(times.values()) - times["cka"]))
        parts = ", ".join(f"{name} {each / products:.2f}" for name, each in times.items())
        print(f"  products {products:.2f} s; in these: {parts}", *(f"DADApy x {each:.1f}" for each in theirs[-1:]))
    report("five calls / two products", ours, "at most 8")
    if theirs:
        report("DADApy / four calls", theirs, "at least 4")


def grid(rounds: int, python: str | None) -> None:
    """Compare the overlaps of all pairs of layers with the graphs of the layers."""
    generator = torch.Generator().manual_seed(0)
    visual = torch.randn(33, 2500, 1024, generator=generator)
    textual = visual + torch.randn(33, 2500, 1024, generator=generator)
    bare, whole = [], []
    for _ in range(rounds):
        graphs = seconds(lambda: [nearest_neighbors(cloud, 30) for cloud in (*visual, *textual)])
        bare.append(seconds(lambda: alignment_matrix(visual, textual, k=30, subsamples=0)) / graphs)
        whole.append(seconds(lambda: alignment_matrix(visual, textual, k=30)) / graphs)
        print(f"  66 graphs {graphs:.2f} s")
    report("33 x 33 / 66 graphs, values", bare, "at most 3")
    report("33 x 33 / 66 graphs, with intervals of 50 half-samples", whole, "no bar")


def memory(rounds: int, python: str | None) -> None:
    """Print the peak memory of each measure beyond the data, each in its own process."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    for name in MEASURES:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            duration, peak = pool.submit(peak_of, name).result()
        print(f"{name}: {peak:.2f} GiB beyond the data, {duration:.0f} s (at most 2 GiB)", flush=True)


MEASURES = (
    *("nearest_neighbors", "neighbor_overlap", "information_imbalance", "cka", "cka_rbf", "distance_correlation"),
    *("rsa", "cknna", "procrustes", "svcca", "density_peaks", "spectral_entropy", "modality_gap"),
)


def peak_of(name: str) -> tuple[float, float]:
    """Seconds and GiB beyond the data, for one measure at 20,000 points."""
    from interp import geometry

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1024, generator=generator)
    y = x + torch.randn(20_000, 1024, generator=generator)
    alone = {"nearest_neighbors": {"k": 100}, "density_peaks": {}, "spectral_entropy": {}}
    small = torch.randn(500, 64, generator=generator)
    if name == "cka_rbf":

        def call(*clouds: torch.Tensor) -> Any:
            return cka(*clouds, kernel="rbf")
    else:

        def call(*clouds: torch.Tensor) -> Any:
            return getattr(geometry, name)(*clouds, **alone.get(name, {}))

    call(*([small] if name in alone else [small, small]))  # loads what is loaded only once
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    duration = seconds(lambda: call(*([x] if name in alone else [x, y])))
    return duration, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20


def gpu(rounds: int, python: str | None) -> None:
    """Compare graph and pair on a GPU with the CPU."""
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure")
        return
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(10_000, 4096, generator=generator)
    x = torch.randn(5000, 1024, generator=generator)
    y = x + torch.randn(5000, 1024, generator=generator)
    runs: dict[str, Callable[[str], Any]] = {
        "graph": lambda device: nearest_neighbors(clouds[device][0], 100),
        "gride": lambda device: intrinsic_dimension(clouds[device][1], "gride"),
        "overlap": lambda device: neighbor_overlap(*clouds[device][1:]),
        "imbalance": lambda device: information_imbalance(*clouds[device][1:]),
        "cka": lambda device: cka(*clouds[device][1:]),
    }
    clouds = {device: [cloud.to(device) for cloud in (wide, x, y)] for device in ("cpu", "cuda")}
    for name, run in runs.items():
        run("cuda")
        ratios = [seconds(lambda run=run: run("cpu")) / seconds(lambda run=run: run("cuda")) for _ in range(rounds)]
        report(f"CPU / GPU, {name}", ratios, "at least 20")


def main() -> None:
    """Run the part that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"graph": graph, "pair": pair, "grid": grid, "memory": memory, "gpu": gpu}
    parser.add_argument("part", choices=parts)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dadapy", metavar="PYTHON")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    parts[options.part](options.rounds, options.dadapy)


if __name__ == "__main__":
    main()
