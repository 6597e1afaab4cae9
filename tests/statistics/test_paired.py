"""Paired changes against scipy's tests, and against samples whose change is known."""

import numpy as np
import pytest
import scipy.stats
import torch

from interp.errors import InputError
from interp.statistics import mean_interval, paired_change


def answers(rng, n, cells, gained, lost):
    """Answers before and after, [n, cells], of which these shares change."""
    luck = rng.random((n, cells))
    after = np.where(luck < gained, 1, np.where(luck < gained + lost, 0, rng.integers(2, size=(n, cells))))
    before = np.where(luck < gained, 0, np.where(luck < gained + lost, 1, after))
    return torch.from_numpy(before), torch.from_numpy(after)


def test_answers_have_the_exact_mcnemar_p():
    before, after = answers(np.random.default_rng(0), 60, 20, 0.2, 0.1)
    change = paired_change(before, after)
    for cell in range(20):
        gained, lost = (int((after[:, cell] - before[:, cell] == sign).sum()) for sign in (1, -1))
        assert float(change.p[cell]) == pytest.approx(scipy.stats.binomtest(gained, gained + lost).pvalue)
        assert float(change.difference[cell]) == pytest.approx((gained - lost) / 60)
    assert change.n == 60
    assert (change.low < change.difference).all()
    assert (change.difference < change.high).all()


@pytest.mark.parametrize("n", [5, 20, 200])
def test_the_interval_of_answers_covers(n):
    rng = np.random.default_rng(1)
    shares = rng.dirichlet([1, 1, 2], 4000)[:, :2]
    change = paired_change(*answers(rng, n, 4000, *shares.T))
    truth = torch.from_numpy(shares[:, 0] - shares[:, 1])
    assert 0.935 < ((change.low <= truth) & (truth <= change.high)).float().mean() < 0.98


def test_no_answer_changed_is_no_certainty():
    same = torch.ones(20)
    change = paired_change(same, same)
    assert float(change.p) == 1
    assert float(change.low) == -float(change.high) < -0.05
    grouped = paired_change(same, same, groups=torch.arange(20) // 4)
    assert grouped.low < change.low
    assert grouped.n == 5


@pytest.mark.parametrize("n", [8, 12])
def test_few_numbers_are_compared_by_all_signs(n):
    before, after = torch.from_numpy(np.random.default_rng(2).normal(size=(2, n)))
    theirs = scipy.stats.permutation_test(
        ((after - before).numpy(),), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    change = paired_change(before, after)
    assert float(change.p) == pytest.approx(theirs.pvalue)
    assert (change.low, change.high) == mean_interval(after - before)


def test_signs_of_groups_hold_their_level_where_signs_of_rows_would_not():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(15), 6)
    before = torch.zeros(90, 2000)
    after = torch.from_numpy(rng.normal(size=(15, 2000))[groups] + rng.normal(size=(90, 2000)))
    whole, alone = paired_change(before, after, groups), paired_change(before, after)
    assert 0.035 < (whole.p <= 0.05).float().mean() < 0.065
    assert (alone.p <= 0.05).float().mean() > 0.2
    assert 0.93 < ((whole.low < 0) & (whole.high > 0)).float().mean() < 0.98


def test_answers_in_groups_cover():
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(12), 5)
    of_group = answers(rng, 12, 3000, 0.25, 0.1)
    alone = answers(rng, 60, 3000, 0.25, 0.1)
    together = torch.from_numpy(rng.random((60, 3000)) < 0.6)
    before, after = (torch.where(together, one[groups], two) for one, two in zip(of_group, alone, strict=True))
    change = paired_change(before, after, groups)
    assert 0.93 < ((change.low <= 0.15) & (change.high >= 0.15)).float().mean() < 0.985


def test_a_pairing_sees_what_two_intervals_hide():
    rng = np.random.default_rng(5)
    items = rng.normal(0, 3, 100)
    before, after = (torch.from_numpy(items + shift + rng.normal(0, 0.3, 100)) for shift in (0, 0.3))
    assert mean_interval(before)[1] > mean_interval(after)[0]  # the two overlap
    change = paired_change(before, after)
    assert change.low > 0
    assert change.p < 0.001


def test_a_single_unit_has_no_bounds_and_nan_stays_nan():
    change = paired_change(torch.zeros(4), torch.ones(4), groups=["a"] * 4)
    assert change.low.isnan()
    assert float(change.p) == 1
    assert float(change.difference) == 1
    before = torch.zeros(4, 2)
    before[1, 1] = torch.nan
    change = paired_change(before, torch.rand(4, 2))
    assert change.p.isnan().tolist() == [False, True]
    assert change.low.isnan().tolist() == [False, True]
    change = paired_change(before, torch.ones(4, 2))
    for numbers in (change.p, change.low, change.high, change.difference):
        assert numbers.isnan().tolist() == [False, True]


def test_the_interval_of_answers_by_hand():
    """Agresti and Min: half an item more in each of the four kinds of pairs, within -1 and 1."""
    before, after = torch.tensor([0, 0, 0, 1, 1, 0, 1, 0]), torch.tensor([1, 1, 1, 0, 1, 0, 1, 1])
    gained, lost = 4.5 / 10, 1.5 / 10
    half_width = 1.959964 * ((gained + lost - (gained - lost) ** 2) / 10) ** 0.5
    change = paired_change(before, after)
    assert float(change.low) == pytest.approx(gained - lost - half_width)
    assert float(change.high) == pytest.approx(gained - lost + half_width)
    few = paired_change(torch.tensor([[0, 1]] * 2), torch.tensor([[1, 0]] * 2))
    assert (float(few.high[0]), float(few.low[1])) == (1, -1)


def test_the_interval_of_answers_in_groups_by_hand():
    """Each group agrees with itself, so its rows are worth about one item, and Student's quantile is that of the groups."""
    groups = np.repeat(np.arange(10), 4)
    before = torch.zeros(40)
    after = torch.tensor([1.0] * 4 + [0.0] * 6)[groups]
    change, alone = paired_change(before, after, groups), paired_change(before[::4], after[::4])
    wider = scipy.stats.t.ppf(0.975, 9) / 1.959964
    assert 1 < float(change.high - change.low) / (wider * float(alone.high - alone.low)) < 1.1
    assert change.n == 10


def test_random_signs_and_draws_follow_the_seed():
    before, after = torch.from_numpy(np.random.default_rng(6).normal(size=(2, 30)))
    one, again, other = (paired_change(before, after, seed=seed) for seed in (0, 0, 1))
    assert (one.p, one.high) == (again.p, again.high)
    assert one.p != other.p
    assert one.high != other.high
    assert float(one.p) == pytest.approx(float(other.p), abs=0.03)
    assert float(paired_change(torch.zeros(300), torch.ones(300) * 2).p) == 1e-4  # never 0


@pytest.mark.usefixtures("unchecked")
def test_no_rows_are_refused():
    for none in (torch.ones(0), torch.ones(0, 3)):
        with pytest.raises(InputError, match=r"expected the same rows and cells twice$"):
            paired_change(none, none)


@pytest.mark.usefixtures("unchecked")
def test_other_rows_are_refused():
    with pytest.raises(
        InputError, match=r"^before has shape \(3,\) and after \(4,\): expected the same rows and cells twice$"
    ):
        paired_change(torch.ones(3), torch.ones(4))
