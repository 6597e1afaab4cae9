"""A tuned band is what PyTorch's usual loop makes of it, and outside the band there is no gradient, no state and no work."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlavaForConditionalGeneration, Trainer, TrainingArguments
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import interp
import tuning_oracles as oracles
from interp.tuning import tune

STEPS, SIZE, RATE = 5, 4, 1e-3
SETTINGS = {"max_steps": STEPS, "per_device_train_batch_size": SIZE, **oracles.SEQUENTIAL}
BANDS = {"all layers": range(8), "a band": range(2, 6), "two bands": (1, 6)}
CONNECTOR = "model.multi_modal_projector."


@pytest.fixture(scope="module")
def data():
    return oracles.rows(12)


@pytest.fixture(scope="module")
def steps(data):
    return oracles.batches(data, SIZE, STEPS)


@pytest.fixture(scope="module")
def tuned(stage1, data):
    """Each band's result, and what was seen from outside while it was trained."""

    def train(**options):
        with oracles.watch(LlavaForConditionalGeneration, LlamaDecoderLayer) as seen:
            result = tune(stage1, data, arguments={"learning_rate": RATE, **SETTINGS}, **options)
        return result, seen

    results = {name: train(layers=layers) for name, layers in BANDS.items()}
    results["connector"] = train(layers=(), connector=True)
    results["head and connector"] = train(layers=(7,), connector=True, head=True)
    return results


PREFIXES = {
    **{name: oracles.band(layers) for name, layers in BANDS.items()},
    "connector": [CONNECTOR],
    "head and connector": [*oracles.band([7]), CONNECTOR, "lm_head.", "model.language_model.norm."],
}
EVERY = list(PREFIXES)


def first_layer(name):
    """Where the backward pass ends."""
    return 0 if "connector" in name else min(BANDS[name])


def attention_flops(some, layers):
    """Of the products of queries with keys and of weights with values, which PyTorch's counter does not know on a CPU.

    Forward they are two; backward, in `layers` layers, four and the first one over again.
    """
    batch = oracles.encode(some)
    rows, length = batch["input_ids"].shape
    in_layer = 2 * rows * 4 * length**2 * 32
    in_block = 2 * len(batch["pixel_values"]) * 4 * (oracles.PATCHES + 1) ** 2 * 24
    return 2 * (8 * in_layer + 4 * in_block) + 5 * layers * in_layer


@pytest.fixture(scope="module")
def by_hand(stage1, steps):
    """The same by a loop of PyTorch's, on a copy: model, losses and rates."""
    made = {}
    for name, prefixes in PREFIXES.items():
        model = oracles.train_only(copy.deepcopy(stage1.model), prefixes)
        made[name] = (model, *oracles.plain_loop(model, steps, RATE))
    return made


@pytest.mark.parametrize("name", EVERY)
def test_it_is_the_usual_loop(tuned, by_hand, stage1, name):
    result, _ = tuned[name]
    model, losses, rates = by_hand[name]
    assert oracles.furthest(model, stage1.model) > 1e-4  # there was something to learn
    assert oracles.furthest(result.vlm.model, model) <= 1e-6
    assert result.loss.tolist() == pytest.approx(losses, abs=1e-5)
    assert result.rate.tolist() == pytest.approx(rates, rel=1e-6)


def test_without_arguments_it_is_the_second_stage_of_llava(stage1, data, steps):
    """Rate 2e-5, a cosine with 3 % of warm-up, no weight decay, gradients clipped at 1: nothing of this is passed."""
    result = tune(stage1, data, layers=range(2, 6), arguments=SETTINGS)
    model = oracles.train_only(copy.deepcopy(stage1.model), oracles.band(range(2, 6)))
    losses, rates = oracles.plain_loop(model, steps)
    assert oracles.furthest(result.vlm.model, model) <= 1e-7
    assert result.loss.tolist() == pytest.approx(losses, abs=1e-5)
    assert result.rate.tolist() == pytest.approx(rates, rel=1e-6)
    assert rates[0] == 0
    assert rates[1] == 2e-5


def test_it_is_transformers_own_trainer(tuned, stage1, data, tmp_path):
    """Its class as it is, on batches that were written by hand."""
    model = oracles.train_only(copy.deepcopy(stage1.model), oracles.band(range(2, 6)))
    arguments = TrainingArguments(
        output_dir=str(tmp_path), learning_rate=RATE, lr_scheduler_type="cosine", warmup_steps=0.03, max_grad_norm=1.0,
        logging_steps=1, report_to=[], save_strategy="no", remove_unused_columns=False, use_cpu=True, disable_tqdm=True,
        **SETTINGS,
    )  # fmt: skip
    trainer = Trainer(model, arguments, data_collator=oracles.encode, train_dataset=data)
    trainer.train()
    result, _ = tuned["a band"]
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert result.loss.tolist() == pytest.approx(logged, abs=1e-6)
    assert oracles.furthest(result.vlm.model, model) <= 1e-6


