"""Sweeps over layers against explicit interventions, against the model's own parts, and on the trained toy."""

from functools import partial

import pytest
import torch

import interp
from interp.interventions import Knockout, Reweight, Scale, Skip, Steer, Truncate
from interp.interventions.random_controls import random_positions
from interp.patching import SweepResult, kl_divergence, layer_contribution, layer_sweep, probability
from interp.patching.layer_sweeps import contribution_from
from interp.statistics import few_rows


@pytest.fixture(scope="module")
def contribution(toy, batch):
    return layer_contribution(toy, batch)


def test_a_point_is_what_the_explicit_intervention_gives(toy, batch, metric, runs, chances):
    found = layer_sweep(toy, batch, window=3, metric=metric, positions="image")
    assert len(runs) == 1 + 6
    assert found.windows == [range(start, start + 3) for start in range(6)]
    new = chances(Skip(layers=[1, 2, 3], positions="image"))
    torch.testing.assert_close(found.per_row[:, 1], new)
    assert found.values[1].item() == pytest.approx(new.mean().item())
    assert found.baseline == pytest.approx(chances().mean().item())
    assert found.score[1].item() == pytest.approx(found.values[1].item() / found.baseline)
    assert (found.low <= found.values).all()
    assert (found.values <= found.high).all()
    assert (found.intervention, found.metric) == ("Skip", "probability")


def test_skipping_all_layers_leaves_what_entered_the_first(toy, batch, asked, metric):
    """The oracle is the model's own norm and head on transformers' own first hidden state."""
    found = layer_sweep(toy, batch, window=8, metric=metric)
    with torch.no_grad():
        entered = toy.model(**batch.inputs, output_hidden_states=True).hidden_states[0][:, -1]
        logits = toy.model.lm_head(toy.model.model.language_model.norm(entered))
    ids = torch.tensor([toy.tokenizer.convert_tokens_to_ids(question.answer) for question in asked[1]])
    torch.testing.assert_close(found.per_row[:, 0], logits.softmax(dim=-1)[torch.arange(12), ids], atol=1e-6, rtol=1e-4)


def test_from_a_layer_on(toy, batch, metric, chances):
    """The image is needed until it has been read, and not after that."""
    found = layer_sweep(toy, batch, Truncate, metric=metric, positions="image")
    assert found.windows == [range(start, 8) for start in range(8)]
    gone = chances(Truncate(positions="image", from_layer=2))
    torch.testing.assert_close(found.per_row[:, 2], gone)
    assert found.score[0] < 0.4
    assert found.score[6] > 0.95


def test_any_function_that_gives_interventions(toy, batch, metric, chances):
    few = batch.part(range(2))
    answers = probability(metric.targets[0][:2])

    def both(layers, target):
        return [Skip(layers=layers, positions="image"), Knockout(source=[1, 2], target=target, layers=layers)]

    found = layer_sweep(toy, few, both, window=4, metric=answers, target="last")
    cut = [Skip(layers=range(1, 5), positions="image"), Knockout(source=[1, 2], target="last", layers=range(1, 5))]
    expected = chances(*cut)[:2]
    torch.testing.assert_close(found.per_row[:, 1], expected, atol=1e-6, rtol=0)
    assert found.intervention == "both"

    ready = layer_sweep(toy, few, partial(Skip, positions="image"), window=4, metric=answers)
    given = layer_sweep(toy, few, Skip, window=4, metric=answers, positions=iter(range(1, 37)))
    torch.testing.assert_close(ready.per_row, given.per_row)
    assert ready.intervention == "Skip"


def test_interventions_hold_in_all_runs(toy, batch, metric, chances):
    blind = [Knockout(source="image", target="last", layers=[3])]
    found = layer_sweep(toy, batch, window=7, metric=metric, interventions=blind)
    torch.testing.assert_close(found.baseline_rows, chances(*blind))
    torch.testing.assert_close(found.per_row[:, 1], chances(*blind, Skip(layers=range(1, 8))))
    moved = layer_contribution(toy, batch.row(0), window=8, interventions=blind, control=False)
    frozen = Skip(layers="all", positions="image")
    expected = kl_divergence(toy.logits(batch.row(0), blind))(toy.logits(batch.row(0), [*blind, frozen]))
    torch.testing.assert_close(moved.per_row[:, 0], expected)


def test_the_contribution_of_a_layer_is_a_divergence_from_the_whole_model(toy, batch, contribution):
    """KL(frozen || whole), with torch's own divergence as the oracle, which takes the second argument first."""
    whole = toy.logits(batch).log_softmax(dim=-1)
    frozen = toy.logits(batch, [Skip(layers=1, positions="image")]).log_softmax(dim=-1)
    expected = torch.nn.functional.kl_div(whole, frozen, log_target=True, reduction="none").sum(dim=-1)
    torch.testing.assert_close(contribution.per_row[:, 1], expected, atol=1e-6, rtol=1e-4)
    assert (contribution.per_row >= 0).all()
    assert contribution.baseline == 0
    assert contribution.score.isnan().all()


