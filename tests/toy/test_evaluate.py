"""Scores and comparisons of answers, against counts by hand."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

import interp
from interp.statistics import crossed_change, crossed_share, holm, wilson_interval
from interp.toy import answer_questions, compare_answers, evaluate, score_answers, score_models


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
        (lambda frame: "toy:tuned", "'toy:tuned': expected the frame"),
    ],
)
def test_what_is_not_a_frame_of_answers_is_refused(answers, change, message):
    wrong = change(answers["tuned"])
    for call in (
        lambda: score_answers(wrong),
        lambda: score_models(wrong),
        lambda: compare_answers(answers["tuned"], wrong),
    ):
        with pytest.raises(interp.InterpError, match=message):
            call()


@pytest.mark.parametrize("wrong", [{"n": 0}, {"batch_size": 0}, {"batch_size": 2.5}, {"seed": -1}])
def test_bad_numbers_are_named(wrong):
    with pytest.raises(interp.InputError, match=f"^{next(iter(wrong))}="):
        answer_questions("toy:tuned", **{"n": 1, **wrong})


# Several models ----------------------------------------------------------------------------------------------------------


def drawn(seed, luck, n=80):
    """Answers of five models of one kind to the same questions, three kinds a scene: `luck` is how much models differ."""
    rng = np.random.default_rng(seed)
    scene = np.repeat(np.arange(n), 3)
    ease = rng.normal(1, 0.7, n)[scene] + rng.normal(0, 1, 3 * n)
    table = {
        "modality": "image",
        "scene": scene,
        "group": "perception",
        "kind": ["colour", "digit", "place"] * n,
        "answer": "3",
    }
    frames = []
    for model in range(5):
        chances = 1 / (1 + np.exp(-(ease + luck * rng.normal())))
        frames.append(pd.DataFrame({**table, "model": f"toy {model}", "right": rng.random(3 * n) < chances}))
    return pd.concat(frames)


def test_several_models_are_asked_the_same_questions(answers):
    names = ["toy:stage1", "toy:tuned"]
    both = answer_questions(names, n=4, seed=3)
    assert both["model"].unique().tolist() == names
    for name in names:
        alone = answer_questions(name, n=4, seed=3)
        pd.testing.assert_frame_equal(both[both["model"] == name].reset_index(drop=True), alone)
    scores = evaluate([interp.load(name, device="cpu") for name in names], n=4, seed=3)
    pd.testing.assert_frame_equal(scores, score_answers(both))
    assert scores["model"].unique().tolist() == names


@pytest.mark.parametrize("names", [[], ["toy:tuned", "toy:tuned"]])
def test_each_model_has_a_name_of_its_own(names):
    with pytest.raises(interp.InputError, match=r"^model=.*each with a name of its own"):
        answer_questions(names, n=1)


def test_a_mean_over_models_has_an_interval_over_models_and_scenes():
    frame = drawn(0, 0.5)
    row = score_models(frame).iloc[0]
    right = np.stack([each["right"][each["kind"] == "colour"] for _, each in frame.groupby("model")])
    share = crossed_share(torch.from_numpy(right))
    assert (row["accuracy"], row["low"], row["high"]) == (share.value, share.low, share.high)
    accuracies = right.mean(axis=1)
    assert (row["smallest"], row["largest"], row["models"], row["n"]) == (accuracies.min(), accuracies.max(), 5, 80)
    # Cochran's Q: (k - 1) (k sum(G^2) - N^2) / (k N - sum(L^2)), of what five models got right, and each question of five.
    models, items = right.sum(axis=1), right.sum(axis=0)
    cochran = 4 * (5 * (models**2).sum() - right.sum() ** 2) / (5 * right.sum() - (items**2).sum())
    assert row["p"] == pytest.approx(scipy.stats.chi2.sf(cochran, 4), rel=0.1)
    next_ = scipy.stats.t.interval(0.95, 4, accuracies.mean(), accuracies.std(ddof=1) * np.sqrt(6 / 5))
    assert (row["next_low"], row["next_high"]) == pytest.approx(next_)


def test_models_of_one_ability_are_rarely_found_to_differ_and_others_are():
    alike = np.array([score_models(drawn(seed, 0.0), by="group")["p"].iloc[0] for seed in range(50)])
    assert (alike <= 0.05).mean() <= 0.12
    other = np.array([score_models(drawn(seed, 1.0), by="group")["p"].iloc[0] for seed in range(10)])
    assert (other <= 0.05).mean() > 0.8


def test_the_next_model_is_where_the_interval_says():
    held = []
    for seed in range(50):
        frame = drawn(seed, 0.7)
        last = frame["model"] == "toy 4"
        row = score_models(frame[~last], by="group").iloc[0]
        held.append(row["next_low"] <= frame[last]["right"].mean() <= row["next_high"])
    assert np.mean(held) >= 0.9


def test_changes_of_several_models_are_paired_by_model():
    before, after = drawn(0, 0.5), drawn(0, 0.5)
    rng = np.random.default_rng(9)
    after["right"] |= rng.random(len(after)) < 0.3
    row = compare_answers(before, after.sample(frac=1, random_state=0).sort_values("model", kind="stable")).iloc[0]
    one, other = (
        torch.from_numpy(np.stack([each["right"][each["kind"] == "colour"] for _, each in frame.groupby("model")]))
        for frame in (before, after)
    )
    expected = crossed_change(one, other)
    numbers = (expected.value, expected.low, expected.high, expected.p)
    assert row[["difference", "low", "high", "p"]].tolist() == pytest.approx(numbers)
    assert row["n"] == 80
    first = before[before["model"] == "toy 0"]
    row = compare_answers(first, after).iloc[0]  # one model stands for all
    assert row["difference"] == pytest.approx(float(crossed_change(one[:1], other).value))
    with pytest.raises(interp.InputError, match="2 models before and 5 after"):
        compare_answers(before[before["model"] <= "toy 1"], after)


def test_models_with_other_questions_have_no_mean():
    frame = drawn(0, 0.5)
    with pytest.raises(interp.InputError, match=r"answers of 'toy 0' and 'toy 4' are not to the same questions"):
        score_models(frame[(frame["model"] != "toy 4") | (frame["scene"] > 0)])


def test_models_that_all_agree_do_not_promise_that_the_next_one_does():
    row = score_models(drawn(0, 0.5).assign(right=True)).iloc[0]
    assert (row["accuracy"], row["tau"], row["p"], row["next_high"]) == (1, 0, 1, 1)
    assert 0.94 < row["next_low"] < 0.99  # of 80 questions, some two
    assert 0.9 < row["low"] < 1


def test_one_model_says_nothing_of_the_next():
    frame = drawn(0, 0.5)
    row = score_models(frame[frame["model"] == "toy 0"]).iloc[0]
    assert row[["low", "high", "next_low", "next_high", "tau", "p"]].isna().all()
    assert (
        row["accuracy"] == row["smallest"] == frame[frame["model"] == "toy 0"].query("kind == 'colour'")["right"].mean()
    )
