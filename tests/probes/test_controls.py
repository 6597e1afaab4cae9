"""Permutations against a count of all of them, control tasks against planted types, splits."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InputError
from interp.probes import probe_layers
from interp.probes.controls import control_task, p_values, split_examples


def p_of_all(answers, parts):
    """The share of all orders of the parts' labels in which the answers are right as often as now."""
    now = (answers == np.concatenate(parts)).sum()
    orders = [np.concatenate(order) for order in itertools.permutations(parts)]
    return np.mean([(answers == order).sum() >= now for order in orders])


@pytest.mark.parametrize("grouped", [False, True])
def test_p_is_the_share_of_all_orders(grouped):
    rng = np.random.default_rng(3)
    size = 3 if grouped else 1
    numbers = np.repeat(rng.integers(3, size=7), size)
    answers = np.where(rng.random(len(numbers)) < 0.6, numbers, rng.integers(3, size=len(numbers)))
    order = rng.permutation(len(numbers))  # groups stand among one another
    blocks = np.repeat(np.arange(7), size)[order]
    numbers, answers = numbers[order], answers[order]
    sorted_ = np.argsort(blocks, kind="stable")
    parts = np.split(numbers[sorted_], 7)
    rows = 2 * np.arange(len(numbers)) + 1  # the test rows are some of all
    every, groups = np.zeros(2 * len(rows), int), np.zeros(2 * len(rows), int)
    every[rows], groups[rows] = numbers, blocks
    found = p_values(answers[None], every, groups if grouped else None, rows, 4000, seed=0)
    expected = p_of_all(answers[sorted_], parts)
    assert 0.01 < expected < 0.5
    assert float(found[0]) == pytest.approx(expected, abs=0.02)


def test_p_is_as_often_small_as_it_says_where_there_is_nothing():
    rng = np.random.default_rng(0)
    answers, numbers = rng.integers(2, size=(1000, 60)), rng.integers(2, size=60)
    found = p_values(answers, numbers, None, np.arange(60), 200, seed=1)
    for level in (0.05, 0.2, 0.5):
        assert (
            level - 0.15 < float((found <= level).double().mean()) < level + 0.03
        )  # ties make it larger, never smaller


def test_p_is_seen_at_the_states_where_the_label_is_written():
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=300)
    states = rng.normal(size=(3, 300, 8))
    states[2, :, :3] += 6 * np.eye(3)[y]
    found = probe_layers(states, y, permutations=499)
    assert found.p is not None
    assert float(found.p[2]) == pytest.approx(1 / 500)
    assert (found.p[:2] > 0.01).all()
    assert found.permutations == 499
    assert probe_layers(states, y, permutations=0).p is None


def test_groups_make_p_honest():
    """Images that a probe happens to be right about, patch by patch: many patches, few images."""
    image = np.repeat(np.arange(8), 50)
    numbers = np.arange(8)[image] % 2
    answers = np.where(image < 6, numbers, 1 - numbers)[None]
    rows = np.arange(400)
    assert float(p_values(answers, numbers, None, rows, 500, 0)[0]) < 0.01
    assert float(p_values(answers, numbers, image, rows, 500, 0)[0]) > 0.1


# The control task --------------------------------------------------------------------------------------------------------


def test_a_probe_that_memorises_types_has_no_selectivity():
    """States that hold the type alone, labels that follow from it; and states that hold the label alone."""
    rng = np.random.default_rng(0)
    types = rng.integers(12, size=600)
    labels = (np.arange(12) % 2)[types]
    states = 0.1 * rng.normal(size=(2, 600, 12))
    states[0] += np.eye(12)[types]
    states[1, :, 0] += labels
    found = probe_layers(states, labels, types=[f"type {number}" for number in types], control=10)
    assert found.selectivity is not None
    assert found.control_task is not None
    assert (found.accuracy > 0.99).all()
    assert float(found.selectivity[0]) < 0.02
    assert float(found.selectivity[1]) > 0.2
    assert torch.equal(found.selectivity, found.accuracy - found.control_task)
    assert probe_layers(states, labels).selectivity is None


def test_a_control_task_needs_no_shuffled_control():
    states = np.random.default_rng(0).normal(size=(2, 80, 4))
    found = probe_layers(states, np.arange(80) % 2, types=np.arange(80) % 5, control=0, permutations=0)
    assert found.control is None
    assert found.control_task is not None


def test_a_type_has_one_label():
    rng = np.random.default_rng(0)
    types, numbers = rng.integers(20, size=200), rng.integers(3, size=200)
    for seed in range(10):
        drawn = control_task(numbers, types, np.arange(140), np.arange(140, 200), seed)
        assert all(len(set(drawn[types == each])) == 1 for each in range(20))
        assert len(set(drawn[:140])) > 1
    # a label that all but one of the examples have
    rare = np.zeros(200, int)
    rare[0] = 1
    assert len(set(control_task(rare, types, np.arange(140), np.arange(140, 200), 0)[:140])) == 2


def test_refusals_are_one_line():
    rng = np.random.default_rng(0)
    states, labels = rng.normal(size=(2, 60, 4)), np.arange(60) % 2
    for options, message in [
        ({"types": np.arange(59)}, "59 types for 60 examples"),
        ({"types": np.arange(60)}, "no type is on both sides of the split"),
        ({"types": np.zeros(60, int)}, "all training examples have one type"),
        ({"permutations": -1}, "permutations=-1"),
        ({"permutations": True}, "permutations=True"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            probe_layers(states, labels, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="class 0 has 1 examples"):  # fewer rows than would do for the classes
        probe_layers(states[:, :4], np.arange(4))


# The split -----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(2, 4), st.floats(0.1, 0.9))
def test_a_group_never_stands_in_both_parts(seed, n_groups, n_classes, test_size):
    rng = np.random.default_rng(seed)
    numbers, blocks = rng.integers(n_classes, size=80), rng.integers(n_groups, size=80)
    try:
        train, test = split_examples(range(n_classes), numbers, blocks, test_size, seed)
    except InputError:
        return
    assert not set(blocks[train]) & set(blocks[test])
    assert sorted([*train, *test]) == list(range(80))
    assert set(numbers[train]) == set(numbers[test]) == set(range(n_classes))


def test_numbers_of_numpy_are_numbers():
    states = np.random.default_rng(0).normal(size=(1, 40, 3))
    labels = np.arange(40) % 2
    plain = probe_layers(states, labels, test_size=0.5, control=2, permutations=9)
    found = probe_layers(states, labels, test_size=np.float32(0.5), control=np.int64(2), permutations=np.int64(9))
    assert torch.equal(found.p, plain.p)
    assert torch.equal(found.control, plain.control)


def test_few_test_groups_are_noted():
    rng = np.random.default_rng(0)
    states, labels = rng.normal(size=(1, 120, 4)), np.arange(120) % 2
    few = probe_layers(states, labels, groups=np.arange(120) // 3, permutations=0)
    assert few.provenance.notes[0].startswith("intervals of 12 rows or groups, under 20")
    assert probe_layers(states, labels, permutations=0).provenance.notes == ()
