"""Answers, conversations of several turns and masks, from every kind of source."""

import json
from functools import partial
from itertools import count

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import interp
from interp.data.rows import open_row, open_turns
from interp.data.sources import source_of


def llava(*words):
    return [{"from": ("human", "gpt")[index % 2], "value": text} for index, text in enumerate(words)]


def chat(*words):
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(words)]


def in_parts(*words):
    """The same turns with lists as their content, a part for each line."""
    image = {"type": "image"}
    return [
        {
            **turn,
            "content": [image if w == "<image>" else {"type": "text", "text": w} for w in turn["content"].split("\n")],
        }
        for turn in chat(*words)
    ]


def read(data, count=9, **keywords):
    return source_of(data, **keywords).read(0, count)


def sources_of(items, folder):
    """The same rows as every kind of source that holds conversations."""
    (folder / "items.json").write_text(json.dumps(items))
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    table = datasets.Dataset.from_list(items)
    table.to_parquet(folder / "items.parquet")
    table.save_to_disk(folder / "saved")
    stream = datasets.IterableDataset.from_generator(partial(iter, items))
    in_memory = (items, pd.DataFrame(items), table.data.table, iter(items), table, table.to_iterable_dataset(), stream)
    files = (folder / name for name in ("items.json", "items.jsonl", "items.parquet", "saved"))
    return [interp.Data(each, root=folder) for each in (*in_memory, *files)]


def indexed(*words):
    """Parts as `datasets` keeps them: each has the keys of all, and an image its number."""
    numbers = count()
    return [
        {
            **turn,
            "content": [
                {"type": "image", "text": None, "index": next(numbers)}
                if part["type"] == "image"
                else {**part, "index": None}
                for part in turn["content"]
            ],
        }
        for turn in in_parts(*words)
    ]


@pytest.fixture
def folder(tmp_path):
    for value in range(3):
        Image.new("RGB", (4, 4), (value, 0, 7)).save(tmp_path / f"{value}.png")
    Image.new("1", (4, 4), 1).save(tmp_path / "mask.png")
    return tmp_path


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1).filter(str.strip)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), st.none() | WORDS)
def test_turns_go_in_and_come_out(turns, system):
    words = [text for turn in turns for text in turn]
    for column, write, speaker, value in (
        ("conversations", llava, "from", "value"),
        ("messages", chat, "role", "content"),
        ("messages", in_parts, "role", "content"),
    ):
        first = [] if system is None else [{speaker: "system", value: system}]
        (row,) = read([{column: [*first, *write(*words)]}])
        assert row.turns == tuple(turns)
        assert (row.text, row.labels, row.system) == (turns[0][0], {"answer": turns[0][1]}, system)
        assert open_turns(row) == []


TURNS = ("<image>\nWhat ?", "Ünïcode 猫.", "<image>\nand\n<image>\nSame ?", "No.")


@pytest.mark.parametrize(
    ("column", "write"), [("conversations", llava), *(("messages", write) for write in (chat, in_parts, indexed))]
)
def test_every_source_gives_the_same_turns_and_pictures(folder, column, write):
    items = [
        {"id": "a", "image": ["0.png", "1.png", "2.png"], column: write(*TURNS)},
        {"id": "b", "image": ["1.png"], column: write("Hi.", "Hello.", "<image>\nWhat ?", "A dog.")},
        {"id": "c", "image": None, column: write("Who ?", "Me.")},
    ]
    for data in sources_of(items, folder):
        rows = read(data)
        assert [row.turns for row in rows] == [
            ((TURNS[0], TURNS[1]), (TURNS[2], TURNS[3])),
            (("Hi.", "Hello."), ("<image>\nWhat ?", "A dog.")),
            (("Who ?", "Me."),),
        ]
        assert [row.text for row in rows] == [TURNS[0], "Hi.", "Who ?"]
        reds = [[picture.getpixel((0, 0))[0] for picture in open_turns(row)] for row in rows]
        assert reds == [[0, 1, 2], [1], []]
        # Whoever reads the text alone has three pictures for one place, and one for none.
        for row in rows[:2]:
            with pytest.raises(interp.InputError, match=r"its text .* <image> and the row has . images"):
                open_row(row)


