"""Training mode is refused where it changes what is computed, and only there, before every run."""

import copy

import pytest
import torch
from torch import nn

import interp
import zoo
from interp.models.running.gradients import run_gradients
from interp.models.running.trace import run_for_shapes, run_for_visits, run_until_layers
from interp.models.running.training_mode import depends_on_training, refuse_training
from interp.patching import logit_difference, patch_sweep

MESSAGE = r"is in training mode, in which dropout is on and two runs differ: call model\.eval\(\) first"


class Reads(nn.Module):
    def forward(self, x):
        return self.noisy(x)

    def noisy(self, x):
        return nn.functional.dropout(x, 0.5, self.training)


class Rated(Reads):
    def __init__(self, **rates):
        super().__init__()
        for name, rate in rates.items():
            setattr(self, name, rate)


class Unknown(nn.Module):
    def forward(self, x):
        return 2 * x


class HandsItselfOn(nn.Module):
    """The flag is read by a function that no method names."""

    def forward(mlp, x):
        return drop(mlp, x)


class Asks(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, getattr(self, "training"))  # noqa: B009


class Called(nn.Module):
    def __call__(self, x):
        return nn.functional.dropout(x, 0.5, self.training)

    def forward(self, x):
        return x


def drop(module, x):
    return nn.functional.dropout(x, 0.5, module.training)


def replaced(module):
    own = module.forward
    module.forward = lambda x: nn.functional.dropout(own(x), 0.5, module.training)
    return module


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Dropout(0.1), True),
        (nn.Dropout(0.0), False),
        (nn.AlphaDropout(0.2), True),
        (nn.Linear(2, 2), False),
        (nn.Embedding(3, 2), False),
        (nn.LayerNorm(2), False),
        (nn.BatchNorm1d(2), True),
        (nn.RReLU(), True),
        (nn.MultiheadAttention(4, 2), False),
        (nn.MultiheadAttention(4, 2, dropout=0.1), True),
        (Reads(), True),  # how much it changes is not known
        (Rated(attention_dropout=0.0), False),
        (Rated(attention_dropout=0.0, jitter_noise=0.1), True),
        (Rated(lora_dropout=nn.Identity()), False),
        (HandsItselfOn(), True),
        (Asks(), True),
        (Called(), True),
        (nn.LSTM(2, 2), False),
        (nn.LSTM(2, 2, 2, dropout=0.1), True),
        (Unknown(), True),  # a module of one's own, in training mode: it may hand itself on
        (replaced(nn.Linear(2, 2)), True),
    ],
)
def test_what_depends_on_training(module, expected):
    assert depends_on_training(module.train()) is expected
    holder = nn.Sequential(nn.Identity(), module).eval()
    module.train()
    if expected:
        with pytest.raises(interp.InputError, match=rf"^'1' \({type(module).__name__}\) {MESSAGE}"):
            refuse_training(holder)
    else:
        refuse_training(holder)
    refuse_training(holder.eval())


def differs(module):
    """Whether the flag changes what a module computes, by running it."""
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    outputs = []
    for mode in (False, True, True):
        module.train(mode)
        with torch.no_grad():
            outputs.append(module(x))
    return not (torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[1], outputs[2]))


@pytest.mark.parametrize(
    "module",
    [
        nn.Dropout(0.3),
        nn.Dropout(0.0),
        nn.Linear(8, 8),
        nn.BatchNorm1d(8),
        nn.GELU(),
        nn.RReLU(),
        nn.LayerNorm(8),
        Reads(),
        HandsItselfOn(),
        Asks(),
        Called(),
        replaced(nn.Linear(8, 8)),
    ],
)
def test_it_is_what_a_run_shows(module):
    assert depends_on_training(module) is differs(module)


@pytest.fixture(scope="module")
def blip():
    return interp.load(model=copy.deepcopy(zoo.build("blip-2")), check=False)


def test_every_run_is_refused(blip):
    """A part of a model that was loaded in eval mode."""
    vlm, batch = blip, blip.prepare(encoding=zoo.encode("blip-2"))
    runs = {
        "logits": lambda: vlm.logits(batch),
        "generate": lambda: vlm.generate(batch, 1),
        "trace": lambda: vlm.trace(batch),
        "capture": lambda: interp.capture(vlm, [batch], progress=False),
        "check": lambda: vlm.check(),
        "visits": lambda: run_for_visits(vlm, batch.inputs, [vlm.layers[0]]),
        "shapes": lambda: run_for_shapes(vlm, batch.inputs, [vlm.layers[0]]),
        "until layers": lambda: run_until_layers(vlm, batch.inputs),
        "gradients": lambda: run_gradients(vlm, batch, lambda logits: logits[:, 0], []),
        "sweep": lambda: patch_sweep(vlm, batch.row(0), batch.row(0), positions=[0], metric=logit_difference(3, 4)),
    }
    vlm.tokenizer = object()  # generation asks for one first
    layer = vlm.model.language_model.model.decoder.layers[0].train()
    try:
        for name, run in runs.items():
            with pytest.raises(interp.InputError, match=MESSAGE) as caught:
                run()
            assert "'language_model.model.decoder.layers.0' (OPTDecoderLayer)" in str(caught.value), name
    finally:
        layer.eval()
        vlm.tokenizer = None
    assert torch.equal(vlm.logits(batch), vlm.logits(batch))


def test_a_part_in_training_mode_is_refused_at_load(blip):
    blip.model.qformer.train()
    try:
        with pytest.raises(interp.InputError, match=MESSAGE):
            interp.load(model=blip.model)
    finally:
        blip.model.eval()


def test_the_whole_model_after_loading(tiny):
    """Its dropout is 0, but a model in training mode is not what was loaded."""
    hf = copy.deepcopy(tiny)
    vlm = interp.load(model=hf, check=False)
    batch = vlm.prepare(encoding={"input_ids": torch.tensor([[11, 12, 13]])})
    hf.train()
    with pytest.raises(interp.InputError, match=rf"^the LlavaForConditionalGeneration {MESSAGE}"):
        vlm.logits(batch)


def test_modules_that_are_replaced_later(tiny):
    """A new layer is in training mode, and harmless; a new dropout is not."""
    hf = copy.deepcopy(tiny)
    hf.resize_token_embeddings(95)
    hf.model.language_model.layers[0].mlp.up_proj = nn.Linear(32, 48)
    vlm = interp.load(model=hf, device="cpu")
    batch = vlm.prepare(encoding={"input_ids": torch.tensor([[11, 12, 13]])})
    before = vlm.logits(batch)
    layer = hf.model.language_model.layers[1].mlp
    weight, layer.down_proj = layer.down_proj.weight, nn.Linear(48, 32, bias=False)
    layer.down_proj.weight = weight
    assert torch.equal(vlm.logits(batch), before)
    layer.act_fn = nn.Sequential(layer.act_fn, nn.Dropout(0.1))
    with pytest.raises(interp.InputError, match=r"layers\.1\.mlp\.act_fn\.1' \(Dropout\)"):
        vlm.logits(batch)
    layer.act_fn[1].p = 0.0
    assert torch.equal(vlm.logits(batch), before)


def test_an_adapter_without_dropout_is_harmless(tiny):
    peft = pytest.importorskip("peft")
    for rate, fits in ((0.0, True), (0.2, False)):
        base = copy.deepcopy(tiny)
        adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"], lora_dropout=rate))
        adapted.training = base.training = False
        for module in adapted.children():
            module.training = False
        if fits:
            refuse_training(adapted)
        else:
            with pytest.raises(interp.InputError, match=r"lora_dropout.*\(Dropout\)"):
                refuse_training(adapted)
