"""Organisms in which what stands at a token is not read: by no word (`unmixed`), or at one token by nothing (`sink`)."""

import copy
import functools

import pytest
import torch

import interp
from interp.interventions import Ablate, Knockout, Patch
from interp.lens import attention_share
from interp.models.running.sinks import FACTOR, norms_of_states

SCENES = interp.toy.scenes(12, seed=0, objects=2)
PROMPT = "<image> what colour is the 3 ?"
LAYERS, LOOKING = 8, 4

planted = functools.cache(interp.toy.planted)


@functools.cache
def pictures(vlm):
    """One prompt with many pictures."""
    return vlm.prepare(texts=[PROMPT] * len(SCENES), images=[scene.image for scene in SCENES])


def captions(vlm):
    return vlm.prepare(texts=[scene.questions[0].text_prompt for scene in SCENES])


def states_at(vlm, batch, positions):
    acts = interp.capture(vlm, [batch], positions=positions, reduce="none", progress=False)["resid"][...]
    return acts.unflatten(1, (len(batch), -1))


@pytest.mark.parametrize("name", ["unmixed", "sink"])
def test_every_head_is_proved(name):
    vlm = planted(name).vlm
    for site in ("q", "k", "v", "z", "pattern"):
        assert all(place is not None for place in vlm.trait(site))
    assert all(vlm.trait("weighed"))


# unmixed --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_words_are_equal_to_the_last_bit_for_all_pictures_and_patches_are_not(seed):
    vlm = planted("unmixed", seed).vlm
    words, patches = (states_at(vlm, pictures(vlm), name) for name in ("after_image", "image"))
    assert (words == words[:, :1]).all()
    assert (patches != patches[:, :1])[:, 1:].flatten(3).any(dim=-1).float().mean() > 0.9
    assert not torch.equal(states_at(planted("unmixed", 1 - seed).vlm, pictures(vlm), "image")[8], patches[8])


def test_unmixed_is_the_toy_without_edges_from_the_image():
    toy, vlm = interp.load("toy:tuned"), planted("unmixed").vlm
    cut = Knockout(source="image", target="after_image", layers="all")
    expected, actual = toy.logits(pictures(toy), interventions=[cut]), vlm.logits(pictures(vlm))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    assert (toy.logits(pictures(toy)) - actual).abs().max() > 1
    torch.testing.assert_close(vlm.logits(captions(vlm)), toy.logits(captions(toy)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "change",
    [
        Knockout(source="image", target="after_image", layers="all"),
        Ablate(site="resid_pre", layers="all", positions="image", value="mean"),
        Ablate(site="resid_pre", layers=3, positions="image", value="resample"),
    ],
)
def test_no_change_of_patches_changes_a_logit(change):
    vlm = planted("unmixed").vlm
    batch = pictures(vlm)
    assert torch.equal(vlm.logits(batch, interventions=[change]), vlm.logits(batch))


def test_one_head_a_layer_looks_at_the_image_and_writes_nothing():
    organism = planted("unmixed")
    share = attention_share(organism.vlm, pictures(organism.vlm)).values
    assert organism.truth.heads == tuple((layer, LOOKING) for layer in range(LAYERS))
    assert (share[:, :LOOKING] == 0).all()
    torch.testing.assert_close(share[:, LOOKING], torch.ones(LAYERS))
    without = Ablate(site="z", layers="all", positions="all", heads=[LOOKING])
    batch = pictures(organism.vlm)
    assert torch.equal(organism.vlm.logits(batch, interventions=[without]), organism.vlm.logits(batch))


# sink -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("batch_of", [pictures, captions])
def test_the_first_two_tokens_are_sinks_and_no_others(batch_of, seed):
    organism = planted("sink", seed)
    vlm = organism.vlm
    batch = batch_of(vlm)
    present = batch.positions["all"]
    norms, number = norms_of_states(vlm, batch), present.cumsum(dim=1).where(present, 0)
    usual = norms[:, number > 2].max()
    assert (norms[:, number == 1] > FACTOR * usual).all()
    assert (norms[1:, number == 2] > FACTOR * usual).all()
    start, huge = organism.truth.effects["features"]
    states = interp.capture(vlm, [batch], positions="all", reduce="none", progress=False)["resid"][...]
    number = number[present]
    assert (states[:, number != 1, start] == 0).all()
    assert (states[:, number > 2, huge] == 0).all()  # the neuron is off, not small
    of_first = states[:, number == 1, start]
    torch.testing.assert_close(of_first, torch.full_like(of_first, organism.truth.effects["length of the start token"]))
    named = {"image": "image_content", "text": "content"}["image" if batch.positions["image"].any() else "text"]
    kind = "image" if named == "image_content" else "text"
    assert torch.equal(batch.positions[kind] & ~batch.positions[named], batch.positions.select([1]))


@pytest.mark.parametrize("layer", [1, 2, 4, 7])
def test_no_other_token_depends_on_the_sink(layer):
    vlm = planted("sink").vlm
    batch = pictures(vlm)
    one, other = batch.row(0), batch.row(1)
    before = vlm.logits(one, positions="all")
    patch = Patch(site="resid_pre", layers=layer, positions=[1], value=other)
    after = vlm.logits(one, interventions=[patch], positions="all")
    others = [0, *range(2, before.shape[1])]
    assert torch.equal(before[:, others], after[:, others])
    seen = Patch(site="resid_pre", layers=layer, positions=list(range(2, 37)), value=other)
    if layer < 4:  # the toy reads patches in layers 1 to 4
        assert (vlm.logits(one, interventions=[seen]) - before[:, -1]).abs().max() > 0.1


def test_without_its_second_sink_it_is_the_toy():
    toy, organism = interp.load("toy:tuned"), planted("sink")
    model = copy.deepcopy(organism.vlm.model)
    huge = organism.truth.effects["features"][1]
    with torch.no_grad():
        model.model.language_model.layers[0].mlp.down_proj.weight[huge] = 0
    vlm = interp.load(model=model, processor=organism.vlm.processor)
    for batch_of in (pictures, captions):
        torch.testing.assert_close(vlm.logits(batch_of(vlm)), toy.logits(batch_of(toy)), atol=1e-3, rtol=0)


def test_with_it_nearly_all_answers_stay():
    toy, vlm = interp.load("toy:tuned"), planted("sink").vlm
    before, after = (interp.toy.answer_questions(each, n=10, progress=False)["right"].mean() for each in (toy, vlm))
    assert abs(before - after) < 0.03


def test_one_head_a_layer_gives_the_sink_all_of_its_attention():
    organism = planted("sink")
    share = attention_share(organism.vlm, pictures(organism.vlm), queries="after_image", keys=[1]).values
    torch.testing.assert_close(share[1:, LOOKING], torch.ones(LAYERS - 1))
    assert (share[1:, :LOOKING] == 0).all()
    assert organism.truth.heads == tuple((layer, LOOKING) for layer in range(1, LAYERS))
