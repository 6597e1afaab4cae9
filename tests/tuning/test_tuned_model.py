"""The model that is trained shares all that is frozen, its trained copies are float32, and the tuned model is an ordinary one."""

import copy
import pickle

import pytest
import torch
from transformers.utils import logging

import interp
import zoo
from interp.patching import transplant
from interp.tuning.trained_parts import trained_names
from interp.tuning.tuned_model import autocast_precision, fingerprints, finished, tunable_model

logging.set_verbosity_error()
BAND = range(2, 6)


@pytest.fixture(scope="module")
def inputs(toy, few):
    batch = toy.prepare(texts=[scene.questions[0].prompt for scene in few], images=[scene.image for scene in few])
    return toy.inputs_of(batch)


def train(model, inputs, steps=2, rate=1e-2, precision=None):
    """A few steps of AdamW on the question's own tokens."""
    trained = [weights for weights in model.parameters() if weights.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=rate)
    ids = inputs["input_ids"]
    for _ in range(steps):
        with torch.autocast("cpu", precision, enabled=precision is not None):
            logits = model(**inputs).logits
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
        optimiser.step()
        optimiser.zero_grad()
    return model


def test_what_is_frozen_is_shared_and_what_is_trained_is_not(stage1, inputs):
    before = {name: weights.clone() for name, weights in stage1.model.state_dict().items()}
    names = trained_names(stage1, BAND, connector=True)
    model = tunable_model(stage1, names)
    assert type(model) is type(stage1.model)
    ours, theirs = dict(model.named_parameters()), dict(stage1.model.named_parameters())
    assert list(ours) == list(theirs)
    for name, weights in ours.items():
        assert weights.requires_grad == (name in names)
        assert (weights.data_ptr() == theirs[name].data_ptr()) == (name not in names)
        assert weights is not theirs[name]
    assert all(weights.requires_grad for weights in stage1.model.parameters())
    train(model, inputs)
    for name, weights in stage1.model.state_dict().items():
        assert torch.equal(weights, before[name])
        assert torch.equal(model.state_dict()[name], weights) == (name not in names)
    # no gradient below the band, nor on what is frozen
    band_only = tunable_model(stage1, trained_names(stage1, BAND))
    band_only(**inputs).logits.sum().backward()
    assert {name for name, weights in band_only.named_parameters() if weights.grad is not None} == {
        *trained_names(stage1, BAND)
    }


def test_nothing_of_nnsight_is_on_it(toy, inputs):
    toy.nnsight  # the toy has been traced by other tests, and has its records
    model = tunable_model(toy, trained_names(toy, 3))
    for module in model.modules():
        assert "__nnsight__" not in vars(module)
        assert "forward" not in vars(module)
        assert not module._forward_hooks
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, toy.model(**inputs).logits)
    assert len(model(**inputs, output_hidden_states=True).hidden_states) == 9


def test_the_tuned_model_is_an_ordinary_one(stage1, inputs, few):
    batch = stage1.prepare(texts=[scene.questions[0].prompt for scene in few], images=[scene.image for scene in few])
    before = stage1.logits(batch)
    assert torch.equal(finished(tunable_model(stage1, trained_names(stage1, BAND)), stage1).logits(batch), before)
    model = train(tunable_model(stage1, trained_names(stage1, BAND)), inputs)
    model.train()
    model.gradient_checkpointing_enable()
    tuned = finished(model, stage1)
    with torch.no_grad():
        wanted = model.eval()(**stage1.inputs_of(batch)).logits[:, -1]
    torch.testing.assert_close(tuned.logits(batch), wanted, atol=1e-5, rtol=0)
    assert not torch.equal(tuned.logits(batch), before)
    assert torch.equal(stage1.logits(batch), before)
    assert tuned.name == "toy:stage1 tuned in layers 2 to 5"
    assert not any(
        module.training or getattr(module, "gradient_checkpointing", False) for module in tuned.model.modules()
    )
    assert all(weights.requires_grad for weights in tuned.model.parameters())
    assert tuned.check(batch).passed
    assert tuned.generate(batch, max_new_tokens=2)
    theirs = stage1.model.state_dict()
    shared = {
        name for name, weights in tuned.model.state_dict().items() if weights.data_ptr() == theirs[name].data_ptr()
    }
    assert set(theirs) - shared == set(trained_names(stage1, BAND))