def test_a_struct_of_lists_holds_turns_too():
    text = datasets.Value("string")
    features = datasets.Features({"conversations": datasets.Sequence({"from": text, "value": text})})
    turns = {"from": ["human", "gpt", "human", "gpt"], "value": ["a", "b", "c", "d"]}
    table = datasets.Dataset.from_dict({"conversations": [turns]}, features=features)
    for source in (table, table.to_iterable_dataset()):
        assert read(source)[0].turns == (("a", "b"), ("c", "d"))


FAULTS = [
    (llava("a"), "ends with a turn of the human: expected an answer to it, or leave that turn out"),
    (llava("a", "b", "c"), "ends with a turn of the human"),
    ([*llava("a", "b"), *llava("-", "c")[1:]], "turn 2 of its conversation is from 'gpt': expected 'human'"),
    (llava("-", "a", "b", "c")[1:], "turn 0 of its conversation is from 'gpt': expected 'human'"),
    ([*llava("a"), *llava("b", "c")], "turn 1 of its conversation is from 'human': expected 'gpt'"),
    ([*llava("a", "b"), {"from": "system", "value": "c"}], "turn 2 of its conversation is from 'system'"),
    ([{"from": "tool", "value": "a"}, *llava("a", "b")], "turn 0 of its conversation is from 'tool'"),
    (llava("a", ""), "turn 1 of its conversation holds '': expected words"),
    (llava("a", "b", " ", "c"), "turn 2 of its conversation holds ' ': expected words"),
    (llava("a", "b", "c", 5), "turn 3 of its conversation holds 5"),
    ([*llava("a"), {"from": "gpt"}], "turn 1 of its conversation holds None"),
    (llava("a", "it is <image>"), "turn 1 .* is from 'gpt' and has an <image>: expected images in turns of the human"),
]


@pytest.mark.parametrize(("turns", "words"), FAULTS)
def test_a_conversation_that_cannot_be_trained_on_can_still_be_captured(turns, words):
    sound, row = read([{"conversations": llava("x", "y")}, {"conversations": turns}])
    assert sound.fault is None
    assert (row.turns, row.error, open_row(row)) == ((), None, [])
    with pytest.raises(interp.InputError, match=rf"^row 1 \('1'\): .*{words}") as caught:
        open_turns(row)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "image", "path": "a.png"}, "'a.png'"),
        ({"type": "image", "index": 1}, "'index': 1"),
        ({"type": "image_url", "image_url": {"url": "http://x"}}, "image_url"),
        ({"type": "text", "text": 5}, "'text': 5"),
        ({}, "{}"),
    ],
)
def test_parts_that_are_no_text_are_refused(part, words):
    (row,) = read([{"messages": [*chat("a", "b"), {"role": "user", "content": [part]}, *chat("-", "d")[1:]]}])
    with pytest.raises(interp.InputError, match=f"turn 2 of its conversation has the part .*{words}.* in a column"):
        open_turns(row)
    assert row.text == "a"
    (row,) = read([{"messages": [{"role": "user", "content": [part]}, *chat("-", "d")[1:]]}])
    with pytest.raises(interp.InputError, match="row 0 of the data has a conversation with the part"):
        open_row(row)


def test_pictures_of_messages_stand_in_images_too(folder):
    items = [{"images": ["0.png", "1.png"], "messages": in_parts("<image>\n<image>\nSame ?", "No.")}]
    for data in sources_of(items, folder):
        assert len(open_turns(read(data)[0])) == 2
    item = {"images": ["0.png"], "asked": "what ?"}
    for data in sources_of([item], folder):
        (row,) = read(data, prompt="<image> {asked}")
        assert len(open_row(row)) == 1


@pytest.mark.parametrize("images", [2, [3], ["http://a/b.png"], [{"width": 3}]])
def test_a_column_images_of_another_meaning(folder, images):
    """Where no text has a place for pictures, they are none; in a list or frame the column has always been of pictures."""
    items = [{"images": images, "text": "a"}] * 2
    table = datasets.Dataset.from_list(items)
    for source in (table, table.to_iterable_dataset(), iter(items)):
        for row in read(source):
            assert (row.image, open_row(row), row.labels) == (None, [], {"images": 2} if images == 2 else {})


