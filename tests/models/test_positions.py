"""Positions come from the ids and the mask; every real token is of one kind."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.models.positions import Positions, find_positions

IMAGE, BOS, PAD = 4, 1, 0


def positions_of(rows, images=()):
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return find_positions(ids, mask, IMAGE, [BOS, PAD], images or [[] for _ in rows], {})


def columns(mask):
    return [row.nonzero().flatten().tolist() for row in mask]


def test_a_row_by_hand():
    found = positions_of([[BOS, IMAGE, IMAGE, 9, 8, 7], [BOS, 9]])
    assert columns(found["image"]) == [[1, 2], []]
    assert columns(found["special"]) == [[0], [4]]
    assert columns(found["text"]) == [[3, 4, 5], [5]]
    assert columns(found["question"]) == [[3, 4], []]
    assert columns(found["last"]) == [[5], [5]]
    assert columns(found["last_image"]) == [[2], []]
    assert columns(found["after_image"]) == [[3, 4, 5], [4, 5]]
    assert columns(found["padding"]) == [[], [0, 1, 2, 3]]


@given(st.lists(st.lists(st.sampled_from([BOS, IMAGE, 5, 6, 7]), min_size=1, max_size=12), min_size=1, max_size=4))
def test_every_position_is_of_exactly_one_kind(rows):
    found = positions_of(rows)
    kinds = torch.stack([found[name] for name in ("image", "special", "text", "padding")])
    assert (kinds.sum(dim=0) == 1).all()
    assert (found["all"] == ~found["padding"]).all()
    assert (found["last"].sum(dim=1) == 1).all()
    assert (found["last_image"].sum(dim=1) == found["image"].any(dim=1)).all()


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_the_grid_follows_the_pixels(rows, columns, patch):
    found = positions_of([[BOS, *[IMAGE] * (rows * columns)]], [[(rows * patch, columns * patch)]])
    assert found.grid(0) == [(rows, columns)]


def test_no_rectangle_no_grid():
    found = positions_of([[BOS, *[IMAGE] * 13]], [[(30, 40)]])
    assert found.grid(0) == [None]


def test_ints_count_real_tokens():
    found = positions_of([[BOS, 5, 6, 7], [BOS, 9]])
    assert columns(found.select([0, -1])) == [[0, 3], [2, 3]]
    assert columns(found.select(1)) == [[1], [3]]
    with pytest.raises(interp.InputError, match="row 1 has 2 real tokens"):
        found.select([2])


def test_what_is_no_position():
    found = positions_of([[BOS, 5]])
    assert isinstance(found, Positions)
    with pytest.raises(interp.InputError, match="'imag' is unknown"):
        found["imag"]
    with pytest.raises(interp.InputError, match=r"shape \(1, 3\), expected \(1, 2\)"):
        found.select(torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(interp.InputError, match="a bool mask"):
        found.select([None])
