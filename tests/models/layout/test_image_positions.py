"""Another picture changes every patch and nothing else, and what it moves are the image positions."""

import torch

import zoo
from interp.models.layout.image_positions import find_images, images_see_later_tokens, other_picture
from zoo.table import batch, load


def other(**inputs):
    return other_picture(inputs, torch.Generator().manual_seed(0))


def test_every_pixel_changes_and_no_other_input():
    ids, pixels = torch.arange(6)[None], torch.rand(2, 3, 4, 4)
    picture = other(input_ids=ids, pixel_values=pixels)
    assert picture["input_ids"] is ids
    assert (picture["pixel_values"] != pixels).all()
    assert picture["pixel_values"].dtype == pixels.dtype


def test_empty_tiles_stay_empty():
    """Models count the tiles of a row by those that are not zero."""
    tiles = torch.rand(2, 3, 3, 4, 4)
    tiles[1, 2] = 0
    picture = other(pixel_values=tiles)["pixel_values"]
    assert ((picture == 0).flatten(2).all(dim=2) == (tiles == 0).flatten(2).all(dim=2)).all()
    assert (picture != tiles).flatten(2).all(dim=2).tolist() == [[True] * 3, [True, True, False]]


def test_places_of_patches_stay():
    """Some encodings write the row and the column of a patch before its pixels."""
    patches = torch.rand(1, 5, 8)
    patches[0, :, 0], patches[0, :, 1] = torch.arange(5), 3
    assert (other(flattened_patches=patches)["flattened_patches"] == patches).all(dim=(0, 1)).tolist() == [
        *[True] * 2,
        *[False] * 6,
    ]


def test_image_positions_are_those_that_a_picture_moves():
    for name in ("llava", "qwen2_vl", "idefics3"):
        rows = batch(name)
        assert torch.equal(find_images(load(name), rows.inputs), rows.positions["image"])


def test_who_sees_later_image_tokens():
    assert images_see_later_tokens(load("gemma3"), batch("gemma3")) is True
    assert images_see_later_tokens(load("llava"), batch("llava")) is False
    text = load("llava").prepare(encoding=zoo.pad([[5, 6, 7], [8]]))
    assert images_see_later_tokens(load("llava"), text) is None
