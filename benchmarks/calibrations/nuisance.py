"""Two clouds that share one length of each example: what shuffles within strata, and residuals, make of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from calibrations import Row
from interp.geometry import alignment_matrix, compare, id_correlation, modality_gap, partial_out

N = 90


def draw_clouds(seed: int, shared: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two clouds that length drives, with this share of their other variance in common, and the lengths."""
    rng = np.random.default_rng(seed)
    length, common = rng.integers(4, 9, size=N), rng.normal(size=(N, 6))
    first, second = (
        np.outer(length - 6.0, 2 * rng.normal(size=6))
        + (1 - shared) ** 0.5 * rng.normal(size=(N, 6))
        + shared**0.5 * common
        for _ in range(2)
    )
    return first, second, length


def matrix_rejects(metric: str, within: bool, shared: float = 0.0, residuals: bool = False) -> Callable[[int], bool]:
    """Whether the only cell of a matrix is found."""

    def draw(seed: int) -> bool:
        x, y, length = draw_clouds(seed, shared)
        if residuals:
            x, y = (partial_out(each, length).numpy() for each in (x, y))
        k = None if metric == "cka" else 10
        options: dict[str, Any] = {"permutations": 39, "subsamples": 0, "strata": length if within else None}
        return bool(alignment_matrix(x[None], y[None], metric, k, seed=seed, **options).p_family <= 0.05)

    return draw


def compare_rejects(metric: str) -> Callable[[int], bool]:
    """Whether `compare` finds a measure within strata."""

    def draw(seed: int) -> bool:
        x, y, length = draw_clouds(seed)
        labels = length + np.random.default_rng(seed + 10**6).integers(-1, 2, size=N) > 6
        found = compare(x[None], y[None], [metric], labels, subsamples=0, permutations=39, seed=seed, strata=length)
        return bool(found.p[0] <= 0.05)

    return draw


def gap_rejects(seed: int) -> bool:
    """Whether pairs of a gap are closer than pairs of their strata."""
    x, y, length = draw_clouds(seed)
    return modality_gap(x + 1, y, 39, seed=seed, strata=length).p <= 0.05


def dimension_rejects(seed: int) -> bool:
    """Whether the correlation by dimension is found within strata."""
    x, y, length = draw_clouds(seed)
    return id_correlation(x, y, 39, seed=seed, strata=length, progress=False).p <= 0.05


def chance_off(seed: int) -> float:
    """The overlap less its chance level within strata."""
    x, y, length = draw_clouds(seed)
    matrix = alignment_matrix(x[None], y[None], k=10, permutations=39, subsamples=0, seed=seed, strata=length)
    return float(matrix.values[0, 0]) - matrix.chance


DRIVEN = f"{N} rows, length drives both clouds"
ROWS = [
    *(
        Row(
            f"alignment_matrix p_family, {metric}",
            f"{DRIVEN}, no strata: found",
            "power",
            matrix_rejects(metric, False),
        )
        for metric in ("neighbor_overlap", "cka")
    ),
    *(
        Row(
            f"alignment_matrix p_family, {metric}", f"{DRIVEN}, strata", "false positives", matrix_rejects(metric, True)
        )
        for metric in ("neighbor_overlap", "cka")
    ),
    Row(
        "alignment_matrix p_family, neighbor_overlap",
        f"{DRIVEN}, strata, .6 shared beyond",
        "power",
        matrix_rejects("neighbor_overlap", True, 0.6),
    ),
    Row(
        "alignment_matrix p_family, cka",
        f"{DRIVEN}, strata and partial_out, .6 shared beyond",
        "power",
        matrix_rejects("cka", True, 0.6, residuals=True),
    ),
    Row(
        "alignment_matrix p_family, cka",
        f"{DRIVEN}, partial_out",
        "false positives",
        matrix_rejects("cka", False, residuals=True),
    ),
    Row(
        "alignment_matrix p_family, cka",
        f"{DRIVEN}, partial_out, .6 shared beyond",
        "power",
        matrix_rejects("cka", False, 0.6, True),
    ),
    Row("alignment_matrix chance, neighbor_overlap", f"{DRIVEN}, strata", "chance", chance_off),
    *(
        Row(f"compare p, {metric}", f"{DRIVEN} and labels, strata", "false positives", compare_rejects(metric))
        for metric in ("cka", "label_overlap", "paired_cosine")
    ),
    Row("modality_gap p", f"{DRIVEN}, strata", "false positives", gap_rejects),
    Row("id_correlation p", f"{DRIVEN}, strata", "false positives", dimension_rejects),
]
