"""Batches: what goes in comes out, row by row, and what does not fit is refused before a model runs."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import interp


def test_padding_is_on_the_left(mixed):
    assert len(mixed) == 3
    assert mixed.positions["last"][:, -1].all()
    assert mixed.tokens[1][-1] == "?"
    assert mixed.tokens[1][0] == "<pad>"
    assert mixed.positions["image"].sum(dim=1).tolist() == [36, 0, 36]
    assert [mixed.positions.grid(row) for row in range(3)] == [[(6, 6)], [], [(6, 6)]]


def test_the_encoding_is_the_processors_own(toy, few):
    batch = toy.prepare(["<image> where is the 3 ?"], [few[0].image])
    own = toy.processor(text=["<image> where is the 3 ?"], images=[few[0].image], return_tensors="pt")
    assert set(batch.inputs) == set(own)
    assert all((batch.inputs[name] == own[name]).all() for name in own)


def test_an_encoding_gives_the_same_batch(toy, mixed):
    again = toy.prepare(encoding=mixed.inputs)
    assert again.tokens == mixed.tokens
    assert (again.positions["image"] == mixed.positions["image"]).all()
    assert (toy.logits(again) == toy.logits(mixed)).all()


def test_an_encoding_may_be_lists_or_arrays(toy, mixed):
    ids, mask = (mixed.inputs[name] for name in ("input_ids", "attention_mask"))
    pixels = mixed.inputs["pixel_values"].numpy()
    listed = {"input_ids": ids.tolist(), "attention_mask": mask.numpy(), "pixel_values": list(pixels), "labels": None}
    assert (toy.logits(toy.prepare(encoding=listed)) == toy.logits(mixed)).all()


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ([1, 2], r"encoding=\[1, 2\]: expected a dict of tensors"),
        ({"input_ids": [[1, 2], [3]]}, r"encoding\['input_ids'\] is a list that makes no tensor: expected .*'pt'"),
        ({"input_ids": [[1, 2]], "text": "where"}, r"encoding\['text'\] is a str that makes no tensor"),
    ],
)
def test_encodings_that_are_none(toy, encoding, words):
    with pytest.raises(interp.InputError, match=words):
        toy.prepare(encoding=encoding)


def test_an_encoding_from_another_device(toy, mixed):
    """Batches are put together on the CPU, wherever their inputs were; a tensor that stands for one on a GPU."""

    class Elsewhere(torch.Tensor):
        def cpu(self):
            return self.as_subclass(torch.Tensor)

    given = {name: value.as_subclass(Elsewhere) for name, value in mixed.inputs.items()}
    assert all(type(value) is torch.Tensor for value in toy.prepare(encoding=given).inputs.values())


@pytest.mark.gpu
def test_an_encoding_on_a_gpu(toy, mixed):
    given = {name: value.cuda() for name, value in mixed.inputs.items()}
    assert (toy.logits(toy.prepare(encoding=given)) == toy.logits(mixed)).all()


def test_right_padding_is_read_from_the_mask(toy):
    texts = ["a red 3 at top . where is the 3 ?", "where is the 3 ?"]
    right = toy.tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
    left = toy.prepare(texts)
    torch.testing.assert_close(toy.logits(toy.prepare(encoding=right)), toy.logits(left), atol=2e-5, rtol=0)


def test_spans_are_found_behind_the_image(toy, few):
    texts = ["<image> what colour is the 3 ?", "what colour is the 7 ?"]
    batch = toy.prepare(texts, [few[0].image, None], spans={"digit": ["the 3", "the 7"], "word": "colour"})
    picked = [
        [t for t, m in zip(ts, ms, strict=True) if m]
        for ts, ms in zip(batch.tokens, batch.positions["digit"], strict=True)
    ]
    assert picked == [["the", "3"], ["the", "7"]]
    assert batch.positions["word"].sum(dim=1).tolist() == [1, 1]
    assert batch.row(0).positions["digit"].sum() == 2


PICTURE = Image.new("RGB", (48, 48))


@pytest.mark.parametrize(
    ("texts", "images", "words"),
    [
        ([], None, "batch is empty"),
        ("<image>", [PICTURE], "texts='<image>' is one str: expected a list of strings"),
        (5, None, "texts=5 is one int"),
        ([3], None, "3 among the texts is a int"),
        (["a", None], None, "None among the texts is a NoneType: expected strings"),
        (["<image>"], ["nowhere.png"], "'nowhere.png' is no file"),
        (["<image>"], [b"x"], "is not an image"),
        (["<image>"], b"x", "images=b'x' is one bytes: expected a list of pictures"),
        (["<image>"], {"path": "a.png"}, "is one dict: expected a list of pictures"),
        (["<image>"], np.zeros((48, 48, 3), np.uint8), "is one ndarray: expected a list of pictures"),
        (["<image>"], io.BytesIO(b"x"), "is one BytesIO: expected a list of pictures"),
        (["<image>"], [np.zeros((48, 48, 3))], r"ndarray of shape \(48, 48, 3\) is not an image: expected a PIL image"),
        (["<image>"], 5, "images=5 is one int: expected a list of pictures, one entry a row"),
        (["<image>"], PICTURE, "is one Image: expected a list of pictures"),
        (["<image>"], "scene.png", "images='scene.png' is one str"),
        (
            ["what is this ?"],
            [PICTURE],
            "has 0 <image>, but the row has 1 images: put one <image> in the text for each image",
        ),
        (["<image> <image>"], [PICTURE], "has 2 <image>, but the row has 1 images"),
        (["<image>"], None, "has 1 <image>, but the row has 0 images"),
        (["<image>"], [PICTURE, PICTURE], "1 texts and 2 images"),
    ],
)
def test_what_does_not_fit_is_refused(toy, texts, images, words):
    with pytest.raises(interp.InputError, match=words) as caught:
        toy.prepare(texts, images)
    assert "\n" not in str(caught.value)


def test_other_refusals(toy, mixed, tiny):
    with pytest.raises(interp.InputError, match="no chat template"):
        toy.prepare(["hello"], chat=True)
    with pytest.raises(interp.InputError, match="occurs 0 times in row 0"):
        toy.prepare(["where is the 3 ?"], spans={"x": "blue"})
    with pytest.raises(interp.InputError, match="kind of position"):
        toy.prepare(["where is the 3 ?"], spans={"image": "where"})
    with pytest.raises(interp.InputError, match="one or the other"):
        toy.prepare(["a"], encoding=mixed.inputs)
    with pytest.raises(interp.InputError, match="input_ids of shape"):
        toy.prepare(encoding={"input_ids": torch.zeros(1, 0, dtype=torch.long)})
    with pytest.raises(interp.InputError, match="span 1: its name is a int, expected a string"):
        toy.prepare(["where is the 3 ?"], spans={1: "where"})
    with pytest.raises(interp.InputError, match="without a processor"):
        interp.load(model=tiny).prepare(["hello"])


def test_a_padded_row_counts_its_own_positions(toy):
    """The inputs are all that the model gets: transformers alone, given them, computes the same to the last bit."""
    batch = toy.prepare(["where is the 3 ?", "a red 3 at top . where is the 3 ?"])
    assert batch.inputs["position_ids"][0].tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5]
    with torch.no_grad():
        assert (toy.model(**batch.inputs).logits == toy.logits(batch, positions="all")).all()
    assert "position_ids" not in batch.row(0).inputs
    assert (toy.prepare(encoding=batch.inputs).inputs["position_ids"] == batch.inputs["position_ids"]).all()