@pytest.mark.parametrize(
    "masks", [3, "a.png", ["a.png"], [[0, 1], [1, 0]], {"size": [1, 2], "counts": "x"}, [{"label": "a", "mask": "b"}]]
)
def test_a_column_masks_of_another_meaning(folder, masks):
    """Nothing of it is read, unless it is plain: then it is a label."""
    items = [{"text": "a", "masks": masks}] * 2
    for data in sources_of(items, folder):
        for row in read(data):
            assert row.masks == ()
            assert row.labels == ({"masks": masks} if isinstance(masks, int | str) else {})
            assert open_row(row) == []
    features = datasets.Features({"text": datasets.Value("string"), "masks": datasets.Image()})
    table = datasets.Dataset.from_dict({"text": ["a"], "masks": [None]}, features=features)
    source = source_of(table)
    ((_, cells),) = source.fetch(0, 1)
    assert cells == {"text": "a"}


def test_masks_may_stand_where_pictures_do_and_pictures_in_masks(folder):
    items = [{"text": "<image> a", "masks": ["0.png"]}, {"text": "<image> b", "masks": ["2.png"]}]
    for data in sources_of(items, folder):
        rows = read(data, columns={"image": "masks"})
        assert [open_row(row)[0].getpixel((0, 0))[0] for row in rows] == [0, 2]


def test_a_stream_whose_first_rows_have_no_picture(folder):
    masks = [{"words": "red", "mask": "mask.png"}]
    asked = {"image": "1.png", "masks": masks, "conversations": llava("<image> a", "b")}
    for first in ({"conversations": llava("a", "b")}, {"conversations": llava("a", "b"), "masks": []}):
        one, two = read(interp.Data(iter([first, asked]), root=folder))
        assert (one.masks, len(open_turns(one))) == ((), 0)
        assert (two.masks[0]["mask"].name, len(open_turns(two))) == ("mask.png", 1)
    (_, row) = read(iter([{"text": "a", "masks": None}, {"text": "b", "masks": masks}]), columns={"masks": "masks"})
    assert row.masks == tuple(masks)


def test_a_struct_of_lists_holds_masks_too():
    text = datasets.Value("string")
    features = datasets.Features({"text": text, "masks": datasets.Sequence({"words": text, "mask": text})})
    cells = {"text": ["a"], "masks": [{"words": ["red", "3"], "mask": ["0.png", "1.png"]}]}
    table = datasets.Dataset.from_dict(cells, features=features)
    for source in (table, table.to_iterable_dataset()):
        assert read(source)[0].masks == ({"words": "red", "mask": "0.png"}, {"words": "3", "mask": "1.png"})


def test_an_answer_that_is_no_label_is_none():
    """Parts of another kind, as calls of tools: the rows are captured as others are."""
    call = [{"type": "tool_use", "text": "f()"}]
    messages = ([*chat("a"), {"role": "assistant", "content": call}], chat("c", "d"))
    for source in ([{"messages": each} for each in messages], iter([{"messages": each} for each in messages])):
        first, second = read(source)
        assert (first.labels, open_row(first)) == ({"answer": None}, [])
        assert second.labels == {"answer": "d"}
        with pytest.raises(interp.InputError, match=r"turn 1 of its conversation has the part .*tool_use"):
            open_turns(first)


def test_ids_may_be_what_conversations_say():
    rows = read([{"conversations": llava("a", "b")}, {"conversations": llava("c", "b")}], columns={"id": "text"})
    assert [row.id for row in rows] == ["a", "c"]
    with pytest.raises(interp.InputError, match="rows 0 and 1 have the same id 'b'"):
        read([{"conversations": llava("a", "b")}, {"conversations": llava("c", "b")}], columns={"id": "answer"})


def test_a_stream_that_begins_with_an_empty_conversation():
    first, second = read(iter([{"n": 1, "conversations": []}, {"conversations": llava("a", "b")}]))
    assert (first.labels["n"], second.labels["n"]) == (1, None)
    with pytest.raises(interp.InputError, match="has the conversation "):
        open_turns(first)
    assert second.turns == (("a", "b"),)


# Answers ------------------------------------------------------------------------------------------------------------------


