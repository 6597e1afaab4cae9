"""Questions about pictures of emoji: each is answered by its picture, and none by what was said before."""

import re

import pytest
import torch

from interp.errors import InputError
from interp.organisms.emoji.picture import pictures
from interp.organisms.emoji.questions import (
    PERCEPTION_KINDS,
    description,
    perception_questions,
    picture_captions,
    picture_conversations,
)


def answer_of(picture, text):
    """The answer read off a picture by rules of this test's own."""
    names = {thing.emoji.name: thing.place for thing in picture.things}
    if text == "How many things?":
        return {1: "one", 2: "two"}[len(names)]
    if text == "What color is the ground?":
        return picture.ground
    if text == "What is this?":
        assert len(names) == 1
        return next(iter(names))
    if found := re.fullmatch(r"What is at the (.*)\?", text):
        return {place: name for name, place in names.items()}[found[1]]
    return names[re.fullmatch(r"Where is the (.*)\?", text)[1]]


def exchanges(row):
    values = [turn["value"] for turn in row["conversations"]]
    return list(zip(values[::2], values[1::2], strict=True))


def test_every_answer_is_what_the_picture_shows():
    rows, drawn = picture_conversations(300, seed=5), pictures(300, seed=5, split="train")
    for row, picture in zip(rows, drawn, strict=True):
        assert row["image"].tobytes() == picture.image.tobytes()
        asked = [(text.removeprefix("<image>\n"), answer) for text, answer in exchanges(row)]
        assert asked == [(text, answer_of(picture, text)) for text, _ in asked]
        assert [text.startswith("<image>\n") for text, _ in exchanges(row)] == [True, False, False, False]
    for picture in drawn[:50]:
        for question in perception_questions(picture):
            assert answer_of(picture, question.prompt.removeprefix("<image>\n")) == question.answer
            assert question.text_prompt == question.prompt.replace("<image>", description(picture))


def test_no_answer_was_said_before():
    """A name is not in an earlier question, and a place asked for is not that of a thing named by its place."""
    for row in picture_conversations(300, seed=6):
        before = ""
        for text, answer in exchanges(row):
            if text.endswith(("What is this?", "left?", "right?")) or text.startswith("Where"):
                assert f" the {answer}?" not in before
            before += text


def test_kinds_of_questions_and_places_are_all_asked():
    texts = [text for row in picture_conversations(200, seed=7, turns=1) for text, _ in exchanges(row)]
    assert all(any(word in text for text in texts) for word in ("this", "at the", "Where", "How many", "color"))
    asked = [question for picture in pictures(50, seed=0) for question in perception_questions(picture)]
    assert {question.kind for question in asked} == set(PERCEPTION_KINDS)
    assert {question.answer for question in asked if question.kind == "count"} == {"one", "two"}
    assert len({question.answer for question in asked if question.kind == "place"}) == 5


def test_fewer_turns_and_fewer_rows_are_the_first_of_more():
    few, many = picture_conversations(10, seed=8, turns=2), picture_conversations(20, seed=8)
    assert [exchanges(row) for row in few] == [exchanges(row)[:2] for row in many[:10]]
    assert {len(exchanges(row)) for row in many} == {4}


def test_masks_are_those_of_the_things_that_are_named():
    drawn = pictures(50, seed=9, split="train")
    for row, picture in zip(picture_conversations(50, seed=9, turns=2), drawn, strict=True):
        masks = {mask["words"]: mask["mask"] for mask in row["masks"]}
        said = [text for exchange in exchanges(row) for text in exchange]
        for thing in picture.things:
            name = thing.emoji.name
            assert (name in masks) == any(
                text in (name, f"Where is the {name}?") for text in (t.removeprefix("<image>\n") for t in said)
            )
            assert name not in masks or torch.equal(masks[name], thing.mask)


def test_captions_name_the_things_in_reading_order():
    rows, drawn = picture_captions(50, seed=10), pictures(50, seed=10, split="train")
    assert {row["text"] for row in rows} == {"<|im_start|><image>A picture of"}
    assert [row["answer"] for row in rows] == [
        " " + " and ".join(thing.emoji.name for thing in picture.things) for picture in drawn
    ]
    assert any(" and " in row["answer"] for row in rows)
    assert [len(row["masks"]) for row in rows] == [len(picture.things) for picture in drawn]


@pytest.mark.parametrize("wrong", [{"turns": 5}, {"turns": 0}, {"n": 0}, {"seed": -1}, {"split": "dev"}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        picture_conversations(**{"n": 1, "seed": 0, **wrong})
