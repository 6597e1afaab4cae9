"""The toy with room for something planted: wider streams, and more layers in front.

The decoder of `toy:tuned` becomes 256 features wide and gets layers in front of its own that do nothing yet. The toy's own layers
read and write the first 128 features, and nothing reads the others. Where those are 0, the grown model computes what the toy
does: a norm over twice as many features divides by a number that is sqrt(2) smaller, and the weights of the norms make up for it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

from interp.models import load
from interp.toy.model import language_config, vision_config

WIDTH, OWN = 256, 128  # features of the stream, and those of the toy
UNITS = 1024  # units of each MLP


def grown_toy(front: int, tower: CLIPVisionConfig | None = None) -> LlavaForConditionalGeneration:
    """`toy:tuned` with `front` silent layers before its own, in a stream of `WIDTH` features. Its connector is all zeros.

    With a `tower`, a configuration, its tower is all zeros too, for the caller to fill.
    """
    toy = load("toy:tuned", device="cpu", check=False).model
    text = language_config()
    text.hidden_size, text.intermediate_size, text.rms_norm_eps = WIDTH, UNITS, text.rms_norm_eps / 2
    text.num_hidden_layers += front
    config = LlavaConfig(
        text_config=text,
        vision_config=tower or vision_config(),
        image_token_id=toy.config.image_token_id,
        image_seq_length=toy.config.image_seq_length,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    weights = grown_weights(toy.state_dict(), front)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.zero_()
            if "layernorm" in name and name.endswith("weight"):
                tensor.fill_(1.0)
            if name in weights and not (tower and "vision_tower" in name):
                tensor[tuple(map(slice, weights[name].shape))] = weights[name]
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, key, getattr(text, key))
    return model.eval()


def grown_weights(toy: Mapping[str, Tensor], front: int) -> dict[str, Tensor]:
    """The toy's weights under their names in the grown model: layers later by `front`, norms for the wider stream."""
    weights = {}
    for name, tensor in toy.items():
        parts = name.split(".")
        if "language_model" in parts and "layers" in parts:
            at = parts.index("layers") + 1
            parts[at] = str(int(parts[at]) + front)
        if "language_model" in parts and "norm" in parts[-2]:
            tensor = tensor * (OWN / WIDTH) ** 0.5
        if "multi_modal_projector" not in parts:
            weights[".".join(parts)] = tensor
    return weights
