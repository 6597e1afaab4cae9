"""Real processors, several images a row and none in others: each image's tokens and pixels stay its own."""

import pytest
import torch
from PIL import Image

import interp
import processors
from interp.models.batches.chats import as_chat
from interp.models.batches.grids import patch_grids
from interp.models.batches.maker import BatchMaker, ModelInputs
from interp.models.batches.prompts import encode

WIDE, SQUARE, TALL = (Image.new("RGB", size, colour) for size, colour in
                      (((32, 16), "red"), ((24, 24), "green"), ((16, 40), "blue")))  # fmt: skip
# PaliGemma's processor breaks the text of a row without an image, so it gets an image in every row.
MIXED = [name for name in processors.PROCESSORS if name != "paligemma"]


def maker(name, **more):
    processor = processors.build(name)
    token = processor.tokenizer.convert_tokens_to_ids(processors.IMAGE_TOKENS[name])
    return BatchMaker(processor, processor.tokenizer, ModelInputs(token, len(processor.tokenizer), **more))


def three_rows(name):
    texts = ["nothing to see", "<image> left <image> right", "<image> alone"]
    return maker(name).prepare(texts, [None, [WIDE, SQUARE], TALL], chat=False)


@pytest.mark.parametrize("name", MIXED)
def test_several_images_and_none_in_one_batch(name):
    batch = three_rows(name)
    images, first, second = (batch.positions[kind] for kind in ("image", "image_0", "image_1"))
    assert (first | second == images).all()
    assert not (first & second).any()
    assert first.any(dim=1).tolist() == [False, True, True]
    assert second.any(dim=1).tolist() == [False, True, False]
    assert "image_2" not in batch.positions
    # An image alone has as many tokens as it has beside no other in its row.
    alone = maker(name).prepare(["<image> alone"], [TALL], chat=False)
    assert first[2].sum() == alone.positions["image"].sum()
    # Whatever is written around the images, "left" stands behind the first and before the second.
    word = batch.tokens[1].index("f")
    assert first[1].nonzero().max() < word < second[1].nonzero().min()


@pytest.mark.parametrize("name", MIXED)
def test_padding_on_the_right_moves_tokens_alone(name):
    left, texts = three_rows(name), ["nothing to see", "<image> left <image> right", "<image> alone"]
    right = maker(name).from_texts(texts, [[], [WIDE, SQUARE], [TALL]], {"word": [None, "left", "alone"]}, side="right")
    assert right.positions["all"][:, 0].all()
    real = [batch.positions["all"] for batch in (left, right)]
    assert real[1].sum(dim=1).equal(real[0].sum(dim=1))
    for tensors in ([b.inputs["input_ids"] for b in (left, right)], [b.positions["image"] for b in (left, right)]):
        assert tensors[0][real[0]].equal(tensors[1][real[1]])
    pixels = [batch.inputs["pixel_values"] for batch in (left, right)]
    assert pixels[0].equal(pixels[1])
    words = [
        [token for token, on in zip(right.tokens[row], right.positions["word"][row], strict=True) if on]
        for row in (1, 2)
    ]
    assert ["".join(each) for each in words] == ["left", "alone"]


