"""Leakage is seen: by the pictures that activations know, by distances in arrays, and in a control."""

import numpy as np
import pytest
import torch

import interp
from interp.errors import InputError
from interp.probes import probe_layers
from interp.probes.controls import group_labels
from interp.probes.leakage import near_groups, near_rows

QUIET = {"permutations": 199, "progress": False}


def leaky(seed, pictures=60, k=5, d=64, part=0.1):
    """States of several questions about each picture, mostly its content; a random label for each picture; the pictures."""
    rng = np.random.default_rng(seed)
    picture = np.repeat(np.arange(pictures), k)
    states = rng.normal(size=(pictures, d))[picture] + part * rng.normal(size=(pictures * k, d))
    return states[None], rng.integers(2, size=pictures)[picture], picture


def leaks(result):
    return [note for note in result.provenance.notes if note.startswith("leakage")]


def test_leakage_in_arrays_is_noted_and_its_control_is_high_in_20_of_20():
    for seed in range(20):
        states, labels, picture = leaky(seed)
        torn = probe_layers(states, labels, seed=seed, **QUIET)
        assert len(leaks(torn)) == 1
        assert torn.accuracy > 0.9
        assert torn.p <= 0.05  # which is why it must be seen
        assert torn.control < 0.75
        assert torn.group_control > 0.9
        whole = probe_layers(states, labels, groups=picture, seed=seed, **QUIET)
        assert not leaks(whole)
        assert torch.equal(whole.group_control, whole.control)


HONEST = {
    "normal, 1 dimension": lambda rng: rng.normal(size=(300, 1)),
    "normal, 3 dimensions": lambda rng: rng.normal(size=(300, 3)),
    "normal, 100 dimensions": lambda rng: rng.normal(size=(300, 100)),
    "on a line": lambda rng: np.outer(rng.random(300), rng.normal(size=50)),
    "exponential": lambda rng: rng.exponential(size=(300, 1)),
    "lognormal": lambda rng: np.exp(rng.normal(size=(300, 20))),
    "dense": lambda rng: rng.normal(size=(1500, 2)),
    "few": lambda rng: rng.normal(size=(40, 10)),
    "types": lambda rng: rng.normal(size=(300, 20)) + 2 * rng.normal(size=(12, 20))[rng.integers(12, size=300)],
    "one point": lambda rng: np.ones((200, 5)),
}


