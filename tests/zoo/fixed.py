"""Architectures whose images are all of one size and become a fixed number of tokens.

Not every image token depends on pixels: the ends of rows (emu3, unlimited_ocr) and of images (deepseek_ocr2,
unlimited_ocr) are constants at image ids, and two images may share some of their codes (chameleon, emu3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zoo.entry import Entry, Picture, pixels
from zoo.shrink import ORDINARY

START, END, LINE, WORD, BOS = 33, 34, 35, 5, 2  # what processors write around images
IMAGE = 150  # the image id where the default config has none
SIDE = 16  # pixels


def square(
    tokens: int = 16, side: int = SIDE, before: tuple[int, ...] = (), behind: tuple[int, ...] = ()
) -> Callable[[Any, torch.Generator], Picture]:
    """`side` x `side` pixels that become `tokens` image tokens, with the processor's ids `before` and `behind` them."""

    def picture(config: Any, generator: torch.Generator) -> Picture:
        ids = [*before, *[config.image_token_id] * tokens, *behind]
        return Picture(ids, {"pixel_values": pixels(generator, 1, 3, side, side)})

    return picture


def masked(config: Any, generator: torch.Generator) -> Picture:
    """An image padded to a common size, with the mask of its own pixels."""
    mask = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    mask[:, :, -4:] = False
    values = {"pixel_values": pixels(generator, 1, 3, SIDE, SIDE), "pixel_mask": mask}
    return Picture([config.image_token_id] * 8, values)


def nested(config: Any, generator: torch.Generator) -> Picture:
    """Pixels and their mask with an axis for the row and one for its images."""
    values = {
        "pixel_values": pixels(generator, 1, 1, 3, SIDE, SIDE),
        "pixel_attention_mask": torch.ones(1, 1, SIDE, SIDE, dtype=torch.long),
    }
    return Picture([START, *[config.image_token_id] * 8, START], values)


def twice(config: Any, generator: torch.Generator) -> Picture:
    """The image at a low and at a high resolution, for two towers."""
    values = {
        "pixel_values": pixels(generator, 1, 3, SIDE, SIDE),
        "high_res_pixel_values": pixels(generator, 1, 3, 2 * SIDE, 2 * SIDE),
    }
    return Picture([config.image_token_id] * 16, values)


def sized(config: Any, generator: torch.Generator) -> Picture:
    """Four rows of four codes, each closed by one more image token; the size in words comes first."""
    values = {"pixel_values": pixels(generator, 1, 3, SIDE, SIDE), "image_sizes": torch.tensor([[SIDE, SIDE]])}
    return Picture([START, WORD, WORD, LINE, *[config.image_token_id] * 4 * (4 + 1), LINE, END], values)


def patches(config: Any, generator: torch.Generator) -> Picture:
    """The pixels of every patch in a row, no axis for the image; each row of patches closed by an id of its own."""
    row = [*[config.image_token_id] * 4, LINE]
    return Picture([*row * 4, BOS], {"pixel_values": pixels(generator, 16, 3 * 4 * 4)})


def asked(config: Any, generator: torch.Generator) -> Picture:
    """An image that is read together with the prompt, which comes again in the ids of the Q-Former's tokenizer."""
    return _asked(config.image_token_id, pixels(generator, 1, 3, SIDE, SIDE), generator)


def asked_film(config: Any, generator: torch.Generator) -> Picture:
    """Two frames, each read together with the prompt."""
    return _asked(config.video_token_id, pixels(generator, 1, 2, 3, SIDE, SIDE), generator)


def _asked(token: int, values: Tensor, generator: torch.Generator) -> Picture:
    prompt = torch.randint(3, ORDINARY, (1, 5), generator=generator)
    more = {"qformer_input_ids": prompt, "qformer_attention_mask": torch.ones_like(prompt)}
    return Picture([token] * 8, {"pixel_values": values, **more})


def unnamed(config: Any, generator: torch.Generator) -> Picture:
    """Image tokens that are ids of ordinary text in a row: only a mask beside them tells where they are."""
    return Picture([START, *range(4, 12), END], {"pixel_values": pixels(generator, 1, 3, SIDE, SIDE)})


def located(config: Any, generator: torch.Generator) -> Picture:
    """Patches [image, patch, 2 + values] that begin with the numbers of their row and column."""
    places = torch.cartesian_prod(torch.arange(1, 5), torch.arange(1, 5))[None]
    values = torch.cat([places, pixels(generator, 1, 16, 48)], dim=-1)
    return Picture([START, *[BOS] * 8, END], {"flattened_patches": values})


