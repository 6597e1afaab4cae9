"""A result of many rows is labelled by what holds in all of them, never as if all were the first."""

import numpy as np
import pytest
import torch

import interp
from interp.interventions import Skip
from interp.patching import (
    PatchResult,
    attribution_patch,
    flow,
    layer_sweep,
    logit_difference,
    patch_sweep,
    probability,
)


@pytest.fixture(scope="module")
def found():
    return interp.toy.pairs(8, seed=1, change="colour")


@pytest.fixture(scope="module")
def sides(toy, found):
    prompts = [pair.prompt for pair in found]
    return [toy.prepare(prompts, [getattr(pair, side).image for pair in found]) for side in ("clean", "corrupted")]


@pytest.fixture(scope="module")
def metric(found):
    return logit_difference([pair.answer for pair in found], [pair.other for pair in found])


@pytest.fixture(scope="module")
def objects(sides, found):
    """Where the changed object is: elsewhere in each row."""
    mask = torch.zeros_like(sides[0].positions["image"])
    for row, pair in enumerate(found):
        mask[row, 1:37] = torch.from_numpy((pair.clean.patch_labels == pair.changed).flatten())
    return mask


@pytest.fixture(scope="module")
def whole(toy, sides, metric):
    return attribution_patch(toy, *sides, layers=[0], metric=metric)


def test_words_that_differ_are_counted(sides, found, whole):
    digits = sorted({tokens[41] for tokens in sides[0].tokens})
    assert len(digits) > 3
    assert whole.tokens[38:] == ["colour", "is", "the", f"{len(digits)} words: {', '.join(digits[:3])} …", "?"]
    assert whole.tokens[:3] == ["<bos>", "patch 0,0", "patch 0,1"]


def test_a_frame_has_the_role_and_the_patch_of_each_position(whole):
    frame = whole.to_frame()
    assert frame["role"].tolist() == ["special", *["image"] * 36, *["question"] * 5, "last"]
    patches = frame[frame.role == "image"]
    assert list(zip(patches.patch_row, patches.patch_column, strict=True)) == [divmod(n, 6) for n in range(36)]
    assert frame["patch_row"].isna().sum() == len(frame) - 36
    assert frame["position"].tolist() == list(range(len(frame)))
    by_row = frame.groupby("patch_row").effect.sum()
    expected = whole.effect[0, 1:37].view(6, 6).sum(dim=1)
    np.testing.assert_allclose(by_row.to_numpy(float), expected.numpy(), atol=1e-5)


def test_a_group_that_is_elsewhere_in_each_row_has_no_positions(toy, sides, metric, objects):
    result = attribution_patch(toy, *sides, layers=[0], positions={"object": objects, "last": [-1]}, metric=metric)
    frame = result.to_frame()
    assert frame["position"].tolist() == ["differs", 42]
    assert frame["role"].tolist() == ["image", "last"]
    assert result.columns == [[], [42]]
    assert result.boxes is None
    assert result.picture is None


def test_single_patches_that_differ_are_counted(toy, sides, metric, objects):
    first = objects & (objects.cumsum(dim=1) == 1)
    result = attribution_patch(toy, *sides, layers=[0], positions=first, metric=metric)
    places = {int(row.nonzero()) for row in first}
    assert result.tokens == [f"{len(places)} patches"]
    assert result.to_frame()["position"].tolist() == ["differs"]


def test_rows_of_different_length_share_roles_but_no_position(toy, found):
    texts = [pair.text_prompts for pair in interp.toy.pairs(2, seed=2, change="digit")]
    texts[1] = tuple(f"a green 9 at bottom and {each}" for each in texts[1])
    clean, corrupted = (toy.prepare(list(side)) for side in zip(*texts, strict=True))
    metric = logit_difference("3", "7")
    result = attribution_patch(toy, clean, corrupted, layers=[2], positions=[0, -1], metric=metric)
    frame = result.to_frame()
    assert frame["position"].tolist() == [0, "differs"]
    assert frame["role"].tolist() == ["special", "last"]
    again = attribution_patch(toy, clean.row(0), corrupted.row(0), layers=[2], positions=[0, -1], metric=metric)
    assert -1 <= result.rank_correlation(again) <= 1  # the last position of each row is the same cell


def test_a_picture_is_shown_where_all_rows_have_it(toy, found, sides):
    pair = found[0]
    metric = logit_difference(pair.answer, pair.other)
    twice = [
        toy.prepare([pair.prompt] * 2, [side.image.copy() for _ in (0, 1)]) for side in (pair.clean, pair.corrupted)
    ]
    same = attribution_patch(toy, *twice, layers=[0], positions="image", metric=metric)
    assert (same.picture.numpy() == np.array(pair.clean.image)).all()
    assert same.boxes.shape == (36, 4)


def test_words_that_differ_between_the_two_runs_are_both_named(toy):
    clean, corrupted = (toy.prepare([f"a {colour} 3 at top . what colour is the 3 ?"]) for colour in ("red", "blue"))
    result = patch_sweep(toy, clean, corrupted, layers=[0], positions=[1, 2], metric=logit_difference("red", "blue"))
    assert result.tokens == ["a", "red / blue"]


def test_labels_are_saved_and_older_files_have_none(whole, tmp_path):
    again = PatchResult.load(whole.save(tmp_path / "patch.safetensors"))
    assert again.to_frame().equals(whole.to_frame())
    older = interp.Result.load(tmp_path / "patch.safetensors")
    object.__setattr__(older, "roles", None)
    object.__setattr__(older, "patches", None)
    assert older.to_frame()["role"].isna().all()


def test_the_mask_of_an_edge_counts_positions_of_a_row(toy, sides, found, objects):
    answers = probability([pair.answer for pair in found])
    result = flow(toy, sides[0], edges=[(objects, "last")], window=8, metric=answers, control=False)
    assert result.edges == ["mask of 4 positions a row -> last"]
    assert "mean of 8 rows" in result.plot().layout.title.text.replace("<br>", " ")
    uneven = objects.clone()
    uneven[0] &= uneven[0].cumsum(0) < 3
    result = flow(toy, sides[0], edges=[(uneven, "last")], window=8, metric=answers, control=False)
    assert result.edges == ["mask of 2 to 4 positions a row -> last"]


def test_curves_say_that_they_are_means(toy, sides, found):
    answers = probability([pair.answer for pair in found])
    result = layer_sweep(toy, sides[0], Skip, window=8, metric=answers, positions="image")
    assert "(mean of 8 rows)" in result.plot().layout.title.text
    one = layer_sweep(toy, sides[0].row(0), Skip, window=8, metric=probability(found[0].answer), positions="image")
    assert "(1 row)" in one.plot().layout.title.text
