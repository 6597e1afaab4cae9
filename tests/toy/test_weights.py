"""The shipped weights: small, and as able as the README says."""

import itertools
from pathlib import Path

import pytest
import torch

import interp
from interp.toy import tuned_toys
from interp.toy.language import KINDS

WEIGHTS = Path(interp.__file__).parent / "toy" / "weights"


def table(name, n):
    return interp.toy.evaluate(name, n=n).set_index(["modality", "kind"])


def test_they_are_small():
    sizes = {path: path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()}
    of_seeds = sum(size for path, size in sizes.items() if "@" in path.parent.name)
    assert of_seeds <= 18e6
    assert sum(sizes.values()) - of_seeds <= 25 * 2**20
    assert {path.suffix for path in WEIGHTS.rglob("*") if path.is_file()} == {".safetensors", ".json"}


def test_base_answers_every_kind_of_question_on_text():
    scores = table("toy:base", 400).loc["text"]
    assert set(scores.index) == set(KINDS)
    assert (scores["accuracy"] >= 0.95).all(), scores


def test_base_writes_captions_that_parse():
    vlm = interp.load("toy:base", device="cpu")
    starts = [f"a {colour}" for colour in ("red", "green", "blue", "yellow", "magenta", "cyan")] + ["a"]
    for start, text in zip(starts, vlm.generate(vlm.prepare(starts), max_new_tokens=30), strict=True):
        assert interp.toy.parse_caption(f"{start} {text}")
    from_nothing = vlm.prepare(encoding={"input_ids": torch.tensor([[vlm.tokenizer.bos_token_id]])})
    assert interp.toy.parse_caption(vlm.generate(from_nothing, max_new_tokens=40)[0])


@pytest.mark.parametrize("name", tuned_toys())
def test_tuned_answers_perception_questions_on_images_never_trained_on(name):
    scores = interp.toy.evaluate(name, n=400 if name == "toy:tuned" else 100)
    perception = scores[(scores["modality"] == "image") & (scores["group"] == "perception")].set_index("kind")
    assert (perception["accuracy"] >= (0.95 if name == "toy:tuned" else 0.9)).all(), perception


def test_toys_of_other_seeds_are_other_models():
    weights = [interp.load(name, device="cpu").model.state_dict() for name in tuned_toys()]
    for one, other in itertools.combinations(weights, 2):
        assert one.keys() == other.keys()
        alike = {name for name, tensor in one.items() if torch.equal(tensor, other[name])}
        assert all("position_ids" in name for name in alike), alike


def test_a_blank_picture_is_not_answered(toy, few):
    """The control: without the picture's content, accuracy falls to about the share of the commonest answer."""
    from PIL import Image

    questions = [(scene, q) for scene in interp.toy.scenes(150, seed=8) for q in scene.questions if q.kind == "place"]
    batch = toy.prepare([q.prompt for _, q in questions], [Image.new("RGB", (48, 48), (28, 28, 28))] * len(questions))
    answers = toy.tokenizer.convert_ids_to_tokens(toy.logits(batch).argmax(-1).tolist())
    right = sum(answer == q.answer for answer, (_, q) in zip(answers, questions, strict=True)) / len(questions)
    assert right < 0.35


def test_an_unknown_toy():
    with pytest.raises(interp.InputError, match="'toy:none' is not a toy"):
        interp.toy.evaluate("toy:none", n=1)
    with pytest.raises(interp.InputError, match="n=0: expected an int of 1 or more"):
        interp.toy.evaluate("toy", n=0)
