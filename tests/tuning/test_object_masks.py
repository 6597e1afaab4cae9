"""Masks in every form they come in, and the share of each image token: against what the real processors make lit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

import interp
import processors
from families import family
from interp.data.rows import Row
from interp.models.batches.maker import BatchMaker, ModelInputs
from interp.models.layout.patches import patches_of
from interp.tuning import token_places
from interp.tuning.object_masks import mask_shares, open_mask, open_masks
from interp.tuning.token_places import OutputOrder, token_boxes

PIXELS = np.random.default_rng(0).random((6, 9)) < 0.4
SIZE = (6, 9)


def image_of(pixels, mode="L", value=255):
    return Image.fromarray((pixels * value).astype(np.uint8)).convert(mode)


def palette():
    image = Image.fromarray(PIXELS.astype(np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 0, 0])  # the ground of a palette need not be black
    return image


def runs(pixels):
    flat = pixels.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *edges, len(flat)]).tolist()
    return {"size": list(pixels.shape), "counts": [0, *lengths] if flat[0] else lengths}


def compressed(pixels, text=False):
    rle = coco.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {**rle, "counts": rle["counts"].decode()} if text else rle


@pytest.mark.parametrize(
    "mask",
    [
        PIXELS,
        torch.from_numpy(PIXELS),
        PIXELS.tolist(),
        image_of(PIXELS),
        image_of(PIXELS, value=1),
        image_of(PIXELS, "1"),
        image_of(PIXELS, "RGB", 77),
        palette(),
        Image.fromarray(PIXELS.astype(np.int32)),
        runs(PIXELS),
        compressed(PIXELS),
        compressed(PIXELS, text=True),
    ],
)
def test_every_form_is_the_same_pixels(mask):
    assert torch.equal(open_mask(mask, SIZE), torch.from_numpy(PIXELS))


def test_files_are_opened_and_turned_as_pictures_are(tmp_path):
    plain, turned = tmp_path / "mask.png", tmp_path / "turned.png"
    image_of(PIXELS).save(plain)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn to the right
    image_of(np.rot90(PIXELS)).save(turned, exif=exif)
    for mask in (plain, str(plain), plain.read_bytes(), {"bytes": plain.read_bytes(), "path": None}, turned):
        assert torch.equal(open_mask(mask, SIZE), torch.from_numpy(PIXELS))


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31))
def test_run_lengths_are_any_pixels(height, width, seed):
    pixels = np.random.default_rng(seed).random((height, width)) < 0.5
    pixels[0, 0] = True
    for mask in (runs(pixels), compressed(pixels)):
        assert torch.equal(open_mask(mask, (height, width)), torch.from_numpy(pixels))


def soft():
    values = PIXELS * 255
    values[0, 0] = 128
    return Image.fromarray(values.astype(np.uint8))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (PIXELS.T, r"a mask of 6 x 9 pixels for a picture of 9 x 6"),
        (image_of(PIXELS.T), r"a mask of 6 x 9 pixels for a picture of 9 x 6"),
        ({"size": [9, 6], "counts": [54]}, r"a mask of 6 x 9 pixels for a picture of 9 x 6"),
        ({"size": [10**9, 10**9], "counts": [10**18]}, r"a mask of 1000000000 x 1000000000 pixels"),
        (np.zeros(SIZE, dtype=bool), "the mask is empty"),
        (image_of(PIXELS * 0), "the mask is empty"),
        (compressed(PIXELS * 0), "the mask is empty"),
        (PIXELS.astype(float), "of float64: expected the name of a picture file"),
        (np.zeros((6, 9, 3), dtype=bool), "expected the name of a picture file"),
        ([[[1, 2], [3, 4]]], "expected the name of a picture file"),
        (
            [[True], [True, False]],
            r"the mask is \[\[True\], .*, which is no array: expected the name of a picture file",
        ),
        (7, "7 is a int and not an image"),
        (soft(), "values beside 0, such as .*: expected one, a mask of one object without soft edges"),
        (image_of(PIXELS, "RGBA"), "has transparent pixels"),
        ({"size": [6, 9], "counts": [3, 4]}, "do not fill its size"),
        ({"size": [6, 9], "counts": [3, 40, 70]}, "with counts .*: expected text of COCO or a list of ints"),
        ({"size": [6, 9], "counts": [30, 30]}, "do not fill its size"),
        ({"size": [6, 9], "counts": [-1, 55]}, "with counts .*: expected text of COCO or a list of ints"),
        ({"size": [6, 9], "counts": []}, "with counts .*: expected text of COCO or a list of ints"),
        ({"size": [6, 9], "counts": 3}, "with counts 3: expected text of COCO or a list of ints"),
        ({"size": [6, 9], "counts": ""}, "do not fill its size"),
        ({"size": [6, 9], "counts": "zzzz"}, "do not fill its size"),
        ({"size": [6, 9], "counts": "\u00e9"}, "do not fill its size"),
        ({"size": 6, "counts": [54]}, r"an RLE of size 6: expected \[height, width\]"),
        ({"counts": [54]}, r"an RLE of size None: expected \[height, width\]"),
        ("no/such.png", "'no/such.png' is no file"),
    ],
)
def test_what_cannot_be_read_is_one_line(mask, words):
    with pytest.raises(interp.InputError, match=words) as caught:
        open_mask(mask, SIZE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"words": "red 3", "mask": PIXELS.T}, r"row 4 \('d'\), mask 0: a mask of 6 x 9 pixels"),
        ({"words": "", "mask": PIXELS}, "words='': expected a text or a list of texts, one word or more"),
        ({"words": [], "mask": PIXELS}, r"words=\[\]: expected"),
        ({"words": "red \ud800", "mask": PIXELS}, "words=.*: expected a text"),
        ({"words": ["red", 3], "mask": PIXELS}, "words=.*: expected a text or a list of texts"),
        ({"words": "red"}, "it is .*: expected a dict"),
        ("red", "it is 'red': expected a dict"),
        ({"words": (), "mask": interp.InputError("row 4 names a mask outside")}, "row 4 names a mask outside"),
        ({"words": "red", "mask": PIXELS, "image": 1}, "the row has 1 pictures and the mask says image=1"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_an_entry_that_cannot_be_read_names_its_row(entry, words):
    row = Row(4, "d", None, "<image>", {}, masks=(entry,))
    with pytest.raises(interp.InputError, match=words) as caught:
        open_masks(row, [Image.new("RGB", (9, 6))])
    assert str(caught.value).startswith("row 4 ('d'), mask 0: ")
    assert "\n" not in str(caught.value)


def test_words_are_told_apart_by_spaces_or_by_the_list():
    entries = ({"words": "red 3", "mask": PIXELS}, {"words": ["fire truck", "red"], "mask": PIXELS, "image": 1})
    row = Row(0, "0", None, "<image> <image>", {}, masks=entries[1:])
    (several,) = open_masks(row, [Image.new("RGB", (2, 2)), Image.new("RGB", (9, 6))])
    assert (several.words, several.image) == (("fire truck", "red"), 1)
    (one,) = open_masks(Row(0, "0", None, "<image>", {}, masks=entries[:1]), [Image.new("RGB", (9, 6))])
    assert (one.words, one.image) == (("red", "3"), 0)
    with pytest.raises(
        interp.InputError, match="the row has 2 pictures and the mask says image=None: expected the number"
    ):
        open_masks(Row(0, "0", None, "", {}, masks=entries[:1]), [Image.new("RGB", (9, 6))] * 2)


# Shares ------------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_shares_are_those_of_a_fine_grid(height, width, seed):
    """Boxes whose edges lie on tenths of pixels, counted in pixels that are ten times as fine."""
    draw = np.random.default_rng(seed)
    mask = draw.random((height, width)) < 0.5
    fine = mask.repeat(10, axis=0).repeat(10, axis=1)
    left, right = sorted(draw.choice(10 * width + 1, 2, replace=False))
    top, bottom = sorted(draw.choice(10 * height + 1, 2, replace=False))
    box = [left / (10 * width), top / (10 * height), right / (10 * width), bottom / (10 * height)]
    found = mask_shares(torch.from_numpy(mask), torch.tensor([box, [0, 0, 0, 1]], dtype=torch.float32))
    assert found.tolist() == pytest.approx([fine[top:bottom, left:right].mean(), 0], abs=1e-4)


def test_the_toys_shares_are_its_scenes(toy):
    """A scene's masks, and the patches that its labels give to each object."""
    for scene in interp.toy.scenes(5, seed=3):
        (boxes,) = token_boxes(toy.prepare(["<image>"], [scene.image]), 0)
        for number, mask in enumerate(scene.masks):
            shares = mask_shares(torch.from_numpy(mask), boxes).reshape(6, 6).numpy()
            assert shares == pytest.approx(mask.reshape(6, 8, 6, 8).mean(axis=(1, 3)), abs=1e-5)
            assert not shares[scene.patch_labels != number].any()


