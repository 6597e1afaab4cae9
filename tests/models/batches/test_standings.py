"""What stands at a position, and what several rows have in common there."""

import pytest
import torch

from interp.models.batches.standings import Standing, common_name, common_patch, common_role, standings_at, standings_of


def text(*words):
    return [Standing(word, "text", "question") for word in words]


def patch(row, column, image=None):
    return Standing("<image>", "image", "image", 6 * row + column, image, (row, column))


def test_a_row_in_words(toy, few):
    batch = toy.prepare(["<image> what colour is the 3 ?"], [few[0].image])
    standings = standings_of(batch, 0)
    assert [each.token for each in standings] == batch.tokens[0]
    assert [each.role for each in standings] == ["special", *["image"] * 36, *["question"] * 5, "last"]
    assert [each.patch for each in standings[1:37]] == [divmod(number, 6) for number in range(36)]
    assert {each.image for each in standings} == {None}


def test_padding_does_not_count_and_has_its_own_role(toy, mixed):
    assert len(standings_of(mixed, 1)) == int(mixed.positions["all"][1].sum())
    standings = standings_at(mixed, torch.ones_like(mixed.positions["all"]))
    assert len(standings) == mixed.positions["all"].numel()
    roles = torch.tensor([each.role == "padding" for each in standings]).view_as(mixed.positions["all"])
    assert (roles == mixed.positions["padding"]).all()


def test_patches_of_several_images_say_of_which(toy, few):
    batch = toy.prepare(["<image> <image> what is this ?"], [[few[0].image, few[1].image]])
    standings = standings_of(batch, 0)
    images = [each for each in standings if each.kind == "image"]
    assert [(each.image, each.patch) for each in images] == [(i, divmod(n, 6)) for i in (0, 1) for n in range(36)]
    assert common_name([images[40]]) == "image 1 patch 0,4"


def test_an_image_at_the_end_is_an_image(toy, few):
    assert standings_of(toy.prepare(["<image>"], [few[0].image]), 0)[-1].role == "image"


@pytest.mark.parametrize(
    ("clean", "corrupted", "name"),
    [
        (text("the", "the"), (), "the"),
        (text("3", "7", "3"), (), "2 words: 3, 7"),
        (text(*"8532"), (), "4 words: 2, 3, 5 …"),
        (text("red"), text("blue"), "red / blue"),
        (text("red", "red"), text("red", "red"), "red"),
        (text("red", "blue"), text("blue", "red"), "2 words: blue, red"),
        ([patch(2, 3)] * 2, [patch(2, 3)] * 2, "patch 2,3"),
        ([patch(2, 3), patch(2, 4)], (), "2 patches"),
        ([patch(2, 3, image=0), patch(2, 3, image=1)], (), "2 patches"),
        ([Standing("<image>", "image", "image", 5)], (), "image token 5"),
        ([Standing("<image>", "image", "image", 5, 1)], (), "image 1 token 5"),
        ([patch(0, 0), *text("a")], (), "2 words: <image>, a"),
    ],
)
def test_a_name_says_what_holds_in_all_rows(clean, corrupted, name):
    assert common_name(clean, corrupted) == name


def test_a_common_role_and_patch():
    last = Standing("?", "text", "last")
    assert common_role(text("a", "b")) == "question"
    assert common_role([*text("a"), last]) == "text"
    assert common_role([*text("a"), patch(0, 0)]) is None
    assert common_role([last, last]) == "last"
    assert common_patch([patch(1, 2)] * 3) == (1, 2)
    assert common_patch([patch(1, 2), patch(1, 3)]) is None
    assert common_patch([patch(1, 2, image=0), patch(1, 2, image=1)]) is None
    assert common_patch([last]) is None
