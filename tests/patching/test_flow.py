"""Information flow against explicit knockouts, and on scenes where it is known which patches hold the answer."""

import numpy as np
import pytest
import torch

import interp
from interp.interventions import Knockout, Skip
from interp.patching import FlowResult, flow, kl_divergence, logit_difference, probability

EDGES = [("image", "question"), ("question", "last"), ("image", "last")]


@pytest.fixture(scope="module")
def curves(toy, batch, metric):
    return flow(toy, batch, window=3, metric=metric)


def test_a_point_is_what_an_explicit_knockout_gives(curves, chances):
    old = chances()
    new = chances(Knockout(source="image", target="last", layers=[2, 3, 4]))
    torch.testing.assert_close(curves.per_row[:, 2, 3], new, atol=1e-6, rtol=0)
    assert curves.windows[3] == range(2, 5)
    assert curves.edges[2] == "image -> last"
    assert curves.values[2, 3].item() == pytest.approx((100 * (new - old) / old).mean().item(), abs=1e-3)
    assert curves.pooled[2, 3].item() == pytest.approx(100 * (new.mean() / old.mean() - 1).item(), abs=1e-3)
    assert curves.baseline == pytest.approx(old.mean().item(), abs=1e-6)
    assert curves.low[2, 3] < curves.values[2, 3] < curves.high[2, 3]


def test_the_flow_of_the_toy(curves):
    """The last token learns from the question which digit is meant, and after that reads the colour off the image."""
    image_to_question, question_to_last, image_to_last = curves.values
    assert curves.kept.all()
    assert image_to_question.abs().max() < 1
    assert question_to_last[0] < -80
    assert image_to_last[3] < -50
    assert question_to_last[3:].abs().max() < 1
    assert curves.values[:, 6:].abs().max() < 1
    assert curves.n_source.tolist() == [36, 5, 36]
    assert curves.n_control.tolist() == [5, 5, 6]  # there are six tokens but for the patches, one of which is <bos>


def test_the_objects_own_patches_carry_the_answer_and_as_many_others_do_not(toy, batch, asked, metric):
    """The planted truth: four patches show the digit that is asked about, the other 32 do not matter."""
    scenes, questions = asked
    theirs = torch.zeros_like(batch.positions["image"])
    for row, (scene, question) in enumerate(zip(scenes, questions, strict=True)):
        number = [str(item.digit) for item in scene.objects].index(question.prompt.split()[-2])
        theirs[row, 1:37] = torch.from_numpy((scene.patch_labels == number).flatten())
    edges = {"object": (theirs, "last"), "rest": (batch.positions["image"] & ~theirs, "last")}
    found = flow(toy, batch, edges=edges, window=5, metric=metric)
    assert found.edges == ["object", "rest"]
    assert found.values[0, 3] < -50
    assert found.control[0, 3] > -20
    assert found.values[1].abs().max() < 2
    assert found.n_source.tolist() == [4, 32]
    assert found.n_control[0] == 4


def test_the_seed_draws_the_control_and_nothing_else(toy, batch, metric):
    """A source of one patch, so that there are many others to draw."""
    patch, few = batch.positions.select([20]), batch.part(range(3))
    edges = {"patch": (patch[:3], "last")}
    first, again, other = (flow(toy, few, edges, metric=probability(metric.targets[0][:3]), seed=s) for s in (0, 0, 1))
    assert torch.equal(first.control, again.control)
    assert not torch.equal(first.control, other.control)
    assert torch.equal(first.values, other.values)


