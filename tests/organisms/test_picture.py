"""Pictures of emoji: their labels are those of their pixels, and test pictures are new."""

import numpy as np
import pytest
import torch
from PIL import Image

from interp.errors import InputError
from interp.organisms.emoji.atlas import drawing_of
from interp.organisms.emoji.catalogue import catalogue
from interp.organisms.emoji.drawing import fitted, read_names
from interp.organisms.emoji.picture import GROUNDS, PLACES, held_out_grounds, pictures


@pytest.fixture(scope="module")
def drawn():
    return {split: pictures(400, seed=1, split=split) for split in ("train", "test")}


def test_the_catalogue_has_one_name_an_emoji_and_no_flags():
    names = [emoji.name for emoji in catalogue()]
    assert len(names) == len(set(names)) == 1372
    assert {emoji.group for emoji in catalogue()}.isdisjoint({"Flags", "Component"})
    dog = next(emoji for emoji in catalogue() if emoji.name == "dog")
    assert (dog.character, dog.group, dog.subgroup) == ("\U0001f415", "Animals & Nature", "animal-mammal")


def test_every_drawing_is_there_and_no_two_are_the_same():
    drawings = {drawing_of(emoji.number).tobytes() for emoji in catalogue()}
    assert len(drawings) == len(catalogue())
    assert all(drawing_of(number).getchannel("A").getextrema()[1] > 200 for number in range(len(catalogue())))


def test_the_same_seed_draws_the_same_pictures_and_a_longer_list_begins_with_the_shorter():
    one, two, other = pictures(5, seed=3), pictures(8, seed=3), pictures(5, seed=4)
    assert [each.image.tobytes() for each in one] == [each.image.tobytes() for each in two[:5]]
    assert one[0].image.tobytes() != other[0].image.tobytes()


def test_each_emoji_comes_equally_often():
    numbers = [picture.things[0].emoji.number for picture in pictures(1372, seed=0, things=1)]
    assert sorted(numbers) == list(range(1372))


def test_grounds_of_test_pictures_are_held_out(drawn):
    grounds = list(GROUNDS)
    assert held_out_grounds().sum(dim=1).tolist() == [2] * 1372
    for picture in drawn["train"]:
        for thing in picture.things:
            assert not held_out_grounds()[thing.emoji.number, grounds.index(picture.ground)]
    for picture in drawn["test"]:
        assert held_out_grounds()[picture.things[0].emoji.number, grounds.index(picture.ground)]


def test_a_thing_is_where_its_place_says(drawn):
    for picture in drawn["train"]:
        assert [PLACES.index(thing.place) for thing in picture.things] == sorted(
            PLACES.index(thing.place) for thing in picture.things
        )
        for number, thing in enumerate(picture.things):
            rows, columns = thing.mask.nonzero().float().mean(dim=0).tolist()
            if thing.place == "middle":
                assert 20 < rows < 44
                assert 20 < columns < 44
            else:
                assert ("top" in thing.place) == (rows < 32)
                assert ("left" in thing.place) == (columns < 32)
            assert (picture.patches == number).any()


def test_the_ground_has_the_colour_that_it_is_called(drawn):
    colours = torch.tensor(list(GROUNDS.values()), dtype=torch.float32)
    for picture in drawn["test"]:
        ground = torch.from_numpy(np.array(picture.image)).float()[
            ~torch.stack([t.mask for t in picture.things]).any(0)
        ]
        nearest = (colours - ground.median(dim=0).values).norm(dim=1).argmin()
        assert list(GROUNDS)[nearest] == picture.ground


def test_the_number_of_things(drawn):
    assert {len(picture.things) for picture in drawn["test"]} == {1, 2}
    assert {len(picture.things) for picture in pictures(20, seed=0, things=2)} == {2}


def test_another_style_draws_the_same_things_at_the_same_places(tmp_path):
    path = tmp_path / "atlas.png"
    Image.new("RGBA", (2560, 2240), (200, 0, 200, 255)).save(path)
    here, there = pictures(3, seed=0), pictures(3, seed=0, style=path)
    for one, two in zip(here, there, strict=True):
        assert [(t.emoji, t.place, t.size, t.angle) for t in one.things] == [
            (t.emoji, t.place, t.size, t.angle) for t in two.things
        ]
        assert one.image.tobytes() != two.image.tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n=0"),
        ({"n": 2, "split": "dev"}, "split='dev' is unknown: use one of train, test"),
        ({"n": 2, "things": 3}, "things=3"),
        ({"n": 2, "style": "nowhere.png"}, "style 'nowhere.png' cannot be read as a picture"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(InputError) as error:
        pictures(seed=0, **arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_atlas_of_another_size_is_refused(tmp_path):
    Image.new("RGBA", (64, 64)).save(tmp_path / "small.png")
    with pytest.raises(InputError, match="64 x 64 pixels: expected an atlas of 2560 x 2240"):
        pictures(1, seed=0, style=tmp_path / "small.png")


def test_names_are_read_from_unicodes_file(tmp_path):
    lines = [
        "# group: Animals & Nature",
        "# subgroup: animal-mammal",
        "1F415                                                  ; fully-qualified     # \U0001f415 E0.7 dog",
        "1F415 200D 1F9BA                                       ; fully-qualified     # x E12.0 service dog",
        "1F43F                                                  ; unqualified         # x E0.7 chipmunk",
        "# group: Flags",
        "1F3C1                                                  ; fully-qualified     # x E0.6 chequered flag",
    ]
    path = tmp_path / "emoji-test.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    row = {"codepoints": "1F415", "name": "dog", "group": "Animals & Nature", "subgroup": "animal-mammal"}
    assert list(read_names(path)) == [row]


def test_a_drawing_fills_its_cell():
    picture = Image.new("RGBA", (100, 80))
    picture.paste((255, 0, 0, 255), (40, 10, 60, 70))
    cell = fitted(picture)
    assert cell.size == (64, 64)
    assert cell.getchannel("A").getbbox() == (21, 0, 42, 64)
