from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from interp.errors import InputError
from interp.geometry.modality import ModalityGap, modality_gap
from interp.statistics import wilson_interval

quick = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**16)


def pair(seed=0, n=60, d=12, shift=0.6, noise=0.7):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) + 0.5
    return x, x + shift + noise * rng.normal(size=(n, d))


def test_cosines_are_those_of_the_table():
    x, y = pair()
    table = cosine_similarity(x, y)
    gap = modality_gap(x, y)
    assert gap.paired_cosine == pytest.approx(np.median(np.diag(table)))
    lower = table[np.tril_indices(60, k=-1)]
    assert gap.all_pairs == pytest.approx(tuple(np.quantile(lower, [0.25, 0.5, 0.75])), abs=1e-6)
    others = (table.sum(axis=1) - np.diag(table)) / 59
    each = np.diag(table) - others
    assert gap.corrected_cosine == pytest.approx(each.mean())
    assert gap.corrected_error == pytest.approx(each.std(ddof=1) / math.sqrt(60))


def test_shuffled_pairs_are_what_mismatched_pairs_give():
    x, y = pair()
    gap = modality_gap(x, y, shuffles=200)
    table = cosine_similarity(x, y)
    assert gap.shuffled_cosine == pytest.approx(np.median(table[~np.eye(60, dtype=bool)]), abs=0.02)
    assert gap.p == pytest.approx(1 / 201)
    rng = np.random.default_rng(1)
    unrelated = [modality_gap(x, rng.permutation(y), shuffles=50).p for _ in range(10)]
    assert 0.2 < np.mean(unrelated) < 0.8


def test_centroids_and_what_exchange_within_pairs_gives():
    x, y = pair()
    gap = modality_gap(x, y)
    distance = np.linalg.norm(x.mean(axis=0) - y.mean(axis=0))
    spread = np.mean([np.sqrt(((cloud - cloud.mean(axis=0)) ** 2).sum(axis=1).mean()) for cloud in (x, y)])
    assert gap.centroid_distance == pytest.approx(distance)
    assert gap.centroid_relative == pytest.approx(distance / spread)
    signs = np.random.default_rng(0).choice([-1, 1], size=(4000, 60))
    exchanged = np.linalg.norm(signs @ (x - y) / 60, axis=1)
    assert gap.centroid_chance == pytest.approx(math.sqrt((exchanged**2).mean()) / spread, rel=0.03)
    assert gap.centroid_relative > 3 * gap.centroid_chance


def test_separability_is_a_grouped_cross_validation():
    x, y = pair()
    probe = make_pipeline(StandardScaler(), LogisticRegression())
    rows, groups = np.concatenate([x, y]), np.tile(np.arange(60), 2)
    splits = GroupKFold(5, shuffle=True, random_state=0)
    scores = cross_val_score(probe, rows, np.repeat([0, 1], 60), groups=groups, cv=splits)
    assert modality_gap(x, y).separability == pytest.approx(scores.mean(), abs=0.08)


def test_separability_of_one_cloud_is_chance():
    x, y = pair(n=300, shift=0)
    gap = modality_gap(x, y)
    assert gap.separability == pytest.approx(0.5, abs=4 * gap.separability_error)
    unpaired = modality_gap(x, pair(1, n=300, shift=0)[0])
    assert unpaired.separability_error == pytest.approx(1.25 * 0.5 / math.sqrt(600), rel=0.1)
    assert modality_gap(x, x).separability == 0.5
    apart = modality_gap(x, y + 20)
    assert apart.separability == 1
    low = apart.separability - 1.959964 * apart.separability_error
    assert low == pytest.approx(wilson_interval(1.0, 300)[0])


