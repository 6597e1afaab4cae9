from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import cdist

from interp.errors import InputError
from interp.geometry import Estimate, dimension_scaling, intrinsic_dimension, log_density, nearest_neighbors, plateau
from interp.geometry.dimension import FAR


def gaussian(n, d, width=50, seed=0):
    """A d-dimensional Gaussian, turned into `width` dimensions."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(width, width)))
    return rng.normal(size=(n, d)) @ turn[:d]


def sorted_distances(x):
    distances = cdist(x, x)
    np.fill_diagonal(distances, np.inf)
    return np.sort(distances, axis=1)


@pytest.mark.parametrize(("d", "expected"), [(2, 1.98), (5, 5.15), (10, 9.82)])
def test_2nn_of_gaussians(d, expected):
    assert intrinsic_dimension(gaussian(2000, d)).value == pytest.approx(expected, rel=0.05)


def test_gride_of_gaussians_with_its_known_bias():
    assert intrinsic_dimension(gaussian(2000, 5), "gride").value == pytest.approx(4.99, rel=0.03)
    assert intrinsic_dimension(gaussian(2000, 20), "gride").value == pytest.approx(14.3, rel=0.03)
    assert intrinsic_dimension(gaussian(2000, 20), "gride", n1=1, n2=2).value == pytest.approx(17.6, rel=0.05)


def test_2nn_is_numpys_least_squares_of_the_lowest_share():
    x = gaussian(300, 4)
    distances = sorted_distances(x)
    mu = np.sort(distances[:, 1] / distances[:, 0])
    height = [-math.log(1 - i / 300) for i in range(1, 241)]
    slope = np.linalg.lstsq(np.log(mu[:240, None]), np.array(height), rcond=None)[0][0]
    found = intrinsic_dimension(x, fraction=0.8)
    assert found.value == pytest.approx(slope)
    assert found.scale == pytest.approx(distances[:, 1].mean())
    assert (found.n, found.ranks, found.independent_error) == (300, (1, 2), pytest.approx(slope / math.sqrt(240)))


@pytest.mark.parametrize(("n1", "n2"), [(1, 2), (4, 8), (16, 32)])
def test_gride_maximises_its_likelihood(n1, n2):
    x = gaussian(300, 4)
    distances = sorted_distances(x)
    mu = distances[:, n2 - 1] / distances[:, n1 - 1]

    def loss(d):
        between = (n2 - n1 - 1) * np.log(mu**d - 1).sum() if n2 - n1 > 1 else 0.0
        return -((len(mu) - 1) * np.log(d) + between - ((n2 - 1) * d + 1) * np.log(mu).sum())

    best = minimize_scalar(loss, bounds=(0.1, 50), method="bounded", options={"xatol": 1e-9}).x
    found = intrinsic_dimension(x, "gride", n1=n1, n2=n2)
    assert found.value == pytest.approx(best, rel=1e-5)
    step = 1e-3
    curvature = (loss(best + step) - 2 * loss(best) + loss(best - step)) / step**2
    assert found.independent_error == pytest.approx(curvature**-0.5, rel=1e-2)


def test_gride_at_ranks_1_and_2_is_the_likelihood_of_2nn():
    x = gaussian(300, 4)
    assert intrinsic_dimension(x, "gride", n1=1, n2=2).value == pytest.approx(intrinsic_dimension(x, "2nn-ml").value)


def test_mle_both_ways():
    x = gaussian(300, 4)
    distances = sorted_distances(x)[:, :20]
    each = 19 / np.log(distances[:, 19:] / distances[:, :19]).sum(axis=1)
    assert intrinsic_dimension(x, "mle").value == pytest.approx(each.mean())
    assert intrinsic_dimension(x, "mle").independent_error == pytest.approx(each.std(ddof=1) / math.sqrt(300))
    assert intrinsic_dimension(x, "mle-inverse").value == pytest.approx(1 / (1 / each).mean())


@pytest.mark.parametrize(("method", "n", "d"), [("2nn", 50, 5), ("2nn", 200, 2), ("gride", 200, 2), ("mle", 200, 10)])
def test_the_error_covers_the_mean_of_the_estimator(method, n, d):
    found = [intrinsic_dimension(gaussian(n, d, width=d, seed=seed), method) for seed in range(300)]
    values = np.array([one.value for one in found])
    away = np.abs(values - values.mean())
    covered = (away < 1.96 * np.array([one.error for one in found])).mean()
    assert 0.9 < covered < 0.995
    assert (away < 1.96 * np.array([one.independent_error for one in found])).mean() < covered


def test_dimension_scaling_shares_its_ranks_with_gride():
    x = gaussian(300, 5)
    scales = dimension_scaling(x, range_max=64)
    assert [found.ranks for found in scales] == [(1, 2), (2, 4), (4, 8), (8, 16), (16, 32), (32, 64)]
    assert scales[4].value == intrinsic_dimension(x, "gride").value
    assert np.all(np.diff([found.scale for found in scales]) > 0)
    assert dimension_scaling(x[:20], range_max=256)[-1].ranks == (8, 16)


@pytest.mark.parametrize("method", ["2nn", "gride", "mle"])
def test_unchanged_by_rotation_shift_and_scale(method):
    x = gaussian(200, 3, width=6)
    turn, _ = np.linalg.qr(np.random.default_rng(9).normal(size=(6, 6)))
    found = intrinsic_dimension(torch.tensor(7 * x @ turn - 100), method).value
    assert found == pytest.approx(intrinsic_dimension(x, method).value, rel=1e-6)


def test_equal_rows_are_named_and_refused():
    x = gaussian(100, 3)
    x[40] = x[7]
    for method in ("2nn", "2nn-ml", "gride", "mle", "mle-inverse"):
        with pytest.raises(InputError, match=r"2 of 100 examples equal another \(rows 40 repeat"):
            intrinsic_dimension(x, method)
    with pytest.raises(InputError, match="rows 40 repeat"):
        dimension_scaling(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "3nn"}, "method='3nn' is unknown"),
        ({"fraction": 1.0}, "fraction=1.0"),
        ({"method": "gride", "n1": 32, "n2": 32}, "expected a first one that is smaller"),
        ({"method": "gride", "n2": 100}, "last rank=100 neighbours of 100 examples: expected"),
        ({"method": "mle", "k": 1}, "expected a first one that is smaller"),
        ({"metric": "hamming"}, "metric='hamming'"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(InputError, match=message):
        intrinsic_dimension(gaussian(100, 3), **arguments)


def test_a_lattice_is_refused():
    grid = np.stack(np.meshgrid(*[np.arange(8.0)] * 2), axis=-1).reshape(-1, 2)
    with pytest.raises(InputError, match="same distance"):
        intrinsic_dimension(grid)


def test_an_estimate_is_a_result(tmp_path):
    found = intrinsic_dimension(gaussian(100, 3), "gride", n1=4, n2=8)
    assert Estimate.load(found.save(tmp_path / "d.safetensors")) == found
    assert found.to_frame().loc[0, ["method", "first_rank", "last_rank", "n"]].tolist() == ["gride", 4, 8, 100]


@pytest.mark.parametrize("method", ["2nn", "gride", "mle"])
@pytest.mark.parametrize("d", [2, 5, 10, 20, 40])
def test_a_warning_means_too_low_by_a_tenth(method, d):
    cloud = torch.randn(2000, d, generator=torch.Generator().manual_seed(0))
    found = intrinsic_dimension(cloud, method)
    if found.reach < 0.5:
        assert found.value > 0.95 * d
    if found.reach > FAR:
        assert found.value < 0.9 * d
    assert bool(found.warning) == (found.reach > FAR)


def test_the_known_bias_comes_with_its_warning():
    cloud = torch.randn(2000, 20, generator=torch.Generator().manual_seed(0))
    found = intrinsic_dimension(cloud, "gride")
    assert found.value == pytest.approx(14.3, rel=0.03)
    assert "too low by 10 % or more: neighbour 32 of 2000 points" in found.warning
    assert found.to_frame().warning[0] == found.warning


def test_the_plateau_of_a_noisy_sheet_lies_between_noise_and_border():
    rng = np.random.default_rng(0)
    sheet = np.pad(rng.uniform(size=(3000, 2)), ((0, 0), (0, 8))) + 0.003 * rng.normal(size=(3000, 10))
    scaling = dimension_scaling(sheet)
    band = plateau(scaling)
    assert 1 < band.start < band.stop - 1
    assert all(abs(scaling[item].value - 2) < 0.4 for item in band)
    assert plateau(dimension_scaling(rng.normal(size=(2000, 40)))) is None  # all are known to be too low
    steps = [Estimate(value, 0.1, 100, 1.0) for value in (8.0, 5.0, 4.9, 3.0, 2.9, 2.8, 1.0)]
    assert plateau(steps) == range(3, 6)
    assert plateau(steps, tolerance=0.01) is None
    with pytest.raises(InputError, match=r"estimates=\[\]: expected the list that dimension_scaling returns"):
        plateau([])
    with pytest.raises(InputError, match="tolerance=0"):
        plateau(steps, tolerance=0)


def test_a_graph_gives_what_its_cloud_gives():
    cloud = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    graph = nearest_neighbors(cloud, 64)
    for method in ("2nn", "gride", "mle"):
        assert intrinsic_dimension(graph, method) == intrinsic_dimension(cloud, method)
    assert dimension_scaling(graph, range_max=64) == dimension_scaling(cloud, range_max=64)


@pytest.mark.parametrize("unit", [1.0, 0.1, 1 / 3])
def test_a_lattice_is_refused_in_any_unit_and_at_every_scale(unit):
    """Rounding parts what is equally far, and a ratio of 1 + 1e-15 is a dimension of 1e14."""
    grid = np.stack(np.meshgrid(*[np.arange(8.0)] * 2), axis=-1).reshape(-1, 2) * unit
    line = np.arange(100.0)[:, None] * unit  # its two ends alone have no tie
    for lattice in (grid, line):
        for method in ("2nn", "2nn-ml"):
            with pytest.raises(InputError, match=r"of \d+ examples have neighbours 1 and 2 at the same distance"):
                intrinsic_dimension(lattice, method)
        with pytest.raises(InputError, match="neighbours 1 and 2 at the same distance"):
            dimension_scaling(lattice)
    with pytest.raises(InputError, match="neighbours 2 and 4 at the same distance"):
        dimension_scaling(np.random.default_rng(0).integers(0, 2, size=(300, 40)) * unit)


def test_a_few_ties_of_the_two_nearest_are_no_lattice():
    x = gaussian(300, 4, width=4)
    without = intrinsic_dimension(x).value
    x[:3] = [[100.0, 0, 0, 0], [101.0, 0, 0, 0], [102.0, 0, 0, 0]]  # the middle one has its neighbours equally far
    assert intrinsic_dimension(x).value == pytest.approx(without, rel=0.1)


@pytest.mark.parametrize("measure", [intrinsic_dimension, log_density])
def test_rows_of_one_direction_are_copies_by_cosine(measure):
    x = gaussian(100, 3)
    x[40] = 2 * x[7]
    with pytest.raises(
        InputError, match=r"2 of 100 examples point the same way .* \(rows 40 repeat .* take rows of unit"
    ):
        measure(x, metric="cosine")
