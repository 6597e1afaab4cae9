"""What a config says of how a model runs changes no number, and what cannot be run is said in one line."""

import copy

import pytest
import torch

import interp
import processors
from interp.patching import attribution_patch, logit_difference, patch_sweep
from models.test_families import model, picture


@pytest.fixture(scope="module")
def vlm():
    hf = copy.deepcopy(model("llava"))
    hf.set_attn_implementation("eager")
    return interp.load(model=hf, processor=processors.build("llava"), device="cpu")


@pytest.fixture
def configs(vlm):
    """The configs of the model and of its language model, which are afterwards as they were."""
    both = [vlm.model.config, vlm.model.config.text_config]
    before = [dict(vars(each)) for each in both]
    yield both
    for config, fields in zip(both, before, strict=True):
        vars(config).clear()
        vars(config).update(fields)


def numbers(vlm):
    first, second = (vlm.prepare(["<image> a b"], [picture(seed=seed)]) for seed in (0, 3))
    metric = logit_difference(5, 6)
    vlm.tried.clear()
    return [
        vlm.logits(first),
        vlm.logits(first, positions="all"),
        interp.capture(vlm, [first], sites=("resid", "z"), positions="all", progress=False)["z"][...],
        patch_sweep(vlm, first, second, metric=metric).values,
        attribution_patch(vlm, first, second, metric=metric).values,
    ], vlm.generate(first, 3)


@pytest.mark.parametrize(
    ("name", "value"), [("use_cache", False), ("output_hidden_states", True), ("output_attentions", True)]
)
@pytest.mark.parametrize("which", [0, 1])
def test_the_config_of_outputs_changes_nothing(vlm, configs, name, value, which):
    expected = numbers(vlm)
    setattr(configs[which], name, value)
    tensors, text = numbers(vlm)
    assert text == expected[1]
    for ours, before in zip(tensors, expected[0], strict=True):
        torch.testing.assert_close(ours, before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["output_hidden_states", "output_attentions"])
def test_no_lists_of_states_are_made(vlm, configs, name):
    setattr(configs[0], name, True)
    batch = vlm.prepare(["<image> a b"], [picture()])
    with vlm.trace(batch):
        output = vlm.nnsight.output.save()
    assert getattr(output, name.removeprefix("output_")) is None


@pytest.mark.parametrize("which", [0, 1])
def test_a_config_that_asks_for_tuples(vlm, configs, which):
    batch = vlm.prepare(["<image> a b"], [picture()])
    configs[which].return_dict = False
    with pytest.raises(interp.InputError, match=r"has return_dict=False, but outputs are read by name: set it to True"):
        vlm.logits(batch)
