"""Finding the parts of a model by what they are, not by what they are called.

transformers gives every model the same accessors: its decoder, its input and output embeddings, its image encoder,
the id of its image token. A language model alone has no image encoder and no image token. The other parts are found by
their form: a list of layers as deep as the config says, a norm beside it as wide as the stream, a child of a layer with one
of the names of attention. A part is written down as its dotted path. Nothing depends on a model's name; the tables here hold
the names of *parts*.

The result is only a claim: `interp.models.layout.checks` proves it by effect when the model is loaded. A part that is found
wrongly can be passed: ``load(..., structure={"norm": "model.norm"})``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from interp.errors import LayoutError
from interp.models.running.masks import PATTERNED
from interp.models.running.structure import Structure, check_layers, checked_structure

_ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention", "linear_attn", "conv", "mixer")
_MLP_NAMES = ("mlp", "feed_forward", "ffn", "moe", "block_sparse_moe", "fc2", "mixer")
_PROJECTOR_WORDS = (
    *("projector", "projection", "connector", "aligner"),
    *("merger", "resampler", "embed_vision", "vision_embed"),
)
# How positions see each other, by a word in the class of a layer's mixer or in the config's list of layer kinds; the
# first word that occurs decides.
_MIXERS = {"conv": "convolution", "delta": "linear", "mamba": "linear", "linear": "linear"}
_KINDS = {**_MIXERS, "sliding": "sliding", "chunk": "chunked"}
# The names of one field in different configs, and the beginnings of the names of inputs that carry images.
_IMAGE_TOKEN = ("image_token_id", "image_token_index", "image_patch_id")
_WIDTHS = ("hidden_size", "embed_dim", "width", "d_model")
_IMAGE_INPUTS = ("pixel_values", "image_patches", "flattened_patches")
# Advice for a model that is refused.
_STILL = "nnsight.NNsight(model) still traces it, interp.geometry and interp.probes take its states as arrays"


def find_structure(model: Any, given: Structure | Mapping[str, Any] | None = None) -> Structure:
    """Find the parts of a transformers model in hand.

    >>> import interp
    >>> interp.models.find_structure(interp.load("toy").model).norm
    'model.language_model.norm'

    Parts `given` by field name are taken as they are, and so is a whole `Structure`, except for its measured traits, which
    are measured again. Raises `LayoutError` with the name of a part that is missing, or with the reason why the model is
    no decoder with a language head whose images, if it takes any, are in its stream; `InputError` for a given part that
    the model does not have.
    """
    own = checked_structure(model, given)
    _refuse_other_kinds(model)
    config = model.config.get_text_config(decoder=True)
    _require(model, config, own, {"n_layers": "num_hidden_layers", "d_model": "hidden_size"})
    depth = own["n_layers"] if "n_layers" in own else int(config.num_hidden_layers)
    width = own["d_model"] if "d_model" in own else int(config.hidden_size)
    parts = _find_parts(model, own, depth, width)
    layers, head, embed = parts["layers"], parts["head"], parts["embed"]
    paths = {id(module): path for path, module in model.named_modules()}
    heads = own.get("heads") or _counts(config, "num_attention_heads", depth, own.get("n_heads"))
    attn = own.get("attn") or tuple(_find_part(layer, _ATTENTION_NAMES, _is_mlp) for layer in layers)
    attention = own.get("attention") or _kinds_of_attention(config, layers, attn)
    if set(attention) & set(PATTERNED):
        _require(model, config, own, {"n_heads": "num_attention_heads"})
    fields = {
        **{field: paths.get(id(module)) for field, module in parts.items()},
        "image_token_id": _first_int(model.config, _IMAGE_TOKEN),
        "n_layers": depth,
        "d_model": width,
        "n_heads": max(heads),
        "n_kv_heads": max(_counts(config, "num_key_value_heads", depth)) or max(heads),
        "d_vision": _first_int(getattr(model.config, "vision_config", None), _WIDTHS),
        "vocab_size": int(getattr(head, "out_features", None) or getattr(config, "vocab_size", embed.num_embeddings)),
        "heads": heads,
        "attn": attn,
        "mlp": tuple(_find_part(layer, _MLP_NAMES, _is_mixer) for layer in layers),
        "attention": attention,
    }
    return Structure(**{**fields, **own})


def _find_parts(model: Any, own: Mapping[str, Any], depth: int, width: int) -> dict[str, Any]:
    """The modules of the parts, by their field of `Structure`; None for a part that the model may lack."""
    name, modules = type(model).__name__, {id(module) for module in model.modules()}

    def part(field: str, find: Callable[[], Any]) -> Any:
        if field not in own:
            return find()
        return None if own[field] is None else model.get_submodule(own[field])

    layers = part("layers", lambda: _find_layers(model.get_decoder(), depth))
    if layers is None:
        decoder = type(model.get_decoder()).__name__
        raise LayoutError(f"{name}: its decoder {decoder} has no list of {depth} layers, expected one")
    check_layers(layers, depth, own)
    norm = part("norm", lambda: _find_norm(model, layers, width))
    if norm is None:
        raise LayoutError(
            f"{name}: no final norm of width {width} stands beside the decoder's layers, expected one; {_STILL}"
        )
    with_images = own.get("image_token_id") is not None or takes_images(model)
    vision = part("vision", lambda: _find_vision(model, layers) if with_images else None)
    embed = part("embed", model.get_input_embeddings)
    head = part("head", lambda: _find_head(model, vision, embed, width))
    for what, module in (("output embeddings (the unembedding)", head), ("input embeddings", embed)):
        if module is None or id(module) not in modules:
            raise LayoutError(
                f"{name} gives no {what}: expected a model for image-text-to-text or text-generation with a language head"
            )
    if not with_images and _first_int(model.config, _IMAGE_TOKEN) is not None:
        raise LayoutError(
            f"{name} takes no image, but its config names an image token, expected a vision-language model or a language "
            f"model without one; {_STILL}"
        )
    blocks = part("blocks", lambda: _find_blocks(vision))
    projector = part("projector", lambda: _find_projector(model, (layers, blocks), vision) if with_images else None)
    parts = {"layers": layers, "norm": norm, "head": head, "embed": embed, "vision": vision, "blocks": blocks}
    return {**parts, "projector": projector}


def takes_images(model: Any) -> bool:
    """Whether the forward pass of the model, or of a part of it, takes images."""
    kinds = {type(module) for module in model.modules()}
    return any(name.startswith(_IMAGE_INPUTS) for kind in kinds for name in inspect.signature(kind.forward).parameters)


# Models of another kind --------------------------------------------------------------------------------------------------


def _refuse_other_kinds(model: Any) -> None:
    """Raise for a model that is not a decoder of text, or whose images are never tokens in its stream."""
    name = type(model).__name__
    text_config = model.config.get_text_config(decoder=True)
    if any(getattr(c, "is_encoder_decoder", False) for c in (model.config, text_config)):
        raise LayoutError(
            f"{name} is an encoder-decoder, so not all of its tokens are in one stream, expected a decoder; {_STILL}"
        )
    if not takes_images(model) and not getattr(model, "can_generate", lambda: True)():
        raise LayoutError(f"{name} generates no text, expected a causal language model or a VLM; {_STILL}")
    # A resampler between tower and decoder may have cross-attention of its own.
    decoder = model.get_decoder()
    for path, module in (model if decoder is None else decoder).named_modules():
        last = path.rpartition(".")[2]
        if "cross" in last and "att" in last and next(module.parameters(), None) is not None:
            raise LayoutError(
                f"{name}: another stream enters by cross-attention ({path}), expected all tokens in the decoder's stream; "
                f"{_STILL}"
            )


def _require(model: Any, config: Any, own: Mapping[str, Any], fields: Mapping[str, str]) -> None:
    """Raise `LayoutError` for a field that neither the language model's config nor the user has."""
    for field, name in fields.items():
        if field not in own and not any(_by_layer(config, name, depth=1)):
            raise LayoutError(
                f"{type(model).__name__}: its {type(config).__name__} does not say {name}, expected a language model's "
                f"config; pass structure= with {field}"
            )


