"""From pictures and words to answers, with the processors of transformers themselves and a tiny model that fits each."""

import copy
from dataclasses import replace

import pytest
import torch

import interp
import processors
from families import FAMILIES, ONE_FOLDER, family, model, picture
from feeding import feeding
from interp.interventions import Reweight
from interp.models.layout.patches import _tiles_by_row, patches_of
from towers import even, mirrored, softmax_changed


@pytest.mark.parametrize("name", FAMILIES)
def test_every_proof_is_tried_at_load_on_a_picture_made_here(name):
    report = family(name).check()
    assert set(report.to_frame()["outcome"]) == {"passed"}, report.to_frame().to_string()


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "paligemma"])  # it has no rows without an image
def test_rows_with_one_two_and_no_image_are_one_batch(name):
    vlm = family(name)
    pictures = [picture(seed=1), picture(28, 40, seed=2)]
    texts = ["<image> what is this ?", "no picture at all", "<image> and <image> differ"]
    batch = vlm.prepare(texts, [pictures[0], None, pictures])
    counts = batch.positions["image"].sum(dim=1)
    assert (counts > 0).tolist() == [True, False, True]
    both = batch.positions["image_0"] | batch.positions["image_1"]
    assert torch.equal(both, batch.positions["image"])
    assert [len(batch.positions.grid(row)) for row in range(3)] == [1, 0, 2]
    logits = vlm.logits(batch)
    for row in range(3):
        torch.testing.assert_close(vlm.logits(batch.row(row))[0], logits[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "paligemma"])
def test_patches_of_such_rows_are_theirs(name):
    """Whatever the tower sees of them: pictures of one size, tiles, packed patches."""
    vlm = family(name)
    pictures = [picture(seed=1), picture(28, 40, seed=2), picture(64, 20, seed=3)]
    texts = ["<image> what is this ?", "no picture at all", "<image> and <image> differ", "<image>"]
    made = vlm.prepare(texts, [pictures[0], None, pictures[:2], pictures[2]])
    for batch in (made, vlm.prepare(encoding=made.inputs)):  # of an encoding it is not known what it was made from
        for site in ("vision", "projector"):
            patches, fed = patches_of(vlm, batch, site), feeding(vlm, batch, site)
            assert patches.rows.unique().tolist() == [0, 2, 3]
            assert torch.equal(fed[:, patches.index].long().argmax(dim=0), patches.rows)
            assert (fed[:, patches.index].sum(dim=0) == 1).all()
            alone = patches_of(vlm, batch.row(3), site) if batch.texts else None
            assert alone is None or len(alone) == (patches.rows == 3).sum()


@pytest.mark.parametrize("name", FAMILIES)
def test_other_weights_in_the_tower_on_such_rows(name):
    """Proved on a picture made here; pictures of unequal size, several in a row and none."""
    vlm = copy.copy(family(name))  # what is measured is kept in the copy
    pictures = [picture(seed=1), picture(28, 40, seed=2), picture(64, 20, seed=3)]
    texts = ["<image> what is this ?", "no picture at all", "<image> and <image> differ"]
    shown = [pictures[0], None, pictures[1:]]
    rows = (0, 1, 2) if name != "paligemma" else (0, 2)
    batch = vlm.prepare([texts[row] for row in rows], [shown[row] for row in rows])
    blocks = range(len(vlm.trait("vision_weighed")))
    for kind, change in (("uniform", even), ("reversed", mirrored)):
        found = vlm.logits(batch, [Reweight(kind=kind, layers="all", tower="vision")])
        with softmax_changed(vlm, blocks, change):
            by_hand = vlm.model(**vlm.inputs_of(batch)).logits[:, -1]
        torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(found, vlm.logits(batch), atol=1e-4)


def test_tiles_are_those_of_rows_where_pixels_have_an_entry_a_row():
    """Three images in three rows, not one each."""
    small = picture(16, 16)
    texts = ["no picture at all", "<image>", "<image> and <image>"]
    batch = family("idefics3").prepare(texts, [None, small, [small, small]])
    assert len(batch.inputs["pixel_values"]) == 3
    counted = _tiles_by_row(batch, int(batch.inputs["pixel_values"].flatten(2).any(dim=2).sum()))
    assert counted == [0, counted[1], 2 * counted[1]]
    assert counted[1] > 0


