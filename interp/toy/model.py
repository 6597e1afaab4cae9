"""The toy's architecture: a LLaVA of 2 million parameters, built from transformers' own classes.

A CLIP-type tower (4 layers, width 96) reads 36 patches; LLaVA's two-layer connector takes them to width 128; a
Llama-type decoder (8 layers, 4 heads) reads them among its words. Nothing here is ours but the sizes, so whatever
works on the toy works through the real code of transformers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from interp.toy.language import IMAGE_TOKEN, SPECIAL, VOCABULARY, build_tokenizer
from interp.toy.scenes import PATCH, PATCHES, SIZE

PIXEL_MEAN = PIXEL_STD = (0.5, 0.5, 0.5)
MAX_POSITIONS = 512


def language_config() -> LlamaConfig:
    """The decoder's sizes and the ids of its special tokens."""
    ids = {name: VOCABULARY.index(token) for name, token in SPECIAL.items()}
    return LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False,
        initializer_range=0.06,  # the usual 0.02 suits widths near a thousand
        bos_token_id=ids["bos_token"],
        eos_token_id=ids["eos_token"],
        pad_token_id=ids["pad_token"],
    )


def vision_config() -> CLIPVisionConfig:
    """The tower's sizes."""
    return CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=96,
    )


def build_language_model() -> LlamaForCausalLM:
    """The decoder alone, freshly initialised."""
    return LlamaForCausalLM(language_config())


def build_tower() -> CLIPVisionModel:
    """The vision tower alone, freshly initialised."""
    return CLIPVisionModel(vision_config())


def build_vlm(language: LlamaForCausalLM, tower: CLIPVisionModel) -> LlavaForConditionalGeneration:
    """A LLaVA that holds these weights and a freshly initialised connector."""
    config = LlavaConfig(
        text_config=language_config(),
        vision_config=vision_config(),
        image_token_id=VOCABULARY.index(IMAGE_TOKEN),
        image_seq_length=PATCHES**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    vlm = LlavaForConditionalGeneration(config)
    vlm.model.language_model.load_state_dict(language.model.state_dict())
    vlm.lm_head.load_state_dict(language.lm_head.state_dict())
    vlm.model.vision_tower.load_state_dict(tower.state_dict())
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(vlm.generation_config, key, getattr(config.text_config, key))
    return vlm


def build_processor():
    """LLaVA's own processor around the toy's tokenizer: a picture of another size is scaled and cropped to a scene's."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil(
        do_convert_rgb=True,
        image_mean=list(PIXEL_MEAN),
        image_std=list(PIXEL_STD),
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=1,
    )


def save(vlm: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write weights (bf16, safetensors), config and processor. The config says float32: loading widens them again."""
    stored = {name: tensor.to(torch.bfloat16) for name, tensor in vlm.state_dict().items()}
    vlm.config.dtype = torch.float32
    vlm.save_pretrained(folder, state_dict=stored)
    (folder / "model.safetensors").chmod(0o644)  # it is written for its owner alone, but ships to everyone
    build_processor().save_pretrained(folder)
