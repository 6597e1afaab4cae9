"""Architectures that `interp` refuses, having no stream of [batch, position, width] with the image at ids of its own.

Encoders with a decoder, images beside the text (behind cross-attention, or in front of the ids), streams several times
as wide, models of text alone, of proteins, of a robot's moves. They are built so that tests see them refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.entry import Entry, Picture, pixels
from zoo.fixed import located, square
from zoo.packed import grid_of_patches, types_of_tokens

NEEDS_TIMM = ("fast_vlm", "gemma3n", "perception_lm")  # their vision towers come from timm, which is not a dependency


def beside(config: Any, generator: torch.Generator) -> Picture:
    """Pixels without a token in the row."""
    return Picture([], {"pixel_values": pixels(generator, 1, 3, 16, 16)})


def listed(config: Any, generator: torch.Generator) -> Picture:
    """Patches with their places, without a token in the row."""
    return Picture([], located(config, generator).inputs)


def several(config: Any, generator: torch.Generator) -> Picture:
    """Pixels with an axis for the images of the row, behind cross-attention."""
    return Picture([], {"pixel_values": pixels(generator, 1, 1, 3, 16, 16)})


def tiles(config: Any, generator: torch.Generator) -> Picture:
    """One token for the image, and its tiles behind cross-attention: one is filled, three are padding."""
    values = {
        "pixel_values": pixels(generator, 1, 1, 4, 3, 16, 16),
        "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.tensor([[[1, 0, 0, 0]]]),
    }
    return Picture([config.image_token_id], values)


def acting(config: Any, generator: torch.Generator) -> Picture:
    """What a robot's camera shows, and its state; what comes out are its next moves."""
    values = {
        "pixel_values": pixels(generator, 1, 1, 3, 16, 16),
        "pixel_attention_mask": torch.ones(1, 1, dtype=torch.bool),
        "state": pixels(generator, 1, config.max_state_dim),
    }
    return Picture([config.vlm_config.image_token_id] * 16, values)


def image_masks(config: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every token sees the image of its row."""
    return {**inputs, "image_attention_mask": inputs["attention_mask"][..., None]}


def tile_masks(config: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every token from the image on sees its first tile."""
    seen = (inputs["input_ids"] == config.image_token_id).cumsum(-1)
    return {**inputs, "cross_attention_mask": torch.stack([seen, *[torch.zeros_like(seen)] * 3], dim=-1)[:, :, None]}


def boxed(config: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every token with its box on the page; the decoder begins with a token."""
    places = torch.arange(inputs["input_ids"].shape[1]) / 100
    boxes = torch.stack([places, places, places + 0.1, places + 0.1], dim=-1)
    return to_both(config, {**inputs, "bbox": boxes.expand(len(inputs["input_ids"]), -1, -1)})


def to_the_decoder(config: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The ids go to the decoder; the encoder reads the image alone."""
    names = {"input_ids": "decoder_input_ids", "attention_mask": "decoder_attention_mask"}
    return {names.get(name, name): value for name, value in inputs.items()}


def to_both(config: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder reads the ids; the decoder begins with a token."""
    return {**inputs, "decoder_input_ids": torch.full((len(inputs["input_ids"]), 1), 2)}


_BART = {"decoder_layers": 2, "decoder_ffn_dim": 96, "decoder_attention_heads": 4}
_STAGES = {"depths": [1, 1], "embed_dim": [16, 32], "num_heads": [2, 2], "num_groups": [2, 2], "window_size": 4}
_STEPS = {"patch_size": [3, 3], "patch_stride": [2, 2], "patch_padding": [1, 1], "patch_prenorm": [False, True]}
_FORMULA = {"post_conv_in_channels": 8, "post_conv_mid_channels": 16, "post_conv_out_channels": 16}
_INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8}

ENTRIES: dict[str, Entry] = {
    "blip": Entry(picture=beside),
    "diffusion_gemma": Entry(
        {
            "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 96},
            "vision_config": {"position_embedding_size": 64},
            "canvas_length": 12,
        }
    ),
    "evolla": Entry({"aligner_num_add_layers": 2, "resampler_heads": 4, "resampler_dim_head": 16}),
    "florence2": Entry({"text_config": _BART, "vision_config": {**_STAGES, **_STEPS}}, square(16 + 1), to_both),
    "git": Entry(picture=beside),
    "glm5_next": Entry(
        {"text_config": {"num_key_value_heads": 4, "index_kpool": 4, "qk_rope_head_dim": 0}},
        grid_of_patches,
        types_of_tokens,
    ),
    "idefics": Entry(picture=several, finish=image_masks),
    "mistral4": Entry({"num_key_value_heads": 4, "rope_parameters": {"original_max_position_embeddings": 4}}),
    "mllama": Entry(
        {
            "text_config": {"cross_attention_layers": [1, 3]},
            "vision_config": {"intermediate_layers_indices": [0, 1], "num_global_layers": 1, "vision_output_dim": 192},
        },
        tiles,
        tile_masks,
    ),
    "pi0": Entry({"chunk_size": 4}, acting),
    "pix2struct": Entry(
        {
            "text_config": {"d_ff": 96, "d_kv": 16},
            "vision_config": {"patch_embed_hidden_size": 48, "d_ff": 96, "d_kv": 16},
        },
        listed,
        to_the_decoder,
    ),
    "pp_formulanet": Entry(
        {"text_config": _BART, "vision_config": {**_FORMULA, "decoder_hidden_size": 64}}, beside, to_the_decoder
    ),
    "qwen4_exp": Entry(
        {"text_config": {**_INDEXER, "indexer_compress_ratio": 2, "hc_lowrank": 8}}, grid_of_patches, types_of_tokens
    ),
    "t5gemma2": Entry({"encoder": {"mm_tokens_per_image": 16}}, square(), to_both),
    "udop": Entry({"num_decoder_layers": 2, "d_ff": 96, "d_kv": 16}, beside, boxed),
    "vision-encoder-decoder": Entry({"encoder": {"pooler_output_size": 64}}, beside, to_the_decoder),
}
