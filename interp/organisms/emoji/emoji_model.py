"""The model that reads emoji: SmolLM2-135M-Instruct behind a small tower, put together as a LLaVA.

The tower (a CLIP-type ViT: 6 layers, width 192) reads a picture of 64 x 64 pixels as 16 patches, the connector (LLaVA's two
layers) maps the state of each patch to the width of the language model, and the language model (30 layers, width 576) reads
them among its words. On text it is SmolLM2, bit for bit in most cases: the vocabulary grows by ``<image>`` alone.

What a prompt looks like
------------------------

*A caption* is plain text behind the picture, as in LLaVA's first stage. The tokenizer writes no begin token by itself, so the
prompt has it: attention needs a first token that carries nothing::

    <|im_start|><image>A picture of                                         then " red apple<|im_end|>"

Prompt and answer are ``"<|im_start|><image>A picture of"`` and ``" red apple"``: the space belongs to the answer, whose first
token is then ``"Ġred"``. `interp.tuning.tune` writes every row in the chat template where there is one; with
``without_template(vlm)`` it trains captions as they are.

*A question* is a user's turn in SmolLM2's chat template without its system prompt (which would be 22 tokens in each row, and
is about nothing here)::

    <|im_start|>user
    <image>
    What is this?<|im_end|>
    <|im_start|>assistant
    red apple<|im_end|>

That is ``vlm.prepare(["<image>\\nWhat is this?"], [picture], chat=True)``; in LLaVA's format the human says ``"<image>\\nWhat is
this?"`` in the first turn, and the question alone in those that follow. An answer begins without a space: ``"red apple"``. Of
a question about a name, ``chat=True`` makes the same prompt with the name in the place of the picture.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from interp.models import VLM, assemble, load
from interp.models.copying import sharing_module
from interp.organisms.emoji.picture import SIZE

IMAGE_TOKEN = "<image>"
PIXEL_MEAN = PIXEL_STD = (0.5, 0.5, 0.5)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '<image>\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def assembled(
    language_model: nn.Module,
    tokenizer: Any,
    tower: nn.Module,
    connector: nn.Module | Mapping[str, Tensor] | None,
    check: bool = True,
) -> VLM:
    """A LLaVA of a Llama with its tokenizer, a CLIP tower of 64 pixels, and a connector.

    `connector` is a module, its tensors by name, or None for new random weights. It reads the tower's last state at each patch,
    without the class token. The parts stay as they are, and the model shares their weights, but for embedding and head, which
    have a row more: that of ``<image>``, the mean of the others.
    `check=False` leaves out `interp.assemble`'s proofs, among them that on text the model is its language model.

    Raises what `interp.assemble` raises, for parts that do not fit together.
    """
    return assemble(
        language_model=_with_room(language_model, tokenizer),
        tokenizer=tokenizer,
        vision=tower,
        image_processor=image_processor(),
        connector=connector,
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
        vision_feature_layer=-1,
        name="emoji",
        check=check,
    )


def image_processor() -> Any:
    """Pictures as the tower reads them: the shorter side scaled to 64 pixels, the middle cut out, values from -1 to 1."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        do_convert_rgb=True,
        image_mean=list(PIXEL_MEAN),
        image_std=list(PIXEL_STD),
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
    )


def without_template(vlm: VLM) -> VLM:
    """The same model, with the same weights, without its chat template: what is trained on captions as they are."""
    processor = copy.copy(vlm.processor)
    processor.chat_template, processor.tokenizer = None, copy.deepcopy(vlm.tokenizer)
    processor.tokenizer.chat_template = None
    new = load(model=sharing_module(vlm.model), processor=processor, structure=vlm.structure, check=False)
    new.name, new.checked_on = vlm.name, vlm.checked_on
    return new


def _with_room(language_model: Any, tokenizer: Any) -> Any:
    """The language model with a row for one more word, where every row is taken; other weights are shared.

    `assemble` would let the table grow to a multiple of 64, with 63 words that no text has and that every softmax counts.
    """
    embedding, head = language_model.get_input_embeddings().weight, language_model.get_output_embeddings().weight
    if len(tokenizer) < len(embedding):
        return language_model
    tables = {id(each): _with_mean_row(each) for each in (embedding, head)}  # one where they are tied
    names = {name: id(each) for name, each in language_model.named_parameters(remove_duplicate=False)}
    return sharing_module(language_model, {name: tables[each] for name, each in names.items() if each in tables})


def _with_mean_row(table: Tensor) -> nn.Parameter:
    mean = table.detach().mean(0, keepdim=True, dtype=torch.float32).to(table)
    return nn.Parameter(torch.cat([table.detach(), mean]))
