"""The toy's language: captions, questions and the word-level tokenizer.

A caption names the objects of a scene in reading order: ``a red 3 at top-left and a blue 7 at bottom .``
A question is a few words that end in ``?``, and its answer is one word. Digits in a picture are written as symbols
(``3``), counts and sums as words (``three``), so that a digit in a question points at one place of the caption.

*Perception* questions ask what a picture shows: colour, digit, place, existence, count. *Abstraction* questions ask for
a conclusion: sum, larger, parity, same colour. Each kind is one function below. It returns None if its question makes no
sense for the scene, such as the sum of a single digit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from interp.errors import InputError

COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
PLACES = ("top-left", "top", "top-right", "left", "centre", "right", "bottom-left", "bottom", "bottom-right")
DIGITS = tuple(str(digit) for digit in range(10))
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
).split()
WORDS = (
    "a and at . ? what which where how is are there the digit digits colour many sum of larger even or odd both same "
    "yes no"
).split()
SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
IMAGE_TOKEN = "<image>"
VOCABULARY = (*SPECIAL.values(), IMAGE_TOKEN, *WORDS, *DIGITS, *COLOURS, *PLACES, *NUMBERS)
IDS = {word: index for index, word in enumerate(VOCABULARY)}

_OBJECT = re.compile(rf"a ({'|'.join(COLOURS)}) ([0-9]) at ({'|'.join(sorted(PLACES, key=len, reverse=True))})")


@dataclass(frozen=True, order=True)
class SceneObject:
    """One digit in a scene: `digit` 0 to 9, `colour` and `place` as words; `place_index` counts the cells from 0 to 8."""

    place_index: int
    digit: int
    colour: str

    @property
    def place(self) -> str:
        return PLACES[self.place_index]

    @property
    def words(self) -> str:
        return f"a {self.colour} {self.digit} at {self.place}"


@dataclass(frozen=True)
class Question:
    """A question about one scene. `prompt` begins with the image placeholder, `text_prompt` with the caption instead."""

    kind: str
    text: str
    answer: str
    caption: str

    @property
    def group(self) -> str:
        return "perception" if self.kind in PERCEPTION else "abstraction"

    @property
    def prompt(self) -> str:
        return f"{IMAGE_TOKEN} {self.text}"

    @property
    def text_prompt(self) -> str:
        return f"{self.caption} {self.text}"


def write_caption(objects: Sequence[SceneObject]) -> str:
    """The caption of these objects, in the order of the sequence.

    >>> write_caption([SceneObject(0, 3, "red"), SceneObject(7, 7, "blue")])
    'a red 3 at top-left and a blue 7 at bottom .'
    """
    return " and ".join(item.words for item in objects) + " ."


def parse_caption(text: str) -> tuple[SceneObject, ...]:
    """The objects that a caption names: the inverse of `write_caption`.

    Raises `InputError` if the text is not a caption of one to nine objects in different places.

    >>> parse_caption("a red 3 at top-left .")
    (SceneObject(place_index=0, digit=3, colour='red'),)
    """
    body = text.strip()
    parts = body.removesuffix(".").strip().split(" and ")
    matches = [_OBJECT.fullmatch(part.strip()) for part in parts]
    if not body.endswith(".") or any(match is None for match in matches):
        raise InputError(
            f"{text!r} is not a caption: expected text like 'a red 3 at top-left and a blue 7 at bottom .'"
        )
    objects = tuple(SceneObject(PLACES.index(m[3]), int(m[2]), m[1]) for m in matches if m is not None)
    if len({item.place_index for item in objects}) < len(objects):
        raise InputError(f"{text!r} puts two objects in one place: expected each place once")
    return objects


# One function for each kind: (objects, rng) -> (question, answer), or None if the question makes no sense --------------


def _pick(objects: Sequence[SceneObject], rng: np.random.Generator) -> SceneObject:
    return objects[int(rng.integers(len(objects)))]


def _ask_colour(objects: Sequence[SceneObject], rng: np.random.Generator) -> tuple[str, str]:
    item = _pick(objects, rng)
    return f"what colour is the {item.digit} ?", item.colour


def _ask_digit(objects: Sequence[SceneObject], rng: np.random.Generator) -> tuple[str, str]:
    item = _pick(objects, rng)
    return f"which digit is at {item.place} ?", str(item.digit)


def _ask_place(objects: Sequence[SceneObject], rng: np.random.Generator) -> tuple[str, str]:
    item = _pick(objects, rng)
    return f"where is the {item.digit} ?", item.place


def _ask_existence(objects: Sequence[SceneObject], rng: np.random.Generator) -> tuple[str, str]:
    """Half of the answers are yes. For a no, either the colour or the digit of an object is replaced."""
    item = _pick(objects, rng)
    if rng.random() < 0.5:
        return f"is there a {item.colour} {item.digit} ?", "yes"
    if rng.random() < 0.5:
        others = [colour for colour in COLOURS if colour != item.colour]
        return f"is there a {others[rng.integers(len(others))]} {item.digit} ?", "no"
    present = {other.digit for other in objects}
    absent = [digit for digit in range(10) if digit not in present]
    return f"is there a {item.colour} {absent[rng.integers(len(absent))]} ?", "no"


def _ask_count(objects: Sequence[SceneObject], rng: np.random.Generator) -> tuple[str, str]:
    return "how many digits are there ?", NUMBERS[len(objects)]


def _ask_sum(objects: Sequence[SceneObject], rng: np.random.Generator) -> tuple[str, str] | None:
    if len(objects) != 2:
        return None
    return "what is the sum of both ?", NUMBERS[sum(item.digit for item in objects)]


def _ask_larger(objects: Sequence[SceneObject], rng: np.random.Generator) -> tuple[str, str] | None:
    if len(objects) != 2:
        return None
    return "which digit is larger ?", str(max(item.digit for item in objects))


def _ask_parity(objects: Sequence[SceneObject], rng: np.random.Generator) -> tuple[str, str]:
    item = _pick(objects, rng)
    return f"is the digit at {item.place} even or odd ?", "odd" if item.digit % 2 else "even"


def _ask_same_colour(objects: Sequence[SceneObject], rng: np.random.Generator) -> tuple[str, str] | None:
    if len(objects) != 2:
        return None
    return "are both the same colour ?", "yes" if objects[0].colour == objects[1].colour else "no"


_Asker = Callable[[Sequence[SceneObject], np.random.Generator], "tuple[str, str] | None"]
PERCEPTION: dict[str, _Asker] = {
    "colour": _ask_colour,
    "digit": _ask_digit,
    "place": _ask_place,
    "existence": _ask_existence,
    "count": _ask_count,
}
ABSTRACTION: dict[str, _Asker] = {
    "sum": _ask_sum,
    "larger": _ask_larger,
    "parity": _ask_parity,
    "same colour": _ask_same_colour,
}
KINDS = {**PERCEPTION, **ABSTRACTION}
LOOK_UPS = (
    "colour",
    "digit",
    "place",
)  # in training twice as frequent as other kinds, because they are harder to learn


def ask(kind: str, objects: Sequence[SceneObject], rng: np.random.Generator, caption: str) -> Question | None:
    """A question of this kind about these objects, or None if it makes no sense for them."""
    text_and_answer = KINDS[kind](objects, rng)
    return None if text_and_answer is None else Question(kind, *text_and_answer, caption)


def build_tokenizer():
    """The word-level tokenizer of `VOCABULARY`: lower case, split at spaces and before ``.`` and ``?``, ``<bos>`` first."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(IDS, unk_token=SPECIAL["unk_token"]))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[.?]"), "isolated")]
    )
    bos = SPECIAL["bos_token"]
    core.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, IDS[bos])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        **SPECIAL,
        additional_special_tokens=[IMAGE_TOKEN],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
