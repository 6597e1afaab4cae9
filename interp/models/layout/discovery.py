"""Finding the parts of a vision-language model, whatever it is called.

transformers gives every model the same accessors: its decoder, its input and output embeddings, its image encoder,
the id of its image token. The rest is found from what a part *is*: a list of layers as deep as the config says, a norm
as wide as the stream that stands beside it, a child of a layer that is called what attention is called. It is written
down as dotted paths. Nothing is decided by a model's name; the tables here hold the names of *parts*.

What is found here is only a claim: `interp.models.layout.checks` proves it by effect when the model is loaded. What is found
wrongly can be given: ``load(..., structure={"norm": "model.norm"})``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from interp.errors import LayoutError
from interp.models.running.structure import Structure, check_layers, checked_structure

_ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention", "linear_attn", "conv", "mixer")
_MLP_NAMES = ("mlp", "feed_forward", "ffn", "moe", "block_sparse_moe", "fc2", "mixer")
_PROJECTOR_WORDS = (
    "projector",
    "projection",
    "connector",
    "aligner",
    "merger",
    "resampler",
    "embed_vision",
    "vision_embed",
)
# What the class of a layer's mixer, or the entry of the config's list of layer kinds, says about how positions see
# each other; the first word that occurs decides.
_MIXERS = {"conv": "convolution", "delta": "linear", "mamba": "linear", "linear": "linear"}
_KINDS = {**_MIXERS, "sliding": "sliding", "chunk": "chunked"}
# The names under which configs keep one thing, and with which the inputs that carry images begin.
_IMAGE_TOKEN = ("image_token_id", "image_token_index", "image_patch_id")
_WIDTHS = ("hidden_size", "embed_dim", "width", "d_model")
_IMAGE_INPUTS = ("pixel_values", "image_patches", "flattened_patches")
# What can be done with a model that is refused.
_STILL = "nnsight.NNsight(model) still traces it, interp.geometry and interp.probes take its states as arrays"


def find_structure(model: Any, given: Structure | Mapping[str, Any] | None = None) -> Structure:
    """Find the parts of a transformers model in hand; what is `given` by field name is taken as it is.

    Of a whole `Structure` everything is taken but the measured traits, which are measured again.

    Raises `LayoutError` naming the part that is not there, or why the model's images are not in a decoder's stream;
    `InputError` for a given part that the model does not have.
    """
    given = checked_structure(model, given)
    _refuse_other_kinds(model)
    config = _text_config(model, given)
    depth = given["n_layers"] if "n_layers" in given else int(config.num_hidden_layers)
    width = given["d_model"] if "d_model" in given else int(config.hidden_size)
    name = type(model).__name__
    paths = {id(module): path for path, module in model.named_modules()}

    def part(field: str, find: Callable[[], Any]) -> Any:
        if field not in given:
            return find()
        return None if given[field] is None else model.get_submodule(given[field])

    layers = part("layers", lambda: _find_layers(model.get_decoder(), depth))
    if layers is None:
        decoder = type(model.get_decoder()).__name__
        raise LayoutError(f"{name}: its decoder {decoder} has no list of {depth} layers, expected one")
    check_layers(layers, depth, given)
    norm = part("norm", lambda: _find_norm(model, layers, width))
    if norm is None:
        raise LayoutError(
            f"{name}: no final norm of width {width} stands beside the decoder's layers, expected one; {_STILL}"
        )
    vision = part("vision", lambda: _find_vision(model, layers))
    embed = part("embed", model.get_input_embeddings)
    head = part("head", lambda: _find_head(model, vision, embed, width))
    for what, module in (("output embeddings (the unembedding)", head), ("input embeddings", embed)):
        if module is None or id(module) not in paths:
            raise LayoutError(f"{name} gives no {what}: expected a model for image-text-to-text with a language head")
    if given.get("image_token_id") is None and not takes_images(model):
        raise LayoutError(
            f"{name} takes no image: no image tokens are in its stream, expected a vision-language model; {_STILL}"
        )
    blocks = part("blocks", lambda: _find_blocks(vision))
    heads = given.get("heads") or _counts(config, "num_attention_heads", depth, given.get("n_heads"))
    attn = given.get("attn") or tuple(_find_part(layer, _ATTENTION_NAMES, _is_mlp) for layer in layers)
    found = {
        "layers": paths[id(layers)],
        "norm": paths[id(norm)],
        "head": paths[id(head)],
        "embed": paths[id(embed)],
        "vision": paths.get(id(vision)),
        "blocks": paths.get(id(blocks)),
        "projector": paths.get(id(part("projector", lambda: _find_projector(model, (layers, blocks), vision)))),
        "image_token_id": _first_of(model.config, _IMAGE_TOKEN),
        "n_layers": depth,
        "d_model": width,
        "n_heads": max(heads),
        "n_kv_heads": max(_counts(config, "num_key_value_heads", depth)) or max(heads),
        "d_vision": _first_of(getattr(model.config, "vision_config", None), _WIDTHS),
        "vocab_size": int(getattr(head, "out_features", None) or getattr(config, "vocab_size", embed.num_embeddings)),
        "heads": heads,
        "attn": attn,
        "mlp": tuple(_find_part(layer, _MLP_NAMES, _is_mixer) for layer in layers),
        "attention": _kinds_of_attention(config, layers, attn),
    }
    return Structure(**{**found, **given})


def takes_images(model: Any) -> bool:
    """Whether images are among the inputs of the model's forward pass, or of a part that it may hand them to."""
    kinds = {type(module) for module in model.modules()}
    return any(name.startswith(_IMAGE_INPUTS) for kind in kinds for name in inspect.signature(kind.forward).parameters)


