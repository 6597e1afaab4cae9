from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.neighbors import NearestNeighbors

import dadapy_stored
from interp.errors import InputError
from interp.geometry.density import REACH, Density, _fit_with_slope, even_neighborhoods, log_density, log_shells

quick = settings(max_examples=10, deadline=None)


def gaussian(n=150, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def sorted_neighbors(x, k):
    distances, indices = NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x)
    return distances[:, 1:], indices[:, 1:]


@pytest.mark.parametrize("method", ["knn", "pak"])
@pytest.mark.parametrize("name", ["gaussian5", "blobs2", "blobs5", "moons"])
def test_agrees_with_dadapy(name, method):
    stored = dadapy_stored.values()[name]["density"]
    found = log_density(dadapy_stored.cloud(name), method=method)
    assert found.dimension == pytest.approx(stored["dimension"], abs=1e-5)
    # DADApy stops its fit for PAk where the gradient is within 1e-3 of nothing
    assert found.values.numpy() == pytest.approx(
        np.array(stored[method]["values"]), abs=1e-3 if method == "pak" else 2e-6
    )
    assert found.errors.numpy() == pytest.approx(np.array(stored[method]["errors"]), abs=2e-6)
    assert (found.neighbors.numpy() == np.array(stored[method]["k"])).all()


def test_knn_is_its_formula():
    x = gaussian(80, 2)
    radius = sorted_neighbors(x, 9)[0][:, 8]
    found = log_density(x, k=9, dimension=2)
    assert found.values.numpy() == pytest.approx(np.log(9 / (80 * np.pi * radius**2)))
    assert found.errors.tolist() == [pytest.approx(1 / 3)] * 80


@pytest.mark.parametrize("method", ["knn", "pak"])
def test_uniform_points_in_a_square_have_density_one_within_the_error(method):
    x = np.random.default_rng(0).uniform(size=(2000, 2))
    inner = (abs(x - 0.5) < 0.3).all(axis=1)
    found = log_density(x, method=method, dimension=2)
    values, errors = found.values.numpy()[inner], found.errors.numpy()[inner]
    assert values.mean() == pytest.approx(0, abs=0.06)
    assert 0.8 < (values / errors).std() < 1.3


def test_pak_takes_more_neighbors_where_the_density_is_even():
    rng = np.random.default_rng(0)
    even, steep = rng.uniform(size=(1000, 2)), rng.normal(size=(1000, 2)) ** 3
    taken = [log_density(x, method="pak", dimension=2).neighbors for x in (even, steep)]
    assert taken[0].double().mean() > 2 * taken[1].double().mean()
    assert min(taken[1]) >= 3
    assert max(taken[0]) == REACH - 1


def test_the_number_of_neighbors_is_the_last_that_passes_the_test():
    x = gaussian(60, 2, seed=3) ** 3
    distances, indices = sorted_neighbors(x, 40)
    volumes = np.pi * distances**2

    def even(i):
        for k in range(3, 39):
            one, other = volumes[i, k - 1], volumes[indices[i, k], k - 1]
            if -2 * k * (np.log(one) + np.log(other) - 2 * np.log(one + other) + np.log(4)) > 23.928:
                return k
        return 39

    found = even_neighborhoods(torch.tensor(indices), torch.tensor(np.log(volumes)))
    assert found.tolist() == [even(i) for i in range(60)]
    assert len(set(found.tolist())) > 5


def test_the_fit_with_a_slope_maximises_its_likelihood():
    x = gaussian(40, 2) ** 3
    shells = log_shells(torch.tensor(sorted_neighbors(x, 30)[0]), 2.0)
    used = torch.tensor(np.random.default_rng(1).integers(3, 31, size=40))
    found = _fit_with_slope(shells, used)
    for i in (0, 7, 39):
        k, rank = int(used[i]), np.arange(1, int(used[i]) + 1)
        volume = shells[i, :k].exp().numpy()

        def loss(point, k=k, rank=rank, volume=volume):
            return -(k * point[0] + point[1] * k * (k + 1) / 2 - volume @ np.exp(point[0] + point[1] * rank))

        best = minimize(
            loss, [float(found[i]) + 0.1, 0.01], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}
        )
        assert float(found[i]) == pytest.approx(best.x[0], abs=1e-5)


def test_the_fit_survives_shells_of_no_volume():
    distances = torch.tensor([[0.2, 0.7, 0.7, 0.9, 1.6, 7.8]], dtype=torch.float64)  # Newton's steps alone run away
    almost = distances + torch.tensor([0, 0, 1e-9, 0, 0, 0])
    found, expected = (_fit_with_slope(log_shells(one, 30.0), torch.tensor([6])) for one in (distances, almost))
    assert float(found) == pytest.approx(float(expected), abs=1e-6)


@quick
@given(st.integers(0, 2**16), st.floats(0.01, 100), st.sampled_from(["knn", "pak"]))
def test_moves_with_rotation_scale_and_order_of_rows_as_a_density_does(seed, scale, method):
    x = gaussian(seed=seed)
    rng = np.random.default_rng(seed + 1)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    order = rng.permutation(len(x))
    before, after = log_density(x, method=method), log_density((scale * x @ turn + 3)[order], method=method)
    assert after.dimension == pytest.approx(before.dimension)
    expected = before.values[order] - before.dimension * math.log(scale)
    assert after.values.numpy() == pytest.approx(expected.numpy(), abs=1e-6)


def test_single_precision_gives_the_same_within_its_digits():
    x = gaussian()
    found = log_density(torch.tensor(x, dtype=torch.float32), method="pak")
    assert found.values.dtype == torch.float64
    assert found.values.numpy() == pytest.approx(log_density(x, method="pak").values.numpy(), abs=1e-3)


def test_a_density_is_a_result(tmp_path):
    found = log_density(gaussian(), method="pak")
    again = Density.load(found.save(tmp_path / "density.safetensors"))
    assert torch.equal(again.values, found.values)
    assert (again.dimension, again.method) == (found.dimension, "pak")
    assert found.to_frame().columns.tolist() == ["log_density", "error", "neighbors"]


@pytest.mark.parametrize("method", ["knn", "pak"])
@pytest.mark.parametrize("dimension", [None, 3.0])
def test_equal_rows_are_refused(method, dimension):
    x = gaussian()
    x[40] = x[7]
    with pytest.raises(
        InputError, match=r"2 of 150 examples equal another .*distinct_rows|rows 40 repeat.*distinct_rows"
    ):
        log_density(x, method=method, dimension=dimension)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "kde"}, "density='kde' is unknown: use one of knn, pak"),
        ({"k": 150}, "k=150 neighbours of 150 examples: expected"),
        ({"k": 0}, "k=0"),
        ({"dimension": 0}, "dimension=0"),
        ({"dimension": math.nan}, "dimension=nan"),
        ({"metric": "hamming"}, "metric='hamming'"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(InputError, match=message) as raised:
        log_density(gaussian(), **arguments)
    assert "\n" not in str(raised.value)


def test_too_few_examples():
    with pytest.raises(InputError, match="32 examples are too few for a dimension: pass 33 or more"):
        log_density(gaussian(32))
    with pytest.raises(InputError, match="4 examples are too few for method='pak'"):
        log_density(gaussian(4), method="pak", dimension=3)
    assert torch.isfinite(log_density(gaussian(5), method="pak", dimension=3).values).all()
    x = gaussian()
    x[3, 1] = math.nan
    with pytest.raises(InputError, match="not finite, the first at example 3"):
        log_density(x)
