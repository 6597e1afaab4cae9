from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from interp.errors import InputError
from interp.geometry import (
    adjusted_rand,
    homogeneity,
    label_overlap,
    mutual_knn,
    nearest_neighbors,
    neighbor_overlap,
    overlap_chance,
    overlap_interval,
)
from interp.geometry.overlap import overlap_influence, overlap_values, overlap_within
from interp.statistics.half_samples import half_samples, reach

quick = settings(max_examples=25, deadline=None)
sizes = st.tuples(st.integers(6, 40), st.integers(1, 6), st.integers(1, 6))
seeds = st.integers(0, 2**16)


def sets_of(x, k, metric="euclidean"):
    """Each row's neighbours by scikit-learn, itself left out."""
    indices = NearestNeighbors(n_neighbors=k + 1, metric=metric).fit(x).kneighbors(x, return_distance=False)
    return [set(row) - {number} for number, row in enumerate(indices)]


def pair(seed, n=120, d=5, noise=0.5):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    return x, x + noise * rng.normal(size=(n, d))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 7, 30])
def test_agrees_with_sklearn(metric, k):
    x, y = pair(0)
    x = x + 2
    expected = np.mean([len(a & b) for a, b in zip(sets_of(x, k, metric), sets_of(y, k, metric), strict=True)]) / k
    assert neighbor_overlap(x, y, k=k, metric=metric) == pytest.approx(expected)


@quick
@given(sizes, seeds)
def test_in_the_unit_interval_symmetric_and_one_with_itself(size, seed):
    n, d, e = size
    rng = np.random.default_rng(seed)
    x, y, k = rng.normal(size=(n, d)), rng.normal(size=(n, e)), int(rng.integers(1, n))
    value = neighbor_overlap(x, y, k=k)
    assert 0 <= value <= 1
    assert value == neighbor_overlap(y, x, k=k)
    assert neighbor_overlap(x, x, k=k) == 1
    assert neighbor_overlap(x, y, k=n - 1) == 1 == overlap_chance(n, n - 1)


@quick
@given(seeds, st.floats(0.01, 100), st.floats(-50, 50))
def test_unchanged_by_rotation_shift_scale_and_order_of_rows(seed, scale, shift):
    x, y = pair(seed, n=40)
    rng = np.random.default_rng(seed + 1)
    turn, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    order = rng.permutation(40)
    moved = (scale * x @ turn + shift)[order]
    assert neighbor_overlap(moved, y[order], k=6) == pytest.approx(neighbor_overlap(x, y, k=6), abs=1e-12)


def test_unrelated_clouds_are_at_chance():
    rng = np.random.default_rng(0)
    value = neighbor_overlap(rng.normal(size=(1000, 10)), rng.normal(size=(1000, 10)), k=30)
    assert value == pytest.approx(overlap_chance(1000, 30), abs=0.003)


def test_a_cloud_of_equal_points_says_nothing():
    x = np.random.default_rng(0).normal(size=(60, 4))
    same = np.full((60, 7), 0.1)
    assert neighbor_overlap(x, same, k=6) == pytest.approx(overlap_chance(60, 6))
    assert neighbor_overlap(same, same * 3, k=6) == pytest.approx(overlap_chance(60, 6))


def test_ties_are_the_mean_over_random_choices():
    x = np.array([[0.0], [1.0], [-1.0], [5.0]])  # rows 1 and 2 are equally far from row 0
    y = np.array([[0.0], [1.0], [-1.5], [5.0]])
    # k = 1: row 0 takes 1 in y and 1 or 2 in x; 1 and 2 take 0 in both; 3 takes 1 in both
    assert neighbor_overlap(x, y, k=1) == pytest.approx((0.5 + 1 + 1 + 1) / 4)


def test_mutual_knn_is_the_inner_product_of_unit_rows():
    x, y = pair(3)
    unit = [cloud / np.linalg.norm(cloud, axis=1, keepdims=True) for cloud in (x, y)]
    similar = [cloud @ cloud.T - 9 * np.eye(len(cloud)) for cloud in unit]
    sets = [[set(row) for row in np.argsort(-one, axis=1)[:, :10]] for one in similar]
    assert mutual_knn(x, y) == pytest.approx(np.mean([len(a & b) / 10 for a, b in zip(*sets, strict=True)]))


def test_bf16_and_unequal_widths():
    x, y = pair(0)
    wide = torch.tensor(np.pad(y, ((0, 0), (0, 90))))
    assert neighbor_overlap(torch.tensor(x), wide) == pytest.approx(neighbor_overlap(x, y))
    assert neighbor_overlap(torch.tensor(x).bfloat16(), y) == pytest.approx(neighbor_overlap(x, y), abs=0.02)


def test_label_overlap_weighs_classes_equally():
    x, _ = pair(0, n=90)
    labels = np.array(["a"] * 60 + ["b"] * 20 + ["c"] * 10)
    each = np.array([np.mean([labels[j] == labels[i] for j in near]) for i, near in enumerate(sets_of(x, 8))])
    expected = np.mean([each[labels == name].mean() for name in "abc"])
    assert label_overlap(x, labels.tolist(), k=8) == pytest.approx(expected)
    assert abs(expected - each.mean()) > 0.05  # the two weightings differ here


def test_label_overlap_of_apart_and_of_mixed_classes():
    x, _ = pair(0, n=80)
    labels = np.arange(80) % 4
    assert label_overlap(x + 100 * labels[:, None], labels, k=10) == 1
    assert label_overlap(np.zeros((80, 3)), labels, k=10) == pytest.approx(19 / 79)


