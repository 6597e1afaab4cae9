"""Architectures whose `pixel_values` are the patches of all images in a row, most with the grid of each image beside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.entry import Entry, Picture, pixels

UNSET = 140  # an id for what the config leaves None: neither text nor one of those that shrinking gives out

_SIDE = 2  # patches on a side of the square that becomes one image token, in all these architectures


def grid_of_patches(config: Any, generator: torch.Generator) -> Picture:
    """Flat patches [patch, value] and `image_grid_thw`; a square of patches is one image token."""
    vision = config.vision_config
    frames = first(vision, "temporal_patch_size", "patch_temporal") or 1
    return _grid(config, generator, 3 * frames * vision.patch_size**2)


def grid_of_square_patches(config: Any, generator: torch.Generator) -> Picture:
    """As `grid_of_patches`, with patches [patch, 3, side, side]."""
    return _grid(config, generator, 3, config.vision_config.patch_size, config.vision_config.patch_size)


def grid_with_merge_sizes(config: Any, generator: torch.Generator) -> Picture:
    """As `grid_of_patches`, the side of the square told with each image."""
    picture = grid_of_patches(config, generator)
    return Picture(picture.ids, {**picture.inputs, "image_merge_sizes": torch.tensor([_SIDE])})


def grid_with_separators(config: Any, generator: torch.Generator) -> Picture:
    """As `grid_of_patches`, with learned features at image ids behind each row of tokens and around the image."""
    picture = grid_of_patches(config, generator)
    rows = int(picture.inputs["image_grid_thw"][0, 1]) // _SIDE
    more = [config.image_token_id] * (rows + 2)
    return Picture([picture.ids[0], *more, *picture.ids[1:]], picture.inputs)


def plane_of_patches(config: Any, generator: torch.Generator) -> Picture:
    """As `grid_of_patches`, for an architecture that has `image_grid_hw`."""
    picture = grid_of_patches(config, generator)
    grid = picture.inputs["image_grid_thw"]
    return Picture(picture.ids, {"pixel_values": picture.inputs["pixel_values"], "image_grid_hw": grid[:, 1:]})


def grid_of_tokens(config: Any, generator: torch.Generator) -> Picture:
    """Channels last, [token, side, side, 3]; `image_grid_thw` counts tokens and not patches."""
    rows, columns = unequal(generator)
    side = config.vision_config.patch_size * config.vision_config.spatial_merge_size
    inputs = {"pixel_values": pixels(generator, rows * columns, side, side, 3)}
    inputs["image_grid_thw"] = torch.tensor([[1, rows, columns]])
    return Picture(marked(config, rows * columns), inputs)


def patches_without_grid(config: Any, generator: torch.Generator) -> Picture:
    """Channels last, [token, frame, side, side, 3], and nothing that tells one image from the next."""
    rows, columns = unequal(generator)
    side, frames = config.vision_config.patch_size, config.vision_config.temporal_patch_size
    values = pixels(generator, rows * columns, frames, side, side, 3)
    return Picture(marked(config, rows * columns), {"pixel_values": values})


def _grid(config: Any, generator: torch.Generator, *patch: int) -> Picture:
    rows, columns = unequal(generator)
    grid = torch.tensor([[1, _SIDE * rows, _SIDE * columns]])
    values = pixels(generator, int(grid.prod()), *patch)
    return Picture(marked(config, rows * columns), {"pixel_values": values, "image_grid_thw": grid})


def unequal(generator: torch.Generator) -> tuple[int, int]:
    """Rows and columns of image tokens: never square, and drawn so that the images of an encoding differ."""
    return 2, 3 + int(torch.randint(4, (1,), generator=generator))


def marked(config: Any, tokens: int) -> list[int]:
    """Image ids between the ids of start and end, where the architecture's config names them."""
    start = first(config, "vision_start_token_id", "image_start_token_id", "im_start_id", "image_bos_token_id")
    end = first(config, "vision_end_token_id", "image_end_token_id", "im_end_id")
    return [*([start] if start else []), *[config.image_token_id] * tokens, *([end] if end else [])]


def first(config: Any, *names: str) -> Any:
    """The value of the first of these fields that the config has."""
    return next((getattr(config, name) for name in names if hasattr(config, name)), None)


