"""``interp tune``: what it writes, what it prints, and how it refuses."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

import interp
from interp import cli
from interp.cli.tune_command import layers_named

QUICK = ("--set", "max_steps=2", "--set", "per_device_train_batch_size=2", "--set", "learning_rate=1e-3")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def asking(*more, data="conversations:6", out="tuned"):
    return ["tune", "toy:stage1", data, "--out", out, "--device", "cpu", *QUICK, *more]


def test_a_band_is_trained_and_written(stage1, capfd):
    assert cli.run(asking("--layers", "2:4", "--set", "bf16=False")) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "checkpoint: tuned" in out
    assert "unchanged" in out
    tuned = AutoModelForImageTextToText.from_pretrained("tuned")
    before, after = stage1.model.state_dict(), tuned.state_dict()
    moved = {name.split(".")[3] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"2", "3"}
    batch = stage1.prepare(texts=["a red 3 at top . what colour is the 3 ?"])
    assert torch.equal(interp.load("tuned").logits(batch), interp.load(model=tuned.eval(), device="cpu").logits(batch))


def test_a_table_of_captions_with_an_adapter(capfd):
    scenes = interp.toy.scenes(4, seed=3, split="train")
    for number, scene in enumerate(scenes):
        scene.image.save(f"{number}.png")
    lines = [{"file_name": f"{number}.png", "words": scene.caption} for number, scene in enumerate(scenes)]
    with open("rows.jsonl", "w") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in lines)
    adapter = ("--layers", "3", "--lora", "2", "--prompt", "<image>", "--column", "answer=words")
    assert cli.run(asking(*adapter, data="rows.jsonl")) == 0, capfd.readouterr().err
    assert AutoModelForImageTextToText.from_pretrained("tuned").config.text_config.num_hidden_layers == 8
    assert Path("tuned/adapter/adapter_config.json").is_file()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--layers", "6:16"), "layer"),
        (("--layers", "4:4"), "4:4"),
        (("--layers", "2-6"), "2-6"),
        (("--layers", "none"), "connector"),
        (("--set", "learning_rate"), "learning_rate=1e-4"),
        (("--set", "learning_rat=1e-4"), "learning_rate"),
        (("--set", "bf16=no"), "expected True or False"),
        (("--column", "answer"), "--column"),
    ],
)
def test_wrong_options_are_one_line(more, words, capfd, tmp_path):
    assert cli.run(asking(*more)) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_is_not_overwritten(capfd):
    assert cli.run(asking("--layers", "none", "--connector")) == 0
    before = {file.name: file.read_bytes() for file in Path("tuned").iterdir() if file.is_file()}
    assert cli.run(asking("--layers", "2:4")) == 2
    assert "tuned" in capfd.readouterr().err
    assert before == {file.name: file.read_bytes() for file in Path("tuned").iterdir() if file.is_file()}


@pytest.mark.parametrize(
    ("text", "layers"), [("6:16", range(6, 16)), ("0,4,8", [0, 4, 8]), ("3", [3]), ("all", "all"), ("none", ())]
)
def test_layers_on_the_command_line(text, layers):
    assert layers_named(text) == layers