def image_types(config: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Token types 1 on image tokens, which attend to one another in both directions."""
    return {**inputs, "token_type_ids": (inputs["input_ids"] == config.image_token_id).long()}


def prefix_types(config: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Token types 0: all is prompt, and its tokens attend to one another in both directions."""
    return {**inputs, "token_type_ids": torch.zeros_like(inputs["input_ids"])}


def between_marks(config: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The mask of what stands between the start and the end of an image."""
    ids = inputs["input_ids"]
    started, ended = (ids == START).cumsum(-1), (ids == END).cumsum(-1)
    return {**inputs, "image_embeds_position_mask": ((started > ended) & (ids != START)).long()}


def between_and_at_marks(config: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """As `between_marks`, with -1 at the marks."""
    mask = between_marks(config, inputs)["image_embeds_position_mask"]
    marks = torch.isin(inputs["input_ids"], torch.tensor([START, END]))
    return {**inputs, "image_embeds_position_mask": mask.masked_fill(marks, -1)}


def _codes(name: Callable[[int], str], **others: int) -> dict[str, int]:
    """The vocabulary of a model that turns an image into ids: 64 codes of the tower, and its own special ids."""
    return {**{name(code): 64 + code for code in range(64)}, **others}


_GEMMA3 = Entry(
    {
        "vision_config": {"image_size": 32},
        "mm_tokens_per_image": 16,
        "boi_token_index": START,
        "eoi_token_index": END,
    },
    square(16, 32, (LINE, START), (END, LINE)),
    image_types,
)
_SAM = {"image_size": 64, "window_size": 8, "global_attn_indexes": [1]}
_DEEPSEEK_SAM = {"sam_config": {**_SAM, "downsample_channels": [16, 64]}}
_MIXED = {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "num_experts_per_tok": 2}
_VQ = {"base_channels": 32, "channel_multiplier": [1, 1, 1], "num_res_blocks": 1}
_INTERN = {"vision_config": {"image_size": [32, 32], "patch_size": [4, 4]}, "image_seq_length": 16}
_LLAMA = {"model_type": "llama", "intermediate_size": 96, "num_key_value_heads": 2}

ENTRIES: dict[str, Entry] = {
    "aria": Entry({"projector_patch_to_query_dict": {16: 8}}, masked),
    "aya_vision": Entry({"vision_config": {"image_size": 32}}, square(16, 32, (START, LINE), (END,))),
    "blip-2": Entry({"image_token_index": IMAGE, "num_query_tokens": 8}, square(8)),
    "chameleon": Entry(
        {
            "vq_config": {**_VQ, "resolution": SIDE},
            "image_token_id": IMAGE,
            "vocabulary_map": _codes(
                lambda code: f"IMGIMG{chr(65 + code // 10)}{chr(65 + code % 10)}Z", **{"<image>": IMAGE}
            ),
        },
        square(16, before=(START,), behind=(END,)),
    ),
    "cohere2_vision": Entry({"vision_config": {"image_size": 32}}, square(16, 32, (START,), (LINE, END))),
    "deepseek_ocr2": Entry(
        {"text_config": {**_MIXED, "n_group": 1, "topk_group": 1}, "vision_config": _DEEPSEEK_SAM},
        square(144 + 1, 64),  # the number of queries stands in the code
    ),
    "deepseek_vl": Entry(picture=square()),
    "deepseek_vl_hybrid": Entry(
        {"high_res_vision_config": {"image_size": 32, "window_size": 4, "global_attn_indexes": [1]}}, twice
    ),
    "emu3": Entry(
        {
            "vq_config": {**_VQ, "hidden_size": 32, "embed_dim": 4},
            "image_token_id": IMAGE,
            "vocabulary_map": _codes(
                lambda code: f"<|visual token {code:06d}|>", **{"<image>": IMAGE, "<|extra_200|>": 151}
            ),
        },
        sized,
    ),
    "fuyu": Entry(picture=patches),
    "gemma3": _GEMMA3,
    "got_ocr2": Entry({"vision_config": _SAM}, square(16, 64, (START,), (END,))),
    "idefics2": Entry({"perceiver_config": {"resampler_n_latents": 8}}, nested),
    "instructblip": Entry({"image_token_index": IMAGE, "num_query_tokens": 8, "text_config": _LLAMA}, asked),
    "instructblipvideo": Entry({"video_token_index": IMAGE, "num_query_tokens": 4, "text_config": _LLAMA}, asked_film),
    "internvl": Entry(_INTERN, square(16, 32, (START,), (END,))),
    "janus": Entry({"vq_config": _VQ}, square(16, before=(START,), behind=(END,))),
    "kosmos-2": Entry({"latent_query_num": 8, "text_config": {"pad_token_id": 0}}, unnamed, between_marks),
    "kosmos-2.5": Entry(
        {"latent_query_num": 8, "text_config": {"pad_token_id": 0}, "vision_config": {"patch_embed_hidden_size": 48}},
        located,
        between_and_at_marks,
    ),
    "llama4": Entry(
        {
            # Queries grow with their absolute position every `floor_scale` tokens, so padding on the left tells.
            "text_config": {"moe_layers": [1, 3], "attention_chunk_size": 8, "floor_scale": 4},
            "vision_config": {"image_size": 32, "intermediate_size": 256},
            "boi_token_index": START,
            "eoi_token_index": END,
        },
        square(16, 32, (START, LINE), (END,)),
    ),
    "llava": Entry(picture=square()),
    "ovis2": Entry(
        {"visual_indicator_token_ids": [START, LINE, 36, 37, END]}, square(16, before=(START,), behind=(LINE, END))
    ),
    # As released since PaliGemma 2: capped logits, and layers with a sliding window (which a prefix overrules).
    "paligemma": Entry(
        {"text_config": {"model_type": "gemma2", "sliding_window": 8}}, square(behind=(BOS,)), prefix_types
    ),
    "pp_chart2table": Entry({"vision_config": _SAM}, square(16, 64, (START,), (END,))),
    "qianfan_ocr": Entry(_INTERN, square(16, 32, (START,), (END,))),
    "shieldgemma2": _GEMMA3,
    # Key-value heads as many as heads: fewer of them fail under eager attention.
    "unlimited_ocr": Entry(
        {"text_config": {**_MIXED, "num_key_value_heads": 4}, "vision_config": _DEEPSEEK_SAM},
        square(4 * (4 + 1) + 1, 64),
    ),
    "video_llava": Entry(picture=square()),
    "vipllava": Entry({"vision_feature_layers": [-1, -2, 0]}, square()),
}
