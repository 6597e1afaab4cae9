"""Intervals against the samples that they claim to describe, and at their ends."""

import numpy as np
import pytest
import scipy.stats
import torch

from interp.errors import InputError
from interp.statistics import few_rows, mean_interval, ratio_interval
from interp.statistics.half_samples import NORMAL_95

SAMPLES = 4000
SIZES = (5, 10, 20, 50, 200)
GROUPS = {
    "10 of 5": np.repeat(np.arange(10), 5),
    "4 of 25": np.repeat(np.arange(4), 25),
    "20 unequal": np.repeat(np.arange(20), [*range(1, 11)] * 2),
    "one of half the rows": np.repeat(np.arange(11), [50, *[5] * 10]),
}


def coverage(low, high, truth):
    """The share of samples that cover, with room for the luck of the simulation on either side."""
    share = float(((low <= truth) & (truth <= high)).float().mean())
    luck = 2 * np.sqrt(share * (1 - share) / SAMPLES) + 0.002
    return share - luck, share + luck


def drawn(rng, law, *shape):
    return rng.normal(size=shape) if law == "normal" else rng.exponential(size=shape) - 1


@pytest.mark.parametrize("law", ["normal", "exponential"])
def test_intervals_of_continuous_rows_cover(law):
    rng = np.random.default_rng(0)
    for n in SIZES:
        least, most = coverage(*mean_interval(torch.from_numpy(drawn(rng, law, n, SAMPLES))), 0)
        assert most >= 0.93, (n, least, most)
        assert least <= 0.98, (n, least, most)


@pytest.mark.parametrize("law", ["normal", "exponential"])
def test_intervals_of_groups_cover(law):
    rng = np.random.default_rng(1)
    for name, groups in GROUPS.items():
        values = drawn(rng, law, groups.max() + 1, SAMPLES)[groups] + drawn(rng, law, len(groups), SAMPLES)
        least, most = coverage(*mean_interval(torch.from_numpy(values), groups), 0)
        assert most >= 0.93, (name, least, most)
        assert least <= 0.98, (name, least, most)


def test_intervals_of_binary_rows_cover():
    rng = np.random.default_rng(2)
    for n in SIZES:
        p = rng.uniform(0.05, 0.95, SAMPLES)
        least, most = coverage(*mean_interval(torch.from_numpy(rng.random((n, SAMPLES)) < p)), torch.from_numpy(p))
        assert most >= 0.93, (n, least, most)
        assert least <= 0.98, (n, least, most)


@pytest.mark.parametrize("shared", [0.0, 0.8])
def test_intervals_of_binary_groups_cover(shared):
    """Few groups are on the safe side: no more trials are counted than there are rows, and the quantile is Student's."""
    rng = np.random.default_rng(3)
    for name, groups in GROUPS.items():
        p = rng.uniform(0.05, 0.95, SAMPLES)
        of_group = rng.random((groups.max() + 1, SAMPLES)) < p
        alone = rng.random((len(groups), SAMPLES)) < p
        hits = np.where(rng.random((len(groups), SAMPLES)) < np.sqrt(shared), of_group[groups], alone)
        low, high = mean_interval(torch.from_numpy(hits), groups)
        assert coverage(low, high, torch.from_numpy(p))[1] >= 0.93, name
        assert (high - low).mean() < 0.9, name


def test_intervals_of_ratios_cover():
    rng = np.random.default_rng(4)
    for n in (10, 50):
        lows, highs = [], []
        for _ in range(400):
            whole = rng.exponential(size=n)
            low, high = ratio_interval(torch.from_numpy(whole[:, None] * rng.random((n, 10))), torch.from_numpy(whole))
            lows.append(low)
            highs.append(high)
        least, most = coverage(torch.cat(lows), torch.cat(highs), 0.5)
        assert most >= 0.93, (n, least, most)
        assert least <= 0.985, (n, least, most)


