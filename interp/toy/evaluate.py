"""How well the toy answers: accuracy for each kind of question, from text and from images, with intervals.

Each accuracy comes with its control: `chance` is the accuracy of a model that always gives the most common answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from interp.arguments import checked_int
from interp.models import VLM, load
from interp.models.batches.targets import target_ids
from interp.progress import Bar, progress_bar
from interp.toy.language import KINDS, Question
from interp.toy.scenes import Scene, scenes

if TYPE_CHECKING:
    import pandas as pd

_MODALITIES = ("text", "image")


def evaluate(
    model: str | VLM = "toy:tuned",
    n: int = 300,
    seed: int = 0,
    split: str = "test",
    batch_size: int = 64,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure the accuracy of a toy on questions about `n` scenes of `split`: a row for each modality and kind of question.

    >>> evaluate("toy:tuned", n=2).columns.tolist()[:4]
    ['model', 'modality', 'group', 'kind']

    The model gets every question twice, after the caption ("text") and after the picture ("image"). An answer is right if
    it is the most probable next token. Columns: model, modality, group, kind, accuracy, low and high (Wilson's 95 %
    interval), chance (the share of the most common answer), n (the number of questions). A long run shows its progress on a
    terminal or in a notebook; ``progress=False`` hides it.

    Raises `InputError` if `n` is not an int of 1 or more, and for an unknown `split`.
    """
    import pandas as pd

    data = scenes(checked_int(n, "n", least=1), seed, split=split)
    vlm = model if isinstance(model, VLM) else load(model)
    questions = [(scene, question) for scene in data for question in scene.questions]
    rows = []
    answered = {}
    with progress_bar(f"evaluating {vlm.name}", len(_MODALITIES) * len(questions), "questions", progress) as bar:
        for modality in _MODALITIES:
            answered[modality] = list(_answers(vlm, questions, modality, batch_size, bar))
    for modality in _MODALITIES:
        right: dict[str, list[bool]] = defaultdict(list)
        for (_, question), is_right in zip(questions, answered[modality], strict=True):
            right[question.kind].append(is_right)
        for kind in KINDS:
            answers = [question.answer for _, question in questions if question.kind == kind]
            if answers:
                rows.append([vlm.name, modality, *_row(kind, right[kind], answers)])
    columns = ["model", "modality", "group", "kind", "accuracy", "low", "high", "chance", "n"]
    return pd.DataFrame(rows, columns=columns)


def _row(kind: str, right: Sequence[bool], answers: Sequence[str]) -> list[Any]:
    from scipy.stats import binomtest

    interval = binomtest(sum(right), len(right)).proportion_ci(method="wilson")
    chance = Counter(answers).most_common(1)[0][1] / len(answers)
    group = Question(kind, "", "", "").group
    return [group, kind, sum(right) / len(right), interval.low, interval.high, chance, len(right)]


def _answers(
    vlm: VLM, questions: list[tuple[Scene, Question]], modality: str, batch_size: int, bar: Bar
) -> Iterator[bool]:
    """Whether the most probable next token after each question is its answer."""
    for start in range(0, len(questions), batch_size):
        part = questions[start : start + batch_size]
        if modality == "image":
            batch = vlm.prepare([question.prompt for _, question in part], [scene.image for scene, _ in part])
        else:
            batch = vlm.prepare([question.text_prompt for _, question in part])
        answers = target_ids(vlm, batch, [question.answer for _, question in part])
        yield from (vlm.logits(batch).argmax(dim=-1).cpu() == answers).tolist()
        bar.advance(len(part))
