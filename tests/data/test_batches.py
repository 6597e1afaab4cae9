"""Every kind of data becomes the batches that prepare makes of its rows."""

import json
from functools import partial

import datasets
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import interp
from interp.data.batches import batches_of
from interp.words.projector import projector_report


def test_all_kinds_are_one(toy, few, tmp_path):
    expected = [toy.prepare(["<image>"] * 2, [few[0].image, few[1].image]), toy.prepare(["<image>"], [few[2].image])]
    for index, scene in enumerate(few):
        scene.image.save(tmp_path / f"{index}.png")
    table = datasets.Dataset.from_dict({"image": [scene.image for scene in few], "text": ["<image>"] * 3})
    for data in (few, [(scene.image, None) for scene in few], tmp_path, table, expected, tuple(expected)):
        found = batches_of(toy, data, 2)
        assert [len(batch) for batch in found] == [2, 1]
        for batch, wanted in zip(found, expected, strict=True):
            assert batch.inputs.keys() == wanted.inputs.keys()
            assert all(torch.equal(batch.inputs[name], wanted.inputs[name]) for name in wanted.inputs)
    assert batches_of(toy, expected[0], 1) == [expected[0]]


@pytest.mark.parametrize(
    ("data", "size", "words"),
    [
        ([], 8, "data is empty"),
        ([("a", "b")], 0, "batch_size=0: expected an int of 1 or more"),
        ([("a", "b")], True, "batch_size=True: expected"),
        ([("nowhere.png", "<image>")], 8, "'nowhere.png' is no file"),
        (3, 8, "data is a int: expected a list of Batch"),
        (None, 8, "data is a NoneType: expected a list of Batch"),
    ],
)
def test_what_is_no_data(toy, data, size, words):
    with pytest.raises(interp.InterpError, match=words) as caught:
        batches_of(toy, data, size)
    assert "\n" not in str(caught.value)


def test_a_data_says_how_rows_become_batches(toy, few, tmp_path):
    for index, scene in enumerate(few):
        scene.image.save(tmp_path / f"{index}.png")
    rows = [{"file_name": f"{index}.png", "caption": scene.caption} for index, scene in enumerate(few)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = interp.Data(tmp_path, prompt="<image> {caption}")
    (batch,) = batches_of(toy, data, 8)
    wanted = toy.prepare([f"<image> {scene.caption}" for scene in few], [scene.image for scene in few])
    assert all(torch.equal(batch.inputs[name], wanted.inputs[name]) for name in wanted.inputs)
    (texts,) = batches_of(toy, interp.Data(tmp_path, prompt="{caption}"), 8)
    assert not texts.has_images
    with pytest.raises(interp.InputError, match="no chat template"):
        batches_of(toy, interp.Data(["a"], chat=True), 8)


def test_rows_that_cannot_be_read_are_left_out_with_one_warning(toy, few):
    bad = ("nowhere.png", "<image>")
    pairs = [(few[0].image, "<image>"), bad, (few[1].image, "<image>"), bad, bad, (few[2].image, "<image>")]
    with pytest.warns(
        UserWarning, match=r"3 rows of the data are left out: the first error was row 1 \('1'\)"
    ) as caught:
        found = batches_of(toy, interp.Data(pairs, on_error="skip"), 1)
    assert len(caught) == 1
    assert [len(batch) for batch in found] == [1, 1, 1]
    wanted = batches_of(toy, few, 1)
    assert all(
        torch.equal(one.inputs["pixel_values"], two.inputs["pixel_values"])
        for one, two in zip(found, wanted, strict=True)
    )
    with pytest.raises(interp.InputError, match=r"none of 2 rows of the data could be read: .*row 0 .*nowhere.png"):
        batches_of(toy, interp.Data([bad, bad], on_error="skip"), 8)


def test_what_runs_whole_data_sets_takes_a_data(toy, tmp_path):
    """A lens is fitted on the captions of a folder, and the projector is measured on its pictures."""
    scenes = interp.toy.scenes(8, seed=3)
    for index, scene in enumerate(scenes):
        scene.image.save(tmp_path / f"{index}.png")
    rows = [{"file_name": f"{index}.png", "caption": scene.caption} for index, scene in enumerate(scenes)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = interp.Data(tmp_path, prompt="<image> {caption}")
    pairs = [(scene.image, f"<image> {scene.caption}") for scene in scenes]
    for run in (partial(interp.lens.TunedLens.fit, epochs=1), partial(projector_report, shuffles=1)):
        assert run(toy, data).provenance.data == run(toy, pairs).provenance.data


def test_rows_that_are_longer_than_the_table_of_positions(bare):
    """They are at fault by themselves: skipped, or named as the data names them."""
    config = GPT2Config(vocab_size=75, n_embd=32, n_layer=2, n_head=4, n_positions=24)
    vlm = interp.load(model=GPT2LMHeadModel(config).eval(), processor=bare.tokenizer, check=False)
    texts = ["a red 3", "a blue 4", "a red 3 at top . " * 10, "a green 7"]
    with pytest.warns(
        UserWarning, match=r"1 rows of the data are left out: .* row 2 \('2'\) has 61 tokens, .* end at 24"
    ):
        assert [len(batch) for batch in batches_of(vlm, interp.Data(texts, on_error="skip"), 2)] == [2, 1]
    with pytest.raises(interp.InputError, match=r"^row 2 \('2'\) has 61 tokens"):
        batches_of(vlm, texts, 2)