def test_the_loss_is_the_mean_over_answer_tokens(tuned, stage1, data):
    """Row by row, without padding: a row with a long answer counts more than one with a short one."""
    total = tokens = 0.0
    with torch.no_grad():
        for row in data[:SIZE]:
            batch = oracles.encode([row])
            count = int((batch["labels"] != -100).sum())
            total, tokens = total + count * oracles.mean_loss(stage1.model, batch).item(), tokens + count
    assert tuned["a band"][0].loss[0] == pytest.approx(total / tokens, abs=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_frozen_tensors_keep_every_bit(tuned, stage1, name):
    result, _ = tuned[name]
    before, after = stage1.model.state_dict(), result.vlm.model.state_dict()
    assert before.keys() == after.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    chosen = {key for key in before if key.startswith(tuple(PREFIXES[name]))}
    assert moved == chosen == set(result.trained)
    assert result.hashes_before.keys() == result.hashes_after.keys() == before.keys() - chosen
    assert result.unchanged
    assert result.hashes_before == result.hashes_after
    assert result.trained_parameters == sum(before[key].numel() for key in chosen)
    assert result.frozen_parameters == sum(before[key].numel() for key in before.keys() - chosen)


@pytest.mark.parametrize("name", EVERY)
def test_nothing_else_has_a_gradient_or_a_state(tuned, name):
    result, seen = tuned[name]
    chosen = set(result.trained)
    assert seen.optimised == seen.with_gradient == [chosen] * STEPS
    assert seen.rates == pytest.approx(result.rate.tolist())
    sizes = {key: each.numel() for key, each in result.vlm.model.state_dict().items() if key in chosen}
    for state in seen.state:
        assert state == {key: [1, size, size] for key, size in sizes.items()}  # a count of steps, two moments
    held = sum(sizes.values())
    assert result.gradient_bytes == 4 * held
    assert 8 * held <= result.optimizer_bytes <= 8 * held + 8 * len(chosen)


@pytest.mark.parametrize("name", EVERY)
def test_backward_ends_where_the_band_begins(tuned, name):
    """The graph has no leaf but the trained weights, and no operation of a layer below them."""
    result, seen = tuned[name]
    assert set(map(frozenset, seen.reached)) == {frozenset(result.trained)}
    assert seen.backward_layers == [set(range(first_layer(name), 8))] * len(seen.backward_layers)


def test_the_graph_of_a_band_is_smaller(tuned):
    nodes = {name: seen.nodes[0] for name, (_, seen) in tuned.items()}
    assert nodes["a band"] < 0.8 * nodes["all layers"]


@pytest.mark.parametrize("name", EVERY)
def test_work_and_memory_are_those_of_a_step_by_hand(tuned, stage1, steps, name):
    result, _ = tuned[name]
    model = oracles.train_only(copy.deepcopy(stage1.model), PREFIXES[name])
    saved = {}

    def keep(tensor):
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda each: each):
        oracles.mean_loss(model, oracles.encode(steps[0])).backward()
    assert result.flops == counter.get_total_flops() + attention_flops(steps[0], 8 - first_layer(name))
    weights = {each.untyped_storage().data_ptr() for each in [*model.parameters(), *model.buffers()]}
    kept = sum(each.untyped_storage().nbytes() for place, each in saved.items() if place not in weights)
    assert result.activation_bytes == pytest.approx(kept, rel=0.05)


def test_a_band_costs_less(tuned):
    whole, band = (tuned[name][0] for name in ("all layers", "a band"))
    assert band.flops < 0.85 * whole.flops
    assert band.activation_bytes < 0.85 * whole.activation_bytes
    assert band.gradient_bytes == whole.gradient_bytes / 2
    assert band.seconds.shape == (STEPS, 3)
    assert bool((band.seconds[1:] > 0).all())  # the first step is counted instead


@pytest.mark.parametrize("name", EVERY)
def test_the_model_that_was_given_stays_as_it_is(tuned, stage1, name):
    fresh = interp.load("toy:stage1", device="cpu").model
    state = stage1.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in fresh.state_dict().items())
    ours, theirs = list(stage1.model.parameters()), list(fresh.parameters())
    assert [each.requires_grad for each in ours] == [each.requires_grad for each in theirs]
    assert all(each.grad is None for each in ours)
    assert not any(module.training for module in stage1.model.modules())
    assert not any(module.training for module in tuned[name][0].vlm.model.modules())


def test_the_tuned_model_passes_every_proof(tuned, few):
    vlm = tuned["a band"][0].vlm
    batch = vlm.prepare(["<image> what colour is the 3 ?"], [few[0].image])
    for report in (vlm.check(), vlm.check(batch)):
        assert set(report.to_frame()["outcome"]) == {"passed"}, report.to_frame().to_string()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_switched_off_around_it(tuned, stage1, data, mode):
    with mode():
        result = tune(stage1, data, layers=range(2, 6), arguments={"learning_rate": RATE, **SETTINGS, "max_steps": 1})
        assert not torch.is_grad_enabled()
    assert result.loss[0] == tuned["a band"][0].loss[0]
    assert not any(each.is_inference() for each in result.vlm.model.parameters())


def test_the_result_is_saved_without_the_model(tuned, tmp_path):
    result, _ = tuned["a band"]
    result.save(tmp_path / "tuned.safetensors")
    again = interp.tuning.TuneResult.load(tmp_path / "tuned.safetensors")
    assert again.to_frame().equals(result.to_frame())
    assert len(again.to_frame()) == STEPS
    assert list(again.layers) == [2, 3, 4, 5]
    assert again.trained == result.trained
    assert again.hashes_after == result.hashes_after
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2**20
