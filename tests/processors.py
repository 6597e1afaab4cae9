"""Real processors of transformers at toy size, built offline: each with its own image processor and a byte-level tokenizer.

`build("qwen2_vl")` is the processor, `PROCESSORS` their names, `IMAGE_TOKENS` the string each writes for one image
token of the stream. Patches have 4 pixels, and pictures of 16 to 64 pixels make a handful of tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import transformers

PATCH = 4
_SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
CHAT = (
    "{% for message in messages %}<bos>{{ message['role'] }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE_TOKEN{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def build_tokenizer(*extra: str, **named: str) -> Any:
    """Bytes as tokens, ``<bos>`` first, the `extra` and `named` special tokens whole: what is written can be counted."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*_SPECIAL.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, [], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        **_SPECIAL,
        extra_special_tokens={**named, **{f"extra_{index}_token": token for index, token in enumerate(extra)}},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def clip_images(crop: bool = True, size: int = 16) -> Any:
    """CLIP's image processor: the shorter side to `size`, the middle cut out; without `crop` squeezed into a square."""
    square = {"height": size, "width": size}
    return _images("CLIP")(
        size={"shortest_edge": size} if crop else square, do_center_crop=crop, crop_size=square, do_convert_rgb=True
    )


def _images(family: str) -> Any:
    """The image processor that works on Pillow's pictures, wherever this version of transformers keeps it."""
    return getattr(transformers, f"{family}ImageProcessorPil", None) or getattr(transformers, f"{family}ImageProcessor")


def _without(cls: type) -> type:
    """The processor class, satisfied with None for video and sound: processors of video need torchvision."""

    class Without(cls):  # type: ignore[misc, valid-type]
        def check_argument_for_proper_class(self, argument_name, argument):
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

        def save_pretrained(self, save_directory, **kwargs):
            """Without the parts that are missing, which transformers would ask for their settings."""
            here = [name for name in cls.get_attributes() if getattr(self, name) is not None]
            type(self).get_attributes = staticmethod(lambda: here)
            try:
                return super().save_pretrained(save_directory, **kwargs)
            finally:
                del type(self).get_attributes

    return Without


