"""How well the toy answers: accuracy for each kind of question, from text and from images, with intervals.

Questions about one scene are not independent: a model that misreads a picture errs in several of them. So intervals draw whole
scenes, and a comparison of two models is paired, question by question. Each accuracy comes with its control: `chance` is the
accuracy of a model that always gives the most common answer to each kind of question.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.arguments import checked_choice, checked_int
from interp.errors import InputError, InputTypeError, shown
from interp.models import VLM, load
from interp.models.batches.targets import target_ids
from interp.progress import Bar, progress_bar
from interp.statistics import holm, mean_interval, paired_change
from interp.toy.language import KINDS, Question
from interp.toy.scenes import Scene, scenes

if TYPE_CHECKING:
    import pandas as pd

_MODALITIES = ("text", "image")
_COLUMNS = ("model", "modality", "scene", "group", "kind", "answer", "right")


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
    it is the most probable next token. Columns: model, modality, group, kind, accuracy, low and high (95 %, Wilson's; NaN for
    one scene), chance (the share of the most common answer), n (the number of questions). A long run shows its progress on a
    terminal or in a notebook; ``progress=False`` hides it. `answer_questions` gives the single answers.

    Raises `InputError` if `n` or `batch_size` is not an int of 1 or more, for a `seed` below 0, and for an unknown `split`.
    """
    return score_answers(answer_questions(model, n, seed, split, batch_size, progress=progress))


def answer_questions(
    model: str | VLM = "toy:tuned",
    n: int = 300,
    seed: int = 0,
    split: str = "test",
    batch_size: int = 64,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask a toy every question about `n` scenes of `split`, from text and from images: a row for each modality and question.

    >>> answer_questions("toy:tuned", n=2).columns.tolist()
    ['model', 'modality', 'scene', 'group', 'kind', 'answer', 'right']

    `answer` is the right answer, and `right` whether the model gave it. Arguments and errors are
    those of `evaluate`: a long run shows its progress, ``progress=False`` hides it.
    """
    import pandas as pd

    data = scenes(checked_int(n, "n", least=1), seed, split=split)
    batch_size = checked_int(batch_size, "batch_size", least=1)
    vlm = model if isinstance(model, VLM) else load(model)
    questions = [(scene, question) for scene in data for question in scene.questions]
    places = [place for place, scene in enumerate(data) for _ in scene.questions]
    rows = []
    with progress_bar(f"evaluating {vlm.name}", len(_MODALITIES) * len(questions), "questions", progress) as bar:
        for modality in _MODALITIES:
            right = _answers(vlm, questions, modality, batch_size, bar)
            rows += [
                [vlm.name, modality, place, question.group, question.kind, question.answer, is_right]
                for place, (_, question), is_right in zip(places, questions, right, strict=True)
            ]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def score_answers(answers: pd.DataFrame, by: str = "kind") -> pd.DataFrame:
    """The accuracy for each modality and "kind" or "group" of questions, from the single answers of `answer_questions`.

    Columns: model, modality, group, kind (for "kind"), accuracy, low and high (95 %, `interp.statistics.mean_interval` with
    scenes as groups; NaN for one scene), chance (the accuracy of the most common answer to each kind), n.

    Raises `InputError` for another `by`, for a frame of other columns, without rows, or of several models; `InputTypeError` for
    anything but a frame.
    """
    import pandas as pd

    rows = []
    answers = _checked_answers(answers, "answers")
    for keys, part in _parts(answers, checked_choice(by, "by", ("kind", "group"))):
        low, high = mean_interval(_hits(part), part["scene"].to_numpy())
        chance = sum(each.value_counts().iloc[0] for _, each in part.groupby("kind")["answer"]) / len(part)
        rows.append([part["model"].iloc[0], *keys, part["right"].mean(), float(low), float(high), chance, len(part)])
    names = ["modality", "group", *(("kind",) if by == "kind" else ())]
    return pd.DataFrame(rows, columns=["model", *names, "accuracy", "low", "high", "chance", "n"])


def compare_answers(before: pd.DataFrame, after: pd.DataFrame, by: str = "kind") -> pd.DataFrame:
    """How accuracies change from one model to another on the same questions: a paired comparison for each modality and kind.

    >>> one, other = (answer_questions(name, n=40) for name in ("toy:stage1", "toy:tuned"))
    >>> change = compare_answers(one, other, by="group").set_index(["modality", "group"])
    >>> bool(change.loc[("image", "perception"), "low"] > 0)
    True

    Columns: modality, group, kind (for `by="kind"`), before, after, difference, low, high (95 %; NaN for one scene), p, p_holm
    (Holm over all rows), n (the number of questions): `interp.statistics.paired_change` with scenes as groups, so a kind has
    McNemar's p, and several kinds the sign-flips of scenes.

    The order of the rows is free. Raises `InputError` where the two frames have other questions, and as `score_answers` does.
    """
    import pandas as pd

    checked_choice(by, "by", ("kind", "group"))
    same = ["modality", "scene", "kind", "answer"]
    before, after = (
        _checked_answers(each, name).sort_values(same, ignore_index=True)
        for each, name in ((before, "before"), (after, "after"))
    )
    if not before[same].equals(after[same]):
        raise InputError(
            f"the {len(before)} answers before and {len(after)} after are not to the same questions: expected answer_questions "
            "of two models with the same n, seed and split"
        )
    rows = []
    for (keys, one), (_, other) in zip(_parts(before, by), _parts(after, by), strict=True):
        change = paired_change(_hits(one), _hits(other), one["scene"].to_numpy())
        numbers = (change.before, change.after, change.difference, change.low, change.high, change.p)
        rows.append([*keys, *map(float, numbers), len(one)])
    names = ["modality", "group", *(("kind",) if by == "kind" else ())]
    frame = pd.DataFrame(rows, columns=[*names, "before", "after", "difference", "low", "high", "p", "n"])
    frame.insert(len(frame.columns) - 1, "p_holm", holm(frame["p"]))
    return frame


def _checked_answers(answers: Any, name: str) -> pd.DataFrame:
    """The answers of one model, with the columns that `answer_questions` gives them."""
    import pandas as pd

    if not isinstance(answers, pd.DataFrame):
        raise InputTypeError(f"{name}={shown(answers)}: expected the frame that answer_questions returns")
    missing = [column for column in _COLUMNS if column not in answers]
    if missing or answers.empty:
        seen = f"no column {missing[0]!r}" if missing else "no rows"
        raise InputError(f"{name} has {seen}: expected the frame that answer_questions returns")
    models = answers["model"].unique().tolist()
    if len(models) > 1:
        raise InputError(f"{name} has answers of {len(models)} models, {shown(models)}: expected those of one")
    return answers


def _parts(answers: pd.DataFrame, by: str) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """The answers of each modality and kind or group, in the order of `KINDS`."""
    keys = {(Question(kind, "", "", "").group, *((kind,) if by == "kind" else ())): None for kind in KINDS}
    for modality in _MODALITIES:
        for key in keys:
            columns = ("modality", "group", "kind")[: 1 + len(key)]
            chosen = (answers[list(columns)] == (modality, *key)).all(axis=1)
            if chosen.any():
                yield (modality, *key), answers[chosen]


def _hits(part: pd.DataFrame) -> Bool[Tensor, " question"]:
    return torch.tensor(part["right"].to_numpy(bool))


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
