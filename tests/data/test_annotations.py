"""LLaVA's conversations and COCO's captions: from files, lists and data sets."""

import json
from functools import partial

import datasets
import pytest
import torch
from PIL import Image

import interp
from interp.data.rows import open_row
from interp.data.sources import source_of


def turns(*words):
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(words)]


@pytest.fixture
def conversations(tmp_path):
    """Rows with one picture, none and two, in a file beside a folder of pictures."""
    for value in range(3):
        (tmp_path / "train").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (value, 0, 7)).save(tmp_path / "train" / f"{value}.png")
    items = [
        {"id": "a", "image": "train/2.png", "conversations": turns("<image>\nWhat ?", "A cat.", "Sure ?", "Yes.")},
        {"id": "b", "conversations": turns("Who ?", "Me.")},
        {"id": "c", "image": ["train/0.png", "train/1.png"], "conversations": turns("<image> <image> Same ?")},
        {
            "id": "d",
            "conversations": [
                {"from": "system", "value": "Be brief."},
                *turns("-", "Hello.")[1:],
                *turns("Where ?", "Here."),
            ],
        },
    ]
    (tmp_path / "conversations.json").write_text(json.dumps(items))
    return tmp_path, items


def check(rows):
    assert [row.id for row in rows] == ["a", "b", "c", "d"]
    assert [row.text for row in rows] == ["<image>\nWhat ?", "Who ?", "<image> <image> Same ?", "Where ?"]
    assert [row.labels for row in rows] == [{"answer": answer} for answer in ("A cat.", "Me.", None, "Here.")]
    assert [[image.getpixel((0, 0))[0] for image in open_row(row)] for row in rows] == [[2], [], [0, 1], []]


def test_a_file_of_conversations(conversations):
    folder, items = conversations
    source = source_of(folder / "conversations.json")
    assert source.size == 4
    check(source.read(0, 9))
    check(source_of(str(folder / "conversations.json")).read(0, 2) + source.read(2, 4))
    (folder / "elsewhere.json").write_text(json.dumps(items))
    check(source_of(interp.Data(folder / "elsewhere.json", root=folder)).read(0, 4))
    (folder / "lines.jsonl").write_text("\n".join(map(json.dumps, items)))
    check(source_of(folder / "lines.jsonl").read(0, 4))


def test_conversations_in_memory_and_in_a_data_set(conversations):
    folder, items = conversations
    check(source_of(interp.Data(items, root=folder)).read(0, 4))
    several = [
        {**item, "image": [item["image"]] if isinstance(item.get("image"), str) else item.get("image")}
        for item in items
    ]
    table = datasets.Dataset.from_list(several)
    for data in (table, table.to_iterable_dataset(), datasets.IterableDataset.from_generator(lambda: iter(several))):
        check(source_of(interp.Data(data, root=folder)).read(0, 4))


def test_a_prompt_writes_them_anew(conversations):
    folder, _ = conversations
    rows = source_of(interp.Data(folder / "conversations.json", prompt="{text} {answer}", columns={"label": "answer"}))
    assert [row.text for row in rows.read(0, 4)] == ["<image>\nWhat ? A cat.", "Who ? Me.", "", "Where ? Here."]
    assert rows.read(0, 1)[0].labels == {"label": "A cat."}


def test_a_captured_conversation_is_that_of_its_rows(toy, tmp_path):
    scenes = interp.toy.scenes(3, seed=4)
    for number, scene in enumerate(scenes):
        scene.image.save(tmp_path / f"{number}.png")
    items = [
        {"id": str(n), "image": f"{n}.png", "conversations": turns("<image>\nwhat colour is it ?", "red")}
        for n in range(3)
    ]
    (tmp_path / "conversations.json").write_text(json.dumps(items))
    acts = interp.capture(toy, tmp_path / "conversations.json", progress=False)
    wanted = interp.capture(toy, [(scene.image, "<image>\nwhat colour is it ?") for scene in scenes], progress=False)
    assert torch.equal(acts["resid"], wanted["resid"])
    assert acts.labels == {"answer": ["red"] * 3}


CAPTIONS = {
    "info": {"year": 2014},
    "images": [{"id": 30, "file_name": "0.png"}, {"id": 10, "file_name": "1.png"}],
    "annotations": [
        {"image_id": 10, "id": 1, "caption": "a cat"},
        {"image_id": 30, "id": 2, "caption": "a dog"},
        {"image_id": 10, "id": 3, "caption": "the cat"},
    ],
}


