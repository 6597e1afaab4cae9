"""Paired changes of many cells: the p of each among all, sweeps of the same rows compared, and changes beyond a control."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import interp
from interp.interventions import Knockout, Skip, Truncate
from interp.patching import (
    PatchResult,
    attribution_patch,
    cross_entropy,
    flow,
    layer_contribution,
    layer_sweep,
    logit_difference,
    logprob,
    probability,
)
from interp.patching.family_changes import family_change, few_notes, sign_flip_p
from interp.patching.flow import relative_change
from interp.provenance import Provenance


def drawn(rows, seed, cells=(4, 5)):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, *cells)))


def test_the_p_of_many_cells_counts_all_of_them():
    """20 cells in which nothing happens: any p under .05 in about 5 % of draws, where uncorrected ones are there in 64 %."""
    for rows in (8, 20):
        smallest = [float(sign_flip_p(drawn(rows, seed), seed).min()) for seed in range(200)]
        assert 0.01 <= np.mean(np.array(smallest) <= 0.05) <= 0.1


def test_an_effect_is_found_and_its_neighbours_are_not():
    change = drawn(20, 0)
    change[:, 2, 3] += 1.5
    p = sign_flip_p(change)
    assert p[2, 3] <= 0.002
    assert (p <= 0.05).sum() == 1
    assert sign_flip_p(torch.zeros(8, 3)).tolist() == [1, 1, 1]


def test_few_rows_have_no_p():
    assert sign_flip_p(drawn(5, 0)).isnan().all()
    strong = torch.ones(6, 3) + 0.1 * drawn(6, 0, (3,))
    assert sign_flip_p(strong).tolist() == [2 / 64] * 3
    assert few_notes(6) == ()
    (note,) = few_notes(5)
    assert note.startswith("no p: with under 6 rows")


def test_rows_and_cells_without_a_value():
    before, after = drawn(12, 0), drawn(12, 1) + 0.5
    whole = family_change(before[2:], after[2:])
    before[:2, 1, 1] = torch.nan
    found = family_change(before, after)
    torch.testing.assert_close(found.difference, whole.difference)
    assert found.n == 10
    after[:, 0, 0] = torch.nan
    empty = family_change(before, after)
    assert empty.difference[0, 0].isnan()
    assert empty.p[0, 0].isnan()
    assert not empty.p[1:].isnan().any()
    rounding = family_change(torch.ones(9, 2), torch.ones(9, 2) + 1e-7)
    assert rounding.p.tolist() == [1, 1]


def test_where_nothing_changes_the_bounds_are_zero_and_answers_that_all_change_have_bounds():
    """A table of differences that are all 0 is no table of shares, whose upper bound would be .28 here."""
    rows = drawn(10, 0)
    same = family_change(rows, rows)
    assert same.low.abs().max() == same.high.abs().max() == 0
    lost = family_change(torch.ones(10, 2), torch.zeros(10, 2))  # ten answers of ten
    assert (lost.low >= -1).all()
    assert (lost.low < -0.7).all()
    assert ((lost.high > -0.9) & (lost.high < -0.4)).all()


def test_cells_without_a_common_row_are_refused():
    after = torch.ones(4, 2)
    after[:2, 0], after[2:, 1] = torch.nan, torch.nan
    with pytest.raises(interp.InputError, match="none of 4 rows has a value in all cells"):
        family_change(torch.zeros(4, 2), after)


# Grids -------------------------------------------------------------------------------------------------------------------


def grid(per_row, clean, corrupted, **fields):
    effect = torch.zeros(per_row.shape[1:])
    places = {"layers": list(range(effect.shape[0])), "columns": [[n] for n in range(effect.shape[1])]}
    named = {"tokens": ["a"] * effect.shape[1], "site": "resid_pre", "metric": "m", "direction": "denoise"}
    made = {**places, **named, "provenance": Provenance(data="here"), **fields}
    return PatchResult(per_row.mean(dim=0), effect, effect, effect, per_row, clean, corrupted, **made)


def two_grids(rows, seed, gain=0.0):
    """Two checkpoints: rows differ far more from each other than the two do on one row."""
    rng = np.random.default_rng(seed)
    span, level = 2 + rng.gamma(2, 0.5, size=rows), rng.normal(size=rows)
    share = 0.5 + 0.2 * rng.normal(size=(rows, 1, 1)) + 0.03 * rng.normal(size=(2, rows, 3, 4))
    share[1, :, 1, 2] += gain
    cells = torch.from_numpy(level[:, None, None] + span[:, None, None] * share).float()
    clean, corrupted = (torch.from_numpy(each).float() for each in (level + span, level))
    return [grid(each, clean, corrupted) for each in cells]


def test_two_grids_of_the_same_rows_are_compared_row_by_row():
    one, two = two_grids(20, 0, gain=0.08)
    found = one.change(two)
    effects = [
        (each.per_row - each.corrupted_rows[:, None, None]).mean(dim=0) / (each.clean_rows - each.corrupted_rows).mean()
        for each in (one, two)
    ]
    torch.testing.assert_close(found.difference.float(), effects[1] - effects[0])
    torch.testing.assert_close(found.before.float(), effects[0])
    assert found.p[1, 2] <= 0.05
    assert (found.low <= found.difference).all()
    assert float((found.high - found.low).max()) < 0.1  # the effects alone are known to 0.2
    assert (found.p > 0.05).sum() == 11


def test_what_cannot_be_compared():
    one, two = two_grids(8, 0)
    with pytest.raises(interp.InputError, match="come from other rows"):
        one.change(replace(two, provenance=Provenance(data="elsewhere")))
    with pytest.raises(interp.InputError, match="have different cells"):
        one.change(replace(two, site="z"))
    with pytest.raises(interp.InputError, match="metrics 'm' and 'other'"):
        one.change(replace(two, metric="other"))
    with pytest.raises(interp.InputError, match="directions 'denoise' and 'noise'"):
        one.change(replace(two, direction="noise"))
    with pytest.raises(interp.InputError, match="has no control"):
        one.beyond_control()
    level = replace(two, clean_rows=two.corrupted_rows + torch.tensor([1.0, -1.0] * 4))
    assert one.change(level).p.isnan().all()
    assert one.change(level).high.isinf().all()


def test_rows_that_both_results_keep_are_compared():
    one, two = two_grids(8, 0)
    first, last = torch.tensor([True] * 6 + [False] * 2), torch.tensor([False] * 2 + [True] * 6)
    parts = [
        grid(each.per_row[kept], each.clean_rows[kept], each.corrupted_rows[kept], kept=kept)
        for each, kept in ((one, first), (two, last))
    ]
    both = first & last
    rows = [grid(each.per_row[both], each.clean_rows[both], each.corrupted_rows[both]) for each in (one, two)]
    torch.testing.assert_close(parts[0].change(parts[1]).difference, rows[0].change(rows[1]).difference)
    apart = grid(two.per_row[6:], two.clean_rows[6:], two.corrupted_rows[6:], kept=~first)
    with pytest.raises(interp.InputError, match="no row of 8 is kept in both"):
        parts[0].change(apart)


def test_a_grid_of_the_toy_says_which_cells_change_anything(toy):
    found = interp.toy.pairs(8, seed=1, change="colour")
    prompts = [pair.prompt for pair in found]
    sides = [toy.prepare(prompts, [getattr(pair, side).image for pair in found]) for side in ("clean", "corrupted")]
    metric = logit_difference([pair.answer for pair in found], [pair.other for pair in found])
    for direction in ("denoise", "noise"):
        result = attribution_patch(toy, *sides, metric=metric, direction=direction, control=True)
        assert result.p[7, -1] <= 0.05  # the answer leaves at the last token
        assert (result.p[:, 0] == 1).all()  # <bos> is the same in both
        frame = result.to_frame()
        assert frame["p"].to_numpy() == pytest.approx(result.p.flatten().numpy())
        assert frame["control"].to_numpy() == pytest.approx(result.control.flatten().numpy())
        beyond = result.beyond_control()
        torch.testing.assert_close(beyond.difference.float(), result.effect - result.control, atol=1e-5, rtol=0)
    few = attribution_patch(toy, *(side.part(range(3)) for side in sides), metric=logit_difference("red", "blue"))
    assert few.p.isnan().all()
    assert few_notes(3)[0] in few.provenance.notes


# Windows -----------------------------------------------------------------------------------------------------------------


def test_a_sweep_is_compared_with_its_baseline_its_control_and_another(toy, batch, metric):
    """Without the image from a layer on, and without as many random positions; skipping it in the same layers."""
    mask = batch.positions.select(list(range(1, 19)))
    sweep = layer_sweep(toy, batch, Truncate, metric=metric, positions=mask, control=True)
    change = sweep.change()
    torch.testing.assert_close(change.difference.float(), sweep.values - sweep.baseline, atol=1e-5, rtol=0)
    torch.testing.assert_close(change.after.float(), sweep.values, atol=1e-5, rtol=0)
    assert change.p[7] > 0.5  # hardly anything reads the image after layer 7
    frame = sweep.to_frame()
    assert frame["change_low"].to_numpy() == pytest.approx(change.low.numpy())
    assert frame["p"].to_numpy() == pytest.approx(change.p.numpy())
    beyond = sweep.beyond_control()
    torch.testing.assert_close(beyond.difference.float(), sweep.values - sweep.control, atol=1e-5, rtol=0)
    other = layer_sweep(toy, batch, Skip, metric=metric, positions=mask)
    torch.testing.assert_close(sweep.change(other).difference.float(), other.values - sweep.values, atol=1e-5, rtol=0)
    with pytest.raises(interp.InputError, match="come from other rows"):
        sweep.change(layer_sweep(toy, batch.part(range(5)), Skip, metric=probability("red"), positions="image"))
    with pytest.raises(interp.InputError, match="probability in 8 windows and probability in 7"):
        sweep.change(layer_sweep(toy, batch, Skip, window=2, metric=metric, positions="image"))
    with pytest.raises(interp.InputError, match="this sweep has no control"):
        other.beyond_control()


def test_a_divergence_is_compared_with_its_control_alone(toy, batch):
    """It is never below 0, so signs say nothing."""
    found = layer_contribution(toy, batch)
    assert found.to_frame()["p"].isna().all()
    assert found.to_frame()[["low", "change_low"]].to_numpy().min() == 0
    beyond = found.beyond_control()
    assert not beyond.p.isnan().any()
    assert beyond.difference[1] > 0 > beyond.difference[0]  # the patches in layer 1, the words in layer 0


def test_a_metric_that_is_zero_at_first_and_may_fall_has_a_p(toy, batch):
    before = toy.logits(batch).log_softmax(dim=-1)

    def moved(logits):
        best = before.argmax(dim=-1, keepdim=True)
        return (logits.log_softmax(dim=-1) - before).gather(-1, best)[:, 0]

    sweep = layer_sweep(toy, batch, Truncate, metric=moved, positions="image")
    assert sweep.baseline_rows.abs().max() == 0
    assert sweep.change().p[0] <= 0.05


def test_bounds_are_values_that_a_metric_can_have(toy, batch, metric):
    """With three rows, the quantile of Student's t is 4.3."""
    few, answers = batch.part(range(3)), metric.targets[0][:3]
    sweeps = [
        layer_sweep(toy, few, metric=measure(answers), positions="image")
        for measure in (probability, cross_entropy, logprob)
    ]
    assert sweeps[0].high.max() == 1
    assert sweeps[1].low.min() == 0
    assert sweeps[2].high.max() == 0
    assert flow(toy, few, [("image", "question")], window=3, metric=probability(answers)).low.min() >= -100