def test_batches_are_one_data_set(toy, asked, curves):
    """Rows, targets and random positions are counted through, and padding makes no difference."""
    scenes, questions = asked
    prompts, images = [question.prompt for question in questions], [scene.image for scene in scenes]
    answers = [question.answer for question in questions]
    parts = [toy.prepare(prompts[:5], images[:5]), toy.prepare(prompts[5:], images[5:])]
    again = flow(toy, parts, window=3, metric=probability(answers))
    for name in ("values", "low", "high", "control", "per_row", "n_control"):
        torch.testing.assert_close(getattr(again, name), getattr(curves, name), atol=2e-3, rtol=0)

    longer = toy.prepare([*prompts[:5], "<image> how many digits are there ? two where is the 7 ?"], images[:6])
    kept = flow(
        toy,
        [longer, parts[1]],
        edges=EDGES[1:2],
        window=3,
        metric=probability([*answers[:5], "<bos>", *answers[5:]]),
        control=False,
    )
    assert kept.kept.tolist() == [True] * 5 + [False] + [True] * 7
    torch.testing.assert_close(kept.values[0], curves.values[1], atol=2e-3, rtol=0)


def test_rows_that_were_wrong_before_do_not_count(toy, batch, asked, metric):
    _, questions = asked
    answers = [question.answer for question in questions]
    answers[2], answers[7] = ("red" if answer != "red" else "blue" for answer in (answers[2], answers[7]))
    edges = [("image", "last")]
    found = flow(toy, batch, edges=edges, window=7, metric=probability(answers))
    right = [row for row in range(12) if row not in (2, 7)]
    assert found.kept.nonzero().flatten().tolist() == right
    whole = flow(toy, batch, edges=edges, window=7, metric=metric, control=False)
    torch.testing.assert_close(found.per_row, whole.per_row[right])
    ratios = whole.per_row[right, 0] / whole.baseline_rows[right, None]
    torch.testing.assert_close(found.values[0], 100 * (ratios - 1).mean(dim=0), atol=1e-3, rtol=0)
    assert whole.control is None
    assert whole.n_control is None
    assert found.n_control.tolist() == [6]

    def of_red(logits):
        return logits.softmax(dim=-1)[:, toy.tokenizer.convert_tokens_to_ids("red")]

    assert flow(toy, batch, edges=edges, window=9, metric=of_red, control=False).kept.all()


def test_a_fall_is_negative_whatever_the_sign_of_the_metric(toy, batch, asked):
    """The answer's own log-probability is negative and falls when the image is cut off."""
    ids = torch.tensor([toy.tokenizer.convert_tokens_to_ids(question.answer) for question in asked[1]])

    def log_probability(logits):
        return logits.log_softmax(dim=-1)[torch.arange(len(ids)), ids] - 1

    found = flow(toy, batch, edges=[("image", "last")], metric=log_probability, control=False)
    assert found.baseline < 0
    assert found.values[0, 4] < -50


def test_what_cuts_nothing_changes_nothing(toy, batch, metric):
    """A token keeps seeing itself, and a causal model's image does not see the question behind it."""
    few = batch.part(range(2))
    edges = [("last", "last"), ("question", "image")]
    found = flow(toy, few, edges=edges, metric=probability(metric.targets[0][:2]))
    assert found.values.abs().max() < 1e-3
    assert found.control.isnan().all()
    assert found.n_source.tolist() == [0, 0]


def test_interventions_hold_in_all_runs(toy, batch, metric, chances):
    held = [Skip(layers=[1], positions="image")]
    found = flow(toy, batch, edges=[("image", "last")], window=3, metric=metric, interventions=held, control=False)
    cut = Knockout(source="image", target="last", layers=range(1, 4))
    torch.testing.assert_close(found.per_row[:, 0, 2], chances(*held, cut)[found.kept])
    torch.testing.assert_close(found.baseline_rows, chances(*held)[found.kept])
    assert found.provenance.interventions == ("Skip(layers=[1], positions='image')",)


def test_after_the_softmax(toy, batch, metric, chances):
    found = flow(toy, batch, edges=[("question", "last")], window=1, metric=metric, mode="post_softmax", control=False)
    cut = Knockout(source="question", target="last", layers=0, mode="post_softmax")
    torch.testing.assert_close(found.per_row[:, 0, 0], chances(cut), atol=1e-6, rtol=0)


def test_remotely(toy, remote_toy, asked):
    scenes, questions = asked
    edges, answers = [("image", "last")], [question.answer for question in questions[:2]]
    here, there = (
        flow(
            vlm,
            vlm.prepare([question.prompt for question in questions[:2]], [scene.image for scene in scenes[:2]]),
            edges=edges,
            window=5,
            metric=probability(answers),
            control=False,
        )
        for vlm in (toy, remote_toy)
    )
    torch.testing.assert_close(there.per_row, here.per_row, atol=1e-5, rtol=0)