def test_the_contributions_of_the_toy(contribution):
    """It works on the patches in layer 1, and on the words in layer 0; what the last layer does to either is not read."""
    assert contribution.ranking()[-1] == 1
    assert contribution.values[7] == contribution.control[7] == 0
    assert contribution.values.argmax() == 1
    assert contribution.control.argmax() == 0
    assert (contribution.n_positions, contribution.n_control) == (36, 6)


def test_rounding_makes_no_contribution_negative():
    whole = torch.randn(100, 75, generator=torch.Generator().manual_seed(0)) * 5
    near = whole + 1e-6 * torch.randn(100, 75, generator=torch.Generator().manual_seed(1))
    assert kl_divergence(whole)(near).min() < 0
    assert contribution_from(whole)(near).min() == 0


def test_the_ranking_is_by_ascending_value():
    values = torch.tensor([0.3, 0.0, 0.2, 0.0])
    windows = [range(start, start + 2) for start in range(4)]
    result = SweepResult(values, values, values, values[None], torch.zeros(1), windows, "KL divergence", "Skip")
    assert result.ranking() == [1, 3, 2, 0]
    with pytest.raises(interp.InputError, match="do not fit 1 rows and 3 windows"):
        SweepResult(values, values, values, values[None], torch.zeros(1), windows[:3], "KL divergence", "Skip")


def test_a_control_needs_other_positions(toy, batch):
    for positions in ("all", "last"):  # nothing is left, nothing comes before
        none = layer_contribution(toy, batch.row(0), positions=positions, window=8)
        assert none.control is None
        assert none.n_control == 0
    few = layer_sweep(toy, batch.row(0), Skip, 6, metric=probability("red"), control=True)  # of all positions
    assert few.provenance.notes[0] == "control: as many random other layers, 2 of 6 on average"
    unasked = layer_contribution(toy, batch.row(0), window=8, control=False)
    assert unasked.control is None
    assert unasked.n_control is None


