"""Any data as rows: what they hold, however they are read, and what is refused with which row."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Sequence
from itertools import chain, pairwise

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import interp
from interp.data.roles import parse_prompt
from interp.data.rows import Batches, Row, open_row
from interp.data.sources import source_of


def picture(value, size=(3, 2)):
    return Image.new("RGB", size, (value, 0, 0))


def as_bytes(image, form="PNG", **options):
    held = io.BytesIO()
    image.save(held, form, **options)
    return held.getvalue()


def texts(data, **options):
    rows = source_of(data, **options)
    return [row.text for row in rows.read(0, rows.size)]


def row_of(image, text="<image>"):
    return Row(4, "fourth", image, text, {})


def test_pairs():
    red, blue = picture(200), picture(9)
    rows = source_of([(red, None), (None, "a red 3"), ([red, blue], None), (blue, "<image> what ?")])
    assert rows.size == 4
    assert rows.read(0, 9) == [
        Row(0, "0", red, "<image>", {}),
        Row(1, "1", None, "a red 3", {}),
        Row(2, "2", [red, blue], "<image> <image>", {}),
        Row(3, "3", blue, "<image> what ?", {}),
    ]
    assert [image.getpixel((0, 0)) for image in open_row(rows.read(2, 3)[0])] == [(200, 0, 0), (9, 0, 0)]
    assert open_row(rows.read(1, 2)[0]) == []


def test_scenes():
    scenes = interp.toy.scenes(5, seed=2)
    rows = source_of(scenes).read(0, 5)
    assert [row.id for row in rows] == scenes.ids
    assert [row.labels["colour"] for row in rows] == scenes.labels["colour"]
    assert {row.text for row in rows} == {"<image>"}
    assert open_row(rows[3])[0].tobytes() == scenes[3].image.tobytes()
    assert texts(scenes.captions()) == [scene.caption for scene in scenes]
    assert texts(scenes.captions(), prompt="see: {text}") == [f"see: {scene.caption}" for scene in scenes]
    named = source_of(scenes, columns={"label": "colour", "id": "id"}).read(0, 5)
    assert [row.labels["label"] for row in named] == scenes.labels["colour"]
    assert "colour" not in named[0].labels


def test_labels_are_plain_values():
    class Data:
        labels = {"n": np.arange(2), "share": np.ones(2), "box": np.ones((2, 4)), "name": ["a", None]}  # noqa: RUF012

        def pairs(self):
            return [(None, "one"), (None, "two")]

    last = source_of(Data()).read(1, 2)[0]
    assert last.labels == {"n": 1, "share": 1.0, "name": None}
    assert [type(value) for value in last.labels.values()] == [int, float, type(None)]


def test_a_named_label_comes_before_a_column_of_that_name():
    labels = {"label": ["x"], "kind": ["y"], "group": ["z"]}
    data = type("Data", (), {"pairs": lambda self: [(None, "a")], "labels": labels})()
    assert source_of(data).read(0, 1)[0].labels == {"label": "x", "kind": "y", "group": "z"}
    assert source_of(data, columns={"label": "kind"}).read(0, 1)[0].labels == {"label": "y", "group": "z"}


def test_batches_are_taken_as_they_are(toy, few, mixed):
    one = toy.prepare(["<image>"], [few[0].image])
    source = source_of([mixed, one])
    assert isinstance(source, Batches)
    assert source.batches == (mixed, one)
    assert source.size == 4
    assert source_of(one).size == 1
    with pytest.raises(interp.InputError, match="leave columns= and prompt= out"):
        source_of(one, prompt="{text}")


def test_a_sequence_may_make_its_pairs_late():
    class Lazy(Sequence):
        def __init__(self):
            self.made = []

        def __len__(self):
            return 1000

        def __getitem__(self, index):
            self.made.append(index)
            return None, f"text {index}"

    pairs = Lazy()
    assert [row.text for row in source_of(pairs).read(998, 2000)] == ["text 998", "text 999"]
    assert set(pairs.made) <= {0, 998, 999}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.data())
def test_any_parts_are_the_whole(size, data):
    rows = source_of([(None, f"text {index}") for index in range(size)], prompt="see {text}")
    cuts = sorted(data.draw(st.lists(st.integers(0, size + 5), max_size=6)))
    edges = [0, *cuts, size + 5]
    parts = [rows.read(a, b) for a, b in pairwise(edges)]
    assert list(chain(*parts)) == rows.read(0, size)
    assert [row.index for row in rows.read(0, size)] == list(range(size))


# Pictures ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_picture_comes_in_many_ways(tmp_path, form):
    held = as_bytes(picture(180), form)
    path = tmp_path / "picture.of.no.ending"
    path.write_bytes(held)
    expected = Image.open(io.BytesIO(held)).convert("RGB").tobytes()
    ways = (path, str(path), held, {"bytes": held, "path": None}, {"bytes": None, "path": str(path)})
    for image in ways:
        (opened,) = open_row(row_of(image))
        assert opened.mode == "RGB"
        assert opened.tobytes() == expected


def test_a_photograph_is_upright_as_the_datasets_package_has_it():
    exif = Image.Exif()
    exif[0x0112] = 6
    held = as_bytes(Image.linear_gradient("L").resize((8, 4)), "PNG", exif=exif)
    (opened,) = open_row(row_of(held))
    expected = datasets.Image().decode_example({"bytes": held, "path": None})
    assert opened.size == (4, 8)
    assert opened.tobytes() == expected.convert("RGB").tobytes()


def bomb():
    """A PNG that says it is of 60,000 x 60,000 pixels."""

    def chunk(kind, held):
        return struct.pack(">I", len(held)) + kind + held + struct.pack(">I", zlib.crc32(kind + held))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


WHOLE = as_bytes(Image.effect_noise((64, 64), 90), "PNG")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("no/such\nfile.png", r"'no/such\\nfile.png' is no file"),
        ("x" * 5000, "xxx.* is no file|cannot be read"),
        ("nul\0.png", "is no file"),
        ({"bytes": None, "path": "no.png"}, "'no.png' is no file"),
        ({"bytes": None, "path": None}, "is a dict and not an image"),
        (b"", "not an image of a known format"),
        (b"<svg>", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image of a known format"),
        (WHOLE[:900], "cannot be read .*truncated"),
        (WHOLE[:40], "cannot be read|not an image"),
        (bomb(), "cannot be read .*decompression bomb"),
        ({"bytes": WHOLE[:900], "path": "a.png"}, "the image 'a.png' cannot be read"),
        (7, "7 is a int and not an image"),
        (np.zeros((2, 2, 3)), r"ndarray of shape \(2, 2, 3\)"),
    ],
)
def test_a_picture_that_cannot_be_read_is_named_with_its_row(image, words):
    with pytest.raises(interp.InputError, match=words) as caught:
        open_row(row_of([WHOLE, image], "<image> <image>"))
    message = str(caught.value)
    assert message.startswith("row 4 ('fourth'): ")
    assert "\n" not in message
    assert len(message) < 450


@pytest.mark.parametrize(
    ("image", "text", "words"),
    [
        (None, "", "its text is empty"),
        (None, "<image> what ?", "has 1 <image> and the row has 0 images"),
        (WHOLE, "<image> <image>", "has 2 <image> and the row has 1 images"),
        (None, "half a \ud800 letter", "is not Unicode"),
        (Image.new("RGB", (0, 5)), "<image>", r"has the size \(0, 5\)"),
    ],
)
def test_a_row_that_does_not_fit_together(image, text, words):
    with pytest.raises(interp.InputError, match=words):
        open_row(row_of(image, text))


# Prompts -----------------------------------------------------------------------------------------------------------------


def test_a_prompt_takes_cells_as_they_are():
    odd = "{text} {0} {text.__class__} %s {{"
    assert texts([(None, odd)], prompt="{{see}} {text}{text}") == [f"{{see}} {odd}{odd}"]
    assert texts([(picture(1), None)], prompt="<image> Describe.") == ["<image> Describe."]
    assert texts([(picture(1), None)], prompt="{text} Describe.") == ["<image> Describe."]


def test_half_a_text_is_none():
    data = type("Data", (), {"pairs": lambda self: [(picture(1), "a")], "labels": {"kind": [None]}})()
    assert texts(data, prompt="<image> {text} {kind}") == [""]


@pytest.mark.parametrize(
    "prompt",
    ["{text.__class__}", "{text[0]}", "{text!r}", "{text:>10}", "{text:{text}}", "{}", "{0}", "{colour}", "{text", "}"],
)
def test_a_prompt_has_plain_fields_only(prompt):
    with pytest.raises(interp.InputError, match="prompt='") as caught:
        parse_prompt(prompt, ["text"])
    assert "\n" not in str(caught.value)


# Refused -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "options", "words"),
    [
        ([], {}, "data is empty"),
        ({"a": 1}, {}, "data is a dict"),
        (7, {}, "data is a int"),
        ("no/folder", {}, "data is a str, 'no/folder', and no folder there"),
        (__file__, {}, "and a file: expected the path of a folder"),
        ([(None, None)], {}, "row 0 of the data is"),
        ([("a", "<image>"), ["b", "<image>"]], {}, "row 1 of the data is"),
        ([(None, 5)], {}, "row 0 of the data has the text 5"),
        ([(None, "a")], {"columns": {"label": "kind"}}, "'kind' for label: the data has the columns .* text"),
        ([(None, "a")], {"columns": {"picture": "a"}}, "the role 'picture': use image, text, id, label, group"),
        ([(None, "a")], {"columns": {"image": "a"}}, "'a' for image"),
        ([(None, "a")], {"prompt": "{question}"}, "unknown field 'question': use text"),
        ([(None, "a"), (None, "b"), (None, "a")], {"columns": {"id": "text"}}, "rows 0 and 2 have the same id 'a'"),
    ],
)
def test_what_is_no_data(data, options, words):
    with pytest.raises(interp.InterpError, match=words) as caught:
        source_of(data, **options)
    assert "\n" not in str(caught.value)


def test_ids_and_labels_are_one_a_row():
    def data(**fields):
        return type("Data", (), {"pairs": lambda self: [(None, "a"), (None, "b")], **fields})()

    with pytest.raises(interp.InputError, match="rows 0 and 1 have the same id 'x'"):
        source_of(data(ids=["x", "x"]))
    with pytest.raises(interp.InputError, match="2 rows and 1 ids"):
        source_of(data(ids=["x"]))
    with pytest.raises(interp.InputError, match=r"2 rows and 3 labels\['kind'\]"):
        source_of(data(labels={"kind": [1, 2, 3]}))


def test_the_datasets_package_is_not_needed():
    code = "import sys; sys.modules['datasets'] = None; from interp.data.sources import source_of; "
    code += "print(source_of([(None, 'a')]).read(0, 1)[0].text)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "a\n"


def test_a_text_leaves_a_place_for_its_image():
    rows = source_of([(None, "fine"), (picture(1), "what ?")])
    assert rows.read(0, 1)[0].text == "fine"
    with pytest.raises(
        interp.InputError, match=r"row 1 \('1'\): its text 'what \?' .* give prompt=\"<image> \{text\}\""
    ):
        open_row(rows.read(0, 2)[1])


def test_a_prompt_without_an_image_makes_rows_of_text(toy):
    pairs = [(picture(1), "what ?"), (picture(1), "<image> a"), (None, "b")]
    rows = source_of(pairs, prompt="{text} Say.").read(0, 3)
    assert [row.text for row in rows] == ["what ? Say.", "<image> a Say.", "b Say."]
    assert [row.image is None for row in rows] == [True, False, True]


@pytest.mark.parametrize(("start", "stop"), [(-1, 1), (2, 1)])
def test_a_range_that_is_none(start, stop):
    with pytest.raises(interp.InputError, match=r"rows .* expected 0 <= start <= stop"):
        source_of([(None, "a")]).read(start, stop)


# Sources that people have in hand ----------------------------------------------------------------------------------------


class Torchs(torch.utils.data.Dataset):
    """As torch's data sets are: items by number and a length, each made when it is read."""

    def __init__(self, items):
        self.items, self.made = items, []

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        self.made.append(index)
        return self.items[index]


