"""What capturing costs compared with the model's own forward pass, in time and in memory.

``python benchmarks/capture.py time``: the wall time of capturing mean-pooled `resid` of all layers, divided by that of
transformers' forward pass with ``output_hidden_states=True`` and without saving. Both run on the same batches, alternating, in
one process; the median of the ratios is printed. ``python benchmarks/capture.py memory``: the peak memory of capturing 2,000
rows, divided by that of 200 rows, each in its own process.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import interp
from interp.models import VLM, Batch

LAYERS, WIDTH, PATCHES, TEXT, ROWS = 8, 512, 64, 32, 8
IMAGE_TOKEN = 1


def build(device: str) -> VLM:
    """A LLaVA of 8 layers and width 512, untrained."""
    torch.manual_seed(0)
    tower = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8
    )
    decoder = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=1000,
    )
    config = LlavaConfig(vision_config=tower, text_config=decoder, image_token_index=IMAGE_TOKEN)
    return interp.load(model=LlavaForConditionalGeneration(config).eval().to(device))


def batches(vlm: VLM, count: int) -> list[Batch]:
    """Batches whose rows are a picture and some words."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(count):
        text = torch.randint(2, 1000, (ROWS, TEXT), generator=generator)
        ids = torch.cat([torch.full((ROWS, PATCHES), IMAGE_TOKEN), text], dim=1)
        pixels = torch.randn(ROWS, 3, 64, 64, generator=generator)
        mask = torch.ones_like(ids)
        rows.append(vlm.prepare(encoding={"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}))
    return rows


def plain(vlm: VLM, data: list[Batch]) -> None:
    """transformers' own forward pass, with the hidden states of a batch and the logits of one position."""
    with torch.no_grad():
        for batch in data:
            vlm.model(**vlm.inputs_of(batch), output_hidden_states=True, logits_to_keep=1)
    wait()


def wait() -> None:
    """Wait until the device has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(function: Callable[..., object], *arguments: object, **options: object) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function(*arguments, **options)
    wait()
    return time.perf_counter() - start


def compare_time(rounds: int = 5) -> None:
    """Print the time of capturing into memory and into a folder, divided by that of the plain forward pass."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vlm = build(device)
    data = batches(vlm, 8)
    ratios: dict[str, list[float]] = {"in memory": [], "into a folder": []}
    for turn in range(rounds + 1):
        own = seconds(plain, vlm, data)
        memory = seconds(interp.capture, vlm, data, positions="all", progress=False)
        with tempfile.TemporaryDirectory() as folder:
            disk = seconds(interp.capture, vlm, data, positions="all", out=f"{folder}/acts", progress=False)
        if turn:  # the first one warms up
            ratios["in memory"].append(memory / own)
            ratios["into a folder"].append(disk / own)
    print(
        f"{LAYERS} layers, width {WIDTH}, {ROWS} rows of {PATCHES + TEXT} tokens a batch, on {device}, {rounds} rounds"
    )
    for name, each in ratios.items():
        shown = ", ".join(f"{ratio:.3f}" for ratio in each)
        print(f"capture {name}: {statistics.median(each):.3f} x the plain forward pass ({shown})")


def peak(folder: str) -> None:
    """Print the peak memory of this process in MB after capturing every image token of a folder of pictures."""
    vlm = interp.load("toy", device="cpu")
    with tempfile.TemporaryDirectory() as out:
        interp.capture(vlm, folder, reduce="none", batch_size=8, out=f"{out}/acts", progress=False)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def compare_memory() -> None:
    """Print the peak memory for 2,000 rows, divided by that for 200 rows. A row takes 166 kB in the store."""
    peaks = []
    for rows in (200, 2000):
        with tempfile.TemporaryDirectory() as folder:
            for scene in interp.toy.scenes(rows, seed=0):
                scene.image.save(f"{folder}/{scene.id}.png")
            command = [sys.executable, __file__, "peak", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    print(f"peak memory: {peaks[0]:.0f} MB for 200 rows, {peaks[1]:.0f} MB for 2,000: {peaks[1] / peaks[0]:.3f} x")


if __name__ == "__main__":
    torch.set_num_threads(1)
    what = sys.argv[1] if len(sys.argv) > 1 else "time"
    {"time": compare_time, "memory": compare_memory, "peak": lambda: peak(sys.argv[2])}[what]()