class BreakProcessor(transformers.ProcessorMixin):
    """Pixtral's way of writing an image: a break behind each row of patches, an end behind the last.

    Its own class asks for torchvision when it is made; the image processor below it is the real one.
    """

    image_token = "[IMG]"

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.image_token_id = tokenizer.convert_tokens_to_ids("[IMG]")
        self.side = image_processor.patch_size["height"]

    def replace_image_token(self, image_inputs, image_idx, **kwargs):
        height, width = (int(size) // self.side for size in image_inputs["image_sizes"][image_idx])
        return "[IMG_BREAK]".join(["[IMG]" * width] * height) + "[IMG_END]"


def llava(images: Any = None) -> Any:
    images = images or clip_images()
    return transformers.LlavaProcessor(
        images, build_tokenizer("<image>"), patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=CHAT.replace("IMAGE_TOKEN", "<image>"),
    )  # fmt: skip


def llava_padded() -> Any:
    """LLaVA's own image processor, which pads the picture to a square before it is resized."""
    images = _images("Llava")(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, do_pad=True)
    return llava(images)


def llava_next() -> Any:
    images = _images("LlavaNext")(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=[[32, 32], [16, 32]]
    )
    return transformers.LlavaNextProcessor(
        images, build_tokenizer("<image>"), patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip


def llava_onevision() -> Any:
    images = _images("LlavaOnevision")(size={"height": 16, "width": 16}, image_grid_pinpoints=[[32, 32], [16, 32]])
    return _without(transformers.LlavaOnevisionProcessor)(
        images, build_tokenizer("<image>", "<video>"), None, num_image_tokens=16, vision_feature_select_strategy="full"
    )


def _grid(name: str, image: str, family: str = "Qwen2VL") -> Any:
    images = _images(family)(
        patch_size=PATCH, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 256, "longest_edge": 4096}
    )
    tokenizer = build_tokenizer(image, "<|video_pad|>", "<|video|>", "<|vision_start|>", "<|vision_end|>")
    chat = CHAT.replace("IMAGE_TOKEN", f"<|vision_start|>{image}<|vision_end|>")
    return _without(getattr(transformers, f"{name}Processor"))(images, tokenizer, None, chat_template=chat)


def pixtral() -> Any:
    images = _images("Pixtral")(size={"longest_edge": 32}, patch_size={"height": PATCH, "width": PATCH})
    return BreakProcessor(images, build_tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]"))


def idefics3(split: bool = True) -> Any:
    images = _images("Idefics3")(
        do_image_splitting=split, size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    return transformers.Idefics3Processor(
        images, build_tokenizer("<image>", "<fake_token_around_image>", "<global-img>"), image_seq_len=16
    )


def gemma3() -> Any:
    images = _images("Gemma3")(size={"height": 16, "width": 16})
    tokenizer = build_tokenizer(image_token="<soft>", boi_token="<boi>", eoi_token="<eoi>")
    return transformers.Gemma3Processor(images, tokenizer, image_seq_length=16)


def gemma4() -> Any:
    images = _images("Gemma4")(patch_size=PATCH, max_soft_tokens=70, pooling_kernel_size=2)
    tokenizer = build_tokenizer(
        image_token="<soft>", boi_token="<boi>", eoi_token="<eoi>", audio_token="<audio>", boa_token="<boa>",
        eoa_token="<eoa>", video_token="<video>",
    )  # fmt: skip
    return _without(transformers.Gemma4Processor)(None, images, tokenizer, None)


def blip_2() -> Any:
    """Puts its eight image tokens before the text by itself, and keeps its token in a form that is no string."""
    images = _images("Blip")(size={"height": 16, "width": 16})
    return transformers.Blip2Processor(images, build_tokenizer(), num_query_tokens=8)


def paligemma() -> Any:
    images = _images("Siglip")(size={"height": 16, "width": 16})
    images.image_seq_length = 16
    return transformers.PaliGemmaProcessor(images, build_tokenizer("<image>"))


def internvl() -> Any:
    images = _images("GotOcr2")(size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=1, max_patches=4)
    tokenizer = build_tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<ctx>", video_token="<video>"
    )
    return _without(transformers.InternVLProcessor)(images, tokenizer, None, image_seq_length=4)


def aya_vision() -> Any:
    images = _images("GotOcr2")(size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=1, max_patches=4)
    tokenizer = build_tokenizer("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>")
    return transformers.AyaVisionProcessor(images, tokenizer, patch_size=PATCH, img_size=16)


_BUILDERS: dict[str, tuple[Callable[[], Any], str]] = {
    "llava": (llava, "<image>"),
    "llava_padded": (llava_padded, "<image>"),
    "llava_next": (llava_next, "<image>"),
    "llava_onevision": (llava_onevision, "<image>"),
    "qwen2_vl": (lambda: _grid("Qwen2VL", "<|image_pad|>"), "<|image_pad|>"),
    "qwen2_5_vl": (lambda: _grid("Qwen2_5_VL", "<|image_pad|>"), "<|image_pad|>"),
    "glm4v": (lambda: _grid("Glm4v", "<|image|>", "Glm4v"), "<|image|>"),
    "pixtral": (pixtral, "[IMG]"),
    "idefics3": (idefics3, "<image>"),
    "gemma3": (gemma3, "<soft>"),
    "gemma4": (gemma4, "<soft>"),
    "paligemma": (paligemma, "<image>"),
    "internvl": (internvl, "<ctx>"),
    "aya_vision": (aya_vision, "<|IMG_PATCH|>"),
}
PROCESSORS = tuple(_BUILDERS)
IMAGE_TOKENS = {name: token for name, (_, token) in _BUILDERS.items()}


@functools.cache
def build(name: str) -> Any:
    return _BUILDERS[name][0]()