# The parts ---------------------------------------------------------------------------------------------------------------


def _find_layers(decoder: nn.Module, depth: int) -> nn.ModuleList | None:
    """The outermost list of `depth` modules: breadth first, so that lists inside a layer come last."""
    return next((layers for layers in _lists(decoder) if len(layers) == depth), None)


def _lists(root: nn.Module) -> Iterator[nn.ModuleList]:
    """The module lists under a module, outermost first."""
    level: list[nn.Module] = [root]
    while level:
        yield from (module for module in level if isinstance(module, nn.ModuleList))
        level = [child for module in level for child in module.children()]


def _find_norm(model: nn.Module, layers: nn.Module, width: int) -> nn.Module | None:
    """The last module beside the layers that has one weight vector as wide as the stream, or else is a norm without weights."""
    owner = next(module for module in model.modules() if any(child is layers for child in module.children()))
    beside = [child for child in owner.children() if child is not layers]
    norms = [child for child in beside if tuple(getattr(getattr(child, "weight", None), "shape", ())) == (width,)]
    # A norm may have no weights at all.
    plain = [child for child in beside if "norm" in type(child).__name__.lower() and not list(child.parameters())]
    candidates = norms or plain
    return candidates[-1] if candidates else None


def _find_head(model: Any, vision: nn.Module | None, embed: nn.Module, width: int) -> nn.Module | None:
    """The model's own output embeddings, else the last linear map outside the tower as large as the embedding."""
    head = model.get_output_embeddings()
    if head is not None or embed is None:
        return head
    inside = {id(module) for module in vision.modules()} if vision is not None else set()
    shape = (embed.num_embeddings, width)
    maps = [module for module in model.modules() if isinstance(module, nn.Linear) and id(module) not in inside]
    return next((module for module in reversed(maps) if tuple(module.weight.shape) == shape), None)


