"""The proofs pass on what is right, and each fails where the layout is wrong in its own way."""

from dataclasses import replace

import pytest
import torch

import interp
from interp.models import CheckReport


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


def test_without_an_image_that_proof_is_pending(toy):
    assert outcomes(toy.check())["image"] == "pending"


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
