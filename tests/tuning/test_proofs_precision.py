"""Models in half precision: what is frozen keeps its bits, what is trained is trained in float32."""

import pytest
import torch

import interp
import tuning_oracles as oracles
from interp.tuning import tune

SETTINGS = {"max_steps": 5, "per_device_train_batch_size": 4, "learning_rate": 1e-3, **oracles.SEQUENTIAL}


@pytest.fixture(scope="module")
def data():
    return oracles.rows(12)


@pytest.fixture(scope="module")
def whole(stage1, data):
    return tune(stage1, data, layers=range(2, 6), arguments=SETTINGS)


@pytest.fixture(scope="module")
def half(data):
    vlm = interp.load("toy:stage1", device="cpu", dtype="bfloat16")
    return vlm, tune(vlm, data, layers=range(2, 6), arguments=SETTINGS)


def test_a_model_in_bfloat16(half, whole):
    vlm, result = half
    before, after = vlm.model.state_dict(), result.vlm.model.state_dict()
    chosen = {key for key in before if key.startswith(tuple(oracles.band(range(2, 6))))}
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    moved = {key for key in before if not torch.equal(before[key].view(torch.int16), after[key].view(torch.int16))}
    assert (
        {key for key in chosen if "norm" not in key} <= moved <= chosen
    )  # a norm's weights may move by less than bfloat16 has
    assert result.unchanged
    assert result.gradient_bytes == 4 * result.trained_parameters
    assert result.loss.tolist() == pytest.approx(whole.loss.tolist(), abs=0.05)
    others = whole.vlm.model.state_dict()
    assert max((after[key].float() - others[key]).abs().max().item() for key in chosen) < 0.01


def test_its_weights_are_trained_in_float32(half, data):
    """At a rate of 1e-6 a step is below half a unit of most bfloat16 weights: in bfloat16 nothing would add up."""
    vlm, _ = half
    small = {**SETTINGS, "learning_rate": 1e-6}
    with oracles.watch(type(vlm.model), type(vlm.layers[0]._module)) as seen:
        tune(vlm, data, layers=range(2, 6), arguments=small)
    trained = dict(seen.model.named_parameters())
    assert {trained[name].dtype for name in seen.optimised[0]} == {torch.float32}
    frozen = trained.keys() - seen.optimised[0]
    assert {trained[name].dtype for name in frozen} == {torch.bfloat16}
    name = f"{oracles.LAYER}3.mlp.up_proj.weight"
    away = (trained[name] - vlm.model.state_dict()[name].float()).abs()
    assert 0 < away.max() < 1e-5
    assert (away > 0).float().mean() > 0.9


def test_autocast(stage1, data, whole):
    """Mixed precision as transformers has it, over a model in float32."""
    result = tune(stage1, data, layers=range(2, 6), arguments={**SETTINGS, "bf16": True})
    assert result.loss.tolist() == pytest.approx(whole.loss.tolist(), abs=0.05)
    assert result.loss.tolist() != whole.loss.tolist()
    assert {value.dtype for value in result.vlm.model.state_dict().values()} == {torch.float32}
    assert result.unchanged


def test_checkpointing_of_gradients_changes_no_weight(stage1, data, whole):
    result = tune(stage1, data, layers=range(2, 6), arguments={**SETTINGS, "gradient_checkpointing": True})
    assert oracles.furthest(result.vlm.model, whole.vlm.model) <= 1e-6
    assert result.activation_bytes < 0.7 * whole.activation_bytes
    assert result.flops > whole.flops
    assert not stage1.model.is_gradient_checkpointing
    assert not result.vlm.model.is_gradient_checkpointing


@pytest.mark.gpu
def test_a_middle_band_on_a_gpu():
    """A decoder large enough for its matrices to count: medians of steps that take turns."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=90, hidden_size=1024, intermediate_size=2816, num_hidden_layers=8, num_attention_heads=16
    )
    tokenizer = interp.load("toy", device="cpu").tokenizer
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval().cuda()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    vlm = interp.load(model=model, processor=tokenizer)
    data = oracles.rows(64, images=False)
    settings = {"per_device_train_batch_size": 64, "max_steps": 12}
    whole, band = [], []
    for _ in range(3):
        whole.append(tune(vlm, data, layers="all", arguments=settings))
        band.append(tune(vlm, data, layers=range(2, 6), arguments=settings))
    seconds = [torch.stack([each.seconds[2:].sum(dim=1) for each in some]).median() for some in (band, whole)]
    assert seconds[0] <= 0.85 * seconds[1]
    assert band[-1].peak_bytes < 0.8 * whole[-1].peak_bytes
    assert band[-1].optimizer_bytes < 0.55 * whole[-1].optimizer_bytes
    frozen = [key for key in before if not key.startswith(tuple(f"model.layers.{layer}." for layer in range(2, 6)))]
    after = band[-1].vlm.model.state_dict()
    assert [key for key in frozen if not torch.equal(before[key], after[key])] == []
