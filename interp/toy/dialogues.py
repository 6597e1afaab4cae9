"""Questions about scenes as data: conversations to tune a model on, and single questions to test it with.

Both are lists of dicts with the columns that `interp.Data` reads: LLaVA's conversations, or a text and its answer. Six
questions follow each picture, as in the toy's own training, so that one picture trains many look-ups. No question is asked
twice of one scene, since its answer would stand in the conversation already. Scenes of the two splits share no glyph and no
combination of colour, digit and place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from interp.arguments import checked_choice, checked_int
from interp.toy.language import ABSTRACTION, KINDS, LOOK_UPS, PERCEPTION, Question, ask
from interp.toy.scenes import Scene, scenes

QUESTIONS = 6
_MODALITIES = ("image", "text")
# Which kinds are drawn from: of both groups look-ups twice as often, because they are harder to learn.
_KINDS = {"perception": tuple(PERCEPTION), "abstraction": tuple(ABSTRACTION), None: (*KINDS, *LOOK_UPS)}
# A scene has fewer questions than were asked for where so many draws bring no new one.
_DRAWS = 200


def conversations(
    n: int,
    seed: int,
    split: str = "train",
    modality: str = "image",
    group: str | None = "perception",
    questions: int | None = None,
) -> list[dict[str, Any]]:
    """Conversations about `n` scenes in LLaVA's format, a row each: id, image, conversations and masks.

    >>> row = conversations(1, seed=0, questions=2)[0]
    >>> [turn["value"] for turn in row["conversations"]]
    ['<image> which digit is at right ?', '0', 'where is the 0 ?', 'right']
    >>> [mask["words"] for mask in row["masks"]], row["masks"][0]["mask"].shape
    (['green 8', 'green 0'], (48, 48))

    A conversation asks `questions` different questions of a `group`, perception, abstraction or None for both, six where
    it is None, and fewer where a scene has no more. Each question draws its kind and its object anew. The same seed gives the
    same rows, and fewer questions are the first of more. With ``questions=1`` a row also has its `kind` and, as its `group`,
    the id of the scene. `masks` has an entry for each object: its colour and digit, and its pixels, Bool `[48, 48]`.

    With ``modality="text"`` rows have no image and no masks, and the first question follows the caption instead of ``<image>``.

    Raises `InputError` for an unknown split, modality or group, and for an `n`, `seed` or `questions` out of range.
    """
    checked_choice(modality, "modality", _MODALITIES)
    checked_choice(group, "group", tuple(_KINDS))
    most = QUESTIONS if questions is None else checked_int(questions, "questions", least=1, what="None or an int")
    rows = []
    for scene in scenes(n, seed, split):
        asked = _draw_questions(scene, _KINDS[group], most)
        turns = [{"from": "human", "value": _opening(asked[0], modality)}, {"from": "gpt", "value": asked[0].answer}]
        for question in asked[1:]:
            turns += [{"from": "human", "value": question.text}, {"from": "gpt", "value": question.answer}]
        row = {"id": scene.id, **_picture(scene, modality), "conversations": turns}
        if modality == "image":
            row["masks"] = [
                {"words": f"{item.colour} {item.digit}", "mask": mask}
                for item, mask in zip(scene.objects, scene.masks, strict=True)
            ]
        rows.append({**row, "kind": asked[0].kind, "group": scene.id} if questions == 1 else row)
    return rows


def questions(
    n: int, seed: int, split: str = "test", modality: str = "image", group: str | None = None
) -> list[dict[str, Any]]:
    """The questions about `n` scenes, a row for each question: id, image, text, answer, kind, and as group the scene's id.

    >>> row = questions(1, seed=0)[0]
    >>> row["text"], row["answer"], row["kind"]
    ('<image> what colour is the 9 ?', 'cyan', 'colour')

    They are the `questions` of each scene, one of each kind that makes sense for it, of one `group` or, with None, of both.
    With ``modality="text"`` rows have no image, and the caption stands in the place of ``<image>``.

    Raises `InputError` for an unknown split, modality or group, and for an `n` or `seed` out of range.
    """
    checked_choice(modality, "modality", _MODALITIES)
    checked_choice(group, "group", tuple(_KINDS))
    return [
        {
            "id": f"{scene.id}-{question.kind}",
            **_picture(scene, modality),
            "text": _opening(question, modality),
            "answer": question.answer,
            "kind": question.kind,
            "group": scene.id,
        }
        for scene in scenes(n, seed, split)
        for question in scene.questions
        if question.kind in _KINDS[group]
    ]


def _picture(scene: Scene, modality: str) -> dict[str, Any]:
    return {"image": scene.image} if modality == "image" else {}


def _opening(question: Question, modality: str) -> str:
    return question.prompt if modality == "image" else question.text_prompt


def _draw_questions(scene: Scene, kinds: Sequence[str], most: int) -> list[Question]:
    """At most so many different questions about a scene, always the same ones and in one order."""
    rng = np.random.default_rng([scene.noise, 2])
    asked: dict[str, Question] = {}
    for _ in range(_DRAWS):
        question = ask(kinds[int(rng.integers(len(kinds)))], scene.objects, rng, scene.caption)
        if question is not None:
            asked.setdefault(question.text, question)
        if len(asked) == most:
            break
    return list(asked.values())
