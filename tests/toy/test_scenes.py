"""Scenes: nothing of the test split is ever trained on, and labels say what the pixels show."""

import numpy as np
import pytest

import interp
from interp.toy import lessons
from interp.toy.language import COLOURS
from interp.toy.scenes import combinations, glyph_bank, glyphs_of


def test_the_splits_share_neither_glyphs_nor_combinations():
    assert not set(combinations("train")) & set(combinations("test"))
    assert len(combinations("train")) + len(combinations("test")) == 6 * 10 * 9
    _, digits, _ = glyph_bank()
    for digit in range(10):
        train, test = (set(glyphs_of(split)[digit].tolist()) for split in ("train", "test"))
        assert not train & test
        assert train | test == set(np.flatnonzero(digits == digit).tolist())
        assert len(test) >= 20


def test_test_scenes_are_made_of_what_is_held_out():
    held_out = set(combinations("test"))
    _, digits, _ = glyph_bank()
    for scene in interp.toy.scenes(50, seed=3):
        for item, glyph in zip(scene.objects, scene.glyphs, strict=True):
            assert (COLOURS.index(item.colour), item.digit, item.place_index) in held_out
            assert digits[glyph] == item.digit
            assert glyph in glyphs_of("test")[item.digit]


def test_lessons_are_made_of_the_train_split(monkeypatch):
    splits = []
    real = lessons.draw_objects
    monkeypatch.setattr(
        lessons,
        "draw_objects",
        lambda rng, split, *rest, **more: splits.append(split) or real(rng, split, *rest, **more),
    )
    rng = np.random.default_rng(0)
    lessons.text_lesson(rng, 3), lessons.patch_lesson(rng, 3), lessons.image_lesson(rng, 3, "caption")
    assert splits == ["train"] * 9


def test_a_seed_gives_the_same_scenes_and_another_gives_others():
    one, two, other = (interp.toy.scenes(5, seed) for seed in (4, 4, 5))
    assert one == two
    assert one.pairs()[0][0].tobytes() == two.pairs()[0][0].tobytes()
    assert [scene.questions for scene in one] == [scene.questions for scene in two]
    assert one.captions().pairs() != other.captions().pairs()


def test_pixels_show_what_the_labels_say():
    for scene in interp.toy.scenes(20, seed=1):
        pixels = np.asarray(scene.image).astype(float)
        assert pixels.shape == (48, 48, 3)
        assert (scene.patch_labels >= 0).sum() == 4 * len(scene.objects)
        for index, (item, mask) in enumerate(zip(scene.objects, scene.masks, strict=True)):
            rows, columns = np.nonzero(mask)
            assert (scene.patch_labels[rows // 8, columns // 8] == index).all()
            shown = pixels[mask].mean(axis=0)
            red, green, blue = shown > shown.max() * 0.6
            names = {
                (1, 0, 0): "red",
                (0, 1, 0): "green",
                (0, 0, 1): "blue",
                (1, 1, 0): "yellow",
                (1, 0, 1): "magenta",
                (0, 1, 1): "cyan",
            }
            assert names[red, green, blue] == item.colour
        assert pixels[8:16].size  # ground is dark wherever no object is
        ground = np.kron(scene.patch_labels < 0, np.ones((8, 8))).astype(bool)
        assert pixels[ground].mean() < 40


def test_a_data_set_is_a_sequence_of_rows():
    data = interp.toy.scenes(6, seed=2, distinct=True, objects=1)
    assert len(data) == len(data.ids) == len(data.labels["digit"]) == 6
    assert len(set(data.captions().pairs())) == 6
    assert [scene.caption for scene in data[2:4]] == [text for _, text in data.captions().pairs()][2:4]
    image, text = data.pairs()[0]
    assert text == "<image>"
    assert image.size == (48, 48)
    assert data.labels["digit"][3] == str(data[3].objects[0].digit)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "dev"}, "split='dev' is unknown: use one of train, test"),
        ({"n": -1}, "n=-1: expected an int of 0 or more"),
        ({"n": 2.0}, "n=2.0: expected an int of 0 or more"),
        ({"objects": 5}, "objects=5: expected None or an int from 1 to 3"),
        ({"n": 200, "objects": 1, "distinct": True}, "n=200: expected at most 108"),
    ],
)
def test_what_cannot_be_drawn(arguments, words):
    with pytest.raises(interp.InputError, match=words):
        interp.toy.scenes(**{"n": 1, "seed": 0, **arguments})


