"""Attention sinks: planted ones are found and nothing else is, whatever else is in the batch."""

import copy
import pickle
import statistics

import pytest
import torch

import interp
from interp.interventions import Steer
from interp.models.running.sinks import FACTOR, find_sinks, norm_ratios, norms_of_states
from sinks import planted, planted_in
from zoo.table import batch as zoo_batch
from zoo.table import load as zoo_load

TEXTS = [
    "<image> where is the 3 ?",
    "a red 3 at top and a blue 7 at bottom .",
    "top",
    "<image> what is at the top ? a red 3 at top . what is at the top ?",
    "top top top top top",
]


@pytest.fixture(scope="module")
def vlm():
    return planted()


@pytest.fixture(scope="module")
def batch(vlm, few):
    return vlm.prepare(texts=TEXTS, images=[few[0].image, None, None, few[1].image, None])


def test_the_planted_sinks_are_found_and_nothing_else(vlm, batch):
    sinks = planted_in(batch)
    assert torch.equal(find_sinks(vlm, batch), sinks)
    assert torch.equal(batch.positions["content"], batch.positions["text"] & ~sinks)
    assert torch.equal(batch.positions["image_content"], batch.positions["image"] & ~sinks)
    assert batch.positions["image_content"].sum(dim=1).tolist() == [35, 0, 0, 35, 0]
    assert not batch.positions["content"][[2, 4]].any()  # a row of one word, and one of sinks alone


@pytest.mark.parametrize("name", ["toy", "stage1"])
def test_the_toy_has_none(request, name):
    vlm, scenes = request.getfixturevalue(name), interp.toy.scenes(6, seed=5)
    pictured = vlm.prepare(texts=[scene.questions[0].prompt for scene in scenes], images=[s.image for s in scenes])
    for batch in (pictured, vlm.prepare(texts=[scene.caption for scene in scenes]), vlm.prepare(texts=["red"])):
        assert torch.equal(batch.positions["content"], batch.positions["text"])
        assert torch.equal(batch.positions["image_content"], batch.positions["image"])


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "instructblip", "internvl"])
def test_random_models_have_none(name):
    assert not find_sinks(zoo_load(name), zoo_batch(name)).any()
    if name != "instructblip":  # it does not run on text alone, so a row is its own reference
        assert all(value > 0 for value in zoo_load(name).trait("usual_norms"))


def test_a_row_has_the_same_sinks_alone_and_beside_others(vlm, batch, few):
    for row, real in enumerate(batch.positions["all"]):
        images = [few[0].image, None, None, few[1].image, None][row]
        alone = vlm.prepare(texts=[TEXTS[row]], images=[images])
        for name in ("content", "image_content"):
            assert torch.equal(alone.positions[name][0], batch.positions[name][row, real]), (row, name)
            assert torch.equal(batch.row(row).positions[name][0], alone.positions[name][0])
        assert torch.equal(alone.repeat(3).positions["content"], alone.positions["content"].expand(3, -1))


def test_parts_take_known_sinks_along_and_others_find_their_own(vlm, few):
    texts, images = TEXTS[:2], [few[0].image, None]
    fresh, known = vlm.prepare(texts=texts, images=images), vlm.prepare(texts=texts, images=images)
    known.positions["content"]
    parts = [whole.part([1]) for whole in (fresh, known)]
    assert [part.positions.sinks.known for part in parts] == [False, True]
    assert torch.equal(parts[0].positions["content"], parts[1].positions["content"])
    named = fresh.positions.named({"mine": fresh.positions["text"]})
    assert torch.equal(named["content"], known.positions["content"])


def test_an_encoding_padded_on_the_right(vlm):
    inputs = vlm.tokenizer(["a red 3 at top .", "top"], return_tensors="pt", padding=True, padding_side="right")
    batch = vlm.prepare(encoding=dict(inputs))
    assert torch.equal(find_sinks(vlm, batch), planted_in(batch))