@pytest.mark.parametrize("name", MIXED)
def test_a_row_keeps_its_own_pixels(name):
    """A row made again alone has the tokens it had, and its pixels are those of its own images."""
    batch = three_rows(name)
    for index, images in enumerate(([], [WIDE, SQUARE], [TALL])):
        row = batch.row(index)
        keep = batch.positions["all"][index]
        assert (row.inputs["input_ids"][0] == batch.inputs["input_ids"][index, keep]).all()
        if images:
            text = batch.texts[index]
            own = maker(name).prepare([text], [images], chat=False).inputs["pixel_values"]
            assert (row.inputs["pixel_values"] == own).all()
        else:
            assert "pixel_values" not in row.inputs


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "pixtral", "gemma3"])
def test_pixels_follow_the_order_of_the_rows(name):
    """Red, green, blue as the rows name them: the light of each channel comes in that order."""
    inputs = three_rows(name).inputs
    pixels = inputs["pixel_values"].float()
    if pixels.ndim == 2:
        pictures = pixels.split(inputs["image_grid_thw"].prod(dim=1).tolist())
        light = torch.stack([picture.unflatten(1, (3, -1)).mean(dim=(0, 2)) for picture in pictures])
    else:
        light = pixels.mean(dim=(2, 3))
    assert light.argmax(dim=1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", processors.PROCESSORS)
def test_a_repeated_row_has_all_its_images_again(name):
    row = maker(name).prepare(["<image> and <image> now"], [[WIDE, TALL]], chat=False)
    twice = row.repeat(2)
    again = maker(name).prepare(["<image> and <image> now"] * 2, [[WIDE, TALL]] * 2, chat=False)
    assert set(twice.inputs) == set(again.inputs)
    assert all((twice.inputs[key] == again.inputs[key]).all() for key in twice.inputs)
    assert (twice.positions["image_1"] == again.positions["image_1"]).all()
    assert twice.positions.grid(1) == row.positions.grid(0)
    assert twice.row(1).tokens == row.tokens


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma4", "pixtral", "llava_next"])
def test_an_encoding_tells_its_images_apart(name):
    """By the processor's own rule, and for grids also where there is no processor."""
    batch = three_rows(name)
    again = maker(name).from_encoding(batch.inputs)
    for kind in ("image_0", "image_1"):
        assert (again.positions[kind] == batch.positions[kind]).all()
    assert again.positions.grids == batch.positions.grids
    assert again.positions.boxes(1) == [None, None]
    bare = BatchMaker(None, None, ModelInputs(maker(name).model_inputs.image_token_id)).from_encoding(batch.inputs)
    if patch_grids(batch.inputs):
        assert (bare.positions["image_1"] == batch.positions["image_1"]).all()
    else:
        assert "image_1" not in bare.positions
        assert bare.positions.grid(1) == [None]


def test_tiles_are_not_taken_for_images():
    """An encoding whose images are in tiles does not say which tile is whose."""
    for name in ("idefics3", "internvl", "aya_vision"):
        found = maker(name).from_encoding(three_rows(name).inputs).positions
        assert "image_0" not in found, name
        assert [found.grid(row) for row in range(3)] == [[], [None], [None]], name


def test_labels_are_no_inputs():
    assert "labels" not in maker("paligemma").prepare(["<image> what"], [WIDE], chat=False).inputs


def test_a_text_that_the_processor_breaks_is_refused():
    with pytest.raises(interp.InputError, match="row 1 has no image, and the processor breaks its text") as caught:
        maker("paligemma").prepare(["<image> what", "nothing to see"], [WIDE, None], chat=False)
    assert "\n" not in str(caught.value)


def test_the_processors_complaint_is_one_line():
    with pytest.raises(interp.InputError, match="processor refuses") as caught:
        maker("paligemma").prepare(["no image at all"], None, chat=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(interp.InputError, match=r"processor refuses.*1 images"):
        maker("qwen2_vl").prepare(["<image> <|image_pad|>"], [WIDE], chat=False)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "glm4v"])
def test_chat_is_the_models_own_template(name):
    batch = maker(name).prepare(["<image> what is this ?", "and now ?"], [WIDE, None], chat=True)
    heads = ["".join(row).replace("Ġ", " ") for row in batch.tokens]
    assert all(head.endswith("assistant:") for head in heads)
    assert [row.count("<bos>") for row in batch.tokens] == [1, 1]
    assert batch.row(0).tokens[0] == batch.tokens[0]
    assert batch.texts[0] == as_chat(processors.build(name), "<image> what is this ?")


def test_a_processor_without_a_padding_token_takes_one_row():
    processor = processors.build("llava")
    kept, processor.tokenizer.pad_token = processor.tokenizer.pad_token, None
    try:
        assert len(maker("llava").prepare(["hello"], None, chat=False)) == 1
        with pytest.raises(interp.InputError, match="padding token"):
            maker("llava").prepare(["hello", "you"], None, chat=False)
    finally:
        processor.tokenizer.pad_token = kept


def test_recording_leaves_the_processor_as_it_was():
    processor = processors.build("qwen2_vl")
    before = processor.tokenizer
    _, prompts = encode(processor, ["<image> what", "hello"], [[WIDE], []])
    assert processor.tokenizer is before
    assert prompts[0].text == "<|image_pad|>" * 8 + " what"
    assert prompts[1].text == "hello"


def test_a_processor_that_puts_images_first():
    """It writes image tokens by itself: a placeholder in the text would be one more than the model fills."""
    processor = processors.blip_2()
    token = processor.tokenizer.convert_tokens_to_ids("<image>")
    made = BatchMaker(processor, processor.tokenizer, ModelInputs(token))
    batch = made.prepare(["<image> what is red", "<image> hi"], [WIDE, TALL], False)
    assert batch.positions["image_0"].sum(dim=1).tolist() == [8, 8]
    assert not batch.positions["image"][:, 8:].any()
    assert "".join(batch.tokens[0][-6:]).replace("Ġ", " ") == "is red"
    assert batch.positions.grid(0) == [None]


def test_images_are_counted_without_a_rule(monkeypatch):
    """A row of as many images, all of which are this one: some processors cut a lone image into tiles, but not several."""
    by_rule = three_rows("llava_onevision").positions
    monkeypatch.setattr("interp.models.batches.maker.own_counts", lambda *_: None)
    for name in MIXED:
        counted = three_rows(name).positions
        assert counted["image_1"].any(dim=1).tolist() == [False, True, False], name
        assert name != "llava_onevision" or (counted["image_1"] == by_rule["image_1"]).all()
