"""Layers on disk: a model that is offloaded by `device_map=` gives the very numbers of the model in memory."""

import functools

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

import interp
import zoo
from interp.activations.plan import fingerprint_of_weights
from interp.interventions import Knockout, Patch, Reweight
from interp.lens import TunedLens, logit_lens
from interp.models.running.offloading import run_device
from interp.patching import attribution_patch, layer_sweep, logit_difference, patch_sweep, probability
from interp.readouts import attention_share, direct_logit_attribution
from interp.words import dictionary_of

pytest.importorskip("accelerate", reason="accelerate offloads weights")
# A tower with patches as image tokens, one with packed pictures, one that shuffles pixels, and one that pools them, beside
# sliding windows. transformers itself does not run the last one with its tower on disk.
ARCHITECTURES = ("llava", "qwen2_vl", "internvl", "gemma3")
PLACES = {"llava": ("all", "layers"), "qwen2_vl": ("all", "layers"), "internvl": ("all",), "gemma3": ("layers",)}


def layers_on_disk(model):
    """A device map with the decoder's layers on disk and everything else in memory."""
    layers = next(name for name, _ in model.named_modules() if name.endswith("layers.0") and "language" in name)[:-2]
    places = {layers: "disk"}

    def walk(path, module):
        if path == layers:
            return
        if path and not layers.startswith(f"{path}."):
            places[path] = "cpu"
            return
        for name, child in module.named_children():
            walk(f"{path}.{name}" if path else name, child)

    walk("", model)
    return places


@pytest.fixture(scope="module", params=[(name, how) for name in ARCHITECTURES for how in PLACES[name]], ids="-".join)
def pair(request, tmp_path_factory):
    """A tiny model in memory, the same with its weights on disk, and a batch of each."""
    name, how = request.param
    folder = tmp_path_factory.mktemp("offloaded")
    model = zoo.build(name)
    model.save_pretrained(folder / "model")
    places = {"": "disk"} if how == "all" else layers_on_disk(model)
    offloaded = interp.load(folder / "model", device_map=places, offload_folder=str(folder / "weights"))
    memory = interp.load(folder / "model", device="cpu")
    return [(vlm, vlm.prepare(encoding=zoo.encode(name))) for vlm in (memory, offloaded)]


def differences(pair, function):
    with_memory, with_disk = (torch.as_tensor(function(vlm, batch)).float() for vlm, batch in pair)
    assert with_memory.numel()
    return (with_memory - with_disk).nan_to_num().abs().max().item()


def test_weights_are_on_disk_and_every_proof_is_tried(pair):
    vlm, batch = pair[1]
    assert any(weights.is_meta for weights in vlm.model.parameters())
    assert vlm.device == torch.device("cpu")
    assert vlm.structure.readout is not None  # the proofs ran at load
    assert set(vlm.check(batch).to_frame()["outcome"]) == {"passed"}


CALLS = {
    "logits": lambda vlm, batch: vlm.logits(batch, positions="all"),
    "capture": lambda vlm, batch: interp.capture(vlm, batch, positions="image", progress=False)["resid"][...],
    "mlp_out": lambda vlm, batch: interp.capture(vlm, batch, "mlp_out", "all", "none", progress=False)["mlp_out"][...],
    "vision": lambda vlm, batch: interp.capture(vlm, one_row(vlm), ("vision",), progress=False)["vision"][...],
    "content": lambda vlm, batch: batch.positions["content"],
    "lens": lambda vlm, batch: logit_lens(vlm, batch, positions="last", top_k=3).top_ids,
    "tuned": lambda vlm, batch: TunedLens.fit(vlm, [batch, batch], epochs=1, positions="all").biases,
    "sweep": lambda vlm, batch: sweep(vlm, batch).values,
    "attribution": lambda vlm, batch: attribution_patch(vlm, *both_rows(vlm), metric=logit_difference(5, 6)).values,
    "knockout": lambda vlm, batch: vlm.logits(batch, [Knockout(source="image", target="last", layers="all")]),
    "reweight": lambda vlm, batch: vlm.logits(batch, [Reweight(kind="uniform", layers=[1])]),
    "layer sweep": lambda vlm, batch: (
        layer_sweep(vlm, batch, intervention=Knockout, metric=probability(5), **CUT).values
    ),
    "share": lambda vlm, batch: attention_share(vlm, batch, queries="text", keys="image").values,
    "head": lambda vlm, batch: dictionary_of(vlm, "head").rows,
    "embed": lambda vlm, batch: dictionary_of(vlm, "embed").rows,
}
CUT = {"source": "image", "target": "last"}


