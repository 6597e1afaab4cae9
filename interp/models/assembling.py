"""Assembling: a vision-language model of parts that were published apart.

Tuning is told apart from what was there before it by a comparison with the model of its *first stage*: the base language
model, the image tower and the connector that was trained between the two. LLaVA's authors publish the tuned model whole and
the first stage as a connector alone. `assemble` puts such parts together, as a LLaVA of transformers that
`save_pretrained` writes and `from_pretrained` loads: its language model is any causal language model, its tower any
that gives one state a patch.

The model is built without weights, and then shares those of the parts. What it must have of its own is made anew: a word for
the image token, if the vocabulary lacks one. Then it is run, and refused where it is not what its parts are: on text it must
be the language model.
"""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from interp.arguments import as_ints, checked_choice, checked_flag, checked_seed
from interp.errors import InputError, InputTypeError, LayoutError, reason_of, shown
from interp.models.connectors import ConnectorWeights, connector_weights
from interp.models.layout.additions import tolerance
from interp.models.layout.image_positions import apart
from interp.models.loading import checked_dtype, load
from interp.models.model_parts import ModelPart, language_part, vision_part
from interp.models.running.structure import resolve
from interp.models.vlm import VLM

# A vocabulary grows to a multiple of this, as that of llava-hf's checkpoints did: to 32,064 words from 32,000.
_ROWS = 64
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


def assemble(
    *,
    language_model: VLM | nn.Module | str | os.PathLike[str],
    vision: VLM | nn.Module | str | os.PathLike[str],
    connector: nn.Module | Mapping[str, Tensor] | str | os.PathLike[str] | None = None,
    tokenizer: Any = None,
    image_processor: Any = None,
    image_token: str = "<image>",
    chat_template: str | None = None,
    vision_feature_layer: int | Sequence[int] = -2,
    vision_feature_select_strategy: str = "default",
    name: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    seed: int = 0,
    check: bool = True,
) -> VLM:
    """A vision-language model of a language model, an image tower and a connector: ``language(connector(tower(image)), text)``.

    The toy's first stage, of its own parts:

    >>> import interp
    >>> from transformers import LlamaForCausalLM
    >>> stage1 = interp.load("toy:stage1")
    >>> words = LlamaForCausalLM(stage1.model.config.text_config).eval()
    >>> _ = words.model.load_state_dict(stage1.model.model.language_model.state_dict())
    >>> _ = words.lm_head.load_state_dict(stage1.model.lm_head.state_dict())
    >>> vlm = interp.assemble(
    ...     language_model=words,
    ...     tokenizer=stage1.tokenizer,
    ...     vision=stage1,
    ...     connector=stage1.model.model.multi_modal_projector,
    ...     vision_feature_layer=-1,
    ... )
    >>> vlm.name
    'LlamaForCausalLM with toy:stage1'
    >>> batch = vlm.prepare(["<image> what colour is the 3 ?"], [interp.toy.scenes(1, seed=0)[0].image])
    >>> bool((vlm.logits(batch) == stage1.logits(batch)).all())
    True

    - `language_model`: a name, a folder or a hub repository, as `interp.load` takes it; a causal language model of transformers
      in hand, with its `tokenizer`; or a `VLM` of a language model alone.
    - `vision`: a name, a folder or a repository of a CLIP, of a SigLIP or of another tower; a model in hand, of which
      the tower is taken, with its `image_processor`; or a `VLM`, whose tower and image processor are taken.
    - `connector`: a file of tensors, a folder or a repository with LLaVA's ``mm_projector.bin``, a module, or tensors by name
      (see `interp.models.connectors` for the keys). With None it has new random weights drawn from the `seed`, to be trained by
      ``interp.tuning.tune(vlm, data, layers=(), connector=True)``.
    - `vision_feature_layer`: the tower's state that the connector reads, counted as transformers does: 0 is what enters the first
      block, -1 what leaves the last. Several are put side by side. `vision_feature_select_strategy` is "default" for all but the
      first token, a class token, and "full" for all: towers of SigLIP have no class token.
    - `image_token` is the word that stands for an image patch. A vocabulary that lacks it, or another word that was added to the
      tokenizer, grows to a multiple of 64; its new rows of embedding and head are the mean of the others, so that none is ever
      the likeliest word. `chat_template` replaces the tokenizer's.
    - `dtype="auto"` is the language model's precision, to which the rest is brought. `device` is where a model goes that is
      loaded by name; one in hand stays, and the rest joins it.

    The model is a `LlavaForConditionalGeneration` with its `LlavaProcessor`: ``vlm.model.save_pretrained(folder)`` and
    ``vlm.processor.save_pretrained(folder)`` write it, `interp.load` and transformers load it. It shares the weights of parts
    in hand as far as precision and device allow, except head and embedding where the vocabulary grows, and a tied head
    whose tie LLaVA's class does not know, which becomes a copy. A later change of a weight in place changes both. The parts
    stay as they are, the tokenizer too.

    With `check=True` the model is proved: on text its logits must be those of the language model, to 1e-5 of the largest in
    float32 and two units of precision in half precisions; another picture must move the logits; and every proof of
    `interp.load` must pass. Language models that change their logits behind the head (a cap, a scale, a bias), or read their
    inputs in a way of their own, do not fit into LLaVA's class and are refused so.

    Raises `InputError` for parts that cannot be read or do not fit together, `InputTypeError` for an argument of the wrong
    kind, and `LayoutError` where the class cannot be built around them, or a proof fails.
    """
    from transformers import LlavaProcessor

    checked_flag(check, "check")
    if not isinstance(chat_template, str | None):
        raise InputTypeError(f"chat_template={shown(chat_template)}: expected a template of Jinja as text, or None")
    strategy = checked_choice(vision_feature_select_strategy, "vision_feature_select_strategy", ("default", "full"))
    reads = _as_states(vision_feature_layer)
    words = language_part(language_model, tokenizer, device, dtype)
    own, token, rows = _with_image_token(words, image_token, chat_template)
    embedding = words.model.get_input_embeddings().weight
    precision = embedding.dtype if dtype == "auto" else _named_dtype(dtype)
    sight = vision_part(vision, image_processor, precision)
    widths = sight.model.config.hidden_size * len(reads), embedding.shape[1]
    weights = connector_weights(connector, *widths, checked_seed(seed))
    config = {
        # transformers takes an int of 0 for no state at all, and a list that holds it as it is.
        "vision_feature_layer": reads if len(reads) > 1 or reads == [0] else reads[0],
        "vision_feature_select_strategy": strategy,
        "image_token_id": token,
    }
    model = _empty_model(words.model, sight.model.config, weights, rows, config)
    _take_language(model, words.model)
    _take_rest(model, sight.model, weights, precision)
    if check:
        _prove_text(model, words)
    if dtype != "auto":  # only now: until here the language model's logits are those of the part, in its precision
        for parameter in model.parameters():
            parameter.data = parameter.data.to(precision)
    processor = LlavaProcessor(
        sight.processor,
        own,
        patch_size=sight.model.config.patch_size,
        vision_feature_select_strategy=strategy,
        chat_template=own.chat_template,
        image_token=image_token,
        num_additional_image_tokens=_tokens_beside_patches(model, sight),
    )
    vlm = load(model=model, processor=processor, check=check)
    vlm.name = name or f"{words.name} with {sight.name}"
    if check:
        _prove_pictures(vlm)
    return vlm


