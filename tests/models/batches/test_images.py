"""Every picture becomes the same upright RGB pixels, however it comes in, and what is no picture is refused in one line."""

import contextlib
import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

import interp
from interp.models.batches.images import images_in, open_image

NOISE = np.random.default_rng(0).integers(0, 256, (6, 10, 3)).astype(np.uint8)
PICTURE = Image.fromarray(NOISE)
GREY = np.array(PICTURE.convert("L"))
# What each orientation tag says of the stored pixels, by the Exif standard: how to turn them to show them.
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
SIXTEEN = (GREY.astype(np.uint16) << 8) + 77


def pixels(picture):
    image = open_image(picture)
    assert image.mode == "RGB"
    return np.array(image)


def saved(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def tag(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def test_entries_of_a_row():
    picture = Image.new("RGB", (4, 4))
    for entry, images in ((None, []), (picture, [picture]), ("a.png", ["a.png"]), ((picture, "b"), [picture, "b"])):
        assert images_in(entry) == images


# Orientation -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_a_picture_is_upright_in_every_form(orientation, form, tmp_path):
    """As a path, bytes, an open file, a dict and a PIL image in hand; and no picture is turned a second time."""
    content = saved(PICTURE, form, exif=tag(orientation), **({"lossless": True} if form == "WEBP" else {}))
    path = tmp_path / "ü 漢.dat"
    path.write_bytes(content)
    upright = TURNS[orientation](NOISE)
    lazy, turned = Image.open(path), ImageOps.exif_transpose(Image.open(path))
    stream = io.BytesIO(content)
    stream.read(7)
    forms = [path, str(path), content, bytearray(content), memoryview(content), stream, lazy, turned, open_image(path)]
    forms += [{"bytes": content, "path": None}, {"path": str(path)}, {"bytes": None, "path": path}, path.open("rb")]
    for each in [*forms, stream, lazy]:  # the last two once more
        assert np.array_equal(pixels(each), upright), each
    assert stream.tell() == 7


@pytest.mark.parametrize(
    "mode", ["L", "RGBA", "CMYK", "YCbCr", "P", "1", "LA", "PA", "La", "RGBa", "I;16", "I;16B", "F"]
)
def test_the_tag_of_an_image_in_hand_counts_in_every_mode(mode):
    image = in_mode(mode)
    plain = pixels(image)
    for orientation, turn in TURNS.items():
        tagged = image.copy()  # Pillow reads the tags of an image once
        tagged.info["exif"] = tag(orientation)
        assert np.array_equal(pixels(tagged), turn(plain)), orientation


def test_a_tag_that_cannot_be_read_counts_as_none():
    for broken in (b"Exif\0\0garbage", b"", tag(9)):
        image = PICTURE.copy()
        image.info["exif"] = broken
        assert np.array_equal(pixels(image), NOISE)


def test_what_is_captured_does_not_depend_on_how_a_picture_comes_in(toy, few, tmp_path):
    upright = few[0].image
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    path = tmp_path / "phone.png"
    stored.save(path, exif=tag(6))
    wanted = toy.prepare(["<image>"], [upright]).inputs["pixel_values"]
    for picture in (path, Image.open(path), path.read_bytes(), np.array(upright)):
        assert torch.equal(toy.prepare(["<image>"], [picture]).inputs["pixel_values"], wanted)
    rows = [(each, "<image>") for each in (upright, path, Image.open(path), path.read_bytes())]
    states = interp.capture(toy, rows, batch_size=1, progress=False)["resid"]
    assert all(torch.equal(states[:, row], states[:, 0]) for row in range(4))


# Modes -------------------------------------------------------------------------------------------------------------------


def in_mode(mode):
    if mode.startswith("I;"):
        return Image.frombytes(mode, PICTURE.size, SIXTEEN.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    if mode == "F":
        return Image.fromarray(GREY.astype(np.float32) / 255)
    inner = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode)
    return (PICTURE if inner is None else PICTURE.convert(inner)).convert(mode)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I"])
def test_of_sixteen_bits_the_upper_eight_count(mode):
    image = Image.fromarray(SIXTEEN.astype(np.int32)) if mode == "I" else in_mode(mode)
    assert image.mode == mode
    assert np.array_equal(pixels(image), np.repeat(GREY[..., None], 3, axis=2))


def test_sixteen_bits_are_read_by_the_mode_and_not_by_the_values(tmp_path):
    """A dark picture stays dark: its levels are those of the same values in a bright one."""
    dark = Image.fromarray((SIXTEEN >> 6).astype(np.uint16))
    assert np.array_equal(pixels(dark)[..., 0], SIXTEEN >> 14)
    for form in ("PNG", "TIFF"):
        assert np.array_equal(pixels(saved(dark, form)), pixels(dark))
    (tmp_path / "a.pgm").write_bytes(b"P5\n10 6\n65535\n" + SIXTEEN.astype(">u2").tobytes())
    assert np.array_equal(pixels(tmp_path / "a.pgm")[..., 0], GREY)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (GREY.astype(np.int32), "32-bit integers .* scale is not known"),
        (-SIXTEEN.astype(np.int32), "32-bit integers from -"),
        (SIXTEEN.astype(np.int32) * 9, "expected 16-bit values up to 65535"),
        (GREY.astype(np.float32), "floats from .* expected 0 .black. to 1 .white."),
        (GREY / np.float32(255) - np.float32(0.5), "floats from -"),
        (np.where(GREY > 99, np.nan, 0.5).astype(np.float32), "floats from nan"),
        (np.where(GREY > 99, np.inf, 0.5).astype(np.float32), "floats from 0.5 to inf"),
    ],
    ids=str,
)
def test_values_whose_scale_would_be_guessed_are_refused(values, words):
    with pytest.raises(interp.InputError, match=words) as caught:
        open_image(Image.fromarray(values))
    assert len(str(caught.value).splitlines()) == 1


