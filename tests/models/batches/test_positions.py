"""Positions come from the ids and the mask; every real token is of one kind."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import interp
from interp.models.batches.grids import Sheet
from interp.models.batches.positions import Positions, find_positions

IMAGE, BOS, PAD = 4, 1, 0


def positions_of(rows, images=(), counts=None):
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    images = images or [[] for _ in rows]
    # A row's only image has all of the row's image tokens.
    counts = counts or [[row.count(IMAGE)] * (len(each) == 1) for row, each in zip(rows, images, strict=True)]
    return find_positions(ids, mask, ids == IMAGE, [BOS, PAD], images, counts)


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
    found = positions_of([[BOS, *[IMAGE] * (rows * columns)]], [[Sheet(rows * patch, columns * patch)]])
    assert found.grid(0) == [(rows, columns)]


def test_no_rectangle_no_grid():
    found = positions_of([[BOS, *[IMAGE] * 13]], [[Sheet(30, 40)]])
    assert found.grid(0) == [None]


@st.composite
def rows_of_images(draw):
    """Rows of images: each a list of how many tokens stand before it, and how many it has, cut up by breaks or not."""
    return draw(
        st.lists(
            st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.booleans()), max_size=3), min_size=1, max_size=4
        )
    )


@given(rows_of_images())
def test_images_share_a_rows_image_tokens(rows):
    """Whatever stands between or inside them: they are disjoint, in order, and together all image tokens."""
    ids, counts = [], []
    for row in rows:
        ids.append([BOS])
        counts.append([tokens for _, tokens, _ in row])
        for before, tokens, broken in row:
            ids[-1] += [9] * before + [IMAGE] * (tokens // 2) + [8] * broken + [IMAGE] * (tokens - tokens // 2)
    found = positions_of(ids, [[None] * len(row) for row in rows], counts)
    names = [name for name in found.masks if name.startswith("image_")]
    assert names == [f"image_{index}" for index in range(max(map(len, rows)))]
    each = torch.stack([found[name] for name in names]) if names else torch.zeros(0, *found["all"].shape)
    assert (each.sum(dim=0) == found["image"]).all()
    for row, share in enumerate(counts):
        assert [int(found[name][row].sum()) for name in names] == share + [0] * (len(names) - len(share))
        starts = [columns(found[name])[row][0] for name in names[: len(share)]]
        assert starts == sorted(starts)


def test_no_names_for_images_whose_tokens_do_not_add_up():
    ids = [[BOS, *[IMAGE] * 6], [BOS, *[IMAGE] * 4]]
    sheets = [[None, Sheet(1, 3)], [Sheet(2, 2)]]
    assert positions_of(ids, sheets, [[3, 3], [4]]).grids == [[None, (1, 3)], [(2, 2)]]
    unclear = positions_of(ids, sheets, [[3, 2], [4]])
    assert "image_0" not in unclear
    assert unclear.grids == [[None, None], [(2, 2)]]
    with pytest.raises(interp.InputError, match="'image_0' is unknown"):
        unclear["image_0"]


def test_image_positions_may_be_a_mask_in_hand():
    """A model without an image token: its image positions are found by what the pixels move."""
    ids = torch.tensor([[BOS, 5, 6, 7], [PAD, BOS, 5, 6]])
    moved = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]]).bool()
    found = find_positions(ids, (ids != PAD).long(), moved, [BOS, PAD], [[Sheet(2, 4)], []], [[2], []])
    assert columns(found["image"]) == [[1, 2], []]
    assert columns(found["text"]) == [[3], [2, 3]]
    assert columns(found["image_0"]) == [[1, 2], []]
    assert found.grid(0) == [(1, 2)]
    nothing = find_positions(ids, (ids != PAD).long(), torch.zeros_like(moved), [BOS, PAD], [[], []], [[], []])
    assert not nothing["image"].any()


def test_boxes_without_a_picture():
    found = positions_of([[BOS, IMAGE]], [[Sheet(1, 1)]])
    assert found.boxes(0) == [None]
    assert found.boxes(-1) == found.boxes(0)
    assert found.grid(-1) == found.grid(0) == [(1, 1)]
    for wrong in (1, -2, "a"):
        with pytest.raises(interp.InputError, match=f"row={wrong!r}: this batch has 1 rows"):
            found.boxes(wrong)


def test_ints_count_real_tokens():
    found = positions_of([[BOS, 5, 6, 7], [BOS, 9]])
    assert columns(found.select([0, -1])) == [[0, 3], [2, 3]]
    assert columns(found.select(1)) == [[1], [3]]
    with pytest.raises(interp.InputError, match="row 1 has 2 real tokens"):
        found.select([2])


def test_arrays_are_taken_like_lists_and_masks():
    found = positions_of([[BOS, 5, 6, 7], [BOS, 9]])
    for ints in (np.array([0, -1]), torch.tensor([0, -1]), (0, np.int64(-1)), range(0, -2, -1)):
        assert columns(found.select(ints)) == [[0, 3], [2, 3]]
    for one in (np.int64(1), np.array(1), torch.tensor(1)):
        assert columns(found.select(one)) == [[1], [3]]
    assert (found.select(found["text"].numpy()) == found["text"]).all()


@pytest.mark.parametrize(
    "wrong", [True, [True, False], [1.7], 1.0, [np.True_], [torch.tensor(True)], [[0]], ["0"], np.array([0.0])]
)
def test_no_float_is_rounded_and_no_bool_is_a_number(wrong):
    with pytest.raises(interp.InputError, match=r"expected a name .* a list of ints or a bool mask") as caught:
        positions_of([[BOS, 5, 6, 7]]).select(wrong)
    assert "\n" not in str(caught.value)


def test_a_mask_of_another_shape():
    for wrong in (np.array([True, False]), torch.tensor([True, False])):
        with pytest.raises(interp.InputError, match=r"a mask of shape \(2,\), expected \(1, 4\)"):
            positions_of([[BOS, 5, 6, 7]]).select(wrong)


def test_what_is_no_position():
    found = positions_of([[BOS, 5]])
    assert isinstance(found, Positions)
    with pytest.raises(interp.InputError, match="'imag' is unknown"):
        found["imag"]
    with pytest.raises(interp.InputError, match=r"shape \(1, 3\), expected \(1, 2\)"):
        found.select(torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(interp.InputError, match="a bool mask"):
        found.select([None])
