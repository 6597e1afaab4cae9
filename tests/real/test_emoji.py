"""The emoji organism around SmolLM2 itself: on text it is SmolLM2, its proofs pass, and tools run on it in this time and memory.

Run with ``SMOLLM2=folder pytest -m real``, as `test_smollm2` is; with ``-s`` the tests print times.
"""

import importlib.util
import os
import resource
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import interp
from interp.lens import logit_lens
from interp.organisms import emoji
from interp.organisms.emoji.emoji_model import assembled
from interp.organisms.emoji.smollm2 import smollm2
from interp.organisms.emoji.stages import STAGES, WEIGHTS, write_part
from interp.organisms.emoji.tower import emoji_tower
from interp.patching import logit_difference, patch_sweep
from interp.tuning import tune

FOLDER = os.environ.get("SMOLLM2", "")
HERE = bool(FOLDER) and any(Path(FOLDER).glob("*.gguf")) and all(map(importlib.util.find_spec, ("gguf", "peft")))
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not HERE, reason="needs the GGUF file of SmolLM2 in $SMOLLM2, gguf and peft"),
]

CAPTION = "<|im_start|><image>A picture of"
TEXTS = (
    "The capital of France is",
    "<|im_start|>user\nWhat is the capital of Italy?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>A picture of a red apple and a dog 🐕",
)


@contextmanager
def measured(what):
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\n{what}: {time.process_time() - cpu:.1f} s CPU, {time.perf_counter() - wall:.1f} s, peak {memory:.0f} MB")


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    """The first stage as it is shipped; where no weights are, one with an untrained tower and connector, loaded alike."""
    folder = WEIGHTS
    with measured("SmolLM2"):
        language, tokenizer, _ = smollm2()
    if not (folder / "stage1.safetensors").is_file():
        folder = tmp_path_factory.mktemp("weights")
        torch.manual_seed(0)
        new = assembled(language, tokenizer, emoji_tower().eval(), None, check=False).model.model
        write_part(new.vision_tower.state_dict(), folder / "tower.safetensors")
        write_part(new.multi_modal_projector.state_dict(), folder / "stage1.safetensors")
    with measured("load"):
        return emoji.load("stage1", weights=folder)


@pytest.fixture(scope="module")
def drawn():
    return emoji.pictures(20, seed=0)


def largest_difference(vlm, text):
    """To SmolLM2 alone, by the largest logit."""
    language, tokenizer, _ = smollm2()
    with torch.no_grad():
        own = language(**tokenizer(text, return_tensors="pt")).logits
    logits = vlm.logits(vlm.prepare([text]), positions="all")
    assert logits.shape[-1] == own.shape[-1] + 1
    assert (logits[..., -1] < own.amax(-1)).all()  # <image> is never the likeliest word
    return float((logits[..., :-1] - own).abs().max() / own.abs().max())


def test_it_says_where_its_language_model_comes_from(vlm):
    assert vlm.name == "emoji:stage1"
    assert vlm.revision == next(Path(FOLDER).glob("*.gguf")).name


def test_on_text_it_is_smollm2(vlm):
    differences = [largest_difference(vlm, text) for text in TEXTS]
    print(f"\nlargest difference to SmolLM2 alone: {max(differences):.1e} of the largest logit")
    assert max(differences) <= 1e-5
    assert vlm.generate(vlm.prepare([TEXTS[0]]), max_new_tokens=1) == [" Paris"]


def test_every_proof_passes(vlm, drawn):
    batch = vlm.prepare([CAPTION, "<|im_start|>A dog"], [drawn[0].image, None])
    with measured("check"):
        frame = vlm.check(batch).to_frame()
    assert set(frame["outcome"]) == {"passed"}, frame.to_string()


def test_a_sweep_shows_that_pictures_enter_at_their_tokens(vlm, drawn):
    clean, corrupted = (vlm.prepare([CAPTION], [each.image]) for each in drawn[:2])
    with measured("sweep of 10 layers and 20 positions"):
        metric = logit_difference(" red", " blue")
        sweep = patch_sweep(vlm, clean, corrupted, site="resid_pre", layers=range(0, 30, 3), metric=metric)
    image = clean.positions["image"][0]
    assert sweep.effect.shape == (10, 20)
    assert sweep.effect[0, ~image].abs().max() < 1e-4  # words are the same before both pictures
    assert sweep.effect[0, image].abs().max() > 1e-3


def test_a_lens_ends_at_the_logits(vlm, drawn):
    batch = vlm.prepare([CAPTION] * 8, [each.image for each in drawn[:8]])
    with measured("lens of 8 pictures, 16 patches and 31 states"):
        lens = logit_lens(vlm, batch, positions="image", top_k=5)
    assert lens.top_ids.shape == (31, 8 * 16, 5)
    last = logit_lens(vlm, batch, positions="last", targets=" red")
    logits = vlm.logits(batch)
    (red,) = vlm.tokenizer(" red")["input_ids"]
    assert last.target_ranks[-1].flatten().tolist() == (logits > logits[:, [red]]).sum(1).tolist()


def test_a_capture_has_a_state_of_each_patch(vlm, drawn):
    data = [{"text": CAPTION, "image": each.image} for each in drawn]
    with measured("capture of 20 pictures"):
        acts = interp.capture(vlm, data, positions="image", reduce="none", progress=False)
    assert acts["resid"].shape == (31, 20 * 16, 576)
    assert acts["resid"][...].isfinite().all()


def test_connector_and_adapters_are_tuned_on_conversations(vlm):
    rows = emoji.conversations(8, seed=0)
    steps = {"max_steps": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "lr_scheduler_type": "constant"}
    with measured("2 steps of 8 conversations of 4 turns"):
        result = tune(vlm, rows, range(10, 20), lora=8, connector=True, arguments=steps)
    assert result.unchanged
    assert result.loss[1] < result.loss[0]
    assert largest_difference(vlm, TEXTS[0]) <= 1e-5  # what was tuned is a copy
    assert largest_difference(result.vlm, TEXTS[0]) > 1e-5


@pytest.mark.parametrize("name", STAGES[1:])
def test_the_tuned_stages_are_loaded(name, vlm, drawn):
    stem = name.replace(":", "-")
    if not any((WEIGHTS / file).exists() for file in (stem, f"{stem}.safetensors")):
        pytest.skip(f"no weights of {name} are shipped")
    with measured(f"load {name}"):
        tuned = emoji.load(name)
    assert (largest_difference(tuned, TEXTS[0]) <= 1e-5) == (name == "tuned:connector")
    batch = vlm.prepare([CAPTION], [drawn[0].image])
    assert not torch.equal(tuned.logits(batch), vlm.logits(batch))
    assert largest_difference(vlm, TEXTS[0]) <= 1e-5  # adapters are merged into copies
