"""Every kind of data becomes the batches that prepare makes of its rows."""

import datasets
import pytest
import torch

import interp
from interp.data.batches import batches_of


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
