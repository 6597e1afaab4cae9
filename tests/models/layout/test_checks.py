"""The proofs pass on what is right, and each fails where the layout is wrong in its own way."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import interp
import zoo
from interp.models import CheckReport
from interp.models.layout import checks
from interp.models.running.readout import LogitScaling
from interp.models.running.structure import Added
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
    assert interp.load("toy", device="cpu", structure=wrong, check=False).structure.norm == wrong.norm


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
    wrong = replace(toy.structure, layers="spare", attn=(None,) * 8, mlp=(None,) * 8)
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
    model.model.language_model.layers = Skipping(model.model.language_model.layers).eval()
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


def test_logits_that_do_not_depend_on_the_last_token_fail_the_proof(tiny):
    model = copy.deepcopy(tiny)
    model.model.language_model.layers[0].register_forward_hook(
        lambda _, given, output: torch.cat([output[:, :-1], torch.ones_like(output[:, -1:])], dim=1)
    )
    last = interp.load(model=model, check=False).check().to_frame().set_index("name").loc["last"]
    assert last["outcome"] == "failed"
    assert last["detail"] == "noise in the state of the last real token does not move its logits"


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
    assert s.readout == LogitScaling()
    assert s.attn_out == (Added("self_attn"),) * 8
    assert s.mlp_out == (Added("mlp"),) * 8
    assert (s.mid, s.trims, s.continuous, s.bidirectional_images) == ((True,) * 8, False, True, False)


@pytest.mark.parametrize(
    ("name", "trait", "value"),
    [
        ("granite_docling", "readout", LogitScaling(scale=0.25)),
        ("muse_glimmer", "readout", LogitScaling(scale=0.19611613513818404, cap=20.0)),
        ("gemma4", "readout", LogitScaling(cap=30.0)),
        ("aya_vision", "readout", LogitScaling()),  # its config names a scale that is not applied
        ("gemma4", "trims", True),
        ("cohere2_vision", "mid", (False,) * 4),
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gemma3", "exaone4_5", "cohere2_vision", "hyperclovax_vision_v2", "inkling_mm_model"])
def test_neither_low_precision_nor_a_massive_feature_hides_what_is_added(name, dtype):
    """One feature hundreds of times as large as the others, as trained models have it, leaves room for any sum in it."""
    report(name)
    model = copy.deepcopy(zoo.build(name)).to(dtype)
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 7] = 200
    found, wanted = interp.load(model=model).structure, load(name).structure
    for ours, theirs in zip((*found.attn_out, *found.mlp_out), (*wanted.attn_out, *wanted.mlp_out), strict=True):
        assert ours.module == theirs.module
        assert ours.scale == pytest.approx(theirs.scale, rel=1e-2)
    assert found.mid == wanted.mid
    assert found.readout == wanted.readout


def test_a_block_of_zeros_is_what_it_adds():
    model = copy.deepcopy(zoo.build("llava"))
    with torch.no_grad():
        model.model.language_model.layers[1].self_attn.o_proj.weight.zero_()
    structure = interp.load(model=model).structure
    assert structure.attn_out == (Added("self_attn"),) * 4
    assert all(structure.mid)


def test_layers_that_add_in_place_are_not_mistaken():
    """What enters such a layer is its output by the time it has run: a view of it would show that nothing was added."""
    model = copy.deepcopy(zoo.build("llava"))
    for layer in model.model.language_model.layers:
        layer.register_forward_hook(lambda _, given, output: given[0].copy_(output))
    structure = interp.load(model=model).structure
    assert structure.attn_out == (Added("self_attn"),) * 4
    assert structure.mlp_out == (Added("mlp"),) * 4


def test_a_readout_that_was_not_proved_is_not_used(tiny):
    wrong = {"norm": "model.language_model.layers.1.input_layernorm"}
    vlm = interp.load(model=zoo.build("llava"), structure=wrong, check=False)
    with pytest.raises(interp.LayoutError, match=r"readout is not known .*do not give the model's own logits"):
        vlm.trait("readout")


def test_logits_that_are_not_finite_are_said_to_be(tiny):
    model = copy.deepcopy(tiny)
    model.lm_head.register_forward_hook(lambda _, given, output: output * torch.inf)
    with pytest.raises(interp.LayoutError, match=r"'readout': the logits are not finite in torch.float32"):
        interp.load(model=model)


def trembling(tiny, seed):
    """A model whose sums come in random order, so that two runs differ in their last bits."""
    model, generator = copy.deepcopy(tiny), torch.Generator().manual_seed(seed)

    def tremble(_, given, output):
        state = output.last_hidden_state
        output.last_hidden_state = state + 1e-7 * torch.randn(state.shape, generator=generator)
        return output

    model.model.language_model.register_forward_hook(tremble)
    return model


def identity_of(vlm):
    return vlm.check().to_frame().set_index("name").loc["identity"]


@pytest.mark.parametrize("seed", range(6))
def test_a_model_that_is_never_twice_the_same_is_taken(tiny, seed):
    """Writing back may change as much as running again does; by `checks._RUNS`, refused once in 11,440 seeds at most."""
    identity = identity_of(interp.load(model=trembling(tiny, seed)))
    assert identity["outcome"] == "passed"
    assert identity["error"] > 0
    assert "no more than a second run does" in identity["detail"]


def test_an_innocent_write_back_is_refused_once_in_ten_thousand_loads_at_most(monkeypatch):
    """Passes whose only logit is a coin, which is nearly the worst noise there is: it is 0 or 1, and a load is refused
    where the first 9 runs fall on one side and all 7 write-backs on the other."""
    generator = torch.Generator().manual_seed(0)
    coins = iter(torch.randint(0, 2, (400_000, 1), generator=generator).float().split(1))
    monkeypatch.setattr(checks, "_untouched", lambda *_: {"logits": next(coins)})
    monkeypatch.setattr(checks, "_rewrite", lambda *_: next(coins))
    core = SimpleNamespace(structure=SimpleNamespace(n_layers=0))
    outcomes = [checks._identity(core, None, checks._untouched()).outcome for _ in range(20_000)]
    assert outcomes.count("failed") <= 2


def shifted(amount):
    def write(value, new):
        return new.to(value.device, value.dtype) * (1 + amount)

    return write


def test_a_wrong_write_back_is_refused_though_runs_differ(tiny, monkeypatch):
    """Its error is a few times the difference between two runs: nothing that a proof without noise would notice."""
    vlm = interp.load(model=trembling(tiny, 0))
    monkeypatch.setattr(checks, "_replace", shifted(5e-6))
    identity = identity_of(vlm)
    assert identity["outcome"] == "failed"
    noise = float(identity["bound"].removeprefix("<= "))
    assert 2 * noise < identity["error"] < 9 * noise
    assert identity["detail"] == "writing every state back as it was changes the logits"


def test_a_deterministic_model_is_not_run_again_for_identity(tiny, monkeypatch):
    vlm, calls = interp.load(model=tiny), []
    untouched = checks._untouched
    monkeypatch.setattr(checks, "_untouched", lambda *given: calls.append(given) or untouched(*given))
    assert identity_of(vlm)["error"] == 0
    assert len(calls) == 1


def test_a_trait_is_measured_alone(toy):
    """A remote model is asked for what is wanted and no more: each trace is a job there."""
    vlm = interp.load("toy", device="cpu", check=False)
    assert vlm.trait("readout") == LogitScaling()
    assert vlm.structure.attn_out is None
    assert vlm.trait("attn_out") == toy.structure.attn_out
    assert vlm.trait("trims") is False
    assert vlm.trait("continuous") is True


def test_image_features_that_are_drawn_at_random_are_refused(toy):
    """Dropout that no mode turns off: of the proofs on text alone none can see it."""
    hf = copy.deepcopy(toy.model)
    handle = hf.model.multi_modal_projector.register_forward_hook(
        lambda module, args, output: torch.nn.functional.dropout(output, 0.1)
    )
    with pytest.raises(interp.LayoutError, match="the proof 'image': two runs of one picture differ: its features are"):
        interp.load(model=hf, processor=toy.processor, device="cpu")
    handle.remove()
    interp.load(model=hf, processor=toy.processor, device="cpu")