def test_ten_of_ten_is_wilsons_and_groups_are_fewer_trials():
    for n, hits in [(10, 10), (10, 0), (40, 31)]:
        rows = torch.arange(n) < hits
        ours = [float(bound) for bound in mean_interval(rows.float())]
        theirs = scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")
        assert ours == pytest.approx([theirs.low, theirs.high], abs=1e-6)
    copies = torch.arange(10).repeat_interleave(4)  # four copies of each of ten rows are worth ten
    low, high = mean_interval(torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1, 0, 1])[copies], groups=copies)
    lone = mean_interval(torch.tensor([1.0, 0, 1, 1, 0, 1, 1, 1, 0, 1]))
    assert low < lone[0]
    assert high > lone[1]
    assert high - low < 1.3 * (lone[1] - lone[0])
    low, _ = mean_interval(torch.ones(40), groups=copies)
    student = scipy.stats.t.ppf(0.975, 9)
    assert float(low) == pytest.approx(10 / (10 + student**2), abs=1e-5)


def test_the_interval_of_a_mean_takes_in_students_and_reaches_twice_as_far_at_most():
    values = torch.from_numpy(np.random.default_rng(0).exponential(size=(12, 50)))
    low, high = mean_interval(values)
    theirs = scipy.stats.ttest_1samp(values.numpy(), 0).confidence_interval()
    assert (low.numpy() <= theirs.low + 1e-9).all()
    assert (high.numpy() >= theirs.high - 1e-9).all()
    reach = theirs.high - values.numpy().mean(axis=0)
    assert ((high.numpy() - theirs.high) <= reach + 1e-9).all()
    assert (high.numpy() - theirs.high).mean() > 0.2 * reach.mean()  # skewed to the right
    assert (theirs.low - low.numpy()).mean() < 0.02 * reach.mean()


def test_equal_groups_are_rows_of_their_means():
    values = torch.from_numpy(np.random.default_rng(1).normal(size=(12, 3)))
    groups = np.repeat(list("abcd"), 3).tolist()
    for ours, theirs in zip(
        mean_interval(values, groups), mean_interval(values.reshape(4, 3, 3).mean(dim=1)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_a_ratio_draws_both_parts_of_a_row_together_and_its_sign_is_free():
    rng = np.random.default_rng(0)
    whole = torch.from_numpy(rng.uniform(1, 5, 50))
    values = torch.stack([whole * 0.5, whole * torch.from_numpy(rng.random(50))], dim=1)
    low, high = ratio_interval(values, whole)
    np.testing.assert_allclose([low[0], high[0]], 0.5)  # the same share in every row: nothing to be unsure of
    ratio = values[:, 1].sum() / whole.sum()
    error = ((values[:, 1] - ratio * whole).square().sum() * 50 / 49).sqrt() / whole.sum()
    np.testing.assert_allclose([ratio - low[1], high[1] - ratio], NORMAL_95 * error, rtol=0.15)
    for ours, turned in zip((low, high), ratio_interval(-values, -whole), strict=True):
        np.testing.assert_allclose(ours, turned, rtol=1e-5)


def test_a_cell_that_is_one_number_in_a_table_of_others_is_that_number():
    values = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    values[:, 1], values[3, 2] = 1.0, float("nan")
    low, high = mean_interval(values)
    assert low[1] == high[1] == 1
    assert low[2].isnan()
    assert high[2].isnan()
    assert low[0] < values[:, 0].mean() < high[0]


def test_one_row_or_group_has_no_interval_two_have_and_the_seed_decides():
    assert all(bound.isnan().all() for bound in mean_interval(torch.ones(1, 2, 3)))
    assert all(bound.isnan().all() for bound in mean_interval(torch.randn(6), groups=["a"] * 6))
    low, high = mean_interval(torch.tensor([[0.1, 0.2], [0.3, 0.5]]))
    assert low.shape == (2,)
    assert low.dtype == torch.float32
    assert (high - low > 2).all()
    values = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)).exp()
    assert (mean_interval(values, seed=1)[0] == mean_interval(values, seed=1)[0]).all()
    assert (mean_interval(values, seed=1)[1] != mean_interval(values, seed=2)[1]).any()


def test_few_rows_are_noted():
    assert few_rows(20) == ()
    assert "19 rows or groups, under 20" in few_rows(19)[0]
    assert few_rows(1) == ()


@pytest.mark.usefixtures("unchecked")
def test_what_does_not_fit_the_rows_is_refused():
    with pytest.raises(InputError, match=r"^3 groups for 4 examples"):
        mean_interval(torch.randn(4), groups=["a", "b", "c"])
    with pytest.raises(InputError, match=r"^whole has shape \(3,\): expected one number for each of the 4 rows$"):
        ratio_interval(torch.randn(4), torch.ones(3))
