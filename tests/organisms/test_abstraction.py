"""Questions of abstraction: labels follow their rules, questions their wordings, and scores the logits."""

import copy
import csv

import numpy as np
import pandas as pd
import pytest
import torch

from interp.errors import InputError, InputTypeError
from interp.organisms.emoji.abstraction import (
    LABELS,
    SCREENING,
    ChoiceWording,
    abstraction_questions,
    asked_wordings,
    known_labels,
)
from interp.organisms.emoji.catalogue import catalogue
from interp.organisms.emoji.emoji_model import assembled
from interp.organisms.emoji.emoji_scores import (
    answer_emoji_questions,
    answers_to_one_picture,
    choice_margins,
    compare_emoji_answers,
    score_emoji_answers,
    whole_answers,
)
from interp.organisms.emoji.picture import pictures, pictures_of
from interp.organisms.emoji.retention import retention_questions
from interp.organisms.emoji.screen import WORDINGS, _halves, _scored, kept_of, screened
from interp.tuning import tune

EMOJI = {emoji.name: emoji for emoji in catalogue()}


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def worded(small_parts):
    """The small model with a token for each word of a choice."""
    language, tokenizer, tower = copy.deepcopy(small_parts)
    words = {word for each in WORDINGS.values() for wording in each for word in (wording.first, wording.second)}
    tokenizer.add_tokens(
        [*sorted({form for word in words for form in (f" {word}", word.capitalize())}), " Yes", " No", "Yes", "No"]
    )
    torch.manual_seed(3)
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    torch.nn.init.normal_(
        language.get_input_embeddings().weight[tokenizer.eos_token_id].data, std=0.1
    )  # new padding is 0
    connector = torch.nn.Sequential(torch.nn.Linear(24, 48), torch.nn.GELU(), torch.nn.Linear(48, 48)).eval()
    return assembled(language, tokenizer, tower, connector, check=False)


def test_labels_name_emoji_and_subgroups_that_exist_and_no_emoji_has_two():
    subgroups = {emoji.subgroup for emoji in catalogue()}
    table = rows(LABELS)
    for row in table:
        assert set(row["subgroups"].split(";")) - {""} <= subgroups, row["kind"]
        assert (set(row["names"].split(";")) | set(row["without"].split(";"))) - {""} <= set(EMOJI), row["kind"]
        assert row["rule"]
        assert row["question"].endswith("?")
    for kind, names in known_labels().items():
        assert [row["label"] for row in table if row["kind"] == kind] == ["yes", "no"]
        sides = [sum(names.values()), len(names) - sum(names.values())]
        listed = [
            sum(
                (emoji.subgroup in row["subgroups"].split(";") or emoji.name in row["names"].split(";"))
                and emoji.name not in row["without"].split(";")
                for emoji in catalogue()
            )
            for row in table
            if row["kind"] == kind
        ]
        assert sides == listed, kind  # the second row of a kind takes no emoji from the first
        assert min(sides) >= 7, kind


@pytest.mark.parametrize(
    ("kind", "yes", "no"),
    [
        ("fly", ("eagle", "helicopter", "bat"), ("gorilla", "snail", "bus")),
        ("sea", ("octopus", "coral"), ("gorilla", "ant")),
        ("food", ("pizza", "banana"), ("dog", "ant")),
        ("fruit", ("banana", "cherries"), ("carrot", "garlic")),
        ("dangerous", ("bomb", "shark"), ("teddy bear", "tulip")),
    ],
)
def test_labels_are_what_everybody_knows(kind, yes, no):
    labels = known_labels()[kind]
    assert [labels[name] for name in (*yes, *no)] == [True] * len(yes) + [False] * len(no)
    assert "Aries" not in labels


def test_kinds_that_are_asked_passed_the_screening():
    table = rows(SCREENING)
    assert set(asked_wordings()) <= set(WORDINGS)
    assert len(asked_wordings()) >= 10
    kept = [row for row in table if row["kept"] == "yes"]
    assert [row["kind"] for row in kept] == list(asked_wordings())
    for row in table:
        passed = row["balanced"] != "" and min(float(row["balanced"]), float(row["accuracy"])) >= 0.8
        assert passed == (row["kept"] == "yes")


def test_a_question_has_the_picture_or_the_name_behind_two_examples():
    one, other = abstraction_questions(EMOJI["eagle"], ["fly"])
    wording = asked_wordings()["fly"]
    assert (
        one.text_prompt
        == f"<|im_start|>{wording.first_example}: {wording.first}\n{wording.second_example}: {wording.second}\neagle:"
    )
    assert (
        other.text_prompt
        == f"<|im_start|>{wording.second_example}: {wording.second}\n{wording.first_example}: {wording.first}\neagle:"
    )
    assert (one.answer, one.other, one.kind, one.group) == (wording.first, wording.second, "fly", "abstraction")
    assert one.prompt == one.text_prompt.replace("eagle", "<image>")
    assert abstraction_questions(EMOJI["gorilla"], ["fly"])[0].answer == wording.second
    assert abstraction_questions(EMOJI["Aries"]) == []
    for kind, each in asked_wordings().items():
        for example in (each.first_example, each.second_example):
            assert example not in EMOJI or abstraction_questions(EMOJI[example], [kind]) == []


