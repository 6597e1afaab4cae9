"""The recipe: lessons have the right targets, and a short run trains all three models."""

import numpy as np
import torch

import interp
from interp.toy import lessons, train
from interp.toy.language import KINDS, VOCABULARY


def words(ids):
    return [VOCABULARY[index] for index in ids.tolist()]


def test_targets_of_a_text_lesson():
    lesson = lessons.text_lesson(np.random.default_rng(0), 16)
    assert lesson.input_ids.shape == lesson.targets.shape == lesson.weights.shape
    answers = lesson.kinds >= 0
    assert (answers.sum(dim=1) == 6).all()
    assert set(lesson.kinds[answers].tolist()) == set(range(len(KINDS)))
    assert set(words(lesson.input_ids[answers])) == {"?"}
    following = lesson.input_ids.roll(-1, dims=1)
    assert (lesson.targets[answers] == following[answers]).all()
    after_answers = answers.roll(1, dims=1)
    assert set(words(lesson.targets[after_answers])) == {"<eos>"}
    caption = words(lesson.input_ids[0])
    end = caption.index(".") + 1
    ends = lesson.input_ids == VOCABULARY.index(".")
    assert set(words(lesson.targets[ends])) == {"<eos>"}  # also where the caption is stated again
    assert interp.toy.parse_caption(" ".join(caption[1:end]))
    assert lesson.weights[0, : end - 1].tolist() == [np.float32(lessons.CAPTION_WEIGHT)] * (end - 1)


def test_an_image_lesson_shows_what_it_tells():
    lesson = lessons.image_lesson(np.random.default_rng(0), 4, "caption")
    assert lesson.pixel_values.shape == (4, 3, 48, 48)
    assert (lesson.input_ids == VOCABULARY.index("<image>")).sum(dim=1).tolist() == [36] * 4
    questions = lessons.image_lesson(np.random.default_rng(0), 64, "questions")
    kinds = {list(KINDS)[kind] for kind in questions.kinds.unique().tolist() if kind >= 0}
    assert kinds == {"colour", "digit", "place", "existence", "count"}  # abstraction on images is never trained


def test_pixels_are_the_processors(toy):
    scene = interp.toy.scenes(1, seed=0)[0]
    expected = toy.prepare(["<image>"], [scene.image]).inputs["pixel_values"]
    assert (lessons.to_pixel_values(np.asarray(scene.image)[None]) == expected).all()


def test_a_patch_lesson_labels_every_patch():
    pixels, labels = lessons.patch_lesson(np.random.default_rng(0), 8)
    assert pixels.shape == (8, 3, 48, 48)
    assert labels.shape == (8, 36, 3)
    shown = labels[..., 0] < 10
    assert (shown == (labels[..., 1] < 6)).all()
    assert set(shown.sum(dim=1).tolist()) <= {8, 20, 36}
    bright = pixels.unfold(2, 8, 8).unfold(3, 8, 8).amax(dim=(1, 4, 5)).reshape(8, 36)
    assert bright[~shown].max() < 0


def test_the_loss_is_the_weighted_mean():
    lesson = lessons.text_lesson(np.random.default_rng(1), 2)
    logits = torch.zeros(*lesson.targets.shape, len(VOCABULARY))
    torch.testing.assert_close(train.weighted_loss(logits, lesson), torch.tensor(float(np.log(len(VOCABULARY)))))


def test_a_smoke_run_makes_three_models_that_load(tmp_path, capsys):
    train.main(["--out", str(tmp_path), "--scale", "0.0003", "--seed", "5"])
    scene = interp.toy.scenes(1, seed=0)[0]
    for name in ("base", "stage1", "tuned"):
        vlm = interp.load(str(tmp_path / name), device="cpu")
        assert vlm.check(vlm.prepare(["<image>"], [scene.image])).passed
    base, stage1, tuned = (
        dict(interp.load(str(tmp_path / n), device="cpu").model.named_parameters()) for n in ("base", "stage1", "tuned")
    )

    def changed(a, b):
        return {
            name.split(".")[1] if name.startswith("model.") else name for name in a if not torch.equal(a[name], b[name])
        }

    assert changed(base, stage1) == {"multi_modal_projector"}
    assert (
        {"multi_modal_projector", "language_model"}
        <= changed(stage1, tuned)
        <= {"multi_modal_projector", "language_model", "lm_head.weight"}
    )
    assert "instruct 1/2" in capsys.readouterr().out
    train.main(["--out", str(tmp_path), "--scale", "0.0003", "--seed", "5"])
    assert "instruct" not in capsys.readouterr().out  # every phase is taken from its checkpoint
