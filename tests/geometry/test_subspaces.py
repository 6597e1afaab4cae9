from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InputError
from interp.geometry.subspaces import principal_angles, procrustes, pwcca, svcca

quick = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**16)
PEER = json.loads((Path(__file__).parent / "peers" / "platonic_rep.json").read_text())


def pair(seed=0, n=80, d=5, e=8):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.arange(1, d + 1)
    return x, x @ rng.normal(size=(d, e)) + 4 * rng.normal(size=(n, e)) + 3


def power(matrix, exponent):
    values, vectors = np.linalg.eigh(matrix)
    return vectors * values**exponent @ vectors.T


def canonical(x, y):
    """Canonical correlations and variables of x by whitening covariances."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    white = power(x.T @ x, -0.5)
    u, r, _ = np.linalg.svd(white @ x.T @ y @ power(y.T @ y, -0.5), full_matrices=False)
    return r, x @ white @ u


def leading(x, c):
    x = x - x.mean(axis=0)
    values, vectors = np.linalg.eigh(x.T @ x)
    return x @ vectors[:, np.argsort(values)[::-1][:c]]


@pytest.mark.parametrize("c", [1, 3])
def test_svcca_is_the_cca_of_principal_components(c):
    x, y = pair()
    one, other = (leading(cloud / cloud.std(axis=0), c) for cloud in (x, y))
    assert svcca(x, y, c) == pytest.approx(canonical(one, other)[0].mean())
    assert svcca(np.hstack([x, np.full((80, 2), 0.1)]), y, c) == pytest.approx(svcca(x, y, c))


def test_svcca_of_platonic_rep():
    rng = np.random.default_rng(7)
    x, mapped, noise = rng.normal(size=(300, 20)), rng.normal(size=(20, 30)), rng.normal(size=(300, 30))
    steep = (x * 0.6 ** np.arange(20)) @ mapped
    stored, ours = PEER["svcca"]["steep, near"], svcca(steep, steep + 0.1 * noise)
    assert ours == pytest.approx(stored["mean"], rel=0.01)
    assert stored["least"] < ours < stored["most"]
    # where singular values are alike, a random decomposition misses the first ten, and finds less in common
    assert svcca(x, x @ mapped + 4 * noise) > PEER["svcca"]["x, y"]["most"]


@pytest.mark.parametrize("c", [None, 4])
@pytest.mark.parametrize("shape", [(80, 5, 8), (80, 8, 5)])
def test_pwcca_weighs_correlations_by_projections(shape, c):
    x, y = pair(1, *shape)
    correlations, variables = canonical(x if c is None else leading(x, c), y if c is None else leading(y, c))
    weights = np.abs(variables.T @ (x - x.mean(axis=0))).sum(axis=1)
    assert pwcca(x, y, c) == pytest.approx(weights @ correlations / weights.sum())


def test_pwcca_is_one_where_y_holds_x_and_not_the_other_way():
    x, _ = pair()
    wider = np.hstack(
        [x @ np.random.default_rng(0).normal(size=(5, 5)), 9 * np.random.default_rng(1).normal(size=(80, 3))]
    )
    assert pwcca(x, wider) == pytest.approx(1)
    y = pair()[1]
    assert abs(pwcca(x, y) - pwcca(y, x)) > 0.01


def test_procrustes_is_scipys():
    x, y = pair(n=30, d=6, e=6)
    assert procrustes(x, y) == pytest.approx(scipy.spatial.procrustes(x, y)[2])
    narrow = y[:, :4]
    assert procrustes(x, narrow) == pytest.approx(scipy.spatial.procrustes(x, np.pad(narrow, ((0, 0), (0, 2))))[2])
    wide = np.random.default_rng(0).normal(size=(30, 200))
    assert procrustes(x, wide) == pytest.approx(scipy.spatial.procrustes(np.pad(x, ((0, 0), (0, 194))), wide)[2])


@pytest.mark.parametrize("c", [1, 3, 5])
def test_principal_angles_are_scipys(c):
    x, y = pair(d=8)[0], pair(1, n=60, d=8)[0]
    spans = []
    for cloud in (x, y):
        _, vectors = np.linalg.eigh(np.cov(cloud.T))
        spans.append(vectors[:, -c:])
    np.testing.assert_allclose(principal_angles(x, y, c), scipy.linalg.subspace_angles(*spans)[::-1], atol=1e-9)


def test_a_planted_angle_is_found_however_small():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(50, 2)) * [3, 1]
    for angle in (1e-9, 0.3, math.pi / 2):
        basis = np.array([[1, 0, 0, 0], [0, math.cos(angle), math.sin(angle), 0]])
        found = principal_angles(weights @ np.eye(2, 4), weights @ basis + 7, components=2)
        np.testing.assert_allclose(found, [0, angle], atol=1e-13)


def test_unrelated_clouds():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(500, 50)), rng.normal(size=(500, 50))
    assert svcca(x, y) == pytest.approx(0.85 * math.sqrt(10 / 500), abs=0.02)
    assert pwcca(x, y) == pytest.approx(0.85 * math.sqrt(50 / 500), abs=0.02)
    assert procrustes(x, y) == pytest.approx(1 - 0.72 * 50 / 500, abs=0.01)
    angles = principal_angles(rng.normal(size=(300, 1000)), rng.normal(size=(300, 1000)))
    assert np.cos(angles[0]) == pytest.approx(1.7 * math.sqrt(10 / 1000), abs=0.05)
    assert (np.diff(angles) > 0).all()


@quick
@given(seeds, st.floats(0.01, 100), st.floats(-50, 50))
def test_invariances(seed, scale, shift):
    x, y = pair(seed, n=40, e=5)
    rng = np.random.default_rng(seed + 1)
    turn, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    order = rng.permutation(40)
    moved = (scale * x @ turn + shift)[order]
    assert procrustes(moved, y[order]) == pytest.approx(procrustes(x, y), abs=1e-9)
    assert procrustes(y, x) == pytest.approx(procrustes(x, y))
    assert procrustes(x, scale * x @ turn + shift) == pytest.approx(0, abs=1e-9)
    assert pwcca(y[order], moved) == pytest.approx(pwcca(y, x))
    stretched = (scale * x * rng.uniform(0.1, 9, size=5) + shift)[order]
    assert svcca(stretched, y[order], 3) == pytest.approx(svcca(x, y, 3))
    assert svcca(y, x, 3) == pytest.approx(svcca(x, y, 3))
    both = principal_angles(scale * x @ turn + shift, y @ turn, 3)
    np.testing.assert_allclose(both, principal_angles(x, y, 3), atol=1e-8)
    np.testing.assert_allclose(principal_angles(y, x, 3), principal_angles(x, y, 3), atol=1e-8)


def test_precision_half_precision_and_kinds():
    x, y = pair(e=5)
    for measure in (lambda x, y: svcca(x, y, 3), pwcca, procrustes):
        assert measure(x.astype(np.float32), torch.tensor(y).float()) == pytest.approx(measure(x, y), abs=1e-4)
        assert measure(torch.tensor(x).bfloat16(), torch.tensor(y).half()) == pytest.approx(measure(x, y), abs=0.02)
    angles = principal_angles(x, y, 3)
    assert isinstance(angles, np.ndarray)
    found = principal_angles(torch.tensor(x).float(), y, 3)
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found, angles, atol=1e-4)


def test_rounding_to_single_precision_makes_no_directions():
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(60, 3)) @ rng.normal(size=(3, 64)) + 20 for _ in range(2))
    x32, y32 = x.astype(np.float32), y.astype(np.float32)
    assert pwcca(x32, y32) == pytest.approx(pwcca(x, y), abs=1e-4)
    for call in (svcca, principal_angles):
        with pytest.raises(InputError, match="components=10: x has 3"):
            call(x32, y32)


@pytest.mark.parametrize("size", [1e-200, 1e-20, 1e20, 1e200])
def test_any_size_of_numbers(size):
    x, y = pair()
    for measure in (lambda a, b: svcca(a, b, 3), pwcca, procrustes):
        assert measure(size * x, y) == pytest.approx(measure(x, y))


def test_refusals():
    x, y = pair()
    constant = np.full((80, 5), 0.1)
    for call, message in [
        (lambda: svcca(x, y, 6), "components=6: x has 5"),
        (lambda: svcca(x, y, 0), "components=0"),
        (lambda: svcca(x, y[:9]), "x has 80 examples and y 9"),
        (lambda: svcca(x, constant), "the 80 rows of y are all equal"),
        (lambda: pwcca(constant, y), "the 80 rows of x are all equal"),
        (lambda: pwcca(x[:8], y[:8]), "y has 7 directions in 8 examples, so that all correlations are 1"),
        (lambda: pwcca(x, y * np.inf), "y has 80 rows that are not finite"),
        (lambda: procrustes(x[:1], y[:1]), r"x has shape \(1, 5\)"),
        (lambda: procrustes(x, constant), "the 80 rows of y are all equal"),
        (lambda: principal_angles(x, y), "x has 5 features and y 8"),
        (lambda: principal_angles(x, constant, 2), "the 80 rows of y are all equal"),
        (lambda: principal_angles(x, x[:3], 3), "components=3: y has 2"),
    ]:
        with pytest.raises(InputError, match=message) as found:
            call()
        assert "\n" not in str(found.value)