def types_of_tokens(config: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """`mm_token_type_ids`, 1 at image tokens: without them positions silently become those of plain text."""
    return {**inputs, "mm_token_type_ids": (inputs["input_ids"] == config.image_token_id).long()}


def types_of_experts(config: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Also `moe_mm_token_type_ids`, which choose a token's experts: 1 at an image's start and end as well."""
    seen = (config.image_token_id, config.image_start_token_id, config.image_end_token_id)
    visual = torch.isin(inputs["input_ids"], torch.tensor(seen)).long()
    return {**types_of_tokens(config, inputs), "moe_mm_token_type_ids": visual}


def text(*sections: int, rotated: float = 1.0, **fields: Any) -> dict[str, Any]:
    """Changes to the text config. `sections` share the rotated part of a head among time, height and width."""
    rope = {"mrope_section": list(sections), "partial_rotary_factor": rotated} if sections else {}
    return {"text_config": {"rope_parameters": rope, **fields}}


_WINDOWS = {"vision_config": {"window_size": 16, "fullatt_block_indexes": [1]}}
_DEEP = {"vision_config": {"deepstack_visual_indexes": [0, 1]}}
_FOLDED = {"out_hidden_size": 256}  # the tower's width times the square of patches
_NARROW = {"num_attention_heads": 2, "num_key_value_heads": 2, "qk_nope_head_dim": 24}

ENTRIES: dict[str, Entry] = {
    "qwen2_vl": Entry(text(2, 3, 3), grid_of_patches, types_of_tokens),
    "qwen2_5_vl": Entry({**text(2, 3, 3), **_WINDOWS}, grid_of_patches, types_of_tokens),
    "qwen3_vl": Entry({**text(4, 2, 2), **_DEEP}, grid_of_patches, types_of_tokens),
    "qwen3_vl_moe": Entry({**text(4, 2, 2, mlp_only_layers=[1]), **_DEEP}, grid_of_patches, types_of_tokens),
    "qwen3_5": Entry(text(2, 1, 1, rotated=0.5), grid_of_patches, types_of_tokens),
    "qwen3_5_moe": Entry(text(2, 1, 1, rotated=0.5), grid_of_patches, types_of_tokens),
    "qwen2_5_omni_thinker": Entry({**text(2, 3, 3), **_WINDOWS, "vision_start_token_id": UNSET}, grid_of_patches),
    "qwen3_omni_moe_thinker": Entry(
        {**text(4, 2, 2, mlp_only_layers=[1]), **_DEEP, "vision_start_token_id": UNSET}, grid_of_patches
    ),
    "cosmos3_omni": Entry({**text(4, 2, 2), **_DEEP}, grid_of_patches, types_of_tokens),
    "cohere_compass": Entry(
        {
            "text_config": {
                "logit_scale": 0.25,
                "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
                    "full_attention": None,
                },
            },
            **_DEEP,
        },
        grid_of_patches,
        types_of_tokens,
    ),
    "glm46v": Entry(text(1, 1, 2, rotated=0.5), grid_of_patches, types_of_tokens),
    "glm4v": Entry(text(1, 1, 2, rotated=0.5), grid_of_patches, types_of_tokens),
    "glm4v_moe": Entry(text(1, 1, 2, rotated=0.5), grid_of_patches, types_of_tokens),
    "glm_ocr": Entry(text(2, 3, 3), grid_of_patches, types_of_tokens),
    "glmga": Entry(text(1, 1, 2, rotated=0.5), grid_of_patches, types_of_tokens),
    "ernie4_5_vl_moe": Entry(text(3, 3, 2, moe_intermediate_size=[96, 48]), grid_of_patches, types_of_experts),
    "paddleocr_vl": Entry(text(2, 3, 3), grid_of_square_patches, types_of_tokens),
    "exaone4_5": Entry(_WINDOWS, grid_of_patches),
    "hunyuan_vl": Entry(text(2, 2, 2, 2, head_dim=16), grid_with_separators, types_of_tokens),
    "hyperclovax_vision_v2": Entry(
        {**text(embedding_multiplier=10.0, logits_scaling=0.125, residual_multiplier=0.5), **_WINDOWS}, grid_of_patches
    ),
    "lfm3_vl": Entry(picture=grid_of_patches),
    "cosmos3_edge": Entry(text(2, 3, 3), grid_of_patches, types_of_tokens),
    "minimax_m3_vl": Entry(
        text(
            layer_types=["full_attention", "minimax_m3_sparse"] * 2,
            mlp_layer_types=["dense", "dense", "sparse", "sparse"],
            index_n_heads=2,
            index_block_size=4,
        ),
        grid_of_patches,
    ),
    "kimi_k25": Entry(text(num_key_value_heads=4, head_dim=8), grid_of_square_patches),
    "video_llama_3": Entry(picture=grid_with_merge_sizes),
    "muse_glimmer": Entry(_FOLDED, grid_of_patches),
    "muse_spark": Entry({**_FOLDED, "audio_config": {"hidden_sizes": [8, 8]}}, grid_of_patches),
    "nemotron_h_omni": Entry({**text(n_groups=2), "image_token_id": UNSET}, plane_of_patches),
    "inkling2": Entry(text(vocab_size=168, n_layers_per_attn_res_block=2), grid_of_tokens),
    "inkling_mm_model": Entry(
        {
            **text(vocab_size=168, unpadded_vocab_size=160, mlp_layer_types=["dense"] + ["sparse"] * 3),
            "vision_config": {"patch_size": 2},
            "audio_config": {"mel_vocab_size": 8},
        },
        patches_without_grid,
    ),
    "dots3_note": Entry(
        {
            **text(num_key_value_heads=4, head_dim=32, per_layer_config=dict.fromkeys((2, 3), _NARROW)),
            "vision_config": {"adapter_in_dim": 64, "adapter_out_dim": 64},
            "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64},
        },
        grid_of_patches,
    ),
}
