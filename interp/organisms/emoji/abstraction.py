"""Abstraction: what one knows of a thing by its name, asked as a choice between two words.

A question is a list of three lines: two examples and the thing. The answer is one of the two words of the examples::

    sparrow: fly
    dog: walk
    <image>:                       then " fly" or " walk"

SmolLM2-135M does not answer "Can it fly? Answer yes or no." better than chance from the name of a thing, and the list it does.
What it says depends on the order of the examples. So each question is asked in both orders, and the answer is the word with the
larger mean logit of its first token. About a name, `text_prompt` is the same with the name in the place of the picture.

``data/labels.csv`` says for which emoji the answer is known: those of some of Unicode's subgroups, and others by name, with the
rule in words. ``data/screening.csv`` has the two words and the examples of each kind of question and how well SmolLM2 answers
it from names (`interp.organisms.emoji.screen`). The kinds with at least 80 % on names that had no part in the choice of words
are asked.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from interp.displays import Display
from interp.organisms.emoji.catalogue import DATA, Emoji, catalogue
from interp.organisms.emoji.questions import EmojiQuestion

LABELS, SCREENING = DATA / "labels.csv", DATA / "screening.csv"
IMAGE = "<image>"


@dataclass(frozen=True)
class ChoiceWording(Display):
    """A choice between two words with an example of each: ``ChoiceWording("fly", "walk", "bird", "dog")``."""

    first: str
    second: str
    first_example: str
    second_example: str

    def prompts(self, thing: str) -> tuple[str, str]:
        """The question about a thing, with its examples in both orders.

        >>> ChoiceWording("fly", "walk", "bird", "dog").prompts("owl")[0]
        '<|im_start|>bird: fly\\ndog: walk\\nowl:'
        """
        one, other = f"{self.first_example}: {self.first}\n", f"{self.second_example}: {self.second}\n"
        return f"<|im_start|>{one}{other}{thing}:", f"<|im_start|>{other}{one}{thing}:"


@cache
def known_labels() -> MappingProxyType[str, MappingProxyType[str, bool]]:
    """For each kind of question the names of emoji with a known answer: True where it is the first word.

    >>> known_labels()["fly"]["eagle"], known_labels()["fly"]["gorilla"], "kite" in known_labels()["fruit"]
    (True, False, False)
    """
    labels: dict[str, dict[str, bool]] = {}
    for row in _rows(LABELS):
        subgroups, names, without = (set(row[key].split(";")) for key in ("subgroups", "names", "without"))
        chosen = [each.name for each in catalogue() if each.subgroup in subgroups or each.name in names]
        labels.setdefault(row["kind"], {}).update(
            {name: row["label"] == "yes" for name in chosen if name not in without}
        )
    return MappingProxyType({kind: MappingProxyType(names) for kind, names in labels.items()})


@cache
def asked_wordings() -> MappingProxyType[str, ChoiceWording]:
    """The kinds of questions that are asked, those that SmolLM2 answers from names, each with its two words and examples."""
    rows = [row for row in _rows(SCREENING) if row["kept"] == "yes"]
    names = ("first", "second", "first_example", "second_example")
    return MappingProxyType({row["kind"]: ChoiceWording(*(row[name] for name in names)) for row in rows})


def abstraction_questions(emoji: Emoji, kinds: Iterable[str] | None = None) -> list[EmojiQuestion]:
    """The questions of abstraction about an emoji whose answers are known, two for each kind: the examples in both orders.

    >>> emoji = next(each for each in catalogue() if each.name == "eagle")
    >>> question = abstraction_questions(emoji, ["fly"])[0]
    >>> question.text_prompt, question.answer, question.other
    ('<|im_start|>sparrow: fly\\ndog: walk\\neagle:', 'fly', 'walk')

    `kinds` are all kinds that are asked where it is None. A kind's own examples are not asked about.
    """
    questions = []
    for kind, wording in asked_wordings().items():
        is_first = known_labels()[kind].get(emoji.name)
        is_example = emoji.name in (wording.first_example, wording.second_example)
        if is_first is None or is_example or (kinds is not None and kind not in kinds):
            continue
        answer, other = (wording.first, wording.second) if is_first else (wording.second, wording.first)
        for prompt, text_prompt in zip(wording.prompts(IMAGE), wording.prompts(emoji.name), strict=True):
            questions.append(EmojiQuestion(prompt, text_prompt, answer, kind, "abstraction", other))
    return questions


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
