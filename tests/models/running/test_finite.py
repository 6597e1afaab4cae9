"""What is no number: refused with the place where it begins, counted by captures."""

import copy

import pytest
import torch

import interp
import processors
from interp.interventions import Steer
from interp.lens import TunedLens, attention_share, direct_logit_attribution, logit_lens
from interp.models.running.finite import holds_no_numbers
from interp.patching import attribution_patch, flow, layer_sweep, logit_difference, patch_sweep
from models.test_families import model, picture

METRIC = logit_difference(5, 6)


def damaged(path, change, dtype=None):
    """A copy of the tiny LLaVA with the first weights of these modules changed in place."""
    hf = copy.deepcopy(model("llava")).to(dtype)
    with torch.no_grad():
        for name, module in hf.named_modules():
            if name.endswith(path):
                change(module.weight)
    return hf


def overflowing(part):
    """States beyond float16: the last weights of each MLP of a part are 30,000 times as large."""
    return damaged(part, lambda weight: weight.mul_(3e4), torch.float16)


def refused(run, message):
    with pytest.raises(interp.InputError, match=message) as caught:
        run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("values", "expected"), [([], False), ([1.0, -1e30], False), ([float("-inf")], False)])
def test_numbers(values, expected):
    """Minus infinity is a logit that models give to words which they never say."""
    assert holds_no_numbers(torch.tensor(values)) is expected
    for bad in (float("nan"), float("inf")):
        assert holds_no_numbers(torch.tensor([*values, bad]))


@pytest.mark.parametrize("with_processor", [True, False])
def test_overflow_at_load(with_processor, capfd):
    """The advice is followed: in float32 the same weights load."""
    processor = processors.build("llava") if with_processor else None
    hf = overflowing("language_model.layers.1.mlp.down_proj")
    refused(
        lambda: interp.load(model=hf, processor=processor),
        r"layer 1 of 'Llava\w+' gives states that are not finite in float16: load it with dtype='bfloat16' or 'float32'",
    )
    assert "ERROR" not in capfd.readouterr().err  # of the numerics library
    assert interp.load(model=hf.float(), processor=processor, check=False).dtype == torch.float32


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("language_model.layers.2.mlp.down_proj", r"layer 2 of .*language_model\.layers\.2\.mlp\.down_proj\.weight\)"),
        ("vision_tower.encoder.layers.0.mlp.fc1", r"block 0 of the image tower of .*layers\.0\.mlp\.fc1\.weight\)"),
        ("multi_modal_projector.linear_2", r"the part before layer 0 of .*multi_modal_projector\.linear_2\.weight\)"),
        ("lm_head", r"the readout of .*lm_head\.weight\)"),
        ("language_model.norm", r"the readout of .*norm\.weight\)"),
    ],
)
def test_a_damaged_weight_is_named_at_load(path, message, bad):
    def change(weight):
        weight.view(-1)[0] = bad

    hf = damaged(path, change)
    refused(
        lambda: interp.load(model=hf, processor=processors.build("llava")),
        message.replace("of .*", r"of '\w+' has weights that are not finite \(.*") + ": load a copy that is whole",
    )


@pytest.fixture(scope="module", params=["language_model.layers.1.mlp.down_proj", "mlp.fc2"])
def broken(request):
    """A model that was loaded without proofs, and two batches; where its states stop being finite."""
    vlm = interp.load(model=overflowing(request.param), processor=processors.build("llava"), check=False)
    pair = [vlm.prepare(["<image> a b"], [picture(seed=seed)]) for seed in (0, 3)]
    place = "layer 1" if "language" in request.param else r"block \d of the image tower"
    return vlm, *pair, place


RUNS = {
    "logits": lambda vlm, a, b: vlm.logits(a),
    "all logits": lambda vlm, a, b: vlm.logits(a, positions="all"),
    "generate": lambda vlm, a, b: vlm.generate(a, 2),
    "check": lambda vlm, a, b: vlm.check(a),
    "lens": lambda vlm, a, b: logit_lens(vlm, a),
    "tuned lens": lambda vlm, a, b: TunedLens.fit(vlm, [a, b, a, b]),
    "attribution": lambda vlm, a, b: direct_logit_attribution(vlm, a, 5),
    "sweep": lambda vlm, a, b: patch_sweep(vlm, a, b, metric=METRIC),
    "sweep of heads": lambda vlm, a, b: patch_sweep(vlm, a, b, site="z", metric=METRIC),
    "attribution patching": lambda vlm, a, b: attribution_patch(vlm, a, b, metric=METRIC),
    "flow": lambda vlm, a, b: flow(vlm, a, metric=METRIC),
    "layer sweep": lambda vlm, a, b: layer_sweep(vlm, a, metric=METRIC),
}


@pytest.mark.parametrize("run", RUNS)
def test_no_analysis_returns_what_is_no_number(broken, run):
    vlm, first, second, place = broken
    refused(
        lambda: RUNS[run](vlm, first, second), f"{place} of 'Llava.*' gives states that are not finite in float16: load"
    )


def test_shares_of_what_is_no_number(broken):
    refused(lambda: attention_share(*broken[:2]), "not finite|are not numbers")


def test_captures_count_it_and_say_so(broken, tmp_path):
    vlm, _, _, place = broken
    data = [(picture(), "<image> a"), (None, "a b c"), (picture(seed=2), "<image> b")]
    for out in (None, tmp_path / "acts"):
        with pytest.warns(
            UserWarning, match=r"captured examples of 'resid' are not finite, the first in state \d, in rows"
        ):
            acts = interp.capture(vlm, data, positions="last", progress=False, out=out)
        wrong = ~acts["resid"][...].isfinite().all(dim=-1)
        note = acts.manifest["not_finite"]["resid"]
        assert note["states"] == int(wrong.sum()) > 0
        assert note["layer"] == int(wrong.any(dim=1).nonzero()[0])
        assert note["rows"] == [acts.ids[row] for row in wrong.any(dim=0).nonzero().flatten().tolist()]
        assert f"{note['states']} examples of 'resid' are not finite" in " ".join(acts.provenance.notes)
    if place.startswith("block"):
        assert acts.ids[1] not in note["rows"]  # it has no image


def test_layers_in_the_note_are_those_of_the_model(broken):
    with pytest.warns(
        UserWarning, match="captured examples of 'resid_post' are not finite, the first in layer 3, in rows"
    ):
        acts = interp.capture(broken[0], [broken[1]], sites="resid_post", layers=[3], progress=False)
    assert acts.manifest["not_finite"]["resid_post"]["layer"] == 3


def test_a_capture_of_numbers_notes_nothing(toy, few, recwarn):
    acts = interp.capture(toy, few, progress=False)
    assert acts.manifest["not_finite"] == {}
    assert not recwarn.list


def test_an_intervention_that_is_too_large(toy, mixed):
    huge = Steer(direction=torch.full((128,), 3e38), layers=3, positions="all", scale=1.0)
    for run in (toy.logits, toy.generate, logit_lens):
        given = (mixed,) if run is not logit_lens else (toy, mixed)
        refused(
            lambda run=run, given=given: run(*given, interventions=[huge, huge]),
            "of 'toy' are not finite in float32, though the states of its untouched run are: make what is written",
        )


def test_a_metric_that_is_no_number(toy):
    pair = [toy.prepare(texts=[f"a {colour} 3 at top . what colour is the 3 ?"]) for colour in ("red", "blue")]
    refused(
        lambda: patch_sweep(toy, *pair, positions=[5], layers=[2], metric=lambda logits: logits[:, 0] * torch.nan),
        "the values of the metric of 'toy' are not finite",
    )