def test_captions_are_a_row_each_and_grouped_by_their_image(tmp_path):
    for value in range(2):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), (value, 0, 7)).save(tmp_path / "images" / f"{value}.png")
    file = tmp_path / "captions.json"
    file.write_text(json.dumps(CAPTIONS))
    data = interp.Data(file, prompt="<image> {caption}", root=tmp_path / "images")
    rows = source_of(data).read(0, 9)
    assert [row.id for row in rows] == ["1", "2", "3"]
    assert [row.text for row in rows] == ["<image> a cat", "<image> a dog", "<image> the cat"]
    assert [row.labels for row in rows] == [
        {"caption": caption, "group": group} for caption, group in (("a cat", 10), ("a dog", 30), ("the cat", 10))
    ]
    assert [open_row(row)[0].getpixel((0, 0))[0] for row in rows] == [1, 0, 1]
    texts = source_of(interp.Data(file, prompt="{caption}")).read(0, 9)
    assert [(row.text, row.image) for row in texts] == [("a cat", None), ("a dog", None), ("the cat", None)]
    assert {row.text for row in source_of(file).read(0, 9)} == {"<image>"}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "cannot be read .*: expected JSON"),
        ("[" * 100_000, "cannot be read .*: expected JSON"),
        (b"\xff\xfe[", "cannot be read .*: expected JSON"),
        ("[]", "has no rows"),
        ("7", "holds 7: expected a list of objects"),
        ("[1]", r"holds \[1\]: expected a list of objects"),
        ('{"a": 1}', r"holds \{'a': 1\}: expected a list of objects"),
        ([{"conversations": "hello"}], "the columns conversations: none is named image or text"),
        (
            [{"image": "../a.png", "conversations": turns("a")}],
            "item 0 of .* names the picture '../a.png', which leads out",
        ),
        ([{"image": {"path": "/etc/a.png"}, "conversations": turns("a")}], "item 0 of .* names the picture .*'path'"),
        ([{"image": ["a.png", 3], "conversations": turns("a")}], "item 0 of .* names the picture 3"),
        ([{"id": "1", "n": 3}], "none is named image or text"),
        ({"images": [], "annotations": []}, "has no rows"),
        ({"images": [], "annotations": None}, "has no rows"),
        ({"images": [{"id": 3}], "annotations": []}, "images without id or file_name"),
        ({"images": ["a"], "annotations": []}, "images without id or file_name"),
        (
            {"images": [{"id": 3, "file_name": "a.png"}, {"id": 3, "file_name": "b.png"}], "annotations": []},
            "has the image id 3 for 'a.png' and for 'b.png': expected one file for each id",
        ),
        (
            {**CAPTIONS, "annotations": [{"id": 1, "image_id": 10, "bbox": [1]}]},
            "annotation 0 of .*: expected id, caption",
        ),
        (
            {**CAPTIONS, "annotations": [{"id": 1, "image_id": 11, "caption": "a"}]},
            "annotation 0 of .* of one of the images",
        ),
        (
            {**CAPTIONS, "annotations": [{"id": 1, "image_id": [], "caption": "a"}]},
            "annotation 0 of .* of one of the images",
        ),
        ({**CAPTIONS, "annotations": [*CAPTIONS["annotations"], CAPTIONS["annotations"][0]]}, "the same id '1'"),
    ],
)
def test_a_file_that_cannot_be_taken(tmp_path, content, words):
    file = tmp_path / "data.json"
    file.write_bytes(
        content
        if isinstance(content, bytes)
        else str(content if isinstance(content, str) else json.dumps(content)).encode()
    )
    with pytest.raises(interp.InputError, match=words) as caught:
        source_of(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


OTHERS = [
    [{"from": "gpt", "value": "b"}],
    [{"from": "human", "value": 3}],
    [],
    None,
    "hello",
    [{"role": "user", "content": "c"}],
]


@pytest.mark.parametrize("conversation", OTHERS)
def test_a_conversation_without_a_human_turn_is_an_error_of_its_row_alone(toy, tmp_path, conversation):
    items = [{"n": 1, "conversations": turns("a")}, {"n": 2, "conversations": conversation}]
    (tmp_path / "data.json").write_text(json.dumps(items))
    sources = [tmp_path / "data.json", items, datasets.IterableDataset.from_generator(lambda: iter(items))]
    if conversation is None or conversation == [] or conversation == OTHERS[0]:
        sources += [(table := datasets.Dataset.from_list(items)), table.to_iterable_dataset()]
    for source in sources:
        first, second = source_of(source).read(0, 2)
        assert (first.text, open_row(first), second.labels["n"]) == ("a", [], 2)
        with pytest.raises(
            interp.InputError, match=r"row 1 \('1'\): .* has the conversation .*a turn from \"human\""
        ) as caught:
            open_row(second)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
        with pytest.raises(interp.InputError, match="has the conversation"):
            open_row(source_of(source, prompt="{n} {text}").read(1, 2)[0])
        assert source_of(source, prompt="number {n}").read(1, 2)[0].error is None
    acts = interp.capture(toy, items, positions="text", on_error="skip", progress=False)
    assert [row["row"] for row in acts.manifest["skipped"]] == [1]


def test_a_column_that_is_only_called_conversations_is_ordinary(tmp_path):
    (tmp_path / "rows.csv").write_text("text,conversations\na,3\nb,4\n")
    assert [row.labels for row in source_of(tmp_path / "rows.csv").read(0, 2)] == [
        {"conversations": 3},
        {"conversations": 4},
    ]
    roles = [{"role": "user", "content": "c"}]
    for cells, labels in (
        (["x", "y"], [{"conversations": "x"}, {"conversations": "y"}]),
        ([["x"], ["y"]], [{}, {}]),
        ([roles, roles], [{}, {}]),
    ):
        items = [{"text": text, "conversations": cell} for text, cell in zip("ab", cells, strict=True)]
        table = datasets.Dataset.from_list(items)
        stream = datasets.IterableDataset.from_generator(partial(iter, items))
        for source in (items, table, table.to_iterable_dataset(), stream):
            rows = source_of(source).read(0, 2)
            assert [row.text for row in rows] == ["a", "b"]
            assert [row.labels for row in rows] == labels