def test_floats_from_black_to_white():
    assert np.array_equal(pixels(in_mode("F"))[..., 0], GREY)
    assert np.array_equal(pixels(Image.new("F", (2, 2), 1.0)), np.full((2, 2, 3), 255))
    assert np.array_equal(pixels(Image.new("I", (2, 2), 0)), np.zeros((2, 2, 3)))


def test_what_is_transparent_lies_on_white():
    alpha = np.random.default_rng(1).integers(0, 256, (6, 10)).astype(np.uint8)
    on_white = (NOISE * (alpha / 255.0)[..., None] + 255 * (1 - alpha / 255.0)[..., None]).round()
    assert np.abs(pixels(np.dstack([NOISE, alpha])) - on_white).max() <= 1
    assert np.array_equal(pixels(np.dstack([NOISE, np.full_like(alpha, 255)])), NOISE)
    assert (pixels(np.dstack([NOISE, np.zeros_like(alpha)])) == 255).all()
    assert (pixels(Image.new("LA", (2, 2), (0, 0))) == 255).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "I;16"])
def test_a_transparent_colour_lies_on_white(mode):
    image = in_mode(mode) if mode == "I;16" else PICTURE.convert(mode)
    stored, plain = np.array(image), pixels(image)
    clear = stored[0, 0].tolist()
    content = saved(image, "PNG", transparency=tuple(clear) if mode == "RGB" else int(clear))
    mask = (stored == clear).all(axis=2) if mode == "RGB" else stored == clear
    assert np.array_equal(pixels(content), np.where(mask[..., None], 255, plain))
    again = open_image(open_image(content))
    assert np.array_equal(np.array(again), pixels(content))


def test_of_several_frames_the_first_counts_or_the_one_in_hand(tmp_path):
    red, green = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 255, 0))
    for form in ("GIF", "PNG", "TIFF"):
        path = tmp_path / f"a.{form}"
        red.save(path, form, save_all=True, append_images=[green])
        assert (pixels(path) == [255, 0, 0]).all()
        with Image.open(path) as image:
            assert (pixels(image) == [255, 0, 0]).all()
            image.seek(1)
            assert (pixels(image) == [0, 255, 0]).all()
            assert image.tell() == 1


def test_arrays_are_pictures_of_bytes():
    first = torch.from_numpy(NOISE).permute(2, 0, 1)
    for array in (NOISE, first, NOISE[::-1][::-1], np.asfortranarray(NOISE)):
        assert np.array_equal(pixels(array), NOISE)
    for array in (GREY, GREY[..., None], torch.from_numpy(GREY), torch.from_numpy(GREY)[None]):
        assert np.array_equal(pixels(array), np.repeat(GREY[..., None], 3, axis=2))