@pytest.mark.parametrize("name", FAMILIES)
def test_another_picture_moves_its_own_positions(name):
    """The mask of the second image is where the second image enters."""
    vlm = family(name)
    first, second, other = (picture(seed=seed) for seed in (1, 2, 3))
    text = ["<image> and <image> differ"]
    states = []
    for pictures in ([first, second], [first, other]):
        batch = vlm.prepare(text, [pictures])
        acts = interp.capture(vlm, [batch], sites="resid_pre", positions="all", reduce="none", progress=False)
        states.append(acts["resid_pre"][0])
    moved = torch.zeros_like(batch.positions["all"])
    moved[batch.positions["all"]] = (states[0] - states[1]).abs().amax(dim=-1) > 1e-6
    assert moved.any()
    assert not (moved & ~batch.positions["image_1"]).any()


@pytest.mark.parametrize("name", FAMILIES)
def test_it_answers(name):
    vlm = family(name)
    batch = vlm.prepare(["<image> what ?"], [picture()])
    with torch.no_grad():
        ids = vlm.model.generate(**batch.inputs, max_new_tokens=3, do_sample=False)
    new = ids[0, batch.inputs["input_ids"].shape[1] :].tolist()
    assert vlm.generate(batch, max_new_tokens=3) == [vlm._decode(new)]


@pytest.mark.parametrize("name", ONE_FOLDER)
def test_a_folder_is_loaded_whole(name, tmp_path):
    model(name).save_pretrained(tmp_path)
    processors.build(name).save_pretrained(tmp_path)
    vlm = interp.load(tmp_path, device="cpu")
    batch = vlm.prepare(["<image> what ?"], [picture()])
    torch.testing.assert_close(vlm.logits(batch), family(name).logits(batch), rtol=1e-5, atol=1e-5)
    # The usual norms are measured when they are first needed.
    assert replace(vlm.structure, usual_norms=None) == replace(family(name).structure, usual_norms=None)


def test_tiles_of_a_large_picture_have_no_grid():
    assert family("llava_next").prepare(["<image> what ?"], [picture(48, 32)]).positions.grid(0) == [None]


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3"])
def test_patches_lie_on_the_picture(name):
    vlm = family(name)
    batch = vlm.prepare(["<image> what ?"], [picture(48, 32)])
    expected = (4, 4)
    if name == "qwen2_vl":  # its processor says how many patches there are, its config how many become one token
        merged = vlm.model.config.vision_config.spatial_merge_size
        expected = tuple(size // merged for size in batch.inputs["image_grid_thw"][0, 1:].tolist())
        assert expected[0] < expected[1]
    found = batch.positions.grid(0)[0]
    assert found == expected
    assert found[0] * found[1] == int(batch.positions["image"].sum())
    boxes = batch.positions.boxes(0)[0]
    assert boxes.shape == (found[0] * found[1], 4)
    assert ((boxes >= 0) & (boxes <= 1)).all()


def test_a_processor_of_another_model_is_refused():
    """InternVL's placeholders mean nothing to a LLaVA."""
    with pytest.raises(interp.InputError) as caught:
        interp.load(model=model("llava"), processor=processors.build("internvl"), device="cpu")
    assert "\n" not in str(caught.value)


def test_what_does_not_run_on_a_small_picture_waits_for_a_batch():
    """Qwen's pixels have the right token here and a layout that a LLaVA cannot read."""
    vlm = interp.load(model=model("llava"), processor=processors.build("qwen2_vl"), device="cpu")
    image = vlm.check().to_frame().set_index("name").loc["image"]
    assert image["outcome"] == "pending"
    assert "a small picture could not be run" in image["detail"]


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "llava_next", "idefics3", "gemma3", "internvl"])
def test_a_row_cut_inside_its_image_is_refused(name):
    """By the encoding where it says how many tokens an image has, else by the model, in one line too."""
    vlm = family(name)
    whole = vlm.prepare(["<image> what ?"] * 2, [picture(seed=1), picture(seed=2)]).inputs
    cut = {key: value[:, :9] if value.shape == whole["input_ids"].shape else value for key, value in whole.items()}
    with pytest.raises(interp.InputError, match="image token") as caught:
        vlm.logits(vlm.prepare(encoding=cut))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        ({"pixel_values": None}, "pixel"),
        ({"input_ids": torch.tensor([[1, 20, 21, 22]]), "attention_mask": torch.ones(1, 4).long()}, "image token"),
        ({"input_ids": torch.full((1, 20), 9_999), "attention_mask": torch.ones(1, 20).long()}, "9999"),
    ],
)
def test_encodings_that_do_not_fit(broken, match):
    vlm = family("llava")
    inputs = {**vlm.prepare(["<image> what ?"], [picture()]).inputs, **broken}
    with pytest.raises(interp.InputError, match=match) as caught:
        vlm.prepare(encoding={name: value for name, value in inputs.items() if value is not None})
    assert "\n" not in str(caught.value)
