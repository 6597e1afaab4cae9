"""Spans mean what the user wrote, wherever template, placeholders and padding have put it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import interp
import processors
from interp.models.batches.maker import BatchMaker, ModelInputs

PICTURE, TALL = Image.new("RGB", (32, 16)), Image.new("RGB", (16, 40))


def maker(name):
    processor = processors.build(name)
    token = processor.tokenizer.convert_tokens_to_ids(processors.IMAGE_TOKENS[name])
    return BatchMaker(processor, processor.tokenizer, ModelInputs(token, len(processor.tokenizer)))


def words(batch, name):
    """What the tokens of a span say, row by row; a token is a byte here."""
    picked = [
        [token for token, chosen in zip(tokens, mask, strict=True) if chosen]
        for tokens, mask in zip(batch.tokens, batch.positions[name], strict=True)
    ]
    return ["".join(row).replace("Ġ", " ") for row in picked]


@pytest.mark.parametrize("name", processors.PROCESSORS)
def test_a_span_is_found_behind_any_images(name):
    texts = ["<image> what is red and <image> what is blue", "<image> is it blue"]
    spans = {"colour": ["red", "blue"], "range": [(32, 44), (8, 10)]}
    batch = maker(name).prepare(texts, [[PICTURE, TALL], PICTURE], False, spans)
    assert words(batch, "colour") == ["red", "blue"]
    assert words(batch, "range") == [texts[0][32:44], "is"]


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "glm4v"])
@pytest.mark.parametrize("chat", [False, True])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_range_of_the_users_text(name, chat, data):
    """Also of text that stands twice, and of the parts of one range on both sides of an image."""
    text = "<image> one fish <image> one fish"
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    made = maker(name)
    written = {index for index in range(start, end)}
    pieces = {7: " one fish ", 24: " one fish"}
    expected = ""
    for at, piece in pieces.items():
        kept = range(at + 1, at + len(piece.rstrip())) if chat else range(at, at + len(piece))
        expected += "".join(text[index] for index in sorted(written & set(kept)))
    images = [number for number, at in enumerate((0, 17)) if written & set(range(at, at + 7))]
    if not expected and not images:
        with pytest.raises(interp.InputError, match="holds no token"):
            made.prepare([text], [[PICTURE, TALL]], chat, {"part": (start, end)})
        return
    batch = made.prepare([text], [[PICTURE, TALL]], chat, {"part": (start, end)})
    part = batch.positions["part"]
    for number in range(2):
        tokens = batch.positions[f"image_{number}"]
        assert bool((part & tokens).any()) == (number in images)
        assert number not in images or (part & tokens == tokens).all()
    only_text = [
        token for token, chosen in zip(batch.tokens[0], (part & ~batch.positions["image"])[0], strict=True) if chosen
    ]
    assert "".join(only_text).replace("Ġ", " ") == expected


def test_spans_of_every_form():
    """One dict for all rows or one a row; strings, ranges, ints, masks over the batch, a row or its real tokens."""
    made = maker("llava")
    texts = ["abc def", "<image> xy"]
    plain = made.prepare(texts, [None, PICTURE], False)
    seq = plain.positions["all"].shape[1]
    whole = plain.positions["last"]
    both = made.prepare(texts, [None, PICTURE], False, {"end": whole, "tail": [-1, -2], "one": -1})
    assert words(both, "end") == ["f", "y"]
    assert words(both, "tail") == ["ef", "xy"]
    assert words(both, "one") == ["f", "y"]
    row = torch.zeros(seq, dtype=torch.bool)
    row[-1] = True
    real = torch.zeros(int(plain.positions["all"][0].sum()), dtype=torch.bool)
    real[1] = True
    spans = [{"x": "abc", "y": real, "z": (4, 7)}, {"x": row, "y": [-2]}]
    each = made.prepare(texts, [None, PICTURE], False, spans)
    assert words(each, "x") == ["abc", "y"]
    assert words(each, "y") == ["a", "x"]
    assert words(each, "z") == ["def", ""]
    assert words(each.row(0), "z") == ["def"]
    assert words(each.row(1), "z") == [""]
    encoding = made.from_encoding(plain.inputs, {"end": whole, "tail": [-1]})
    assert words(encoding, "end") == words(encoding, "tail") == ["f", "y"]


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "pixtral", "gemma3"])
def test_a_mask_of_patches(name):
    """One row, one mask; the token of row 1, column 2 is there whatever stands between the rows of patches."""
    picture, made = Image.new("RGB", (32, 32)), maker(name)
    plain = made.prepare(["<image> a", "<image> bcd"], [picture, picture], False)
    rows, columns = plain.positions.grid(0)[0]
    patches = np.zeros((rows, columns), dtype=bool)
    patches[1, columns - 1] = patches[0, 0] = True
    forms = [
        [{"x": patches}, {"x": torch.tensor(patches)}],
        {"x": [patches, patches]},
        {"x": np.stack([patches, patches])},
        {"x": torch.tensor(np.stack([patches, patches]))},
    ]
    for spans in forms:
        batch = made.prepare(["<image> a", "<image> bcd"], [picture, picture], False, spans)
        for row in range(2):
            image = batch.positions["image"][row].nonzero().flatten()
            chosen = batch.positions["x"][row].nonzero().flatten()
            assert chosen.tolist() == image[[0, 2 * columns - 1]].tolist()
        part = batch.row(0).repeat(2)
        assert part.positions["x"].sum(dim=1).tolist() == [2, 2]
    with pytest.raises(interp.InputError, match="rows and columns of its patches"):
        made.prepare(["<image> a"], [picture], False, [{"x": patches[1:]}])
    with pytest.raises(interp.InputError, match=r"expected \(\d+,\) \(seq, or the real tokens of row 0\)"):
        made.prepare(["<image> <image> a"], [[picture, picture]], False, [{"x": patches}])
    with pytest.raises(interp.InputError, match="holds no token of row 0") as caught:
        made.prepare(["<image> a"], [picture], False, [{"x": ~patches & patches}])
    assert "\n" not in str(caught.value)
    with pytest.raises(interp.InputError, match="1 spans for 2 rows"):
        made.prepare(["<image> a", "<image> b"], [picture, picture], False, {"x": patches[None]})


MASK = torch.ones(1, 8, dtype=torch.bool)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ({"x": "blue"}, "'blue' occurs 0 times in row 0"),
        ({"x": "e"}, "'e' occurs 2 times in row 0"),
        ({"x": ""}, "occurs 0 times"),
        ({"x": (3, 99)}, r"\(3, 99\) is not a range of the 7 characters"),
        ({"x": (4, 4)}, r"\(4, 4\) is not a range"),
        ({"x": (-3, 2)}, r"\(-3, 2\) is not a range"),
        ({"x": MASK.float()}, "tensor of torch.float32: expected a bool mask"),
        ({"x": MASK[:, 1:]}, r"shape \(1, 7\): expected \(1, 8\)"),
        ({"x": ~MASK}, "holds no real token"),
        ([{"x": MASK}], r"shape \(1, 8\): expected \(8,\)"),
        ([{"x": ~MASK[0]}], "holds no token of row 0"),
        ({"x": [8]}, "row 0 has 8 real tokens"),
        ({"x": ["the", "red"]}, "2 spans for 1 rows"),
        ([{}, {}], "2 dicts for 1 rows"),
        ({"x": 1.5}, "is 1.5: expected a string"),
        ({"image_3": "red"}, "name of a kind of position"),
        ("red", "expected a dict of names"),
    ],
)
def test_spans_that_are_refused(spans, message):
    with pytest.raises(interp.InputError, match=message) as caught:
        maker("llava").prepare(["the red"], None, False, spans)
    assert "\n" not in str(caught.value)


def test_text_that_a_template_makes_unclear():
    """A lone letter stands in the template's own words too: which of them is meant cannot be said."""
    with pytest.raises(interp.InputError, match="does not occur once in"):
        maker("llava").prepare(["a"], None, True, {"x": "a"})
    assert words(maker("llava").prepare(["a"], None, False, {"x": "a"}), "x") == ["a"]


def test_words_of_an_encoding():
    with pytest.raises(interp.InputError, match="text of row 0 of an encoding is not known"):
        maker("llava").from_encoding(maker("llava").prepare(["the red"], None, False).inputs, {"x": "red"})


def test_numpys_ints_count_tokens_too():
    batches = [
        maker("llava").prepare(["the red"], None, False, {"x": span}) for span in (2, np.int64(2), [np.int64(2)])
    ]
    assert all(torch.equal(batch.positions["x"], batches[0].positions["x"]) for batch in batches)
    with pytest.raises(interp.InputError, match="expected a string, a"):
        maker("llava").prepare(["the red"], None, False, {"x": True})