def _find_vision(model: Any, layers: nn.Module) -> nn.Module | None:
    """The image encoder, unless the accessor returns the model itself."""
    try:
        vision = model.get_encoder(modality="image")
    except (AttributeError, TypeError, ValueError):
        return None
    if not isinstance(vision, nn.Module) or any(module is layers for module in vision.modules()):
        return None
    return vision


def _find_blocks(vision: nn.Module | None) -> nn.Module | None:
    """The tower's longest list of modules that are not projectors, the outermost of equal ones."""
    if vision is None:
        return None
    paths = {id(module): path for path, module in vision.named_modules()}
    return max((each for each in _lists(vision) if not _is_projector(paths[id(each)])), key=len, default=None)


def _find_projector(
    model: nn.Module, lists: tuple[nn.Module | None, ...], vision: nn.Module | None
) -> nn.Module | None:
    """The outermost module with the name of a projector, outside the tower if there is one, and never in a layer of the
    decoder or a block of the tower."""
    within = {id(module) for modules in lists if modules is not None for module in modules.modules()}
    tower = {id(module) for module in vision.modules()} if vision is not None else set()
    candidates: list[tuple[bool, int, int, nn.Module]] = []
    for path, module in model.named_modules():
        last = path.rpartition(".")[2]
        if id(module) in within or module is vision or not _is_projector(last):
            continue
        if not isinstance(module, nn.ModuleList) and next(module.parameters(), None) is not None:
            candidates.append((id(module) in tower, path.count("."), len(last), module))
    return min(candidates, key=lambda item: item[:3])[3] if candidates else None


def _is_projector(name: str) -> bool:
    return any(word in name for word in _PROJECTOR_WORDS)


def _find_part(layer: nn.Module, names: tuple[str, ...], is_other: Any) -> str | None:
    """The child of a layer with the first of these names, unless its class is that of the other part."""
    children = dict(layer.named_children())
    return next((name for name in names if name in children and not is_other(children[name])), None)


def _is_mixer(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return any(word in name for word in (*_MIXERS, "attention")) and not isinstance(module, nn.Linear)


def _is_mlp(module: nn.Module) -> bool:
    return not _is_mixer(module)


def _kinds_of_attention(config: Any, layers: Any, attn: tuple[str | None, ...]) -> tuple[str, ...]:
    declared = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None)
    if not declared:
        declared = ["sliding" if window else "full" for window in _by_layer(config, "sliding_window", len(layers))]
    kinds = []
    for layer, part, kind in zip(layers, attn, declared, strict=False):
        mixer = "" if part is None else type(getattr(layer, part)).__name__.lower()
        words = [value for word, value in _MIXERS.items() if word in mixer]
        words += [value for word, value in _KINDS.items() if word in str(kind)]
        kinds.append("none" if part is None else words[0] if words else "softmax")
    return tuple(kinds)


def _by_layer(config: Any, name: str, depth: int) -> list[Any]:
    """A field of the config for each layer: one for all or, where layers differ, one for each."""
    if getattr(config, "is_heterogeneous", False):
        return [getattr(layer, name, None) for layer in config.per_layer_config]
    return [getattr(config, name, None)] * depth


def _counts(config: Any, name: str, depth: int, own: int | None = None) -> tuple[int, ...]:
    """A number of heads for each layer, 0 where the config has none."""
    counts = _by_layer(config, name, depth) if own is None else [own] * depth
    return tuple(int(count or 0) for count in counts)


def _first_int(config: Any, names: tuple[str, ...]) -> int | None:
    values = [getattr(config, name, None) for name in names]
    return next((int(value) for value in values if isinstance(value, int)), None)
