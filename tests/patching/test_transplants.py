"""Hybrids of two checkpoints: everything of the donor is the donor, nothing of it the recipient."""

import copy

import pytest
import torch

import interp
import zoo
from interp.patching import transplant
from zoo.table import batch

EVERYTHING = ("layers", "norm", "head", "embed", "projector")


@pytest.fixture(scope="module")
def rows(toy, few):
    return toy.prepare(texts=[scene.questions[0].prompt for scene in few], images=[scene.image for scene in few])


def test_all_of_it_is_the_donor_and_none_the_recipient(toy, stage1, rows):
    tuned, before = toy.logits(rows), stage1.logits(rows)
    assert not torch.equal(tuned, before)
    assert torch.equal(transplant(stage1, toy, "all", EVERYTHING).logits(rows), tuned)
    assert torch.equal(transplant(toy, stage1, "all", EVERYTHING).logits(rows), before)
    assert torch.equal(transplant(stage1, toy, []).logits(rows), before)
    # neither of them has changed
    assert torch.equal(toy.logits(rows), tuned)
    assert torch.equal(stage1.logits(rows), before)


def test_chosen_layers_are_the_donors_and_no_others(toy, stage1, rows):
    """Against weights that are written over by hand, in a copy."""
    by_hand = copy.deepcopy(stage1.model)
    theirs = toy.model.get_submodule(toy.structure.layers)
    for layer in (2, 5):
        by_hand.get_submodule(toy.structure.layers)[layer].load_state_dict(theirs[layer].state_dict())
    hybrid = transplant(stage1, toy, [2, -3])
    with torch.no_grad():
        wanted = by_hand(**stage1.inputs_of(rows)).logits[:, -1]
    torch.testing.assert_close(hybrid.logits(rows), wanted, atol=1e-5, rtol=0)
    assert hybrid.name == "toy:stage1 with layers [2, 5] of toy"
    assert hybrid.generate(rows, max_new_tokens=2)
    assert interp.capture(hybrid, [rows], progress=False).manifest["model"] == hybrid.name


def test_weights_are_shared_and_not_copied(toy, stage1):
    hybrid = transplant(stage1, toy, [3], parts=("layers", "norm"))
    ours, theirs, both = (vlm.model.state_dict() for vlm in (stage1, toy, hybrid))
    for name, weights in both.items():
        from_donor = name.startswith((f"{toy.structure.layers}.3.", toy.structure.norm))
        assert weights.data_ptr() == (theirs if from_donor else ours)[name].data_ptr()


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_5_vl", "llama4", "lfm2_vl", "idefics3"])
def test_any_architecture(name):
    recipient = interp.load(model=zoo.build(name), check=False)
    other = zoo.make(zoo.build(name).config)
    with torch.no_grad():
        for weights in other.parameters():
            weights.mul_(1.1)
    donor, rows = interp.load(model=other, check=False), batch(name)
    parts = [part for part in ("layers", "norm", "head", "embed") if getattr(recipient.structure, part)]
    tower = {key for key in recipient.model.state_dict() if "vis" in key or "projector" in key or "connector" in key}
    hybrid = transplant(recipient, donor, "all", parts)
    texts = hybrid.prepare(encoding=zoo.pad([[5, 6, 7, 8], [9, 10, 11]]))
    torch.testing.assert_close(hybrid.logits(texts), donor.logits(texts), atol=1e-5, rtol=1e-5)
    assert torch.equal(transplant(recipient, donor, []).logits(rows), recipient.logits(rows))
    for key, weights in hybrid.model.state_dict().items():
        if key in tower:
            assert torch.equal(weights, recipient.model.state_dict()[key])


def test_both_models_are_left_as_they_were(tiny):
    """Whether a weight is trained is kept in the weight itself, which the hybrid shares."""
    recipient, donor = (interp.load(model=copy.deepcopy(tiny), check=False) for _ in range(2))
    recipient.model.requires_grad_(False)
    hybrid = transplant(recipient, donor, [1], parts=("layers", "norm"))
    assert not any(weights.requires_grad for weights in recipient.model.parameters())
    assert all(weights.requires_grad for weights in donor.model.parameters())
    trained = {name for name, weights in hybrid.model.named_parameters() if weights.requires_grad}
    given = (f"{donor.structure.layers}.1.", f"{donor.structure.norm}.")
    assert trained == {name for name, _ in donor.model.named_parameters() if name.startswith(given)}


def test_a_hybrid_ends_where_the_recipient_ends(toy, stage1, rows, monkeypatch):
    """Where a text ends is said beside the config, which alone does not tell."""
    answers = toy.generate(rows, max_new_tokens=3)
    first = toy.logits(rows).argmax(dim=-1).unique().tolist()
    monkeypatch.setattr(toy.model.generation_config, "eos_token_id", first)
    assert toy.generate(rows, max_new_tokens=3) == [""] * len(answers) != answers
    hybrid = transplant(toy, stage1, [])
    assert hybrid.generate(rows, max_new_tokens=3) == [""] * len(answers)
    assert hybrid.model.generation_config is not toy.model.generation_config


def test_tied_weights_are_one_part(tiny):
    other = copy.deepcopy(tiny)
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(2)
    recipient, donor = (interp.load(model=model, check=False) for model in (tiny, other))
    hybrid = transplant(recipient, donor, parts=("head",))
    assert torch.equal(hybrid.model.get_input_embeddings().weight, other.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"parts": ("layer",)}, "parts=.*expected one or more of layers, norm"),
        ({"parts": ()}, r"parts=\(\)"),
        ({"parts": None}, "parts=None: expected one or more of layers"),
        ({"layers": 8}, "layer 8: 'toy' has layers 0 to 7"),
    ],
)
def test_what_is_refused(toy, stage1, arguments, words):
    with pytest.raises(interp.InterpError, match=words):
        transplant(**{"recipient": toy, "donor": stage1, "layers": [1], **arguments})