def light(batch, grid):
    """How bright each image token's own pixels are, as the tower gets them."""
    pixels, (rows, columns) = batch.inputs["pixel_values"], grid
    if "image_position_ids" in batch.inputs:  # patches with their column and row, four to a token
        x, y = (batch.inputs["image_position_ids"][0].clamp(min=0) // 2).unbind(dim=1)
        real = (batch.inputs["image_position_ids"][0] >= 0).all(dim=1)
        return torch.zeros(rows * columns).index_add(0, (y * columns + x)[real], pixels[0][real].mean(dim=1))
    if pixels.ndim == 2:  # patches, the four that become one token behind each other
        return pixels.mean(dim=1).reshape(rows * columns, -1).mean(dim=1)
    cells = pixels.reshape(-1, *pixels.shape[-3:])[0].mean(dim=0)
    if "image_sizes" in batch.inputs:
        height, width = batch.inputs["image_sizes"][0].tolist()
        cells = cells[:height, :width]
    return cells.reshape(rows, cells.shape[0] // rows, columns, -1).mean(dim=(1, 3)).flatten()


@pytest.mark.parametrize(
    "name", ["llava", "llava_padded", "gemma3", "gemma4", "paligemma", "qwen2_vl", "glm4v", "pixtral"]
)
@pytest.mark.parametrize(("size", "corner"), [((32, 16), (16, 4)), ((32, 16), (11, 6)), ((24, 32), (4, 15))])
def test_a_mask_covers_the_tokens_that_it_lights(name, size, corner):
    """The mask as a picture goes through the real processor: white where it is, black elsewhere."""
    processor = processors.build(name)
    token = processor.tokenizer.convert_tokens_to_ids(processors.IMAGE_TOKENS[name])
    maker = BatchMaker(processor, processor.tokenizer, ModelInputs(token, len(processor.tokenizer)))
    mask = np.zeros(size[::-1], dtype=bool)
    mask[corner[1] : corner[1] + 8, corner[0] : corner[0] + 8] = True
    black, white, seen = (
        maker.prepare(["<image>"], [image_of(each, "RGB")], chat=False)
        for each in (np.zeros_like(mask), np.ones_like(mask), mask)
    )
    (grid,), (boxes,) = seen.positions.grid(0), seen.positions.boxes(0)
    dark, bright, lit = (light(each, grid) for each in (black, white, seen))
    inside = bright - dark > 0.3 * (bright - dark).max()  # the others see padding, nearly or alone
    expected = (lit - dark)[inside] / (bright - dark)[inside]
    shares = mask_shares(torch.from_numpy(mask), boxes)
    assert shares.max() > 0.4
    # Filters that resize a picture blur its edges by about a pixel.
    torch.testing.assert_close(shares[inside], expected, atol=0.2, rtol=0)
    assert float((shares[inside] - expected).abs().mean()) < 0.05


# Places ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen2_5_vl", "glm4v", "gemma3", "paligemma"])
@pytest.mark.parametrize("sizes", [[(40, 28)], [(28, 64), (64, 40)]])
def test_image_tokens_are_the_outputs_that_they_are_said_to_be(name, sizes):
    """The projector's outputs, held by a plain hook, against the states that enter layer 0, up to their length."""
    vlm = family(name)
    draw = np.random.default_rng(1)
    pictures = [Image.fromarray(draw.integers(256, size=(h, w, 3), dtype=np.uint8)) for w, h in sizes]
    batch = vlm.prepare([" ".join(["<image>"] * len(sizes))], [pictures])
    output, states = [], []
    layer = vlm.model.get_submodule(vlm.structure.layers)[0]
    hooks = [
        vlm.model.get_submodule(vlm.structure.projector).register_forward_hook(lambda *each: output.append(each[-1])),
        layer.register_forward_pre_hook(
            lambda module, args, named: states.append((*args, *named.values())[0]), with_kwargs=True
        ),
    ]
    with torch.no_grad():
        vlm.model(**vlm.inputs_of(batch))
    for hook in hooks:
        hook.remove()
    made = output[0] if isinstance(output[0], torch.Tensor) else output[0][0]
    outputs = torch.nn.functional.normalize(made.flatten(0, -2)[OutputOrder(vlm)(batch, 0)], dim=1)
    tokens = torch.nn.functional.normalize(states[0][0][batch.positions["image"][0]], dim=1)
    torch.testing.assert_close(outputs, tokens, atol=1e-4, rtol=0)
    assert [len(each) for each in token_boxes(batch, 0)] == [
        int(batch.positions[f"image_{number}"].sum()) for number in range(len(sizes))
    ]


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "idefics3"])
def test_tokens_of_tiles_are_refused_in_one_line(name):
    with pytest.raises(interp.LayoutError, match="a picture of 64 x 40 form no grid on it") as caught:
        token_boxes(family(name).prepare(["<image>"], [Image.new("RGB", (64, 40))]), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 0), (1, 7)])
def test_an_order_that_is_not_proved_is_refused(toy, few, monkeypatch, row, column):
    """Outputs of the second row in another order than those of the first, and one that is no image token."""

    def otherwise(*arguments):
        found = patches_of(*arguments)
        index, columns = found.index.clone(), found.columns.clone()
        if column:
            index[found.rows == row] = index[found.rows == row].roll(column)
        else:
            columns[found.rows == row] = -1
        return replace(found, index=index, columns=columns)

    monkeypatch.setattr(token_places, "patches_of", otherwise)
    with pytest.raises(interp.LayoutError, match=r"were not proved to be its 36 image tokens, one each[^\n]*$"):
        OutputOrder(toy)(toy.prepare(["<image>"], [few[0].image]), 0)