@pytest.mark.parametrize(("n", "d", "shift"), [(50, 40, 1.0), (100, 10, 0.0)])
def test_the_error_of_separability_covers_its_mean(n, d, shift):
    def one(seed):
        rng = np.random.default_rng(seed)
        shared, x, y = rng.normal(size=(3, n, d))
        y[:, 0] += shift
        return modality_gap(shared + x, shared + y, shuffles=1)

    found = [one(seed) for seed in range(120)]
    values, errors = (
        np.array([getattr(gap, name) for gap in found]) for name in ("separability", "separability_error")
    )
    assert (np.abs(values - values.mean()) < 1.96 * errors).mean() > 0.93


def test_two_rows_of_an_example_stand_in_the_same_fold():
    # far-off pairs whose two rows lie on a pair's own axis: whoever has seen one row of a pair knows the other
    x = np.eye(40)
    assert modality_gap(x, -x).separability <= 0.5


@quick
@given(seeds, st.floats(0.01, 100))
def test_unchanged_by_rotation_and_scale_of_both_and_order(seed, scale):
    x, y = pair(seed, n=30, d=6)
    rng = np.random.default_rng(seed + 1)
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    order = rng.permutation(30)
    gap, turned = modality_gap(x, y, 5), modality_gap(scale * x @ turn, scale * y @ turn, 5)
    for name in ("paired_cosine", "shuffled_cosine", "corrected_cosine", "centroid_relative", "centroid_chance"):
        assert getattr(turned, name) == pytest.approx(getattr(gap, name))
    assert turned.centroid_distance == pytest.approx(scale * gap.centroid_distance)
    assert turned.all_pairs == pytest.approx(gap.all_pairs, abs=1e-5)
    moved = modality_gap(x[order], y[order], 5)
    assert moved.paired_cosine == pytest.approx(gap.paired_cosine)
    assert moved.corrected_cosine == pytest.approx(gap.corrected_cosine)
    assert -1 <= gap.all_pairs[0] <= gap.all_pairs[1] <= gap.all_pairs[2] <= 1


def test_precision_and_half_precision():
    x, y = pair()
    gap = modality_gap(x, y)
    for given_, tolerance in [((x.astype(np.float32), torch.tensor(y).float()), 1e-4), (None, 0.03)]:
        found = modality_gap(*(given_ or (torch.tensor(x).bfloat16(), torch.tensor(y).half())))
        np.testing.assert_allclose(found.to_frame()["value"], gap.to_frame()["value"], atol=tolerance)


def test_a_gap_is_a_result_with_a_control_for_each_claim(tmp_path):
    gap = modality_gap(*pair(), seed=3)
    assert gap == modality_gap(*pair(), seed=3)
    assert ModalityGap.load(gap.save(tmp_path / "gap.safetensors")) == gap
    frame = gap.to_frame().set_index("measure")
    assert frame.loc["separability", ["value", "control", "control_is"]].tolist() == [gap.separability, 0.5, "chance"]
    assert frame.loc["paired cosine, median", "control"] == gap.shuffled_cosine
    assert frame.loc["cosine of all pairs, median", "value"] == gap.all_pairs[1]
    assert modality_gap(*pair(n=3)).folds == 3


def test_refusals():
    x, y = pair()
    zero = np.vstack([y[:59], np.zeros((1, 12))])
    for call, message in [
        (lambda: modality_gap(x, y[:, :9]), "x has 12 features and y 9"),
        (lambda: modality_gap(x, y[:50]), "x has 60 examples and y 50"),
        (lambda: modality_gap(x[:1], y[:1]), r"x has shape \(1, 12\)"),
        (lambda: modality_gap(x, y * np.nan), "y has 60 rows that are not finite"),
        (lambda: modality_gap(x, zero), "y has 1 rows of zeros"),
        (lambda: modality_gap(np.full((60, 12), 0.1), y), "the 60 rows of x are all equal"),
        (lambda: modality_gap(x, y, shuffles=0), "shuffles=0"),
    ]:
        with pytest.raises(InputError, match=message) as found:
            call()
        assert "\n" not in str(found.value)
