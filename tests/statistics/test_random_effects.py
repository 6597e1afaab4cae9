"""The mean over models, against closed forms, published examples, restricted maximum likelihood and simulated models."""

import math

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch

from interp.errors import InputError
from interp.statistics import random_effects

# Tuberculosis in 13 trials of the BCG vaccine: cases and others of the vaccinated, then of the others (Colditz et al. 1994).
BCG = np.array(
    [
        (4, 119, 11, 128),
        (6, 300, 29, 274),
        (3, 228, 11, 209),
        (62, 13536, 248, 12619),
        (33, 5036, 47, 5761),
        (180, 1361, 372, 1079),
        (8, 2537, 10, 619),
        (505, 87886, 499, 87892),
        (29, 7470, 45, 7232),
        (17, 1699, 65, 1600),
        (186, 50448, 141, 27197),
        (5, 2493, 3, 2338),
        (27, 16886, 29, 17825),
    ],
    dtype=float,
)
NAMES = ("mean", "low", "high", "next_low", "next_high", "tau2", "tau2_low", "tau2_high", "p")


def of(values, errors, **options):
    return random_effects(*(torch.tensor(each, dtype=torch.float64) for each in (values, errors)), **options)


def bcg(measure):
    a, b, c, d = BCG.T
    if measure == "odds ratio":
        return np.log(a * d / b / c), 1 / a + 1 / b + 1 / c + 1 / d
    return np.log(a / (a + b) / (c / (c + d))), 1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)


def test_with_equal_errors_it_is_students_t_of_the_values():
    values, error = np.array([0.90, 0.94, 0.96, 0.91, 0.99]), 0.01
    found = of(values, np.full(5, error))
    spread = values.std(ddof=1)
    assert float(found.mean) == pytest.approx(values.mean())
    assert float(found.tau2) == pytest.approx(spread**2 - error**2)
    low, high = scipy.stats.t.interval(0.95, 4, values.mean(), spread / math.sqrt(5))
    assert (float(found.low), float(found.high)) == pytest.approx((low, high))
    low, high = scipy.stats.t.interval(0.95, 4, values.mean(), spread * math.sqrt(1 + 1 / 5))
    assert (float(found.next_low), float(found.next_high)) == pytest.approx((low, high))
    squares = 4 * spread**2 / error**2
    assert float(found.p) == pytest.approx(scipy.stats.chi2.sf(squares, 4))
    profile = [squares * error**2 / scipy.stats.chi2.ppf(share, 4) - error**2 for share in (0.975, 0.025)]
    assert (float(found.tau2_low), float(found.tau2_high)) == pytest.approx(profile)
    assert found.n == 5


def test_it_is_the_published_examples():
    values, variances = bcg("risk ratio")
    found = of(values, np.sqrt(variances))
    cochran = 152.2330  # of metafor's dat.bcg
    assert float(found.p) == pytest.approx(scipy.stats.chi2.sf(cochran, 12), rel=1e-3)
    assert float(found.mean) == pytest.approx(-0.7145, abs=1e-3)  # by restricted maximum likelihood
    values, variances = bcg("odds ratio")
    found = of(values, np.sqrt(variances))
    assert (float(found.tau2_low), float(found.tau2_high)) == pytest.approx((0.1302, 1.1812), abs=1e-4)  # Q-profile
    # Nine measurements of Kacker (2004, table 1): the square root of tau^2 by Paule and Mandel is 0.8399.
    values = [61.00, 61.40, 62.21, 62.30, 62.34, 62.60, 62.70, 62.84, 65.90]
    variances = [0.2025, 1.2100, 0.0900, 0.2025, 0.3844, 0.5625, 0.0676, 0.0225, 1.8225]
    assert float(of(values, np.sqrt(variances)).tau2.sqrt()) == pytest.approx(0.8399, abs=6e-5)


def test_unequal_errors_are_weighed_as_an_oracle_of_scipy_weighs_them():
    values, variances = bcg("risk ratio")

    def fit(tau2):
        weights = 1 / (variances + tau2)
        mean = np.average(values, weights=weights)
        return (weights * (values - mean) ** 2).sum(), mean, weights

    tau2 = scipy.optimize.brentq(lambda at: fit(at)[0] - 12, 0, 10)
    _, mean, weights = fit(tau2)
    found = of(values, np.sqrt(variances))
    assert (float(found.tau2), float(found.mean)) == pytest.approx((tau2, mean))
    low, high = scipy.stats.t.interval(0.95, 12, mean, weights.sum() ** -0.5)
    assert (float(found.low), float(found.high)) == pytest.approx((low, high))

    def score(at):  # of the restricted likelihood
        weights = 1 / (variances + at)
        projection = np.diag(weights) - np.outer(weights, weights) / weights.sum()
        return values @ projection @ projection @ values - projection.trace()

    restricted = scipy.optimize.brentq(score, 0, 10)
    assert restricted == pytest.approx(0.3132, abs=5e-5)  # as metafor has it
    assert float(found.tau2) == pytest.approx(restricted, rel=0.02)


