"""Loading: the toy by name, folders, models in hand; and one line for what cannot be loaded."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

import interp
from interp.models import find_structure, loading, toy_folders


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
        ("toy:huge", "'toy:huge' is not a toy: use 'toy' or one of toy:base, toy:stage1, toy:tuned, or toy:tuned@1 to"),
        ("toy:tuned@5", "'toy:tuned@5' is not a toy"),
        ("toy:tuned@0", "'toy:tuned@0' is not a toy"),
        ("toy:tuned@", "'toy:tuned@' is not a toy"),
        ("toy:tuned@one", "'toy:tuned@one' is not a toy"),
        ("toy:base@1", "'toy:base@1' is not a toy"),
        ("toy:stage1@1", "'toy:stage1@1' is not a toy"),
        ("no-such-folder", "'no-such-folder' cannot be loaded as a model"),
        ("no-such-owner/no-such-model", "cannot be loaded as a model for image-text-to-text"),
    ],
)
def test_names_that_are_no_model(name, words):
    with pytest.raises(interp.InputError, match=words) as caught:
        interp.load(name)
    assert "\n" not in str(caught.value)


def test_a_toy_that_is_not_shipped_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setattr(toy_folders, "WEIGHTS", tmp_path)
    with pytest.raises(
        interp.InputError, match=r"'toy:tuned@3' is not shipped: .*weights/tuned@3; .*--seed 3 --out DIR"
    ) as caught:
        interp.load("toy:tuned@3")
    assert "\n" not in str(caught.value)
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned@2").mkdir()
    assert toy_folders.tuned_toys() == toy_folders.tuned_toys(2) == ("toy:tuned", "toy:tuned@2")
    with pytest.raises(interp.InputError, match=r"^3 tuned toys: 2 are here, toy:tuned, toy:tuned@2; .* makes another"):
        toy_folders.tuned_toys(3)
    with pytest.raises(interp.InputError, match=r"^n=0"):
        toy_folders.tuned_toys(0)


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


def test_a_checkpoint_without_all_of_its_weights(toy, tmp_path):
    """transformers would draw them at random, and every proof would pass."""
    toy.model.save_pretrained(tmp_path)
    toy.processor.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "language_model" in name and "layers.3.mlp.up_proj" in name)
    for tensors in (
        {key: each for key, each in weights.items() if key != name},
        weights | {name: torch.zeros(2, 2)},
    ):
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(
            interp.InputError, match=r"lacks 1 weights of a Llava.* such as '.*3\.mlp\.up_proj"
        ) as caught:
            interp.load(tmp_path, device="cpu", check=False)
        assert "\n" not in str(caught.value)


def test_weights_that_are_a_pickle(toy, tmp_path):
    toy.model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(toy.model.state_dict() | {"other": os.mkdir}, tmp_path / "pytorch_model.bin")
    with pytest.raises(interp.InputError, match=r"names posix\.mkdir, and objects are never loaded"):
        interp.load(tmp_path, device="cpu")
    (tmp_path / "pytorch_model.bin").write_bytes(b"xx")
    with pytest.raises(interp.InputError, match="no file of tensors that torch can read") as caught:
        interp.load(tmp_path, device="cpu")
    assert "\n" not in str(caught.value)


def test_where_files_are_kept_is_the_processors_too(toy, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(loading, "_processor_of", lambda source, task, origin: asked.update(origin) or toy.processor)
    interp.load("toy", device="cpu", cache_dir=tmp_path, local_files_only=True, check=False)
    assert (asked["cache_dir"], asked["local_files_only"]) == (tmp_path, True)


def test_without_weights_the_parts_are_the_same(toy):
    """What runs on NDIF is built here without weights, from the same configuration."""
    source = str(loading._locate("toy"))
    options = {"dtype": "auto", "revision": None, "trust_remote_code": False}
    wrapped = loading._open(source, dispatch=False, device=torch.device("cpu"), **options)
    vlm = interp.VLM(wrapped, find_structure(wrapped._module), "toy")
    assert vlm.device.type == "meta"
    assert vlm.structure == interp.load("toy", device="cpu", check=False).structure
    batch = vlm.prepare(["where is the 3 ?"])
    assert vlm.inputs_of(batch)["input_ids"].device.type == "cpu"


def test_what_lies_here_is_not_on_ndif(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for name in ("toy", str(tmp_path)):
        with pytest.raises(interp.InputError, match="is on this machine, not on NDIF"):
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


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dtype": "bf16"}, "dtype='bf16' is unknown: expected 'auto', 'float32', 'bfloat16'"),
        ({"dtype": torch.int64}, "dtype=torch.int64 is unknown"),
        ({"remote": "lokal"}, "remote='lokal': expected True for NDIF, 'local' for its simulation"),
        ({"processor": "toy"}, "processor is a str: expected a processor"),
        ({"colour": "red"}, "cannot be loaded as a model .*unexpected keyword argument 'colour'"),
    ],
)
def test_values_that_are_not_taken(given, words):
    with pytest.raises(interp.InputError, match=words) as caught:
        interp.load("toy", device="cpu", **given)
    assert "\n" not in str(caught.value)


def test_a_dtype_by_its_name():
    assert interp.load("toy", device="cpu", dtype="bfloat16", check=False).dtype == torch.bfloat16


def test_a_processor_takes_the_place_of_the_one_beside_the_weights(toy, tmp_path):
    assert interp.load("toy", device="cpu", processor=toy.processor, check=False).processor is toy.processor
    toy.model.save_pretrained(tmp_path)
    assert interp.load(tmp_path, device="cpu", processor=toy.processor, check=False).processor is toy.processor


def test_a_folder_without_a_processor(toy, mixed, tmp_path):
    toy.model.save_pretrained(tmp_path)
    vlm = interp.load(tmp_path, device="cpu")
    assert vlm.processor is None
    assert vlm.tokenizer is None
    assert (vlm.logits(vlm.prepare(encoding=mixed.inputs)) == toy.logits(mixed)).all()
    with pytest.raises(interp.InputError, match="without a processor"):
        vlm.prepare(["where is the 3 ?"])
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(interp.InputError, match="cannot be loaded as a model"):
        interp.load(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "toy"}, r"model is a str: expected a transformers model in hand; a name goes first, load\('toy'\)"),
        ({"model": torch.nn.Linear(2, 2)}, "model is a Linear: expected a transformers model"),
        ({"dtype": "float32", "revision": "main"}, "revision, dtype cannot be set for a model in hand"),
        (
            {"attn_implementation": "eager", "colour": 1},
            "attn_implementation, colour cannot be set for a model in hand",
        ),
        ({"device": "nonsense"}, "device='nonsense' is unknown"),
        ({"device": "meta"}, r"device='meta', but the Llava.* is on 'cpu': move it yourself, model.to\('meta'\)"),
    ],
)
def test_what_a_model_in_hand_does_not_take(tiny, given, words):
    with pytest.raises(interp.InputError, match=words) as caught:
        interp.load(**{"model": tiny, **given})
    assert "\n" not in str(caught.value)


def test_a_model_in_hand_is_where_it_is(tiny, toy):
    assert interp.load(model=tiny, device="cpu", check=False).device.type == "cpu"
    with pytest.raises(interp.InputError, match="LlavaForConditionalGeneration is not a name"):
        interp.load(tiny)
    with pytest.raises(interp.InputError, match="expected a processor, which has a tokenizer and takes images too"):
        interp.load(model=toy.model, processor=toy.tokenizer)


def test_a_model_in_hand_that_cannot_be_run_as_it_is(tiny):
    with pytest.raises(interp.InputError, match=r"is in training mode.*call model.eval\(\) first"):
        interp.load(model=type(tiny)(tiny.config).train())
    with torch.device("meta"):
        empty = type(tiny)(tiny.config).eval()
    for remote in (False, "local"):
        with pytest.raises(interp.InputError, match="has no weights here, only the meta device"):
            interp.load(model=empty, remote=remote)
    assert interp.load(model=empty, remote=True).device.type == "meta"
