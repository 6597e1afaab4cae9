"""Scores and comparisons of answers, against counts by hand."""

import pandas as pd
import pytest
import scipy.stats

import interp
from interp.statistics import holm, wilson_interval
from interp.toy import answer_questions, compare_answers, evaluate, score_answers


@pytest.fixture(scope="module")
def answers():
    return {name: answer_questions(f"toy:{name}", n=60, seed=3) for name in ("stage1", "tuned")}


def test_scores_are_counts_of_single_answers(answers):
    frame = answers["tuned"]
    scores = score_answers(frame)
    pd.testing.assert_frame_equal(scores, evaluate("toy:tuned", n=60, seed=3))
    for row in scores.itertuples():
        part = frame[(frame["modality"] == row.modality) & (frame["kind"] == row.kind)]
        assert (row.accuracy, row.n) == (part["right"].mean(), len(part))
        assert (row.low, row.high) == pytest.approx(
            wilson_interval(row.accuracy, row.n)
        )  # a scene has one of each kind
        assert row.chance == part["answer"].value_counts().max() / len(part)


def test_questions_about_one_scene_are_not_independent(answers):
    frame = answers["stage1"]
    copies = pd.concat([frame] * 5).sort_values(["modality", "scene", "kind"], kind="stable")  # nothing new was asked
    alone, together = (score_answers(each, by="group").set_index(["modality", "group"]) for each in (frame, copies))
    assert alone.columns.tolist() == ["model", "accuracy", "low", "high", "chance", "n"]
    mixed = alone[(alone["accuracy"] > 0.1) & (alone["accuracy"] < 0.9)].index
    widths = [(each["high"] - each["low"])[mixed] for each in (alone, together)]
    assert (widths[1] > 0.9 * widths[0]).all()


def test_two_models_are_compared_question_by_question(answers):
    change = compare_answers(answers["stage1"], answers["tuned"])
    row = change[(change["modality"] == "image") & (change["kind"] == "colour")].iloc[0]
    right = [
        frame[(frame["modality"] == "image") & (frame["kind"] == "colour")]["right"].to_numpy()
        for frame in answers.values()
    ]
    gained, lost = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
    assert row["difference"] == pytest.approx((gained - lost) / 60)
    assert row["p"] == pytest.approx(scipy.stats.binomtest(gained, gained + lost).pvalue)
    assert 0 < row["low"] < row["difference"] < row["high"]
    assert change["p_holm"].tolist() == holm(change["p"]).tolist()
    groups = compare_answers(answers["stage1"], answers["tuned"], by="group")
    assert len(groups) == 4
    assert groups["n"].sum() == len(answers["tuned"])
    same = compare_answers(answers["tuned"], answers["tuned"])
    assert (same["p"] == 1).all()
    assert (same["low"] < 0).all()  # no answer changed, and rare changes are not excluded


def test_other_questions_are_refused(answers):
    with pytest.raises(
        interp.InputError, match=r"are not to the same questions: expected answer_questions of two models"
    ):
        compare_answers(answers["stage1"], answer_questions("toy:tuned", n=60, seed=4))
    with pytest.raises(interp.InputError, match=r"^by='scene'"):
        score_answers(answers["tuned"], by="scene")


def test_rows_in_another_order_are_paired_by_their_question(answers):
    shuffled = answers["tuned"].sample(frac=1, random_state=0)
    for by in ("kind", "group"):
        change = compare_answers(answers["stage1"], shuffled, by=by)
        pd.testing.assert_frame_equal(change, compare_answers(answers["stage1"], answers["tuned"], by=by))


def test_one_scene_has_no_interval(answers):
    first = [frame[frame["scene"] == 0] for frame in answers.values()]
    change = compare_answers(*first)
    assert change[["low", "high"]].isna().all(axis=None)
    assert (change["p"] == 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="scene"), "no column 'scene'"),
        (lambda frame: frame[:0], "no rows"),
        (lambda frame: pd.concat([frame, frame.assign(model="other")]), "answers of 2 models"),
        (lambda frame: "toy:tuned", "'toy:tuned': expected the frame"),
    ],
)
def test_what_is_not_the_answers_of_one_model_is_refused(answers, change, message):
    wrong = change(answers["tuned"])
    for call in (lambda: score_answers(wrong), lambda: compare_answers(answers["tuned"], wrong)):
        with pytest.raises(interp.InterpError, match=message):
            call()


@pytest.mark.parametrize("wrong", [{"n": 0}, {"batch_size": 0}, {"batch_size": 2.5}, {"seed": -1}])
def test_bad_numbers_are_named(wrong):
    with pytest.raises(interp.InputError, match=f"^{next(iter(wrong))}="):
        answer_questions("toy:tuned", **{"n": 1, **wrong})
