"""Records: lists of texts and dicts, and the files that hold a row on each line."""

import json

import numpy as np
import pytest
from PIL import Image

import interp
from interp.data.rows import open_row
from interp.data.sources import source_of


def picture(value):
    return Image.new("RGB", (3, 2), (value, 0, 0))


def test_a_list_of_texts():
    rows = source_of(["a red 3", "a blue 7"])
    assert rows.size == 2
    assert [(row.id, row.text, row.image) for row in rows.read(0, 9)] == [
        ("0", "a red 3", None),
        ("1", "a blue 7", None),
    ]
    mixed = source_of(["a red 3", (picture(1), None)], prompt="see {text}").read(0, 2)
    assert [row.text for row in mixed] == ["see a red 3", "see <image>"]
    with pytest.raises(interp.InputError, match=r"row 1 of the data is 'b.PNG', the name of a picture"):
        source_of(["a", "b.PNG"])
    assert source_of(["is it in b.png"]).size == 1


def test_a_list_of_dicts():
    data = [
        {"image": picture(1), "text": "<image> a", "n": np.int64(3), "box": [1, 2]},
        {"text": "b", "n": None},
        {"image": [picture(2), picture(3)], "n": 4},
    ]
    rows = source_of(data).read(0, 9)
    assert [row.text for row in rows] == ["<image> a", "b", "<image> <image>"]
    assert [row.labels for row in rows] == [{"n": 3}, {"n": None}, {"n": 4}]
    assert [[image.getpixel((0, 0))[0] for image in open_row(row)] for row in rows] == [[1], [], [2, 3]]
    named = source_of(
        [{"photo": picture(5), "q": "what ?", "key": "x"}],
        columns={"image": "photo", "id": "key"},
        prompt="<image> {q}",
    )
    (row,) = named.read(0, 9)
    assert (row.id, row.text, row.labels) == ("x", "<image> what ?", {"q": "what ?"})


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([{"text": "a"}, "b"], "row 0 of the data is"),
        ([{"n": 1}], "the data has the columns n: none is named image or text"),
        ([{}], "none is named image or text"),
        ([{"text": "a", "id": 1}, {"text": "b", "id": 1}], "rows 0 and 1 have the same id '1'"),
        ([{"conversations": 5}], "the columns conversations: none is named image or text"),
    ],
)
def test_a_list_that_cannot_be_taken(data, words):
    with pytest.raises(interp.InputError, match=words) as caught:
        source_of(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_names_pictures_relative_to_itself(tmp_path, kind):
    (tmp_path / "in").mkdir()
    picture(7).save(tmp_path / "in" / "a.png")
    lines = {
        "csv": "image,question,n\nin/a.png,what ?,3\n,who ?,-1\n",
        "jsonl": '{"image": "in/a.png", "question": "what ?", "n": 3}\n\n{"question": "who ?", "n": -1}',
    }
    file = tmp_path / f"rows.{kind}"
    file.write_text(lines[kind])
    rows = source_of(file, columns={"text": "question"}, prompt="<image> {question}")
    assert rows.size == 2
    first, second = rows.read(0, 9)
    assert (first.text, first.labels) == ("<image> what ?", {"n": 3})
    assert open_row(first)[0].getpixel((0, 0)) == (7, 0, 0)
    assert (second.image, second.labels) == (None, {"n": -1})
    texts = source_of(str(file), prompt="{question}").read(0, 9)
    assert [(row.text, row.image) for row in texts] == [("what ?", None), ("who ?", None)]


@pytest.mark.parametrize("column", ["image", "images", "file_name", "file_names", "photo"])
def test_which_column_has_the_pictures(tmp_path, column):
    picture(7).save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps({column: "a.png"}))
    columns = {"image": "photo"} if column == "photo" else None
    assert open_row(source_of(tmp_path / "rows.jsonl", columns=columns).read(0, 1)[0])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "has no rows"),
        ('{"text": "a"}\n{', "rows.jsonl': line 2 is '{': expected one JSON object"),
        ('{"n": 1}', "none is named image or text"),
        ('{"image": "/etc/a.png"}', "line 1 of .* names the picture '/etc/a.png', which leads out of"),
        (
            '{"image": "http://a/b.png"}\n{"image": {"path": "http://a/b.png"}}',
            "line 2 of .* names the picture {'path'",
        ),
    ],
)
def test_a_file_that_cannot_be_taken(tmp_path, content, words):
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(interp.InputError, match=words) as caught:
        source_of(tmp_path / "rows.jsonl")
    assert "\n" not in str(caught.value)
