"""Folders of pictures against the `datasets` package's own reading of the same convention."""

import csv
import json
import os

import datasets
import pytest
from PIL import Image

import interp
from interp.data.rows import open_row
from interp.data.sources import source_of


def write(folder, names):
    """A picture of its own colour under each name."""
    for value, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (value, 0, 7)).save(path)


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rows_in(folder, **options):
    source = source_of(folder, **options)
    return source.read(0, source.size)


def oracle(folder, cache):
    return datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(cache))


def pixels(row):
    return open_row(row)[0].getpixel((0, 0))


def test_pictures_alone_are_in_the_order_and_have_the_labels_of_imagefolder(tmp_path):
    folder = tmp_path / "pictures"
    write(
        folder,
        ["a/2.png", "a/10.png", "B/1.PNG", "a b/1.jpg", "a-b/x.webp", "a/.hidden.png", ".no/1.png", "__no/1.png"],
    )
    (folder / "a" / "notes.txt").write_text("no picture")
    theirs = oracle(folder, tmp_path / "cache")
    rows = rows_in(str(folder))
    names = theirs.features["label"].names
    assert [row.labels["label"] for row in rows] == [names[label] for label in theirs["label"]]
    assert [open_row(row)[0].tobytes() for row in rows] == [image.convert("RGB").tobytes() for image in theirs["image"]]
    assert [row.id for row in rows] == ["B/1.PNG", "a b/1.jpg", "a-b/x.webp", "a/10.png", "a/2.png"]
    assert {row.text for row in rows} == {"<image>"}
    assert rows_in(folder, prompt="<image> a {label} ?")[0].text == "<image> a B ?"


