"""Two checkpoints on the same examples are compared in pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp import Result, plots
from interp.errors import InputError, InputTypeError
from interp.geometry import MatrixChange, alignment_matrix, compare

LAYERS = 2


def checkpoints(seed, n=80, rise=0.0, own=0.3, layers=LAYERS):
    """The states of images in two checkpoints and of captions: the images hold the captions' code with a correlation of 0.6
    before and 0.6 + `rise` after; a share `own` of their noise is each checkpoint's own."""
    rng = np.random.default_rng(seed)
    code, noise, *parts = rng.normal(size=(5, layers, n, 6))
    textual = 0.8 * code + 0.6 * parts[0]
    visual = []
    for share, mine in ((0.6, parts[1]), (0.6 + rise, parts[2])):
        rest = (1 - own**2) ** 0.5 * noise + own * mine
        visual.append(share * code + (1 - share**2) ** 0.5 * rest)
    return torch.tensor(visual[0]), torch.tensor(visual[1]), torch.tensor(textual)


def change(seed, metric="cka", subsamples=2, **options):
    before, after, textual = checkpoints(seed, **options)
    k = 10 if metric == "neighbor_overlap" else None
    one, other = (
        alignment_matrix(states, textual, metric, k=k, subsamples=subsamples, permutations=0, seed=seed)
        for states in (before, after)
    )
    return one.change(other)


@pytest.mark.parametrize("metric", ["neighbor_overlap", "cka", "procrustes"])
def test_no_change_is_found_in_one_comparison_of_twenty(metric):
    found = [change(seed, metric, subsamples=6) for seed in range(20)]
    assert np.mean([(each.p.diagonal() <= 0.05).double().mean() for each in found]) <= 0.15
    assert np.mean([bool((each.p_diagonal <= 0.05).any()) for each in found]) <= 0.2
    covered = [((each.low <= 0) & (each.high >= 0)).diagonal().double().mean() for each in found]
    assert np.mean(covered) >= 0.85


@pytest.mark.parametrize("metric", ["neighbor_overlap", "cka"])
def test_a_small_rise_is_found_where_the_intervals_overlap(metric):
    for seed in range(4):
        before, after, textual = checkpoints(seed, n=300, rise=0.04, own=0.1)
        one, other = (alignment_matrix(states, textual, metric, permutations=0) for states in (before, after))
        found = one.change(other)
        assert (other.low < one.high).diagonal().all()
        assert (found.low > 0).diagonal().all()
        assert (found.p_diagonal <= 0.05).all()
        torch.testing.assert_close(found.difference, other.values - one.values)
        paired = compare(before, textual, [metric], permutations=2).change(
            compare(after, textual, [metric], permutations=2)
        )
        assert (paired.p_family <= 0.05).all()
        unpaired = compare(before, textual, [metric], permutations=2).change(
            compare(after, textual, [metric], permutations=2), paired=False
        )
        assert (unpaired.p > 0.05).all()


def test_the_same_states_twice_have_no_change():
    before, _, textual = checkpoints(0)
    one = alignment_matrix(before, textual, "cka", permutations=0)
    found = one.change(one)
    assert found.p.min() == found.p_family.min() == 1
    assert found.low.abs().max() == found.high.abs().max() == 0
    halves = replace(one, influence=None)
    assert halves.change(halves).p.min() == 1


def test_matrices_of_other_examples_or_settings_are_refused():
    before, after, textual = checkpoints(0)
    one = alignment_matrix(before, textual, "procrustes", subsamples=3)
    for other, message in [
        (
            alignment_matrix(after[:, :70], textual[:, :70], "procrustes", subsamples=3),
            "n=80 and n=70: compute both with",
        ),
        (alignment_matrix(after, textual, "pwcca", subsamples=3), "metric='procrustes' and metric='pwcca'"),
        (
            alignment_matrix(after, textual, "procrustes", subsamples=4),
            "3 and 4 halves of seeds 0 and 0: compute both with",
        ),
        (alignment_matrix(after, textual, "procrustes", subsamples=3, seed=1), "halves of seeds 0 and 1"),
        (alignment_matrix(after[:1], textual, "procrustes", subsamples=3), r"shapes \(2, 2\) and \(1, 2\)"),
        (
            alignment_matrix(after, textual, "procrustes", subsamples=3, preprocess="standardise"),
            "preprocess='none' and",
        ),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            one.change(other)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="examples='a' and examples='b'"):
        replace(one, examples="a").change(replace(one, examples="b"))
    assert replace(one, examples="a").change(one).n == 80
    with pytest.raises(InputTypeError, match="other=None: expected what alignment_matrix"):
        one.change(None)


