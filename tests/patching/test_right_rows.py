"""Rows that are answered rightly, spans that may be 0, and patches from random donors."""

import pytest
import torch

import interp
from interp.patching import (
    PatchResult,
    attribution_patch,
    kl_divergence,
    logit_difference,
    logprob,
    logprob_difference,
    patch_sweep,
    probability,
)
from interp.patching.donors import donors_of
from interp.patching.family_changes import few_notes
from interp.patching.metrics import bind_to_rows
from interp.patching.patch_result import is_uncertain, notes_of_rows, relative_effect
from interp.statistics import few_rows

SWEEPS = [patch_sweep, attribution_patch]


@pytest.fixture(scope="module")
def pairs():
    return interp.toy.pairs(8, seed=1, change="colour")


@pytest.fixture(scope="module")
def sides(toy, pairs):
    prompts = [pair.prompt for pair in pairs]
    return [toy.prepare(prompts, [getattr(pair, side).image for pair in pairs]) for side in ("clean", "corrupted")]


@pytest.fixture(scope="module")
def asked(pairs):
    """The metric of the pairs, with the two answers of rows 1 and 5 the wrong way round: the model answers 6 of 8 rightly."""
    words = [(pair.answer, pair.other) for pair in pairs]
    words = [(b, a) if row in (1, 5) else (a, b) for row, (a, b) in enumerate(words)]
    return logit_difference([a for a, _ in words], [b for _, b in words])


WHERE = {"layers": [1, 7], "positions": ["image", "last"]}
NOTE = "rows answered rightly on both sides: 6 of 8 (clean 6, corrupted 6)"


@pytest.mark.parametrize("sweep", SWEEPS)
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_rows_that_are_answered_rightly_are_counted_and_kept(toy, sides, asked, sweep, direction, tmp_path):
    found = sweep(toy, *sides, metric=asked, direction=direction, **WHERE)
    right = [row not in (1, 5) for row in range(8)]
    assert found.right_clean.tolist() == found.right_corrupted.tolist() == right
    assert found.kept.all()
    assert NOTE in found.provenance.notes

    kept = sweep(toy, *sides, metric=asked, direction=direction, keep="right", **WHERE)
    assert kept.kept.tolist() == kept.right_clean.tolist() == right
    torch.testing.assert_close(kept.per_row, found.per_row[right], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        kept.effect[1, 1], torch.tensor(1.0 if direction == "denoise" else 0.0), atol=0.6, rtol=0
    )
    assert NOTE in kept.provenance.notes
    assert kept.provenance.data == found.provenance.data
    again = PatchResult.load(kept.save(tmp_path / "kept"))
    assert torch.equal(again.kept, kept.kept)


def test_the_answer_of_a_probability_is_the_most_likely_token(toy, sides, pairs):
    answers = [pair.other if row == 2 else pair.answer for row, pair in enumerate(pairs)]
    found = patch_sweep(toy, *sides, metric=probability(answers), layers=[7], positions="last")
    assert found.right_clean.tolist() == found.right_corrupted.tolist() == [row != 2 for row in range(8)]
    same = attribution_patch(toy, *sides, metric=probability(answers), layers=[7], positions="last", keep="right")
    assert same.kept.tolist() == found.right_clean.tolist()
    assert len(same.per_row) == 7


def test_labels_are_those_of_the_kept_rows(toy, sides, pairs):
    """The digit that is asked about is one word in rows with one digit, and is counted in all."""
    digits = [pair.prompt.split()[-2] for pair in pairs]
    chosen = [digit == digits[0] for digit in digits]
    words = [(p.answer, p.other) if keep else (p.other, p.answer) for p, keep in zip(pairs, chosen, strict=True)]
    metric = logit_difference(*(list(side) for side in zip(*words, strict=True)))
    kept = patch_sweep(toy, *sides, metric=metric, layers=[7], positions=[-2], keep="right")
    assert kept.tokens == [digits[0]]


@pytest.mark.parametrize("sweep", SWEEPS)
def test_answers_of_several_tokens_are_judged_too(toy, sides, pairs, sweep):
    """The model says the colour and then the end, and no other word."""
    said, unsaid = ([[toy.tokenizer.convert_tokens_to_ids(pair.answer), last] for pair in pairs] for last in (2, 7))
    (end,) = {tokens[-1] for tokens in said}
    assert end == toy.tokenizer.eos_token_id
    found = sweep(toy, *sides, metric=logprob([*said[:4], *unsaid[4:]]), layers=[7], positions="last")
    assert found.right_clean.tolist() == [True] * 4 + [False] * 4
    assert found.right_corrupted.all()
    other = [[toy.tokenizer.convert_tokens_to_ids(pair.other), end] for pair in pairs]
    two = sweep(
        toy, *sides, metric=logprob_difference(said, other), layers=[7], positions="last", keep="right", control=True
    )
    assert two.right_clean.all()
    assert two.right_corrupted.all()
    assert two.control.shape == (1, 1)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_no_row_is_left_to_keep(toy, sides, asked, sweep, pairs):
    wrong = logit_difference([pair.other for pair in pairs], [pair.answer for pair in pairs])
    with pytest.raises(
        interp.InputError, match=r"leaves no row, .* both sides: 0 of 8 \(clean 0, corrupted 0\): expected"
    ):
        sweep(toy, *sides, metric=wrong, keep="right", **WHERE)
    with pytest.raises(interp.InputError, match="'KL divergence' has no answer to judge rows by"):
        sweep(toy, *sides, metric=kl_divergence(toy.logits(sides[0])), keep="right", **WHERE)
    with pytest.raises(interp.InputError, match="keep='wrong': expected"):
        sweep(toy, *sides, metric=asked, keep="wrong", **WHERE)