# Refusals that rest on what a model is -----------------------------------------------------------------------------------


def _refuse_other_kinds(model: Any) -> None:
    """Raise for a model whose images are never tokens in the stream of one decoder."""
    name = type(model).__name__
    text_config = model.config.get_text_config(decoder=True)
    if any(getattr(c, "is_encoder_decoder", False) for c in (model.config, text_config)):
        raise LayoutError(
            f"{name} is an encoder-decoder: its image tokens are not in one decoder stream, expected a decoder; {_STILL}"
        )
    crossing = next(_cross_attentions(model), None)
    if crossing is not None:
        raise LayoutError(
            f"{name}: the image enters by cross-attention ({crossing}), expected image tokens in the decoder's stream; "
            f"{_STILL}"
        )


def _cross_attentions(model: Any) -> Iterator[str]:
    """Cross-attention inside the decoder; a resampler between tower and decoder may have its own."""
    decoder = model.get_decoder()
    for path, module in (decoder if decoder is not None else model).named_modules():
        last = path.rpartition(".")[2]
        if "cross" in last and "att" in last and next(module.parameters(), None) is not None:
            yield path


def _text_config(model: Any, given: Mapping[str, Any]) -> Any:
    """The language model's config; what it does not say must be given."""
    config = model.config.get_text_config(decoder=True)
    for field, name in (
        ("n_layers", "num_hidden_layers"),
        ("d_model", "hidden_size"),
        ("n_heads", "num_attention_heads"),
    ):
        if field not in given and not any(_by_layer(config, name, depth=1)):
            raise LayoutError(
                f"{type(model).__name__}: its {type(config).__name__} does not say {name}, expected a language model's "
                f"config; pass structure= with {field}"
            )
    return config


# The parts ---------------------------------------------------------------------------------------------------------------


def _find_layers(decoder: nn.Module, depth: int) -> nn.ModuleList | None:
    """The outermost list of `depth` modules: breadth first, so that lists inside a layer come last."""
    return next((found for found in _lists(decoder) if len(found) == depth), None)


def _lists(root: nn.Module) -> Iterator[nn.ModuleList]:
    """The module lists under a module, outermost first."""
    level: list[nn.Module] = [root]
    while level:
        yield from (module for module in level if isinstance(module, nn.ModuleList))
        level = [child for module in level for child in module.children()]