def test_comparisons_of_other_examples_are_refused():
    before, after, textual = checkpoints(0)
    one = compare(before, textual, ["cka"], permutations=2)
    for other, message in [
        (
            compare(after[:, 1:], textual[:, 1:], ["cka"], permutations=2),
            "80 and 79 examples, without .* or pass paired=False",
        ),
        (compare(after, textual, ["cka"], permutations=2, seed=1), r"\(seed, halves\) \(0, 10\) and \(1, 10\)"),
        (
            compare(after, textual, ["cka"], permutations=2, subsamples=4),
            "same seed and subsamples, or pass paired=False",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            one.change(other)
        assert len(one.change(other, paired=False)) == LAYERS
    for paired in (True, False):
        with pytest.raises(InputError, match="preprocess='none' and 'clamp'"):
            one.change(compare(after, textual, ["cka"], permutations=2, preprocess="clamp"), paired)
    with pytest.raises(InputError, match="examples with other ids, or in another order"):
        replace(one, examples="a").change(replace(one, examples="b"))
    assert len(replace(one, examples="a").change(one)) == LAYERS
    numbers = compare(before, textual, ["separability", "2nn"], permutations=2)
    changed = numbers.change(numbers)
    assert changed[changed.measure == "separability"].paired.tolist() == [False, False]
    assert changed[changed.measure == "2nn"].paired.all()


def test_a_change_is_kept_and_drawn(tmp_path):
    found = change(0, rise=0.3)
    assert list(found.to_frame().columns) == [
        *("visual", "textual", "before", "after", "difference", "low", "high", "p", "p_family")
    ]
    again = Result.load(found.save(tmp_path / "change"))
    assert isinstance(again, MatrixChange)
    heatmap, dots = plots.figure(again).data
    np.testing.assert_allclose(np.array(heatmap.z, dtype=float), found.difference)
    assert set(zip(dots.y, dots.x, strict=True)) == {
        tuple(cell) for cell in (found.p_family <= 0.05).nonzero().tolist()
    }


def test_the_peak_is_chosen_and_measured_on_other_examples():
    """Nine equal layers: the largest is too large by luck, the peak is not."""
    largest, values, truth = [], [], []
    for seed in range(12):
        before, _, textual = checkpoints(seed, n=60, layers=9)
        matrix = alignment_matrix(before, textual, "cka", subsamples=0, permutations=0)
        peak = matrix.peak()
        largest.append(peak.largest)
        values.append(peak.value)
        truth.append(float(matrix.values.diagonal().mean()))
        assert peak.low < peak.value < peak.high
        assert float(peak.shares.sum()) == pytest.approx(1)
        assert peak.largest == float(matrix.values.diagonal().max())
    assert np.mean(largest) - np.mean(truth) > 0.05
    assert abs(np.mean(values) - np.mean(truth)) < 0.02
    bars = plots.figure(peak).data[0]
    assert list(bars.y) == pytest.approx(peak.shares.tolist())


def test_a_clear_peak_is_found_and_a_measure_without_influences_refused():
    before, _, textual = checkpoints(0, n=150, layers=3)
    textual[0], textual[2] = textual[0].flip(0), textual[2].flip(0)
    matrix = alignment_matrix(before, textual, "cka", permutations=0)
    peak = matrix.peak()
    assert (peak.layer, peak.shares.tolist()) == (1, [0.0, 1.0, 0.0])
    assert peak.value == pytest.approx(peak.largest, abs=1e-6)
    with pytest.raises(InputError, match="metric='procrustes' has no influence of single examples"):
        alignment_matrix(before, textual, "procrustes", subsamples=0).peak()
    with pytest.raises(InputError, match="has no diagonal"):
        alignment_matrix(before[:2], textual, "cka").peak()
