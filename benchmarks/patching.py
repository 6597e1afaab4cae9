"""What an exact patching sweep costs, compared with one forward pass for each cell.

``python benchmarks/patching.py grid``: `resid_pre` at every layer and position of a LLaVA of width 256 with 8 layers, on 80
positions, with `patch_sweep`, with a forward pass and a plain PyTorch hook for each cell, and with `run_with_hooks` of
TransformerLens's bridge for each cell. ``python benchmarks/patching.py column``: the last position of a LLaVA with 32 layers, on
200 positions, with `patch_sweep` and with plain hooks.

Everything runs in one process on one thread, alternating; the median of the ratios is printed. The runs of the clean and the
corrupted prompt are included. The values are compared, and their largest difference is printed.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import interp
from interp.models import VLM, Batch
from interp.patching import logit_difference, patch_sweep

IMAGE_TOKEN, SIDE, PATCH, ROUNDS = 1, 64, 8, 5
PATCHES = (SIDE // PATCH) ** 2
ANSWER, OTHER = 5, 6


def build(layers: int, width: int, device: str) -> VLM:
    """An untrained LLaVA. Its tower is small, so that skipping the tower saves little time."""
    torch.manual_seed(0)
    tower = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    )
    decoder = LlamaConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=1000,
    )
    config = LlavaConfig(vision_config=tower, text_config=decoder, image_token_index=IMAGE_TOKEN)
    return interp.load(model=LlavaForConditionalGeneration(config).eval().to(device))


def pair(vlm: VLM, positions: int) -> tuple[Batch, Batch]:
    """Two prompts with this many positions, with different pictures and the same words."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(2, 1000, (1, positions - PATCHES), generator=generator)
    ids = torch.cat([torch.full((1, PATCHES), IMAGE_TOKEN), words], dim=1)
    pixels = torch.randn(2, 1, 3, SIDE, SIDE, generator=generator)
    encodings = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": each} for each in pixels]
    return vlm.prepare(encoding=encodings[0]), vlm.prepare(encoding=encodings[1])


def by_resuming(vlm: VLM, clean: Batch, corrupted: Batch, layers: list[int], columns: list[int]) -> Tensor:
    """Use `patch_sweep`."""
    metric = logit_difference(ANSWER, OTHER)
    return patch_sweep(vlm, clean, corrupted, layers=layers, positions=columns, metric=metric).values


def by_hooks(vlm: VLM, clean: Batch, corrupted: Batch, layers: list[int], columns: list[int]) -> Tensor:
    """Run transformers' forward pass for each cell, with a hook on the layer and the logits of the last position."""
    values = torch.empty(len(layers), len(columns))
    inputs = vlm.inputs_of(corrupted)
    modules = vlm.model.model.language_model.layers
    with torch.no_grad():
        states = vlm.model(**vlm.inputs_of(clean), output_hidden_states=True, logits_to_keep=1).hidden_states
        difference(vlm.model(**inputs, logits_to_keep=1).logits)
        for i, layer in enumerate(layers):
            for j, column in enumerate(columns):

                def hook(_: Any, arguments: Any, state: Tensor = states[layer][:, column], column: int = column) -> Any:
                    arguments[0][:, column] = state

                handle = modules[layer].register_forward_pre_hook(hook)
                values[i, j] = difference(vlm.model(**inputs, logits_to_keep=1).logits)
                handle.remove()
    return values


def bridge_of(device: str) -> Any:
    """The same model in TransformerLens's bridge, which changes the modules of its model."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources.transformers import helpers

    # Without torchvision the bridge would install it, and with it another version of torch.
    helpers._ensure_torchvision = lambda: False
    own = build(8, 256, device)
    own.model.config.architectures = [type(own.model).__name__]
    tokenizer = interp.load("toy", device=device).tokenizer
    return TransformerBridge.boot_transformers("llava", hf_model=own.model, tokenizer=tokenizer, device=device)


def by_bridge(bridge: Any, clean: Batch, corrupted: Batch, layers: list[int], columns: list[int]) -> Tensor:
    """Call `run_with_hooks` of TransformerLens's bridge for each cell."""
    values = torch.empty(len(layers), len(columns))
    (ids, pixels), (other_ids, other_pixels) = (
        (b.inputs["input_ids"], b.inputs["pixel_values"]) for b in (clean, corrupted)
    )
    names = [f"blocks.{layer}.hook_in" for layer in layers]
    with torch.no_grad():
        _, cache = bridge.run_with_cache(ids, pixel_values=pixels, names_filter=lambda name: name in names)
        difference(bridge(other_ids, pixel_values=other_pixels))
        for i, name in enumerate(names):
            for j, column in enumerate(columns):

                def hook(
                    value: Tensor, hook: Any, state: Tensor = cache[name][:, column], column: int = column
                ) -> Tensor:
                    value = value.clone()
                    value[:, column] = state
                    return value

                logits = bridge.run_with_hooks(other_ids, pixel_values=other_pixels, fwd_hooks=[(name, hook)])
                values[i, j] = difference(logits)
    return values


def difference(logits: Tensor) -> float:
    """The metric of the last position."""
    return (logits[0, -1, ANSWER] - logits[0, -1, OTHER]).item()


def seconds(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """How long a call takes, and its result."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    values = function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, values


def compare(ours: Callable[[], Tensor], others: dict[str, Callable[[], Tensor]]) -> None:
    """Print how many times longer the others take, and the largest difference of their values."""
    ratios: dict[str, list[float]] = {name: [] for name in others}
    off = dict.fromkeys(others, 0.0)
    for turn in range(ROUNDS + 1):
        for name, other in others.items():
            mine, values = seconds(ours)
            theirs, expected = seconds(other)
            off[name] = max(off[name], (values - expected).abs().max().item())
            if turn:  # the first round warms up, and includes the sweep's own comparison
                ratios[name].append(theirs / mine)
    for name, each in ratios.items():
        shown = ", ".join(f"{ratio:.2f}" for ratio in each)
        print(
            f"{name}: {statistics.median(each):.2f} x the time of patch_sweep ({shown}), values off by {off[name]:.1e}"
        )


def grid(device: str) -> None:
    """Compare the whole grid of a small model."""
    vlm = build(8, 256, device)
    clean, corrupted = pair(vlm, 80)
    at = (list(range(8)), list(range(80)))
    print(f"8 layers x 80 positions, width 256, on {device}, {ROUNDS} rounds")
    others = {
        "a plain hooked forward pass a cell": partial(by_hooks, vlm, clean, corrupted, *at),
        "TransformerLens's run_with_hooks a cell": partial(by_bridge, bridge_of(device), clean, corrupted, *at),
    }
    compare(partial(by_resuming, vlm, clean, corrupted, *at), others)


def column(device: str) -> None:
    """Compare the last position of a deeper model."""
    vlm = build(32, 256, device)
    clean, corrupted = pair(vlm, 200)
    at = (list(range(32)), [199])
    print(f"32 layers x the last of 200 positions, width 256, on {device}, {ROUNDS} rounds")
    others = {"a plain hooked forward pass a cell": partial(by_hooks, vlm, clean, corrupted, *at)}
    compare(partial(by_resuming, vlm, clean, corrupted, *at), others)


if __name__ == "__main__":
    torch.set_num_threads(1)
    part = sys.argv[1] if len(sys.argv) > 1 else "grid"
    {"grid": grid, "column": column}[part]("cuda" if torch.cuda.is_available() else "cpu")
