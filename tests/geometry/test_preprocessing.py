"""Massive features: what they do to comparisons, that they are noted, and what takes them out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.errors import InputError
from interp.geometry import (
    alignment_matrix,
    clamp,
    compare,
    dimension_scaling,
    intrinsic_dimension,
    nearest_neighbors,
    neighbor_overlap,
    preprocess,
    standardise,
)
from interp.geometry.preprocessing import PREPROCESS, notes_of_massive

MASSIVE = (1, 2, 3)
HOW = ("none", "standardise", "clamp", "cosine", "whiten")


def unrelated(seed, n=200, d=24, shared=True):
    """Unrelated clouds of nine states, with one feature of 3,000 in three: that of the prompt's length where `shared`."""
    rng = np.random.default_rng(seed)
    visual, textual = rng.normal(size=(2, 9, n, d))
    length = rng.normal(size=n)
    for state in MASSIVE:
        visual[state, :, 7] = 3000 * length
        textual[state, :, 5] = 3000 * (length if shared else rng.normal(size=n))
    return visual, textual


def related(seed, n=200, d=24):
    """Clouds that share six directions at states 1 to 3, under massive features that share nothing."""
    visual, textual = unrelated(seed, n, d, shared=False)
    rng = np.random.default_rng([seed, 1])
    for state in MASSIVE:
        meaning = 3 * rng.normal(size=(n, 6))
        visual[state, :, 10:16] += meaning
        textual[state, :, 12:18] += meaning
    return visual, textual


@pytest.mark.parametrize("seed", range(20))
def test_a_massive_feature_makes_a_phase_which_is_noted_and_clamp_takes_it_out(seed):
    visual, textual = unrelated(seed)
    matrix = alignment_matrix(visual, textual, subsamples=20)
    assert matrix.phase() == range(1, 4)
    assert matrix.values[2, 2] > 0.95
    notes = " ".join(matrix.provenance.notes)
    assert "visual: feature 7 of 24" in notes
    assert "textual: feature 5 of 24" in notes
    assert "states 1, 2, 3" in notes
    assert "preprocess='clamp'" in notes
    clamped = alignment_matrix(visual, textual, subsamples=20, preprocess="clamp")
    assert clamped.provenance.notes == ()
    assert clamped.preprocess == "clamp"
    assert (clamped.values.diagonal() - clamped.chance).abs().max() < 0.04
    assert clamped.phase() is None  # it is None in 60 of 60 draws; p among all layers allows one of 20


@pytest.mark.parametrize("seed", range(5))
def test_a_real_phase_under_unrelated_massive_features_comes_back(seed):
    visual, textual = related(seed)
    hidden = alignment_matrix(visual, textual, subsamples=0).values.diagonal()
    assert hidden.max() - hidden.min() < 0.1
    assert alignment_matrix(visual, textual, preprocess="clamp").phase() == range(1, 4)


def test_compare_notes_them_and_clamp_takes_them_out():
    visual, textual = unrelated(0)
    found = compare(visual, textual, ["cka", "neighbor_overlap"], subsamples=0)
    assert found.to_frame().query("state == 2").value.min() > 0.95
    assert [note.split(" makes")[0] for note in found.provenance.notes] == [
        "visual: feature 7 of 24",
        "textual: feature 5 of 24",
    ]
    clamped = compare(visual, textual, ["cka", "neighbor_overlap"], subsamples=0, preprocess="clamp")
    assert clamped.preprocess == "clamp"
    assert clamped.provenance.notes == ()
    assert (clamped.value - clamped.chance).abs().max() < 0.05


@pytest.mark.parametrize("seed", range(5))
def test_a_dimension_under_a_massive_feature_comes_back(seed):
    rng = np.random.default_rng(seed)
    cloud = rng.normal(size=(1000, 6)) @ rng.normal(size=(6, 24)) + 0.01 * rng.normal(size=(1000, 24))
    hidden = cloud.copy()
    hidden[:, 7] = 3000 * rng.normal(size=1000)
    value = intrinsic_dimension(cloud, "gride").value
    assert 5 < value < 6
    estimate = intrinsic_dimension(hidden, "gride")
    assert estimate.value < 2
    assert "feature 7 of 24 makes up to 99.9 % of squared distances" in estimate.warning
    clamped = intrinsic_dimension(hidden, "gride", preprocess="clamp")
    assert abs(clamped.value - value) < 0.1
    assert (clamped.warning, clamped.preprocess) == ("", "clamp")
    scales = dimension_scaling(hidden, range_max=32, preprocess="clamp")
    assert (scales[4].value, scales[4].preprocess) == (clamped.value, "clamp")


def test_ordinary_clouds_have_no_note():
    rng = np.random.default_rng(0)
    for draw in (rng.normal, rng.exponential, rng.standard_cauchy):  # a few enormous values lie in outlying rows
        cloud = torch.from_numpy(draw(size=(300, 40)))
        assert notes_of_massive(x=cloud) == () or draw == rng.standard_cauchy
    assert notes_of_massive(x=torch.ones(5, 3)) == ()
    wide = rng.normal(size=(300, 400))
    wide[:, 0] *= 3  # many times as wide as others, and yet a small part of the distances
    assert notes_of_massive(x=torch.from_numpy(wide)) == ()