def test_models_that_do_not_fit(toy, tiny):
    with pytest.raises(interp.InputError, match=r"is .* in the recipient and .* in the donor: expected the same"):
        transplant(toy, interp.load(model=tiny, check=False), [1])
    other = interp.load(model=zoo.build("gemma3"), check=False)
    with pytest.raises(interp.InputError, match=r"recipient is a LlavaFor.*, donor a Gemma3For"):
        transplant(toy, other, [1])
    half = interp.load("toy:stage1", device="cpu", dtype="float16")
    with pytest.raises(interp.InputError, match=r"float32 .* in the recipient and float16"):
        transplant(toy, half, [1])


# A language model alone, and the VLM that was built on it ---------------------------------------------------------------

LANGUAGE = ("layers", "norm", "head", "embed")
TEXTS = ["a red 3 at top . what colour is the 3 ?", "a blue 4 . where is the 4 ?"]


def test_a_language_model_and_its_vlm_exchange_their_layers(bare, toy, stage1, rows):
    """All of the language model makes the toy its first stage, and back, exactly."""
    assert torch.equal(
        transplant(toy, bare, "all", LANGUAGE).logits(rows), transplant(toy, stage1, "all", LANGUAGE).logits(rows)
    )
    assert torch.equal(transplant(toy, bare, [2, -3]).logits(rows), transplant(toy, stage1, [2, -3]).logits(rows))
    tuned = transplant(bare, toy, "all", LANGUAGE)
    assert not tuned.takes_images
    assert torch.equal(tuned.logits(tuned.prepare(TEXTS)), toy.logits(toy.prepare(TEXTS)))
    assert tuned.generate(tuned.prepare(TEXTS), 3) == toy.generate(toy.prepare(TEXTS), 3)
    assert tuned.name == "LlamaForCausalLM with layers, norm, head, embed [0, 1, 2, 3, 4, 5, 6, 7] of toy"
    assert not torch.equal(bare.logits(bare.prepare(TEXTS)), tuned.logits(tuned.prepare(TEXTS)))
    part = transplant(bare, toy, [4], parts=("layers", "norm"))
    by_hand = copy.deepcopy(bare.model)
    by_hand.model.layers[4].load_state_dict(toy.model.model.language_model.layers[4].state_dict())
    by_hand.model.norm.load_state_dict(toy.model.model.language_model.norm.state_dict())
    texts = bare.prepare(TEXTS)
    with torch.no_grad():
        wanted = by_hand(**bare.inputs_of(texts)).logits[:, -1]
    torch.testing.assert_close(part.logits(part.prepare(TEXTS)), wanted, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def grown(bare):
    """The same language model with room for five more tokens, as where an image token is added."""
    model = copy.deepcopy(bare.model)
    model.resize_token_embeddings(80, mean_resizing=False)
    return interp.load(model=model, check=False)


def test_layers_of_a_model_whose_vocabulary_grew_fit(toy, bare, grown, rows):
    assert torch.equal(
        transplant(toy, grown, [1], ("layers", "norm")).logits(rows),
        transplant(toy, bare, [1], ("layers", "norm")).logits(rows),
    )
    for part in ("head", "embed"):
        with pytest.raises(
            interp.InputError, match=r"\(75, 128\) .* \(80, 128\) .*leave it out of parts where one voc"
        ):
            transplant(toy, grown, parts=(part,))


def test_a_language_model_has_no_projector_to_give(toy, bare):
    for pair in ((toy, bare), (bare, toy)):
        with pytest.raises(interp.InputError, match="'LlamaForCausalLM' has no projector of its own: leave it out"):
            transplant(*pair, parts=("projector",))


def changed(bare, **fields):
    """A model of the same kind, with other fields in its config."""
    config = copy.deepcopy(bare.model.config)
    for name, value in fields.items():
        setattr(config, name, value)
    return interp.load(model=type(bare.model)(config).eval(), check=False)


def test_language_models_that_do_not_fit(toy, bare, tiny):
    with pytest.raises(interp.InputError, match="the number of layers is 8 in the recipient and 4 in the donor"):
        transplant(toy, changed(bare, num_hidden_layers=4), [1])
    with pytest.raises(interp.InputError, match=r"mlp.* is .* \(.*\) .* in the recipient and .* in the donor"):
        transplant(toy, changed(bare, intermediate_size=72), [1])
    with pytest.raises(interp.InputError, match=r"rotary_emb.inv_freq, which all layers use, is not the same"):
        transplant(toy, changed(bare, rope_parameters={"rope_type": "default", "rope_theta": 77.0}), [1])
    gpt2 = interp.load(model=zoo.build("gpt2"), check=False)
    with pytest.raises(
        interp.InputError, match=r"layers\.1 is a LlamaDecoderLayer in the recipient and a GPT2Block in"
    ):
        transplant(interp.load(model=zoo.build("llama"), check=False), gpt2, [1])


def test_one_tensor_takes_no_two(bare):
    """Head and embedding that are tied in the recipient would both become the donor's head."""
    tied = changed(bare, tie_word_embeddings=True)
    with pytest.raises(interp.InputError, match="head and embed are one tensor in the recipient and two in the donor"):
        transplant(tied, bare, parts=("head",))
    both = transplant(tied, bare, "all", LANGUAGE)
    texts = both.prepare(encoding=bare.prepare(TEXTS).inputs)
    assert torch.equal(both.logits(texts), bare.logits(bare.prepare(TEXTS)))
    assert tied.model.lm_head.weight is tied.model.model.embed_tokens.weight
