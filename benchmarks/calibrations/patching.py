"""Effects of patches with their intervals, the p of a cell among all cells of a grid, and paired changes of two grids."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from calibrations import Row
from interp.patching import PatchResult
from interp.patching.family_changes import family_change
from interp.patching.patch_result import is_uncertain, relative_effect

LAYERS, POSITIONS = 4, 5
CELLS = (LAYERS, POSITIONS)
LAWS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "exponential": lambda rng, shape: rng.exponential(size=shape) - 1,
}
TRUTH = 0.4


def grid_of(changes: np.ndarray, span: np.ndarray, level: np.ndarray) -> PatchResult:
    """A result whose patches change the metric of the corrupted rows, `level`, by these `changes` [row, layer, position]."""
    per_row = torch.from_numpy(level[:, None, None] + changes)
    clean, corrupted = torch.from_numpy(level + span), torch.from_numpy(level)
    effect, low, high = relative_effect(per_row, clean, corrupted)
    columns, names = [[column] for column in range(POSITIONS)], ["a"] * POSITIONS
    bounds = (per_row.mean(dim=0), effect, low, high, per_row, clean, corrupted)
    return PatchResult(*bounds, list(range(LAYERS)), columns, names, "resid_pre", "metric", "denoise")


def shares(
    rng: np.random.Generator, n: int, law: str, count: int = 1, steady: float = 0.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Changes [grid, row, layer, position] of which a share of .4 is due to each row's span, spans and levels. `steady` is
    their standard deviation in means."""
    span, level = 2 + 2 * steady * LAWS[law](rng, (n,)), rng.normal(size=n)
    own = 0.5 * LAWS[law](rng, (n, *CELLS))
    changes = TRUTH * span[:, None, None] + own + 0.2 * LAWS[law](rng, (count, n, *CELLS))
    return changes, span, level


def effect(n: int, law: str, steady: float = 0.5) -> Callable[[int], float]:
    """The share of cells whose bounds hold the effect."""

    def draw(seed: int) -> float:
        changes, span, level = shares(np.random.default_rng(seed), n, law, steady=steady)
        found = grid_of(changes[0], span, level)
        return float(((found.low <= TRUTH) & (found.high >= TRUTH)).double().mean())

    return draw


def nothing_to_explain(n: int, law: str) -> Callable[[int], bool]:
    """Whether a span whose true mean is 0 passes for one that is not."""
    return lambda seed: not is_uncertain(torch.from_numpy(LAWS[law](np.random.default_rng(seed), (n,))))


def any_cell(n: int, law: str, size: float = 0.0) -> Callable[[int], bool]:
    """Whether a cell (one of `size`, else any) has a p of .05 among all."""

    def draw(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        before, after = LAWS[law](rng, (2, n, *CELLS)) + 0.5 * LAWS[law](
            rng, (2, n, 1, 1)
        )  # cells share a part of a row
        changes = after - before
        changes[:, 1, 2] += size
        p = grid_of(changes, 4 + rng.normal(size=n), rng.normal(size=n)).p
        return bool((p[1, 2] if size else p.min()) <= 0.05)

    return draw


def change(n: int, law: str, size: float = 0.0, bounds: bool = False) -> Callable[[int], float | bool]:
    """Of two grids of the same rows: the share of cells whose bounds hold their difference, or whether a cell has a p of .05."""

    def draw(seed: int) -> float | bool:
        changes, span, level = shares(np.random.default_rng(seed), n, law, count=2)
        changes[1, :, 1, 2] += size * span
        before, after = (grid_of(each, span, level) for each in changes)
        found = before.change(after)
        truth = torch.zeros(CELLS)
        truth[1, 2] = size
        if bounds:
            return float(((found.low <= truth) & (found.high >= truth)).double().mean())
        return bool((found.p[1, 2] if size else found.p.min()) <= 0.05)

    return draw


def windows(n: int, law: str) -> Callable[[int], bool]:
    """Whether any of 20 windows has a p of .05 for a change from the baseline."""

    def draw(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        before, after = torch.from_numpy(3 * rng.normal(size=(n, 1)) + LAWS[law](rng, (2, n, 20)))
        return bool(family_change(before, after).p.min() <= 0.05)

    return draw


UNCERTAIN = "where the span may be 0 the bounds are infinite"
ROWS = [
    *(
        Row("PatchResult low, high", f"{n} {law} rows", "coverage", effect(n, law))
        for law in LAWS
        for n in (10, 20, 50, 200)
    ),
    *(
        Row(
            "PatchResult low, high",
            f"{n} normal rows, spans that spread twice their mean",
            "coverage",
            effect(n, "normal", 2.0),
            UNCERTAIN,
        )
        for n in (10, 50)
    ),
    *(
        Row("PatchResult, note of a span", f"{n} {law} rows of span 0", "false positives", nothing_to_explain(n, law))
        for law in LAWS
        for n in (10, 50)
    ),
    *(
        Row("PatchResult p", f"{n} rows of {law} noise, any of 20 cells", "false positives", any_cell(n, law))
        for law in LAWS
        for n in (8, 20, 50)
    ),
    Row(
        "PatchResult p",
        "20 rows of normal noise, a cell of 1.3 standard deviations of the change",
        "power",
        any_cell(20, "normal", 2.0),
    ),
    *(
        Row("PatchResult.change low, high", f"{n} {law} rows", "coverage", change(n, law, 0.1, bounds=True))
        for law in LAWS
        for n in (10, 50)
    ),
    *(
        Row("PatchResult.change p", f"{n} {law} rows, any of 20 cells", "false positives", change(n, law))
        for law in LAWS
        for n in (8, 20, 50)
    ),
    Row("PatchResult.change p", "50 normal rows, effects of .4 and .5", "power", change(50, "normal", 0.1)),
    *(
        Row("SweepResult.change p", f"{n} rows of {law} noise, any of 20 windows", "false positives", windows(n, law))
        for law in LAWS
        for n in (8, 20)
    ),
]