def test_outlying_rows_are_left_to_their_own_note():
    cloud = np.random.default_rng(0).normal(size=(200, 24))
    cloud[3, 7] = 3000
    assert notes_of_massive(x=torch.from_numpy(cloud)) == ()
    matrix = alignment_matrix(cloud[None], cloud[None], subsamples=0)
    assert [note[:21] for note in matrix.provenance.notes] == ["1 of 200 visual examp", "1 of 200 textual exam"]


def test_clamp_cuts_rare_values_and_flattens_features_that_are_massive_as_a_whole():
    x = np.random.default_rng(0).normal(size=(200, 24))
    rare, massive = x.copy(), x.copy()
    rare[:10, 7] = 3000
    massive[:11, 7] = 3000
    assert 10 < clamp(rare)[:, 7].max() < 20
    assert (clamp(rare)[10:, 7] == x[10:, 7]).all()
    assert np.ptp(clamp(massive)[:, 7]) == 0
    others = [feature for feature in range(24) if feature != 7]
    np.testing.assert_array_equal(clamp(massive)[:, others], x[:, others])


def test_the_formulas():
    x = np.random.default_rng(0).normal(size=(100, 6)) @ np.diag([1, 2, 3, 4, 5, 6.0]) + 7
    rest = x - x.mean(axis=0)
    np.testing.assert_allclose(preprocess(x, "standardise"), rest / x.std(axis=0, ddof=1), atol=1e-12)
    np.testing.assert_allclose(preprocess(x, "cosine"), rest / np.linalg.norm(rest, axis=1, keepdims=True), atol=1e-12)
    np.testing.assert_allclose(np.cov(preprocess(x, "whiten").T), np.eye(6), atol=1e-10)
    np.testing.assert_array_equal(preprocess(x, "none"), x)


def test_whitening_keeps_one_component_for_ten_examples():
    x = np.random.default_rng(0).normal(size=(50, 400))
    white = preprocess(x, "whiten")
    left, _, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(white), np.abs(left[:, :5]) * 7, atol=1e-8)
    flat = x.copy()
    flat[:, 2:] = 1
    assert preprocess(flat, "whiten").shape == (50, 5)
    assert not preprocess(flat, "whiten")[:, 2:].any()


@pytest.mark.parametrize("how", HOW)
def test_stacks_are_preprocessed_state_by_state_and_constant_states_stay_constant(how):
    stack = np.random.default_rng(0).normal(size=(3, 50, 4)).astype(np.float32)
    stack[0] = stack[0, 0]
    changed = preprocess(stack, how)
    assert isinstance(changed, np.ndarray)
    assert changed.dtype == np.float32
    assert np.ptp(changed[0], axis=0).max() == 0
    for state in (1, 2):
        np.testing.assert_array_equal(changed[state], preprocess(stack[state], how))
    tensor = preprocess(torch.from_numpy(stack), how)
    assert isinstance(tensor, torch.Tensor)
    assert tensor.dtype == torch.float32
    matrix = alignment_matrix(stack, stack, k=5, preprocess=how)
    assert matrix.preprocess == how
    assert abs(float(matrix.values[0, 1]) - matrix.chance) < 1e-6


def test_what_is_fitted_on_some_rows_changes_others_alike():
    x = torch.randn(100, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for fit in PREPROCESS.values():
        torch.testing.assert_close(fit(x)(x[:10]), fit(x)(x)[:10])
    assert float(PREPROCESS["standardise"](x[:50])(x[50:]).mean(dim=0).abs().max()) > 0.01


def test_they_hide_who_is_near_whom_in_stacks_too():
    visual, _ = unrelated(0)
    plain = visual.copy()
    plain[1, :, 7] = plain[0, :, 7]
    assert neighbor_overlap(plain[1], visual[1]) < 0.3
    assert neighbor_overlap(plain[1], standardise(visual)[1]) > 0.6
    assert neighbor_overlap(plain[1], clamp(visual)[1]) > 0.8


def test_examples_that_repeat_others_in_both_stacks_are_noted():
    visual, textual = np.random.default_rng(0).normal(size=(2, 3, 100, 8))
    visual[:, 50:60] = visual[:, :10]
    assert alignment_matrix(visual, textual, subsamples=0).provenance.notes == ()
    textual[:, 52:60] = textual[:, 2:10]
    (note,) = alignment_matrix(visual, textual, subsamples=0).provenance.notes
    assert note.startswith("8 of 100 examples repeat others in both stacks")
    assert "distinct_rows" in note
    (note,) = compare(visual, textual, ["cka"], subsamples=0).provenance.notes
    assert note.startswith("8 of 100 examples repeat others in both stacks")


def test_refusals():
    x = np.random.default_rng(0).normal(size=(2, 60, 4))
    for call, message in [
        (lambda: intrinsic_dimension(x[0], preprocess="zscore"), "preprocess='zscore'"),
        (
            lambda: intrinsic_dimension(nearest_neighbors(x[0], 2), preprocess="clamp"),
            "x is a graph of neighbours: pass the",
        ),
        (lambda: preprocess(x, "zscore"), "how='zscore'"),
        (lambda: alignment_matrix(x, x, preprocess="zscore"), "preprocess='zscore'"),
        (
            lambda: alignment_matrix(x, x, "separability", preprocess="clamp"),
            "preprocess='clamp' fits visual and textual apart",
        ),
        (lambda: compare(x, x, ["cka", "paired_cosine"], preprocess="cosine"), "removes a gap"),
    ]:
        with pytest.raises(InputError, match=message):
            call()
