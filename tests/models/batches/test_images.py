"""Images are opened upright and as RGB, and what is no image is refused in one line."""

import pytest
from PIL import Image

import interp
from interp.models.batches.images import images_in, open_image


def test_entries_of_a_row():
    picture = Image.new("RGB", (4, 4))
    for entry, images in ((None, []), (picture, [picture]), ("a.png", ["a.png"]), ((picture, "b"), [picture, "b"])):
        assert images_in(entry) == images


def test_a_file_is_upright_as_its_camera_recorded_it(tmp_path):
    """Exif orientation 6: the camera was turned by a quarter, so the columns of the file are the rows of the picture."""
    picture, exif = Image.new("RGB", (6, 2)), Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.jpg", exif=exif)
    assert open_image(tmp_path / "turned.jpg").size == (2, 6)
    assert open_image(Image.new("L", (6, 2))).mode == "RGB"


def test_files_are_opened(toy, few, tmp_path):
    few[0].image.save(tmp_path / "scene.png")
    from_file = toy.prepare(["<image>"], [tmp_path / "scene.png"])
    assert (from_file.inputs["pixel_values"] == toy.prepare(["<image>"], [few[0].image]).inputs["pixel_values"]).all()


def test_pictures_of_any_size_and_mode(toy):
    batch = toy.prepare(["<image>"], [Image.new("L", (200, 90))])
    assert batch.inputs["pixel_values"].shape == (1, 3, 48, 48)


def test_a_file_that_is_no_image(toy, tmp_path):
    path = tmp_path / "fake.png"
    path.write_text("not a picture")
    with pytest.raises(interp.InputError, match=r"row 0: .*fake.png' is no image of a known format"):
        toy.prepare(["<image>"], [path])
