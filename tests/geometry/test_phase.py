"""The phases of two models: one threshold for both, and paired differences."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from interp.errors import InputError, InputTypeError
from interp.geometry import AlignmentMatrix, alignment_matrix, phase_change
from interp.geometry.phase import _width

NARROW = (3, 3, 3, 0.6, 0.5, 0.6, 3, 3, 3)


def pair(seed, before=NARROW, after=NARROW, n=200):
    """Two models whose pictures are captions with noise, by layer, most of it common to both."""
    rng = np.random.default_rng(seed)
    text, common, *own = rng.normal(size=(4, len(before), n, 12))
    stacks = [
        text + np.array(noise)[:, None, None] * (0.7 * common + 0.7 * each)
        for noise, each in zip((before, after), own, strict=True)
    ]
    return [alignment_matrix(torch.tensor(stack), torch.tensor(text), k=20, subsamples=30) for stack in stacks]


def flat(diagonal, spread=0.001):
    """A matrix with this diagonal, chance 0, and half-samples that differ a little."""
    values = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    parts = values + spread * torch.randn(
        20, *values.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    return AlignmentMatrix(values, 0.0, values - 0.01, values + 0.01, "neighbor_overlap", 30, 300, 20, parts=parts)


def test_a_peak_that_falls_is_not_wider():
    """Each at its own threshold, 5 states become 7."""
    before, after = flat([0.3, 0.5, 0.7, 0.77, 0.7, 0.5, 0.3]), flat([0.36, 0.4, 0.43, 0.44, 0.43, 0.4, 0.36])
    assert (len(before.phase()), len(after.phase())) == (3, 7)
    change = phase_change(before, after)
    assert (change.before, change.after) == (range(2, 5), None)
    assert change.threshold == pytest.approx(0.8 * 0.77)
    assert change.extends.value == "contradicted"
    assert change.extends.estimate < -2
    assert change.strengthens.value == "contradicted"
    assert change.levels[1] < change.levels[0]


def test_a_phase_that_moves_is_not_wider():
    before = flat([0.9] * 8 + [0.2])
    after = flat([0.2, 0.2] + [0.9] * 7)
    change = phase_change(before, after)
    assert (change.before, change.after) == (range(0, 8), range(2, 9))
    assert change.extends.value == "contradicted"


@pytest.mark.parametrize("before", [NARROW, (0.6,) * 9])
def test_two_draws_of_one_model_are_neither_wider_nor_higher(before):
    changes = [phase_change(*pair(seed, before, before)) for seed in range(5)]
    assert {change.extends.value for change in changes} == {"contradicted"}
    assert {change.strengthens.value for change in changes} == {"contradicted"}
    assert min(change.strengthens_p for change in changes) > 0.01


def test_two_more_layers_are_seen():
    changes = [phase_change(*pair(seed, after=(3, 3, 0.55, 0.5, 0.5, 0.5, 0.55, 3, 3))) for seed in range(4)]
    assert {change.extends.value for change in changes} == {"supported"}
    assert np.mean([change.extends.estimate for change in changes]) == pytest.approx(2, abs=0.5)
    assert max(change.extends_p for change in changes) < 0.01


def test_the_difference_is_paired():
    """A difference well within both intervals is seen, for the examples are the same."""
    before, after = pair(0, after=(3, 3, 3, 0.55, 0.46, 0.55, 3, 3, 3))
    assert after.low[4, 4] < before.high[4, 4]
    change = phase_change(before, after)
    assert change.strengthens.value == "supported"
    parts = (after.parts - before.parts).diagonal(dim1=1, dim2=2)[:, list(change.common)].mean(dim=1)
    assert change.strengthens.high - change.strengthens.estimate == pytest.approx(
        float(stats.t.ppf(0.975, 29)) * float(parts.std()), rel=1e-6
    )
    assert change.levels[1] - change.levels[0] == pytest.approx(change.strengthens.estimate)


def test_no_phase_before_leaves_wider_undecided():
    change = phase_change(flat([0.001] * 4), flat([0.1, 0.5, 0.5, 0.1]))
    assert change.before is None
    assert change.extends.value == "undecided"
    assert change.strengthens.value == "supported"


def test_the_width_counts_layers_and_parts_of_them():
    level = torch.tensor(0.5)
    for diagonal, width in [
        ([1.0] * 5, 5),
        ([0.0] * 5, 0),
        ([0.0, 1.0, 1.0, 1.0, 0.0], 3),
        ([1.0, 0.0, 0.0, 0.0, 1.0], 2),
        ([0.0, 0.75, 0.0], 2 / 3),
    ]:
        assert float(_width(torch.tensor(diagonal), level)) == pytest.approx(width)


def test_refusals(unchecked):
    before, after = flat([0.5, 0.9]), flat([0.5, 0.6])
    bare = dataclasses.replace(before, parts=None)
    for call, message in [
        (lambda: phase_change(before, dataclasses.replace(after, n=299)), "after has n 299, this matrix 300"),
        (lambda: phase_change(before, flat([0.5, 0.6, 0.7])), "textual states 3"),
        (lambda: phase_change(before, dataclasses.replace(after, preprocess="clamp")), "after has preprocess 'clamp'"),
        (lambda: phase_change(before, dataclasses.replace(after, strata="ab")), "after has strata 'ab'"),
        (
            lambda: phase_change(dataclasses.replace(before, examples="a"), dataclasses.replace(after, examples="b")),
            "after has examples 'b', this matrix 'a'",
        ),
        (lambda: phase_change(bare, bare), "before has no half-samples"),
        (lambda: phase_change(before, after, tau=0), "tau=0"),
        (lambda: phase_change(before, after, smallest=-1), "smallest=-1"),
    ]:
        with pytest.raises(InputError, match=message):
            call()
    with pytest.raises(InputTypeError, match="after: None is no matrix, expected what alignment_matrix"):
        phase_change(before, None)
    with pytest.raises(InputTypeError, match="placebo: 3 is no matrix"):
        flat([0.5] * 5).bypass(placebo=3)


def test_too_few_shuffles_for_any_phase_are_noted():
    x = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(0))
    few, enough, none = (alignment_matrix(x, x, k=5, permutations=count) for count in (18, 19, 0))
    assert few.phase() is None
    assert "the smallest p of 18 permutations is 0.053" in few.provenance.notes[0]
    assert enough.phase() == none.phase() == range(0, 2)
    assert enough.provenance.notes == none.provenance.notes == ()


def test_few_halves_widen_the_interval():
    """An error from three halves is itself uncertain: Student's t with two degrees of freedom is 4.3, not 2."""
    before, after = flat([0.3, 0.5, 0.3]), flat([0.3, 0.9, 0.3])
    few = [dataclasses.replace(each, parts=each.parts[:3], subsamples=3) for each in (before, after)]
    change = phase_change(*few).strengthens
    parts = (few[1].parts - few[0].parts)[:, 1, 1]
    assert change.high - change.estimate == pytest.approx(4.302653 * float(parts.std()), rel=1e-5)


def test_strata_are_kept_with_a_matrix():
    x = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(0))
    strata = [[number // 6, number // 12] for number in range(60)]
    one, other = (alignment_matrix(x, x, k=5, permutations=9, strata=[str(row[at]) for row in strata]) for at in (0, 1))
    assert one.strata != other.strata != ""
    with pytest.raises(InputError, match="after has strata"):
        phase_change(one, other)
    assert one.change(other).difference.abs().max() == 0  # the values themselves know no strata
