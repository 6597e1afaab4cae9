"""Paired comparisons, corrections of many p, and verdicts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from calibrations import Row
from interp.statistics import Change, family_p, holm, mean_interval, paired_change, verdict

CELLS = 10
SIZES = (10, 20, 50, 200)
STATES = 33
EXACT = "McNemar's test is exact, and the number of changed answers is small"
RARE = "the interval adds half an item to each kind of pair"


def answers(seed: int, n: int, effect: float) -> Change:
    """Answers of which 15 % are gained and 15 % lost, and `effect` more are gained."""
    rng = np.random.default_rng(seed)
    luck, others = rng.random((n, CELLS)), rng.random((n, CELLS)) < 0.5
    gained, lost = luck < 0.15 + effect, luck > 0.85
    before, after = np.where(gained | lost, lost, others), np.where(gained | lost, gained, others)
    return paired_change(torch.from_numpy(before), torch.from_numpy(after), seed=seed)


def numbers(seed: int, n: int, effect: float, law: str = "normal", per_group: int = 1) -> Change:
    """Two measurements whose noise has a spread of 1 and whose difference is `effect`; in groups, noise has a shared part as
    large."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n // per_group), per_group)
    noise = rng.normal if law == "normal" else rng.exponential
    items = 3 * rng.normal(size=(n, CELLS))
    before, after = (
        torch.from_numpy(
            items + noise(size=(n, CELLS)) + (per_group > 1) * noise(size=(len(set(groups)), CELLS))[groups]
        )
        for _ in range(2)
    )
    return paired_change(before, after + effect, None if per_group == 1 else groups, seed)


def rejects(make: Callable[[int], Change]) -> Callable[[int], float]:
    """The share of cells with a p of .05 or less."""
    return lambda seed: float((make(seed).p <= 0.05).double().mean())


def holds(make: Callable[[int], Change], truth: float) -> Callable[[int], float]:
    """The share of cells whose interval holds the true change."""

    def draw(seed: int) -> float:
        change = make(seed)
        return float(((change.low <= truth) & (truth <= change.high)).double().mean())

    return draw


def any_of_a_family(alike: float, effect: float = 0.0) -> Callable[[int], bool]:
    """Whether any of 33 states, which share `alike` of their variance, is under .05; or state 7, which has an effect."""

    def draw(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        shared, own = rng.normal(size=(200, 1)), rng.normal(size=(200, STATES))
        values = torch.from_numpy((alike**0.5 * shared + (1 - alike) ** 0.5 * own) * np.arange(1, STATES + 1))
        values[0, 7] += effect * 8
        p = family_p(values[0], values[1:])
        return bool(p[7] <= 0.05 if effect else (p <= 0.05).any())

    return draw


def any_by_holm(seed: int) -> bool:
    """Whether any of 33 tests is under .05 after the correction."""
    return bool((holm(np.random.default_rng(seed).random(STATES)) <= 0.05).any())


def judged(value: str, effect: float) -> Callable[[int], float]:
    """The share of claims with this verdict: 50 normal rows with a spread of 1, and a smallest effect of .5."""

    def draw(seed: int) -> float:
        rows = torch.from_numpy(np.random.default_rng(seed).normal(effect, 1, (50, CELLS)))
        cells = zip(rows.mean(dim=0), *mean_interval(rows, seed=seed), strict=True)
        return float(np.mean([verdict(*cell, smallest=0.5).value == value for cell in cells]))

    return draw


def _rows() -> list[Row]:
    rows = []
    for n in SIZES:
        rows += [
            Row(
                "paired_change p",
                f"{n} answers, 30 % change",
                "false positives",
                rejects(lambda seed, n=n: answers(seed, n, 0)),
                EXACT,
            ),
            Row(
                "paired_change low, high",
                f"{n} answers, 30 % change",
                "coverage",
                holds(lambda seed, n=n: answers(seed, n, 0.1), 0.1),
                RARE,
            ),
        ]
        for law in ("normal", "exponential"):
            make = lambda seed, n=n, law=law: numbers(seed, n, 0.5, law)  # noqa: E731
            null = lambda seed, n=n, law=law: numbers(seed, n, 0.0, law)  # noqa: E731
            rows += [
                Row("paired_change p", f"{n} rows, {law} noise", "false positives", rejects(null)),
                Row("paired_change low, high", f"{n} rows, {law} noise", "coverage", holds(make, 0.5)),
            ]
    for count in (10, 20):
        make = lambda seed, n=5 * count: numbers(seed, n, 0.5, per_group=5)  # noqa: E731
        null = lambda seed, n=5 * count: numbers(seed, n, 0.0, per_group=5)  # noqa: E731
        rows += [
            Row("paired_change p", f"{count} groups of 5 rows", "false positives", rejects(null)),
            Row("paired_change low, high", f"{count} groups of 5 rows", "coverage", holds(make, 0.5)),
        ]
    return rows


ROWS = [
    *_rows(),
    Row(
        "paired_change p",
        "200 answers, 25 % gained and 15 % lost",
        "power",
        rejects(lambda seed: answers(seed, 200, 0.15)),
    ),
    Row(
        "paired_change p",
        "50 rows, a difference of .7 of its noise",
        "power",
        rejects(lambda seed: numbers(seed, 50, 1.0)),
    ),
    Row("family_p", "any of 33 independent states", "false positives", any_of_a_family(0.0)),
    Row("family_p", "any of 33 states that share .9 of their variance", "false positives", any_of_a_family(0.9)),
    Row("family_p", "33 states that share .9, an effect of 4 spreads in one", "power", any_of_a_family(0.9, 4.0)),
    Row("holm", "any of 33 independent tests", "false positives", any_by_holm),
    Row(
        "verdict",
        "supported, where nothing is there",
        "false positives",
        judged("supported", 0.0),
        "one tail of the interval, and an estimate of half the effect",
    ),
    Row(
        "verdict",
        "contradicted, where the effect is twice the smallest",
        "false positives",
        judged("contradicted", 1.0),
        "far from the bound",
    ),
    Row("verdict", "supported, where the effect is twice the smallest", "power", judged("supported", 1.0)),
    Row("verdict", "contradicted, where nothing is there", "power", judged("contradicted", 0.0)),
]
