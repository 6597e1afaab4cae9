from __future__ import annotations

import sys

import pytest
import torch

from interp.errors import InputError
from interp.geometry import approximate_neighbors, intrinsic_dimension, nearest_neighbors, neighbor_overlap
from interp.geometry.approximate import _recall, _without_itself


def cloud(n=3000, d=20, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_recall_is_what_the_exact_graph_says(metric):
    x = cloud() + 0.5
    exact = nearest_neighbors(x, 15, metric)
    for effort in (1, 8):
        found = approximate_neighbors(x, 15, metric, effort=effort)
        share = torch.stack(
            [torch.isin(a, b).double().mean() for a, b in zip(found.indices, exact.indices, strict=True)]
        )
        assert found.recall == pytest.approx(float(share.mean()), abs=0.03)
        assert found.sample == 1000
    assert found.recall > 0.98


def test_distances_are_exact_and_in_order_and_a_point_is_not_its_own_neighbour():
    x = cloud(500)
    found = approximate_neighbors(x, 10)
    expected = (x[:, None] - x[found.indices]).double().norm(dim=2)
    torch.testing.assert_close(found.distances, expected, rtol=1e-6, atol=0)
    assert (found.distances.diff(dim=1) >= 0).all()
    assert (found.indices != torch.arange(500)[:, None]).all()
    assert (found.next_distance >= found.distances[:, -1]).all()


def test_measures_take_it_for_a_graph():
    x = cloud()
    found, exact = approximate_neighbors(x, 32, effort=8), nearest_neighbors(x, 32)
    assert intrinsic_dimension(found, "gride").value == pytest.approx(
        intrinsic_dimension(exact, "gride").value, rel=0.01
    )
    assert neighbor_overlap(found, exact, k=30) > 0.97


def test_copies_of_points_and_tiny_clouds():
    twice = cloud(200).repeat(2, 1)
    found = approximate_neighbors(twice, 5)
    assert (found.distances[:, 0] == 0).all()
    assert approximate_neighbors(cloud(4), 3).recall == 1


def test_refusals(monkeypatch):
    x = cloud(50)
    with pytest.raises(InputError, match="k=50 neighbours of 50"):
        approximate_neighbors(x, 50)
    with pytest.raises(InputError, match="effort=0"):
        approximate_neighbors(x, 5, effort=0)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"needs faiss: pip install 'interp-vlm\[approximate\]'"):
        approximate_neighbors(x, 5)


def test_a_point_that_did_not_find_itself_loses_the_farthest():
    found = torch.tensor([[0, 1, 2], [0, 2, 3], [5, 2, -1]])
    assert _without_itself(found, torch.tensor([0, 1, 2]), 6).tolist() == [[1, 2], [0, 2], [5, 3]]


def test_recall_counts_who_is_as_near_as_the_last_and_no_one_farther():
    squared = torch.tensor([[torch.inf, 1.0, 2.0, 2.0, 2.1]])
    found = [_recall(squared, torch.tensor([[1, other]]), 2) for other in (2, 3, 4)]
    assert found == [1, 1, 0.5]