@pytest.mark.parametrize(("change", "objects"), [("colour", 2), ("digit", 3), ("place", 1)])
def test_pairs_differ_in_one_thing(change, objects):
    for pair in interp.toy.pairs(10, seed=6, change=change, objects=objects):
        clean, corrupted, answer, other = pair
        assert answer != other
        assert len(clean.caption.split()) == len(corrupted.caption.split())
        different = [i for i, (a, b) in enumerate(zip(clean.objects, corrupted.objects, strict=True)) if a != b]
        assert different == [pair.changed]
        words = set(clean.caption.split()) ^ set(corrupted.caption.split())
        assert words <= {answer, other} or change != "place"
        assert answer in clean.caption.split()
        assert other in corrupted.caption.split()
        changed_pixels = (np.asarray(clean.image) != np.asarray(corrupted.image)).any(axis=-1)
        cells = {(row // 16, column // 16) for row, column in zip(*np.nonzero(changed_pixels), strict=True)}
        item, variant = clean.objects[pair.changed], corrupted.objects[pair.changed]
        assert cells == {divmod(item.place_index, 3), divmod(variant.place_index, 3)}


def test_pairs_that_cannot_be_made():
    with pytest.raises(interp.InputError, match="change='size' is unknown"):
        interp.toy.pairs(1, seed=0, change="size")
    with pytest.raises(interp.InputError, match="objects=2: expected objects=1"):
        interp.toy.pairs(1, seed=0, change="place", objects=2)
    with pytest.raises(interp.InputError, match="by='name' is unknown"):
        interp.toy.pairs(1, seed=0, by="name")
    with pytest.raises(interp.InputError, match="change='digit': expected change='colour' with by='place'"):
        interp.toy.pairs(1, seed=0, change="digit", by="place")


def test_pairs_may_ask_for_a_colour_by_its_place(toy):
    named, placed = (interp.toy.pairs(6, seed=8, by=by) for by in ("digit", "place"))
    assert [tuple(pair) for pair in placed] == [tuple(pair) for pair in named]  # the scenes and the answers
    for pair in placed:
        place = pair.clean.objects[pair.changed].place
        assert pair.question == f"what colour is at {place} ?"
        for text, spans in ((pair.prompt, pair.spans), (pair.text_prompts[0], pair.text_spans[0])):
            start, end = spans["mention"]
            assert text[start:end] == place
            assert start > len(text) - len(pair.question)


@pytest.mark.parametrize(("change", "objects"), [("colour", 2), ("digit", 3), ("place", 1)])
def test_spans_of_a_pair_are_what_differs_and_what_the_question_calls_it(toy, change, objects):
    found = interp.toy.pairs(6, seed=8, change=change, objects=objects)
    for side in ("clean", "corrupted"):
        pictures = [getattr(pair, side).image for pair in found]
        batch = toy.prepare([pair.prompt for pair in found], pictures, spans=[pair.spans for pair in found])
        for row, pair in enumerate(found):
            # The pixels that differ lie in these patches of 8x8, and in no others.
            differ = (np.asarray(pair.clean.image) != np.asarray(pair.corrupted.image)).any(axis=-1)
            patches = differ.reshape(6, 8, 6, 8).any(axis=(1, 3))
            assert (patches <= pair.mask).all()
            assert patches.sum() > pair.mask.sum() / 2
            assert (
                batch.positions["object"][row, batch.positions["image"][row]].tolist() == pair.mask.flatten().tolist()
            )
            mentioned = [t for t, m in zip(batch.tokens[row], batch.positions["mention"][row], strict=True) if m]
            item = pair.clean.objects[pair.changed]
            assert mentioned == [item.place if change == "digit" else str(item.digit)]
        assert not (batch.positions["object"] & ~batch.positions["image"]).any()


def test_spans_of_a_pair_as_text(toy):
    found = interp.toy.pairs(6, seed=8, change="colour")
    for side, (texts, spans) in enumerate(
        zip(
            zip(*(p.text_prompts for p in found), strict=True),
            zip(*(p.text_spans for p in found), strict=True),
            strict=True,
        )
    ):
        batch = toy.prepare(texts=list(texts), spans=list(spans))
        for row, pair in enumerate(found):
            item = (pair.clean, pair.corrupted)[side].objects[pair.changed]
            said = [t for t, m in zip(batch.tokens[row], batch.positions["object"][row], strict=True) if m]
            assert said == item.words.split()
            columns = batch.positions["mention"][row].nonzero().flatten().tolist()
            assert [batch.tokens[row][column] for column in columns] == [str(item.digit)]
            assert columns[0] > len(batch.tokens[row]) - 5  # in the question, not in the caption