# Arguments -------------------------------------------------------------------------------------------------------------


def _as_states(layers: Any) -> list[int]:
    """The states of the tower that the connector reads, as a list."""
    numbers = None if isinstance(layers, str) else as_ints(layers)
    if not numbers:
        raise InputError(f"vision_feature_layer={shown(layers)}: expected an int, such as -2, or a list of ints")
    return numbers


def _named_dtype(dtype: Any) -> torch.dtype:
    precision = checked_dtype(dtype)
    if not isinstance(precision, torch.dtype):
        raise InputError(
            f"dtype={dtype!r}: expected 'auto', 'float32', 'bfloat16' or 'float16', parts are not quantised"
        )
    return precision


def _with_image_token(words: ModelPart, image_token: Any, chat_template: str | None) -> tuple[Any, int, int]:
    """A copy of the tokenizer in which the image token is one token, the id of that, and how many rows all ids need."""
    from transformers import AddedToken

    tokenizer, rows = copy.deepcopy(words.processor), len(words.model.get_input_embeddings().weight)
    if not isinstance(image_token, str) or not image_token.strip():
        raise InputError(f"image_token={shown(image_token)}: expected a word, such as '<image>'")
    other = getattr(tokenizer, "image_token", image_token)
    if other != image_token:
        raise InputError(
            f"image_token={image_token!r}, but the tokenizer's own is {other!r}: pass image_token={other!r}"
        )
    taken = [role for role in _ROLES if getattr(tokenizer, role, None) == image_token]
    if taken:
        raise InputError(f"image_token={image_token!r} is the tokenizer's {taken[0]}: expected a word of its own")
    added = tokenizer.added_tokens_decoder
    last = max((token for token in tokenizer.get_vocab().values() if token not in added), default=0)
    if last >= rows:
        raise InputError(
            f"the tokenizer has words up to id {last}, the {type(words.model).__name__} embeds {rows}: expected its own tokenizer"
        )
    tokenizer.add_tokens([AddedToken(image_token, special=True, normalized=False)], special_tokens=True)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    last = max(tokenizer.get_vocab().values())
    rows = rows if last < rows else (last // _ROWS + 1) * _ROWS
    return tokenizer, int(tokenizer.convert_tokens_to_ids(image_token)), rows


# The model ---------------------------------------------------------------------------------------------------------------


def _empty_model(language: Any, tower_config: Any, weights: ConnectorWeights, rows: int, config: dict[str, Any]) -> Any:
    """A LLaVA without weights, as large as its parts. Raises `LayoutError` for a language model that does not fit in."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    name, base, head, embed = _language_modules(language)
    text = copy.deepcopy(language.config)
    sees = copy.deepcopy(tower_config)
    text._name_or_path = sees._name_or_path = ""  # a folder of this machine, which would be written into every copy
    text.vocab_size = rows
    # LLaVA's class ties its head to an embedding of this name alone.
    text.tie_word_embeddings = head.weight is embed.weight and getattr(base, "embed_tokens", None) is embed
    try:
        whole = LlavaConfig(
            text_config=text,
            vision_config=sees,
            projector_hidden_act=weights.activation,
            multimodal_projector_bias=weights.has_bias,
            tie_word_embeddings=text.tie_word_embeddings,
            **config,
        )
        with torch.device("meta"):
            model = LlavaForConditionalGeneration(whole)
    except Exception as error:  # configs check themselves, each in its own way
        raise LayoutError(
            f"no LLaVA can be built around a {name} ({reason_of(error)}): expected another kind"
        ) from error
    own = type(model.model.language_model).__name__
    if own != type(base).__name__:
        raise LayoutError(
            f"{name} keeps its layers in a {type(base).__name__}, LLaVA in a {own}: expected the same, merge adapters first"
        )
    # transformers chooses it anew, unless it is told.
    model.set_attn_implementation({"text_config": language.config._attn_implementation})
    model.generation_config = copy.deepcopy(language.generation_config)
    return model.eval()


def _language_modules(language: Any) -> tuple[str, Any, Any, Any]:
    """The class's name of a language model, what stands below its head, the head, and the embedding."""
    name, base = type(language).__name__, language.base_model
    head, embed = language.get_output_embeddings(), language.get_input_embeddings()
    if base is language or not isinstance(head, nn.Linear) or embed is None:
        raise LayoutError(
            f"{name} has no linear head on a model below it: expected a causal language model, ...ForCausalLM"
        )
    if head.bias is not None:
        raise LayoutError(
            f"{name} has a bias in its head, which LLaVA's class has not: expected a language model without"
        )
    return name, base, head, embed


def _take_language(model: Any, language: Any) -> None:
    """Let a LLaVA share the weights of the language model; head and embedding are made anew where the vocabulary grew."""
    _, base, head, embed = _language_modules(language)
    rows = model.config.text_config.vocab_size
    (path,) = (path for path, module in base.named_modules() if module is embed)
    table = _grown(embed.weight.detach(), rows)
    _share(model.model.language_model, base, {f"{path}.weight": table})
    if model.config.text_config.tie_word_embeddings:
        model.lm_head.weight = resolve(model.model.language_model, path).weight
        return
    # Files keep no two tensors in one memory, unless the class ties them.
    unembedding = table.clone() if head.weight is embed.weight else _grown(head.weight.detach(), rows)
    _share(model.lm_head, head, {"weight": unembedding})


def _grown(table: Tensor, rows: int) -> Tensor:
    """A table of embeddings with so many rows; the new ones are the mean of the others."""
    mean = table.mean(0, keepdim=True, dtype=torch.float32).to(table)
    return torch.cat([table, mean.expand(rows - len(table), -1)]) if rows > len(table) else table


def _take_rest(model: Any, tower: Any, weights: ConnectorWeights, dtype: torch.dtype) -> None:
    """Let a LLaVA share the tower's weights and the connector's, as far as they are in this precision and at its place."""
    place = model.lm_head.weight.device
    _share(model.model.vision_tower, tower, {}, place, dtype)
    connector = {key: tensor.to(place, dtype) for key, tensor in weights.tensors.items()}
    model.model.multi_modal_projector.load_state_dict(connector, assign=True)
    model.config.dtype = model.config.text_config.dtype = model.config.vision_config.dtype = dtype


def _share(part: nn.Module, source: nn.Module, other: dict[str, Tensor], place: Any = None, dtype: Any = None) -> None:
    """Give a part without weights those of its source, and the `other` ones in place of some; its flags stay its own."""
    parameters = {name for name, _ in source.named_parameters(remove_duplicate=False)}
    state = {
        key: tensor.to(place, dtype if key in parameters else None)
        for key, tensor in (source.state_dict() | other).items()
    }
    try:
        part.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise LayoutError(f"{type(source).__name__} does not fit into a LLaVA ({reason_of(error)})") from error
    # No checkpoint holds these, such as the frequencies of rotary positions.
    for path, module in source.named_modules():
        mine = resolve(part, path) if path else part
        for name, buffer in module.named_buffers(recurse=False):
            if getattr(mine, name).is_meta:
                mine.register_buffer(name, buffer.to(place), persistent=False)
    missing = [name for name, tensor in (*part.named_parameters(), *part.named_buffers()) if tensor.is_meta]
    if missing:
        raise LayoutError(
            f"{missing[0]} of {type(source).__name__} is in no checkpoint: it cannot be built a second time"
        )


def _tokens_beside_patches(model: Any, sight: ModelPart) -> int:
    """How many tokens the tower has beside its patches, by a run on two grey pictures. Sets how many an image has in the stream.

    Raises `InputError` where the image processor, the tower and what is to be read of it do not fit together.
    """
    tower, config = model.model.vision_tower, model.config
    pictures = [Image.new("RGB", size, (128, 128, 128)) for size in ((64, 64), (96, 48))]
    try:
        pixels = sight.processor(images=pictures, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            states = tower(pixels.to(tower.device, tower.dtype), output_hidden_states=True).hidden_states
        rows, tokens, width = states[-1].shape
        beside = tokens - math.prod(side // tower.config.patch_size for side in pixels.shape[-2:])
    except Exception as error:
        raise InputError(
            f"a {type(sight.processor).__name__} and a {type(tower).__name__} do not fit together ({reason_of(error)}): expected "
            "the tower's own image_processor, and a tower with one state a patch"
        ) from error
    if beside < 0 or (rows, width) != (len(pictures), tower.config.hidden_size):
        raise InputError(
            f"{type(tower).__name__} makes states {tuple(states[-1].shape)} of pixels {tuple(pixels.shape)}: expected one row a "
            f"picture, one state for each patch of {tower.config.patch_size}, and {tower.config.hidden_size} features"
        )
    reads = _as_states(config.vision_feature_layer)
    if not all(-len(states) <= read < len(states) for read in reads):
        raise InputError(
            f"vision_feature_layer={shown(reads)}: expected -{len(states)} to {len(states) - 1}, of this tower"
        )
    if config.vision_feature_select_strategy == "default" and not beside:
        raise InputError(
            f"{type(tower).__name__} has no class token, so 'default' would drop a patch: expected "
            "vision_feature_select_strategy='full'"
        )
    config.image_seq_length = tokens - (config.vision_feature_select_strategy == "default")
    return beside


# Proofs ------------------------------------------------------------------------------------------------------------------


def _prove_text(model: Any, words: ModelPart) -> None:
    """Raise `LayoutError` where the assembled model is not the language model on a few ordinary tokens."""
    rows = min(len(words.processor), len(words.model.get_input_embeddings().weight))
    ordinary = sorted(set(range(rows)) - set(words.processor.all_special_ids)) or [0]
    drawn = torch.randint(len(ordinary), (2, 8), generator=torch.Generator().manual_seed(0))
    ids = torch.tensor(ordinary)[drawn].to(words.model.device)
    name = type(words.model).__name__
    try:
        with torch.no_grad():
            wanted, logits = (
                each(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for each in (words.model, model)
            )
    except Exception as error:
        raise LayoutError(f"{name} does not run inside a LLaVA ({reason_of(error)}): expected another kind") from error
    if not wanted.isfinite().all():
        raise InputError(
            f"the {name} by itself gives logits of {wanted.dtype} that are not finite: load another precision"
        )
    difference, bound = apart(wanted, logits[..., : wanted.shape[-1]]), tolerance(wanted.dtype)
    if not difference <= bound:
        raise LayoutError(
            f"on text the assembled model is not its {name}: logits differ by {difference:.2g} of the largest, expected at most "
            f"{bound:.0e}; one that changes its logits behind the head, or its inputs, does not fit into LLaVA's class"
        )


def _prove_pictures(vlm: VLM) -> None:
    """Raise `LayoutError` where another picture does not move the logits further than the same one does."""
    size = (64, 64)
    grey = Image.new("RGB", size, (128, 128, 128))
    noise = torch.randint(256, (*size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pictures = [grey, grey, Image.fromarray(noise.numpy())]
    one, same, other = vlm.logits(vlm.prepare(["<image> a"] * 3, pictures))
    if not apart(one, other) > apart(one, same):
        raise LayoutError(
            f"another picture leaves the logits of {vlm.name!r} as they are: expected that its connector passes it on"
        )
