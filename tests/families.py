"""Tiny models that fit the processors of transformers themselves: from pictures and words to answers, offline.

`family("qwen2_vl")` is the model with its processor, `FAMILIES` are their names.
"""

from __future__ import annotations

import functools

import torch
from PIL import Image
from transformers import CONFIG_MAPPING

import interp
import processors
import zoo
from zoo.shrink import merge, shrink

# The tiny config is changed to fit the processor: its vocabulary, the ids of its tokens, and the size of its pictures.
_TOWER = {"vision_config": {"image_size": 16, "patch_size": 4}}
_GRID = {"vision_config": {"patch_size": 4, "spatial_merge_size": 2}}
_TILES = {**_TOWER, "image_grid_pinpoints": [[32, 32], [16, 32]]}
FAMILIES = {
    "llava": _TOWER,
    "llava_next": _TILES,
    "llava_onevision": {**_TILES, "vision_aspect_ratio": "anyres_max_9"},
    "qwen2_vl": _GRID,
    "qwen2_5_vl": _GRID,
    "glm4v": _GRID,
    "idefics3": {"vision_config": {"image_size": 32, "patch_size": 4}, "scale_factor": 2},
    "gemma3": {**_TOWER, "mm_tokens_per_image": 16},
    "internvl": {},
    "aya_vision": {**_TOWER, "downsample_factor": 1},
    "paligemma": _TOWER,
}
ONE_FOLDER = ("llava", "llava_next", "gemma3", "idefics3")  # the others' processors do not load without torchvision
MARKS = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "video_token_id": "<|video_pad|>",
}


def picture(width=40, height=28, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 256, (height, width, 3), generator=generator).byte().numpy())


@functools.cache
def model(name):
    tokenizer = processors.build(name).tokenizer
    token = tokenizer.convert_tokens_to_ids(processors.IMAGE_TOKENS[name])
    ids = {key: tokenizer.convert_tokens_to_ids(mark) for key, mark in MARKS.items()}
    changes = {"image_token_id": token, "image_token_index": token, "text_config": {"vocab_size": len(tokenizer)}}
    changes |= {key: found for key, found in ids.items() if found != tokenizer.unk_token_id}
    config = shrink(CONFIG_MAPPING[name], merge(merge(zoo.ENTRIES[name].changes, changes), FAMILIES[name]))
    return zoo.make(config)


@functools.cache
def family(name):
    return interp.load(model=model(name), processor=processors.build(name), device="cpu")