def test_a_text_and_an_answer_are_an_exchange(folder):
    items = [{"text": "what ?", "answer": "red"}, {"text": "how many ?", "answer": None}]
    for data in sources_of(items, folder):
        first, second = read(data)
        assert (first.turns, first.labels) == ((("what ?", "red"),), {"answer": "red"})
        assert (second.turns, second.fault) == ((), None)
        with pytest.raises(interp.InputError, match=r"row 1 \('1'\): it has no answer: expected a column answer"):
            open_turns(second)
    (folder / "rows.csv").write_text("image,q,reply\n0.png,what ?,007\n1.png,why ?,1.50\n2.png,who ?,\n")
    rows = read(folder / "rows.csv", columns={"text": "q", "answer": "reply"}, prompt="<image> {q}")
    # What a csv says is the answer, letter by letter, whatever number a label is made of it.
    assert [row.turns for row in rows] == [(("<image> what ?", "007"),), (("<image> why ?", "1.50"),), ()]
    assert [row.labels for row in rows] == [{"answer": "007"}, {"answer": "1.50"}, {"answer": None}]
    assert len(open_turns(rows[0])) == 1


@pytest.mark.parametrize("answer", [True, 2.0, np.float32(3), "", " "])
def test_answers_that_would_be_guessed_are_refused(answer):
    (row,) = read([{"text": "a", "answer": answer}])
    with pytest.raises(interp.InputError, match=r"row 0 \('0'\): (its answer is|turn 1 of its conversation holds)"):
        open_turns(row)
    assert open_row(row) == []


def test_whole_numbers_are_written_as_they_are():
    rows = read([{"text": "a", "answer": 7}, {"text": "b", "answer": np.int64(12)}])
    assert [row.turns[0][1] for row in rows] == ["7", "12"]


def test_data_with_labels_named_answer_has_answers():
    class Asked:
        labels = {"answer": ["yes", "no"]}  # noqa: RUF012

        def pairs(self):
            return [(None, "a ?"), (None, "b ?")]

    assert [row.turns for row in read(Asked())] == [(("a ?", "yes"),), (("b ?", "no"),)]


def test_which_column_has_the_answer():
    item = {"text": "own", "answer": "yes", "reply": "no", "conversations": llava("a", "b", "c", "d")}
    whole = (("a", "b"), ("c", "d"))
    (row,) = read([item])
    assert (row.text, row.turns) == ("own", whole)
    (row,) = read([item], columns={"answer": "reply"})
    assert (row.turns, row.labels) == ((("own", "no"),), {"answer": "no"})
    (row,) = read([item], columns={"answer": None})
    assert (row.turns, row.labels) == (whole, {"reply": "no"})
    (row,) = read([{"text": "a", "answer": "b"}], columns={"answer": None})
    assert (row.turns, row.labels) == ((), {})
    with pytest.raises(interp.InputError, match="columns says 'said' for answer: the data has the columns of plain"):
        read([item], columns={"answer": "said"})


def test_a_prompt_writes_the_first_thing_that_the_human_says():
    item = {"image": Image.new("RGB", (2, 2)), "n": None, "conversations": llava("a", "b", "c", "d")}
    (row,) = read([item], prompt="<image> {text} ?")
    assert (row.text, row.turns) == ("<image> a ?", (("<image> a ?", "b"), ("c", "d")))
    assert len(open_turns(row)) == 1
    (row,) = read([item], prompt="say: {text}")
    assert (row.image, row.turns[0]) == (None, ("say: a", "b"))
    # A text without its picture, although the picture has a place in a later turn.
    (row,) = read([{**item, "conversations": llava("a", "b", "<image> c", "d")}], prompt="say: {text}")
    assert (row.image, open_row(row)) == (None, [])
    with pytest.raises(interp.InputError, match="has 1 <image> and the row has 0 images"):
        open_turns(row)
    for prompt, words in (
        ("{text} {answer}", "the prompt has {answer}, its answer: leave that field out"),
        ("{text} {n}", "a column that the prompt is made of is empty"),
    ):
        (row,) = read([item], prompt=prompt)
        assert row.turns == ()
        with pytest.raises(interp.InputError, match=words):
            open_turns(row)


def test_a_conversation_with_other_images_than_places(folder):
    turns = llava("<image> a", "b", "<image> c", "d")
    for images in (None, ["0.png"], ["0.png"] * 3):
        (row,) = read(interp.Data([{"image": images, "conversations": turns}], root=folder))
        found = len(images or ())
        with pytest.raises(interp.InputError, match=f"has 2 <image> and the row has {found} images: expected one each"):
            open_turns(row)
    (row,) = read(
        interp.Data([{"image": "../0.png", "conversations": llava("<image> a", "b")}], root=folder, on_error="skip")
    )
    with pytest.raises(interp.InputError, match="leads out of the folder"):
        open_turns(row)


