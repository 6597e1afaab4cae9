from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from interp.errors import InputError, InputTypeError
from interp.geometry import (
    distinct_rows,
    information_imbalance,
    intrinsic_dimension,
    nearest_neighbors,
    neighbor_overlap,
)
from interp.geometry.clouds import as_cloud, as_states
from interp.geometry.copies import duplicates
from interp.geometry.neighbors import ready, shares


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
    squared = ready(cloud).squared(slice(0, 88))
    found = shares(squared, 20)  # ten copies of each corner, and ten of the 33 points on the three corners next to it
    assert [len(row.unique()) for row in found] == [3] * 88
    assert found[found > 0].unique().tolist() == pytest.approx([10 / 33, 1])


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
        (np.eye(4), 4, "euclidean", "k=4 neighbours of 4 examples: expected"),
        (np.eye(4), 0, "euclidean", "k=0"),
        (np.eye(4), True, "euclidean", "k=True"),
        (np.eye(4), 1, "manhattan", "metric='manhattan' is unknown"),
        (np.diag([1.0, 1.0, 0.0]), 1, "cosine", "1 rows of zeros"),
        (np.array([["a"], ["b"]]), 1, "euclidean", "expected numbers"),
        (np.eye(4) * 1j, 1, "euclidean", "expected numbers"),
        (torch.eye(4).to_sparse(), 1, "euclidean", "layout torch.sparse_coo: expected a dense tensor"),
        (np.ma.masked_greater(np.eye(4), 0.5), 1, "euclidean", "4 masked values"),
        (torch.eye(4) * 1j, 1, "euclidean", "expected real numbers"),
    ],
)
def test_refusals_say_what_was_seen(x, k, metric, message):
    with pytest.raises(InputError, match=message) as caught:
        nearest_neighbors(x, k=k, metric=metric)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("error")
def test_a_read_only_array_is_taken_without_a_warning():
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    x.flags.writeable = False
    torch.set_warn_always(True)  # it says so once a process
    try:
        assert nearest_neighbors(x, 3).indices.shape == (20, 3)
    finally:
        torch.set_warn_always(False)


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


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-5])
def test_float32_gives_the_graph_of_float64(spread):
    """Tight groups far apart: in float32 |a|^2 + |b|^2 - 2ab has no digits left inside them."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(300, 20)) * spread + rng.normal(size=(6, 20))[np.arange(300) % 6]).float()
    found, exact = nearest_neighbors(x, 12), nearest_neighbors(x.double(), 12)
    torch.testing.assert_close(found.distances, exact.distances, rtol=1e-4, atol=0)
    assert (found.indices == exact.indices).double().mean() > 0.99
    assert found.extent == pytest.approx(exact.extent, rel=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_neither_overflow_nor_vanish_in_float32(scale):
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    found = nearest_neighbors(x * scale, 5)
    assert torch.equal(found.indices, nearest_neighbors(x, 5).indices)
    torch.testing.assert_close(found.distances / scale, nearest_neighbors(x, 5).distances, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_copies_of_a_point_are_equally_far_to_the_last_bit(dtype):
    some = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).to(dtype) + 100
    order = torch.randperm(120, generator=torch.Generator().manual_seed(1))
    x = some.repeat(3, 1)[order]
    found = nearest_neighbors(x, 8)
    assert (found.distances[:, :2] == 0).all()
    assert (found.distances[:, 2] == found.distances[:, 4]).all()  # the next point and its two copies
    assert not found.tied(2).any()
    assert found.tied(3).all()
    assert found.tied(4).all()
    squared = found.points.squared(slice(0, 120))
    assert [len(row.unique()) for row in squared] == [41] * 120  # 0, the 39 others, and infinity to oneself


def test_extent_is_the_root_of_the_mean_square_of_all_distances():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)).double().repeat(2, 1)[:100] * 7 + 3
    expected = torch.pdist(x).square().mean().sqrt()
    assert nearest_neighbors(x, 3).extent == pytest.approx(float(expected))


def test_a_permuted_graph_is_the_graph_of_permuted_points():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    found, expected = nearest_neighbors(x, 7).permuted(order), nearest_neighbors(x[order], 7)
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.next_distance, expected.next_distance)


def test_a_graph_serves_in_place_of_its_cloud_or_says_why_not():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    graph = nearest_neighbors(x, 7)
    assert neighbor_overlap(graph, x, k=7) == 1
    for call, message in [
        (lambda: neighbor_overlap(graph, x, k=8), "x is a graph of 7 neighbours, fewer than 8: make it with k=8"),
        (lambda: neighbor_overlap(x, graph, k=5, metric="cosine"), "y is a graph by 'euclidean' and metric='cosine'"),
        (lambda: neighbor_overlap(graph, x[:40], k=5), "x has 50 examples and y 40"),
        (lambda: intrinsic_dimension(graph, "gride"), "graph of 7 neighbours, fewer than 32"),
    ]:
        with pytest.raises(InputError, match=message):
            call()


def test_whole_numbers_are_taken_to_float64_where_their_ties_are_exact():
    grid = torch.cartesian_prod(*[torch.arange(5.0)] * 3)
    assert as_cloud(grid).dtype == torch.float64
    assert as_cloud(grid + 0.5).dtype == torch.float32
    found = nearest_neighbors(grid, 6)
    inner = ((grid > 0) & (grid < 4)).all(dim=1)
    torch.testing.assert_close(found.distances[inner], torch.ones(27, 6, dtype=torch.float64))


def test_rows_that_are_equal_but_for_rounding_are_copies_and_others_are_not():
    x = torch.randn(100, 50, generator=torch.Generator().manual_seed(0))
    x[1] = x[0]
    x[1, 49] = torch.nextafter(x[0, 49], torch.tensor(10.0))
    x[3] = x[2]
    x[5, :40] = x[4, :40]
    assert duplicates(x).tolist() == [1, 3]


@pytest.mark.parametrize("block", [2**22, 7 * 130])  # one block of rows, and many
def test_of_wide_clouds_one_half_of_the_table_is_computed(block, monkeypatch):
    monkeypatch.setattr("interp.geometry.neighbors._BLOCK", block)
    x = np.random.default_rng(0).normal(size=(130, 300)) + 2
    y = x + np.random.default_rng(1).normal(size=(130, 300))
    found = nearest_neighbors(x, 9)
    distances, indices = NearestNeighbors(n_neighbors=10).fit(x).kneighbors(x)
    assert np.array_equal(found.indices, indices[:, 1:])
    np.testing.assert_allclose(found.distances, distances[:, 1:], rtol=1e-6)
    half = nearest_neighbors(x, 9).distances, information_imbalance(x, y, k=3)
    monkeypatch.setattr("interp.geometry.neighbors._WHOLE", 0)  # too large to be held: row by row
    torch.testing.assert_close(nearest_neighbors(x, 9).distances, half[0])
    assert information_imbalance(x, y, k=3) == pytest.approx(half[1], abs=1e-9)