def test_a_metric_without_an_answer_says_so(toy, sides):
    found = attribution_patch(toy, *sides, metric=kl_divergence(toy.logits(sides[0])), **WHERE)
    assert found.right_clean is None
    assert any("has no answer by which a row" in note for note in found.provenance.notes)


# Spans -------------------------------------------------------------------------------------------------------------------


def test_a_span_that_may_be_zero_is_noted_and_its_effects_have_no_bounds(toy, sides):
    """A colour is changed and places are compared: effects were 2 and -3, with no note and with bounds."""
    found = attribution_patch(toy, *sides, metric=logit_difference("top", "bottom"))
    span = found.clean_rows - found.corrupted_rows
    assert is_uncertain(span)
    assert found.effect.abs().max() > 1.2
    assert any("it may be 0, so effects may be anything" in note for note in found.provenance.notes)
    assert (found.low == -torch.inf).all()
    assert (found.high == torch.inf).all()
    assert found.plot() is not None


def test_what_is_uncertain():
    """Under two standard errors; Student's quantile with few rows, one of one row of its size."""
    spread = torch.tensor([1.0, -1.0]).repeat(50)
    error = spread.std() / 10
    assert not is_uncertain(spread + 2.05 * error)
    assert is_uncertain(spread + 1.95 * error)
    assert is_uncertain(torch.tensor([1.0, 0.1, 1.0]))  # 2.3 standard errors, of three rows
    assert not is_uncertain(-torch.ones(3))
    assert notes_of_rows(torch.tensor([1.0]), torch.tensor([0.5])) == (*few_rows(1), *few_notes(1))
    note = notes_of_rows(torch.tensor([10.0]), torch.tensor([9.95]))[0]
    assert "under 1% of the metric" in note
    effect, low, high = relative_effect(torch.ones(3, 2), spread[:3] + 1, spread[:3])
    assert not (low.isinf() | high.isinf()).any()
    assert effect.shape == (2,)


# Donors ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sweep", SWEEPS)
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_control_writes_the_states_of_another_row(toy, sides, pairs, sweep, direction):
    metric = logit_difference([pair.answer for pair in pairs], [pair.other for pair in pairs])
    found = sweep(toy, *sides, metric=metric, direction=direction, control=True, seed=3, **WHERE)
    source = sides[0] if direction == "denoise" else sides[1]
    rows = bind_to_rows(metric, toy, source)
    own = [pair.answer if direction == "denoise" else pair.other for pair in pairs]
    donors = donors_of(source, own, seed=3)
    assert all(own[row] != own[donor] for row, donor in enumerate(donors))
    if sweep is patch_sweep:
        target = sides[1] if direction == "denoise" else sides[0]
        for row, donor in enumerate(donors):
            patch = interp.interventions.Patch(site="resid_pre", layers=1, positions="image", value=source.row(donor))
            logits = toy.logits(target.row(row), [patch])
            assert found.control_rows[row, 0, 0].item() == pytest.approx(rows[row](logits).item(), abs=1e-4)
    plain = sweep(toy, *sides, metric=metric, direction=direction, **WHERE)
    torch.testing.assert_close(found.per_row, plain.per_row, atol=1e-5, rtol=0)
    assert plain.control is None
    span = (found.clean_rows - found.corrupted_rows).mean()
    expected = (found.control_rows.mean(dim=0) - found.corrupted_rows.mean()) / span
    torch.testing.assert_close(found.control, expected)
    if direction == "denoise":  # a donor takes the other answer away, and brings no answer of the row's
        assert found.control[0, 0] < found.effect[0, 0] - 0.3


def test_donors_fit(toy, sides, pairs):
    clean, _ = sides
    answers = [pair.answer for pair in pairs]
    assert donors_of(clean, answers, seed=1) == donors_of(clean, answers, seed=1) != donors_of(clean, answers, seed=2)
    with pytest.raises(interp.InputError, match="row 0 has no donor, no other row has its layout: expected"):
        donors_of(clean.part([0, 0]))  # the same picture twice
    one = probability("red")
    with pytest.raises(interp.InputError, match=r"row 0 has no donor, .* has its layout and another answer: expected"):
        patch_sweep(toy, *sides, metric=one, control=True, **WHERE)
    texts = toy.prepare(
        ["a red 3 at top . where is the 3 ?", "a red 3 at top and a blue 4 at bottom . where is the 3 ?"]
    )
    with pytest.raises(interp.InputError, match="no other row has its layout: expected"):
        donors_of(texts)
