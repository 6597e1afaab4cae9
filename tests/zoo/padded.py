"""Architectures whose images are of any size and padded to the largest, their sizes or positions given beside."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad

from zoo.entry import Entry, Picture, pixels
from zoo.packed import types_of_tokens, unequal

_LONGEST = 6  # columns of the widest image `unequal` draws
_BREAK, _END = 141, 142  # what stands behind a row of image tokens, and behind the last


def rows_of_tokens(config: Any, generator: torch.Generator) -> Picture:
    """`pixel_values` [image, 3, height, width] with `image_sizes`; a break behind each row of image tokens."""
    picture, (rows, columns) = _sized(config, generator)
    line = [config.image_token_id] * columns
    return Picture([*([*line, _BREAK] * (rows - 1)), *line, _END], picture)


def one_run_of_tokens(config: Any, generator: torch.Generator) -> Picture:
    """As `rows_of_tokens`, without breaks."""
    picture, (rows, columns) = _sized(config, generator)
    return Picture([config.image_token_id] * (rows * columns), picture)


def patches_with_positions(config: Any, generator: torch.Generator) -> Picture:
    """`pixel_values` [image, patch, value] with the place (x, y) of each patch, -1 where padded."""
    return _placed(config, generator, 1, config.vision_config.pooling_kernel_size)


def merged_patches_with_positions(config: Any, generator: torch.Generator) -> Picture:
    """As `patches_with_positions`, each patch already the square of patches that is one image token."""
    return _placed(config, generator, config.vision_config.pooling_kernel_size, 1)


def _sized(config: Any, generator: torch.Generator) -> tuple[dict[str, torch.Tensor], tuple[int, int]]:
    rows, columns = unequal(generator)
    side = config.vision_config.patch_size * config.spatial_merge_size
    values = pad(pixels(generator, 1, 3, rows * side, columns * side), (0, (_LONGEST - columns) * side))
    return {"pixel_values": values, "image_sizes": torch.tensor([[rows * side, columns * side]])}, (rows, columns)


def _placed(config: Any, generator: torch.Generator, merged: int, pooled: int) -> Picture:
    rows, columns = unequal(generator)
    y, x = torch.meshgrid(torch.arange(rows * pooled), torch.arange(columns * pooled), indexing="ij")
    places = torch.stack([x, y], dim=-1).flatten(0, 1)
    values = pixels(generator, len(places), 3 * (config.vision_config.patch_size * merged) ** 2)
    padding = (0, 0, 0, rows * pooled**2 * _LONGEST - len(places))
    inputs = {"pixel_values": pad(values, padding)[None], "image_position_ids": pad(places, padding, value=-1)[None]}
    return Picture([config.boi_token_id, *[config.image_token_id] * (rows * columns), config.eoi_token_id], inputs)


_SHARING = {  # the last two layers read the keys and values of the first two; full layers have wider heads
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "per_layer_config": {layer: {"head_dim": 32} for layer in (1, 3)},
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "final_logit_softcapping": 30.0,
}
_TOWER = {
    "model_type": "gemma4_vision",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "patch_size": 4,
    "pooling_kernel_size": 2,
    "position_embedding_size": 16,
}
_EMBEDDER = {
    "model_type": "gemma4_unified_vision",
    "patch_size": 4,
    "pooling_kernel_size": 2,
    "mm_embed_dim": 64,
    "mm_posemb_size": 16,
    "output_proj_dims": 64,
}

ENTRIES: dict[str, Entry] = {
    "mistral3": Entry(picture=rows_of_tokens),
    "mistral_large4": Entry(
        {
            "text_config": {
                "num_key_value_heads": 4,
                "indexer_types": ["full", "full", "shared", "full"],
                "kv_source_layers": [0, 1, 1, 3],
            }
        },
        rows_of_tokens,
    ),
    "lighton_ocr": Entry(picture=one_run_of_tokens),
    "gemma4": Entry({"text_config": _SHARING, "vision_config": _TOWER}, patches_with_positions, types_of_tokens),
    "gemma4_unified": Entry(
        {
            "text_config": {"final_logit_softcapping": 30.0, "per_layer_config": {3: {"head_dim": 32}}},
            "vision_config": _EMBEDDER,
        },
        merged_patches_with_positions,
        types_of_tokens,
    ),
}
