from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist
from scipy.stats import spearmanr

from interp.errors import InputError
from interp.geometry.kernels import _cka_terms, _distance_correlation_terms, cka, cknna, distance_correlation, rsa

quick = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**16)
PEER = json.loads((Path(__file__).parent / "peers" / "platonic_rep.json").read_text())


def pair(seed=0, n=60, d=5, e=8):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    return x, x @ rng.normal(size=(d, e)) + 2 * rng.normal(size=(n, e)) + 3


def hsic_1(k, m):
    """Song et al. 2012, equation 5, as it stands."""
    n = len(k)
    k, m, one = k - np.diag(np.diag(k)), m - np.diag(np.diag(m)), np.ones(n)
    inner = np.trace(k @ m) + one @ k @ one * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ k @ m @ one
    return inner / (n * (n - 3))


def hsic_0(k, m):
    centring = np.eye(len(k)) - 1 / len(k)
    return np.trace(k @ centring @ m @ centring)


def cosine(hsic, k, m):
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def rbf(x, bandwidth):
    return np.exp(-(cdist(x, x) ** 2) / (2 * (bandwidth * np.median(pdist(x))) ** 2))


SHAPES = [(60, 5, 8), (30, 90, 40), (30, 4, 200), (4, 3, 3)]
FORMS = [(True, hsic_1), (False, hsic_0)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("debiased", "hsic"), FORMS)
def test_every_table_agrees_with_numpy(shape, debiased, hsic):
    x, y = pair(0, *shape)
    assert cka(x, y, debiased) == pytest.approx(cosine(hsic, x @ x.T, y @ y.T))
    assert cka(x, y, debiased, "rbf") == pytest.approx(cosine(hsic, rbf(x, 1), rbf(y, 1)), abs=1e-6)
    assert cka(x, y, debiased, "rbf", 0.3) == pytest.approx(cosine(hsic, rbf(x, 0.3), rbf(y, 0.3)), abs=1e-6)
    expected = cosine(hsic, cdist(x, x), cdist(y, y))
    assert distance_correlation(x, y, debiased) == pytest.approx(expected)


def test_blocks_change_nothing(monkeypatch):
    x, y = pair(0, 60, 5, 90)
    calls = [
        lambda: cka(x, y),
        lambda: cka(y, x, debiased=False),
        lambda: cka(x, x @ np.ones((5, 7)), debiased=True),
        lambda: cka(x, y, kernel="rbf"),
        lambda: distance_correlation(x, y),
        lambda: rsa(x, y),
        lambda: cknna(x, y),
    ]
    whole = [call() for call in calls]
    monkeypatch.setattr("interp.geometry.neighbors._BLOCK", 7 * 60)
    assert [call() for call in calls] == pytest.approx(whole, rel=1e-9)


def test_independent_gaussians_with_four_times_as_many_features():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(500, 2000)), rng.normal(size=(500, 2000))
    assert abs(cka(x, y)) < 0.01
    assert cka(x, y, debiased=False) == pytest.approx(0.80, abs=0.005)
    assert abs(distance_correlation(x, y)) < 0.01
    assert distance_correlation(x, y, debiased=False) > 0.9
    assert abs(rsa(x, y)) < 0.05


def test_debiased_values_are_zero_on_average():
    rng = np.random.default_rng(0)
    values = [cka(rng.normal(size=(20, 5)), rng.normal(size=(20, 9))) for _ in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300)
    assert min(values) < 0


def test_an_offset_alone_is_no_similarity():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(500, 20)), rng.normal(size=(500, 20))
    assert cka(x + 5, y + 5, debiased=False) == pytest.approx(cka(x, y, debiased=False))
    assert cka(x + 5, y + 5, debiased=False) < 0.1


def test_dependence_that_only_distances_see():
    x = np.random.default_rng(0).normal(size=(400, 1))
    assert abs(cka(x, x**2)) < 0.05
    assert distance_correlation(x, x**2) > 0.15


