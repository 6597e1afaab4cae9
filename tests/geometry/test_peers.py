"""What DADApy and platonic-rep give on the same arrays; clusters, densities, kernels and subspaces have theirs beside them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import dadapy_stored
from interp.geometry import (
    cycle_knn,
    differentiable_imbalance,
    dimension_scaling,
    information_imbalance,
    intrinsic_dimension,
    label_overlap,
    mutual_knn,
    neighbor_overlap,
)

GAUSSIANS = ("gaussian2", "gaussian5", "gaussian10")
LABELLED = ("blobs2", "blobs5", "moons")


@pytest.fixture(scope="module")
def pair():
    made = dadapy_stored.recipes().PAIRS["pair"]()
    stored = dadapy_stored.values()["pair"]
    assert [dadapy_stored.recipes().digest(each) for each in made] == stored["sha256"]
    return made, stored


@pytest.mark.parametrize("name", [*GAUSSIANS, *LABELLED])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dimensions_are_those_of_dadapy(name, dtype):
    cloud = torch.from_numpy(dadapy_stored.cloud(name)).to(dtype)
    stored = dadapy_stored.values()[name]["dimensions"]
    close = 1e-5 if dtype == torch.float64 else 1e-3
    assert intrinsic_dimension(cloud).value == pytest.approx(stored["2nn"], rel=close)
    assert intrinsic_dimension(cloud, "2nn-ml").value == pytest.approx(stored["2nn-ml"], rel=close)
    scaling = dimension_scaling(cloud, range_max=256)
    np.testing.assert_allclose([each.value for each in scaling], stored["gride"]["values"], rtol=close)
    # DADApy's errors are Fisher's at ranks rounded otherwise; its scales are means over both ranks, ours over the farther
    np.testing.assert_allclose([each.independent_error for each in scaling], stored["gride"]["errors"], rtol=0.01)
    ratio = np.array([each.scale for each in scaling]) / stored["gride"]["scales"]
    assert ((ratio > 1) & (ratio < 1.3)).all()


@pytest.mark.parametrize("name", LABELLED)
def test_label_overlap_is_that_of_dadapy(name):
    stored = dadapy_stored.values()[name]["label overlap k=30"]
    labels = dadapy_stored.recipes().LABELS[name]()
    assert label_overlap(dadapy_stored.cloud(name), labels, k=30) == pytest.approx(stored["weighted"], abs=1e-6)


def test_overlap_and_imbalance_are_those_of_dadapy(pair):
    (x, y), stored = pair
    assert neighbor_overlap(x, y, k=30) == pytest.approx(stored["data overlap k=30"], abs=1e-6)
    for k in (1, 5):
        assert information_imbalance(x, y, k=k) == pytest.approx(stored[f"information imbalance k={k}"], rel=1e-5)


def test_differentiable_imbalance_is_that_of_dadapy(pair):
    (x, y), stored = pair
    weights = dadapy_stored.recipes().WEIGHTS
    for name, value in stored["differentiable information imbalance"].items():
        which, _, k = name.partition(", k=")
        found = differentiable_imbalance(x, y, torch.tensor(weights[which]), k=int(k))
        assert float(found) == pytest.approx(value, rel=1e-4)


def test_neighbours_are_those_of_platonic_rep():
    stored = json.loads((Path(__file__).parent / "peers" / "platonic_rep.json").read_text())["values"]
    rng = np.random.default_rng(7)
    x, turn, noise = rng.normal(size=(300, 20)), rng.normal(size=(20, 30)), rng.normal(size=(300, 30))
    y = x @ turn + 4 * noise
    assert mutual_knn(x, y) == pytest.approx(stored["mutual_knn"], abs=1e-6)
    assert cycle_knn(x, y) == pytest.approx(stored["cycle_knn"], abs=1e-6)