IMAGES = [picture(red) for red in (1, 2, 3)]
DICTS = [{"image": image, "n": number} for number, image in enumerate(IMAGES)]


@pytest.mark.parametrize(
    ("make", "labels"),
    [
        (lambda: [(image, "<image>") for image in IMAGES], {}),
        (lambda: list(IMAGES), {}),
        (lambda: ((image, "<image>") for image in IMAGES), {}),
        (lambda: zip(IMAGES, ["<image>"] * 3, strict=True), {}),
        (lambda: iter(DICTS), {"n": 1}),
        (lambda: Torchs([(image, "<image>") for image in IMAGES]), {}),
        (lambda: Torchs(DICTS), {"n": 1}),
        (lambda: pd.DataFrame(DICTS), {"n": 1}),
        (lambda: pa.table({"image": [as_bytes(image) for image in IMAGES], "n": [0, 1, 2]}), {"n": 1}),
        (lambda: pd.DataFrame({"image": IMAGES, 7: [0.5, np.nan, 2]}), {"7": None}),
        (lambda: [(np.array(image), "<image>") for image in IMAGES], {}),
    ],
)
def test_rows_of_what_people_have_in_hand(make, labels):
    rows = source_of(make()).read(0, 9)
    assert [open_row(row)[0].getpixel((0, 0))[0] for row in rows] == [1, 2, 3]
    assert rows[1].labels == labels


