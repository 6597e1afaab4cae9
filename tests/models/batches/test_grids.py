"""Where image tokens lie on the picture: planted truth, a bright place whose patch the real processors show.

A picture is black but for one small square. What a processor makes of it is bright at one place, and the box of the
token that holds that place has to hold the square.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import processors
from interp.models.batches.grids import Sheet, boxes_of, find_grid, find_sheets, measure_window
from interp.models.batches.maker import BatchMaker, ModelInputs

SQUARE = 4  # pixels a side of the bright square


def maker(name):
    processor = processors.build(name)
    token = processor.tokenizer.convert_tokens_to_ids(processors.IMAGE_TOKENS[name])
    return BatchMaker(processor, processor.tokenizer, ModelInputs(token, len(processor.tokenizer)))


def bright(size, corner):
    picture = Image.new("RGB", size)
    picture.paste((255, 255, 255), (*corner, corner[0] + SQUARE, corner[1] + SQUARE))
    return picture


def brightest_token(batch, dark, grid):
    """The token whose share of the pixels gained most over those of a black picture, as the tower gets them."""
    pixels = batch.inputs["pixel_values"] - dark.inputs["pixel_values"]
    rows, columns = grid
    if "image_position_ids" in batch.inputs:  # patches with their column and row, four to a token
        x, y = (batch.inputs["image_position_ids"][0].clamp(min=0) // 2).unbind(dim=1)
        return int(torch.zeros(rows * columns).index_add(0, y * columns + x, pixels[0].sum(dim=1)).argmax())
    if pixels.ndim == 2:  # patches, the four that become one token behind each other
        return int(pixels.sum(dim=1).reshape(rows * columns, -1).sum(dim=1).argmax())
    light = pixels[0].sum(dim=0)
    if "image_sizes" in batch.inputs:
        height, width = batch.inputs["image_sizes"][0].tolist()
        light = light[:height, :width]
    cells = light.reshape(rows, light.shape[0] // rows, columns, light.shape[1] // columns).sum(dim=(1, 3))
    return int(cells.argmax())


@pytest.mark.parametrize(
    "name", ["llava", "llava_padded", "gemma3", "gemma4", "paligemma", "qwen2_vl", "glm4v", "pixtral"]
)
@pytest.mark.parametrize(("size", "corner"), [((32, 16), (16, 4)), ((32, 16), (12, 8)), ((24, 32), (4, 16))])
def test_the_brightest_token_holds_the_bright_square(name, size, corner):
    batch = maker(name).prepare(["<image> where ?"], [bright(size, corner)], chat=False)
    dark = maker(name).prepare(["<image> where ?"], [Image.new("RGB", size)], chat=False)
    (grid,), (boxes,) = batch.positions.grid(0), batch.positions.boxes(0)
    assert boxes.shape == (int(batch.positions["image"].sum()), 4)
    left, top, right, bottom = (boxes[brightest_token(batch, dark, grid)] * torch.tensor([*size, *size])).tolist()
    middle = [edge + SQUARE / 2 for edge in corner]
    slack = 0.5
    assert left - slack <= middle[0] <= right + slack
    assert top - slack <= middle[1] <= bottom + slack


def test_a_crop_leaves_the_borders_out():
    """32 x 16 pixels, the middle 16 x 16 of them cut out: 4 x 4 tokens of 4 x 4 pixels, from a quarter on."""
    (boxes,) = maker("llava").prepare(["<image>"], [Image.new("RGB", (32, 16))], chat=False).positions.boxes(0)
    pixels = boxes * torch.tensor([32, 16, 32, 16])
    torch.testing.assert_close(pixels[0], torch.tensor([8.0, 0, 12, 4]), atol=0.05, rtol=0)
    torch.testing.assert_close(pixels[-1], torch.tensor([20.0, 12, 24, 16]), atol=0.05, rtol=0)


def test_padding_lies_outside_the_picture():
    """32 x 16 pixels in a square of 32: the first and last of four rows of tokens see padding alone."""
    (boxes,) = maker("llava_padded").prepare(["<image>"], [Image.new("RGB", (32, 16))], chat=False).positions.boxes(0)
    heights = ((boxes[:, 3] - boxes[:, 1]) * 16).reshape(4, 4)
    torch.testing.assert_close(heights.mean(dim=1), torch.tensor([0.0, 8, 8, 0]), atol=0.3, rtol=0)


def test_a_picture_resized_as_a_whole_is_covered():
    for name in ("qwen2_vl", "pixtral", "gemma3", "gemma4"):
        (boxes,) = maker(name).prepare(["<image>"], [Image.new("RGB", (32, 24))], chat=False).positions.boxes(0)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        assert area.sum() == pytest.approx(1, abs=1e-5), name
        assert boxes.min() == 0, name
        assert boxes.max() == 1, name


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_boxes_tile_the_picture(rows, columns, patch):
    sheet = Sheet(rows * patch, columns * patch)
    assert find_grid(rows * columns, sheet) == (rows, columns)
    boxes = boxes_of((rows, columns), sheet, (0.0, 0.0, 1.0, 1.0))
    left, top, right, bottom = boxes.unbind(dim=1)
    assert ((right - left) * (bottom - top)).sum().item() == pytest.approx(1, abs=1e-5)
    assert (left[::columns] == 0).all()
    assert (top[:columns] == 0).all()


@given(st.integers(1, 400), st.integers(1, 40), st.integers(1, 40))
def test_a_grid_is_a_rectangle_of_whole_patches(tokens, rows, columns):
    grid = find_grid(tokens, Sheet(rows, columns))
    if grid is not None:
        assert grid[0] * grid[1] == tokens
        assert rows % grid[0] == 0
        assert columns % grid[1] == 0


def test_queries_that_are_no_patches_have_no_grid():
    """64 learned queries of a square picture are a square number, but 70 patches a side are not eight of anything."""
    inputs = {"pixel_values": torch.ones(1, 3, 980, 980)}
    (sheet,) = find_sheets(inputs, 1, patch_size=14)
    assert sheet == Sheet(70, 70)
    assert find_grid(64, sheet) is None


def test_a_rest_narrower_than_a_patch_is_not_seen():
    (sheet,) = find_sheets({"pixel_values": torch.ones(1, 3, 10, 14)}, 1, patch_size=4)
    assert sheet == Sheet(2, 3, 0.8, 12 / 14)
    boxes = boxes_of((2, 3), sheet, (0.0, 0.0, 1.0, 1.0))
    torch.testing.assert_close(boxes[-1], torch.tensor([8 / 14, 0.4, 12 / 14, 0.8]))


def test_sheets_come_from_the_encoding():
    pixels = torch.ones(2, 3, 8, 12)
    assert find_sheets({"pixel_values": pixels}, 2) == [Sheet(8, 12)] * 2
    assert find_sheets({"pixel_values": pixels}, 1) == [None]
    assert find_sheets({}, 1) == [None]
    # Padded to the largest, with the size of each beside it; sizes before a resize are no sizes of these pictures.
    sizes = torch.tensor([[8, 4], [4, 12]])
    assert find_sheets({"pixel_values": pixels, "image_sizes": sizes}, 2) == [Sheet(8, 4), Sheet(4, 12)]
    assert find_sheets({"pixel_values": pixels, "image_sizes": 2 * sizes}, 2) == [None, None]
    # Patches in a row, of one frame or of several.
    grids = torch.tensor([[1, 4, 6], [2, 4, 6]])
    assert find_sheets({"pixel_values": torch.ones(72, 9), "image_grid_thw": grids}, 2) == [Sheet(4, 6), None]
    shapes = {"pixel_values": torch.ones(2, 24, 9), "spatial_shapes": torch.tensor([[4, 6], [2, 8]])}
    assert find_sheets(shapes, 2) == [Sheet(4, 6), Sheet(2, 8)]
    # A row's tiles on an axis of their own: one each is one picture, the second of the other row is none at all.
    tiles = torch.ones(2, 2, 3, 8, 8)
    assert find_sheets({"pixel_values": tiles}, 2) == [None, None]
    tiles[1, 1] = 0
    assert find_sheets({"pixel_values": tiles}, 3) == [Sheet(8, 8)] * 3


def test_several_tiles_are_no_rectangle():
    for name in ("llava_next", "llava_onevision", "idefics3", "internvl", "aya_vision"):
        batch = maker(name).prepare(["<image>"], [Image.new("RGB", (32, 16))], chat=False)
        assert batch.positions.grid(0) == [None], name
        assert batch.positions.boxes(0) == [None], name


def test_one_tile_is_a_rectangle():
    processor = processors.idefics3(split=False)
    token = processor.tokenizer.convert_tokens_to_ids("<image>")
    red = Image.new("RGB", (32, 32), "red")
    texts = ["<image>", "hi", "<image> and <image>"]
    batch = BatchMaker(processor, processor.tokenizer, ModelInputs(token)).prepare(
        texts, [red, None, [red, red]], False
    )
    assert [batch.positions.grid(row) for row in range(3)] == [[(4, 4)], [], [(4, 4)] * 2]


def test_a_window_that_cannot_be_measured():
    def upside_down(picture):
        flipped = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.tensor(list(flipped.getdata()), dtype=torch.float32).reshape(*flipped.size[::-1], 3)
        return {"pixel_values": pixels.permute(2, 0, 1)[None]}

    assert measure_window(upside_down, (16, 8)) is None
    assert measure_window(lambda picture: {}, (16, 8)) is None
    assert measure_window(lambda picture: {"pixel_values": torch.ones(5, 3, 4, 4)}, (16, 8)) is None
    # Patches in a row of which one is padding: where the others come from is not known.
    light = torch.tensor([[1.0], [1.0], [0.0]])
    assert measure_window(lambda p: {"pixel_values": light * p.getpixel((0, 0))[0]}, (16, 8)) is None


@pytest.mark.parametrize("size", [(300, 40), (17, 500), (640, 480)])
def test_a_window_of_large_pictures_is_exact(size):
    """CLIP's crop of a picture with more columns than eight bits have levels."""
    images = processors.clip_images(size=64)
    found = measure_window(lambda picture: images(picture, return_tensors="pt"), size)
    width, height = size
    short = min(size)
    expected = ((1 - short / width) / 2, (1 - short / height) / 2, (1 + short / width) / 2, (1 + short / height) / 2)
    assert found == pytest.approx(expected, abs=0.01)
