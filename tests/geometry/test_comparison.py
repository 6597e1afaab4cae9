from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from interp.errors import InputError
from interp.geometry import (
    REGISTRY,
    cka,
    compare,
    curvature,
    intrinsic_dimension,
    label_overlap,
    modality_gap,
    neighbor_overlap,
    participation_ratio,
)
from interp.results import Result
from interp.statistics import family_p, holm

STATES = 4


def stacks(n=120, d=10, seed=0):
    """Images and captions that share a code at state 2 alone."""
    rng = np.random.default_rng(seed)
    visual, textual = rng.normal(size=(2, STATES, n, d))
    visual[2] = textual[2] + 0.2 * rng.normal(size=(n, d))
    return visual, textual


def row(found, measure, state, modality="both"):
    frame = found.to_frame()
    return frame[(frame.measure == measure) & (frame.state == state) & (frame.modality == modality)].iloc[0]


@pytest.mark.parametrize("name", REGISTRY)
def test_every_measure_has_a_number_for_every_state_and_its_control(name):
    visual, textual = stacks(n=80)
    labels = np.arange(80) % 3
    found = compare(visual, textual, metrics=[name], labels=labels, subsamples=3, permutations=5)
    frame = found.to_frame()
    assert list(frame.columns) == [
        "measure",
        "modality",
        "state",
        "value",
        "error",
        "chance",
        "p",
        "p_holm",
        "p_family",
        "p_all",
    ]
    states = [1, 2] if name == "curvature" else list(range(STATES))
    assert frame.groupby("modality").state.apply(list).to_dict() == (
        {"both": states} if REGISTRY[name].kind in ("pair", "gap") else {"textual": states, "visual": states}
    )
    assert np.isfinite(frame.value).all()
    assert np.isfinite(frame.chance).all()
    assert np.isfinite(frame.error).all()
    tested = REGISTRY[name].kind in ("labelled", "pair") or name in ("paired_cosine", "principal_angle", "homogeneity")
    for column in ("p", "p_holm", "p_family", "p_all"):
        assert np.isfinite(frame[column]).all() == tested
    if REGISTRY[name].kind == "pair":
        assert row(found, name, 2).value > row(found, name, 2).chance
        assert row(found, name, 2).p == pytest.approx(1 / 6)
        assert row(found, name, 2).value > max(row(found, name, state).value for state in (0, 1, 3))


def test_the_values_are_those_of_the_measures():
    visual, textual = stacks()
    names = [
        "2nn",
        "gride",
        "participation_ratio",
        "curvature",
        "label_overlap",
        "neighbor_overlap",
        "cka",
        "separability",
    ]
    labels = np.arange(120) % 2
    found = compare(visual, textual, metrics=names, labels=labels, subsamples=0, permutations=3, seed=4)
    assert row(found, "2nn", 1, "visual").value == intrinsic_dimension(visual[1]).value
    assert row(found, "gride", 3, "textual").error == intrinsic_dimension(textual[3], "gride").error
    assert row(found, "participation_ratio", 0, "textual").value == pytest.approx(participation_ratio(textual[0]))
    assert row(found, "curvature", 2, "visual").value == pytest.approx(curvature(visual)[1])
    assert row(found, "curvature", 2, "visual").chance == pytest.approx(2 * math.pi / 3, abs=0.1)
    assert row(found, "label_overlap", 0, "visual").value == pytest.approx(label_overlap(visual[0], labels))
    assert row(found, "neighbor_overlap", 2).value == neighbor_overlap(visual[2], textual[2])
    assert row(found, "cka", 2).value == pytest.approx(cka(visual[2], textual[2]))
    gap = modality_gap(visual[1], textual[1], shuffles=3, seed=4)
    assert row(found, "separability", 1).value == gap.separability
    assert math.isnan(row(found, "cka", 2).error)  # no half-samples, no error
    assert found.to_frame().measure.unique().tolist() == names


