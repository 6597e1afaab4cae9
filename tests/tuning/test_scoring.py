"""Scores against what models write by themselves, and against the toy's own evaluation."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import interp
from families import family, picture
from interp.errors import InputError, InputTypeError
from interp.tuning.scoring import frame_of, picture_key, question_rows, refuse_shared, rows_of, score


@pytest.fixture(scope="module")
def questions():
    return interp.toy.questions(12, seed=0)


def test_scores_are_those_of_the_toys_evaluation(stage1, questions):
    """Another path to the same answers: prompts without a chat, padded on the left, the logits at the last token."""
    expected = interp.toy.answer_questions(stage1, n=12, seed=0, progress=False)
    for modality in ("image", "text"):
        there = expected[expected["modality"] == modality]
        rows = interp.toy.questions(12, seed=0, modality=modality)
        here = score(stage1, rows, batch_size=7)
        assert here["right"].tolist() == there["right"].tolist()
        assert here["kind"].tolist() == there["kind"].tolist()
        assert here["answer"].tolist() == there["answer"].tolist()
        assert here["right"].any()
        assert modality == "text" or not here["right"].all()


def test_scores_are_what_the_model_writes(toy, questions):
    here = score(toy, questions)
    batch = toy.prepare([row["text"] for row in questions], [row["image"] for row in questions])
    written = toy.generate(batch, max_new_tokens=2)
    begins = [text.split()[:1] == [row["answer"]] for text, row in zip(written, questions, strict=True)]
    assert here["right"].tolist() == begins
    assert not all(begins)


def test_each_token_of_an_answer_counts(toy):
    """An answer that begins as the model's own and goes on otherwise is wrong; a beginning of it is right."""
    rows = [row for row in interp.toy.conversations(6, seed=0, modality="text", questions=1)]
    prompts = [row["conversations"][0]["value"] for row in rows]
    written = [text.split() for text in toy.generate(toy.prepare(prompts), max_new_tokens=3)]

    def right(answers):
        return score(toy, [{"text": p, "answer": a} for p, a in zip(prompts, answers, strict=True)])["right"].tolist()

    assert right([words[0] for words in written]) == [True] * 6
    assert right([f"{words[0]} magenta" for words in written]) == [False] * 6


CHAT = "{% for m in messages %}{{ m['role'] }} : {% for part in m['content'] %}{{ part.get('text', '<image>') }} "
CHAT += "{% endfor %}{% endfor %}"
CHAT += "{% if add_generation_prompt %}assistant : {% endif %}"


def test_a_question_stands_in_the_chat_template(monkeypatch):
    """What a tiny model writes behind the prompt of `prepare(chat=True)` is the right answer, and nothing else is."""
    vlm = family("llava")
    monkeypatch.setattr(vlm.processor, "chat_template", CHAT, raising=False)
    pictures = [picture(seed=seed) for seed in range(12)]
    prompts = [f"<image> what is {seed} ?" for seed in range(12)]
    batch = vlm.prepare(prompts, pictures, chat=True)
    written, further = (vlm.generate(batch, max_new_tokens=count) for count in (1, 2))
    plain = vlm.generate(vlm.prepare(prompts, pictures), max_new_tokens=1)
    whole = [
        len(vlm.tokenizer.encode(text, add_special_tokens=False)) == 1 and text.strip() == text for text in written
    ]
    rows = [{"image": i, "text": p, "answer": a} for i, p, a in zip(pictures, prompts, written, strict=True)]
    assert sum(whole) >= 3
    assert any(one != other for one, other in zip(written, plain, strict=True))
    ends = [not re.match(r"[^\W\d_]{2}|\d\d", text) for text in further]
    right = score(vlm, [row for row, keep in zip(rows, whole, strict=True) if keep])["right"].tolist()
    assert right == [end for end, keep in zip(ends, whole, strict=True) if keep]
    others = [row | {"answer": "zebra" if row["answer"] != "zebra" else "cat"} for row in rows]
    assert not score(vlm, others)["right"].any()


