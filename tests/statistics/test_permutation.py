"""Permutations: p is uniform where there is nothing to find, and groups change places as wholes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InputError
from interp.statistics.permutation import BlockOrder, permutation_p, random_order, read_strata, shuffle_labels


def test_p_is_uniform_where_all_orders_are_equally_likely():
    """The difference of two groups' means, drawn from one distribution: of 2,000 tests a share `level` has p <= level."""
    rng = np.random.default_rng(0)
    numbers, draws, found = np.repeat([0.0, 1.0], 8), 99, []
    for _ in range(2000):
        values = rng.normal(size=16)
        order = BlockOrder(np.arange(16), None)
        null = np.stack([order.draw(numbers, rng) for _ in range(draws)]) @ values
        found.append(permutation_p(int((null >= numbers @ values).sum()), draws))
    for level in (0.01, 0.05, 0.2, 0.5, 0.9):
        share = np.mean(np.array(found) <= level)
        assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / 2000)


def test_p_is_never_0_and_of_several_values_several():
    assert permutation_p(0, 999) == 0.001
    assert permutation_p(999, 999) == 1
    assert permutation_p(np.array([0.0, 4.0]), 4).tolist() == [0.2, 1.0]
    assert torch.equal(permutation_p(torch.tensor([0, 4]), 4), torch.tensor([0.2, 1.0]))


