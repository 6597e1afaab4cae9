"""``interp capture``: what it writes, what it prints, and how it refuses."""

import errno
import json
import os

import pytest
import torch
from PIL import Image

import interp
from interp import cli


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder of pictures with a table beside them, to be read from an empty folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = []
    for number, scene in enumerate(interp.toy.scenes(5, seed=8)):
        scene.image.save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "asked": "what colour is it ?", "class": len(scene.objects)})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return folder


def asking(*more, out="acts"):
    return ["capture", "toy", "../photos", "--out", out, "--device", "cpu", *more]


NAMED = ("--column", "label=class", "--prompt", "<image> {asked}")


def test_a_folder_of_pictures(photos, toy, capfd):
    assert cli.run(asking("--site", "resid", "--site", "z", "--layers", "0,7", "--reduce", "none", *NAMED)) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == "activations: acts"
    assert "5 rows, 0 skipped" in out
    assert err == ""
    acts = interp.open_activations("acts")
    data = [(Image.open(photos / f"{number}.png"), "<image> what colour is it ?") for number in range(5)]
    wanted = interp.capture(toy, data, ("resid", "z"), reduce="none", layers=[0, 7], progress=False)
    for site in ("resid", "z"):
        assert torch.equal(acts[site][...], wanted[site])
    assert acts.layers == {"resid": (0, 7), "z": (0, 7)}
    assert len(acts.labels["label"]) == 5


def test_positions_are_drawn_by_the_seed(photos, toy, capfd):
    assert cli.run(asking("--reduce", "mean:3", "--seed", "7", *NAMED)) == 0
    data = [(Image.open(photos / f"{number}.png"), "<image> what colour is it ?") for number in range(5)]
    wanted = interp.capture(toy, data, reduce="mean:3", seed=7, progress=False)
    acts = interp.open_activations("acts")
    assert torch.equal(acts["resid"][...], wanted["resid"])
    assert acts.pooled("resid") == {"least": 3, "most": 3, "mean": 3.0}
    assert not torch.equal(interp.capture(toy, data, reduce="mean:3", progress=False)["resid"], wanted["resid"])
    assert cli.run(asking("--reduce", "mean:0", out="other")) != 0
    assert "reduce='mean:0' is unknown" in capfd.readouterr().err
    assert cli.run(asking("--reduce", "mean:4", "--seed", "7", *NAMED)) != 0  # another k does not go on with the folder
    assert "mean:4" in capfd.readouterr().err


def test_the_same_command_goes_on(photos, monkeypatch, capfd):
    command = asking("--batch-size", "1", "--rows-per-shard", "1", *NAMED)
    own, shards = interp.activations.store.Store.write, []

    def write(self, index, shard):
        if len(shards) == 1:
            raise KeyboardInterrupt
        shards.append(index)
        return own(self, index, shard)

    monkeypatch.setattr(interp.activations.store.Store, "write", write)
    assert cli.run(command) == 1
    assert "interrupted" in capfd.readouterr().err
    monkeypatch.setattr(interp.activations.store.Store, "write", own)
    assert cli.run(command) == 0
    assert interp.open_activations("acts").manifest["run"]["shards_found"] == 1
    assert cli.run([*command, "--no-resume"]) == 2
    assert "holds activations already" in capfd.readouterr().err


def test_a_full_disk_is_no_bad_input(photos, monkeypatch, capfd):
    def save(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(interp.activations.store, "save_file", save)
    assert cli.run(asking(*NAMED)) == 1
    (said,) = capfd.readouterr().err.splitlines()
    assert "No space left on device" in said
    assert not any(photos.with_name("here").iterdir())


def test_rows_that_are_left_out_are_named(photos, capfd):
    (photos / "3.png").write_bytes(b"not a picture")
    assert cli.run(asking(*NAMED)) == 2
    assert "row 3" in capfd.readouterr().err
    assert cli.run(asking("--on-error", "skip", *NAMED)) == 0
    out, err = capfd.readouterr()
    assert "4 rows, 1 skipped" in out
    (said,) = err.splitlines()
    assert said.startswith("skipped: row 3")


def test_a_file_of_conversations(photos):
    turns = [{"from": "human", "value": "<image>\nwhat colour is it ?"}, {"from": "gpt", "value": "red"}]
    items = [{"id": f"n{number}", "image": f"{number}.png", "conversations": turns} for number in range(3)]
    (photos.parent / "asked.json").write_text(json.dumps(items))
    command = ["capture", "toy", "../asked.json", "--out", "acts", "--device", "cpu"]
    assert cli.run(command) == 2
    assert cli.run([*command, "--root", "../photos"]) == 0
    acts = interp.open_activations("acts")
    assert (acts.ids, acts.labels) == (("n0", "n1", "n2"), {"answer": ["red"] * 3})


def test_scenes_of_the_toy(photos):
    assert cli.run(["capture", "toy", "captions:3", "--positions", "0,-1", "--reduce", "none", "--out", "acts"]) == 0
    acts = interp.open_activations("acts")
    assert acts.rows.tolist() == [0, 0, 1, 1, 2, 2]
    assert acts.columns.tolist()[::2] == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["capture", "toy", "../nothing", "--out", "acts"], "'../nothing'"),
        (["capture", "toy", "scenes:many", "--out", "acts"], "as in scenes:200"),
        (["capture", "toy:none", "scenes:2", "--out", "acts"], "'toy:none' is not a toy"),
        (["capture", "toy", "scenes:2"], "--out"),
        (["capture", "toy", "scenes:2", "--out", "acts", "--site", "hook"], "site='hook' is unknown: use one of resid"),
        (["capture", "toy", "scenes:2", "--out", "acts", "--layers", "0,9"], "states 0 to 8"),
        (["capture", "toy", "scenes:2", "--out", "acts", "--layers", "1.5"], "expected a name, or numbers"),
        (["capture", "toy", "scenes:2", "--out", "acts", "--positions", "picture"], "image"),
        (["capture", "toy", "scenes:2", "--out", "acts", "--reduce", "max"], "reduce='max'"),
        (["capture", "toy", "scenes:2", "--out", "acts", "--dtype", "long"], "dtype='long'"),
        (["capture", "toy", "scenes:2", "--out", "acts", "--on-error", "hide"], "on_error='hide'"),
        (["capture", "toy", "scenes:2", "--out", "acts", "--column", "label"], "as in label=category"),
        (["capture", "toy", "scenes:2", "--out", "acts", "--prompt", "{name} ?"], "name"),
        (["capture", "toy", "../photos", "--out", "acts", "--root", "../none"], "root='../none' is not a folder"),
        (["capture", "toy", "scenes:\u00b2", "--out", "acts"], "as in scenes:200"),
        (
            ["capture", "toy", "scenes:2", "--out", "acts", "--positions", "0,-1,"],
            "'0,-1,': expected a name, or numbers",
        ),
        (["capture", "toy", "captions:2", "--out", "acts"], "selects no position of row"),
        (["capture", "toy", ".", "--out", "acts"], "has no pictures"),
        (["capture", "toy", "scenes:2", "--out", "../photos"], "no activations"),
        (["capture", "toy", "scenes:2", "--out", "../photos/0.png"], "is a file"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(photos, capfd, arguments, said):
    assert cli.run(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1
    assert not any(photos.with_name("here").iterdir())
