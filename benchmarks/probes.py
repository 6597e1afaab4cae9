"""What probing every layer costs, compared with a loop over scikit-learn's classifiers.

``python benchmarks/probes.py``: six classes from 2,000 examples with 512 features at 16 states, with `probe_layers` (with its
interval, without controls and permutations), and with `StandardScaler` and `LogisticRegression` on the same rows, state by
state. In float32, the usual dtype of captured states, and in float64.

Everything runs in one process on one thread, alternating; the median of the ratios is printed. The accuracies are compared,
and their largest difference is printed, as well as the time that permutations and the shuffled control add.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from interp.probes import ProbeResult, fit_batched, probe_layers

STATES, EXAMPLES, FEATURES, CLASSES, ROUNDS = 16, 2000, 512, 6, 5


def data(dtype: torch.dtype) -> tuple[torch.Tensor, np.ndarray]:
    """States that hold the class more and more clearly, with features of very different sizes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(CLASSES, size=EXAMPLES)
    means = rng.normal(size=(CLASSES, FEATURES))[labels]
    strength = np.linspace(0, 0.3, STATES)[:, None, None]
    states = rng.normal(size=(STATES, EXAMPLES, FEATURES)) + strength * means
    return torch.from_numpy(states * np.logspace(-1, 1, FEATURES) + 1).to(dtype), labels


def by_hand(states: torch.Tensor, labels: np.ndarray, result: ProbeResult) -> np.ndarray:
    """The accuracy at each state, on the split of `result`."""
    train, test = result.train_rows.numpy(), result.test_rows.numpy()
    accuracies = []
    for state in states.numpy():
        scaler = StandardScaler().fit(state[train])
        probe = LogisticRegression(max_iter=5000).fit(scaler.transform(state[train]), labels[train])
        accuracies.append(probe.score(scaler.transform(state[test]), labels[test]))
    return np.array(accuracies)


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """How long a call takes, and its result."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def compare(dtype: torch.dtype) -> None:
    """Print the time of `probe_layers` relative to the loop, and the time of the controls and of one batched solve."""
    states, labels = data(dtype)
    ratios, times, off = [], [], 0.0
    for turn in range(ROUNDS + 1):
        ours, result = seconds(lambda: probe_layers(states, labels, control=False, permutations=0))
        theirs, expected = seconds(lambda result=result: by_hand(states, labels, result))
        off = max(off, float(np.abs(result.accuracy.numpy() - expected).max()))
        if turn:  # the first round warms up
            ratios.append(ours / theirs)
            times.append(theirs)
    shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(
        f"{dtype}: {statistics.median(ratios):.2f} x the time of scikit-learn's loop ({shown}), of {min(times):.2f} s"
    )
    print(f"  accuracies off by {off:.4f} at most")
    for name, options in {
        "1000 permutations": {"control": False},
        "1000 permutations and a shuffled control": {"control": True},
    }.items():
        print(f"  with {name}: {seconds(lambda options=options: probe_layers(states, labels, **options))[0]:.2f} s")
    train = result.train_rows
    duration, probes = seconds(lambda: fit_batched(states[:, train], labels[train]))
    test = result.test_rows
    scores = [probe.score(state[test], labels[test]) for probe, state in zip(probes, states, strict=True)]
    print(
        f"  all states in one solve: {duration:.2f} s, accuracies off by {np.abs(np.array(scores) - expected).max():.4f}"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"{STATES} states, {EXAMPLES} examples, {FEATURES} features, {CLASSES} classes, {ROUNDS} rounds")
    for dtype in (torch.float32, torch.float64):
        compare(dtype)
