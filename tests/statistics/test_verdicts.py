"""Verdicts: the rule at its edges, and how often it says what is so."""

import numpy as np
import pytest
import torch

from interp.errors import InputError
from interp.statistics import mean_interval, paired_change, verdict


@pytest.mark.parametrize(
    ("estimate", "low", "high", "value"),
    [
        (0.3, 0.1, 0.5, "supported"),
        (0.1, 0.01, 0.19, "supported"),  # half of the smallest effect is enough where it is above 0 for certain
        (0.09, 0.01, 0.17, "contradicted"),  # above 0, and too small to matter
        (0.09, 0.01, 0.3, "undecided"),
        (0.0, -0.1, 0.1, "contradicted"),
        (-0.5, -0.7, -0.3, "contradicted"),
        (0.1, -0.2, 0.4, "undecided"),
        (0.1, 0.0, 0.2, "undecided"),
    ],
)
def test_the_rule(estimate, low, high, value):
    judged = verdict(estimate, low, high, smallest=0.2)
    assert judged.value == value
    assert str(judged).startswith(f"{value}: {estimate:.3g} [{low:.3g}, {high:.3g}] ")
    assert judged.detectable == pytest.approx(max(estimate - low, 0.1))


def test_an_undecided_claim_says_what_could_have_been_seen():
    judged = verdict(0.1, -0.2, 0.4, smallest=0.2)
    assert "does not" not in str(judged)
    assert str(judged).endswith("one of 0.3 could have been seen")
    again = verdict(0.3 + 1e-9, 1e-9, 0.6, smallest=0.2)  # an estimate of that size, with an interval as wide
    assert again.value == "supported"
    assert str(verdict(0.15, 0.11, 0.19, smallest=0.2)).endswith("is above 0, and below 0.2")


def shares(values):
    low, high = mean_interval(values)
    kinds = [verdict(*numbers, smallest=0.5).value for numbers in zip(values.mean(dim=0), low, high, strict=True)]
    return {kind: kinds.count(kind) / len(kinds) for kind in ("supported", "contradicted", "undecided")}


def test_planted_effects_are_supported_and_nothing_is_contradicted():
    rng = np.random.default_rng(0)
    nothing = torch.from_numpy(
        rng.normal(size=(50, 1000))
    )  # half of an interval is .28, under .7 of the smallest effect
    seen = shares(nothing)
    assert seen["supported"] <= 0.05
    assert seen["contradicted"] >= 0.8
    assert shares(nothing + 1.0)["supported"] >= 0.9  # twice the smallest effect
    seen = shares(nothing[:8])  # too few to decide: nothing is contradicted for lack of rows
    assert seen["supported"] <= 0.05
    assert seen["undecided"] >= 0.5
    assert shares(nothing[:8] + 1.0)["contradicted"] <= 0.05


def test_planted_changes_of_answers_are_supported():
    rng = np.random.default_rng(1)
    kinds = {0.0: [], 0.2: []}
    for effect, found in kinds.items():
        for _ in range(200):
            before = torch.from_numpy(rng.random(200) < 0.5)
            luck = torch.from_numpy(rng.random(200))
            after = torch.where(luck < 0.1 + effect, True, torch.where(luck > 0.9, False, before))
            before = torch.where((luck < 0.1 + effect) | (luck > 0.9), luck > 0.9, before)
            change = paired_change(before, after)
            found.append(verdict(change.difference, change.low, change.high, smallest=0.1).value)
    assert kinds[0.2].count("supported") >= 180
    assert kinds[0.0].count("supported") <= 10
    assert kinds[0.0].count("contradicted") >= 160


def test_an_estimate_may_leave_its_interval_by_the_rounding_of_float32():
    assert verdict(1 + 1e-7, 1, 1, smallest=0.5).value == "supported"
    assert verdict(-1 - 1e-7, -1, -1, smallest=0.5).value == "contradicted"
    assert verdict(1.0, 1, 1, smallest=4).detectable == 2


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_interval_is_refused():
    for numbers, said in [
        ((0.1, float("nan"), 0.2, 0.1), "low=nan: expected a finite number; a single row or group has no interval"),
        ((0.1, 0.0, 0.2, 0), "smallest=0: expected a number above 0, the smallest effect of interest"),
        ((0.1, 0.0, 0.2, -1), "smallest=-1: expected a number above 0, the smallest effect of interest"),
        ((0.1, 0.0, float("inf"), 0.1), "high=inf: expected a finite number; a single row or group has no interval"),
        ((-0.1, 0.0, 0.2, 0.1), "estimate=-0.1 is outside low=0 and high=0.2: expected it between them"),
        ((0.2001, 0.0, 0.2, 0.1), "estimate=0.2001 is outside low=0 and high=0.2: expected it between them"),
        ((1e-7, 2e-7, 3e-7, 1e-7), "estimate=1e-07 is outside low=2e-07 and high=3e-07: expected it between them"),
        ((0.3, 0.0, 0.2, 0.1), "estimate=0.3 is outside low=0 and high=0.2: expected it between them"),
        (("a", 0.0, 0.2, 0.1), "estimate='a': expected a finite number; a single row or group has no interval"),
    ]:
        with pytest.raises(InputError) as seen:
            verdict(*numbers)
        assert str(seen.value) == said
