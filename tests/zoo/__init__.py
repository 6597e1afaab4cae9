"""A tiny random model of every image-text-to-text architecture of transformers, and an encoding with images for each.

`build(name)` is the model, made from its real config class and built once; `encode(name)` two rows of different length,
padded on the left, with an image in each. `TEXTS` are some language models alone, whose rows are text. Weights are drawn at
unit gain, so that every part has a visible effect.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from zoo import fixed, odd, packed, padded, texts, tiled
from zoo.entry import Entry, Picture
from zoo.shrink import ORDINARY, shrink

NAMES: dict[str, str] = dict(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
TEXTS: dict[str, str] = {name: str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name]) for name in texts.ENTRIES}
ENTRIES: dict[str, Entry] = {
    **fixed.ENTRIES,
    **tiled.ENTRIES,
    **packed.ENTRIES,
    **padded.ENTRIES,
    **odd.ENTRIES,
    **texts.ENTRIES,
}
PADDING = 0
_ROWS = ((3, 6), (2, 4))  # text tokens before and behind the image of each row


@functools.cache
def build(name: str) -> Any:
    """The tiny model of an architecture, in eval mode. Raises what transformers raises where it cannot be built."""
    config = shrink(CONFIG_MAPPING[name], ENTRIES.get(name, Entry()).changes)
    return make(config)


def make(config: Any) -> Any:
    """A model of this config with its weights drawn: unit gain, and no norm or gate that is 1 or 0 everywhere."""
    torch.manual_seed(0)
    of_texts = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    kinds = MODEL_FOR_CAUSAL_LM_MAPPING if of_texts else MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    model = kinds[type(config)](config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1 / math.sqrt(parameter[0].numel()))
            else:  # or a readout that leaves a norm out would go unseen
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def encode(name: str, rows: tuple[tuple[int, int], ...] = _ROWS, side: str = "left") -> dict[str, Tensor]:
    """An encoding of rows with an image each, between `before` and `behind` ordinary tokens, padded on `side`.

    Rows for a language model alone, which has no entry for a picture, are these tokens without an image.
    """
    entry, config = ENTRIES[name], build(name).config
    generator = torch.Generator().manual_seed(0)
    ids: list[list[int]] = []
    parts: list[dict[str, Tensor]] = []
    for before, behind in rows:
        picture = entry.picture(config, generator) if entry.picture else Picture([], {})
        text = torch.randint(3, ORDINARY, (before + behind,), generator=generator).tolist()
        ids.append([*text[:before], *picture.ids, *text[before:]])
        parts.append(picture.inputs)
    inputs = {**pad(ids, side), **{key: torch.cat([part[key] for part in parts]) for key in parts[0]}}
    return entry.finish(config, inputs)


def pad(rows: list[list[int]], side: str = "left") -> dict[str, Tensor]:
    """Ids of different length as `input_ids` and `attention_mask`."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), PADDING)
    mask = torch.zeros_like(ids)
    for row, values in enumerate(rows):
        place = slice(longest - len(values), None) if side == "left" else slice(0, len(values))
        ids[row, place] = torch.tensor(values)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}