def test_the_null_is_that_of_shuffled_rows():
    visual, textual = stacks()
    found = compare(visual, textual, metrics=["neighbor_overlap", "cka"], subsamples=0, permutations=4, seed=9)
    rng = np.random.default_rng(9)
    orders = [rng.permutation(120) for _ in range(4)]
    for name, measure in (("neighbor_overlap", neighbor_overlap), ("cka", cka)):
        null = [measure(visual[1], textual[1][order]) for order in orders]
        assert row(found, name, 1).chance == pytest.approx(np.mean(null), abs=1e-9)
        reached = sum(value >= measure(visual[1], textual[1]) - 1e-12 for value in null)
        assert row(found, name, 1).p == pytest.approx((reached + 1) / 5)


def test_a_graph_is_made_once_for_all_that_take_it(monkeypatch):
    from interp.geometry import readings

    made = []
    whole = readings.nearest_neighbors
    monkeypatch.setattr(
        readings, "nearest_neighbors", lambda cloud, k, metric: made.append(k) or whole(cloud, k, metric)
    )
    names = ["neighbor_overlap", "2nn", "gride", "mle", "label_overlap"]
    compare(*stacks(), metrics=names, labels=np.arange(120) % 2, permutations=2)
    assert len(made) == STATES * 2 * (2 + 10)  # the clouds, those whose features are shuffled, and ten halves


def test_copies_are_left_out_of_everything_alike_and_named():
    visual, textual = stacks()
    visual[1, 7] = visual[1, 3]
    textual[3, 50] = textual[3, 49]
    found = compare(visual, textual, metrics=["2nn", "cka"], subsamples=2, permutations=2)
    assert found.dropped.tolist() == [7, 50]
    assert found.n == 118
    assert found.provenance.notes == ("2 of 120 examples repeat others and were left out",)
    kept = np.setdiff1d(np.arange(120), [7, 50])
    assert row(found, "cka", 0).value == pytest.approx(cka(visual[0, kept], textual[0, kept]))
    whole = compare(visual, textual, metrics=["cka", "neighbor_overlap"], subsamples=2, permutations=2)
    assert whole.dropped.tolist() == []
    assert whole.n == 120


def test_labels_stay_with_their_examples_when_copies_are_left_out():
    visual, textual = stacks()
    labels = np.random.default_rng(1).integers(0, 2, 120)
    visual[:, :, 0] = textual[:, :, 0] = 20 * labels
    visual[1, 7] = visual[1, 3]
    found = compare(visual, textual, metrics=["2nn", "label_overlap"], labels=labels, subsamples=2, permutations=2)
    assert found.dropped.tolist() == [7]
    assert row(found, "label_overlap", 0, "visual").value > 0.99


def test_a_state_of_mostly_copies_is_refused_where_distinct_examples_are_needed():
    visual, textual = stacks()
    visual[1, 59:] = visual[1, 59]
    assert compare(visual[:, 40:], textual[:, 40:], metrics=["cka"], permutations=2).n == 80
    with pytest.raises(InputError, match="visual state 1 has 20 distinct examples of 80"):
        compare(visual[:, 40:], textual[:, 40:], metrics=["2nn"], permutations=2)


def test_the_corrected_p_of_many_states():
    visual, textual = stacks(n=60)
    found = compare(visual, textual, metrics=["neighbor_overlap", "cka"], subsamples=0, seed=2)
    frame = found.to_frame()
    overlap = frame[frame.measure == "neighbor_overlap"]
    assert overlap.p_holm.tolist() == holm(overlap.p).tolist()
    rng = np.random.default_rng(2)
    orders = [rng.permutation(60) for _ in range(20)]
    null = [[neighbor_overlap(visual[s], textual[s][order]) for s in range(STATES)] for order in orders]
    short = compare(visual, textual, metrics=["neighbor_overlap", "cka"], subsamples=0, seed=2, permutations=20)
    expected = family_p(torch.tensor(overlap.value.to_numpy()), torch.tensor(null))
    assert short.p_family[:STATES].tolist() == pytest.approx(expected.tolist())
    assert row(found, "cka", 2).p_family == 1 / 200
    assert row(found, "cka", 2).p_holm == pytest.approx(4 / 200)
    assert (frame.p_all >= frame.p).all()
    assert (frame.p_family >= frame.p - 1e-12).all()