def test_pictures_without_subfolders_have_no_label(tmp_path):
    write(tmp_path, ["b.png", "a.png"])
    assert [(row.id, dict(row.labels)) for row in rows_in(tmp_path)] == [("a.png", {}), ("b.png", {})]
    write(tmp_path, ["c/deep/d.png"])
    assert [row.labels["label"] for row in rows_in(tmp_path)] == [None, None, "deep"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_are_those_of_imagefolder(tmp_path, kind):
    folder = tmp_path / "pictures"
    write(folder, ["z.png", "in/a.png", "unlisted.png"])
    header = ["file_name", "text", "n", "share", "category"]
    table = [["z.png", "<image> one, two ?", 3, 0.5, "x"], ["in/a.png", '<image> "three" ?', -4, 1e-05, "y"]]
    if kind == "csv":
        write_csv(folder / "metadata.csv", [header, *table])
    else:
        write_jsonl(folder / "metadata.jsonl", [dict(zip(header, row, strict=True)) for row in table])
    theirs = oracle(folder, tmp_path / "cache")
    rows = rows_in(folder)
    assert len(rows) == len(theirs) == 2
    for index, (row, expected) in enumerate(zip(rows, theirs, strict=True)):
        assert (row.id, row.text) == (str(index), expected["text"])
        assert pixels(row) == expected["image"].getpixel((0, 0))
        assert row.labels == {name: expected[name] for name in ("n", "share", "category")}
    named = rows_in(folder, columns={"id": "category", "text": "text", "label": "n", "group": "category"})
    assert [row.id for row in named] == ["x", "y"]
    assert named[1].labels == {"label": -4, "group": "y", "share": 1e-05}


def test_metadata_in_subfolders_name_their_own_pictures(tmp_path):
    folder = tmp_path / "pictures"
    write(folder, ["a/1.png", "b/1.png", "b/2.png"])
    write_jsonl(folder / "b/metadata.jsonl", [{"file_name": "2.png", "n": 2}, {"file_name": "1.png", "n": 1}])
    write_jsonl(folder / "a/metadata.jsonl", [{"file_name": "1.png", "n": 0}])
    rows = rows_in(folder)
    assert [(row.labels["n"], pixels(row)[0]) for row in rows] == [(0, 0), (2, 2), (1, 1)]
    theirs = oracle(folder, tmp_path / "cache")  # which takes the files of metadata in no order of its own
    assert sorted((row["n"], row["image"].getpixel((0, 0))[0]) for row in theirs) == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_numbered_metadata_are_read_in_the_order_of_their_numbers(tmp_path, kind):
    names = [f"metadata-{number}.{kind}" for number in (1, 2, 10)] + [f"metadata_0011_of_2.{kind}"]
    for value, name in enumerate(names):
        write(tmp_path, [f"{value}.png"])
        rows = [["file_name", "n"], [f"{value}.png", value]]
        if kind == "csv":
            write_csv(tmp_path / name, rows)
        else:
            write_jsonl(tmp_path / name, [dict(zip(*rows, strict=True))])
    for name in ("metadata-old.jsonl", "metadata.jsonl.bak", "mymetadata-1.jsonl", "metadata2x/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no metadata")
    assert [row.labels["n"] for row in rows_in(tmp_path)] == [0, 1, 2, 3]
    write(tmp_path, ["in/0.png"])
    write_jsonl(tmp_path / "in/metadata-01.jsonl", [{"file_name": "0.png", "n": 9}])
    if kind == "jsonl":
        assert [row.labels["n"] for row in rows_in(tmp_path)] == [9, 0, 1, 2, 3]


def test_metadata_of_subfolders_are_in_the_order_of_their_paths(tmp_path):
    for value, name in enumerate(("a", ".", "z")):
        write(tmp_path, [f"{name}/{value}.png"])
        write_jsonl(tmp_path / name / "metadata.jsonl", [{"file_name": f"{value}.png", "n": value}])
    assert [row.labels["n"] for row in rows_in(tmp_path)] == [0, 1, 2]


def test_a_folder_of_pictures_has_no_other_column_of_images(tmp_path):
    write(tmp_path, ["a/1.png", "b/2.png"])
    for column in ("id", "label"):
        with pytest.raises(
            interp.InputError, match=f"columns says '{column}' for image: the data has the columns file_name"
        ):
            source_of(tmp_path, columns={"image": column})
    assert [pixels(row)[0] for row in rows_in(tmp_path, columns={"image": "file_name"})] == [0, 1]


def test_rows_with_names_that_lead_out_are_skipped(toy, tmp_path):
    scene = interp.toy.scenes(1, seed=0)[0]
    scene.image.save(tmp_path / "a.png")
    rows = [{"file_name": name, "caption": "a red 3"} for name in ("../b.png", "a.png", "", 7, "a.png")]
    rows[4]["text"] = "what ?"
    write_jsonl(tmp_path / "metadata.jsonl", rows)
    acts = interp.capture(toy, tmp_path, on_error="skip", progress=False)
    assert acts.ids == ("1",)
    messages = [row["error"] for row in acts.manifest["skipped"]]
    assert [row["row"] for row in acts.manifest["skipped"]] == [0, 2, 3, 4]
    for message, words in zip(
        messages, ("leads out of", "the picture ''", "the picture 7", "has no <image>"), strict=True
    ):
        assert words in message
        assert str(tmp_path.parent) not in message
    texts = rows_in(interp.Data(tmp_path, prompt="{caption}", on_error="skip"))
    assert [open_row(row) for row in texts] == [[]] * 5


def test_captions_of_a_folder_without_its_pictures(tmp_path):
    write(tmp_path, ["1.png"])
    write_jsonl(tmp_path / "metadata.jsonl", [{"file_name": "1.png", "caption": "a cat"}])
    (row,) = rows_in(tmp_path, prompt="{caption} .")
    assert (row.text, row.image) == ("a cat .", None)


def test_several_pictures_a_row(tmp_path):
    write(tmp_path, ["1.png", "2.png"])
    write_jsonl(tmp_path / "metadata.jsonl", [{"file_names": ["2.png", "1.png"]}, {"file_names": [], "text": "none"}])
    rows = rows_in(tmp_path)
    assert [image.getpixel((0, 0))[0] for image in open_row(rows[0])] == [1, 0]
    assert [row.text for row in rows] == ["<image> <image>", "none"]


def test_cells_of_a_csv_are_numbers_only_where_all_are_written_so(tmp_path):
    write(tmp_path, ["1.png", "2.png"])
    columns = {
        "whole": ["3", "-4"],
        "real": ["3", "0.50"],
        "gap": ["", "7"],
        "code": ["007", "12"],
        "comma": ["1,5", "2"],
        "nan": ["nan", "1"],
        "long": ["12345678901234567890", "1"],
        "arabic": ["\u0663", "1"],
        "empty": ["", ""],
    }
    table = zip(["1.png", "2.png"], *columns.values(), strict=True)
    write_csv(tmp_path / "metadata.csv", [["file_name", *columns], *table])
    rows = rows_in(tmp_path)
    assert {name: [row.labels[name] for row in rows] for name in columns} == {
        **columns,
        "whole": [3, -4],
        "real": [3.0, 0.5],
        "gap": [None, 7],
        "empty": [None, None],
    }
    assert [type(row.labels["real"]) for row in rows] == [float, float]
    assert rows_in(tmp_path, prompt="<image> {real}")[1].text == "<image> 0.50"
    assert [row.id for row in rows_in(tmp_path, columns={"id": "code"})] == ["007", "12"]


@pytest.mark.parametrize(
    ("name", "held"), [("csv", "file_name,n\n1.png,1\n"), ("jsonl", '{"file_name": "1.png", "n": 1}')]
)
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path, name, held):
    write(tmp_path, ["1.png"])
    (tmp_path / f"metadata.{name}").write_text(held, encoding="utf-8-sig")
    assert rows_in(tmp_path)[0].labels == {"n": 1}