def test_blocks_change_places_as_wholes():
    """Every order of the three groups is drawn about as often, and none in which a group is torn apart."""
    rows = np.array([1, 3, 5, 7, 9, 11])  # some rows of all, whose groups are mixed up
    blocks = np.zeros(12, dtype=int)
    blocks[rows] = [2, 0, 1, 1, 2, 0]
    labels = np.arange(12)
    order, rng = BlockOrder(rows, blocks), np.random.default_rng(0)
    assert blocks[order.places].tolist() == [0, 0, 1, 1, 2, 2]
    orders = [tuple(order.draw(labels, rng)) for _ in range(1200)]
    assert {tuple(blocks[list(each)][::2]) for each in orders} == {
        *((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
    }
    assert len(set(orders)) == 6
    assert all(150 < orders.count(each) < 250 for each in set(orders))


def test_the_control_of_groups_moves_whole_groups():
    numbers = np.repeat(np.arange(12) % 3, 5)
    blocks = np.repeat(np.arange(12), 5)
    sides = (np.arange(40), np.arange(40, 60))
    shuffled = shuffle_labels(numbers, blocks, sides, seed=0)
    assert not np.array_equal(shuffled, numbers)
    assert all(len(set(shuffled[blocks == block])) == 1 for block in range(12))
    for side in sides:
        assert sorted(shuffled[side]) == sorted(numbers[side])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_shuffles_keep_the_counts_of_each_side(seed, grouped):
    numbers = np.random.default_rng(seed).integers(4, size=50)
    blocks = np.repeat(np.arange(10), 5)
    sides = (np.flatnonzero(blocks < 6), np.flatnonzero(blocks >= 6))
    shuffled = shuffle_labels(numbers, blocks if grouped else None, sides, seed)
    for side in sides:
        assert sorted(shuffled[side]) == sorted(numbers[side])


SIZES = {
    "two of 60 rows": np.repeat([1, 60], [30, 2]),
    "doubling": np.tile(2 ** np.arange(7), 2),
    "one of 100 rows": np.repeat([2, 100], [30, 1]),
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("mixed", [False, True])
def test_p_holds_with_groups_of_any_size(sizes, mixed):
    """Answers and labels, one a group, that share nothing; with `mixed`, a quarter of the rows have labels of their own."""
    rng, draws, found = np.random.default_rng(0), 99, []
    for _ in range(600):
        blocks = np.repeat(np.arange(len(sizes)), rng.permutation(sizes))
        labels, answers = rng.integers(2, size=(2, len(sizes)))[:, blocks]
        if mixed:
            labels = np.where(rng.random(len(blocks)) < 0.25, rng.integers(2, size=len(blocks)), labels)
        order = BlockOrder(np.arange(len(blocks)), blocks)
        null = np.array([(order.draw(labels, rng) == answers).sum() for _ in range(draws)])
        found.append(permutation_p(int((null >= (labels == answers).sum()).sum()), draws))
    assert np.mean(np.array(found) <= 0.05) < 0.07


def test_a_group_takes_over_the_labels_of_another():
    blocks = np.array([0, 1, 1, 2, 2, 2])
    labels = np.array(["a", "b", "c", "d", "e", "f"])
    order, rng = BlockOrder(np.arange(6), blocks), np.random.default_rng(0)
    orders = {"".join(order.draw(labels, rng)) for _ in range(200)}
    assert orders == {"abcdef", "adebcb", "baadef", "bdeaaa", "daabcb", "dbcaaa"}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_rows_change_places_within_their_stratum(seed):
    rng = np.random.default_rng(seed)
    strata = rng.integers(3, size=40)
    order = random_order(40, rng, strata)
    assert sorted(order) == list(range(40))
    assert np.array_equal(strata[order], strata)
    assert not np.array_equal(order, np.arange(40))


def test_orders_within_strata_are_equally_likely():
    """Two strata of three rows have 36 orders."""
    rng, strata = np.random.default_rng(0), np.array([0, 1, 1, 0, 1, 0])
    orders = [tuple(random_order(6, rng, strata)) for _ in range(7200)]
    counts = [orders.count(each) for each in set(orders)]
    assert len(counts) == 36
    assert min(counts) > 140
    assert max(counts) < 260


def test_groups_change_places_as_wholes_within_their_stratum():
    rows = np.arange(12)
    blocks = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
    strata = np.array([7, 7, 9, 9, 7, 7, 9, 9, 7, 7, 9, 9])
    order, rng = BlockOrder(rows, blocks, strata), np.random.default_rng(0)
    drawn = np.array([order.draw(blocks, rng) for _ in range(400)])
    assert np.array_equal(drawn[:, ::2], drawn[:, 1::2])
    assert len(np.unique(drawn, axis=0)) == 36
    assert {*drawn[:, :6].flat} == {0, 2, 4}
    assert {*drawn[:, 6:].flat} == {1, 3, 5}
    with pytest.raises(InputError, match="2 groups have rows of several strata"):
        BlockOrder(rows, blocks, np.array([0, 1, 0, 1, *[0] * 8]))


def test_a_test_within_strata_holds_where_the_stratum_decides_labels_and_values():
    """Values and labels that share nothing but their stratum: p <= .05 in nearly all tests without strata, in 5 % with them."""
    rng, draws, reached = np.random.default_rng(1), 99, []
    for _ in range(600):
        strata = np.repeat([0, 1, 2], 12)
        labels = (rng.random(36) < np.array([0.1, 0.5, 0.9])[strata]).astype(float)
        values = strata * 2 + rng.normal(size=36)
        ps = []
        for each in (None, strata):
            order = BlockOrder(np.arange(36), None, each)
            null = np.array([order.draw(labels, rng) @ values[order.places] for _ in range(draws)])
            ps.append(permutation_p(int((null >= labels @ values - 1e-9).sum()), draws))
        reached.append(np.array(ps) <= 0.05)
    without, within = np.mean(reached, axis=0)
    assert without > 0.9
    assert 0.03 < within < 0.075


def test_strata_of_one_row_each_are_refused():
    assert read_strata(None, 4) is None
    assert read_strata([3.5, 3.5, 2.0], 3).tolist() == [0, 0, 1]
    with pytest.raises(InputError, match="alone in its stratum"):
        read_strata([1, 2, 3], 3)
    with pytest.raises(InputError, match="2 strata for 3 examples"):
        read_strata([1, 1], 3)
