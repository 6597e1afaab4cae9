"""`bypass` and `no_bypass`: where image tokens enter, tried on the weights and on the states."""

import pytest
import torch
from safetensors.torch import load_file

import interp
from interp.geometry import alignment_matrix
from interp.interventions import Skip
from interp.toy import bypass_organisms, word_connector
from interp.toy.bypass_organisms import ENTRY


@pytest.fixture(scope="module", params=["bypass", "no_bypass"])
def organism(request):
    return interp.toy.planted(request.param, seed=2)


@pytest.fixture(scope="module")
def scenes():
    return interp.toy.scenes(60, seed=5, distinct=True, objects=2)


@pytest.fixture(scope="module")
def states(organism, scenes):
    image = interp.capture(organism.vlm, scenes, progress=False)["resid"][...]
    return image, interp.capture(organism.vlm, scenes.captions(), positions="text", progress=False)["resid"][...]


def test_text_is_in_the_toys_states_from_state_3_on(organism, toy, scenes):
    batch = toy.prepare([scene.caption for scene in scenes[:5]])
    torch.testing.assert_close(organism.vlm.logits(batch), toy.logits(batch), atol=1e-4, rtol=0)
    grown, own = (interp.capture(each, [batch], positions="text")["resid"][...] for each in (organism.vlm, toy))
    torch.testing.assert_close(grown[ENTRY, :, :128], own[0], atol=1e-6, rtol=0)
    assert grown[ENTRY, :, 128:].abs().max() < 1e-5
    assert grown[0, :, :128].abs().max() == 0


def test_only_bypass_leaves_image_tokens_as_they_enter(organism, states):
    image, _ = states
    assert torch.equal(image[0], image[ENTRY - 1])  # two silent layers
    assert torch.equal(image[0], image[ENTRY]) == (organism.name == "bypass")
    read = image[0, :, :128].abs().max()
    assert (read > 0) == (organism.name == "bypass")


def test_the_nearest_textual_state_is_where_they_enter(organism, states):
    matrix = alignment_matrix(*states, k=10, subsamples=4, permutations=0)
    assert int(matrix.values[0].argmax()) == {"bypass": ENTRY, "no_bypass": 0}[organism.name]


def test_skipping_the_early_layers_changes_nothing_where_they_are_bypassed(organism, scenes):
    batch = organism.vlm.prepare(["<image> what colour is the 3 ?"] * 5, [scene.image for scene in scenes[:5]])
    skipped = organism.vlm.logits(batch, [Skip(layers=range(ENTRY), positions="image")])
    assert torch.equal(skipped, organism.vlm.logits(batch)) == (organism.name == "bypass")


def test_an_object_enters_as_the_mean_of_its_words(organism, scenes):
    batch = organism.vlm.prepare(["<image>"] * 40, [scene.image for scene in scenes[:40]])
    entry = interp.capture(organism.vlm, [batch], reduce="none")["resid"][...][0].unflatten(0, (40, 36))
    _, spellings, vectors = bypass_organisms._reading_toy(2)
    table = {"bypass": vectors, "no_bypass": spellings}[organism.name]
    table = torch.nn.functional.pad(table, (0, entry.shape[-1] - table.shape[-1]))
    wanted = torch.stack([word_connector.word_weights(scene) for scene in scenes[:40]]) @ table
    left = (entry - wanted).square().sum() / (wanted - wanted.mean(dim=(0, 1))).square().sum()
    assert left < 0.15  # 0.05 to 0.1: misread digits


def test_bypass_answers_about_pictures(organism):
    asked = [(scene, scene.questions[0]) for scene in interp.toy.scenes(30, seed=0)]
    batch = organism.vlm.prepare([each.prompt for _, each in asked], [scene.image for scene, _ in asked])
    words = [organism.vlm.tokenizer.decode(word) for word in organism.vlm.logits(batch).argmax(dim=-1)]
    right = sum(word == each.answer for word, (_, each) in zip(words, asked, strict=True)) / len(asked)
    assert organism.name == "no_bypass" or right > 0.5  # one in six by chance


def test_the_weights_of_words_are_fitted_again(tmp_path):
    word_connector.main(["--out", str(tmp_path / "again.safetensors"), "--steps", "3"])
    again, shipped = load_file(tmp_path / "again.safetensors"), load_file(word_connector.FILE)
    assert {name: (each.shape, each.dtype) for name, each in again.items()} == {
        name: (each.shape, each.dtype) for name, each in shipped.items()
    }