@pytest.mark.parametrize(
    ("layers", "others", "name"),
    [
        (3, {}, "tuned in layer 3"),
        ([1, 4, 6], {"head": True}, "tuned in layers 1, 4, 6 and head"),
        ((), {"connector": True}, "tuned in connector"),
        ("all", {"connector": True, "vision": True}, "tuned in layers 0 to 7, connector and image tower"),
    ],
)
def test_its_name_says_what_was_tuned(stage1, layers, others, name):
    tuned = finished(tunable_model(stage1, trained_names(stage1, layers, **others)), stage1)
    assert tuned.name == f"toy:stage1 {name}"


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_trains_float32_copies_under_autocast(precision, inputs):
    vlm = interp.load("toy:stage1", device="cpu", dtype=precision)
    names = trained_names(vlm, BAND)
    model = tunable_model(vlm, names)
    assert {name for name, weights in model.named_parameters() if weights.dtype == torch.float32} == set(names)
    assert autocast_precision(vlm) == precision
    halves = {key: value.to(precision) if value.is_floating_point() else value for key, value in inputs.items()}
    with pytest.raises(RuntimeError, match="dtype"):
        model(**halves)
    small = train(model, halves, steps=1, rate=1e-5, precision=precision)
    moved = [name for name in names if not torch.equal(small.state_dict()[name], vlm.model.state_dict()[name].float())]
    assert moved == names  # although a step of 1e-5 is below the spacing of most of these numbers
    tuned = finished(train(model, halves, precision=precision), vlm)
    assert {weights.dtype for weights in tuned.model.parameters()} == {precision}
    for name in names:
        assert torch.equal(tuned.model.state_dict()[name], model.state_dict()[name].to(precision))


def test_a_model_in_float32_needs_no_autocast(toy):
    assert autocast_precision(toy) is None


@pytest.mark.gpu
def test_a_trainer_may_move_the_model(stage1, inputs):
    model = tunable_model(stage1, trained_names(stage1, BAND), lora=2)
    train(model.to("cuda"), {name: value.to("cuda") for name, value in inputs.items()})
    tuned = finished(model, stage1)
    assert {weights.device.type for weights in (*tuned.model.parameters(), *stage1.model.parameters())} == {"cpu"}


def test_a_tuned_model_is_tuned_again_copied_and_transplanted(stage1, inputs, few):
    batch = stage1.prepare(texts=[scene.questions[0].prompt for scene in few], images=[scene.image for scene in few])
    first = finished(train(tunable_model(stage1, trained_names(stage1, BAND)), inputs), stage1)
    second = finished(train(tunable_model(first, trained_names(first, (), head=True)), inputs), first)
    assert second.name == "toy:stage1 tuned in layers 2 to 5 tuned in head"
    logits = second.logits(batch)
    assert not torch.equal(logits, first.logits(batch))
    for again in (copy.deepcopy(second), pickle.loads(pickle.dumps(second))):
        torch.testing.assert_close(again.logits(batch), logits, atol=1e-5, rtol=0)
    hybrid = transplant(stage1, second, BAND, parts=("layers", "norm", "head"))
    assert torch.equal(hybrid.logits(batch), logits)
    remote = interp.load("toy:stage1", device="cpu", remote="local")
    tuned = finished(tunable_model(remote, trained_names(remote, 1)), remote)
    assert tuned.remote == "local"
    torch.testing.assert_close(tuned.logits(batch), stage1.logits(batch), atol=1e-5, rtol=0)


def test_names_of_another_model(stage1, tiny):
    with pytest.raises(interp.InputError, match=r"names has 'lm_head', and 'toy:stage1' has no parameter of that name"):
        tunable_model(stage1, ["lm_head"])
    tied = interp.load(model=tiny, check=False)
    with pytest.raises(interp.InputError, match=r"has 'lm_head.weight', and .*: expected some of trained_names"):
        tunable_model(tied, ["lm_head.weight"])  # it goes by its first name, the embedding's
    other = tunable_model(stage1, trained_names(stage1, 7))
    with pytest.raises(interp.InputError, match=r"the model that was trained has .model\.language_model\.layers\.7"):
        finished(other, tied)


