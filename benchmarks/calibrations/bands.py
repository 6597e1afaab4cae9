"""Answers of several runs to the same grouped questions: shares, changes and ratios over other questions and other seeds.

A run is right where the ease of a question (which groups share), the luck of the run at it and the seed of the run are below a
threshold in sum, all normal, so the share over all questions and seeds is known. The seeds of two bands are independent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import norm

from calibrations import Row
from interp.statistics import crossed_change, crossed_ratio, crossed_share

GROUPS, EACH = 100, 3
LABELS = np.repeat(np.arange(GROUPS), EACH)
OF_GROUPS, OF_QUESTIONS, OF_LUCK = 0.4, 0.3, 0.3


def draw_answers(seed: int, shares: tuple[float, ...], runs: int, points: float) -> list[torch.Tensor]:
    """The right answers [run, question] of bands with these shares, whose runs differ by so many points beyond chance."""
    rng = np.random.default_rng(seed)
    ease = OF_GROUPS**0.5 * rng.normal(size=GROUPS)[LABELS] + OF_QUESTIONS**0.5 * rng.normal(size=len(LABELS))
    answers = []
    for share in shares:
        threshold = norm.ppf(share)
        of_seeds = points / 100 / norm.pdf(threshold)
        luck = OF_LUCK**0.5 * rng.normal(size=(runs, len(LABELS)))
        hard = ease + luck + of_seeds * rng.normal(size=(runs, 1))
        answers.append(torch.from_numpy(hard < threshold * (1 + of_seeds**2) ** 0.5))
    return answers


def share_covers(runs: int, points: float, share: float = 0.9) -> Callable[[int], bool]:
    """Whether the interval of a share holds it."""

    def draw(seed: int) -> bool:
        found = crossed_share(draw_answers(seed, (share,), runs, points)[0], LABELS)
        return found.low <= share <= found.high

    return draw


def change_covers(runs: int, points: float) -> Callable[[int], bool]:
    """Whether the interval of a change from .9 to .8 holds it."""

    def draw(seed: int) -> bool:
        one, other = draw_answers(seed, (0.9, 0.8), runs, points)
        found = crossed_change(one, other, LABELS)
        return found.low <= 0.8 - 0.9 <= found.high

    return draw


def ratio_covers(runs: int, points: float) -> Callable[[int], bool]:
    """Whether the interval of a ratio of .95 holds it."""

    def draw(seed: int) -> bool:
        full, band = draw_answers(seed, (0.9, 0.855), runs, points)
        found = crossed_ratio(band, full, LABELS)
        return found.low <= 0.95 <= found.high

    return draw


def change_rejects(runs: int, points: float, after: float) -> Callable[[int], bool]:
    """Whether a change from .9 is found."""

    def draw(seed: int) -> bool:
        one, other = draw_answers(seed, (0.9, after), runs, points)
        return crossed_change(one, other, LABELS).p <= 0.05

    return draw


def not_inferior(runs: int, points: float, ratio: float) -> Callable[[int], bool]:
    """Whether a band of this share of full tuning is called not inferior to .95 of it."""

    def draw(seed: int) -> bool:
        full, band = draw_answers(seed, (0.9, 0.9 * ratio), runs, points)
        return crossed_ratio(band, full, LABELS).low > 0.95

    return draw


def design(runs: int, points: float) -> str:
    """The design in words."""
    by = "points" if points != 1 else "point"
    return f"{runs} runs whose seeds differ by {points} {by}, {GROUPS} groups of {EACH} questions"


LUCK = "what is peculiar to one question in one run counts as a question's and as a run's"
DESIGNS = ((3, 0), (3, 3), (5, 3))
ROWS = [
    *(Row("crossed_share low, high", design(*each), "coverage", share_covers(*each)) for each in DESIGNS),
    *(Row("crossed_change low, high", design(*each), "coverage", change_covers(*each), LUCK) for each in DESIGNS),
    *(Row("crossed_ratio low, high", design(*each), "coverage", ratio_covers(*each), LUCK) for each in DESIGNS),
    Row("crossed_change p", design(3, 3), "false positives", change_rejects(3, 3, 0.9)),
    Row(
        "BandComparison verdict",
        f"not inferior, where the ratio is the margin; {design(3, 3)}",
        "false positives",
        not_inferior(3, 3, 0.95),
        band=(0.0, 0.04),
    ),
    Row(
        "BandComparison verdict",
        f"not inferior, where the ratio is 1; {design(5, 1)}",
        "power",
        not_inferior(5, 1, 1.0),
    ),
]
