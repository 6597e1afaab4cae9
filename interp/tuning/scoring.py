"""Scores: does a model give the right answer to each question of a data set?

A question is a row with one answer, written exactly as a training writes it (`interp.tuning.examples`): in the chat template
where the model has one, with the tokens of the answer that training would teach. The model is right if each token of the
answer is its most probable next token, given the question and the answer's tokens before it. That is one forward pass, and the
same as to ask whether what the model writes by itself, greedily, begins with the answer:

- "red" is right where the model would go on with "red and blue", since the end of the answer is not asked for;
- "1" is wrong where it would go on to "12", and "red" where it would to "reddish": a word or a number has to end;
- "Red" and "crimson" are wrong where the answer is "red", and so is the answer in other tokens.

So it is a strict score for short answers, and none for captions or long texts. A question has one right answer. Where several
are right, as in VQAv2, take the most common one, and write all as the training data do ("yes" or "Yes").
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from interp.arguments import checked_int
from interp.data.data import as_data
from interp.data.rows import Row
from interp.errors import InputError, InputTypeError
from interp.models.batches.images import images_in
from interp.models.batches.prompts import PLACEHOLDER
from interp.tuning.examples import IGNORED, Collator, TrainingRows, training_rows

if TYPE_CHECKING:
    import pandas as pd

    from interp.models import VLM


def score(vlm: VLM, data: Any, batch_size: int = 32) -> pd.DataFrame:
    """Whether `vlm` answers each question of `data` rightly, by the rule above: a row for each, in their order.

    >>> import interp
    >>> questions = interp.toy.questions(2, seed=0)
    >>> answers = score(interp.load("toy"), questions)
    >>> answers.columns.tolist(), int(answers["right"].sum()), len(answers)
    (['id', 'kind', 'group', 'answer', 'right'], 12, 12)

    `data` is an `interp.Data` or what it is made from, with one answer a row. `kind` is the row's column of that name, ""
    without one. `group` says which questions belong together: the column of that name or role, else the picture that they ask
    about, else the row itself.

    Raises `InputError` for a row without an answer or with several, and what `training_rows` and `Collator` raise.
    """
    batch_size = checked_int(batch_size, "batch_size", least=1)
    rows = question_rows(vlm, data, "data")
    return frame_of(rows).assign(right=right_answers(vlm, rows, batch_size).tolist())


def rows_of(vlm: VLM, data: Any, name: str) -> TrainingRows:
    """The rows of what the argument `name` gave. Raises `InputTypeError` for an iterator, which could be read but once."""
    if isinstance(as_data(data).source, Iterator):
        raise InputTypeError(f"{name} is an iterator, which can be read once: expected a list, a file or a data set")
    return training_rows(vlm, data)


def question_rows(vlm: VLM, data: Any, name: str) -> TrainingRows:
    """`rows_of`, each with one answer. Raises `InputError` for a row with several."""
    rows = rows_of(vlm, data, name)
    several = next((row for row in _each(rows) if len(row.turns) > 1), None)
    if several is not None:
        raise InputError(
            f"{name} has {len(several.turns)} answers in {several.name}: expected one question a row, split its conversation"
        )
    return rows


def frame_of(rows: TrainingRows) -> pd.DataFrame:
    """The id, kind, group and answer of each question."""
    import pandas as pd

    columns = [(row.id, str(row.labels.get("kind") or ""), _group_of(row), row.turns[0][1]) for row in _each(rows)]
    return pd.DataFrame(columns, columns=["id", "kind", "group", "answer"])


def right_answers(vlm: VLM, rows: TrainingRows, batch_size: int = 32) -> torch.Tensor:
    """Whether each question is answered rightly, Bool [question]."""
    collator, right = Collator(vlm), list[torch.Tensor]()
    for start in range(0, len(rows), batch_size):
        batch = collator([rows[index] for index in range(start, min(start + batch_size, len(rows)))])
        labels = batch.pop("labels")
        for name in ("row_numbers", "cut_off"):
            batch.pop(name)
        known = labels != IGNORED
        left = known.flip(1).cumsum(dim=1).flip(1)
        inputs = {name: value.to(vlm.device) for name, value in batch.items()}
        with torch.inference_mode():
            best = vlm.model(**inputs).logits.argmax(dim=-1).cpu()
        asked = known & (left > 1)  # all but the last, which ends the answer
        agrees = (~asked[:, 1:] | (best[:, :-1] == labels[:, 1:])).all(dim=1)
        last = (asked & (left == 2)).nonzero()
        for row, place in last[agrees[last[:, 0]]].tolist():
            agrees[row] = not _goes_on(vlm.tokenizer, int(labels[row, place]), int(best[row, place]))
        right.append(agrees)
    return torch.cat(right)


def _goes_on(tokenizer: Any, last: int, following: int) -> bool:
    """Whether a token goes on with the word or the number that the token before it ends in.

    Of letters, those of scripts with capitals: others, such as Chinese, write words without spaces.
    """
    said, both = tokenizer.decode([last]), tokenizer.decode([last, following])
    end, start = said[-1:], both[len(said) :][:1]
    cased = end.lower() != end.upper() and start.lower() != start.upper()
    return both.startswith(said) and (cased or (end.isdigit() and start.isdigit()))


def refuse_shared(train: TrainingRows, questions: TrainingRows, name: str) -> tuple[str, ...]:
    """Refuse questions that are trained on: the same words about the same picture. A note where pictures alone are shared.

    Pictures are the same by their bytes or, as files, by their paths. Raises `InputError` that names both rows.
    """
    trained, pictures = dict[tuple[str, str], str](), set[str]()
    for row in _each(train):
        picture = picture_key(row.image)
        pictures.add(picture)
        trained |= {(picture, _words(said)): row.name for said, _ in row.turns}
    shared = 0
    for row in _each(questions):
        key = picture_key(row.image), _words(row.turns[0][0])
        if key in trained:
            raise InputError(
                f"{name} has {row.name} in common with the data, {trained[key]}: expected questions that are not trained on"
            )
        shared += key[0] != "" and key[0] in pictures
    return (f"{shared} questions of {name} are about pictures that are trained on",) if shared else ()


def picture_key(image: Any) -> str:
    """What tells the pictures of a row from others, without opening files; "" for none."""
    return " ".join(map(_key, images_in(image)))


def _key(picture: Any) -> str:
    if isinstance(picture, Mapping):
        picture = picture.get("bytes") or picture.get("path")
    if isinstance(picture, Image.Image):
        picture = f"{picture.mode}{picture.size}".encode() + picture.tobytes()
    elif hasattr(picture, "dtype"):
        picture = f"{tuple(picture.shape)}".encode() + bytes(memoryview(picture).cast("B"))
    return hashlib.sha256(picture).hexdigest() if isinstance(picture, bytes) else str(picture)


def _words(said: str) -> str:
    return " ".join(said.replace(PLACEHOLDER, " ").split())


def _group_of(row: Row) -> str:
    group = row.labels.get("group")
    return str(group) if group is not None else picture_key(row.image) or row.id


def _each(rows: TrainingRows) -> Iterator[Row]:
    return map(rows.__getitem__, range(len(rows)))
