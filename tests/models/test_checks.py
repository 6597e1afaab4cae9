"""The proofs pass on what is right, and each fails where the layout is wrong in its own way."""

import copy
from dataclasses import replace

import pytest
import torch

import interp
import zoo
from interp.models import CheckReport
from interp.models.checks import _padded_on_the_other_side
from interp.models.structure import Added, Readout
from zoo.table import load, report


def outcomes(report):
    return dict(zip(report.to_frame()["name"], report.to_frame()["outcome"], strict=True))


def test_the_toy_passes_with_the_bars_errors(toy, mixed):
    report = toy.check(mixed)
    errors = report.to_frame().set_index("name")["error"]
    assert report.passed
    assert set(outcomes(report).values()) == {"passed"}
    assert errors["readout"] <= 1e-5
    assert errors["identity"] == 0.0
    assert errors["effect"] > 0


def test_without_an_image_that_proof_is_pending(toy, tiny):
    assert outcomes(interp.load(model=tiny).check())["image"] == "pending"
    assert outcomes(toy.check(toy.prepare(["where is the 3 ?"])))["image"] == "pending"
    assert outcomes(toy.check())["image"] == "passed"  # with a processor, on a picture made here


def test_a_wrong_norm_fails_the_readout(toy):
    wrong = replace(toy.structure, norm="model.language_model.layers.0.input_layernorm")
    with pytest.raises(interp.LayoutError, match="failed the proof 'readout'"):
        interp.load("toy", device="cpu", structure=wrong)
    assert interp.load("toy", device="cpu", structure=wrong, check=False).structure == wrong


def listening(spare):
    """A hook that shows a layer's input to another module and lets nothing come of it."""

    def hook(_, arguments):
        spare(arguments[0])

    return hook


def test_layers_that_do_not_matter_fail_the_effect(toy):
    """Modules in a list as long as the layers, which see every state, but another state there reaches no logit."""
    model = interp.load("toy", device="cpu").model
    model.spare = torch.nn.ModuleList(torch.nn.Identity() for _ in range(8))
    for layer, spare in zip(model.model.language_model.layers, model.spare, strict=True):
        layer.register_forward_pre_hook(listening(spare))
    wrong = replace(toy.structure, layers="spare")
    report = interp.load(model=model, processor=toy.processor, structure=wrong, check=False).check()
    assert outcomes(report)["effect"] == "failed"
    assert not report.passed


def test_a_report_is_kept(toy, tmp_path):
    report = toy.check()
    again = CheckReport.load(report.save(tmp_path / "check.safetensors"))
    assert again.to_frame().drop(columns="error").equals(report.to_frame().drop(columns="error"))


def test_a_head_that_ignores_the_norm_is_refused(tiny):
    """The decoder norms its last state and hands on the one before."""
    model = copy.deepcopy(tiny)
    decoder, seen = model.model.language_model, {}
    decoder.norm.register_forward_pre_hook(lambda _, given: seen.update(last=given[0]))

    def hand_on(_, given, output):
        output.last_hidden_state = seen["last"]
        return output

    decoder.register_forward_hook(hand_on)
    with pytest.raises(interp.LayoutError, match="failed the proof 'readout'"):
        interp.load(model=model)


class Skipping(torch.nn.ModuleList):
    """A list of layers of which the loop over them gets all but the last."""

    def __getitem__(self, index):
        return list(self)[:-1] if isinstance(index, slice) else super().__getitem__(index)


def test_a_decoder_that_skips_a_layer_is_refused(tiny):
    model = copy.deepcopy(tiny)
    model.model.language_model.layers = Skipping(model.model.language_model.layers)
    with pytest.raises(interp.LayoutError, match="failed the proof 'layers': layer 2 ran 0 times"):
        interp.load(model=model)


def test_states_of_another_shape_are_refused():
    with pytest.raises(interp.LayoutError, match=r"layer 0 is given \(2, 8, 4, 64\), expected states \(2, 8, 64\)"):
        interp.load(model=zoo.build("glm5_next"))


def test_noise_in_the_padding_that_reaches_the_logits_is_refused(tiny):
    """The last states are averaged over the whole row, padding and all, before they are read."""
    model = copy.deepcopy(tiny)
    mixer = model.model.language_model.layers[1]
    mixer.register_forward_hook(lambda _, given, output: output + output.mean(dim=1, keepdim=True))
    with pytest.raises(interp.LayoutError, match="failed the proof 'last'"):
        interp.load(model=model)


def test_pixels_that_reach_a_text_position_fail_the_proof(tiny):
    model = copy.deepcopy(tiny)

    def spread(_, args, kwargs):
        embeds = kwargs["inputs_embeds"]
        return args, {**kwargs, "inputs_embeds": embeds + embeds.mean(dim=1, keepdim=True)}

    model.model.language_model.register_forward_pre_hook(spread, with_kwargs=True)
    vlm = interp.load(model=model)
    ids = torch.tensor([[1, *[7] * 16, 20, 21]])
    report = vlm.check(vlm.prepare(encoding={"input_ids": ids, "pixel_values": torch.randn(1, 3, 32, 32)}))
    assert outcomes(report)["image"] == "failed"


def test_traits_are_measured(toy):
    s = toy.structure
    assert s.readout == Readout()
    assert s.attn_out == (Added("self_attn"),) * 8
    assert s.mlp_out == (Added("mlp"),) * 8
    assert (s.mid, s.trims, s.continuous, s.bidirectional_images) == (True, False, True, False)


@pytest.mark.parametrize(
    ("name", "trait", "value"),
    [
        ("granite_docling", "readout", Readout(scale=0.25)),
        ("muse_glimmer", "readout", Readout(scale=0.19611613513818404, cap=20.0)),
        ("gemma4", "readout", Readout(cap=30.0)),
        ("aya_vision", "readout", Readout()),  # its config names a scale that is not applied
        ("gemma4", "trims", True),
        ("cohere2_vision", "mid", False),
        ("qwen3_vl", "continuous", False),
        ("gemma3", "bidirectional_images", True),
        ("paligemma", "bidirectional_images", True),
        ("qwen3_vl", "bidirectional_images", False),
    ],
)
def test_traits_of_architectures(name, trait, value):
    report(name)
    assert getattr(load(name).structure, trait) == value


def test_multipliers_belong_to_what_is_added():
    added = load("granite_docling").structure.attn_out[0]
    assert added.module == "self_attn"
    assert added.scale == pytest.approx(0.263, rel=1e-5)
    assert load("gemma3").structure.attn_out[0] == Added("post_attention_layernorm")
    assert load("gemma4").structure.mlp_out == (None,) * 4  # an embedding of the ids is added beside the MLP
    assert load("llama4").structure.mlp_out[1].flat


def test_rows_are_turned_around_their_padding():
    left = zoo.pad([[5, 6, 7], [8]])
    right = zoo.pad([[5, 6, 7], [8]], side="right")
    for given, wanted in ((left, right), (right, left)):
        turned = _padded_on_the_other_side(given)
        assert all(torch.equal(turned[name], wanted[name]) for name in wanted)