def test_the_model_runs_once_and_only_when_asked(vlm, batch, monkeypatch):
    calls = []
    monkeypatch.setattr(vlm.maker, "model_inputs", copy.copy(vlm.maker.model_inputs))
    object.__setattr__(vlm.maker.model_inputs, "find_sinks", lambda each: calls.append(each) or find_sinks(vlm, each))
    fresh = vlm.prepare(texts=["a red 3 at top ."])
    vlm.logits(fresh)
    assert calls == []
    for positions in (
        fresh.positions,
        fresh.positions.named({}),
        fresh.repeat(2).positions,
        copy.deepcopy(fresh.positions),
    ):
        positions["content"], positions["image_content"]
    assert len(calls) == 1


def test_a_copy_on_disk_knows_what_was_known():
    vlm = planted()
    known, fresh = (vlm.prepare(texts=["a red 3 at top ."]).positions for _ in range(2))
    known["content"]
    copies = [pickle.loads(pickle.dumps(each.sinks)) for each in (known, fresh)]
    assert torch.equal(copies[0](), known.sinks())
    with pytest.raises(interp.InputError, match="need a run of the model"):
        copies[1]()


def test_ratios_are_those_of_a_loop_over_tokens(vlm, batch):
    """Plain Python: medians of the row's image tokens, and of what is measured once for words."""
    usual = vlm.trait("usual_norms")
    norms = norms_of_states(vlm, batch)
    ratios = norm_ratios(vlm, norms, range(len(norms)), batch.positions)
    images, real = batch.positions["image"], batch.positions["all"]
    for state, row in [(0, 0), (3, 1), (8, 3), (5, 2), (8, 4)]:
        mine = [norms[state, row, column].item() for column in images[row].nonzero().flatten().tolist()]
        for column, ratio in enumerate(ratios[state, row].tolist()):
            reference = statistics.median_low(mine) if images[row, column] else usual[state]
            expected = norms[state, row, column].item() / reference if real[row, column] else 0.0
            assert ratio == pytest.approx(expected, rel=1e-5)


def test_norms_are_those_of_transformers_states(toy, mixed):
    with torch.no_grad():
        own = toy.model(**toy.inputs_of(mixed), output_hidden_states=True).hidden_states[:-1]
    torch.testing.assert_close(norms_of_states(toy, mixed)[:-1], torch.stack(own).norm(dim=-1), rtol=1e-5, atol=1e-5)


def test_without_anything_to_measure_on_a_row_is_its_own_reference(vlm, monkeypatch):
    batch = vlm.prepare(texts=["a red 3 at top and a blue 7 at bottom ."])
    monkeypatch.setitem(vlm.tried, ("usual_norms",), "cannot be measured")
    assert torch.equal(find_sinks(vlm, batch), planted_in(batch))
    assert not find_sinks(vlm, vlm.prepare(texts=["top top top top top"])).any()


def test_the_names_go_wherever_positions_go(vlm, few):
    batch = vlm.prepare(texts=["<image> what is at the top ?"], images=[few[0].image])
    lens = interp.lens.logit_lens(vlm, batch, positions="image_content")
    assert lens.top_ids.shape[1] == 35
    share = interp.readouts.attention_share(vlm, batch, queries="content", keys="image_content")
    assert share.to_frame().notna().any().any()
    zero = torch.zeros(128)
    steered = vlm.logits(batch, interventions=[Steer(direction=zero, layers=2, positions="content", scale=1.0)])
    torch.testing.assert_close(steered, vlm.logits(batch))
    assert isinstance(
        vlm.generate(batch, 3, [Steer(direction=zero + 1, layers=2, positions="content", scale=0.1)]), list
    )


def test_no_span_takes_these_names(vlm):
    with pytest.raises(interp.InputError, match="content"):
        vlm.prepare(texts=["a red 3 at top ."], spans={"content": "red"})
    with pytest.raises(interp.InputError, match="content"):
        vlm.prepare(texts=["a red 3 at top ."]).positions.select("contents")


def test_the_factor_separates_ordinary_tokens_from_sinks():
    assert 14 < FACTOR < 44  # the largest ratio of an ordinary word of SmolLM2, and the smallest of a first token