@pytest.mark.parametrize("tau", [0.0, 1.0, 3.0])
def test_bounds_hold_the_mean_and_the_next_model_and_p_is_right(tau):
    rng = np.random.default_rng(0)
    cells = 4000
    errors = np.geomspace(1, 2, 5)[:, None] + np.zeros(cells)
    values = rng.normal(0.3, tau, (5, cells)) + rng.normal(size=(5, cells)) * errors
    found = of(values, errors)
    held = ((found.low <= 0.3) & (found.high >= 0.3)).double().mean()
    assert 0.93 < held < 0.985
    measured = torch.tensor(rng.normal(0.3, tau, cells) + rng.normal(size=cells) * rng.choice(errors[:, 0], cells))
    assert 0.94 < ((found.next_low <= measured) & (found.next_high >= measured)).double().mean() < 0.995
    rejected = (found.p <= 0.05).double().mean()
    assert (0.04 < rejected < 0.06) if not tau else rejected > 0.1
    assert ((found.tau2_low <= tau**2) & (tau**2 <= found.tau2_high)).double().mean() > 0.94


def test_values_that_agree_by_luck_are_no_point():
    """The control of the t interval: with values all alike, it would have no width."""
    found = of([0.98] * 5, [0.01] * 5)
    assert float(found.high - found.mean) == pytest.approx(1.96 * 0.01 / math.sqrt(5), rel=1e-4)
    assert float(found.next_high - found.mean) == pytest.approx(1.96 * 0.01 * math.sqrt(1 + 1 / 5), rel=1e-4)
    assert (float(found.tau2), float(found.p)) == (0, 1)
    nothing = of([0.98] * 5, [0.0] * 5)
    assert (float(nothing.low), float(nothing.high), float(nothing.p)) == pytest.approx((0.98, 0.98, 1))


def test_an_error_that_all_models_share_widens_the_mean_and_not_the_next_model():
    rng = np.random.default_rng(1)
    cells, shared = 4000, 1.5
    values = rng.normal(size=(5, cells)) + shared * rng.normal(size=cells)
    alone, both = (of(values, np.zeros((5, cells)), shared=each) for each in (0.0, shared))
    held = [((each.low <= 0) & (each.high >= 0)).double().mean() for each in (alone, both)]
    assert held[0] < 0.7
    assert 0.93 < held[1] < 0.98
    torch.testing.assert_close(alone.next_low, both.next_low)


def test_cells_keep_their_shape_and_do_not_touch_each_other():
    rng = np.random.default_rng(2)
    values, errors = rng.normal(size=(5, 2, 3)), rng.uniform(0.5, 2, (5, 2, 3))
    values[2, 1, 1] = errors[3, 0, 2] = math.nan
    found = of(values, errors)
    for name in NAMES:
        table = getattr(found, name)
        assert (table.shape, table.dtype) == ((2, 3), torch.float64)
        assert table.isnan().nonzero().tolist() == [[0, 2], [1, 1]]
    one = of(values[:, 1, 2], errors[:, 1, 2])
    for name in NAMES:
        torch.testing.assert_close(getattr(found, name)[1, 2], getattr(one, name))


def test_one_model_has_no_interval():
    found = of([0.9], [0.1])
    assert float(found.mean) == 0.9
    assert all(math.isnan(getattr(found, name)) for name in NAMES[1:])


@pytest.mark.parametrize(
    ("values", "errors", "shared", "message"),
    [
        ([1.0, 2.0], [1.0], 0.0, r"values have shape \(2,\) and errors \(1,\)"),
        ([], [], 0.0, "expected one of each"),
        ([1.0, 2.0], [1.0, -1.0], 0.0, "^errors=.*expected finite standard errors, 0 or more"),
        ([1.0, 2.0], [1.0, math.inf], 0.0, "^errors="),
        ([1.0, 2.0], [1.0, 1.0], -1.0, "^shared="),
    ],
)
def test_bad_input_is_one_line(values, errors, shared, message):
    with pytest.raises(InputError, match=message) as caught:
        of(values, errors, shared=shared)
    assert "\n" not in str(caught.value)