def test_edges_are_named_by_their_ends(toy, batch, metric):
    found = flow(
        toy,
        batch.row(0),
        edges=[(iter([1, 2]), -1), (batch.row(0).positions["image"], np.array([-2, -1]))],
        window=20,
        metric=probability(metric.targets[0][0]),
        control=False,
    )
    assert found.edges == ["[1, 2] -> [-1]", "mask of 36 positions -> [-2, -1]"]
    assert found.low.isnan().all()  # one row
    explicit = Knockout(source=[1, 2], target=-1, layers="all")
    answer = toy.tokenizer.convert_tokens_to_ids(metric.targets[0][0])
    expected = toy.logits(batch.row(0), [explicit]).softmax(dim=-1)[0, answer]
    torch.testing.assert_close(found.per_row[0, 0, 4], expected, atol=1e-6, rtol=0)


def test_a_result_is_kept_and_framed(curves, tmp_path):
    again = FlowResult.load(curves.save(tmp_path / "flow.safetensors"))
    assert again.windows == curves.windows
    assert (again.kept == curves.kept).all()
    assert (again.pooled == curves.pooled).all()
    assert again.provenance == curves.provenance
    frame = curves.to_frame()
    assert len(frame) == 24
    row = frame[(frame["edge"] == "image -> last") & (frame["layer"] == 3)].iloc[0]
    assert (row["start"], row["stop"]) == (2, 5)
    assert row["control"] == pytest.approx(curves.control[2, 3].item())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"edges": ("image", "last")}, r"edge 'image': expected a pair"),
        ({"edges": "image"}, "edges='image': expected pairs"),
        ({"edges": []}, "is empty"),
        ({"edges": [("image", "last")] * 2}, "two edges are named 'image -> last'"),
        ({"edges": [("image", "last"), ("image", "sky")]}, "positions='sky' is unknown"),
        ({"edges": [("image", [99])]}, "position 99"),
        ({"window": 0}, "window=0"),
        ({"mode": "softly"}, "mode='softly'"),
        ({"metric": probability(["red", "blue"])}, "2 targets for 12 rows"),
        ({"interventions": [Skip(layers=9)]}, "layer 9"),
        ({"batch": []}, "batch is an empty list"),
        ({"seed": -1}, "seed=-1: expected an int of 0 or more"),
    ],
)
def test_what_cannot_be_cut_is_refused_before_anything_is_run(toy, batch, metric, runs, wrong, words):
    with pytest.raises(interp.InterpError, match=words) as caught:
        flow(toy, **{"batch": batch, "metric": metric, **wrong})
    assert "\n" not in str(caught.value)
    assert not runs


def test_a_mask_fits_one_batch(toy, batch, metric):
    masked = [(batch.positions["image"], "last")]
    with pytest.raises(interp.InputError, match="mask of shape"):
        flow(toy, [batch.row(0), batch.part(range(1, 12))], edges=masked, metric=metric)


@pytest.mark.parametrize(
    ("metric_of", "words"),
    [
        (lambda _: logit_difference("<bos>", "red"), "0 of 12 rows are answered correctly by the unchanged model"),
        (kl_divergence, "is 0 or not finite in 12 of 12 rows"),
        (lambda _: lambda logits: logits, r"gives Tensor of shape \(12, 75\) for 12 rows"),
    ],
)
def test_without_a_right_answer_or_a_baseline_nothing_is_cut(toy, batch, runs, metric_of, words):
    metric = metric_of(toy.logits(batch))
    with pytest.raises(interp.InputError, match=words):
        flow(toy, batch, metric=metric)
    assert len(runs) == 1


def test_the_untouched_model_is_run_once(toy, batch, metric, runs):
    flow(toy, batch, edges=EDGES[:1], metric=metric, control=False)
    assert len(runs) == 1 + 8