def test_a_word_or_a_number_has_to_end(monkeypatch):
    """A model that writes "12" has not answered "1", and one that writes "1 2" has; its tokens are bytes."""
    vlm = family("llava")
    monkeypatch.setattr(vlm.processor, "chat_template", None, raising=False)
    for answer, written, right in (
        ("1", "12", False), ("1", "1 2", True), ("1", "1.", True), ("12", "12", True), ("red", "reddish", False),
        ("red", "red and blue", True), ("red", "red2", True), ("4", "4th", True), ("no", "No", False), ("是", "是的", True),
    ):  # fmt: skip
        model = Writer(vlm, f"who ? {written}")
        with monkeypatch.context() as patch:
            patch.setattr(vlm.model, "forward", model)
            assert score(vlm, [{"text": "who ?", "answer": answer}])["right"].tolist() == [right], (answer, written)


class Writer:
    """A model that goes on as a text does, whatever it reads."""

    def __init__(self, vlm, text):
        self.vlm, self.ids = vlm, torch.tensor(vlm.tokenizer(f"{text} ?")["input_ids"])

    def __call__(self, input_ids, **others):
        following = self.ids[1:][: input_ids.shape[1]]
        logits = torch.zeros(*input_ids.shape, len(self.vlm.tokenizer))
        logits[0, torch.arange(len(following)), following] = 1
        return SimpleNamespace(logits=logits)


def test_groups_are_the_column_the_picture_or_the_row(toy, questions):
    assert score(toy, questions)["group"].tolist() == [row["group"] for row in questions]
    bare = [{name: row[name] for name in ("image", "text", "answer")} for row in questions]
    by_picture = frame_of(rows_of(toy, bare, "data"))
    assert by_picture["kind"].unique().tolist() == [""]
    assert by_picture.groupby("group").ngroups == 12
    assert (by_picture["group"].to_numpy() != np.roll([row["group"] for row in questions], 1)).any()
    texts = [{"text": f"is there a red {digit} ?", "answer": "yes"} for digit in range(3)]
    assert frame_of(rows_of(toy, texts, "data"))["group"].nunique() == 3


def test_pictures_are_told_apart_by_what_they_are(tmp_path):
    one, other = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    array = np.asarray(one)
    assert picture_key(one) == picture_key(one.copy()) != picture_key(other)
    assert picture_key(array) == picture_key(array.copy()) != picture_key(array.T.copy())
    assert picture_key(tmp_path / "a.png") != picture_key(tmp_path / "b.png")
    assert picture_key({"bytes": b"a", "path": None}) == picture_key(b"a")
    assert picture_key([one, other]) != picture_key([other, one])
    assert picture_key(None) == ""


def test_questions_that_are_trained_on_are_refused(toy, questions):
    train = interp.toy.conversations(12, seed=0, questions=3)
    rows, test = rows_of(toy, train, "data"), question_rows(toy, questions, "test")
    assert refuse_shared(rows, test, "test") == ()
    shown = [train[4] | {"id": "copy", "conversations": train[4]["conversations"][2:4]}]
    shown[0]["conversations"][0]["value"] = "<image> " + shown[0]["conversations"][0]["value"]
    with pytest.raises(InputError, match=r"test has row 0 \('copy'\) in common with the data, row 4 \('.*'\)"):
        refuse_shared(rows, question_rows(toy, shown, "test"), "test")
    new = [{"image": train[4]["image"], "text": "<image> is it nice ?", "answer": "yes"}]
    assert refuse_shared(rows, question_rows(toy, new, "test"), "test") == (
        "1 questions of test are about pictures that are trained on",
    )


def test_what_is_no_question_is_refused(toy, questions):
    with pytest.raises(InputError, match=r"test has 2 answers in row 0 \('.*'\): expected one question a row"):
        question_rows(toy, interp.toy.conversations(1, seed=0, questions=2), "test")
    with pytest.raises(InputError, match="has no answer"):
        score(toy, [(None, "a red 3")])
    with pytest.raises(InputTypeError, match="test is an iterator"):
        question_rows(toy, iter(questions), "test")
    with pytest.raises(InputError, match="batch_size=0"):
        score(toy, questions, batch_size=0)
