"""Errors and intervals of dimensions, of measures of one gap, and of measures with ten half-samples.

What an interval has to hold is the mean of the measure over clouds of that size: its bias is another matter, and documented with
each measure. The mean is that of other draws than those of the table.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch

from calibrations import Row
from interp.geometry import alignment_matrix, intrinsic_dimension, modality_gap

OTHERS = 300  # draws for the mean of a measure
FIRST = 10**6  # their first seed
LARGE = "each neighbourhood is a large part of the cloud, and points share more of them than of what they say"
MLE = "errors of the mean over points, which vary more than their mean does"
SHARED = "the halves share half of their examples, and the measure has a bias that falls with their number"


def holds(draw: Callable[[int], tuple[float, float, float]]) -> Callable[[int], bool]:
    """Whether low and high of a draw (value, low, high) hold the mean value of others."""

    @cache
    def truth() -> float:
        return float(np.mean([draw(FIRST + seed)[0] for seed in range(OTHERS)]))

    def one(seed: int) -> bool:
        _, low, high = draw(seed)
        return bool(low <= truth() <= high)

    return one


def of_error(value: float, error: float) -> tuple[float, float, float]:
    """The value with its 95 % interval."""
    return value, value - 1.96 * error, value + 1.96 * error


def dimension(method: str, n: int, d: int, law: str, seed: int) -> tuple[float, float, float]:
    """An intrinsic dimension with its interval."""
    rng = np.random.default_rng([seed, n, d])
    estimate = intrinsic_dimension(getattr(rng, law)(size=(n, d)), method)
    return of_error(estimate.value, estimate.error)


def clouds(n: int, d: int, part: float, law: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two clouds with this part of their variance in common."""
    draw = getattr(np.random.default_rng([seed, n, d]), law)
    shared, x, y = (draw(size=(n, d)) - (law == "exponential") for _ in range(3))
    return part**0.5 * shared + (1 - part) ** 0.5 * x, part**0.5 * shared + (1 - part) ** 0.5 * y


def alignment(metric: str, n: int, law: str, seed: int) -> tuple[float, float, float]:
    """One cell of an alignment matrix."""
    x, y = clouds(n, 12, 0.5, law, seed)
    matrix = alignment_matrix(x[None], y[None], metric, seed=seed, progress=False)
    return float(matrix.values), float(matrix.low), float(matrix.high)


def gap(n: int, d: int, part: float, shift: float, law: str, seed: int) -> Any:
    """The gap of two clouds, one of them shifted along one feature."""
    x, y = clouds(n, d, part, law, seed)
    y[:, 0] += shift
    return modality_gap(x, y, shuffles=39, seed=seed)


def gap_number(value: str, error: str, n: int, law: str, seed: int) -> tuple[float, float, float]:
    """One number of a gap with its interval."""
    found = gap(n, 10, 0.5, 1.0, law, seed)
    return of_error(getattr(found, value), getattr(found, error))


def of_unrelated(n: int, number: Callable[[Any], float]) -> Callable[[int], float]:
    """A number of a gap between unrelated clouds of one distribution."""
    return lambda seed: number(gap(n, 10, 0.0, 0.0, "normal", seed))


torch.set_num_threads(1)
ROWS = [
    *(
        Row(
            f"intrinsic_dimension {method} error",
            f"{n} points, {law} cloud of {d} dimensions",
            "coverage",
            holds(partial(dimension, method, n, d, law)),
            reason={"gride": LARGE, "mle": MLE}.get(method, ""),
        )
        for method in ("2nn", "gride", "mle")
        for n in ((100, 200) if method == "gride" else (50, 200))  # of 50 points, neighbour 32 is as far as any two
        for d, law in ((2, "normal"), (5, "normal"), (10, "exponential"), (20, "normal"))
    ),
    *(
        Row(
            f"modality_gap {error}",
            f"{n} {law} pairs, 10 features, one of them shifted by 1",
            "coverage",
            holds(partial(gap_number, value, error, n, law)),
            reason=reason,
        )
        for value, error, reason in (
            (
                "separability",
                "separability_error",
                "the correction is for any share of errors that folds have in common",
            ),
            ("corrected_cosine", "corrected_error", ""),
        )
        for n in (50, 200)
        for law in ("normal", "exponential")
    ),
    *(
        Row(f"modality_gap {name}", f"{n} unrelated normal pairs, 10 features", kind, of_unrelated(n, number))
        for n in (50, 200)
        for name, kind, number in (
            ("p", "false positives", lambda found: found.p <= 0.05),
            ("separability", "chance", lambda found: found.separability - 0.5),
            ("corrected_cosine", "chance", lambda found: found.corrected_cosine),
            ("paired_cosine", "chance", lambda found: found.paired_cosine - found.shuffled_cosine),
            ("centroid_relative", "chance", lambda found: found.centroid_relative - found.centroid_chance),
        )
    ),
    *(
        Row(
            f"alignment_matrix {metric} interval",
            f"{n} {law} pairs, 12 features, half of the variance shared",
            "coverage",
            holds(partial(alignment, metric, n, law)),
            reason=SHARED,
        )
        for metric in ("svcca", "procrustes", "cka_biased", "cka")
        for n, law in ((50, "normal"), (200, "normal"), (200, "exponential"))
    ),
]
