"""Conversations and questions about scenes: right answers, nothing asked twice, nothing of the test split in training."""

import numpy as np
import pytest

import interp
from interp.data.rows import open_row, open_turns
from interp.data.sources import source_of
from interp.toy.language import KINDS, parse_caption


def asked(row):
    turns = row["conversations"]
    assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
    return [turn["value"] for turn in turns[::2]], [turn["value"] for turn in turns[1::2]]


def answer_of(question, objects):
    """The answer to a question, worked out from the words alone, without the functions that ask."""
    words = question.split()[:-1]
    by_digit, by_place = {str(item.digit): item for item in objects}, {item.place: item for item in objects}
    if words[:3] == ["what", "colour", "is"]:
        return by_digit[words[-1]].colour
    if words[:3] == ["which", "digit", "is"] and words[-1] != "larger":
        return str(by_place[words[-1]].digit)
    if words[:2] == ["where", "is"]:
        return by_digit[words[-1]].place
    if words[:2] == ["is", "there"]:
        return "yes" if any([item.colour, str(item.digit)] == words[-2:] for item in objects) else "no"
    if words[0] == "how":
        return ("one", "two", "three")[len(objects) - 1]
    return None


@pytest.mark.parametrize("modality", ["image", "text"])
def test_conversations_ask_six_questions_with_their_answers(modality):
    rows = interp.toy.conversations(40, seed=3, modality=modality)
    scenes = interp.toy.scenes(40, seed=3, split="train")
    for row, scene in zip(rows, scenes, strict=True):
        questions, answers = asked(row)
        start = "<image> " if modality == "image" else f"{scene.caption} "
        assert questions[0].startswith(start)
        questions[0] = questions[0].removeprefix(start)
        assert len(set(questions)) == 6
        assert answers == [answer_of(question, scene.objects) for question in questions]
        assert row["id"] == scene.id
        assert set(row) == {"id", "conversations", *(["image", "masks"] if modality == "image" else [])}
        if modality == "image":
            assert row["image"].tobytes() == scene.image.tobytes()
            assert [mask["words"] for mask in row["masks"]] == [f"{item.colour} {item.digit}" for item in scene.objects]
            assert all((a["mask"] == b).all() for a, b in zip(row["masks"], scene.masks, strict=True))


def test_a_seed_gives_the_same_rows_and_fewer_are_the_first_of_more():
    texts = [asked(row) for row in interp.toy.conversations(8, seed=1)]
    assert texts == [asked(row) for row in interp.toy.conversations(8, seed=1)]
    assert texts[:3] == [asked(row) for row in interp.toy.conversations(3, seed=1)]
    assert texts != [asked(row) for row in interp.toy.conversations(8, seed=2)]
    for row, (questions, answers) in zip(interp.toy.conversations(8, seed=1, questions=2), texts, strict=True):
        assert asked(row) == (questions[:2], answers[:2])
    (first, *_), one = texts[0], interp.toy.conversations(1, seed=1, questions=1)[0]
    assert asked(one)[0] == first[:1]
    assert (one["group"], one["kind"] in KINDS) == ("train-1-0", True)
    # All objects of scenes are asked about, and the order of kinds differs from scene to scene.
    openings = {asked(row)[0][0].removeprefix("<image> ").split()[0] for row in interp.toy.conversations(40, seed=1)}
    assert openings == {"what", "which", "where", "is", "how"}


def test_no_object_of_training_is_in_the_questions_of_the_test_split():
    def objects(rows):
        return {item for row in rows for item in parse_caption(row.split(" . ")[0] + " .")}

    train = objects(asked(row)[0][0] for row in interp.toy.conversations(300, seed=0, modality="text"))
    test = objects(row["text"] for row in interp.toy.questions(300, seed=0, modality="text"))
    assert len(train) > 200
    assert len(test) > 50
    assert not train & test


def test_groups_of_kinds():
    def kinds(group):
        return {row["kind"] for row in interp.toy.conversations(150, seed=0, group=group, questions=1)}

    assert kinds("perception") == {"colour", "digit", "place", "existence", "count"}
    assert kinds("abstraction") == {"sum", "larger", "parity", "same colour"}
    assert kinds(None) == set(KINDS)
    rows = interp.toy.conversations(30, seed=0, group="abstraction")
    # A scene of one digit has one question of this group.
    assert {len(asked(row)[0]) for row in rows if len(row["masks"]) == 1} == {1}


@pytest.mark.parametrize("modality", ["image", "text"])
def test_questions_are_those_of_the_scenes(modality):
    rows = interp.toy.questions(5, seed=2, modality=modality)
    scenes = interp.toy.scenes(5, seed=2)
    expected = [(scene, question) for scene in scenes for question in scene.questions]
    for row, (scene, question) in zip(rows, expected, strict=True):
        assert row["text"] == (question.prompt if modality == "image" else question.text_prompt)
        assert (row["answer"], row["kind"], row["group"]) == (question.answer, question.kind, scene.id)
        assert ("image" in row) == (modality == "image")
    assert len({row["id"] for row in rows}) == len(rows)
    perception = interp.toy.questions(5, seed=2, modality=modality, group="perception")
    assert [row["kind"] for row in perception] == [q.kind for _, q in expected if q.group == "perception"]


def test_both_are_data():
    rows = source_of(interp.toy.conversations(3, seed=0)).read(0, 9)
    for row, item in zip(rows, interp.toy.conversations(3, seed=0), strict=True):
        assert row.turns == tuple(zip(*asked(item), strict=True))
        assert row.text == row.turns[0][0]
        assert np.array_equal(row.masks[0]["mask"], item["masks"][0]["mask"])
        assert open_turns(row)[0].tobytes() == open_row(row)[0].tobytes() == item["image"].tobytes()
    row = source_of(interp.toy.questions(1, seed=0, modality="text")).read(0, 1)[0]
    assert row.turns == ((row.text, row.labels["answer"]),)
    assert open_turns(row) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "dev"}, "split='dev' is unknown: use one of train, test"),
        ({"modality": "audio"}, "modality='audio' is unknown: use one of image, text"),
        ({"group": "colour"}, "group='colour' is unknown: use one of perception, abstraction, None"),
        ({"n": -1}, "n=-1: expected an int of 0 or more"),
    ],
)
def test_what_cannot_be_asked(arguments, words):
    for draw in (interp.toy.conversations, interp.toy.questions):
        with pytest.raises(interp.InputError, match=words):
            draw(**{"n": 1, "seed": 0, **arguments})
    with pytest.raises(interp.InputError, match="questions=0: expected None or an int of 1 or more"):
        interp.toy.conversations(1, seed=0, questions=0)
