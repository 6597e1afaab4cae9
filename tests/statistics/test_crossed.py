"""Answers of several runs to the same questions, against samples whose seeds and questions vary by known amounts, and scipy."""

import numpy as np
import pytest
import scipy.stats
import torch

from interp.errors import InputError
from interp.statistics import crossed_change, crossed_ratio, crossed_share, mean_interval

SCENES, EACH = 60, 3
GROUPS = np.repeat(np.arange(SCENES), EACH)


def two_bands(seed, runs, of_runs, change=0.0):
    """Right answers of two bands [run, question]: questions of a scene are alike, and both bands of a run, as seeds make them."""
    rng = np.random.default_rng(seed)
    ease = 2 + rng.normal(size=SCENES)[GROUPS] + 0.5 * rng.normal(size=SCENES * EACH)
    shared, own = of_runs * rng.normal(size=(2, runs, 1))
    luck = 0.5 * rng.normal(size=(2, runs, SCENES * EACH))
    chances = 1 / (1 + np.exp(-(ease + shared + luck + np.stack([0 * own, own + change]))))
    return torch.from_numpy(rng.random(chances.shape) < chances)


def truth(of_runs, change=0.0):
    return [two_bands(10**6 + seed, 400, of_runs, change).double().mean(dim=(1, 2)) for seed in range(40)]


@pytest.mark.parametrize(("runs", "of_runs"), [(3, 0.0), (3, 0.3), (5, 0.3)])
def test_bounds_cover_other_questions_and_other_seeds(runs, of_runs):
    one, other = torch.stack(truth(of_runs, -0.4)).mean(dim=0).tolist()
    held = np.zeros(3)
    for seed in range(400):
        full, band = two_bands(seed, runs, of_runs, -0.4)
        numbers = crossed_share(band, GROUPS), crossed_change(full, band, GROUPS), crossed_ratio(band, full, GROUPS)
        held += [
            each.low <= true <= each.high for each, true in zip(numbers, (other, other - one, other / one), strict=True)
        ]
    assert (held / 400 >= 0.925).all()


def test_bounds_over_questions_alone_do_not_cover_other_seeds():
    """The control of the test above: what is added for seeds is needed."""
    true = float(torch.stack(truth(0.8)).mean(dim=0)[0])
    held = {"questions": 0, "both": 0}
    for seed in range(200):
        full = two_bands(seed, 3, 0.8)[0]
        low, high = mean_interval(full.double().mean(dim=0), GROUPS)
        held["questions"] += bool(low <= true <= high)
        both = crossed_share(full, GROUPS)
        held["both"] += both.low <= true <= both.high
    assert held["questions"] < 0.85 * 200
    assert held["both"] > 0.9 * 200


@pytest.mark.parametrize("runs", [3, 5])
def test_the_p_rejects_too_rarely_rather_than_too_often(runs):
    rejected = [crossed_change(*two_bands(seed, runs, 0.3), GROUPS).p <= 0.05 for seed in range(400)]
    assert sum(rejected) / 400 < 0.075
    found = [crossed_change(*two_bands(seed, runs, 0.1, -1.5), GROUPS).p <= 0.05 for seed in range(100)]
    assert sum(found) > 90


def test_both_errors_are_those_of_scipy():
    full, band = two_bands(0, 4, 0.5)
    difference = (band.double() - full.double()).numpy()
    change = crossed_change(full, band)
    n = difference.shape[1]
    of_rows = scipy.stats.sem(difference.mean(axis=0))
    assert change.error_rows == pytest.approx(np.hypot(of_rows, 1 / (n + 2)))
    assert change.error_runs == pytest.approx(scipy.stats.sem(difference.mean(axis=1)))
    # Satterthwaite's degrees of freedom are those of Welch's test of two samples with these errors.
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=n), rng.normal(size=4)
    x, y = ((z - z.mean()) / scipy.stats.sem(z) * e for z, e in ((x, change.error_rows), (y, change.error_runs)))
    welch = scipy.stats.ttest_ind(x + change.value, y, equal_var=False)
    assert change.freedom == pytest.approx(welch.df)
    assert change.p == pytest.approx(welch.pvalue)
    assert (change.low, change.high) == pytest.approx(welch.confidence_interval())


def test_one_run_has_an_interval_over_questions_alone():
    full, band = (each[:1] for each in two_bands(0, 1, 0.3))
    share, (low, high) = crossed_share(band, GROUPS), mean_interval(band[0], GROUPS)
    assert (share.low, share.high) == pytest.approx((float(low), float(high)))
    assert np.isnan(share.error_runs)
    assert np.isnan(crossed_change(full, band).error_runs)


def test_a_run_may_stand_for_all():
    before, after = two_bands(0, 3, 0.3)
    once = crossed_change(before[:1], after)
    assert once.value == pytest.approx(float(after.double().mean() - before[:1].double().mean()))
    assert once.low == crossed_change(before[:1].expand(3, -1), after).low


def test_nothing_changed_is_no_certainty():
    right = torch.ones(3, 10)
    change, ratio, share = crossed_change(right, right), crossed_ratio(right, right), crossed_share(right)
    assert (change.value, ratio.value, share.value) == (0, 1, 1)
    assert change.low == pytest.approx(ratio.low - 1)
    assert -0.25 < change.low < -0.15
    assert 0.62 < share.low < 0.75
    assert share.high == 1
    grouped = crossed_change(right, right, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    assert grouped.low < change.low


def test_bounds_of_a_share_stay_within_it():
    draw = torch.Generator().manual_seed(0)
    for share in (0.02, 0.5, 0.98):
        found = crossed_share(torch.rand(3, 40, generator=draw) < share)
        assert 0 <= found.low <= found.value <= found.high <= 1


def test_what_has_no_bounds_is_nan():
    right = torch.ones(3, 4)
    assert np.isnan(crossed_share(right, [1, 1, 1, 1]).low)
    assert np.isnan(crossed_change(right, right, [1, 1, 1, 1]).p)
    nothing = crossed_ratio(right, 0 * right)
    assert np.isnan([nothing.value, nothing.low, nothing.p]).all()


@pytest.mark.parametrize("tables", [(torch.ones(3, 4), torch.ones(3, 5)), (torch.ones(2, 4), torch.ones(3, 4))])
def test_other_questions_or_runs_are_refused(tables, unchecked):
    with pytest.raises(InputError, match="expected the same runs and rows twice"):
        crossed_change(*tables)


def test_no_answers_are_refused():
    with pytest.raises(InputError, match=r"shape \(0, 3\): expected one run and one row at least"):
        crossed_share(torch.ones(0, 3))
