"""What a step of tuning a band costs, compared with a step of tuning all layers, on the toy.

``python benchmarks/tuning.py``: the 4 middle layers of 8, with the connector frozen and trained, and 4 early and 4 late ones,
each beside full tuning on the same rows. Everything runs in one process on one thread, alternating. The ratio of the medians
of all timed steps is printed, phase by phase, with operations and the bytes of gradients and of the optimiser's state, and
what of a call's time is not in its steps: the preparation of data, hashes, copies.

On paper, with 1 for one layer's forward pass, for the gradient of its input and for that of its weights, all 8 layers cost
8 + 8 + 8, the 4 middle ones 8 + 6 + 4 (0.75), the early ones 8 + 8 + 4 (0.83), the late ones 8 + 4 + 4 (0.67). What lies
outside of the layers moves these a little.
"""

from __future__ import annotations

import time

import torch

import interp
from interp.tuning import TuneResult, tune

ROUNDS, STEPS, ROWS = 7, 5, 16
CASES = {
    "full": {"layers": "all"},
    "middle": {"layers": range(2, 6)},
    "early": {"layers": range(4)},
    "late": {"layers": range(4, 8)},
    "middle and connector": {"layers": range(2, 6), "connector": True},
}


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    vlm = interp.load("toy:stage1", device="cpu")
    rows = interp.toy.conversations(ROWS * STEPS, seed=0)
    arguments = {"max_steps": STEPS, "per_device_train_batch_size": ROWS, "train_sampling_strategy": "sequential"}
    results: dict[str, list[TuneResult]] = {name: [] for name in CASES}
    outside: dict[str, list[float]] = {name: [] for name in CASES}
    for turn in range(ROUNDS):
        names = list(CASES) if turn % 2 else list(reversed(CASES))
        for name in names:
            start = time.perf_counter()
            result = tune(vlm, rows, arguments=arguments, **CASES[name])
            whole = time.perf_counter() - start
            results[name].append(result)
            outside[name].append(whole - STEPS * result.step_seconds)
    medians = {
        name: torch.cat([each.seconds[1:] for each in own]).median(dim=0).values for name, own in results.items()
    }
    whole = {
        name: float(torch.cat([each.seconds[1:].sum(dim=1) for each in own]).median()) for name, own in results.items()
    }
    full = results["full"][0]
    print("| trained | step | forward | backward | optimiser | operations | gradients | optimiser's state |")
    print("|---|---|---|---|---|---|---|---|")
    for name, own in results.items():
        phases = " | ".join(f"{ratio:.2f}" for ratio in (medians[name] / medians["full"]).tolist())
        sizes = f"{own[0].gradient_bytes / 1e6:.2f} MB | {own[0].optimizer_bytes / 1e6:.2f} MB"
        print(f"| {name} | {whole[name] / whole['full']:.2f} | {phases} | {own[0].flops / full.flops:.2f} | {sizes} |")
    rest = sorted(outside["full"])[ROUNDS // 2]
    print(
        f"full: a step takes {whole['full']:.3f} s; {STEPS} steps leave {rest:.2f} s of a call for data, hashes and copies"
    )


if __name__ == "__main__":
    main()
