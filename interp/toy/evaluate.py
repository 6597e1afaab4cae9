"""How well the toy answers: accuracy for each kind of question, from text and from images, with intervals.

Questions about one scene are not independent: a model that misreads a picture errs in several of them. So intervals draw whole
scenes, and a comparison of two models is paired, question by question. Each accuracy comes with its control: `chance` is the
accuracy of a model that always gives the most common answer to each kind of question.

Toys of other seeds, ``interp.toy.tuned_toys()``, answer the same questions, and `score_models` says what holds over them: other
scenes would give other scores, and so would other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.arguments import checked_choice, checked_int
from interp.errors import InputError, InputTypeError, shown
from interp.models import VLM, load
from interp.models.batches.targets import target_ids
from interp.models.loading import public_name
from interp.progress import Bar, progress_bar
from interp.statistics import crossed_change, crossed_share, holm, mean_interval, paired_change, random_effects
from interp.statistics.intervals import Spread, unit_numbers
from interp.toy.language import KINDS, Question
from interp.toy.scenes import Scene, scenes

if TYPE_CHECKING:
    import pandas as pd

_MODALITIES = ("text", "image")
_COLUMNS = ("model", "modality", "scene", "group", "kind", "answer", "right")
_SAME = ["modality", "scene", "kind", "answer"]  # what says which question it is
_BY = ("kind", "group")


def evaluate(
    model: str | VLM | Sequence[str | VLM] = "toy:tuned",
    n: int = 300,
    seed: int = 0,
    split: str = "test",
    batch_size: int = 64,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure the accuracy of a toy, or of each of several, on questions about `n` scenes of `split`: a row for each model,
    modality and kind of question.

    >>> evaluate("toy:tuned", n=2).columns.tolist()[:4]
    ['model', 'modality', 'group', 'kind']

    A model gets every question twice, after the caption ("text") and after the picture ("image"). An answer is right if
    it is the most probable next token. Columns: model, modality, group, kind, accuracy, low and high (95 %, Wilson's; NaN for
    one scene), chance (the share of the most common answer), n (the number of questions). A long run shows its progress on a
    terminal or in a notebook; ``progress=False`` hides it. `answer_questions` gives the single answers.

    Raises `InputError` if `n` or `batch_size` is not an int of 1 or more, for a `seed` below 0, for an unknown `split`, without a
    model, and where two models have one name.
    """
    return score_answers(answer_questions(model, n, seed, split, batch_size, progress=progress))