def test_interval_covers_what_other_draws_give():
    found = [overlap_interval(*pair(seed, n=100), k=10, subsamples=20, seed=seed) for seed in range(30)]
    values = np.array([value for value, _, _ in found])
    half_width = np.mean([(high - low) / 2 for _, low, high in found])
    assert 1.5 * values.std() < half_width < 4 * values.std()
    assert all(low < value < high for value, low, high in found)


def test_interval_is_that_of_half_samples_with_neighbourhoods_of_the_same_reach():
    x, y = pair(0, n=81)
    halves = half_samples(81, 9, seed=2)
    assert [len(set(half)) for half in halves.tolist()] == [40] * 9
    parts = [neighbor_overlap(x[half], y[half], k=10) for half in halves.numpy()]  # 10 of 39 are 20 of 80, rounded
    error = np.std(parts, ddof=1) * np.sqrt(40 / 41)
    value, low, high = overlap_interval(x, y, k=20, subsamples=9, seed=2)
    assert (low, high) == pytest.approx((value - 2.306004 * error, value + 2.306004 * error))  # t of 8


def test_interval_is_the_same_for_the_same_seed_only():
    x, y = pair(0)
    assert overlap_interval(x, y, seed=3) == overlap_interval(x, y, seed=3)
    assert overlap_interval(x, y, seed=3) != overlap_interval(x, y, seed=4)
    assert overlap_interval(x, y, seed=3)[0] == neighbor_overlap(x, y)


def test_refusals():
    x, y = pair(0, n=20)
    for call, message in [
        (lambda: neighbor_overlap(x, y), "k=30 neighbours of 20 examples: expected"),
        (lambda: neighbor_overlap(x, y[:19], k=3), "x has 20 examples and y 19"),
        (lambda: neighbor_overlap(x, y, k=3, metric="dot"), "metric='dot'"),
        (lambda: neighbor_overlap(x, y * np.nan, k=3), "y has 20 rows that are not finite"),
        (lambda: overlap_interval(x, y, k=3, subsamples=1), "subsamples=1"),
        (lambda: label_overlap(x, [0, 1] * 9, k=3), r"labels have shape \(18,\) for 20 examples"),
        (lambda: label_overlap(x, ["a"] * 20, k=3), "all labels are"),
        (lambda: overlap_chance(20, 20), "k=20"),
    ]:
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize(
    "labels",
    [
        [0, 1] * 10,
        ["a", "b"] * 10,
        ["a", 1] * 10,
        pd.Series(["a", 1] * 10),
        pd.Series(["a", "b"] * 10, dtype="category", index=range(50, 70)),
        np.array([True, False] * 10),
        torch.tensor([0.0, 1.0] * 10, requires_grad=True),
        torch.tensor([0.0, 1.0] * 10, dtype=torch.bfloat16),
    ],
    ids=str,
)
def test_labels_of_any_kind(labels):
    x, _ = pair(0, n=20)
    assert label_overlap(x, labels, k=3) == label_overlap(x, np.arange(20) % 2, k=3)
    assert homogeneity(labels, np.arange(20) % 2) == adjusted_rand(labels, np.arange(20) % 2) == 1


@pytest.mark.parametrize("missing", [None, math.nan, pd.NA, pd.NaT], ids=str)
@pytest.mark.parametrize("pair_of_labels", [("a", "b"), (0.0, 1.0)])
def test_a_missing_label_is_no_class(missing, pair_of_labels):
    x, _ = pair(0, n=20)
    labels = list(pair_of_labels) * 10
    labels[3] = missing
    for call in (lambda: label_overlap(x, labels, k=3), lambda: homogeneity(range(20), labels)):
        with pytest.raises(InputError, match="1 of 20 labels are missing or not finite, the first at example 3"):
            call()
    with pytest.raises(InputError, match="1 of 20 clusters are missing"):
        adjusted_rand(labels, range(20))


def test_labels_of_unequal_lengths_are_refused():
    with pytest.raises(
        InputError, match=r"labels=\[\[0\], .* have several lengths: expected strings or integers, one an example"
    ):
        label_overlap(pair(0, n=20)[0], [[0], [0, 1]] * 10, k=3)


def parts_of(x, k):
    """Everyone's part in everyone's neighbourhood, ties shared."""
    distances = ((x[:, None] - x) ** 2).sum(-1)
    np.fill_diagonal(distances, np.inf)
    last = np.sort(distances, axis=1)[:, k - 1 : k]
    tied = distances == last
    nearer = distances < last
    return nearer + tied * (k - nearer.sum(axis=1, keepdims=True)) / tied.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("columns", [4, 12])
@pytest.mark.parametrize("values", [3, 1000])  # with many ties, and with few
def test_half_samples_and_influences_share_ties_too(columns, values):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, values, size=(2, 40, 2)).astype(float)
    first, second = nearest_neighbors(x, columns), nearest_neighbors(y, columns)
    half = half_samples(40, 2, 0)[0]
    inner = reach(4, 40, 20)
    expected = (parts_of(x[half], inner) * parts_of(y[half], inner)).sum() / 20 / inner
    assert float(overlap_within([first], [second], half, 4)) == pytest.approx(expected, abs=1e-6)

    both = parts_of(x, 4) * parts_of(y, 4) / 4
    assert float(overlap_values([first], [second], 4)) == pytest.approx(both.sum(axis=1).mean(), abs=1e-6)
    standing = [parts_of(cloud, 4).sum(axis=0) / 4 - 1 for cloud in (x, y)]
    places = both.sum(axis=0) - both.sum(axis=1).mean() * (1 + standing[0] + standing[1])
    expected = both.sum(axis=1) + 0.7 * places
    value, influence = overlap_influence([first], [second], 4)
    np.testing.assert_allclose(influence[0, 0], expected, atol=1e-6)
    assert float(value) == pytest.approx(both.sum(axis=1).mean(), abs=1e-6)