def test_the_control_is_drawn_with_the_seed_and_of_the_rows_that_have_one(toy, batch):
    first, again, other = (layer_contribution(toy, batch.row(0), [20], seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.control, again.control)
    assert not torch.equal(first.control, other.control)
    assert torch.equal(first.values, other.values)
    # the first of two rows has no other position to draw, so the control is that of the second
    two, alone = batch.part([1, 0]), layer_contribution(toy, batch.row(0)).control
    chosen = two.positions["image"].clone()
    chosen[0] = two.positions["all"][0]
    assert alone[0] > 0.1
    torch.testing.assert_close(layer_contribution(toy, two, chosen).control, alone, atol=1e-4, rtol=1e-3)


def test_the_control_of_a_sweep_is_the_same_at_random_positions(toy, asked, batch, metric, chances):
    """The object's patches are four of 36: as many others cost less."""
    scenes, questions = asked
    theirs = torch.zeros_like(batch.positions["image"])
    for row, (scene, question) in enumerate(zip(scenes, questions, strict=True)):
        number = [str(item.digit) for item in scene.objects].index(question.prompt.split()[-2])
        theirs[row, 1:37] = torch.from_numpy((scene.patch_labels == number).flatten())
    found = layer_sweep(toy, batch, Truncate, metric=metric, control=True, positions=theirs)
    drawn = random_positions(toy, [batch], Truncate(positions=theirs, from_layer=2)).of_batches[0][0]
    torch.testing.assert_close(found.control_rows[:, 2], chances(drawn))
    torch.testing.assert_close(found.control, found.control_rows.mean(dim=0))
    assert (found.n_positions, found.n_control) == (4, 4)
    assert found.provenance.notes == ("control: as many random other positions", *few_rows(12))
    assert found.control[0] > found.values[0] + 0.2
    assert torch.equal(found.values, layer_sweep(toy, batch, Truncate, metric=metric, positions=theirs).values)


def test_the_control_of_a_sweep_that_names_no_positions_or_heads(toy, batch, metric, chances):
    def steered(layers, seed):
        return Steer(direction=torch.ones(128), layers=layers, positions="image", scale=3.0)

    directions = layer_sweep(toy, batch, steered, window=8, metric=metric, control=True, seed=4)
    plain = steered(range(8), 0)
    torch.testing.assert_close(directions.control_rows[:, 0], chances(plain.control(4)))
    heads = layer_sweep(
        toy, batch, Scale, window=8, metric=metric, control=True, positions="all", factor=0, heads=[0, 1]
    )
    torch.testing.assert_close(
        heads.control_rows[:, 0], chances(Scale(layers="all", positions="all", factor=0, heads=[2, 3]))
    )
    assert heads.provenance.notes == ("control: as many random other heads", *few_rows(12))
    layers = layer_sweep(toy, batch, Reweight, window=4, metric=metric, control=True, kind="uniform")
    torch.testing.assert_close(layers.control_rows[:, 0], layers.per_row[:, 4], atol=1e-5, rtol=0)  # the other four
    with pytest.raises(interp.InputError, match="Skip has no control: it leaves no other"):
        layer_sweep(toy, batch, window=8, metric=metric, control=True)


def test_a_row_without_a_control_does_not_count_in_it(toy, batch, metric):
    chosen = batch.positions["image"].clone()
    chosen[0] = batch.positions["all"][0]
    found = layer_sweep(toy, batch, window=4, metric=metric, control=True, positions=chosen)
    assert found.control_rows[0].isnan().all()
    torch.testing.assert_close(found.control, found.control_rows[1:].mean(dim=0))


def test_batches_are_one_data_set(toy, asked, batch, metric, contribution):
    scenes, questions = asked
    parts = [
        toy.prepare([q.prompt for q in questions[part]], [scene.image for scene in scenes[part]])
        for part in (slice(0, 5), slice(5, 12))
    ]
    again = layer_contribution(toy, parts)
    torch.testing.assert_close(again.per_row, contribution.per_row, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(again.control, contribution.control, atol=1e-5, rtol=1e-3)
    one, two = (layer_sweep(toy, data, window=8, metric=metric) for data in (batch, parts))
    torch.testing.assert_close(two.per_row, one.per_row)
    torch.testing.assert_close(two.low, one.low)


def test_remotely(toy, remote_toy, asked):
    scenes, questions = asked
    here, there = (
        layer_contribution(vlm, vlm.prepare([questions[0].prompt], [scenes[0].image]), window=7, control=False)
        for vlm in (toy, remote_toy)
    )
    torch.testing.assert_close(there.per_row, here.per_row, atol=1e-5, rtol=0)


def test_a_result_is_kept_and_framed(contribution, tmp_path):
    again = SweepResult.load(contribution.save(tmp_path / "sweep.safetensors"))
    assert again.windows == contribution.windows
    assert again.ranking() == contribution.ranking()
    assert (again.control == contribution.control).all()
    assert again.provenance == contribution.provenance
    frame = contribution.to_frame()
    of_change = ["change", "change_low", "change_high", "p"]
    assert list(frame.columns) == ["start", "stop", "value", "low", "high", "score", "control", *of_change]
    assert frame["stop"].tolist() == list(range(1, 9))
    assert frame["value"].to_numpy() == pytest.approx(contribution.values.numpy())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"window": 9}, "window=9: the model has 8 layers"),
        (
            {"intervention": Truncate, "positions": "image", "window": 2},
            "window=2: Truncate acts from a layer to the last",
        ),
        ({"intervention": Truncate}, "Truncate cannot be made for each window with nothing else"),
        ({"layers": [1]}, "Skip cannot be made for each window with layers"),
        ({"intervention": len}, "len takes obj: expected an intervention or a function that takes layers="),
        ({"intervention": dict}, "dict takes no argument"),
        ({"intervention": lambda layers: 3}, "3 is not an intervention"),
        ({"positions": "sky"}, "positions='sky' is unknown"),
        ({"intervention": Knockout, "source": "image", "target": "last", "heads": 9}, "head 9"),
        ({"metric": probability(["red", "blue"])}, "2 targets for 12 rows"),
        ({"interventions": [Skip(layers=9)]}, "layer 9"),
        ({"batch": []}, "batch is an empty list"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_is_run(toy, batch, metric, runs, wrong, words):
    with pytest.raises(interp.InterpError, match=words) as caught:
        layer_sweep(toy, **{"batch": batch, "metric": metric, **wrong})
    assert "\n" not in str(caught.value)
    with pytest.raises(interp.InputError, match="positions='sky'"):
        layer_contribution(toy, batch, positions="sky")
    with pytest.raises(interp.InputError, match="seed=-1"):
        layer_contribution(toy, batch, seed=-1)
    assert not runs


def test_every_batch_is_tried_before_the_first_is_run(toy, batch, runs):
    text = toy.prepare(["a red 3 at top . where is the 3 ?"])
    with pytest.raises(interp.InputError, match="positions='image' selects nothing"):
        layer_contribution(toy, [batch, text])
    assert not runs