@pytest.mark.parametrize("draw", HONEST.values(), ids=HONEST)
def test_honest_data_are_not_noted(draw):
    seen = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        states = draw(rng)
        order = rng.permutation(len(states))
        sides = np.sort(order[len(order) // 3 :]), np.sort(order[: len(order) // 3])
        seen += near_rows(states[None], rng.integers(2, size=len(states)), *sides, seed) is not None
    assert seen <= 1


@pytest.mark.parametrize("apart", [1, 4, 100])
@pytest.mark.parametrize("n_classes", [2, 12])
def test_clusters_of_classes_are_not_noted(apart, n_classes):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = rng.integers(n_classes, size=400)
        states = rng.normal(size=(400, 20)) + apart * rng.normal(size=(n_classes, 20))[labels]
        order = rng.permutation(400)
        assert near_rows(states[None], labels, np.sort(order[130:]), np.sort(order[:130]), seed) is None


@pytest.mark.parametrize("unit", [1e30, 1e-30, 1.0])
def test_the_unit_and_the_precision_do_not_matter(unit):
    states, labels, picture = leaky(0)
    order = np.random.default_rng(0).permutation(300)
    sides = np.sort(order[90:]), np.sort(order[:90])
    seen = near_rows(np.float32(states * unit), labels, *sides, 0)
    assert (seen.states, seen.state, seen.share > 0.8) == ((0,), 0, True)
    groups = near_groups(np.float32(states[0] * unit), sides[0], seen.distance)
    assert all(len(set(groups[picture == each])) == 1 for each in range(60))
    assert len(set(groups)) == 60


def test_equal_rows_are_noted():
    rng = np.random.default_rng(0)
    states = np.repeat(rng.normal(size=(3, 60, 8)), 2, axis=1)
    found = probe_layers(states, np.repeat(rng.integers(2, size=60), 2), **QUIET)
    assert leaks(found)[0].startswith("leakage at 3 states (0, 1, 2):")


def test_the_states_with_leakage_are_named():
    states, labels, _ = leaky(0)
    stack = np.concatenate([np.random.default_rng(1).normal(size=states.shape), states])
    assert leaks(probe_layers(stack, labels, **QUIET))[0].startswith("leakage at state 1:")


def test_each_group_takes_over_the_labels_of_another():
    _, labels, picture = leaky(0)
    shuffled = group_labels(labels, picture, np.arange(0, 300, 2), 0)
    assert all(len(set(shuffled[picture == each])) == 1 for each in range(60))
    assert sorted(shuffled) == sorted(labels)
    assert not np.array_equal(shuffled, labels)


# Activations know what belongs together ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def asked(toy):
    """The mean image token of 40 scenes, for three questions each."""
    scenes = interp.toy.scenes(40, seed=3, distinct=True)
    rows = [(scene.image, f"<image> {text} ?") for scene in scenes for text in ("colour", "digit", "where")]
    return interp.capture(toy, rows, progress=False)


def test_questions_about_one_picture_are_on_one_side_by_default(asked):
    picture = np.arange(120) // 3
    labels = np.random.default_rng(0).integers(2, size=40)[picture]
    found = probe_layers(asked, labels, **QUIET)
    assert not set(picture[found.train_rows]) & set(picture[found.test_rows])
    assert len(found.test_groups.unique()) == 12
    assert torch.equal(found.accuracy, probe_layers(asked, labels, groups=asked.groups("resid"), **QUIET).accuracy)
    assert not leaks(found)
    assert torch.equal(found.group_control, found.control)


def test_every_example_on_its_own_is_said_in_a_word_and_noted(asked):
    labels = np.random.default_rng(0).integers(2, size=40)[np.arange(120) // 3]
    torn = probe_layers(asked, labels, groups="examples", **QUIET)
    assert torn.test_groups is None
    assert "pictures or prompts have examples on both sides of the split" in leaks(torn)[0]
    assert (torn.group_control > torn.control + 0.15).all()
    array = probe_layers(asked["resid"][...], labels, groups="examples", **QUIET)
    assert torch.equal(array.accuracy, torn.accuracy)
    assert len(leaks(array)) == 1


def test_patches_of_one_picture_are_one_group(toy):
    acts = interp.capture(toy, interp.toy.scenes(20, seed=3, distinct=True), reduce="none", progress=False)
    labels = np.arange(20)[acts.rows] % 2
    found = probe_layers(acts.select(layers=[2]), labels, kind="mean_difference", **QUIET)
    assert not set(acts.rows[found.train_rows].tolist()) & set(acts.rows[found.test_rows].tolist())
    with pytest.raises(InputError, match=r"class 0 has 1 groups.*examples of one picture or prompt are one group"):
        probe_layers(acts, acts.rows, **QUIET)


def test_p_holds_where_whole_groups_share_a_label():
    """The leaky design with groups: p <= .05 in 5 % of draws, for one state and for any of twenty."""
    small = []
    for seed in range(200):
        states, labels, picture = leaky(seed, k=3, d=8)
        stack = np.concatenate([states, np.random.default_rng(seed).normal(size=(19, 60, 8))[:, picture]])
        options = {"kind": "mean_difference", "control": False, "permutations": 99, "progress": False}
        found = probe_layers(stack, labels, groups=picture, seed=seed, **options)
        small.append([bool(p <= 0.05) for p in (found.p[0], found.p_family.min(), found.p.min())])
    one, any_, uncorrected = np.mean(small, axis=0)
    assert 0.01 < one < 0.09
    assert 0.01 < any_ < 0.09
    assert uncorrected > 0.1