def test_margins_are_differences_of_logits(worded):
    prompt = ChoiceWording("fly", "walk", "bird", "dog").prompts("<image>")[0]
    drawn = pictures(2, seed=1)
    images = [picture.image for picture in drawn]
    margins = choice_margins(worded, [(prompt, " fly", " walk"), (prompt, " sweet", " salty")], images)
    ids = worded.tokenizer.convert_tokens_to_ids([" fly", " walk", " sweet", " salty"])
    assert len(set(ids)) == 4
    logits = [worded.logits(worded.prepare([prompt], [image], chat=False))[0] for image in images]
    expected = [logits[0][ids[0]] - logits[0][ids[1]], logits[1][ids[2]] - logits[1][ids[3]]]
    torch.testing.assert_close(margins, torch.stack(expected), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="begin with the same token"):
        choice_margins(worded, [("a", "yes", "you")])


def test_a_whole_answer_is_what_generation_writes_and_ends(worded):
    picture = pictures(1, seed=4, things=1)[0]
    question = "<image>\nWhat is this?"
    chat = [{"from": "human", "value": question}, {"from": "gpt", "value": "owl"}]
    steps = {"max_steps": 40, "learning_rate": 1e-2}
    rows = [{"image": picture.image, "conversations": chat}]
    tuned = tune(worded, rows, layers="all", connector=True, arguments=steps).vlm
    assert tuned.generate(tuned.prepare([question], [picture.image], chat=True)) == ["owl"]
    asked = [(question, answer) for answer in ("owl", "ow", "owls", "cat", "o")]
    right, among = whole_answers(tuned, asked, [picture.image] * 5, batch_size=2)
    assert right.tolist() == [True, False, False, False, False]
    assert among[[0, 1, 2, 4]].all()
    again = answers_to_one_picture(tuned, asked, picture.image)
    assert [each.tolist() for each in again] == [right.tolist(), among.tolist()]


def test_every_kind_of_question_is_asked_of_a_model(worded):
    answers = answer_emoji_questions(worded, n=3, seed=0, names=2, batch_size=16)
    choices = answers[answers["group"] == "abstraction"]
    assert set(choices["modality"]) == {"text", "image"}
    assert set(choices["kind"]) == set(asked_wordings())
    assert (choices.groupby(["modality", "kind", "answer"]).size() == 2).all()
    rest = answers[answers["group"] == "perception"]
    assert set(rest["modality"]) == {"image", "blank"}
    assert {"name", "place", "count", "ground"} <= set(rest["kind"])
    for (modality, name), part in choices.groupby(["modality", "item"]):
        emoji = catalogue()[int(name)]
        for row in part.itertuples():
            first = asked_wordings()[row.kind].first
            assert row.right == ((row.margin > 0) == (known_labels()[row.kind][emoji.name])), (modality, first)
    row = choices[choices["modality"] == "text"].iloc[0]
    questions = abstraction_questions(catalogue()[int(row["item"])], [row["kind"]])
    wording = asked_wordings()[row["kind"]]
    asked = [(question.text_prompt, f" {wording.first}", f" {wording.second}") for question in questions]
    assert row["margin"] == pytest.approx(float(choice_margins(worded, asked).mean()), abs=1e-5)
    scores = score_emoji_answers(answers)
    assert (scores["accuracy"].between(0, 1)).all()
    again = compare_emoji_answers(answers, answers)
    assert (again["difference"] == 0).all()


def frame(kind="fly", group="abstraction", **columns):
    length = len(columns["right"])
    rest = {"model": "m", "modality": "image", "item": range(length), "group": group, "kind": kind, "top5": np.nan}
    return pd.DataFrame({**rest, "margin": np.nan, **columns})


def test_an_accuracy_counts_both_words_the_same_and_a_constant_answer_is_at_chance():
    words = ["fly"] * 8 + ["walk"] * 2
    answers = frame(part=words, answer=words, right=[True] * 8 + [False] * 2, margin=[1.0] * 10)
    scores = score_emoji_answers(answers).iloc[0]
    assert (scores["accuracy"], scores["chance"], scores["auc"]) == (0.5, 0.5, 0.5)
    margins = [2.0] * 8 + [1.0] * 2  # a shift of all margins, which the area under the curve does not mind
    assert score_emoji_answers(answers.assign(margin=margins)).iloc[0]["auc"] == 1
    assert scores["low"] < 0.5 < scores["high"]


def test_an_interval_is_as_wide_where_all_are_right_as_rows_are_few():
    words, even = ["fly"] * 8 + ["walk"] * 2, ["fly", "walk"] * 5
    for right, bound in ((True, "low"), (False, "high")):
        scores = score_emoji_answers(frame(part=words, answer=words, right=[right] * 10)).iloc[0]
        assert scores["accuracy"] == right
        equal = score_emoji_answers(frame(part=even, answer=even, right=[right] * 10)).iloc[0]
        assert 0.3 < abs(scores[bound] - right) < 0.5  # the two of "walk" have half of the weight
        assert abs(equal[bound] - right) < abs(scores[bound] - right)


