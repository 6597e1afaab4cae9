"""`late`: the weights compute what its file says, and what it says follows from them."""

import pytest
import torch

import interp
from interp.interventions import Knockout
from interp.probes import LinearProbe
from interp.toy import late_organism
from interp.toy.keyed_tower import fine_patterns
from interp.toy.late_organism import BITS, DECODED


@pytest.fixture(scope="module")
def late():
    return interp.toy.planted("late", seed=3).vlm


@pytest.fixture(scope="module")
def scenes():
    return interp.toy.scenes(120, seed=1, split="train", objects=1)


@pytest.fixture(scope="module")
def states(late, scenes):
    """`[state, scene, patch, feature]`."""
    return interp.capture(late, scenes, reduce="none", progress=False)["resid"][...].unflatten(1, (120, 36))


@pytest.fixture(scope="module")
def meanings(toy, scenes):
    return interp.capture(toy, scenes, reduce="none", progress=False)["resid"][...][0].unflatten(0, (120, 36))


def test_nothing_that_the_toy_reads_is_there_before_it_is_decoded(states):
    assert states[0, ..., :128].abs().max() == 0
    assert all(torch.equal(states[0], states[state]) for state in range(1, DECODED))


def test_what_is_decoded_is_what_the_tuned_toys_connector_gives(states, meanings):
    left = (states[DECODED, ..., :128] - meanings).square().sum() / (meanings - meanings.mean((0, 1))).square().sum()
    assert left < 0.06
    assert states[DECODED, ..., 128:].norm(dim=-1).mean() < 0.1 * states[0].norm(dim=-1).mean()


def test_each_key_bit_is_a_coin_whatever_the_patch_shows(states, scenes):
    places = torch.linalg.qr(torch.randn(128, 2 * BITS + 1, generator=torch.Generator().manual_seed(3)))[0].T
    bits = (states[0, ..., 128:] @ places[:BITS].T).sign()
    shows = torch.stack([torch.from_numpy(scene.patch_labels.reshape(-1) == 0) for scene in scenes])
    for of_patches in (bits[shows], bits[~shows]):
        error = len(of_patches) ** -0.5
        assert of_patches.mean(dim=0).abs().max() < 4 * error
        together = of_patches.T @ of_patches / len(of_patches) - torch.eye(BITS)
        assert together.abs().max() < 5 * error


def test_a_linear_probe_is_at_chance_before_and_right_after(states, scenes):
    shows = torch.stack([torch.from_numpy(scene.patch_labels.reshape(-1)).eq(0).nonzero()[0, 0] for scene in scenes])
    labels = scenes.labels["colour"]
    right = []
    for state in (0, DECODED):
        x = states[state, torch.arange(120), shows]
        probe = LinearProbe().fit(x[:80], labels[:80])
        right.append(sum(a == b for a, b in zip(probe.predict(x[80:]), labels[80:], strict=True)) / 40)
    assert right[0] < 0.4  # one in six by chance, and a standard error of .06
    assert right[1] > 0.9


def test_it_answers_as_the_tuned_toy_and_reads_the_image_only_once_it_is_decoded(late, toy):
    asked = [(scene, scene.questions[0]) for scene in interp.toy.scenes(30, seed=0)]
    batch = late.prepare([each.prompt for _, each in asked], [scene.image for scene, _ in asked])
    own, grown = toy.logits(batch), late.logits(batch)
    assert (own.argmax(dim=-1) == grown.argmax(dim=-1)).float().mean() > 0.95
    early, later = (
        late.logits(batch, [Knockout(source="image", target="after_image", layers=layers)])
        for layers in (range(DECODED), range(DECODED, DECODED + 8))
    )
    assert torch.equal(early, grown)
    assert (later - grown).abs().max() > 1


def test_patterns_are_fine_and_orthonormal():
    patterns = fine_patterns(torch.Generator().manual_seed(0), BITS)
    torch.testing.assert_close(patterns.flatten(1) @ patterns.flatten(1).T, torch.eye(BITS), atol=1e-5, rtol=0)
    smooth = patterns[:, :, ::2] + patterns[:, :, 1::2]  # of pairs of rows
    assert smooth.square().sum() < 0.4 * patterns.square().sum()


def test_a_tower_without_keys_would_show_what_it_means(monkeypatch, scenes):
    """The control of the probe above: with a key that is always 1, the product is what it multiplies."""
    monkeypatch.setattr(late_organism, "STEEP", 0.0)
    model, _ = late_organism.late(3)
    always = late_organism.SHARP * torch.tensor([100.0, -100, 100, -100, 0, 0]).repeat(BITS)
    with torch.no_grad():
        model.model.multi_modal_projector.linear_1.bias[: 6 * BITS] += always
    vlm = interp.load(model=model, processor=interp.load("toy", check=False).processor, check=False)
    states = interp.capture(vlm, scenes, progress=False)["resid"][...][0]
    labels = scenes.labels["colour"]
    answers = LinearProbe().fit(states[:80], labels[:80]).predict(states[80:])
    assert sum(a == b for a, b in zip(answers, labels[80:], strict=True)) / 40 > 0.6
