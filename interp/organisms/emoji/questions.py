"""What is asked about a picture of emoji in training and in tests: its things, their places, their number and its ground.

These are questions of *perception*: the picture shows the answer. Questions of *abstraction* (does it fly, is it
sweet) ask for what the language model knows of a thing by its name; no training asks them about a picture.

Conversations are in LLaVA's format, for `interp.tuning.tune`, and captions are a text and its answer, for a connector alone.
Questions and answers are short, since every token costs time in training: an answer is the bare name, place, number or colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interp.arguments import checked_int
from interp.displays import Display
from interp.organisms.emoji.picture import SPLITS, EmojiPicture, Thing, pictures

TURNS = 4
PERCEPTION_KINDS = ("name", "place", "count", "ground")
CAPTION_PROMPT = "<|im_start|><image>A picture of"
_NUMBERS = ("no", "one", "two")
_PLACES_ASKED = 0.25  # how often a conversation about two things asks for the place of a thing that it does not name


@dataclass(frozen=True)
class EmojiQuestion(Display):
    """A question and its answer. `prompt` has ``<image>`` where the picture stands, `text_prompt` has words there instead.

    `kind` says what is asked, and `group` is "perception" or "abstraction". The words are those of `description` for perception,
    and the name of the thing for abstraction. Abstraction asks for a choice, and `other` is the wrong word.
    """

    prompt: str
    text_prompt: str
    answer: str
    kind: str
    group: str
    other: str = ""


def description(picture: EmojiPicture) -> str:
    """A picture in words.

    >>> description(pictures(1, seed=0)[0])
    'Japanese "congratulations" button at the top right, on a gray ground'
    """
    things = [f"{thing.emoji.name} {_where(thing)}" for thing in picture.things]
    return f"{' and '.join(things)}, on a {picture.ground} ground"


def perception_questions(picture: EmojiPicture) -> list[EmojiQuestion]:
    """All questions of perception about a picture: the name and the place of each thing, their number and the ground.

    >>> asked = perception_questions(pictures(3, seed=0)[2])
    >>> [(question.prompt.removeprefix("<image>\\n"), question.answer) for question in asked[:2]]
    [('What is this?', 'biting lip'), ('Where is the biting lip?', 'middle')]
    """
    words = description(picture)
    asked = [pair for thing in picture.things for pair in (_name(thing, picture), _place(thing))]
    return [
        EmojiQuestion(f"<image>\n{text}", f"{words}\n{text}", answer, kind, "perception")
        for kind, text, answer in (*asked, _count(picture), _ground(picture))
    ]


def picture_conversations(n: int, seed: int, split: str = "train", turns: int = TURNS) -> list[dict[str, Any]]:
    """Conversations of up to four `turns` about `n` pictures in LLaVA's format, a row each: id, image, conversations and masks.

    >>> row = picture_conversations(1, seed=2)[0]
    >>> [turn["value"] for turn in row["conversations"]][:4]
    ['<image>\\nWhat is this?', 'badminton', 'Where is the badminton?', 'middle']

    No question names a thing before its name was asked, or asks what an earlier answer says. So of two things each is asked
    for by its place, or, one time in four, its place by its name. The order is random otherwise. The same seed gives the same
    rows, and fewer turns are the first of more. `masks` has an entry for each thing that the conversation names, its name and
    its pixels, Bool `[64, 64]`.

    Raises `InputError` for numbers out of range and an unknown split.
    """
    turns = checked_int(turns, "turns", least=1, most=TURNS)
    rows = []
    for place, picture in enumerate(pictures(n, seed, split)):
        asked = _drawn_questions(picture, np.random.default_rng([seed, SPLITS.index(split), 2, place]))[:turns]
        said: list[dict[str, str]] = []
        for _, text, answer in asked:
            opening = "" if said else "<image>\n"
            said += [{"from": "human", "value": opening + text}, {"from": "gpt", "value": answer}]
        named = [thing for thing in picture.things if {_name(thing, picture), _place(thing)} & set(asked)]
        rows.append(
            {"id": f"{split}-{seed}-{place}", "image": picture.image, "conversations": said, "masks": _masks(named)}
        )
    return rows


def picture_captions(n: int, seed: int, split: str = "train") -> list[dict[str, Any]]:
    """Captions of `n` pictures, a row each: id, image, text, answer and masks.

    >>> row = picture_captions(2, seed=0, split="test")[0]
    >>> row["text"], row["answer"]
    ('<|im_start|><image>A picture of', ' Japanese "congratulations" button')

    The answer has the names of one or two things in reading order. SmolLM2's tokenizer writes no begin token, so the text has
    it; the model must be without its chat template (`interp.organisms.emoji.without_template`). The same seed gives the
    pictures of `picture_conversations`. `masks` has the name and the pixels of each thing.

    Raises `InputError` for numbers out of range and an unknown split.
    """
    return [
        {
            "id": f"{split}-{seed}-{place}",
            "image": picture.image,
            "text": CAPTION_PROMPT,
            "answer": " " + " and ".join(thing.emoji.name for thing in picture.things),
            "masks": _masks(picture.things),
        }
        for place, picture in enumerate(pictures(n, seed, split))
    ]


_Asked = tuple[str, str, str]  # kind, question, answer


def _where(thing: Thing) -> str:
    return "in the middle" if thing.place == "middle" else f"at the {thing.place}"


def _name(thing: Thing, picture: EmojiPicture) -> _Asked:
    text = "What is this?" if len(picture.things) == 1 else f"What is {_where(thing)}?"
    return "name", text, thing.emoji.name


def _place(thing: Thing) -> _Asked:
    return "place", f"Where is the {thing.emoji.name}?", thing.place


def _count(picture: EmojiPicture) -> _Asked:
    return "count", "How many things?", _NUMBERS[len(picture.things)]


def _ground(picture: EmojiPicture) -> _Asked:
    return "ground", "What color is the ground?", picture.ground


def _drawn_questions(picture: EmojiPicture, rng: np.random.Generator) -> list[_Asked]:
    """Four questions in random order, with the name of a single thing before its place."""
    if len(picture.things) == 1:
        about = [_name(picture.things[0], picture), _place(picture.things[0])]
    else:
        about = [_place(thing) if rng.random() < _PLACES_ASKED else _name(thing, picture) for thing in picture.things]
    asked = [*about, _count(picture), _ground(picture)]
    order = rng.permutation(len(asked)).tolist()
    if len(picture.things) == 1:  # those two keep their order
        first, second = sorted((order.index(0), order.index(1)))
        order[first], order[second] = 0, 1
    return [asked[index] for index in order]


def _masks(things: Sequence[Thing]) -> list[dict[str, Any]]:
    return [{"words": thing.emoji.name, "mask": thing.mask} for thing in things]
