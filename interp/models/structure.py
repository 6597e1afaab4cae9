"""Finding the parts of a vision-language model, whatever it is called.

transformers gives every model the same accessors: its decoder, its input and output embeddings, its image encoder,
the id of its image token. The rest is found from what a part *is*, a list of layers as deep as the config says, a
norm as wide as the stream that no layer owns, and written down as dotted paths. Nothing is decided by a model's name.
What is found here is only a claim: `interp.models.checks` proves it by effect when the model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from interp.errors import LayoutError

_PROJECTOR_WORDS = ("projector", "connector", "aligner", "merger", "projection")


@dataclass(frozen=True)
class Structure:
    """Where the parts of a model are (dotted paths from its root) and how large it is.

    `layers` is the decoder's list of layers, `norm` the final norm, `head` the unembedding, `embed` the token embedding;
    `vision` is the image tower and `projector` what takes its states to the stream, None where there is no such module.
    """

    layers: str
    norm: str
    head: str
    embed: str
    vision: str | None
    projector: str | None
    image_token_id: int | None
    n_layers: int
    d_model: int
    n_heads: int
    vocab_size: int


def find_structure(model: Any) -> Structure:
    """Find the parts of a transformers model in hand. Raises `LayoutError` naming the part that is not there."""
    name = type(model).__name__
    text_config = model.config.get_text_config(decoder=True)
    if getattr(model.config, "is_encoder_decoder", False) or getattr(text_config, "is_encoder_decoder", False):
        raise LayoutError(
            f"{name} is an encoder-decoder: its image tokens are not in one decoder stream, expected a decoder"
        )
    depth, width = int(text_config.num_hidden_layers), int(text_config.hidden_size)
    paths = {id(module): path for path, module in model.named_modules()}

    decoder = model.get_decoder()
    layers = _find_layers(decoder, depth)
    if layers is None:
        raise LayoutError(f"{name}: its decoder {type(decoder).__name__} has no list of {depth} layers, expected one")
    norm = _find_norm(decoder, layers, width)
    if norm is None:
        raise LayoutError(f"{name}: no final norm of width {width} stands beside the decoder's layers, expected one")
    head, embed = model.get_output_embeddings(), model.get_input_embeddings()
    for part, module in (("output embeddings (the unembedding)", head), ("input embeddings", embed)):
        if module is None or id(module) not in paths:
            raise LayoutError(f"{name} gives no {part}: expected a model for image-text-to-text with a language head")
    vision = _find_vision(model)
    projector = _find_projector(model, decoder, vision)
    image_token_id = getattr(model.config, "image_token_id", getattr(model.config, "image_token_index", None))
    return Structure(
        layers=paths[id(layers)],
        norm=paths[id(norm)],
        head=paths[id(head)],
        embed=paths[id(embed)],
        vision=paths.get(id(vision)),
        projector=paths.get(id(projector)),
        image_token_id=None if image_token_id is None else int(image_token_id),
        n_layers=depth,
        d_model=width,
        n_heads=int(text_config.num_attention_heads),
        vocab_size=int(getattr(head, "out_features", text_config.vocab_size)),
    )


def _find_layers(decoder: nn.Module, depth: int) -> nn.ModuleList | None:
    """The outermost list of `depth` modules: breadth first, so that lists inside a layer come last."""
    level: list[nn.Module] = [decoder]
    while level:
        for module in level:
            if isinstance(module, nn.ModuleList) and len(module) == depth:
                return module
        level = [child for module in level for child in module.children()]
    return None


def _find_norm(decoder: nn.Module, layers: nn.ModuleList, width: int) -> nn.Module | None:
    """The last module beside the layers that has one weight vector as wide as the stream."""
    owner = next(module for module in decoder.modules() if any(child is layers for child in module.children()))
    beside = [child for child in owner.children() if child is not layers]
    norms = [child for child in beside if tuple(getattr(getattr(child, "weight", None), "shape", ())) == (width,)]
    return norms[-1] if norms else None


def _find_vision(model: Any) -> nn.Module | None:
    try:
        return model.get_encoder(modality="image")
    except (AttributeError, TypeError, ValueError):
        return None


def _find_projector(model: nn.Module, decoder: nn.Module, vision: nn.Module | None) -> nn.Module | None:
    """The outermost module outside decoder and tower that is called what projectors are called."""
    inside = {id(module) for part in (decoder, vision) if part is not None for module in part.modules()}
    candidates: list[tuple[int, nn.Module]] = []
    for path, module in model.named_modules():
        last = path.rpartition(".")[2]
        if id(module) not in inside and any(word in last for word in _PROJECTOR_WORDS):
            candidates.append((path.count("."), module))
    return min(candidates, key=lambda item: item[0])[1] if candidates else None


def resolve(root: Any, path: str) -> Any:
    """The part at a dotted path: of a module, or of the nnsight envoy around it."""
    for name in path.split("."):
        root = root[int(name)] if name.isdigit() else getattr(root, name)
    return root