def test_answers_read_from_a_table_are_the_same(tmp_path, worded):
    answers = answer_emoji_questions(worded, n=2, names=1)
    answers.to_csv(tmp_path / "answers.csv", index=False)
    read = pd.read_csv(tmp_path / "answers.csv")
    assert read["part"].isna().any()
    pd.testing.assert_frame_equal(score_emoji_answers(read), score_emoji_answers(answers), check_dtype=False)
    assert (compare_emoji_answers(answers, read)["difference"] == 0).all()


def test_names_are_averaged_over_groups():
    answers = frame(
        kind="name",
        group="perception",
        part=["a"] * 9 + ["b"],
        answer=list("abcdefghij"),
        right=[True] * 9 + [False],
        top5=[1.0] * 10,
    )
    scores = score_emoji_answers(answers).iloc[0]
    assert (scores["accuracy"], scores["top5"], scores["n"]) == (0.5, 1.0, 10)
    assert scores["chance"] == 0.5  # the one name of group b


def test_names_and_pictures_are_compared_question_by_question():
    words = ["fly", "walk"] * 20
    text = frame(part=words, answer=words, right=[True] * 40, margin=[1.0, -1.0] * 20).assign(modality="text")
    image = frame(part=words, answer=words, right=[True, False] * 20, margin=[1.0, 1.0] * 20)
    change = compare_emoji_answers(text, image).iloc[0]
    assert (change["before"], change["after"], change["difference"]) == (1.0, 0.5, -0.5)
    assert change["high"] < 0
    assert change["p_holm"] < 0.001
    with pytest.raises(InputError, match="not to the same questions"):
        compare_emoji_answers(text, image.iloc[1:])
    with pytest.raises(InputError, match="2 models"):
        score_emoji_answers(pd.concat([text, image.assign(model="other")]))
    with pytest.raises(InputTypeError, match="answer_emoji_questions"):
        score_emoji_answers([1])


def test_pictures_of_some_emoji_show_them():
    chosen = [EMOJI[name] for name in ("eagle", "red apple", "bus")]
    drawn = pictures_of(chosen, seed=2)
    assert [[thing.emoji.name for thing in picture.things] for picture in drawn] == [["eagle"], ["red apple"], ["bus"]]
    again = pictures_of(chosen[:2], seed=2)
    assert [each.image.tobytes() for each in again] == [each.image.tobytes() for each in drawn[:2]]


def test_wordings_are_chosen_on_other_names_than_they_are_scored_on():
    for names in known_labels().values():
        first, second = _halves(names, seed=0)
        assert not set(first) & set(second)
        for half in (first, second):
            assert {True, False} == set(half.values())
            assert all(names[name] is label for name, label in half.items())


def test_the_screening_scores_both_answers_the_same():
    names = dict.fromkeys("abcdefgh", True) | dict.fromkeys("xy", False)
    scored = _scored(torch.ones(10), names)
    assert (scored["accuracy"], scored["balanced"], scored["auc"]) == (0.8, 0.5, 0.5)


def test_the_screening_has_every_wording_and_keeps_one_at_most(worded):
    table = screened(worded, ["hot", "water"])
    for kind in ("hot", "water"):
        listed = [row for row in table if row["kind"] == kind and row["form"] == "two examples"]
        assert [row["first"] for row in listed] == [wording.first for wording in WORDINGS[kind]]
        assert sum("balanced" in row for row in listed) == 1
        best = next(row for row in listed if "balanced" in row)
        assert best["chosen_on"] == max(row["chosen_on"] for row in listed)
        assert (best["kept"] == "yes") == (min(best["balanced"], best["accuracy"]) >= 0.8)
    assert {row["form"] for row in table} == {"two examples", "yes or no", "choice, chat"}


def test_retention_has_200_texts_without_pictures():
    kept = retention_questions()
    assert len(kept) == len({row["text"] for row in kept}) == len({row["id"] for row in kept}) == 200
    assert sum(row["kind"] == "name" for row in kept) == 80
    assert len({row["kind"] for row in kept}) >= 6
    for row in kept:
        assert "<image>" not in row["text"]
        assert row["answer"].startswith(" ")
        assert not row["text"].endswith(" ")


def test_only_texts_that_are_answered_are_kept_and_not_too_many():
    candidates = [{"kind": "name", "text": str(n), "answer": " a"} for n in range(100)]
    candidates += [{"kind": "fact", "text": str(n), "answer": " a"} for n in range(100, 400)]
    right = np.arange(400) % 2 == 0
    table = kept_of(candidates, right)
    kept = [index for index, row in enumerate(table) if row["kept"] == "yes"]
    assert all(right[kept])
    assert [sum(index < 100 for index in kept), sum(index >= 100 for index in kept)] == [50, 120]
