"""Intervals of means and of ratios of means, over rows and over groups. Every call has 20 cells."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from calibrations import Row
from interp.statistics import mean_interval, ratio_interval

CELLS = 20
LAWS = ("normal", "exponential", "binary")
SIZES = (5, 10, 20, 50, 200)
GROUPS = {
    "10 groups of 5 rows": np.repeat(np.arange(10), 5),
    "50 groups of 4 rows": np.repeat(np.arange(50), 4),
    "4 groups of 25 rows": np.repeat(np.arange(4), 25),
    "20 groups of 1 to 10 rows": np.repeat(np.arange(20), [*range(1, 11)] * 2),
    "11 groups, one with half of 100 rows": np.repeat(np.arange(11), [50, *[5] * 10]),
}
SAFE = "few or unequal groups: never more trials than rows, Student's quantile, and half a group's worth of doubt"


def drawn(rng: np.random.Generator, law: str, truth: np.ndarray, n: int) -> np.ndarray:
    """Rows of this law with these means, [n, cell]."""
    if law == "binary":
        return (rng.random((n, CELLS)) < truth).astype(float)
    return truth + (rng.normal(size=(n, CELLS)) if law == "normal" else rng.exponential(size=(n, CELLS)) - 1)


def covers(bounds: tuple[Tensor, Tensor], truth: np.ndarray) -> float:
    """The share of cells whose interval holds the truth."""
    low, high = (bound.numpy() for bound in bounds)
    return float(((low <= truth) & (truth <= high)).mean())


def of_rows(law: str, n: int) -> Callable[[int], float]:
    """Independent rows."""

    def draw(seed: int) -> float:
        rng = np.random.default_rng(seed)
        truth = rng.uniform(0.05, 0.95, CELLS)
        return covers(mean_interval(torch.from_numpy(drawn(rng, law, truth, n)), seed=seed), truth)

    return draw


def of_groups(law: str, groups: np.ndarray) -> Callable[[int], float]:
    """Half of the variance is the group's; of binary rows, half repeat their group's draw."""

    def draw(seed: int) -> float:
        rng = np.random.default_rng(seed)
        truth = rng.uniform(0.05, 0.95, CELLS)
        shared, own = drawn(rng, law, truth, groups.max() + 1)[groups], drawn(rng, law, truth, len(groups))
        repeats = rng.random((len(groups), CELLS)) < 0.5
        values = np.where(repeats, shared, own) if law == "binary" else shared + own - truth
        return covers(mean_interval(torch.from_numpy(values), groups, seed), truth)

    return draw


def of_ratios(n: int, groups: np.ndarray | None) -> Callable[[int], float]:
    """The parts are a uniform share of wholes that are exponential; in groups, half of each whole is the group's."""

    def draw(seed: int) -> float:
        rng = np.random.default_rng(seed)
        whole = rng.exponential(size=n)
        if groups is not None:
            whole = (whole + rng.exponential(size=groups.max() + 1)[groups]) / 2
        values = whole[:, None] * rng.random((n, CELLS))
        return covers(
            ratio_interval(torch.from_numpy(values), torch.from_numpy(whole), groups, seed), np.full(CELLS, 0.5)
        )

    return draw


ROWS = [
    *(Row("mean_interval", f"{n} {law} rows", "coverage", of_rows(law, n)) for law in LAWS for n in SIZES),
    *(
        Row("mean_interval", f"{law}, {name}", "coverage", of_groups(law, groups), SAFE)
        for law in LAWS
        for name, groups in GROUPS.items()
    ),
    *(Row("ratio_interval", f"{n} rows, exponential wholes", "coverage", of_ratios(n, None)) for n in SIZES[1:]),
    Row(
        "ratio_interval",
        "exponential wholes, 10 groups of 5 rows",
        "coverage",
        of_ratios(50, GROUPS["10 groups of 5 rows"]),
    ),
]