@pytest.mark.parametrize(
    "name",
    [
        "../a.png",
        "in/../../a.png",
        "/etc/a.png",
        "..",
        "..\\a.png",
        "C:\\a.png",
        "\\\\host\\a.png",
        "",
        5,
        ["../a.png"],
    ],
)
def test_a_name_that_leads_out_is_refused(tmp_path, name):
    folder = tmp_path / "pictures"
    write(folder, ["a.png"])
    write_jsonl(folder / "metadata.jsonl", [{"file_name": "a.png"}, {"file_name": name}])
    with pytest.raises(interp.InputError, match=r"line 2 of .*metadata.jsonl' names the picture"):
        source_of(folder)


def test_a_picture_that_is_missing_or_broken_is_its_rows_alone(tmp_path):
    write(tmp_path, ["1.png", "2.png"])
    (tmp_path / "2.png").write_bytes(b"no picture")
    write_csv(tmp_path / "metadata.csv", [["file_name"], ["1.png"], ["2.png"], ["3\n$(touch x).png"]])
    rows = rows_in(tmp_path)
    assert open_row(rows[0])
    with pytest.raises(interp.InputError, match=r"row 1 \('1'\): .*2.png' is not an image"):
        open_row(rows[1])
    with pytest.raises(interp.InputError, match=r"row 2 \('2'\): .*is no file") as caught:
        open_row(rows[2])
    assert "\n" not in str(caught.value)


def test_a_saved_data_set_is_opened(tmp_path):
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "n": [1, 2]})
    table.save_to_disk(tmp_path / "one")
    assert [(row.text, row.labels["n"]) for row in rows_in(tmp_path / "one")] == [("a", 1), ("b", 2)]
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "split")
    with pytest.raises(interp.InputError, match="with the splits train"):
        source_of(tmp_path / "split")
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(interp.InputError, match=r"one' cannot be read .*: expected the format of save_to_disk"):
        source_of(tmp_path / "one")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "has no pictures"),
        ({"notes.txt": "a"}, "has no pictures"),
        ({"metadata.jsonl": ""}, "has no rows"),
        ({"metadata.csv": "file_name\n"}, "has no rows"),
        ({"metadata.jsonl": "{}", "in/metadata.csv": "a"}, "expected one kind"),
        ({"metadata.parquet": "a"}, "has a metadata.parquet"),
        ({"metadata.csv": "name,text\na.png,b\n"}, "has the columns name, text: expected file_name"),
        ({"metadata.csv": "file_name,text\na.png,b,c\n"}, "line 2 has 3 cells and the first line 2"),
        ({"metadata.csv": "file_name,n,n\na.png,b,c\n"}, "names of columns, each once"),
        ({"metadata.csv": 'file_name\n"a.png\n'}, "cannot be read"),
        ({"metadata.csv": "file_name,id\na.png,1\nb.png,\n"}, "row 1 has no id"),
        ({"metadata.csv": "file_name,id\na.png,1\nb.png,1\n"}, "rows 0 and 1 have the same id '1'"),
        ({"metadata.jsonl": '{"file_name": "a.png"}\n{"file_name": \n'}, "line 2 is .*: expected one JSON object"),
        ({"metadata.jsonl": "[1]\n"}, "line 1 is .*: expected one JSON object"),
        ({"metadata.jsonl": "[" * 100_000}, "line 1 is .*: expected one JSON object"),
        ({"metadata.jsonl": b"\xff\xfe"}, "cannot be read"),
    ],
)
def test_a_folder_that_cannot_be_taken(tmp_path, files, words):
    for name, held in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(held if isinstance(held, bytes) else held.encode())
    with pytest.raises(interp.InputError, match=words) as caught:
        source_of(tmp_path)
    assert "\n" not in str(caught.value)


def test_any_order_of_reading(tmp_path):
    write(tmp_path, [f"{index:02d}.png" for index in range(9)])
    rows = source_of(os.fspath(tmp_path))
    assert rows.size == 9
    assert [row.id for row in rows.read(6, 20) + rows.read(0, 2)] == ["06.png", "07.png", "08.png", "00.png", "01.png"]
