"""How well a model answers questions about pictures of emoji, and how two models differ, with intervals and controls.

*Perception* is answered by the picture. An answer is right if it is what the model writes greedily, the whole of it and its end:
each token of the answer, and the end behind it, is the most probable one after those before it. The control is the same question
about an empty gray picture. *Abstraction* is a choice between two words, asked about a picture and about the name instead
(`interp.organisms.emoji.abstraction`).

Accuracies are macro-averages, so that no constant answer does well: of names over Unicode's groups, of choices over their two
words. Questions about one picture, or one emoji's name, belong together in every interval and comparison.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from interp.arguments import checked_choice, checked_int
from interp.errors import InputError, InputTypeError, shown
from interp.models import VLM
from interp.models.batches.chats import has_chat_template
from interp.organisms.emoji.abstraction import abstraction_questions, asked_wordings, known_labels
from interp.organisms.emoji.catalogue import Emoji, catalogue
from interp.organisms.emoji.emoji_model import without_template
from interp.organisms.emoji.picture import GROUNDS, SIZE, EmojiPicture, pictures, pictures_of
from interp.organisms.emoji.questions import CAPTION_PROMPT, EmojiQuestion, perception_questions
from interp.statistics import holm, paired_change
from interp.statistics.intervals import weighted_share_interval
from interp.tuning.examples import IGNORED, Collator, training_rows

if TYPE_CHECKING:
    import pandas as pd

_COLUMNS = ("model", "modality", "item", "group", "kind", "part", "answer", "right", "top5", "margin")
_SAME = ["modality", "group", "kind", "item", "part", "answer"]  # what says which question it is
_TOP = 5


def answer_emoji_questions(
    vlm: VLM, n: int = 300, seed: int = 0, names: int = 12, style: Any = None, batch_size: int = 32
) -> pd.DataFrame:
    """Ask a model about held-out pictures: perception of `n`, and abstraction of `names` emoji for each word of a choice.

    A row for each modality ("image", "blank" or "text") and question: model, modality, item (the picture), group, kind, part
    (what is averaged over: Unicode's group, or the word), answer, right, top5 (whether the first token of a name is among the
    five most probable ones) and margin (of choices: by how much the logit of the first word is larger). Perception has the
    kinds of `PERCEPTION_KINDS`, asked in the chat template, and "caption", the name of a single thing behind "A picture of"
    without it.
    `style` is another atlas, see `interp.organisms.emoji.picture.pictures`.

    Raises `InputError` for numbers out of range, and what `pictures` raises.
    """
    import pandas as pd

    n, names = checked_int(n, "n", least=1), checked_int(names, "names", least=0)
    batch_size = checked_int(batch_size, "batch_size", least=1)
    drawn = pictures(n, seed, style=style)
    rows = [*_perception_rows(vlm, drawn, batch_size), *_abstraction_rows(vlm, names, seed, style, batch_size)]
    return pd.DataFrame(rows, columns=list(_COLUMNS[1:])).assign(model=vlm.name)[list(_COLUMNS)]


def score_emoji_answers(answers: pd.DataFrame, by: str = "kind") -> pd.DataFrame:
    """The accuracy for each modality and "kind" or "group" of questions, from the answers of `answer_emoji_questions`.

    Columns: model, modality, group, kind (for "kind"), accuracy (macro-average), low and high (95 %, Wilson's for weighted
    answers, with pictures as groups), chance (the accuracy of the best constant answer to each kind), top5, auc (how often the
    margin is larger for an emoji of the first word than for one of the second), n.

    Raises `InputError` for another `by` and for a frame without rows or of several models, `InputTypeError` for anything but a
    frame.
    """
    import pandas as pd

    answers, rows = _checked(answers, "answers"), []
    for keys, part in _parts(answers, checked_choice(by, "by", ("kind", "group"))):
        weights = _weights(part)
        right = torch.tensor(part["right"].to_numpy(bool))
        low, high = weighted_share_interval(right, torch.tensor(weights), part["item"].to_numpy())
        top5 = (part["top5"] * weights).sum() / len(part) if part["top5"].notna().all() else np.nan
        chance = part.assign(weight=weights).groupby(["kind", "answer"])["weight"].sum().groupby("kind").max().sum()
        accuracy = float((part["right"] * weights).mean())
        numbers = (accuracy, low, high, chance / len(part), top5, _auc(part), len(part))
        rows.append([part["model"].iloc[0], *keys, *numbers])
    names = ["modality", "group", *(("kind",) if by == "kind" else ())]
    return pd.DataFrame(rows, columns=["model", *names, "accuracy", "low", "high", "chance", "top5", "auc", "n"])


def evaluate_emoji(vlm: VLM, n: int = 300, seed: int = 0, **settings: Any) -> pd.DataFrame:
    """`score_emoji_answers` of `answer_emoji_questions`: a row for each modality and kind of question."""
    return score_emoji_answers(answer_emoji_questions(vlm, n, seed, **settings))


def compare_emoji_answers(before: pd.DataFrame, after: pd.DataFrame, by: str = "kind") -> pd.DataFrame:
    """How accuracies change from one model to another, or from names to pictures, on the same questions: paired comparisons.

    Two frames of `answer_emoji_questions` with the same arguments are compared modality by modality. Frames of one modality each
    are compared question by question whatever the two are::

        text, image = (answers[answers["modality"] == each] for each in ("text", "image"))
        compare_emoji_answers(text[text["group"] == "abstraction"], image[image["group"] == "abstraction"])

    Columns: modality, group, kind (for `by="kind"`), before, after, difference (of the macro-averages), low, high, p
    (`paired_change` with pictures as groups), p_holm (over all rows), n.

    Raises `InputError` where the two have other questions, and as `score_emoji_answers` does.
    """
    import pandas as pd

    checked_choice(by, "by", ("kind", "group"))
    before, after = _checked(before, "before"), _checked(after, "after")
    if before["modality"].nunique() == after["modality"].nunique() == 1:
        before = before.assign(modality=after["modality"].iloc[0])
    before, after = (each.sort_values(_SAME, ignore_index=True) for each in (before, after))
    if not before[_SAME].equals(after[_SAME]):
        raise InputError(
            f"the {len(before)} answers before and {len(after)} after are not to the same questions: expected "
            "answer_emoji_questions of two models with the same arguments, or one modality of each"
        )
    rows = []
    for (keys, one), (_, other) in zip(_parts(before, by), _parts(after, by), strict=True):
        weights = _weights(one)
        first, second = (torch.from_numpy(each["right"].to_numpy(float) * weights) for each in (one, other))
        change = paired_change(first, second, one["item"].to_numpy())
        numbers = (change.before, change.after, change.difference, change.low, change.high, change.p)
        rows.append([*keys, *map(float, numbers), len(one)])
    names = ["modality", "group", *(("kind",) if by == "kind" else ())]
    frame = pd.DataFrame(rows, columns=[*names, "before", "after", "difference", "low", "high", "p", "n"])
    frame.insert(len(frame.columns) - 1, "p_holm", holm(frame["p"]))
    return frame


def whole_answers(
    vlm: VLM, questions: Sequence[tuple[str, str]], images: Sequence[Any], batch_size: int = 32
) -> tuple[Bool[Tensor, " question"], Bool[Tensor, " question"]]:
    """Whether greedy generation gives each answer whole, and whether its first token is among the five most probable ones.

    `questions` are prompts with ``<image>`` and answers, written as in training: in the chat template where there is one.
    """
    rows = [
        {"text": prompt, "answer": answer, "image": image}
        for (prompt, answer), image in zip(questions, images, strict=True)
    ]
    data, collator = training_rows(vlm, rows), Collator(vlm)
    whole, among = list[Tensor](), list[Tensor]()
    for start in range(0, len(rows), batch_size):
        batch = collator([data[index] for index in range(start, min(start + batch_size, len(rows)))])
        labels = batch.pop("labels")[:, 1:]
        inputs = {name: batch[name].to(vlm.device) for name in batch if name not in ("row_numbers", "cut_off")}
        with torch.inference_mode():
            logits = vlm.model(**inputs).logits[:, :-1]
        known = labels != IGNORED
        whole.append((~known | (logits.argmax(dim=-1).cpu() == labels)).all(dim=1))
        first = known.int().argmax(dim=1)
        each = torch.arange(len(labels))
        best = logits[each, first].topk(_TOP, dim=-1).indices.cpu()
        among.append((best == labels[each, first][:, None]).any(dim=1))
    return torch.cat(whole), torch.cat(among)


def answers_to_one_picture(
    vlm: VLM, questions: Sequence[tuple[str, str]], image: Any, batch_size: int = 32
) -> tuple[Bool[Tensor, " question"], Bool[Tensor, " question"]]:
    """`whole_answers` where all questions are about one picture: each prompt is asked once, however many answers are expected."""
    prompts, chat = list(dict.fromkeys(prompt for prompt, _ in questions)), has_chat_template(vlm.processor)
    longest = max(len(ids) for ids in vlm.tokenizer([answer for _, answer in questions])["input_ids"])
    written, best = list[str](), list[Tensor]()
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        batch = vlm.prepare(part, [image] * len(part), chat=chat)
        written += vlm.generate(batch, max_new_tokens=longest + 1)
        best.append(vlm.logits(batch).topk(_TOP, dim=-1).indices.cpu())
    texts, tops = dict(zip(prompts, written, strict=True)), dict(zip(prompts, torch.cat(best), strict=True))
    whole = [texts[prompt].strip() == answer.strip() for prompt, answer in questions]
    among = [bool((tops[prompt] == _first_tokens(vlm, [answer])[0]).any()) for prompt, answer in questions]
    return torch.tensor(whole), torch.tensor(among)


def choice_margins(
    vlm: VLM, choices: Sequence[tuple[str, str, str]], images: Sequence[Any] | None = None, batch_size: int = 32
) -> Float[Tensor, " choice"]:
    """By how much the logit of the first of two continuations is larger than that of the second, by their first tokens.

    `choices` are prompts, written as they are, with the two continuations: ``("...owl:", " fly", " walk")``. Raises `InputError`
    for two that begin with the same token.
    """
    margins = list[Tensor]()
    for start in range(0, len(choices), batch_size):
        part = choices[start : start + batch_size]
        pictured = None if images is None else list(images[start : start + batch_size])
        batch = vlm.prepare([prompt for prompt, _, _ in part], pictured, chat=False)
        words = [_first_tokens(vlm, pair) for _, *pair in part]
        logits = vlm.logits(batch).float().cpu().gather(1, torch.tensor(words))
        margins.append(logits[:, 0] - logits[:, 1])
    return torch.cat(margins)


def _first_tokens(vlm: VLM, words: Sequence[str]) -> list[int]:
    first = [int(vlm.tokenizer(word, add_special_tokens=False)["input_ids"][0]) for word in words]
    if len(set(first)) < len(first):
        raise InputError(
            f"{words[0]!r} and {words[1]!r} begin with the same token: expected words that one token tells apart"
        )
    return first


_Row = list[Any]  # the cells of _COLUMNS but the model


def _perception_rows(vlm: VLM, drawn: Sequence[EmojiPicture], batch_size: int) -> Iterator[_Row]:
    blank = Image.new("RGB", (SIZE, SIZE), GROUNDS["gray"])
    asked = [(item, question) for item, picture in enumerate(drawn) for question in perception_questions(picture)]
    single = [item for item, picture in enumerate(drawn) if len(picture.things) == 1]
    captions = [
        EmojiQuestion(CAPTION_PROMPT, "A picture of", f" {drawn[item].things[0].emoji.name}", "caption", "perception")
        for item in single
    ]
    groups = {emoji.name: emoji.group for emoji in catalogue()}
    for model, questions in ((vlm, asked), (without_template(vlm), list(zip(single, captions, strict=True)))):
        pairs = [(question.prompt, question.answer) for _, question in questions]
        images = [drawn[item].image for item, _ in questions]
        for modality in ("image", "blank") if pairs else ():
            if modality == "image":
                right, among = whole_answers(model, pairs, images, batch_size)
            else:
                right, among = answers_to_one_picture(model, pairs, blank, batch_size)
            for (item, question), is_right, is_among in zip(questions, right.tolist(), among.tolist(), strict=True):
                is_name = question.kind in ("name", "caption")
                part = groups[question.answer.strip()] if is_name else ""
                top5 = float(is_among) if is_name else np.nan
                yield [modality, item, "perception", question.kind, part, question.answer, is_right, top5, np.nan]


def _abstraction_rows(vlm: VLM, names: int, seed: int, style: Any, batch_size: int) -> Iterator[_Row]:
    chosen = _chosen(names, seed)
    if not chosen:
        return
    emoji = sorted({each for each, _ in chosen}, key=lambda each: each.number)
    shown_in = {each: picture.image for each, picture in zip(emoji, pictures_of(emoji, seed, style=style), strict=True)}
    asked = [(each, question) for each, kind in chosen for question in abstraction_questions(each, [kind])]
    for modality in ("text", "image"):
        choices, images = list[tuple[str, str, str]](), None
        for _, question in asked:
            wording = asked_wordings()[question.kind]
            prompt = question.text_prompt if modality == "text" else question.prompt
            choices.append((prompt, f" {wording.first}", f" {wording.second}"))
        if modality == "image":
            images = [shown_in[each] for each, _ in asked]
        margins = choice_margins(vlm, choices, images, batch_size).view(-1, 2).mean(dim=1)
        for (each, question), margin in zip(asked[::2], margins.tolist(), strict=True):
            right = (margin > 0) == (question.answer == asked_wordings()[question.kind].first)
            cells = (question.kind, question.answer, question.answer, right, np.nan, margin)
            yield [modality, each.number, "abstraction", *cells]


def _chosen(names: int, seed: int) -> list[tuple[Emoji, str]]:
    """Up to so many emoji for each word of each kind of choice."""
    chosen, rng = list[tuple[Emoji, str]](), np.random.default_rng([seed, 3])
    for kind in asked_wordings() if names else ():
        for word in (True, False):
            known = [each for each in catalogue() if known_labels()[kind].get(each.name) is word]
            known = [each for each in known if abstraction_questions(each, [kind])]
            chosen += [(known[index], kind) for index in sorted(rng.permutation(len(known))[:names])]
    return chosen


def _checked(answers: Any, name: str) -> pd.DataFrame:
    import pandas as pd

    if not isinstance(answers, pd.DataFrame):
        raise InputTypeError(f"{name}={shown(answers)}: expected the frame that answer_emoji_questions returns")
    missing = [column for column in _COLUMNS if column not in answers]
    if missing or answers.empty:
        seen = f"no column {missing[0]!r}" if missing else "no rows"
        raise InputError(f"{name} has {seen}: expected the frame that answer_emoji_questions returns")
    if answers["model"].nunique() > 1:
        raise InputError(f"{name} has answers of {answers['model'].nunique()} models: expected those of one")
    words: dict[str, Any] = dict.fromkeys(_SAME, str) | {"item": "int64"}
    return answers.fillna({"part": ""}).astype(words)  # a table of CSV has NaN for an empty part


def _parts(answers: pd.DataFrame, by: str) -> Iterator[tuple[Any, pd.DataFrame]]:
    columns = ["modality", "group", *(("kind",) if by == "kind" else ())]
    return iter(answers.groupby(columns, sort=False))


def _weights(part: pd.DataFrame) -> np.ndarray:
    """What each answer counts, 1 on average: kinds count the same, and so do the parts of a kind."""
    kinds, sizes = part["kind"].nunique(), part.groupby(["kind", "part"])["right"].transform("size")
    parts = part.groupby("kind")["part"].transform("nunique")
    return (len(part) / (kinds * parts * sizes)).to_numpy(float)


def _auc(part: pd.DataFrame) -> float:
    """The area under the curve of margins, averaged over kinds; NaN where there is no choice."""
    from sklearn.metrics import roc_auc_score

    if part["margin"].isna().any():
        return np.nan
    areas = []
    for kind, each in part.groupby("kind"):
        is_first = each["answer"].eq(asked_wordings()[str(kind)].first)
        areas.append(roc_auc_score(is_first, each["margin"]) if is_first.nunique() == 2 else np.nan)
    return float(np.mean(areas))