def test_flows_are_compared_over_rows_that_both_answer(toy, batch, metric):
    edges = {"all": ("image", "last"), "half": (batch.positions.select(list(range(1, 19))), "last")}
    found = flow(toy, batch, edges, window=3, metric=metric)
    change = found.change()
    torch.testing.assert_close(change.difference.float(), found.values, atol=1e-3, rtol=0)
    assert found.to_frame()["p"].to_numpy() == pytest.approx(change.p.flatten().numpy())
    beyond = found.beyond_control()
    torch.testing.assert_close(beyond.difference.float(), found.values - found.control, atol=1e-3, rtol=0)
    blind = [Knockout(source="image", target="question", layers="all")]
    other = flow(toy, batch, edges, window=3, metric=metric, interventions=blind, control=False)
    both = found.kept & other.kept
    rows = [
        relative_change(each.per_row, each.baseline_rows[:, None, None])[both[each.kept]] for each in (found, other)
    ]
    expected = rows[1].mean(dim=0) - rows[0].mean(dim=0)
    torch.testing.assert_close(found.change(other).difference.float(), expected, atol=1e-3, rtol=0)
    with pytest.raises(interp.InputError, match="expected flows over the same edges"):
        found.change(replace(other, edges=["one", "two"]))
    with pytest.raises(interp.InputError, match="this flow has no control"):
        other.beyond_control()
