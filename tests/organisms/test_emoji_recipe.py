"""The recipe: lessons have the right targets, a short run makes every file, and a stopped one ends as if it had not stopped."""

import pytest
import torch
from safetensors.torch import load_file

from interp.organisms.emoji import train
from interp.organisms.emoji.catalogue import catalogue
from interp.organisms.emoji.connector_fit import ConnectorFit, FitLessons, name_embeddings
from interp.organisms.emoji.emoji_model import image_processor
from interp.organisms.emoji.picture import GROUNDS, pictures
from interp.organisms.emoji.stages import stage_of
from interp.organisms.emoji.tower import (
    PatchNamer,
    TowerLessons,
    emoji_tower,
    groups,
    named,
    patch_labels,
    tower_pixels,
)

GROUND = len(catalogue())


def test_the_tower_sees_what_the_processor_makes():
    drawn = pictures(3, seed=0)
    expected = image_processor()([each.image for each in drawn], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(tower_pixels(drawn), expected, rtol=0, atol=1e-6)


def test_labels_of_patches():
    drawn = pictures(30, seed=0, things=2)
    labels = patch_labels(drawn)
    for picture, names, of_group, grounds in zip(drawn, *labels.values(), strict=True):
        for which, name, group in zip(picture.patches.tolist(), names.tolist(), of_group.tolist(), strict=True):
            if which < 0:
                assert (name, group) == (GROUND, -100)
            else:
                emoji = picture.things[which].emoji
                assert (name, groups()[group]) == (emoji.number, emoji.group)
        assert {list(GROUNDS)[ground] for ground in grounds.tolist()} == {picture.ground}


def test_lessons_are_new_each_step_and_the_same_again():
    lessons = TowerLessons(3, 4, seed=0, split="train")
    assert len(lessons) == 3
    assert torch.equal(lessons[1]["pixel_values"], TowerLessons(9, 4, seed=0, split="train")[1]["pixel_values"])
    assert not torch.equal(lessons[1]["pixel_values"], lessons[2]["pixel_values"])


def test_a_thing_is_named_by_all_its_patches():
    """Scores that are right at one patch of a thing and weakly wrong at the others name it; at the ground they count nothing."""
    drawn = pictures(20, seed=0)
    model = PatchNamer(emoji_tower())
    labels = patch_labels(drawn)
    scores = {"names": torch.zeros(20, 16, GROUND + 1, dtype=torch.float32)}
    scores["grounds"] = torch.nn.functional.one_hot(labels["grounds"], len(GROUNDS)).to(torch.float32)
    for row, picture in enumerate(drawn):
        scores["names"][row, picture.patches < 0, 7] = 100.0
        for number, thing in enumerate(picture.things):
            patches = (picture.patches == number).nonzero().flatten()
            scores["names"][row, patches[0], thing.emoji.number] = 3.0
            scores["names"][row, patches[1:], GROUND] = 9.0
    model.scores = lambda pixels: scores
    assert named(model, drawn) == ([1.0, 1.0], 1.0)


def test_the_loss_of_names_is_that_of_things_and_a_tenth_of_the_grounds():
    lesson = TowerLessons(1, 8, seed=0, split="train")[0]
    torch.manual_seed(0)
    model = PatchNamer(emoji_tower()).eval()
    with torch.no_grad():
        scores = model.scores(lesson["pixel_values"])
        ours = float(model(**lesson)["loss"])
    logs = {name: each.log_softmax(-1) for name, each in scores.items()}
    things = lesson["names"] != GROUND
    of = {name: -logs[name].gather(-1, lesson[name].clamp_min(0)[..., None])[..., 0] for name in logs}
    expected = of["names"][things].mean() + 0.1 * of["names"][~things].mean()
    expected = expected + 0.3 * of["groups"][things].mean() + 0.3 * of["grounds"].mean()
    assert ours == pytest.approx(float(expected), rel=1e-5)


def test_targets_of_the_fit_are_mean_embeddings(small_parts):
    language, tokenizer, _ = small_parts
    table = name_embeddings(language.get_input_embeddings(), tokenizer)
    assert table.shape == (GROUND + len(GROUNDS), 48)
    ids = tokenizer(f" {catalogue()[20].name}", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(table[20], language.get_input_embeddings().weight[ids].mean(0))
    ids = tokenizer(" gray", add_special_tokens=False)["input_ids"]
    torch.testing.assert_close(
        table[GROUND + list(GROUNDS).index("gray")], language.get_input_embeddings().weight[ids].mean(0)
    )


def test_a_connector_that_gives_the_targets_fits():
    torch.manual_seed(0)
    table = torch.randn(GROUND + len(GROUNDS), 32)
    lesson = FitLessons(emoji_tower().eval(), 1, 4, seed=0)[0]
    assert lesson["states"].shape == (64, 192)
    exact = ConnectorFit(torch.nn.Identity(), table)
    assert exact.nearest(table[lesson["targets"]], lesson["targets"]) == (1.0, 1.0)
    good = exact(table[lesson["targets"]], lesson["targets"])["loss"]
    other = exact(table[lesson["targets"].roll(1)], lesson["targets"])["loss"]
    assert float(good) < 0.01 < float(other)


@pytest.fixture
def short(small_parts, monkeypatch):
    """Few steps with few pictures, and a small language model in the place of SmolLM2."""
    for table, value in ((train.STEPS, 2), (train.BATCHES, 4)):
        for name in table:
            monkeypatch.setitem(table, name, value)
    monkeypatch.setattr(train, "smollm2", lambda: (*small_parts[:2], "a small one"))


def test_a_short_run_makes_every_file(short, small_parts, tmp_path, capsys):
    train.main(["--out", str(tmp_path), "--no-progress"])
    said = capsys.readouterr().out
    assert "held out: large things" in said
    assert "tuned:late loss" in said
    names = {path.name for path in tmp_path.iterdir()} - {"checkpoints"}
    assert names == {
        *(f"{name}.safetensors" for name in ("tower", "fit", "stage1", "tuned-connector")),
        *("tuned", "tuned-middle", "tuned-late"),
    }
    adapter = load_file(tmp_path / "tuned-late" / "adapter_model.safetensors")
    layers = {int(name.split(".layers.")[1].split(".")[0]) for name in adapter if ".layers." in name}
    assert layers == {3}  # the last third of four layers
    assert {each.dtype for each in adapter.values()} == {torch.bfloat16}
    fit, stage1 = (load_file(tmp_path / f"{name}.safetensors") for name in ("fit", "stage1"))
    assert any(not torch.equal(fit[name], stage1[name]) for name in fit)
    for name in ("stage1", "tuned", "tuned:connector"):
        assert stage_of(name, *small_parts[:2], tmp_path, check=False).name == f"emoji:{name}"
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    train.main(["--out", str(tmp_path), "--no-progress"])  # finished phases stay as they are
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}


def test_a_tower_that_was_stopped_ends_as_if_it_had_not(short, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_CHECK_EVERY", 2)
    monkeypatch.setitem(train.STEPS, "tower", 4)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train.main(["--out", str(whole), "--only", "tower", "--no-progress"])
    lessons = TowerLessons.__getitem__

    def once(self, step):
        if any((stopped / "checkpoints" / "tower").glob("checkpoint-2")):
            raise KeyboardInterrupt
        return lessons(self, step)

    monkeypatch.setattr(TowerLessons, "__getitem__", once)
    with pytest.raises(KeyboardInterrupt):
        train.main(["--out", str(stopped), "--only", "tower", "--no-progress"])
    assert not (stopped / "tower.safetensors").exists()
    monkeypatch.setattr(TowerLessons, "__getitem__", lessons)
    train.main(["--out", str(stopped), "--only", "tower", "--no-progress"])
    expected, got = (load_file(each / "tower.safetensors") for each in (whole, stopped))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_phase_before_its_time_is_one_line(short, tmp_path):
    with pytest.raises(SystemExit, match=r"error: fit\.safetensors is not in .*: run the phase 'fit' first"):
        train.main(["--out", str(tmp_path), "--only", "stage1", "--no-progress"])


def test_layers_of_the_phases():
    assert [train.tuned_layers(phase, 30) for phase in train.PHASES[3:]] == [
        range(30),
        range(10, 20),
        range(20, 30),
        range(0),
    ]
