"""Rows of geometry over layers: intervals, chance and phases of matrices, corrected p of comparisons, and paired changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from calibrations import Row
from interp.geometry import alignment_matrix, compare, id_correlation

FEATURES = 6
HALVES = "the spread of half-samples is 1.0 to 1.7 times that of the value"
INFLUENCES = "the spread of influences is 1.0 to 1.25 times that of an overlap"


def unrelated(seed: int, n: int, layers: int) -> tuple[Tensor, Tensor]:
    """Normal clouds that share nothing."""
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(2, layers, n, FEATURES))).unbind(0)


def checkpoints(seed: int, n: int, rise: float, own: float, layers: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Images of two checkpoints and captions. Both hold one code, the images with a correlation of 0.6 before and 0.6 + `rise`
    after; a share `own` of their noise is each checkpoint's own."""
    code, noise, caption, *parts = np.random.default_rng(seed).normal(size=(5, layers, n, FEATURES))
    states = []
    for share, mine in zip((0.6, 0.6 + rise), parts, strict=True):
        rest = (1 - own**2) ** 0.5 * noise + own * mine
        states.append(torch.from_numpy(share * code + (1 - share**2) ** 0.5 * rest))
    return states[0], states[1], torch.from_numpy(0.8 * code + 0.6 * caption)


