"""Means over five models, each measured with an error: their intervals, the next model, and how far models differ.

Each call has 20 cells. `tau` is the spread of true values between models, in units of the smallest error.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from calibrations import Row
from interp.statistics import RandomEffects, random_effects

CELLS, MEAN = 20, 0.3
ERRORS = {
    "equal errors": np.ones(5),
    "errors of 1 to 4": np.geomspace(1, 4, 5),
    "one error of 1, four of 4": np.r_[1, [4] * 4],
}
ALIKE = "models that are all alike: the interval is at least that of one true value"
PRECISE = (0.86, 0.93)  # most of the weight is that of one model, which says nothing of how much models differ


def measured(seed: int, errors: np.ndarray, tau: float, shared: float = 0.0) -> tuple[RandomEffects, np.ndarray]:
    """What is found of five models, and the value of a sixth, with the error of one of them."""
    rng = np.random.default_rng(seed)
    of = np.r_[errors, rng.choice(errors)][:, None]
    values = (
        MEAN + tau * rng.normal(size=(6, CELLS)) + of * rng.normal(size=(6, CELLS)) + shared * rng.normal(size=CELLS)
    )
    table = torch.from_numpy(values[:5])
    return random_effects(table, torch.from_numpy(of[:5]).expand_as(table), shared), values[5]


def held(low: torch.Tensor, high: torch.Tensor, truth: np.ndarray | float) -> float:
    """The share of cells whose interval holds the truth."""
    return float(((low.numpy() <= truth) & (truth <= high.numpy())).mean())


def of_mean(errors: np.ndarray, tau: float, shared: float = 0.0) -> Callable[[int], float]:
    """Whether the interval holds the mean over all models and rows."""

    def draw(seed: int) -> float:
        found, _ = measured(seed, errors, tau, shared)
        return held(found.low, found.high, MEAN)

    return draw


def of_next(errors: np.ndarray, tau: float) -> Callable[[int], float]:
    """Whether the interval of the next model holds what a sixth one is measured at."""

    def draw(seed: int) -> float:
        found, sixth = measured(seed, errors, tau)
        return held(found.next_low, found.next_high, sixth)

    return draw


def of_tau(errors: np.ndarray, tau: float) -> Callable[[int], float]:
    """Whether the interval of tau holds it."""

    def draw(seed: int) -> float:
        found, _ = measured(seed, errors, tau)
        return held(found.tau2_low, found.tau2_high, tau**2)

    return draw


def of_p(errors: np.ndarray, tau: float) -> Callable[[int], float]:
    """Whether models are found to differ."""
    return lambda seed: float((measured(seed, errors, tau)[0].p <= 0.05).double().mean())


ROWS = [
    *(
        Row("random_effects interval", f"5 models, {name}, tau {tau:g}", "coverage", of_mean(errors, tau), ALIKE)
        for name, errors in list(ERRORS.items())[:2]
        for tau in (0, 1, 3)
    ),
    Row(
        "random_effects interval",
        "5 models, one error of 1, four of 4, tau 2: nearly all weight on one model",
        "coverage",
        of_mean(ERRORS["one error of 1, four of 4"], 2),
        band=PRECISE,
    ),
    *(
        Row(
            "random_effects interval",
            f"5 models, errors of 0.5, tau {tau:g}, an error of 1 that all share",
            "coverage",
            of_mean(np.full(5, 0.5), tau, shared=1.0),
            ALIKE,
        )
        for tau in (0, 1, 3)
    ),
    *(
        Row("random_effects next model", f"5 models, {name}, tau {tau:g}", "coverage", of_next(errors, tau), ALIKE)
        for name, errors in ERRORS.items()
        for tau in (0, 1, 3)
    ),
    *(Row("random_effects tau", f"5 models, {name}, tau 1", "coverage", of_tau(e, 1)) for name, e in ERRORS.items()),
    *(Row("random_effects p", f"5 models, {name}, tau 0", "false positives", of_p(e, 0)) for name, e in ERRORS.items()),
    Row("random_effects p", "5 models, equal errors, tau 3", "power", of_p(ERRORS["equal errors"], 3)),
]
