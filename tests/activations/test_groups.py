"""Groups of examples: what says that two examples are about one picture, or one prompt."""

import json

import pytest
import torch
from PIL import Image

import interp


@pytest.fixture(scope="module")
def scenes():
    return interp.toy.scenes(3, seed=4, objects=1)


def rows_of(scenes):
    """Two questions about each of two pictures, one of them opened twice, and a text twice."""
    first, second, _ = scenes
    again = Image.frombytes("RGB", first.image.size, first.image.convert("RGB").tobytes())
    asked = [(first.image, "colour ?"), (second.image, "colour ?"), (again, "digit ?"), (second.image, "where ?")]
    return [(picture, f"<image> {text}") for picture, text in asked] + [(None, "colour ?"), (None, "colour ?")]


@pytest.mark.parametrize("out", [False, True])
def test_rows_with_equal_pictures_are_one_group(toy, scenes, tmp_path, out):
    folder = tmp_path / "acts" if out else None
    options = {"positions": "text", "reduce": "none", "progress": False, "batch_size": 1, "rows_per_shard": 1}
    acts = interp.capture(toy, rows_of(scenes), out=folder, **options)
    of_rows = [int(acts.groups("resid")[acts.rows == row].unique()) for row in range(6)]  # one group a row
    assert of_rows == [0, 1, 0, 1, 2, 2]
    part = acts.select(rows=[3, 2, 1])
    assert [int(part.groups("resid")[part.rows == row][0]) for row in range(3)] == [0, 1, 0]
    both = part.concat(acts.select(rows=[0, 4]))
    assert [int(both.groups("resid")[both.rows == row][0]) for row in range(5)] == [0, 1, 0, 1, 2]


def test_rows_that_share_any_picture_are_joined(toy, scenes):
    a, b, c = (scene.image for scene in scenes)
    rows = [((a, b), "<image> <image> colour ?"), (c, "<image> colour ?"), (b, "<image> colour ?")]
    acts = interp.capture(toy, rows, positions="last", progress=False)
    assert acts.groups("resid").tolist() == [0, 1, 0]
    rows.append(((c, a), "<image> <image> digit ?"))
    assert interp.capture(toy, rows, positions="last", progress=False).groups("resid").tolist() == [0] * 4


def test_patches_have_the_group_of_their_picture(toy, scenes):
    rows = [(scenes[number].image, "<image> colour ?") for number in (0, 1, 0)]
    acts = interp.capture(toy, rows, ("resid", "vision"), "last", "none", progress=False)
    assert acts.groups("resid").tolist() == [0, 1, 0]
    assert torch.equal(acts.groups("vision"), torch.tensor([0, 1, 0])[acts.places("vision").rows])


def test_batches_know_their_pictures_and_texts(toy, scenes):
    batch = toy.prepare(texts=["<image> colour ?", "<image> digit ?"], images=[scenes[0].image, scenes[0].image])
    words = toy.prepare(encoding=toy.prepare(texts=["a red 3", "a red 3 at top ."]).inputs)
    acts = interp.capture(toy, [batch, words, words], positions="last", progress=False)
    assert acts.groups("resid").tolist() == [0, 0, 1, 2, 1, 2]
    encoded = toy.prepare(encoding=batch.inputs)  # nobody knows which pixels are whose
    assert interp.capture(toy, [encoded], positions="last", progress=False).groups("resid").tolist() == [0, 1]


def test_a_folder_without_contents_has_rows_as_groups(toy, scenes, tmp_path):
    interp.capture(toy, rows_of(scenes), positions="text", out=tmp_path / "acts", progress=False)
    path = tmp_path / "acts" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert len(manifest.pop("contents")) == 6
    path.write_text(json.dumps(manifest))
    older = interp.open_activations(tmp_path / "acts")
    assert older.groups("resid").tolist() == [0, 1, 2, 3, 4, 5]
    again = interp.capture(toy, rows_of(scenes), positions="text", out=tmp_path / "acts", progress=False)
    assert again.groups("resid").tolist() == [0, 1, 2, 3, 4, 5]
    newer = interp.capture(toy, rows_of(scenes), positions="text", progress=False)
    assert older.concat(newer).groups("resid").tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 6, 7, 8, 8]