@pytest.mark.parametrize("shape", SHAPES[:3])
def test_rsa_is_spearmans_of_pdist(shape):
    x, y = pair(1, *shape)
    assert rsa(x, y) == pytest.approx(spearmanr(pdist(x), pdist(y)).statistic, abs=1e-6)


def test_rsa_averages_the_ranks_of_ties():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 3, size=(40, 4)), rng.integers(0, 2, size=(40, 6))
    assert rsa(x, y) == pytest.approx(spearmanr(pdist(x), pdist(y)).statistic, abs=1e-12)
    assert rsa(x * 0.1 + 0.7, y) == pytest.approx(rsa(x, y), abs=1e-12)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_cknna_with_all_neighbours_is_cka_of_unit_rows():
    x, y = pair()
    assert cknna(x, y, k=59) == pytest.approx(cka(unit(x), unit(y)))


def test_cknna_keeps_only_what_is_near_in_both():
    x, y = pair(2, n=40)
    tables = [unit(x) @ unit(x).T, unit(y) @ unit(y).T]
    near = []
    for table in tables:
        order = np.argsort(-(table - 9 * np.eye(40)), axis=1)[:, :6]
        near.append(np.zeros((40, 40)))
        np.put_along_axis(near[-1], order, 1, axis=1)

    def inner(a, b):
        mask = near[a] * near[b]
        one, other = mask * tables[a], mask * tables[b]
        return (
            (one * other.T).sum() + one.sum() * other.sum() / (39 * 38) - 2 * (one.sum(axis=0) @ other.sum(axis=1)) / 38
        )

    assert cknna(x, y, k=6) == pytest.approx(inner(0, 1) / np.sqrt(inner(0, 0) * inner(1, 1)))


def test_cknna_of_unrelated_clouds():
    rng = np.random.default_rng(0)
    value = cknna(rng.normal(size=(500, 20)), rng.normal(size=(500, 20)))
    assert value == pytest.approx(0.8 * 10 / 500, abs=0.005)


MEASURES = [
    cka,
    lambda x, y: cka(x, y, debiased=False),
    lambda x, y: cka(x, y, kernel="rbf"),
    distance_correlation,
    rsa,
]


@quick
@given(seeds, st.floats(0.01, 100), st.floats(-50, 50))
def test_unchanged_by_rotation_shift_scale_order_and_exchange(seed, scale, shift):
    x, y = pair(seed, n=40, d=5)
    rng = np.random.default_rng(seed + 1)
    turn, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    order = rng.permutation(40)
    for measure in MEASURES:
        value = measure(x, y)
        assert measure((scale * x @ turn + shift)[order], y[order]) == pytest.approx(value, abs=1e-5)
        assert measure(y, x) == pytest.approx(value, abs=1e-9)
        assert measure(x, x) == pytest.approx(1)
        assert -1 <= value <= 1
    assert cknna((scale * x @ turn)[order], y[order]) == pytest.approx(cknna(x, y), abs=1e-9)
    assert cknna(y, x) == pytest.approx(cknna(x, y), abs=0.02)


@pytest.mark.parametrize("size", [1e-160, 1e-30, 1e150])
def test_any_size_of_numbers(size):
    x, y = pair()
    for measure in MEASURES:
        assert measure(x * size, y) == pytest.approx(measure(x, y), abs=1e-6)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e8])
def test_an_enormous_row_costs_no_digits(size):
    x, y = pair()
    x[3] *= size
    tables = [cloud.astype(np.longdouble) @ cloud.astype(np.longdouble).T for cloud in (x, y)]
    assert cka(x, y) == pytest.approx(float(cosine(hsic_1, *tables)), rel=1e-9)


