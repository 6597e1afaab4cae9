"""Architectures that cut an image into tiles: a changing number of equal pieces, most with a small whole beside them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from zoo.entry import Entry, Picture, pixels
from zoo.packed import UNSET, text, types_of_tokens, unequal

_START, _END, _TILE, _TILE_END, _LINE = range(130, 135)  # what processors put around and between the tiles
_MOST = 5  # tiles that the largest image has, the whole among them
_TOKENS = 4  # image tokens of a tile: 2 x 2


def tiles_with_newlines(config: Any, generator: torch.Generator) -> Picture:
    """`pixel_values` [image, tile, 3, side, side] with `image_sizes`: the whole first, tiles of no image at the end.

    Tokens of the tiles form one grid, cut to the image's shape, with a learned feature at an image id behind each row.
    """
    size, tiles, (rows, columns) = _SHAPES[_few(generator) - 1]
    ids = [config.image_token_id] * (_TOKENS + rows * (columns + 1))
    return Picture(ids, {"pixel_values": _tiles(config, generator, 1 + tiles), "image_sizes": torch.tensor([size])})


_PINPOINTS = [[16, 16], [24, 8]]  # the sizes that images are brought to before they are cut into tiles of 8 x 8
_SHAPES = (((4, 16), 4, (2, 4)), ((24, 8), 3, (6, 2)))  # size of the image, its tiles, its rows and columns of tokens


def tiles_with_pixel_mask(config: Any, generator: torch.Generator) -> Picture:
    """`pixel_values` [row, tile, 3, side, side], the whole last; tiles of no image are zero, and so is their mask."""
    picture = tiles_with_tile_mask(config, generator)
    mask = picture.inputs["pixel_attention_mask"][..., None, None].expand(picture.inputs["pixel_values"][:, :, 0].shape)
    return Picture(picture.ids, {**picture.inputs, "pixel_attention_mask": mask.long()})


def tiles_with_tile_mask(config: Any, generator: torch.Generator) -> Picture:
    """As `tiles_with_pixel_mask`, the mask one value a tile."""
    tiles = 1 + _few(generator)
    tile = [_TILE, *[config.image_token_id] * _TOKENS]
    inputs = {
        "pixel_values": _tiles(config, generator, tiles + 1),
        "pixel_attention_mask": torch.arange(_MOST)[None] < tiles + 1,
    }
    return Picture([*tile * tiles, _LINE, *tile, _END], inputs)


def _tiles(config: Any, generator: torch.Generator, tiles: int) -> Tensor:
    side = config.vision_config.image_size
    return pad(pixels(generator, tiles, 3, side, side), (0, 0) * 3 + (0, _MOST - tiles))[None]


def tiles_with_shapes(config: Any, generator: torch.Generator) -> Picture:
    """Padded patches [tile, patch, value] of all images in a row, with `spatial_shapes`; the whole last and larger."""
    tiles, most = 1 + _few(generator), 24
    shapes = [(4, 4)] * tiles + [(4, 6)]
    patches = [pixels(generator, rows * columns, 3 * config.vision_config.patch_size**2) for rows, columns in shapes]
    inputs = {
        "pixel_values": torch.stack([pad(values, (0, 0, 0, most - len(values))) for values in patches]),
        "pixel_attention_mask": torch.stack([(torch.arange(most) < len(values)).long() for values in patches]),
        "spatial_shapes": torch.tensor(shapes),
    }
    tile = [_TILE, *[config.image_token_id] * _TOKENS]
    return Picture([_START, *tile * tiles, _TILE, *[config.image_token_id] * 6, _END], inputs)


def tiles_beside_whole(config: Any, generator: torch.Generator) -> Picture:
    """The whole in `pixel_values`, smaller tiles of all images in a row in `pixel_values_local`."""
    tiles = 1 + _few(generator)
    inputs = {
        "pixel_values": pixels(generator, 1, 3, 48, 48),
        "pixel_values_local": pixels(generator, tiles, 3, 32, 32),
        "num_local_patches": torch.tensor([tiles]),
    }
    tile = [_TILE, *[config.image_token_id] * _TOKENS, _TILE_END]
    return Picture([*tile * tiles, _LINE, _START, *[config.image_token_id] * 9, _END], inputs)


def strip_of_patches(config: Any, generator: torch.Generator) -> Picture:
    """Patches with `target_sizes`, the whole first; `joined_strip` puts those of all images on one axis."""
    tiles = 1 + _few(generator)
    merged = 2 if config.downsample_mode == "4x" else 4
    sizes = torch.tensor([(2, 4)] + [(2, 2)] * tiles) * merged
    side, image = config.vision_config.patch_size, config.image_token_id
    tile = [_TILE, *[image] * _TOKENS, _TILE_END]
    values = pixels(generator, int(sizes.prod(-1).sum()), 3, side, side)
    return Picture([_START, *[image] * 8, _END, *tile * tiles], {"pixel_values": values, "target_sizes": sizes})


def joined_strip(config: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """`pixel_values` as one image [1, 3, side, patches x side] for the whole encoding."""
    patch, channel, height, width = inputs["pixel_values"].shape
    strip = inputs["pixel_values"].permute(1, 2, 0, 3).reshape(1, channel, height, patch * width)
    return {**inputs, "pixel_values": strip}


def joined_strip_with_types(config: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """As `joined_strip`, with `mm_token_type_ids`."""
    return types_of_tokens(config, joined_strip(config, inputs))


def crops_with_pooling(config: Any, generator: torch.Generator) -> Picture:
    """Patches [crop, patch, value] of all images in a row, and which of an image's patches each token pools."""
    crops = 1 + _few(generator)
    whole, parts = torch.arange(16).view(1, 4, 4), 16 + torch.arange(16 * crops).view(crops, 4, 4)
    inputs = {
        "pixel_values": pixels(generator, 1 + crops, 16, 3 * config.vision_config.patch_size**2),
        "image_token_pooling": torch.cat([_pooled(whole), _pooled(parts)]),
        "image_grids": torch.tensor([[2, 2, 2, 2 * crops]]),
        "image_num_crops": torch.tensor([1 + crops]),
    }
    start, low, end = config.image_start_token_id, config.low_res_image_start_token_id, config.image_end_token_id
    lines = [[*[config.image_token_id] * columns, _LINE] * 2 for columns in (2, 2 * crops)]
    return Picture([low, *lines[0], end, start, *lines[1], end], inputs)


