from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dadapy_stored
from interp.errors import InputError
from interp.geometry.clusters import (
    Peaks,
    _assign,
    _merge,
    _peaks,
    _saddles,
    adjusted_rand,
    density_peaks,
    find_peaks,
    homogeneity,
)

quick = settings(max_examples=10, deadline=None)


def blobs(apart=8.0, seed=0, d=3):
    """Three blobs of 120, 80 and 40 points, the smallest the densest, and which one each point is of."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1, 2], [120, 80, 40])
    centres, widths = apart * np.eye(3, d), np.array([1.0, 0.7, 0.2])
    return centres[labels] + widths[labels, None] * rng.normal(size=(240, d)), labels


@pytest.mark.parametrize("z", [1.65, 1.2, 0.5])
@pytest.mark.parametrize("density", ["knn", "pak"])
@pytest.mark.parametrize("name", ["gaussian5", "blobs2", "blobs5", "moons"])
def test_agrees_with_dadapy(name, density, z):
    stored = dadapy_stored.values()[name]["density"][density][f"peaks z={z}"]
    found = find_peaks(dadapy_stored.cloud(name), z, density=density)
    assert adjusted_rand(found.clusters, stored["clusters"]) == 1
    assert set(found.centres.tolist()) == set(stored["centres"])
    assert found.log_density[found.centres].diff().le(0).all()
    place = [found.centres.tolist().index(centre) for centre in stored["centres"]]
    touching = np.array(stored["border points"]) >= 0
    borders, errors = found.borders[place][:, place].numpy(), found.border_errors[place][:, place].numpy()
    assert (np.isfinite(borders) == touching).all()
    assert borders[touching] == pytest.approx(np.array(stored["borders"])[touching], abs=1e-3)
    assert errors[touching] == pytest.approx(np.array(stored["border errors"])[touching], abs=1e-5)


@pytest.mark.parametrize("density", ["knn", "pak"])
def test_separate_blobs_are_found_whatever_their_size_and_density(density):
    x, labels = blobs()
    found = density_peaks(x, density=density)
    assert adjusted_rand(found, labels) == homogeneity(found, labels) == 1
    assert (found[labels == 2] == 0).all()  # numbered by density
    assert (found[labels == 0] == 2).all()


def test_a_single_gaussian_is_one_cluster_and_a_smaller_z_splits_it_further():
    x = np.random.default_rng(0).normal(size=(400, 5))
    assert density_peaks(x).max() == 0
    numbers = [len(find_peaks(x, z).centres) for z in (3.0, 1.65, 0.5, 0.05)]
    assert numbers == sorted(numbers)
    assert numbers[-1] > 1


def test_the_kind_of_what_comes_in_is_the_kind_of_what_comes_out():
    x, _ = blobs()
    array, tensor = density_peaks(x), density_peaks(torch.tensor(x))
    assert isinstance(array, np.ndarray)
    assert array.dtype == np.int64
    assert isinstance(tensor, torch.Tensor)
    assert tensor.tolist() == array.tolist()


@quick
@given(st.integers(0, 2**16), st.floats(0.01, 100), st.sampled_from(["knn", "pak"]))
def test_unchanged_by_rotation_shift_scale_and_order_of_rows(seed, scale, density):
    x, _ = blobs(apart=2.5, seed=seed)
    rng = np.random.default_rng(seed + 1)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    order = rng.permutation(len(x))
    moved = density_peaks((scale * x @ turn - 7)[order], density=density)
    assert adjusted_rand(moved, density_peaks(x, density=density)[order]) == 1


def test_cosine_looks_at_directions_alone():
    x, labels = blobs()
    length = np.random.default_rng(3).uniform(0.1, 10, size=(240, 1))
    assert homogeneity(density_peaks(x * length, metric="cosine", dimension=2), labels) > 0.95


def test_a_peak_next_to_a_denser_point_is_dropped_for_the_densest_of_them():
    g = np.array([3.0, 5.0, 4.0, 1.0])
    indices = np.array([[3], [0], [0], [0]])  # 1 and 2 see the peak 0, which sees neither
    peaks, dropped_for = _peaks(g, indices, np.ones((4, 1), dtype=bool))
    assert peaks.tolist() == [1, 2]
    assert dropped_for.tolist() == [1, -1, -1, -1]


def test_two_points_of_equal_density_are_both_peaks():
    indices = np.array([[1, 2], [0, 2], [0, 1]])
    assert _peaks(np.array([2.0, 2.0, 1.0]), indices, np.ones((3, 2), dtype=bool))[0].tolist() == [0, 1]


def test_a_border_point_has_no_fellow_nearer_to_the_other_side():
    g = np.array([9.0, 8.0, 4.0, 3.0, 1.0])
    cluster = np.array([0, 1, 0, 0, 1])  # peaks 0 and 1; 2 and 3 see 4, on the other side
    indices = np.array([[2, 3], [4, 0], [4, 0], [4, 0], [3, 1]])
    edges, saddles = _saddles(g, indices, np.ones((5, 2), dtype=bool), np.array([0, 1]), cluster)
    assert (edges.tolist(), saddles.tolist()) == ([[0, 1]], [3])  # 2 is denser, but 3 is nearer to 4
    indices[4] = [1, 1]  # now 4 has none of cluster 0 within reach, and no fellow of 2 is nearer
    assert _saddles(g, indices, np.ones((5, 2), dtype=bool), np.array([0, 1]), cluster)[1].tolist() == [2]


def test_a_dropped_peak_with_no_neighbor_above_joins_what_it_was_dropped_for():
    g = np.array([3.0, 5.0, 1.0, 2.0, 9.0])
    indices = np.array([[2, 3], [0, 2], [0, 3], [0, 2], [1, 0]])
    cluster = _assign(g, indices, np.array([1, 4]), np.array([1, -1, -1, -1, -1]))
    assert cluster.tolist() == [0, 0, 0, 0, 1]


def test_merging_keeps_the_denser_of_two_borders_with_a_third():
    # peaks 0 to 2 at height 10, 5 and 8; saddles: 3 between 0 and 1, 4 between 0 and 2, 5 between 1 and 2
    rho = np.array([10.0, 5.0, 8.0, 4.9, 1.0, 2.0])
    edges, saddles = np.array([[0, 1], [0, 2], [1, 2]]), np.array([3, 4, 5])
    owner, edges, saddles = _merge(rho, np.full(6, 0.25), np.arange(3), edges, saddles, 1.65)
    assert owner.tolist() == [0, 0, 2]
    assert edges.tolist() == [[2, 0]] or edges.tolist() == [[0, 2]]
    assert saddles.tolist() == [5]


def test_the_frame_says_how_far_each_peak_stands_out(tmp_path):
    x, _ = blobs(apart=4.0)
    found = find_peaks(np.concatenate([x, x + 1000]))
    frame = found.to_frame()
    assert frame["size"].sum() == 480
    assert (frame["z"] >= 1.65).all()
    assert frame["log_density"].is_monotonic_decreasing
    touching = frame[frame["neighbor"] >= 0]
    one, other = int(touching["cluster"].iloc[0]), int(touching["neighbor"].iloc[0])
    height = float(found.log_density[found.centres[one]] - found.borders[one, other])
    assert touching["z"].iloc[0] == pytest.approx(height / 0.5)
    again = Peaks.load(found.save(tmp_path / "peaks.safetensors"))
    assert torch.equal(again.clusters, found.clusters)
    assert again.to_frame().equals(frame)


def test_a_cluster_that_touches_no_other_stands_out_without_limit():
    frame = find_peaks(blobs(apart=100.0)[0]).to_frame()
    assert frame["neighbor"].tolist() == [-1, -1, -1]
    assert frame["z"].tolist() == [math.inf] * 3
    assert frame["saddle"].isna().all()


def entropy(*counts):
    share = np.array(counts) / sum(counts)
    return -(share * np.log(share)).sum()


def test_homogeneity_is_one_minus_a_ratio_of_entropies():
    clusters, labels = [0, 0, 0, 1, 1, 1], ["a", "a", "b", "b", "b", "b"]
    within = 0.5 * entropy(2, 1)
    assert homogeneity(clusters, labels) == pytest.approx(1 - within / entropy(2, 4))
    assert homogeneity([0] * 6, labels) == 0
    assert homogeneity(torch.arange(6), np.array(labels)) == pytest.approx(1)


def test_adjusted_rand_is_the_agreement_of_pairs_above_chance():
    rng = np.random.default_rng(0)
    one, other = rng.integers(3, size=40), rng.integers(4, size=40)
    pairs = [(i, j) for i in range(40) for j in range(i)]
    same_one = np.array([one[i] == one[j] for i, j in pairs])
    same_other = np.array([other[i] == other[j] for i, j in pairs])
    chance = same_one.sum() * same_other.sum() / len(pairs)
    most = (same_one.sum() + same_other.sum()) / 2
    assert adjusted_rand(one, other) == pytest.approx(((same_one & same_other).sum() - chance) / (most - chance))
    assert adjusted_rand(one, 2 - one) == 1


def nan_at_3(x):
    x = x.copy()
    x[3, 1] = math.nan
    return x


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda x: x, {"z": 0}, "z=0: expected a positive number"),
        (lambda x: x, {"z": True}, "z=True"),
        (lambda x: x, {"density": "kde"}, "density='kde' is unknown: use one of knn, pak"),
        (lambda x: x[:40], {"k": 40}, "k=40 neighbours of 40 examples: expected"),
        (lambda x: x[:32], {}, "32 examples are too few for a dimension"),
        (lambda x: np.concatenate([x, x[5:6]]), {}, "distinct_rows"),
        (lambda x: np.concatenate([x, x[5:6]]), {"dimension": 3}, "2 of 241 examples equal another .*distinct_rows"),
        (nan_at_3, {}, "not finite, the first at example 3"),
        (lambda x: x[:, 0], {}, "shape"),
    ],
)
def test_refusals(change, arguments, message):
    with pytest.raises(InputError, match=message) as raised:
        density_peaks(change(blobs()[0]), **arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("measure", [homogeneity, adjusted_rand])
@pytest.mark.parametrize(
    ("clusters", "labels", "message"),
    [
        ([0, 1, 1], [0, 1], "3 clusters and 2 labels"),
        ([[0, 1]], [0, 1], r"clusters have shape \(1, 2\)"),
        ([], [], r"clusters have shape \(0,\)"),
        ([0, 1], [0.0, math.inf], "1 of 2 labels are missing or not finite, the first at example 1"),
        ([0, 1], [math.nan, 1.0], "1 of 2 labels are missing or not finite, the first at example 0"),
    ],
)
def test_partitions_are_checked(measure, clusters, labels, message):
    with pytest.raises(InputError, match=message):
        measure(clusters, labels)


def test_homogeneity_takes_two_labels():
    with pytest.raises(InputError, match="all labels are 'a'"):
        homogeneity([0, 1], ["a", "a"])


def test_the_peak_that_stands_out_by_more_errors_stays():
    """The first is higher, but its error is four times larger; points 2 and 3 are the saddle and no one."""
    rho, errors = np.array([3.0, 2.0, 0.0, -1.0]), np.array([3.0, 0.5, 0.5, 0.5])
    owner, edges, _ = _merge(rho, errors, np.array([0, 1]), np.array([[0, 1]]), np.array([2]), z=1.5)
    assert owner.tolist() == [1, 1]
    assert len(edges) == 0