def test_a_half_letter_in_any_turn_is_refused():
    (row,) = read([{"conversations": llava("a", "b", "c", "\ud800")}])
    assert open_row(row) == []
    with pytest.raises(interp.InputError, match=r"its conversation .* is not Unicode"):
        open_turns(row)


# Masks --------------------------------------------------------------------------------------------------------------------

CODED = {"size": [4, 4], "counts": "0@0"}


def test_masks_are_held_unopened(folder, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("a picture was opened"))
    item = {"image": "0.png", "text": "<image> a", "answer": "b"}
    items = [{**item, "masks": [{"words": "red 3", "mask": "mask.png"}, {"words": "a blue 7", "mask": "0.png"}]}]
    for data in sources_of(items, folder):
        names = [(mask["words"], mask["mask"].name) for mask in read(data)[0].masks]
        assert names == [("red 3", "mask.png"), ("a blue 7", "0.png")]
        assert all(mask["mask"].is_file() for mask in read(interp.Data(items, root=folder))[0].masks)
    items = [
        {**item, "masks": [{"words": ["red", "3"], "mask": CODED}]},
        {**item, "masks": []},
        {**item, "masks": None},
    ]
    for data in sources_of(items, folder):
        rows = read(data)
        assert rows[0].masks == ({"words": ["red", "3"], "mask": CODED},)
        assert rows[1].masks == rows[2].masks == ()
        assert rows[0].turns == (("<image> a", "b"),)


def test_masks_in_memory_are_pictures_and_arrays(folder):
    held = (Image.new("1", (4, 4)), np.ones((4, 4), bool))
    item = {"text": "a", "shapes": [{"words": "red", "mask": mask} for mask in held]}
    (row,) = read([item], columns={"masks": "shapes"})
    assert [mask["mask"] is each for mask, each in zip(row.masks, held, strict=True)] == [True, True]
    features = datasets.Features(
        {"text": datasets.Value("string"), "masks": [{"words": datasets.Value("string"), "mask": datasets.Image()}]}
    )
    cells = {"text": ["a"], "masks": [[{"words": "red", "mask": str(folder / "mask.png")}]]}
    table = datasets.Dataset.from_dict(cells, features=features)
    for source in (table, table.to_iterable_dataset()):
        (row,) = read(source)
        assert row.masks[0]["mask"]["path"] == str(folder / "mask.png")


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        (
            [{"words": "red", "mask": "../mask.png"}],
            "line 1 of 'rows.jsonl' names the picture '../mask.png', which leads out",
        ),
        ([{"words": "red", "mask": "/etc/mask.png"}], "names the picture '/etc/mask.png', which leads out"),
        ([{"words": "red", "mask": {"path": "C:\\mask.png"}}], "leads out of"),
        ([{"words": "red", "mask": {"path": "http://a/b.png"}}], "names the mask 'http://a/b.png': .* no URL"),
        ([{"words": "", "mask": CODED}], "has the mask {'words': ''.*: expected a list of"),
        ([{"words": [], "mask": CODED}], "has the mask"),
        ([{"words": ["red", 3], "mask": CODED}], "has the mask"),
        ([{"words": "red"}], "has the mask {'words': 'red'}"),
        (["mask.png"], "has the mask 'mask.png': expected a list of"),
        ({"words": "red", "mask": CODED}, "has the mask .*: expected a list of"),
        ({"words": ["red", "3"], "mask": ["0.png"]}, "has the mask .*: expected a list of"),
    ],
)
def test_masks_that_cannot_be_taken_stand_for_themselves(folder, masks, words):
    item = {"image": "0.png", "text": "<image> a", "masks": masks}
    (folder / "rows.jsonl").write_text(json.dumps(item))
    (row,) = read(folder / "rows.jsonl", columns={"masks": "masks"})
    (error,) = [mask["mask"] for mask in row.masks]
    assert isinstance(error, interp.InputError)
    with pytest.raises(interp.InputError, match=words) as caught:
        raise error
    assert "\n" not in str(caught.value)
    assert str(folder) not in str(caught.value)
    assert len(open_row(row)) == 1


def test_a_plain_column_masks_is_a_label(folder):
    (folder / "rows.csv").write_text("text,masks\na,3\n")
    (row,) = read(folder / "rows.csv")
    assert (row.labels, row.masks) == ({"masks": 3}, ())