def _pooled(crops: Tensor) -> Tensor:
    """The four patches of each 2 x 2 square, of crops that lie side by side."""
    plane = crops.transpose(0, 1).flatten(1)
    return plane.unfold(0, 2, 2).unfold(1, 2, 2).flatten(2).flatten(0, 1)


def pooled_in_batch(config: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Counts patches through all images, and marks everything of an image, its start, ends of line and end too."""
    grids, crops = inputs["image_grids"], inputs["image_num_crops"]
    before = 16 * (crops.cumsum(0) - crops)
    tokens = grids[:, 0] * grids[:, 1] + grids[:, 2] * grids[:, 3]
    pooling = inputs["image_token_pooling"] + before.repeat_interleave(tokens)[:, None]
    marks = (config.image_start_token_id, config.low_res_image_start_token_id, config.image_end_token_id, _LINE)
    visual = torch.isin(inputs["input_ids"], torch.tensor([config.image_token_id, *marks])).long()
    return {**inputs, "image_token_pooling": pooling, "mm_token_type_ids": visual}


def one_image_a_row(config: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """`batch_num_images`: an image is cut into tiles only where it is alone in its row."""
    return {**inputs, "batch_num_images": torch.ones(len(inputs["input_ids"]), dtype=torch.long)}


def _few(generator: torch.Generator) -> int:
    """One or two, drawn so that the images of an encoding differ."""
    return min(unequal(generator)[1] - 2, 2)


_ANYRES = {"image_grid_pinpoints": _PINPOINTS, "vision_config": {"image_size": 8}}
_GRANITE = {
    "embedding_multiplier": 12.0,
    "logits_scaling": 4.0,
    "residual_multiplier": 0.25,
    "attention_multiplier": 0.1,
}
_SLICED = {**text(2, 1, 1, rotated=0.5), "image_token_id": UNSET, "insert_layer_id": 0}
_CANVAS = {
    "image_start_id": _START,
    "image_end_id": _END,
    "slice_start_id": _TILE,
    "slice_end_id": _TILE_END,
    "newline_id": _LINE,
}

ENTRIES: dict[str, Entry] = {
    "llava_next": Entry(_ANYRES, tiles_with_newlines),
    "llava_next_video": Entry(_ANYRES, tiles_with_newlines),
    "llava_onevision": Entry(_ANYRES, tiles_with_newlines, one_image_a_row),
    "granite4_vision": Entry(
        {
            "text_config": {**_GRANITE, "num_hidden_layers": 7},
            "vision_config": {"image_size": 8, "patch_size": 2},
            "image_grid_pinpoints": _PINPOINTS,
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[-1, 0], [-2, 1]],
            "spatial_target_layers": [2, 3, 4, 5],
        },
        tiles_with_newlines,
    ),
    "idefics3": Entry(picture=tiles_with_pixel_mask),
    "smolvlm": Entry(picture=tiles_with_pixel_mask),
    "granite_docling": Entry(
        {"vision_config": {"scale_factor": 2, "deepstack_visual_indexes": [0, 1]}}, tiles_with_tile_mask
    ),
    "lfm2_vl": Entry({"text_config": {"layer_types": ["conv", "full_attention"] * 2}}, tiles_with_shapes),
    "minicpm_ocr": Entry(_SLICED, strip_of_patches, joined_strip),
    "minicpmv4_6": Entry(_SLICED, strip_of_patches, joined_strip),
    "minicpmv4_7": Entry({**_SLICED, **_CANVAS}, strip_of_patches, joined_strip_with_types),
    "molmo2": Entry(
        {
            "vision_config": {"image_size": [16, 16], "num_position_embeddings": 16},
            "adapter_config": {"vision_feature_layer": [1, 0]},
            "text_config": {"vocab_size": 152, "additional_vocab_size": 8},
        },
        crops_with_pooling,
        pooled_in_batch,
    ),
    "step3p7": Entry(
        {
            "vision_config": {"image_size": 32},
            "text_config": {
                "layer_types": ["full_attention", "sliding_attention"] * 2,
                "mlp_layer_types": ["dense", "dense", "sparse", "sparse"],
                "per_layer_config": {layer: {"num_attention_heads": 2} for layer in (1, 3)},
                "sliding_window": 8,
                "query_pre_attn_scalar": 16,
                "swiglu_limits": [0.0, 0.0, 0.0, 1.0],
                "swiglu_limits_shared": [0.0, 0.0, 0.0, 1.0],
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                },
            },
        },
        tiles_beside_whole,
    ),
}