def test_tied_weights_stay_tied(tiny):
    vlm = interp.load(model=copy.deepcopy(tiny), check=False)
    for names in (trained_names(vlm, (), head=True), trained_names(vlm, 1)):
        model = tunable_model(vlm, names)
        assert model.lm_head.weight is model.get_input_embeddings().weight
        tuned = finished(model, vlm).model
        assert tuned.lm_head.weight is tuned.get_input_embeddings().weight
    assert model.lm_head.weight.data_ptr() == vlm.model.lm_head.weight.data_ptr()


def test_buffers_are_copies(toy):
    buffers = dict(toy.model.named_buffers())
    for name, buffer in tunable_model(toy, trained_names(toy, 0)).named_buffers():
        assert torch.equal(buffer, buffers[name])
        assert buffer.data_ptr() != buffers[name].data_ptr()


def test_fingerprints_tell_any_change(toy):
    names = [name for name, _ in toy.model.named_parameters()]
    before = fingerprints(toy.model, names)
    assert len(before) == len(names)
    model = copy.deepcopy(toy).model
    assert fingerprints(model, names) == before
    weights = model.lm_head.weight
    with torch.no_grad():
        weights[3, 4] = torch.nextafter(weights[3, 4], torch.tensor(1.0))
    assert {name for name, each in fingerprints(model, names).items() if each != before[name]} == {"lm_head.weight"}
    box = torch.nn.Module()
    box.zero, box.coarse, box.flat = (
        torch.nn.Parameter(values)
        for values in (torch.zeros(2, 4), torch.zeros(2, 8, dtype=torch.bfloat16), torch.zeros(8))
    )
    box.odd = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4).T)
    box.even = torch.nn.Parameter(box.odd.detach().contiguous())
    box.one = torch.nn.Parameter(torch.tensor(1.0))
    prints = fingerprints(box, ["zero", "coarse", "flat", "odd", "even", "one"])
    assert len({prints[name] for name in ("zero", "coarse", "flat", "one")}) == 4
    assert prints["odd"] == prints["even"]


@pytest.mark.parametrize(
    "name", ["gemma3", "qwen3_vl", "llama4", "idefics3", "gpt2", "mamba", "deepseek_v3", "lfm2_vl"]
)
def test_any_architecture(name):
    vlm = interp.load(model=zoo.build(name), check=False)
    rows = vlm.prepare(encoding=zoo.encode(name))
    before = vlm.logits(rows)
    model = tunable_model(vlm, trained_names(vlm, [-1], head=True))
    with torch.no_grad():
        torch.testing.assert_close(model(**vlm.inputs_of(rows)).logits[:, -1], before, atol=1e-5, rtol=1e-5)
        for weights in model.parameters():
            if weights.requires_grad:
                weights.mul_(1.5)
    tuned = finished(model, vlm)
    assert not torch.allclose(tuned.logits(rows), before)
    assert torch.equal(vlm.logits(rows), before)


def test_a_forward_pass_that_was_replaced(bare):
    """A method of the module's own comes along; a function that holds on to other weights would compute with those."""
    model = zoo.make(bare.model.config)
    mlp = model.model.layers[3].mlp
    mlp.forward = lambda states: mlp.down_proj(states[..., :0].new_zeros(*states.shape[:-1], mlp.down_proj.in_features))
    vlm = interp.load(model=model, check=False)
    with pytest.raises(interp.InputError, match=r"the forward pass of 'model.layers.3.mlp' \(LlamaMLP\) was replaced"):
        tunable_model(vlm, trained_names(vlm, 0))
    other = zoo.make(bare.model.config)
    part = other.model.layers[3].mlp
    type(part).zeroed = lambda self, states: 0 * self.down_proj.weight.sum() + states * 0
    part.forward = part.zeroed
    vlm = interp.load(model=other, check=False)
    rows = vlm.prepare(["a red 3 at top ."]) if vlm.tokenizer else vlm.prepare(encoding=zoo.pad([[5, 6, 7]]))
    copied = tunable_model(vlm, trained_names(vlm, 3))
    with torch.no_grad():
        torch.testing.assert_close(copied(**vlm.inputs_of(rows)).logits[:, -1], vlm.logits(rows), atol=1e-5, rtol=0)
    assert copied.model.layers[3].mlp.forward.__self__ is copied.model.layers[3].mlp
    del type(part).zeroed