def neighbours(metric: str, n: int) -> int | None:
    """The number of neighbours of a measure, None for others."""
    return max(3, n // 10) if metric in ("neighbor_overlap", "mutual_knn") else None


# What a value is over draws of examples, from draws of its own ----------------------------------------------------------

_TRUTH: dict[tuple[str, int], float] = {}


def truth(metric: str, n: int) -> float:
    """The mean value of one layer of `checkpoints` over 400 draws."""
    if (metric, n) not in _TRUTH:
        k, values = neighbours(metric, n), []
        for seed in range(400):
            before, _, textual = checkpoints(10**6 + seed, n, 0, 0.3)
            found = alignment_matrix(before, textual, metric, k=k, subsamples=0, permutations=0)
            values.append(float(found.values))
        _TRUTH[metric, n] = float(np.mean(values))
    return _TRUTH[metric, n]


def covers(metric: str, n: int) -> Callable[[int], bool]:
    """Whether the interval of a value holds its mean over draws."""

    def draw(seed: int) -> bool:
        before, _, textual = checkpoints(seed, n, 0, 0.3)
        found = alignment_matrix(before, textual, metric, k=neighbours(metric, n), permutations=0, seed=seed)
        return float(found.low) <= truth(metric, n) <= float(found.high)

    return draw


def excess(metric: str, n: int) -> Callable[[int], float]:
    """The value less the chance level beside it."""

    def draw(seed: int) -> float:
        found = alignment_matrix(*unrelated(seed, n, 3), metric, k=neighbours(metric, n), subsamples=0, permutations=0)
        return float(found.values.mean()) - found.chance

    return draw


def has_phase(metric: str, layers: int) -> Callable[[int], bool]:
    """Whether unrelated layers have a phase."""

    def draw(seed: int) -> bool:
        found = alignment_matrix(
            *unrelated(seed, 50, layers), metric, k=neighbours(metric, 50), subsamples=10, seed=seed
        )
        return found.phase() is not None

    return draw


def smallest_p(column: str, metrics: tuple[str, ...], layers: int) -> Callable[[int], bool]:
    """Whether the smallest of a column of p is at most 0.05."""

    def draw(seed: int) -> bool:
        labels = np.random.default_rng(seed).integers(0, 3, size=50)
        found = compare(*unrelated(seed, 50, layers), metrics, labels, subsamples=0, seed=seed)
        return bool(found.to_frame()[column].min() <= 0.05)

    return draw


def share_of_p(metric: str) -> Callable[[int], float]:
    """The share of p of at most 0.05."""

    def draw(seed: int) -> float:
        labels = np.random.default_rng(seed).integers(0, 3, size=50)
        found = compare(*unrelated(seed, 50, 1), [metric], labels, subsamples=0, seed=seed)
        return float((found.p <= 0.05).double().mean())

    return draw


def matrix_change(metric: str, n: int, rise: float, own: float, what: str, layers: int = 1) -> Callable[[int], bool]:
    """Whether the interval of the change holds 0 (`what` "covers"), or a layer's p is at most 0.05."""

    def draw(seed: int) -> bool:
        before, after, textual = checkpoints(seed, n, rise, own, layers)
        options = {"metric": metric, "k": neighbours(metric, n), "permutations": 0, "seed": seed}
        found = alignment_matrix(before, textual, **options).change(alignment_matrix(after, textual, **options))
        if what == "covers":
            return bool(found.low[0, 0] <= 0 <= found.high[0, 0])
        return bool((found.p_diagonal <= 0.05).any())

    return draw


def comparison_change(metric: str, n: int) -> Callable[[int], float]:
    """The share of p of a change of at most 0.05, where there is none."""

    def draw(seed: int) -> float:
        before, after, textual = checkpoints(seed, n, 0, 0.3)
        one, other = (compare(each, textual, [metric], permutations=1, seed=seed) for each in (before, after))
        found = one.change(other)
        return float((found[found.modality != "textual"].p <= 0.05).mean())

    return draw


def shares_dimension(seed: int) -> bool:
    """Whether unrelated clouds share dimensions at 0.05."""
    x, y = unrelated(seed, 60, 1)
    return id_correlation(x[0], y[0], permutations=39, seed=seed, progress=False).p <= 0.05


COVERAGE, FALSE, POWER = "coverage", "false positives", "power"
TABLES = ("neighbor_overlap", "cka", "information_imbalance")
ROWS = [
    *(
        Row(f"alignment_matrix interval, {metric}", f"{n} normal examples", COVERAGE, covers(metric, n), HALVES)
        for metric in (*TABLES, "mutual_knn")
        for n in (20, 50, 200)
    ),
    *(
        Row(f"alignment_matrix chance, {metric}", "50 unrelated examples", "chance", excess(metric, 50))
        for metric in (*TABLES, "cka_rbf", "rsa")
    ),
    *(
        Row(
            f"AlignmentMatrix.phase, {metric}",
            "33 unrelated layers",
            FALSE,
            has_phase(metric, 33),
            "its interval must be above chance too",
        )
        for metric in TABLES
    ),
    *(
        Row(f"compare p, {metric}", "50 unrelated examples", FALSE, share_of_p(metric))
        for metric in (*TABLES, "label_overlap", "rsa")
    ),
    Row("compare p_family, cka", "smallest of 33 unrelated states", FALSE, smallest_p("p_family", ("cka",), 33)),
    Row(
        "compare p_all, label_overlap",
        "smallest of 9 unrelated states of 2 modalities",
        FALSE,
        smallest_p("p_all", ("label_overlap",), 9),
    ),
    Row(
        "compare p_holm, cka",
        "smallest of 9 unrelated states",
        FALSE,
        smallest_p("p_holm", ("cka",), 9),
        "Holm's correction of p that are multiples of 1/200",
    ),
    Row(
        "compare p_all",
        "smallest of 9 unrelated states, overlap, CKA and imbalance",
        FALSE,
        smallest_p("p_all", TABLES, 9),
    ),
    *(
        Row(
            f"AlignmentMatrix.change {name}, {metric}",
            f"{n} examples, no change",
            kind,
            matrix_change(metric, n, 0, 0.3, what),
            INFLUENCES if metric == "neighbor_overlap" else HALVES,
        )
        for metric in (*TABLES, "procrustes")
        for n in (20, 50, 200)
        for name, kind, what in (("p", FALSE, "finds"), ("interval", COVERAGE, "covers"))
    ),
    *(
        Row(
            f"AlignmentMatrix.change p_diagonal, {metric}",
            "9 layers of 100 examples, no change",
            FALSE,
            matrix_change(metric, 100, 0, 0.3, "finds", 9),
            INFLUENCES,
        )
        for metric in TABLES
    ),
    *(
        Row(
            f"AlignmentMatrix.change p, {metric}",
            "300 examples, correlation 0.60 to 0.64",
            POWER,
            matrix_change(metric, 300, 0.04, 0.1, "finds"),
            band=(0.5, 1.0) if metric == "information_imbalance" else None,  # the rank of one neighbour is mostly noise
        )
        for metric in TABLES
    ),
    *(
        Row(
            f"GeometryComparison.change p, {metric}",
            "100 examples, no change",
            FALSE,
            comparison_change(metric, 100),
            HALVES,
        )
        for metric in (
            "neighbor_overlap",
            "cka",
            "procrustes",
            "participation_ratio",
            "2nn",
            "gride",
            "corrected_cosine",
        )
    ),
    Row("id_correlation p", "60 unrelated examples", FALSE, shares_dimension),
]