def answer_questions(
    model: str | VLM | Sequence[str | VLM] = "toy:tuned",
    n: int = 300,
    seed: int = 0,
    split: str = "test",
    batch_size: int = 64,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask a toy, or several, every question about `n` scenes of `split`, from text and from images: a row for each answer.

    >>> answer_questions("toy:tuned", n=2).columns.tolist()
    ['model', 'modality', 'scene', 'group', 'kind', 'answer', 'right']

    `answer` is the right answer, and `right` whether the model gave it. Arguments and errors are
    those of `evaluate`: a long run shows its progress, ``progress=False`` hides it.
    """
    import pandas as pd

    data = scenes(checked_int(n, "n", least=1), seed, split=split)
    batch_size = checked_int(batch_size, "batch_size", least=1)
    models = [model] if isinstance(model, str | VLM) else list(model)
    names = [each.name if isinstance(each, VLM) else public_name(each) for each in models]
    if not names or len(set(names)) < len(names):
        raise InputError(f"model={shown(names)}: expected one model or several, each with a name of its own")
    questions = [(scene, question) for scene in data for question in scene.questions]
    places = [place for place, scene in enumerate(data) for _ in scene.questions]
    rows = []
    for name, each in zip(names, models, strict=True):
        vlm = each if isinstance(each, VLM) else load(each)
        with progress_bar(f"evaluating {name}", len(_MODALITIES) * len(questions), "questions", progress) as bar:
            for modality in _MODALITIES:
                right = _answers(vlm, questions, modality, batch_size, bar)
                rows += [
                    [name, modality, place, question.group, question.kind, question.answer, is_right]
                    for place, (_, question), is_right in zip(places, questions, right, strict=True)
                ]
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def score_answers(answers: pd.DataFrame, by: str = "kind") -> pd.DataFrame:
    """The accuracy for each model, modality and "kind" or "group" of questions, from the single answers of `answer_questions`.

    Columns: model, modality, group, kind (for "kind"), accuracy, low and high (95 %, `interp.statistics.mean_interval` with
    scenes as groups; NaN for one scene), chance (the accuracy of the most common answer to each kind), n.

    Raises `InputError` for another `by`, and for a frame of other columns or without rows; `InputTypeError` for anything but a
    frame.
    """
    import pandas as pd

    rows = []
    checked_choice(by, "by", _BY)
    for model, of_model in _checked_answers(answers, "answers").groupby("model", sort=False):
        for keys, chosen in _parts(of_model, by):
            part = of_model[chosen]
            low, high = mean_interval(_hits([part])[0], part["scene"].to_numpy())
            rows.append([model, *keys, part["right"].mean(), float(low), float(high), _chance(part), len(part)])
    return pd.DataFrame(rows, columns=["model", *_names(by), "accuracy", "low", "high", "chance", "n"])


def score_models(answers: pd.DataFrame, by: str = "kind") -> pd.DataFrame:
    """The mean accuracy over models that answered the same questions, for each modality and "kind" or "group" of questions.

    >>> answers = answer_questions(["toy:stage1", "toy:tuned"], n=2)  # or interp.toy.tuned_toys(): one toy for each seed
    >>> score_models(answers, by="group")["models"].tolist()
    [2, 2, 2, 2]

    Columns: modality, group, kind (for "kind"), models (how many), accuracy, low and high (95 %, over other models *and* other
    scenes, `interp.statistics.crossed_share`), next_low and next_high (95 %: the accuracy of one more model on the same
    questions), tau (the standard deviation between models, less what single questions make of it), p (that all models are
    equally good on such questions), p_holm (over all rows), smallest, largest, chance, n.

    Intervals are of few models, so they are wide: "not shown" is not "not so". They are NaN for one model, which tells of no
    other. Raises as `score_answers` does, and `InputError` where some models answered other questions.
    """
    import pandas as pd

    rows = []
    checked_choice(by, "by", _BY)
    frames = _by_model(answers, "answers")
    for keys, chosen in _parts(frames[0], by):
        part = frames[0][chosen]
        hits, scenes_of = _hits([frame[chosen] for frame in frames]), part["scene"].to_numpy()
        share, right = crossed_share(hits, scenes_of), hits.double().mean(dim=1)
        over = (share.low, share.high) if len(frames) > 1 else (math.nan, math.nan)  # it would be over scenes alone
        found = random_effects(right, _own_errors(hits, scenes_of))
        bounds = *over, found.next_low.clamp(min=0), found.next_high.clamp(max=1)
        numbers: list[Any] = [share.value, *bounds, found.tau2.sqrt(), found.p, right.min(), right.max(), _chance(part)]
        rows.append([*keys, len(frames), *map(float, numbers), len(part)])
    names = ("accuracy", "low", "high", "next_low", "next_high", "tau", "p", "smallest", "largest", "chance", "n")
    frame = pd.DataFrame(rows, columns=[*_names(by), "models", *names])
    frame.insert(list(frame).index("p") + 1, "p_holm", holm(frame["p"]))
    return frame


def compare_answers(before: pd.DataFrame, after: pd.DataFrame, by: str = "kind") -> pd.DataFrame:
    """How accuracies change from one model to another on the same questions: a paired comparison for each modality and kind.

    >>> one, other = (answer_questions(name, n=40) for name in ("toy:stage1", "toy:tuned"))
    >>> change = compare_answers(one, other, by="group").set_index(["modality", "group"])
    >>> bool(change.loc[("image", "perception"), "low"] > 0)
    True

    Columns: modality, group, kind (for `by="kind"`), before, after, difference, low, high (95 %; NaN for one scene), p, p_holm
    (Holm over all rows), n (the number of questions): `interp.statistics.paired_change` with scenes as groups, so a kind has
    McNemar's p, and several kinds the sign-flips of scenes.

    `after` may have answers of several models, such as toys of five seeds after some change, and `before` those of one model, or
    of as many in the same order. Then the change is the mean over models, and its bounds and p are over other models and
    other scenes (`interp.statistics.crossed_change`).

    The order of the rows is free. Raises `InputError` where frames have other questions or do not fit in their numbers of
    models, and as `score_answers` does.
    """
    import pandas as pd

    checked_choice(by, "by", _BY)
    befores, afters = _by_model(before, "before"), _by_model(after, "after")
    if not befores[0][_SAME].equals(afters[0][_SAME]):
        raise InputError(
            f"the {len(befores[0])} answers before and {len(afters[0])} after are not to the same questions: expected "
            "answer_questions of two models with the same n, seed and split"
        )
    if len(befores) not in (1, len(afters)):
        raise InputError(
            f"{len(befores)} models before and {len(afters)} after: expected one before, or as many as after"
        )
    rows = []
    for keys, chosen in _parts(befores[0], by):
        one, other = (_hits([frame[chosen] for frame in frames]) for frames in (befores, afters))
        scenes_of = befores[0][chosen]["scene"].to_numpy()
        if len(afters) > 1:
            crossed = crossed_change(one, other, scenes_of)
            means = one.double().mean(), other.double().mean()
            numbers: tuple[Any, ...] = (*means, crossed.value, crossed.low, crossed.high, crossed.p)
        else:
            change = paired_change(one[0], other[0], scenes_of)
            numbers = change.before, change.after, change.difference, change.low, change.high, change.p
        rows.append([*keys, *map(float, numbers), one.shape[1]])
    frame = pd.DataFrame(rows, columns=[*_names(by), "before", "after", "difference", "low", "high", "p", "n"])
    frame.insert(len(frame.columns) - 1, "p_holm", holm(frame["p"]))
    return frame


def _names(by: str) -> list[str]:
    return ["modality", "group", *(("kind",) if by == "kind" else ())]


def _checked_answers(answers: Any, name: str) -> pd.DataFrame:
    """Answers of any models, with the columns that `answer_questions` gives them."""
    import pandas as pd

    if not isinstance(answers, pd.DataFrame):
        raise InputTypeError(f"{name}={shown(answers)}: expected the frame that answer_questions returns")
    missing = [column for column in _COLUMNS if column not in answers]
    if missing or answers.empty:
        seen = f"no column {missing[0]!r}" if missing else "no rows"
        raise InputError(f"{name} has {seen}: expected the frame that answer_questions returns")
    return answers


def _by_model(answers: Any, name: str) -> list[pd.DataFrame]:
    """The answers of each model, in one order of the questions, which are the same for all."""
    whole = _checked_answers(answers, name)
    frames = [each.sort_values(_SAME, ignore_index=True) for _, each in whole.groupby("model", sort=False)]
    for each in frames[1:]:
        if not each[_SAME].equals(frames[0][_SAME]):
            models = [frame["model"].iloc[0] for frame in (frames[0], each)]
            raise InputError(
                f"{name} of {models[0]!r} and {models[1]!r} are not to the same questions: expected one n, seed and split"
            )
    return frames


def _parts(answers: pd.DataFrame, by: str) -> Iterator[tuple[tuple[str, ...], Bool[np.ndarray, " row"]]]:
    """The rows of each modality and kind or group, in the order of `KINDS`."""
    keys = {(Question(kind, "", "", "").group, *((kind,) if by == "kind" else ())): None for kind in KINDS}
    for modality in _MODALITIES:
        for key in keys:
            chosen = (answers[_names(by)] == (modality, *key)).all(axis=1).to_numpy()
            if chosen.any():
                yield (modality, *key), chosen


def _chance(part: pd.DataFrame) -> float:
    """The accuracy of the most common answer to each kind."""
    return sum(each.value_counts().iloc[0] for _, each in part.groupby("kind")["answer"]) / len(part)


def _own_errors(
    hits: Bool[Tensor, "model question"], scenes_of: Int[np.ndarray, " question"]
) -> Float[Tensor, " model"]:
    """The standard error of an accuracy by what is peculiar to a model in single questions, the same for all models.

    What all models find hard is no difference between them. The mean over n models has 1 / n of it in itself. Models that agree
    in all questions would have none: at least one more question counts, half of it to either side.
    """
    right = hits.double()
    residuals = (right - right.mean(dim=0)).T
    spread = Spread(residuals, torch.ones(len(residuals), dtype=torch.float64), unit_numbers(scenes_of, len(residuals)))
    error = (
        (spread.error.square().mean() * len(hits) / max(1, len(hits) - 1)).sqrt().clamp(min=1 / (len(residuals) + 2))
    )
    return error.expand(len(hits))


def _hits(parts: Sequence[pd.DataFrame]) -> Bool[Tensor, "model question"]:
    return torch.stack([torch.tensor(part["right"].to_numpy(bool)) for part in parts])


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
