"""Intervals of shares against scipy's, and what they refuse."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, bootstrap

from interp.errors import InputError
from interp.statistics.proportions import bootstrap_shares, wilson_interval


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (7, 10), (10, 10), (55, 120)])
def test_wilson_agrees_with_scipy(hits, n):
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_share_is_refused():
    for share, n in [
        (1.5, 10),
        ("a", 3),
        ("0.5", 3),
        (0.5, "3"),
        (None, 3),
        (0.5, 0),
        (float("nan"), 3),
        (0.5, np.inf),
    ]:
        with pytest.raises(InputError, match=r"^share=.* of n=.*: expected a share in \[0, 1\] of a positive number$"):
            wilson_interval(share, n)
    assert wilson_interval(torch.tensor(0.5), torch.tensor(10)) == wilson_interval(0.5, 10)


@pytest.mark.parametrize("per_group", [1, 5])
def test_the_interval_is_the_percentile_bootstrap_over_groups(per_group):
    rng = np.random.default_rng(0)
    chance = np.repeat(rng.random(60), per_group)
    hits = rng.random((2, 60 * per_group)) < chance
    blocks = None if per_group == 1 else rng.permutation(60)[np.repeat(np.arange(60), per_group)]
    low, high = bootstrap_shares(hits, blocks, seed=0)
    for state, row in enumerate(hits):
        shares = row.reshape(60, per_group).mean(axis=1)
        expected = bootstrap((shares,), np.mean, method="percentile", n_resamples=5000, rng=0).confidence_interval
        assert float(low[state]) == pytest.approx(expected.low, abs=0.02)
        assert float(high[state]) == pytest.approx(expected.high, abs=0.02)


def test_where_all_answers_are_right_a_group_counts_as_one():
    hits = np.stack([np.ones(40, bool), np.zeros(40, bool)])
    low, high = bootstrap_shares(hits, np.repeat(np.arange(10), 4), seed=0)
    assert [(float(a), float(b)) for a, b in zip(low, high, strict=True)] == [
        wilson_interval(1.0, 10),
        wilson_interval(0.0, 10),
    ]


def test_one_group_in_the_test_part_leaves_the_accuracy_open():
    hits = np.array([[True, True, False, True]])
    low, high = bootstrap_shares(hits, np.zeros(4, int), seed=0)
    assert (float(low), float(high)) == pytest.approx(wilson_interval(0.75, 1))
