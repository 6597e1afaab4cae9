"""What every method of a VLM takes: layers, batches and interventions, and how what is none of these is refused."""

import copy

import numpy as np
import pytest
import torch

import interp
import zoo
from interp.interventions import Ablate


def test_layers(toy):
    assert toy.layer_indices("all") == list(range(8))
    assert toy.layer_indices(-1) == [7]
    assert toy.layer_indices(np.int64(3)) == [3]
    assert toy.layer_indices(np.arange(2)) == [0, 1]
    assert toy.layer_indices(range(2, 4)) == [2, 3]


@pytest.mark.parametrize("wrong", [None, 1.5, True, [0, 1.5], [True], "some", {"a": 1}])
def test_what_are_no_layers(toy, wrong):
    with pytest.raises(interp.InputError, match=r"^layers="):
        toy.layer_indices(wrong)


def test_layers_the_model_does_not_have(toy):
    for wrong in (8, -9, [0, 8]):
        with pytest.raises(interp.InputError, match="'toy' has layers 0 to 7"):
            toy.layer_indices(wrong)


@pytest.mark.parametrize("wrong", ["text", None, {"input_ids": torch.ones(1, 2)}])
def test_what_is_no_batch(toy, wrong):
    with pytest.raises(interp.InputTypeError, match=r"is not a batch: make one with vlm\.prepare"):
        toy.logits(wrong)


def test_a_batch_of_another_model(toy):
    vlm = interp.load(model=zoo.build("llava"), device="cpu")
    for model, batch in ((vlm, toy.prepare(["where ?"])), (toy, vlm.prepare(encoding=zoo.encode("llava")))):
        with pytest.raises(interp.InputError, match="was made for another model"):
            model.logits(batch)


def test_toys_share_batches(toy, stage1, mixed):
    """One tokenizer and one layout: a batch of one checkpoint is a batch of the other."""
    assert stage1.logits(mixed).shape == toy.logits(mixed).shape


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (Ablate(site="resid_pre", layers=0, positions="all"), "expected a list of interventions"),
        (["Patch"], "'Patch' is not an intervention"),
        ("Patch", "expected a list of interventions"),
    ],
)
def test_what_are_no_interventions(toy, mixed, wrong, match):
    with pytest.raises(interp.InputTypeError, match=match):
        toy.logits(mixed, interventions=wrong)


def test_generation_is_greedy_whatever_the_checkpoint_says(mixed):
    """A penalty in its generation config would make another answer than the model's own logits."""
    vlm = interp.load("toy", device="cpu", check=False)
    expected = vlm.generate(mixed, max_new_tokens=3)
    vlm.model.generation_config.repetition_penalty = 50.0
    assert vlm.generate(mixed, max_new_tokens=3) == expected
    with pytest.raises(interp.InputError, match="max_new_tokens='5'"):
        vlm.generate(mixed, max_new_tokens="5")


def test_a_trait_that_is_not_known_is_measured(toy):
    vlm = interp.load("toy", device="cpu", check=False)
    batch = vlm.prepare(["where is the 3 ?"])
    read = interp.lens.logit_lens(vlm, batch, positions="last")
    assert vlm.structure.readout == toy.structure.readout
    assert torch.equal(read.top_ids, interp.lens.logit_lens(toy, batch, positions="last").top_ids)


def test_what_run_forward_is_asked_for_is_last_or_all(toy, mixed):
    with pytest.raises(interp.InputError, match=r"logits='end' is unknown: use one of last, all"):
        interp.models.run_forward(toy, mixed, logits="end")


def test_the_tokenizer_of_a_model_can_be_replaced(toy):
    vlm = copy.copy(toy)
    vlm.tokenizer = None
    with pytest.raises(interp.InputError, match="without a tokenizer"):
        vlm.generate(toy.prepare(texts=["a red 3"]))
    assert toy.tokenizer is not None
