"""Loading: the toy by name, folders, models in hand; and one line for what cannot be loaded."""

import pytest
import torch

import interp
from interp.models import find_structure, loading


def test_toy_is_the_tuned_one(toy):
    tuned = interp.load("toy:tuned", device="cpu")
    assert all((a == b).all() for a, b in zip(toy.model.parameters(), tuned.model.parameters(), strict=True))
    assert toy.dtype == torch.float32
    assert repr(toy) == "VLM('toy', 8 layers, width 128, 4 heads, on cpu)"


def test_a_folder_and_objects_in_hand(toy, mixed, tmp_path):
    toy.model.save_pretrained(tmp_path)
    toy.processor.save_pretrained(tmp_path)
    from_folder = interp.load(str(tmp_path), device="cpu")
    in_hand = interp.load(model=toy.model, processor=toy.processor)
    expected = toy.logits(mixed)
    assert (from_folder.logits(mixed) == expected).all()
    assert (in_hand.logits(mixed) == expected).all()
    assert in_hand.generate(mixed) == toy.generate(mixed)


def test_dtype_is_taken(mixed):
    vlm = interp.load("toy", device="cpu", dtype=torch.bfloat16)
    assert vlm.dtype == torch.bfloat16
    assert vlm.logits(mixed).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("toy:huge", "'toy:huge' is no toy: use 'toy' or one of toy:base, toy:stage1, toy:tuned"),
        ("no-such-folder", "'no-such-folder' cannot be loaded as a model"),
        ("no-such-owner/no-such-model", "cannot be loaded as a model for image-text-to-text"),
    ],
)
def test_names_that_are_no_model(name, words):
    with pytest.raises(interp.InputError, match=words) as caught:
        interp.load(name)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(interp.InputError, match=r"holds no model: expected a folder with a config.json"):
        interp.load(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(interp.InputError, match="cannot be loaded as a model"):
        interp.load(str(tmp_path))


def test_damaged_weights(toy, tmp_path):
    toy.model.save_pretrained(tmp_path)
    toy.processor.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(interp.InputError, match="cannot be loaded as a model"):
        interp.load(str(tmp_path), device="cpu")


def test_without_weights_the_parts_are_the_same(toy):
    """What runs on NDIF is built here without weights, from the same configuration."""
    source = str(loading._locate("toy"))
    wrapped = loading._open(source, dispatch=False, device="cpu", dtype="auto", revision=None, trust_remote_code=False)
    vlm = interp.VLM(wrapped, find_structure(wrapped._module), "toy")
    assert vlm.device.type == "meta"
    assert vlm.structure == interp.load("toy", device="cpu", check=False).structure
    batch = vlm.prepare(["where is the 3 ?"])
    assert vlm.inputs_of(batch)["input_ids"].device.type == "cpu"


def test_what_lies_here_is_not_on_ndif(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for name in ("toy", str(tmp_path)):
        with pytest.raises(interp.InputError, match="lies here, not on NDIF"):
            interp.load(name, remote=True)


def test_a_name_or_a_model(toy):
    with pytest.raises(interp.InputError, match="expected either a name"):
        interp.load()
    with pytest.raises(interp.InputError, match="expected either a name"):
        interp.load("toy", model=toy.model)
    with pytest.raises(interp.InputError, match="device='gpux'"):
        interp.load("toy", device="gpux")
    with pytest.raises(interp.InputError, match="device='cuda:99'"):
        interp.load("toy", device="cuda:99")
