"""How well the toy answers: accuracy by kind of question, from text and from images, with intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from interp.errors import InputError
from interp.models import VLM, load
from interp.models.batches.targets import target_id
from interp.toy.language import KINDS, Question
from interp.toy.scenes import Scene, scenes

if TYPE_CHECKING:
    import pandas as pd

_MODALITIES = ("text", "image")


def evaluate(
    model: str | VLM = "toy:tuned", n: int = 300, seed: int = 0, split: str = "test", batch_size: int = 64
) -> pd.DataFrame:
    """The accuracy of a toy on questions about `n` scenes of `split`: a row for each kind of question and modality.

    Every question is asked twice, after the caption ("text") and after the picture ("image"); it is right where the
    answer is the most probable next token. `low` and `high` are Wilson's 95 % interval, `chance` the share of the most
    common answer. Columns: model, modality, group, kind, accuracy, low, high, chance, n.

    >>> evaluate("toy:tuned", n=2).columns.tolist()[:4]
    ['model', 'modality', 'group', 'kind']
    """
    import pandas as pd

    if n < 1:
        raise InputError(f"n={n!r}: expected at least one scene")
    vlm = model if isinstance(model, VLM) else load(model)
    data = scenes(n, seed, split=split)
    asked = [(scene, question) for scene in data for question in scene.questions]
    rows = []
    for modality in _MODALITIES:
        right: dict[str, list[bool]] = defaultdict(list)
        for (_, question), answer in zip(asked, _answers(vlm, asked, modality, batch_size), strict=True):
            right[question.kind].append(answer == target_id(vlm, question.answer))
        for kind in KINDS:
            answers = [question.answer for _, question in asked if question.kind == kind]
            if answers:
                rows.append([vlm.name, modality, *_row(kind, right[kind], answers)])
    columns = ["model", "modality", "group", "kind", "accuracy", "low", "high", "chance", "n"]
    return pd.DataFrame(rows, columns=columns)


def _row(kind: str, right: Sequence[bool], answers: Sequence[str]) -> list[Any]:
    from scipy.stats import binomtest

    interval = binomtest(sum(right), len(right)).proportion_ci(method="wilson")
    chance = max(answers.count(answer) for answer in set(answers)) / len(answers)
    group = Question(kind, "", "", "").group
    return [group, kind, sum(right) / len(right), interval.low, interval.high, chance, len(right)]


def _answers(vlm: VLM, asked: Sequence[tuple[Scene, Question]], modality: str, batch_size: int) -> Iterator[int]:
    """The most probable next token after each question."""
    for start in range(0, len(asked), batch_size):
        part = asked[start : start + batch_size]
        if modality == "image":
            batch = vlm.prepare([question.prompt for _, question in part], [scene.image for scene, _ in part])
        else:
            batch = vlm.prepare([question.text_prompt for _, question in part])
        yield from vlm.logits(batch).argmax(dim=-1).tolist()