def _find_norm(model: nn.Module, layers: nn.Module, width: int) -> nn.Module | None:
    """The last module beside the layers that has one weight vector as wide as the stream."""
    owner = next(module for module in model.modules() if any(child is layers for child in module.children()))
    beside = [child for child in owner.children() if child is not layers]
    norms = [child for child in beside if tuple(getattr(getattr(child, "weight", None), "shape", ())) == (width,)]
    return norms[-1] if norms else None


def _find_head(model: Any, vision: nn.Module | None, embed: nn.Module, width: int) -> nn.Module | None:
    """What the model gives as its output embeddings, else the last map outside the tower as large as the embedding."""
    head = model.get_output_embeddings()
    if head is not None or embed is None:
        return head
    inside = {id(module) for module in vision.modules()} if vision is not None else set()
    shape = (embed.num_embeddings, width)
    maps = [module for module in model.modules() if isinstance(module, nn.Linear) and id(module) not in inside]
    return next((module for module in reversed(maps) if tuple(module.weight.shape) == shape), None)


def _find_vision(model: Any, layers: nn.Module) -> nn.Module | None:
    """The image encoder, unless what the accessor gives is the model itself."""
    try:
        vision = model.get_encoder(modality="image")
    except (AttributeError, TypeError, ValueError):
        return None
    if not isinstance(vision, nn.Module) or any(module is layers for module in vision.modules()):
        return None
    return vision


def _find_blocks(vision: nn.Module | None) -> nn.Module | None:
    """The tower's longest list of modules that are no projectors, the outermost of equal ones."""
    if vision is None:
        return None
    named = {id(module): path for path, module in vision.named_modules()}
    lists = [found for found in _lists(vision) if not _is_called(named[id(found)], _PROJECTOR_WORDS)]
    return max(lists, key=len, default=None)


def _find_projector(
    model: nn.Module, lists: tuple[nn.Module | None, ...], vision: nn.Module | None
) -> nn.Module | None:
    """The outermost module that is called what projectors are called, outside the tower if there is one, and never in a
    layer of the decoder or a block of the tower."""
    within = {id(module) for found in lists if found is not None for module in found.modules()}
    tower = {id(module) for module in vision.modules()} if vision is not None else set()
    candidates: list[tuple[bool, int, int, nn.Module]] = []
    for path, module in model.named_modules():
        last = path.rpartition(".")[2]
        if id(module) in within or module is vision or not _is_called(last, _PROJECTOR_WORDS):
            continue
        if not isinstance(module, nn.ModuleList) and next(module.parameters(), None) is not None:
            candidates.append((id(module) in tower, path.count("."), len(last), module))
    return min(candidates, key=lambda item: item[:3])[3] if candidates else None


def _is_called(name: str, words: tuple[str, ...]) -> bool:
    return any(word in name for word in words)


def _find_part(layer: nn.Module, names: tuple[str, ...], is_other: Any) -> str | None:
    """The child of a layer that bears the first of these names, unless its class says that it is the other part."""
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
        if part is None:
            kinds.append("none")
            continue
        mixer = type(getattr(layer, part)).__name__.lower()
        words = [value for word, value in _MIXERS.items() if word in mixer]
        words += [value for word, value in _KINDS.items() if word in str(kind)]
        kinds.append(words[0] if words else "softmax")
    return tuple(kinds)


def _by_layer(config: Any, name: str, depth: int) -> list[Any]:
    """A field of the config for each layer; a config may keep one for all or, where layers differ, one for each."""
    if getattr(config, "is_heterogeneous", False):
        return [getattr(layer, name, None) for layer in config.per_layer_config]
    return [getattr(config, name, None)] * depth


def _counts(config: Any, name: str, depth: int, given: int | None = None) -> tuple[int, ...]:
    """A number of heads for each layer, 0 where the config says none."""
    counts = _by_layer(config, name, depth) if given is None else [given] * depth
    return tuple(int(count or 0) for count in counts)


def _first_of(config: Any, names: tuple[str, ...]) -> int | None:
    values = [getattr(config, name, None) for name in names]
    return next((int(value) for value in values if isinstance(value, int)), None)