def test_terms_sum_to_the_value_and_are_each_examples_own():
    x, y = pair()
    for terms, value in [
        (_cka_terms(x, y), cka(x, y)),
        (_cka_terms(x, y, False), cka(x, y, False)),
        (_cka_terms(x, y, True, "rbf"), cka(x, y, True, "rbf")),
        (_distance_correlation_terms(x, y), distance_correlation(x, y)),
    ]:
        assert terms.shape == (60,)
        assert float(terms.sum()) == pytest.approx(value)
    # both routes, and U-centring written out
    wide = np.pad(y, ((0, 0), (0, 900)))
    torch.testing.assert_close(_cka_terms(x, y), _cka_terms(x, wide))

    def centred(k):
        k = k - np.diag(np.diag(k))
        rows = k.sum(axis=1)
        k = k - rows[:, None] / 58 - rows / 58 + k.sum() / (59 * 58)
        return k - np.diag(np.diag(k))

    a, b = centred(x @ x.T), centred(y @ y.T)
    expected = (a * b).sum(axis=1) / np.sqrt((a * a).sum() * (b * b).sum())
    np.testing.assert_allclose(_cka_terms(x, y), expected)


def test_precision_and_half_precision():
    x, y = pair()
    for measure in [*MEASURES, cknna]:
        value = measure(x, y)
        assert measure(x.astype(np.float32), torch.tensor(y, dtype=torch.float32)) == pytest.approx(value, abs=1e-4)
        assert measure(torch.tensor(x).bfloat16(), torch.tensor(y).half()) == pytest.approx(value, abs=0.02)


def peers_arrays():
    rng = np.random.default_rng(7)
    drawn = {"x": rng.normal(size=(300, 20)), "map": rng.normal(size=(20, 30)), "noise": rng.normal(size=(300, 30))}
    assert {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in drawn.items()} == PEER["sha256"]
    return drawn["x"], drawn["x"] @ drawn["map"] + 4 * drawn["noise"]


def test_values_of_platonic_rep():
    x, y = peers_arrays()
    assert cka(x, y, debiased=False) == pytest.approx(PEER["values"]["cka"], rel=1e-6)
    assert cka(x, y) == pytest.approx(PEER["values"]["unbiased_cka"], rel=1e-6)
    assert cknna(x, y, k=10) == pytest.approx(PEER["values"]["cknna"], rel=1e-3)
    # its 1e-6 in the denominator: the smaller the features, the lower its value; here nothing changes
    small = PEER["values"]["unbiased_cka of x / 1000, y / 1000"]
    assert small < 0.99 * PEER["values"]["unbiased_cka"]
    assert cka(x * 1e-3, y * 1e-3) == pytest.approx(PEER["values"]["unbiased_cka"], rel=1e-6)


def test_refusals():
    x, y = pair()
    simplex, constant = np.eye(6), np.full((60, 3), 0.1)
    for call, message in [
        (lambda: cka(x, y[:50]), "x has 60 examples and y 50"),
        (lambda: cka(x[:1], y[:1]), r"x has shape \(1, 5\)"),
        (lambda: cka(x, constant), "the 60 rows of y are all equal"),
        (lambda: cka(x, y * np.nan), "y has 60 rows that are not finite"),
        (lambda: cka(x[:3], y[:3]), "3 examples leave nothing when debiased"),
        (lambda: cka(simplex, x[:6]), "all pairs of the 6 rows of x are equally alike"),
        (lambda: cka(x, y, kernel="cosine"), "kernel='cosine' is unknown"),
        (lambda: cka(x, y, bandwidth=2), "bandwidth=2: the linear kernel has none"),
        (lambda: cka(x, y, kernel="rbf", bandwidth=0), "bandwidth=0"),
        (lambda: cka(x, np.eye(60, 1), kernel="rbf"), "half of the pairs of y are equal rows"),
        (lambda: distance_correlation(x[:6], simplex), "all pairs of the 6 rows of y are equally alike"),
        (lambda: distance_correlation(constant, x), "the 60 rows of x are all equal"),
        (lambda: rsa(simplex, x[:6]), "all 15 pairs of rows of x are equally far"),
        (lambda: rsa(x, constant), "the 60 rows of y are all equal"),
        (lambda: cknna(x, y, k=60), "k=60 neighbours of 60 examples: expected"),
        (lambda: cknna(x, y, k=0), "k=0"),
        (lambda: cknna(x, y * 0), "y has 60 rows of zeros"),
        (lambda: cknna(constant, y), "the 60 rows of x have the same direction"),
    ]:
        with pytest.raises(InputError, match=message) as found:
            call()
        assert "\n" not in str(found.value)
