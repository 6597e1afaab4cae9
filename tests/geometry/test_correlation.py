from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InputError
from interp.geometry import intrinsic_dimension
from interp.geometry.correlation import IdCorrelation, id_correlation

quick = settings(max_examples=10, deadline=None)


def standardised(x):
    return (x - x.mean(axis=0)) / x.std(axis=0)


def pair(seed=0, n=150):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    return x, x[:, :2] ** 3 + 0.5 * rng.normal(size=(n, 2))


def cylinder(n, seed=0):
    """Points on the cylinder of unit radius about the y axis."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, size=n)
    return np.stack([np.cos(angle), rng.uniform(-1, 1, size=n), np.sin(angle)], axis=1)


def test_a_cylinder():
    # on a circle z is x up to a sign: d(x, y) = 2, d(z) = 1 and together 2; y is nobody's
    points = cylinder(3000)
    tied = id_correlation(points[:, :2], points[:, 2:], permutations=20)
    free = id_correlation(points[:, [0, 2]], points[:, 1:2], permutations=20)
    assert tied.value == pytest.approx(0.5, abs=0.07)
    assert tied.p == 1 / 21
    assert free.value == pytest.approx(0, abs=0.07)
    assert free.p > 0.05


@pytest.mark.parametrize("method", ["2nn", "mle"])
def test_its_dimensions_are_those_of_the_standardised_clouds_and_the_two_side_by_side(method):
    x, y = pair()
    found = id_correlation(100 * x, y, permutations=3, method=method, seed=5)
    options = {"method": method, "k": 100}
    d_x, d_y = (intrinsic_dimension(standardised(cloud), **options).value for cloud in (x, y))
    joint = intrinsic_dimension(np.hstack([standardised(x), standardised(y)]), **options).value
    assert (found.d_x, found.d_y, found.d_joint) == pytest.approx((d_x, d_y, joint), rel=1e-5)
    assert found.value == pytest.approx((d_x + d_y - joint) / max(d_x, d_y), abs=1e-4)
    order = np.random.default_rng(5).permutation(len(x))
    shuffled = intrinsic_dimension(np.hstack([standardised(x), standardised(y)[order]]), **options).value
    assert float(found.null[0]) == pytest.approx((d_x + d_y - shuffled) / max(d_x, d_y), abs=1e-4)


def test_p_counts_the_observed_order_among_the_shuffles():
    x, y = pair()
    found = id_correlation(x, np.random.default_rng(9).normal(size=(150, 2)), permutations=30)
    assert found.p == pytest.approx((int((found.null >= found.value).sum()) + 1) / 31)
    assert math.isnan(id_correlation(x, y, permutations=0).p)


def test_independent_clouds_are_far_from_zero_but_p_is_even():
    rng = np.random.default_rng(0)
    found = [id_correlation(rng.normal(size=(200, 12)), rng.normal(size=(200, 12)), permutations=19) for _ in range(30)]
    assert np.mean([one.value for one in found]) > 0.2
    assert 0.35 < np.mean([one.p for one in found]) < 0.7
    assert sum(one.p <= 0.05 for one in found) <= 5


def test_sees_what_correlation_does_not():
    x = np.random.default_rng(0).normal(size=(400, 2))
    radius = np.linalg.norm(x, axis=1, keepdims=True)
    assert abs(np.corrcoef(x[:, 0], radius[:, 0])[0, 1]) < 0.2
    assert id_correlation(x, radius, permutations=30).p == 1 / 31


@quick
@given(st.integers(0, 2**16), st.floats(0.01, 100))
def test_unchanged_by_scale_and_shift_of_columns_order_of_rows_and_of_clouds(seed, scale):
    x, y = pair(seed)
    rng = np.random.default_rng(seed + 1)
    order, columns = rng.permutation(150), rng.permutation(3)
    expected = id_correlation(x, y, permutations=0).value
    assert id_correlation(y, x, permutations=0).value == pytest.approx(expected, abs=1e-5)
    moved = id_correlation((scale * x[:, columns] - 3)[order], -y[order], permutations=0)
    assert moved.value == pytest.approx(expected, abs=1e-4)


def test_constant_columns_are_dropped_and_a_cloud_of_them_is_named():
    x, y = pair()
    wider = np.hstack([x, np.full((150, 2), 0.1)])
    assert id_correlation(wider, y, permutations=0).value == id_correlation(x, y, permutations=0).value
    with pytest.raises(InputError, match="all 4 columns of y are constant"):
        id_correlation(x, np.full((150, 4), 0.1))


def test_a_seed_fixes_the_shuffles_and_a_tensor_is_as_good_as_an_array():
    x, y = pair()
    found, again = id_correlation(x, y, 5, seed=1), id_correlation(torch.tensor(x), torch.tensor(y), 5, seed=1)
    assert torch.equal(found.null, again.null)
    assert not torch.equal(found.null, id_correlation(x, y, 5, seed=2).null)
    assert found.provenance.seed == 1


def test_a_correlation_is_a_result(tmp_path):
    found = id_correlation(*pair(), permutations=5)
    again = IdCorrelation.load(found.save(tmp_path / "correlation.safetensors"))
    assert (again.value, again.p, again.n) == (found.value, found.p, 150)
    row = found.to_frame().loc[0]
    assert row["chance"] == pytest.approx(float(found.null.mean()))
    assert (row["permutations"], row["method"]) == (5, "2nn")


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda x, y: (x, y[:-1]), {}, "x has 150 examples and y 149"),
        (lambda x, y: (x, y), {"method": "3nn"}, "method='3nn' is unknown: use one of"),
        (lambda x, y: (x, y), {"permutations": -1}, "permutations=-1"),
        (
            lambda x, y: (x[:90], y[:90]),
            {"method": "mle"},
            "method='mle' takes 100 neighbours and there are 90 examples",
        ),
        (lambda x, y: (x, np.vstack([y[:1], y[:-1]])), {}, r"1 of 150 rows of y equal an earlier one .*distinct_rows"),
        (lambda x, y: (np.where(x == x[4, 2], np.inf, x), y), {}, "not finite, the first at example 4"),
        (lambda x, y: (np.arange(150.0)[:, None], y), {}, "x has neighbours at equal distances"),
    ],
)
def test_refusals(change, arguments, message):
    with pytest.raises(InputError, match=message) as raised:
        id_correlation(*change(*pair()), **arguments)
    assert "\n" not in str(raised.value)


def test_tables_that_are_too_large_to_hold_are_made_again(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 3))
    y = x + rng.normal(size=(80, 3))
    held = id_correlation(x, y, permutations=5)
    monkeypatch.setattr("interp.geometry.correlation.HELD", 0)
    again = id_correlation(x, y, permutations=5)
    assert (again.value, again.p) == pytest.approx((held.value, held.p))
    torch.testing.assert_close(again.null, held.null)
