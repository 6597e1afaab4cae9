"""A new connector before SmolLM2, trained alone, and then a band of its layers: what `tune` does to an assembled model.

Run with ``SMOLLM2=folder pytest -m real``, as `test_smollm2` is.
"""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

import interp
from interp.tuning import tune

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = os.environ.get("SMOLLM2", "")
NEEDED = ("gguf", "accelerate", "peft")
HERE = bool(FOLDER) and (Path(FOLDER) / GGUF).is_file() and all(map(importlib.util.find_spec, NEEDED))
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not HERE, reason=f"needs {GGUF} in $SMOLLM2, and {', '.join(NEEDED)}"),
]

COLOURS = {"red": (220, 30, 40), "green": (30, 160, 60), "blue": (40, 60, 210), "yellow": (230, 210, 40)}
# One prompt for all pictures, as captions have.
ROWS = [
    {"text": "<image> A picture of", "answer": f" {name}", "image": Image.new("RGB", (48, 48), colour)}
    for name, colour in COLOURS.items()
]
STEPS = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "lr_scheduler_type": "constant"}
TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def vlm():
    from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionConfig, CLIPVisionModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    torch.manual_seed(0)
    tower = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=48, patch_size=12)).eval()
    return interp.assemble(
        language_model=AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=GGUF, dtype=torch.float32).eval(),
        tokenizer=AutoTokenizer.from_pretrained(FOLDER, gguf_file=GGUF),
        vision=tower,
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}),
        check=False,
    )


def on_text(vlm):
    return vlm.logits(vlm.prepare([TEXT]))


def test_a_new_connector_learns_before_a_frozen_language_model(vlm):
    result = tune(vlm, ROWS, layers=(), connector=True, arguments=STEPS)
    print(
        f"\nloss {result.loss.tolist()}, seconds {result.seconds.sum(0).tolist()}, trained {result.trained_parameters}"
    )
    assert all("multi_modal_projector" in name for name in result.trained)
    assert result.trained_parameters == 64 * 576 + 576 + 576 * 576 + 576
    assert result.unchanged
    assert result.loss[-1] < result.loss[0] - 0.5
    assert torch.equal(on_text(result.vlm), on_text(vlm))  # no picture, no connector


@pytest.mark.parametrize("lora", [None, 4])
def test_a_band_of_layers_is_trained_and_nothing_else(vlm, lora, tmp_path):
    result = tune(vlm, ROWS, layers=range(10, 13), lora=lora, arguments=STEPS, out=tmp_path / "tuned")
    print(
        f"\nloss {result.loss.tolist()}, seconds {result.seconds.sum(0).tolist()}, trained {result.trained_parameters}"
    )
    assert result.loss[-1] < result.loss[0] - 0.5
    assert result.unchanged
    ours, theirs = vlm.model.state_dict(), result.vlm.model.state_dict()
    changed = {key for key in ours if not torch.equal(ours[key], theirs[key])}
    assert changed
    assert {key.split(".layers.")[1].split(".")[0] for key in changed} == {"10", "11", "12"}
    assert not torch.equal(on_text(result.vlm), on_text(vlm))
    again = interp.load(tmp_path / "tuned")
    torch.testing.assert_close(on_text(again), on_text(result.vlm), rtol=1e-5, atol=1e-4)
    assert again.model.lm_head.weight is again.model.get_input_embeddings().weight