@pytest.mark.parametrize(
    "array",
    [
        NOISE / 255.0,
        NOISE.astype(np.int64),
        NOISE[None],
        NOISE[..., :2],
        NOISE[0, 0],
        NOISE[:0],
        NOISE.astype(object),
        torch.from_numpy(NOISE),
        torch.rand(3, 4, 4),
        torch.zeros(3, 4, 4, dtype=torch.bfloat16),
        torch.zeros(3, 4, 4, dtype=torch.uint8, device="meta"),
        np.uint8(3),
    ],
    ids=lambda array: f"{type(array).__name__}-{array.dtype}-{tuple(array.shape)}",
)
def test_other_arrays_are_refused(array):
    with pytest.raises(interp.InputError, match=r"is not an image: expected a PIL|not an image|has the size 0"):
        open_image(array)


# What is no picture ------------------------------------------------------------------------------------------------------


def closed():
    image = Image.open(io.BytesIO(saved(PICTURE, "PNG")))
    image.close()
    return image


WHOLE = saved(PICTURE.resize((200, 200)), "JPEG")


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        ("https://example.org/a.png", "is a URL: .* download the picture first"),
        ("data:image/png;base64,AAAA", "is a URL"),
        ("", "'' is no file"),
        ("nul\0.png", "is no file"),
        ("x" * 5000, "is no file|cannot be read"),
        (".", "is no file but a folder"),
        (b"", "an image of 0 bytes is not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image of a known format"),
        (WHOLE[:-900], "cannot be read .*truncated"),
        (Image.open(io.BytesIO(WHOLE[:-900])), "the image of size .* cannot be read .*truncated"),
        (closed(), "cannot be read .* still open"),
        (io.StringIO("text"), "open for reading bytes"),
        ({"bytes": None, "path": None}, "is a dict and not an image"),
        ({"url": "https://example.org"}, "is a dict and not an image"),
        ({}, "is a dict and not an image"),
        (Image.new("RGB", (0, 3)), "expected a picture of one pixel or more"),
        (7, "7 is a int and not an image"),
        (None, "None is a NoneType and not an image"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_picture_is_refused_in_one_line(picture, words):
    with pytest.raises(interp.InputError, match=words) as caught:
        open_image(picture)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM", "ICO", "TGA"])
def test_a_broken_file_is_an_input_error_whatever_its_decoder_raises(form):
    whole, draw = saved(PICTURE, form), np.random.default_rng(3)
    for _ in range(60):
        broken = bytearray(whole[: draw.integers(1, len(whole) + 1)])
        for place in draw.integers(0, len(broken), 4):
            broken[place] = draw.integers(256)
        with warnings.catch_warnings(), contextlib.suppress(interp.InputError):
            warnings.simplefilter("ignore")
            assert open_image(broken).mode == "RGB"


def test_decompression_bombs(monkeypatch):
    content = saved(PICTURE, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    with pytest.raises(interp.InputError, match=r"cannot be read .*MAX_IMAGE_PIXELS"):
        open_image(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # Pillow warns up to twice as many
    with pytest.warns(Image.DecompressionBombWarning):
        assert np.array_equal(pixels(content), NOISE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(interp.InputError, match="MAX_IMAGE_PIXELS"):
            open_image(content)


def test_no_memory_is_no_fault_of_a_picture(monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(MemoryError):
        open_image(PICTURE)


@settings(max_examples=50)
@given(st.one_of(st.binary(), st.text(), st.integers(), st.dictionaries(st.text(), st.binary())))
def test_anything_else_is_refused(anything):
    with pytest.raises(interp.InputError):
        open_image(anything)


def test_an_opened_picture_is_one_of_its_own():
    opened = open_image(PICTURE)
    opened.putpixel((0, 0), (1, 2, 3))
    assert PICTURE.getpixel((0, 0)) == tuple(NOISE[0, 0].tolist())


def test_a_file_that_is_no_image_is_named_with_its_row(toy, tmp_path):
    path = tmp_path / "fake.png"
    path.write_text("not a picture")
    with pytest.raises(interp.InputError, match=r"^row 1: .*fake.png' is not an image of a known format"):
        toy.prepare(["<image>", "<image>"], [PICTURE, path])


def test_pictures_of_any_size_and_mode(toy):
    batch = toy.prepare(["<image>"], [Image.new("L", (200, 90))])
    assert batch.inputs["pixel_values"].shape == (1, 3, 48, 48)