def test_one_of_many_states_that_share_nothing_is_found_in_one_comparison_of_twenty_at_most():
    rng = np.random.default_rng(0)
    found = []
    for seed in range(16):
        visual, textual = rng.normal(size=(2, 12, 30, 4))
        metrics = ["mutual_knn", "cka"]
        frame = compare(visual, textual, metrics, subsamples=0, permutations=39, seed=seed).to_frame()
        found.append(
            (frame.p.min() <= 0.05, frame[frame.measure == "cka"].p_family.min() <= 0.05, frame.p_all.min() <= 0.05)
        )
    alone, family, together = np.sum(found, axis=0)
    assert alone >= 8
    assert family <= 3
    assert together <= 3


def test_what_is_equal_under_every_shuffle_has_p_of_one():
    visual, textual = stacks()
    visual[0] = 1.0
    found = compare(visual, textual, metrics=["neighbor_overlap"], permutations=4)
    assert row(found, "neighbor_overlap", 0).p == 1.0


def test_exchanged_modalities_and_paths_of_strangers_are_controls():
    visual, textual = stacks()
    textual[:, :, :] = visual + 0.1 * textual
    textual[:, :, 0] += 30
    found = compare(visual, textual, metrics=["homogeneity"], permutations=9, subsamples=0)
    assert row(found, "homogeneity", 0).p == pytest.approx(0.1)
    assert row(found, "homogeneity", 0).value > 0.99
    assert row(found, "homogeneity", 0).chance < 0.1  # an exchange of a few examples alone leaves most of it
    line = 5 * np.arange(STATES)[:, None, None] + 10 * visual[:1]
    turns = compare(line, line, metrics=["curvature"])
    assert row(turns, "curvature", 1, "visual").value == pytest.approx(0, abs=1e-6)
    assert row(turns, "curvature", 1, "visual").chance == pytest.approx(2 * np.pi / 3, abs=0.3)


def test_what_changed_between_two_models():
    before, after = (compare(*stacks(seed=seed), metrics=["cka", "2nn"], permutations=2) for seed in (0, 1))
    change = before.change(after, paired=False)
    keys = [
        "measure",
        "modality",
        "state",
        "before",
        "after",
        "difference",
        "error",
        "z",
        "p",
        "p_holm",
        "p_family",
        "paired",
    ]
    assert list(change.columns) == keys
    assert not change.paired.any()
    assert len(change) == len(before.to_frame())
    one = change[(change.measure == "cka") & (change.state == 2)].iloc[0]
    assert one.before == row(before, "cka", 2).value
    assert one.difference == pytest.approx(row(after, "cka", 2).value - row(before, "cka", 2).value)
    assert one.error == pytest.approx(math.hypot(row(before, "cka", 2).error, row(after, "cka", 2).error))
    with pytest.raises(InputError, match="no number in common"):
        before.change(compare(*stacks(), metrics=["rsa"], permutations=2))


def test_kept_and_read_again(tmp_path):
    found = compare(*stacks(n=60), metrics=["cka"], permutations=2, subsamples=2)
    again = Result.load(found.save(tmp_path / "comparison.safetensors"))
    assert again.to_frame().equals(found.to_frame())
    assert (again.n, again.dropped.tolist()) == (60, [])


