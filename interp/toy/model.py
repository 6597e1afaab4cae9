"""The toy's architecture: a LLaVA of 2 million parameters, built from transformers' own classes.

A CLIP-type tower (4 layers, width 96) reads 36 patches, LLaVA's two-layer connector maps them to width 128, and a
Llama-type decoder (8 layers, 4 heads) reads them together with the words. Only the sizes are ours: the toy runs the real
code of transformers.
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

from interp.files import whole_file
from interp.toy.language import IDS, IMAGE_TOKEN, SPECIAL, build_tokenizer
from interp.toy.scenes import PATCH, PATCHES, SIZE

PIXEL_MEAN = PIXEL_STD = (0.5, 0.5, 0.5)
MAX_POSITIONS = 512


def language_config() -> LlamaConfig:
    """The sizes of the decoder and the ids of its special tokens."""
    ids = {name: IDS[token] for name, token in SPECIAL.items()}
    return LlamaConfig(
        vocab_size=len(IDS),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False,
        initializer_range=0.06,  # the usual 0.02 is meant for widths near a thousand
        bos_token_id=ids["bos_token"],
        eos_token_id=ids["eos_token"],
        pad_token_id=ids["pad_token"],
    )


def vision_config() -> CLIPVisionConfig:
    """The sizes of the image tower."""
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
    """A decoder with new random weights."""
    return LlamaForCausalLM(language_config())


def build_tower() -> CLIPVisionModel:
    """An image tower with new random weights."""
    return CLIPVisionModel(vision_config())


def build_vlm(language: LlamaForCausalLM, tower: CLIPVisionModel) -> LlavaForConditionalGeneration:
    """A LLaVA with the weights of this decoder and this tower, and a connector with new random weights."""
    config = LlavaConfig(
        text_config=language_config(),
        vision_config=vision_config(),
        image_token_id=IDS[IMAGE_TOKEN],
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
    """LLaVA's processor with the toy's tokenizer. Pictures are scaled and cropped to the size of a scene."""
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
    """Write weights (bf16, safetensors), config and processor. The config says float32, so loading converts the weights."""
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in vlm.state_dict().items()}
    vlm.config.dtype = torch.float32
    vlm.save_pretrained(folder, state_dict=weights)
    for file in folder.glob("*.safetensors"):  # their writer makes them for one user alone
        with whole_file(file) as shared:
            file.replace(shared)
    build_processor().save_pretrained(folder)
