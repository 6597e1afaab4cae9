from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from interp.errors import InputError, InputTypeError
from interp.geometry import distinct_rows, nearest_neighbors
from interp.geometry.clouds import as_states, duplicates
from interp.geometry.neighbors import shares, squared_distances


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_agrees_with_sklearn(metric):
    x = np.random.default_rng(0).normal(size=(200, 12)) + 3
    found = nearest_neighbors(x, k=15, metric=metric)
    distances, indices = NearestNeighbors(n_neighbors=16, metric=metric).fit(x).kneighbors(x)
    assert np.array_equal(found.indices, indices[:, 1:])
    expected = distances[:, 1:] if metric == "euclidean" else np.sqrt(2 * distances[:, 1:])
    np.testing.assert_allclose(found.distances, expected, rtol=1e-6)


def test_a_row_is_left_out_by_identity_among_equal_rows():
    x = torch.tensor([[0.0], [0.0], [0.0], [5.0]])
    found = nearest_neighbors(x, k=2)
    for row in range(4):
        assert row not in found.indices[row].tolist()
    assert found.distances[:3].tolist() == [[0.0, 0.0]] * 3


@pytest.mark.parametrize("offset", [1e3, 1e6])
@pytest.mark.parametrize("many", [0.02, 1.0])  # by whole blocks and by pairs
def test_distances_do_not_cancel_far_from_the_origin_or_between_far_groups(offset, many, monkeypatch):
    monkeypatch.setattr("interp.geometry.neighbors._MANY", many)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)) * 1e-3
    x[30:] += offset  # two tight groups far apart: |a|^2 + |b|^2 - 2ab loses all digits inside each
    expected = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    np.fill_diagonal(expected, np.inf)
    np.testing.assert_allclose(nearest_neighbors(x, k=5).distances, np.sort(expected, axis=1)[:, :5], rtol=1e-8)


def test_blocks_of_rows_change_nothing(monkeypatch):
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    whole = nearest_neighbors(x, k=7)
    monkeypatch.setattr("interp.geometry.neighbors._BLOCK", 350)
    assert torch.equal(nearest_neighbors(x, k=7).indices, whole.indices)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_takes_any_dtype(dtype):
    x = (torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    assert torch.equal(nearest_neighbors(x, k=3).indices, nearest_neighbors(x.double().numpy(), k=3).indices)


def test_half_precision_does_not_overflow():
    x = torch.full((3, 100), 6e4, dtype=torch.float16) * torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float16)
    assert torch.isfinite(nearest_neighbors(x, k=2).distances).all()


def test_shares_split_the_last_places_evenly():
    distances = torch.tensor([[torch.inf, 1.0, 1.0, 1.0, 0.5], [3.0, torch.inf, 2.0, 1.0, 9.0]])
    expected = torch.tensor([[0, 1 / 3, 1 / 3, 1 / 3, 1], [0, 0, 1, 1, 0]])
    torch.testing.assert_close(shares(distances, 2), expected)


def test_equal_rows_stay_tied_in_spite_of_rounding():
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    corners = np.array([[a, b, c] for a in (0.0, 1.0) for b in (0.0, 1.0) for c in (0.0, 1.0)]) @ turn / 3
    cloud = torch.tensor(corners).repeat(11, 1)
    squared = squared_distances(cloud, slice(0, 88))
    squared.fill_diagonal_(0)
    assert len(squared.unique()) == 4  # of the corners of a cube: 0, 1, 2 and 3 ninths


def test_distinct_rows_are_so_in_all_clouds_and_states():
    x = torch.arange(12.0).reshape(6, 2)
    states = torch.stack([x, x.flip(0)])
    x[5] = x[0]
    states[1, 3] = states[1, 2]
    assert duplicates(x).tolist() == [5]
    assert distinct_rows(x, states).tolist() == [0, 1, 2, 4]
    with pytest.raises(InputError, match=r"\[5, 6\] examples"):
        distinct_rows(x, x[:5])


@pytest.mark.parametrize(
    ("x", "k", "metric", "message"),
    [
        (np.zeros(5), 1, "euclidean", r"shape \(5,\): expected \[example, feature\]"),
        (np.zeros((1, 5)), 1, "euclidean", "two examples or more"),
        (np.zeros((4, 0)), 1, "euclidean", r"shape \(4, 0\)"),
        (np.array([[0.0], [np.nan], [1.0]]), 1, "euclidean", "1 rows that are not finite, the first at example 1"),
        (np.eye(4), 4, "euclidean", "k=4 neighbours were asked of 4 examples"),
        (np.eye(4), 0, "euclidean", "k=0"),
        (np.eye(4), True, "euclidean", "k=True"),
        (np.eye(4), 1, "manhattan", "metric='manhattan' is unknown"),
        (np.diag([1.0, 1.0, 0.0]), 1, "cosine", "1 rows of zeros"),
        (np.array([["a"], ["b"]]), 1, "euclidean", "expected numbers"),
        (np.eye(4) * 1j, 1, "euclidean", "expected numbers"),
        (torch.eye(4) * 1j, 1, "euclidean", "expected real numbers"),
    ],
)
def test_refusals_say_what_was_seen(x, k, metric, message):
    with pytest.raises(InputError, match=message) as caught:
        nearest_neighbors(x, k=k, metric=metric)
    assert "\n" not in str(caught.value)


def test_refuses_what_is_no_array():
    with pytest.raises(InputTypeError, match="x is a list"):
        nearest_neighbors([[0.0], [1.0]], k=1)


def test_states_may_be_anything_that_gives_a_tensor():
    class Site:
        def __getitem__(self, index):
            return torch.ones(2, 3, 4)[index]

    assert as_states(Site()).shape == (2, 3, 4)
    with pytest.raises(InputError, match="state 1, example 2"):
        as_states(torch.zeros(2, 3, 4).index_put_((torch.tensor(1), torch.tensor(2)), torch.tensor(torch.inf)))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_graph():
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    here, there = nearest_neighbors(x, k=20), nearest_neighbors(x.cuda(), k=20)
    assert torch.equal(here.indices, there.indices.cpu())