def test_modalities_may_differ_in_width_and_for_measures_of_one_in_depth():
    visual, textual = stacks()
    wide = np.concatenate([textual, textual], axis=2)
    assert len(compare(visual, wide, metrics=["cka"], permutations=2).to_frame()) == STATES
    found = compare(visual, textual[:2], metrics=["2nn"], permutations=2).to_frame()
    assert found.groupby("modality").size().to_dict() == {"textual": 2, "visual": 4}


def test_errors_name_the_state_and_the_modality():
    visual, textual = stacks()
    constant, without = textual.copy(), textual.copy()
    constant[2] = 1.5
    without[2, 5] = 0.0
    for states, name, message in [
        (constant, "participation_ratio", "^textual state 2: the .* rows of x are all equal"),
        (constant, "cka", "^the 120 rows of textual state 2 are all equal"),
        (constant, "rsa", r"^visual state 2 \(x\) and textual state 2 \(y\): the 120 rows of y are all equal"),
        (without, "mutual_knn", "^textual state 2: x has 1 rows of zeros"),
        (without, "paired_cosine", r"^visual state 2 \(x\) and textual state 2 \(y\): y has 1 rows of zeros"),
    ]:
        with pytest.raises(InputError, match=message):
            compare(visual, states, metrics=[name], permutations=2)


def test_refusals():
    visual, textual = stacks()
    constant = visual.copy()
    constant[0] = 1.5
    for call, message in [
        (lambda: compare(visual, textual, metrics=["cosine"]), r"metrics=\['cosine'\]: \['cosine'\] are unknown"),
        (lambda: compare(visual, textual, metrics=[]), r"metrics=\[\]"),
        (lambda: compare(visual, textual, metrics=["label_overlap"]), "labels=None: pass one label an example"),
        (
            lambda: compare(visual, textual, metrics=["label_overlap"], labels=[0, 1]),
            r"labels have shape \(2,\) for 120",
        ),
        (lambda: compare(visual, textual[:, :50]), "visual has 120 examples and textual 50"),
        (lambda: compare(visual, textual[:2]), "visual has 4 states and textual 2"),
        (lambda: compare(constant, textual), "visual state 0 has 1 distinct examples of 120"),
        (lambda: compare(visual * np.nan, textual), "480 rows that are not finite"),
        (lambda: compare(visual, textual, permutations=0), "permutations=0"),
        (lambda: compare(visual, textual, subsamples=1), "subsamples=1"),
        (lambda: compare(visual, textual, seed=-1), "seed=-1"),
        (lambda: compare(visual, textual[:, :, :5], metrics=["separability"]), "x has 10 features and y 5"),
        (lambda: compare(visual[:, :20], textual[:, :20]), "'gride' takes 32 neighbours and there are 20 examples"),
        (lambda: compare(visual[:, :30], textual[:, :30], metrics=["neighbor_overlap"]), "takes 30 .* there are 30"),
        (lambda: compare(visual[:2], textual[:2], metrics=["curvature"]), "^visual: states has shape"),
        (lambda: compare(visual, textual[:, :, :5], metrics=["homogeneity"]), "x has 10 features and y 5"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_dimensions_that_are_surely_too_low_are_named():
    """Half of the points of one state are near copies of the others, which 2NN reads as a dimension near 0."""
    visual, textual = (torch.randn(2, 100, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    visual[1, 50:] = visual[1, :50] + 1e-4 * textual[1, 50:]
    notes = compare(visual, textual, metrics=["2nn", "cka"], subsamples=2, permutations=2).provenance.notes
    assert len(notes) == 1
    assert notes[0].startswith("2nn of visual at states 1: too low: 100 of 100 points have one neighbour over 50 times")
    assert notes[0].endswith("drop one of each pair, or use gride (at state 1)")
    alone = intrinsic_dimension(visual[1])
    assert alone.warning in notes[0]
    assert compare(visual[:1], textual[:1], metrics=["2nn", "cka"], subsamples=2, permutations=2).provenance.notes == ()