def one_row(vlm, change=0):
    """A row with one picture, and the same with other words behind it."""
    name = next(name for name in ARCHITECTURES if zoo.NAMES[name] == type(vlm.model).__name__)
    encoding = zoo.encode(name, rows=((3, 6),))
    encoding["input_ids"][:, -4:] += change
    return vlm.prepare(encoding=encoding)


def both_rows(vlm):
    return one_row(vlm), one_row(vlm, change=1)


def sweep(vlm, batch):
    return patch_sweep(vlm, *both_rows(vlm), positions=[-1, -3], metric=logit_difference(5, 6))


@pytest.mark.parametrize("call", CALLS)
def test_numbers_are_those_of_the_model_in_memory(pair, call):
    assert differences(pair, CALLS[call]) == 0


def test_states_from_another_run_are_written(pair):
    def patched(vlm, batch):
        batch = one_row(vlm)
        value = interp.capture(vlm, batch, "resid_pre", [-2], "none", layers=[2], progress=False)["resid_pre"][...]
        return vlm.logits(batch, [Patch(site="resid_pre", layers=2, positions=[-1], value=value)])

    assert differences(pair, patched) == 0


def test_attributions_add_up(pair):
    frames = [direct_logit_attribution(vlm, batch, targets=5).to_frame() for vlm, batch in pair]
    numbers = [frame.select_dtypes("number").to_numpy() for frame in frames]
    assert np.array_equal(*numbers, equal_nan=True)


def test_a_capture_to_a_folder_is_the_same_plan(pair, tmp_path):
    """It starts in memory and goes on with the weights on disk: one fingerprint of the weights, one plan."""
    (memory, batch), (offloaded, same) = pair
    assert fingerprint_of_weights(memory.model) == fingerprint_of_weights(offloaded.model)
    first = interp.capture(memory, batch, positions="image", out=tmp_path / "acts", progress=False)
    again = interp.capture(offloaded, same, positions="image", out=tmp_path / "acts", progress=False)
    assert again.manifest == first.manifest  # no shard was made again


def test_a_model_in_hand_and_the_toy_with_its_processor(tmp_path, toy, few):
    vlm = interp.load("toy", device_map={"": "disk"}, offload_folder=str(tmp_path / "weights"), dtype=toy.dtype)
    assert all(weights.is_meta for weights in vlm.model.parameters())
    prompts = {"texts": [few[0].questions[0].prompt] * 2, "images": [few[0].image, few[1].image]}
    assert vlm.generate(vlm.prepare(**prompts), 5) == toy.generate(toy.prepare(**prompts), 5)
    assert set(vlm.check().to_frame()["outcome"]) == {"passed"}
    zoo.build("llava").save_pretrained(tmp_path / "model")
    in_hand = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "model", device_map={"": "disk"}, offload_folder=str(tmp_path / "more")
    ).eval()
    assert interp.load(model=in_hand).check().passed


@functools.cache
def empty():
    with torch.device("meta"):
        return type(zoo.build("llava"))(zoo.build("llava").config).eval()


def test_a_model_without_weights_is_still_refused():
    assert run_device(empty()).type == "meta"
    with pytest.raises(interp.InputError, match="no weights here"):
        interp.load(model=empty())
