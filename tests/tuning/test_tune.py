"""`tune` on the toy: what it trains, what it leaves, what it counts, and what it refuses."""

import copy
import math
import random
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook
from transformers import LlamaForCausalLM, TrainingArguments
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import interp
from interp.tuning.examples import Collator, training_rows
from interp.tuning.trainer import TuningTrainer
from interp.tuning.tune import tune

FEW = {"max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 5e-4}
BAND = range(2, 6)
LAYER = "model.language_model.layers."


@pytest.fixture(scope="module")
def result(stage1, rows):
    return tune(stage1, rows, layers=BAND, arguments=FEW)


def weights(vlm):
    return {name: each.detach().clone() for name, each in vlm.model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def largest_change(one, other):
    one, other = weights(one), weights(other)
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


# What is trained ---------------------------------------------------------------------------------------------------------


def test_a_band_is_trained_and_nothing_else(stage1, result):
    before, after = weights(stage1), weights(result.vlm)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(result.trained)
    assert {name.removeprefix(LAYER).partition(".")[0] for name in changed} == {"2", "3", "4", "5"}
    assert result.layers == (2, 3, 4, 5)
    assert result.unchanged
    assert set(result.hashes_before) == set(before) - changed
    numbers = {name: each.numel() for name, each in stage1.model.named_parameters()}
    assert result.trained_parameters == sum(numbers[name] for name in changed)
    assert result.trained_parameters + result.frozen_parameters == sum(numbers.values())


def test_the_given_model_stays_as_it_is(rows):
    vlm = interp.load("toy:stage1", device="cpu")
    before, config = weights(vlm), vlm.model.config.to_dict()
    vlm.model.lm_head.weight.requires_grad_(False)
    tuned = tune(vlm, rows, layers=BAND, arguments=FEW).vlm
    assert same(weights(vlm), before)
    assert [name for name, each in vlm.model.named_parameters() if not each.requires_grad] == ["lm_head.weight"]
    assert all(each.grad is None for each in (*vlm.model.parameters(), *tuned.model.parameters()))
    assert not any(module.training for module in (*vlm.model.modules(), *tuned.model.modules()))
    assert vlm.model.config.to_dict() == config
    assert tuned.model.config.to_dict() == config


def test_two_equal_calls_are_equal_and_leave_random_numbers_alone(stage1, rows, result, unchecked):
    np.random.seed(5)  # noqa: NPY002  the generator that libraries share
    state, number = (random.getstate(), torch.get_rng_state()), np.random.RandomState(5).rand()
    again = tune(stage1, rows, layers=BAND, arguments=FEW)
    assert random.getstate() == state[0]
    assert torch.equal(torch.get_rng_state(), state[1])
    assert np.random.rand() == number  # noqa: NPY002
    assert torch.equal(again.loss, result.loss)
    assert same(weights(again.vlm), weights(result.vlm))
    other = tune(stage1, rows, layers=BAND, arguments={**FEW, "seed": 3})
    assert other.provenance.seed == 3
    assert not torch.equal(other.loss, result.loss)


def test_settings_come_as_an_object_of_transformers_too(stage1, rows, result, tmp_path):
    made = TrainingArguments(
        str(tmp_path / "other"), lr_scheduler_type="cosine", warmup_steps=0.03, seed=0, logging_steps=50, **FEW
    )
    again = tune(stage1, rows, layers=BAND, arguments=made)
    assert torch.equal(again.loss, result.loss)
    assert made.logging_steps == 50
    assert list(tmp_path.iterdir()) == []


def test_adapters_are_trained_in_the_band_and_merged(stage1, rows):
    torch.manual_seed(1)
    result = tune(stage1, rows, layers=[3], lora=2, arguments=FEW)
    torch.manual_seed(2)  # adapters are drawn from the seed of the arguments
    again = tune(stage1, rows, layers=[3], lora=2, arguments=FEW)
    assert same(weights(again.vlm), weights(result.vlm))
    assert all(f"{LAYER}3." in name and ".lora_" in name for name in result.trained)
    before, after = weights(stage1), weights(result.vlm)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(f"{LAYER}3.") and name.endswith("_proj.weight") for name in changed)
    assert result.unchanged
    assert not changed & set(result.hashes_before)
    assert set(before) - changed == set(result.hashes_before)


def test_a_language_model_alone_is_tuned_on_text(bare):
    rows = interp.toy.conversations(4, seed=1, modality="text", questions=1)
    result = tune(bare, rows, layers=[0], arguments=FEW)
    assert result.unchanged
    assert len(result.loss) == 3


# The loss ----------------------------------------------------------------------------------------------------------------


class Plain(LlamaForCausalLM):
    """Stands for models whose forward pass takes no number of tokens: their loss is a mean over each batch."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, labels=None, use_cache=None):
        return super().forward(input_ids, attention_mask, position_ids, labels=labels, use_cache=use_cache)


@pytest.mark.parametrize("kind", [LlamaForCausalLM, Plain])
def test_the_loss_is_a_mean_over_the_answer_tokens_of_a_step(kind, bare):
    model = kind(bare.model.config).eval()
    model.load_state_dict(bare.model.state_dict())
    vlm = interp.load(model=model, processor=bare.tokenizer, device="cpu", check=False)
    short, long = (interp.toy.conversations(4, count, modality="text", questions=count) for count in (1, 6))
    rows = [row for pair in zip(short, long, strict=True) for row in pair]
    arguments = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 0}
    one = tune(vlm, rows, layers=BAND, arguments=arguments)
    parts = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    several = tune(vlm, rows, layers=BAND, arguments={**arguments, **parts})
    assert torch.allclose(one.loss, several.loss, rtol=1e-5)
    assert largest_change(one.vlm, several.vlm) < 2e-5


def test_a_step_without_pictures_leaves_the_connector_alone(stage1, rows):
    text = interp.toy.conversations(2, seed=1, modality="text", questions=1)
    arguments = {
        **FEW,
        "max_steps": 2,
        "warmup_steps": 0,
        "train_sampling_strategy": "sequential",
        "lr_scheduler_type": "constant",
    }
    before = weights(stage1)
    one = tune(stage1, [*text, *rows[:2]], layers=(), connector=True, arguments={**arguments, "max_steps": 1})
    assert same(weights(one.vlm), before)
    both = tune(stage1, [*text, *rows[:2]], layers=(), connector=True, arguments=arguments)
    assert set(both.trained) == {name for name in before if not torch.equal(before[name], weights(both.vlm)[name])}


@pytest.mark.parametrize("parts", [1, 4])
def test_patch_alignment_is_a_mean_over_the_labelled_tokens_of_a_step(parts, stage1, rows, aligned):
    size = {"per_device_train_batch_size": 4 // parts, "gradient_accumulation_steps": parts}
    result = tune(stage1, rows, layers=(), connector=True, patch_alignment=2.0, arguments={**ALIGNED, **size})
    assert torch.allclose(result.loss, aligned.loss, rtol=1e-5)
    assert torch.allclose(result.extra_loss, aligned.extra_loss, rtol=1e-5)
    assert (result.extra_loss > 0).all()
    without = tune(stage1, rows, layers=(), connector=True, arguments={**ALIGNED, **size})
    assert (result.loss - result.extra_loss)[0] == pytest.approx(float(without.loss[0]), rel=1e-5)
    assert (without.extra_loss == 0).all()


ALIGNED = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 0}


@pytest.fixture(scope="module")
def aligned(stage1, rows):
    return tune(stage1, rows, layers=(), connector=True, patch_alignment=2.0, arguments=ALIGNED)


def test_an_answer_that_is_cut_off_is_counted(stage1, rows):
    """Each row once, however often it is read; those that are whole are not counted."""
    short = interp.toy.conversations(3, seed=1, questions=1)
    length = Collator(stage1)(training_rows(stage1, short))["labels"].shape[1]
    result = tune(stage1, [*rows[:3], *short], layers=[7], max_length=length, arguments={**FEW, "max_steps": 6})
    assert result.cut_off == 3
    assert "3 rows lost" in " ".join(result.provenance.notes)


def test_a_loss_that_is_not_finite_stops_with_its_step(stage1, rows, tmp_path):
    arguments = {**FEW, "learning_rate": 1e30, "warmup_steps": 0, "max_grad_norm": 0}
    with pytest.raises(interp.InputError, match="the loss of step 2 is nan: expected a finite number"):
        tune(stage1, rows, layers=BAND, arguments=arguments, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(interp.InputError, match=r"after 1 steps .* is not finite"):
        tune(stage1, rows, layers=BAND, arguments={**arguments, "max_steps": 1, "learning_rate": 1e38})


# What it costs -----------------------------------------------------------------------------------------------------------


@contextmanager
def in_graph():
    """The decoder layers whose output had a graph in training."""
    seen = set()

    def note(module, inputs, output):
        states = output[0] if isinstance(output, tuple) else output
        if isinstance(module, LlamaDecoderLayer) and module.training and states.requires_grad:
            seen.add(module.self_attn.layer_idx)

    hook = register_module_forward_hook(note)
    try:
        yield seen
    finally:
        hook.remove()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_backward_pass_ends_below_the_band(checkpointing, stage1, rows):
    arguments = {**FEW, "max_steps": 1, "activation_checkpointing": checkpointing}
    with in_graph() as seen:
        band = tune(stage1, rows, layers=range(5, 7), arguments=arguments)
    assert seen == {5, 6, 7}
    with in_graph() as seen:
        deep = tune(stage1, rows, layers=range(5, 7), connector=True, arguments=arguments)
    assert seen == set(range(8))
    assert band.flops < 0.75 * deep.flops
    assert band.activation_bytes < 0.85 * deep.activation_bytes


def test_bytes_are_those_of_what_is_trained(result):
    assert result.gradient_bytes == 4 * result.trained_parameters
    states = 2 * 4 * result.trained_parameters
    assert states <= result.optimizer_bytes <= states + 8 * len(result.trained)
    assert math.isnan(result.peak_bytes)


def test_operations_are_those_of_the_matrices(bare):
    """Forward: 2 for each weight and token; backward: as many for each weight's gradient, and for that of its input."""
    rows = [{"text": "what colour is the 3 ?", "answer": "red"}] * 2
    result = tune(bare, rows, layers=[7], arguments={**FEW, "max_steps": 1})
    matrices = {name: each for name, each in bare.model.named_parameters() if each.ndim == 2 and "embed" not in name}
    tokens = 2 * len(Collator(bare)([training_rows(bare, rows)[0]])["labels"][0])
    every = sum(each.numel() for each in matrices.values())
    last = sum(each.numel() for name, each in matrices.items() if "layers.7." in name)
    head = bare.model.lm_head.weight.numel()
    own = 2 * tokens * (every + last + last + head)  # the layer's norm stands below its matrices and is trained too
    # Attention: two products of [token, token, width] in each layer, and five more in the last one's backward pass.
    attention = (8 * 2 + 5) * 2 * 2 * (tokens // 2) ** 2 * bare.structure.d_model
    assert result.flops == pytest.approx(own + attention, rel=1e-6)


def test_each_step_but_the_first_is_timed(result):
    assert result.seconds[0].isnan().all()
    assert (result.seconds[1:] > 0).all()
    assert result.rate.tolist() == pytest.approx([0, 5e-4, 2.5e-4])


def test_nothing_is_written_or_printed(stage1, rows, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    tune(stage1, rows, layers=BAND, arguments=FEW)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


# What is refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "line"),
    [
        ({"layers": ()}, "expected something to train"),
        (
            {"arguments": {"learning_rat": 1}},
            "'learning_rat', which is no field of TrainingArguments: did you mean 'learning_rate'",
        ),
        ({"arguments": {"max_steps": 0}}, r"arguments\['max_steps'\]=0: expected an int of 1 or more"),
        ({"arguments": {"per_device_train_batch_size": -1}}, "expected an int of 1 or more"),
        ({"arguments": {"num_train_epochs": 0}}, r"arguments\['num_train_epochs'\]=0: expected a number above 0"),
        ({"arguments": {"learning_rate": "fast"}}, "expected a finite number"),
        ({"arguments": {"seed": -1}}, "seed=-1"),
        ({"arguments": {"output_dir": "x"}}, "leave it out, pass out="),
        ({"arguments": {"logging_steps": 7}}, "leave it out, tune needs 1"),
        ({"arguments": {"push_to_hub": True}}, "leave it out"),
        ({"arguments": {"fsdp": "full_shard"}}, "frozen tensors belong to the model"),
        ({"arguments": {"lr_scheduler_type": "round"}}, "round is not a valid SchedulerType"),
        ({"arguments": {"bf16": True, "fp16": True}}, "At most one of fp16 and bf16"),
        ({"arguments": {"activation_checkpointing_kwargs": {"use_reentrant": True}}}, "use_reentrant must be False"),
        ({"arguments": {"bf16": "False"}}, r"arguments\['bf16'\]='False': expected True or False"),
        ({"arguments": {"activation_checkpointing": "no"}}, "expected True or False"),
        ({"arguments": {"average_tokens_across_devices": False}}, "leave it out, tune needs True"),
        ({"arguments": {"parallelism_config": 3}}, "cannot be spread"),
        ({"arguments": [1]}, "expected a dict of fields"),
        ({"max_length": 0}, "max_length=0"),
        ({"max_length": 20}, "of an image"),
        ({"patch_alignment": 1}, "neither it nor the image tower is trained"),
        ({"patch_alignment": -1}, "patch_alignment=-1: expected a number from 0"),
        ({"patch_alignment": True}, "patch_alignment=True: expected a number from 0"),
        ({"resume": "yes"}, "resume='yes': expected True or False"),
        ({"out": 3}, "out=3: expected a path"),
        ({"out": None, "resume": True}, "resume=True without out="),
    ],
)
def test_a_call_that_cannot_be_is_refused_before_anything_runs(
    call, line, stage1, rows, tmp_path, monkeypatch, unchecked
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TuningTrainer, "train", None)
    given = {"layers": BAND, "out": "out", **call}
    with pytest.raises(interp.InterpError, match=line) as caught:
        tune(stage1, rows, **given)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_data_that_cannot_be_trained_on_are_refused(stage1, rows, tmp_path):
    for data, line in (
        ([], "empty"),
        ([*rows[:1], {"text": "what ?", "answer": None}], "row 1"),
        ([{**rows[0], "image": tmp_path / "missing.png"}], "row 0"),
        ([{**rows[0], "masks": None}], "none of 1 rows has masks"),
    ):
        with pytest.raises(interp.InterpError, match=line) as caught:
            tune(stage1, data, (), connector=True, patch_alignment=1, arguments=FEW, out=tmp_path / "out")
        assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_is_missing_later_stops_the_run_with_its_row(workers, stage1, rows, tmp_path):
    data = [*rows[:3], {**rows[3], "image": tmp_path / "missing.png"}]
    with pytest.raises(interp.InputError, match="row 3") as caught:
        tune(stage1, data, layers=BAND, arguments={**FEW, "dataloader_num_workers": workers}, out=tmp_path / "out")
    assert str(caught.value).startswith("row 3 ('train-0-3'): ")
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_models_without_weights_here_or_a_tokenizer_are_refused(stage1, rows, bare):
    without = interp.load(model=copy.deepcopy(bare).model, device="cpu")
    with pytest.raises(interp.InputError, match="has no tokenizer"):
        tune(without, [{"text": "a", "answer": "b"}], arguments=FEW)
    with pytest.raises(interp.InputError, match="no weights here"):
        tune(interp.load(model=copy.deepcopy(stage1).model.to("meta"), processor=stage1.processor, check=False), rows)