@pytest.mark.parametrize("make", [iter, np.array, pd.Series, Torchs, lambda texts: (text for text in texts)])
def test_texts_of_what_people_have_in_hand(make):
    rows = source_of(interp.Data(make(["a red 3", "a blue 7"]), prompt="see {text} .")).read(0, 9)
    assert [(row.id, row.text, row.image) for row in rows] == [
        ("0", "see a red 3 .", None),
        ("1", "see a blue 7 .", None),
    ]


def test_items_that_are_made_one_by_one_are_made_when_they_are_read(toy):
    lazy = Torchs([(image, "<image>") for image in IMAGES] * 4)
    rows = source_of(lazy)
    assert rows.size is None
    rows.read(0, 2)
    assert max(lazy.made) <= 2
    assert interp.capture(toy, Torchs(lazy.items), layers=[0], progress=False)["resid"].shape[1] == 12
    batches = (toy.prepare([text]) for text in ("a red 3", "a blue 7"))
    assert interp.capture(toy, batches, positions="text", layers=[0], progress=False)["resid"].shape[1] == 2


def test_names_of_files_in_a_frame_are_relative_to_root(tmp_path):
    picture(5).save(tmp_path / "5.png")
    frame = pd.DataFrame({"image": ["5.png"], "caption": ["a red 3"]})
    (row,) = source_of(interp.Data(frame, prompt="<image> {caption}", root=tmp_path)).read(0, 1)
    assert (open_row(row)[0].getpixel((0, 0))[0], row.text) == (5, "<image> a red 3")


@pytest.mark.parametrize("source", [iter([]), Torchs([]), pd.DataFrame({"text": []})])
def test_nothing_in_hand(source):
    with pytest.raises(interp.InputError, match="data is empty"):
        source_of(source)


@pytest.mark.parametrize("source", [{"a", "b"}, {"image": IMAGES}, np.zeros((2, 2)), b"bytes", torch.zeros(3, 4)])
def test_what_has_no_rows_in_order(source):
    with pytest.raises(interp.InputTypeError, match=r"data is a .* expected"):
        source_of(source)


def test_items_that_are_none_of_the_kind_of_the_first():
    rows = source_of(iter([{"text": "a"}, 5, {"text": "b", "other": 3}])).read(0, 9)
    assert [open_row(rows[number]) for number in (0, 2)] == [[], []]
    with pytest.raises(interp.InputError, match=r"row 1 \('1'\): it is 5: expected a dict as the rows before"):
        open_row(rows[1])
