from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InputError
from interp.geometry.spectra import curvature, curvature_per_example, eigenvalues, participation_ratio, spectral_entropy

quick = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**16)
shapes = st.tuples(st.integers(3, 30), st.integers(2, 30))


def equal_directions(r, copies, width):
    """Rows +-e_1 ... +-e_r: r equal directions among `width`."""
    return np.tile(np.concatenate([np.eye(r, width), -np.eye(r, width)]), (copies, 1))


@pytest.mark.parametrize("shape", [(50, 8), (8, 50), (20, 20)])
def test_eigenvalues_are_those_of_numpys_covariance(shape):
    x = np.random.default_rng(0).normal(size=shape) + 7
    expected = np.linalg.eigvalsh(np.cov(x.T))[::-1][: min(shape)]
    np.testing.assert_allclose(eigenvalues(x), expected, atol=1e-12)


@quick
@given(shapes, seeds)
def test_entropy_is_that_of_the_gram_matrix(shape, seed):
    x = np.random.default_rng(seed).normal(size=shape)
    z = x - x.mean(axis=0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    p = np.linalg.svd(z, compute_uv=False) ** 2 / len(z)
    p = p[p > 1e-14]
    assert spectral_entropy(x) == pytest.approx(-(p * np.log(p)).sum() / math.log(min(shape)), abs=1e-9)


@pytest.mark.parametrize("r", [1, 2, 5])
def test_r_equal_directions(r):
    x = equal_directions(r, copies=10, width=40)
    assert participation_ratio(x) == pytest.approx(r)
    for normalise in (True, False):
        found = spectral_entropy(x, normalise_rows=normalise)
        assert found == pytest.approx(math.log(r) / math.log(min(x.shape)), abs=1e-12)


def test_rank_5_among_300():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 1000))
    assert spectral_entropy(x) == pytest.approx(0.280, abs=0.002)  # 0.571 where entries are clamped
    assert spectral_entropy(rng.normal(size=(300, 300))) == pytest.approx(0.92, abs=0.01)


def test_a_gaussian_fills_fewer_directions_than_it_has():
    x = np.random.default_rng(0).normal(size=(300, 600))
    assert participation_ratio(x) == pytest.approx(300 * 600 / 900, rel=0.01)


@quick
@given(seeds, st.floats(0.01, 100), st.floats(-50, 50))
def test_unchanged_by_rotation_shift_scale_and_order_of_rows(seed, scale, shift):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(30, 6)) * np.arange(1, 7)
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    moved = rng.permutation(scale * x @ turn + shift)
    assert participation_ratio(moved) == pytest.approx(participation_ratio(x))
    assert spectral_entropy(moved) == pytest.approx(spectral_entropy(x))
    np.testing.assert_allclose(eigenvalues(moved), scale**2 * eigenvalues(x), rtol=1e-6)


def test_a_row_at_the_mean_takes_no_part():
    x = equal_directions(3, copies=4, width=8)
    for offset in (0, 0.1, 1 / 3):  # the mean is found to rounding, and its row is no direction of rounding
        beside = np.vstack([x, np.zeros((1, 8))]) + offset
        assert spectral_entropy(beside) == pytest.approx(spectral_entropy(x))


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_any_size_of_numbers(size):
    x = np.random.default_rng(0).normal(size=(20, 5))
    assert participation_ratio(size * x) == pytest.approx(participation_ratio(x))
    assert spectral_entropy(size * x) == pytest.approx(spectral_entropy(x))
    assert spectral_entropy(size * x, normalise_rows=False) == pytest.approx(spectral_entropy(x, normalise_rows=False))


def test_paths_of_known_curvature():
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(6, 100, 400))
    np.testing.assert_allclose(curvature(steps.cumsum(axis=0)), math.pi / 2, atol=0.02)
    np.testing.assert_allclose(curvature(steps), 2 * math.pi / 3, atol=0.02)
    line = steps[:1] + np.arange(5)[:, None, None] * steps[1]
    np.testing.assert_allclose(curvature(line), 0, atol=1e-12)
    np.testing.assert_allclose(curvature(np.stack([steps[0], steps[1], steps[0]])), math.pi)


def test_curvature_is_the_angle_between_steps():
    states = np.random.default_rng(0).normal(size=(5, 7, 3))
    v = np.diff(states, axis=0)
    cosines = (v[1:] * v[:-1]).sum(-1) / np.linalg.norm(v[1:], axis=-1) / np.linalg.norm(v[:-1], axis=-1)
    np.testing.assert_allclose(curvature_per_example(states), np.arccos(cosines))
    np.testing.assert_allclose(curvature(states), np.arccos(cosines).mean(axis=1))


def test_a_step_of_no_length_has_no_angle():
    states = np.random.default_rng(0).normal(size=(5, 3, 4))
    states[2, 0] = states[1, 0]
    each = curvature_per_example(states)
    assert np.isnan(each[:2, 0]).all()
    assert np.isfinite(each[2]).all()
    assert curvature(states)[0] == pytest.approx(each[0, 1:].mean())
    states[2] = states[1]
    assert np.isnan(curvature(states)).tolist() == [True, True, False]


def test_what_comes_in_goes_out():
    rng = np.random.default_rng(0)
    x, states = rng.normal(size=(20, 5)), rng.normal(size=(4, 6, 5))
    for function, given_ in [(eigenvalues, x), (curvature, states), (curvature_per_example, states)]:
        assert isinstance(function(given_), np.ndarray)
        found = function(torch.tensor(given_))
        assert isinstance(found, torch.Tensor)
        np.testing.assert_array_equal(found, function(given_))
        np.testing.assert_allclose(function(torch.tensor(given_, dtype=torch.float32)), found, atol=1e-4)
        np.testing.assert_allclose(function(torch.tensor(given_).bfloat16()), found, atol=0.05)
    for function in (participation_ratio, spectral_entropy):
        assert function(x.astype(np.float32)) == pytest.approx(function(x), abs=1e-4)
        assert function(torch.tensor(x).half()) == pytest.approx(function(x), abs=1e-2)


def test_refusals():
    x = np.random.default_rng(0).normal(size=(20, 4))
    for call, message in [
        (lambda: participation_ratio(x[:1]), r"x has shape \(1, 4\)"),
        (lambda: spectral_entropy(np.full((9, 4), 0.1)), "the 9 rows of x are all equal"),
        (lambda: spectral_entropy(x[:, :1]), r"x has shape \(20, 1\): expected two features"),
        (lambda: eigenvalues(x * np.nan), "x has 20 rows that are not finite"),
        (lambda: curvature(np.zeros((2, 5, 3))), r"states has shape \(2, 5, 3\): expected three states or more"),
        (lambda: curvature(x), r"states has shape \(20, 4\)"),
    ]:
        with pytest.raises(InputError, match=message) as found:
            call()
        assert "\n" not in str(found.value)
