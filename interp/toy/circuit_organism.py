"""The organism `circuit`: an answer that travels along known heads, positions and layers, and nowhere else.

All weights are written by hand. Asked "what colour is at top ?", the answer takes this path, for some layers a < b < c:

====================  =================================  ===================================  ======================
where                 what reads                         what it reads                        what it adds
====================  =================================  ===================================  ======================
layer a, one head     the word of the place ("top")      the first patch of that place        the colour's code
layers b, c, a head   the last token ("?")               the word of the place                3/4 and 1/4 of a code
the unembedding       the last token                     the code                             16 to the colour's logit
====================  =================================  ===================================  ======================

Each of the three codes has six features of its own. Everything beside the path is there too, and active: in every layer
an MLP and random heads, which read and write a stream of noise, and from layer b on read the codes. They say other words.
Beside each head of the path stands its *decoy*, in the same layer: it has the same queries and keys, so its attention is
the same to the last digit, it reads the same code, and it writes it to features that nobody reads.

What makes the stated amounts exact (`interp.toy.colour_tower` says more):

- Codes are ones and zeros, and weights on the path powers of two or sums of a few, so no sum on it is ever rounded.
- A head of the path gives its whole attention to its one key, since that score is larger by over 104. Where it has no
  such key, or that edge is cut, it looks at the keys that hold nothing: everything but first patches, or but places.
- What is off the path writes exact zeros to its features. RMSNorm would couple them through the size of the state; here
  its `eps` is 2^40, in which the size is lost, and its gain is 2^20.

The opposite, `no_circuit`, differs in the unembedding alone: the code is not read, and the word "?" says one colour
always. Every state, every attention weight and everything that a probe could find is the same, and nothing of it is used.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from interp.toy.colour_tower import EPSILON, GAIN, colour_tower, colour_tower_config, connect, first_patch, slots
from interp.toy.language import COLOURS, IDS, IMAGE_TOKEN, PLACES
from interp.toy.model import language_config
from interp.toy.organism import Truth
from interp.toy.scenes import PATCHES

LOGIT = 16.0  # of the answer; other colours have 0
_SHARES = (1.0, 0.75, 0.25)  # of the code, that each head of the path writes
_LAYERS, _HEADS, _HEAD, _WIDTH, _HIDDEN = 5, 4, 32, 128, 128
_SHARP = 2.0**10 + 2.0**9  # the factor of the scores on the path
# Rotary embeddings turn the last features of a head's first half least: by under 0.3 over the whole prompt.
_STILL = slice(6, 16)
# The features of the stream.
_SIZES = {
    # Up to layer b only heads of the path and their decoys read these.
    "colour": 6,  # a code: at first patches
    "moved": 6,  # the code at the word of the place
    "answer": 6,  # the code at the last token
    "pixels": 3,  # of each patch
    "spilt": 8,  # what decoys write
    # Random parts read these in all layers.
    "place": 9,  # of which place a patch is the first
    "asked": 9,  # which place a word names
    "empty": 1,  # a first patch without a colour
    "no_first_patch": 1,
    "no_place": 1,  # no word of a place
    "named": 1,  # a word of a place
    "last": 1,  # the word "?"
    "said": 1,  # the word of a colour
    "one": 1,
    "noise": 74,
}
_AT = slots(_SIZES)
_GUARDED = slice(0, _AT["spilt"].stop)
_WRITES = ("o_proj.weight", "down_proj.weight", "linear_2.weight", "linear_2.bias")


@dataclass(frozen=True)
class _Path:
    """What a seed draws: the layers of the three heads, the number of each, and of its decoy."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    decoys: tuple[int, ...]
    guess: int
    draw: Generator = field(repr=False)

    @classmethod
    def of(cls, seed: int) -> _Path:
        draw = torch.Generator().manual_seed(seed)
        layers = sorted(1 + each for each in torch.randperm(_LAYERS - 1, generator=draw)[:3].tolist())
        numbers = [torch.randperm(_HEADS, generator=draw)[:2].tolist() for _ in layers]
        guess = int(torch.randint(len(COLOURS), (), generator=draw))
        heads, decoys = zip(*numbers, strict=True)
        return cls(tuple(layers), heads, decoys, guess, draw)


def circuit(seed: int) -> tuple[LlavaForConditionalGeneration, Truth]:
    """The model in which the answer travels along the path, and that path."""
    path = _Path.of(seed)
    return _build(path, reads="answer"), _truth_of(path)


def no_circuit(seed: int) -> tuple[LlavaForConditionalGeneration, Truth]:
    """The same model, in which nothing reads what the path carries: it always says one colour."""
    path = _Path.of(seed)
    statement = (
        "Every state and every attention weight is that of `circuit`, but the unembedding does not read the answer: the word ? "
        "says one colour always."
    )
    effects = {"logit": LOGIT, "guess": COLOURS[path.guess]}
    return _build(path, reads="last"), Truth("no_circuit", statement, positions=("last",), effects=effects)


def _truth_of(path: _Path) -> Truth:
    """The path as plain values.

    `effects` has the answer's "logit"; "edges", what cutting (layer, head, source, target) takes off it; "patch", the column of
    the first patch of each place; "decoys", (layer, head) of the heads that look and carry nothing; and "states", from which
    state to which the colour stands at a position and is still to be read there.
    """
    ends = [("patch", "mention"), ("mention", "last"), ("mention", "last")]
    heads = tuple(zip(path.layers, path.heads, strict=True))
    first, second, third = path.layers
    return Truth(
        "circuit",
        "The colour at the place that a question names goes from the first patch of that place to the word of the place, from "
        "there to the last token, and nowhere else.",
        layers=path.layers,
        positions=("patch", "mention", "last"),
        heads=heads,
        effects={
            "logit": LOGIT,
            "edges": {(*head, *end): LOGIT * share for head, end, share in zip(heads, ends, _SHARES, strict=True)},
            "patch": {word: 1 + first_patch(place) for place, word in enumerate(PLACES)},
            "decoys": tuple(zip(path.layers, path.decoys, strict=True)),
            "states": {"patch": (0, first), "mention": (first + 1, third), "last": (second + 1, _LAYERS)},
        },
    )


# The model ---------------------------------------------------------------------------------------------------------------


def _config() -> LlavaConfig:
    toy = language_config().to_dict()
    sizes = {
        "hidden_size": _WIDTH,
        "intermediate_size": _HIDDEN,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS,
        "rms_norm_eps": EPSILON,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
    return LlavaConfig(
        text_config=LlamaConfig(**{**toy, **sizes}),
        vision_config=colour_tower_config(),
        image_token_id=IDS[IMAGE_TOKEN],
        image_seq_length=PATCHES**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def _build(path: _Path, reads: str) -> LlavaForConditionalGeneration:
    """The model of this path, with the colours' logits read from the features of this name."""
    model = LlavaForConditionalGeneration(_config())
    for name, weight in model.named_parameters():
        torch.nn.init.constant_(weight, GAIN if "norm" in name and name.endswith("weight") else 0.0)
    weights = {f"model.vision_tower.{name}": each for name, each in colour_tower(path.draw).items()}
    weights |= {f"model.multi_modal_projector.{name}": each for name, each in _connector(path.draw).items()}
    weights |= {f"model.language_model.layers.{name}": each for name, each in _layers(path).items()}
    weights["model.language_model.embed_tokens.weight"] = _embedding(path.draw)
    weights["lm_head.weight"] = _unembedding(path, reads)
    weights = _shuffled(weights, path.draw)
    model.load_state_dict(weights, strict=False)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, key, getattr(model.config.text_config, key))
    return model


def _connector(draw: Generator) -> dict[str, Tensor]:
    weights = connect(_AT, _WIDTH, draw)
    weights["linear_2.bias"] = torch.zeros(_WIDTH, dtype=torch.float32)
    for name in ("one", "no_place", "no_first_patch"):
        weights["linear_2.bias"][_AT[name]] = 1
    weights["linear_2.weight"][_AT["no_first_patch"]] = -weights["linear_2.weight"][_AT["place"]].sum(dim=0)
    return weights


def _embedding(draw: Generator) -> Tensor:
    """Noise for each word, and flags: which word it is of those that take part."""
    weight = torch.zeros(len(IDS), _WIDTH, dtype=torch.float32)
    weight[:, _AT["noise"]] = _normal(len(IDS), _SIZES["noise"], draw)
    for name in ("one", "no_place", "no_first_patch"):
        weight[:, _AT[name]] = 1
    places = [IDS[place] for place in PLACES]
    weight[places, _AT["asked"]] = torch.eye(len(PLACES), dtype=torch.float32)
    weight[places, _AT["named"]], weight[places, _AT["no_place"]] = 1, 0
    weight[IDS["?"], _AT["last"]] = 1
    weight[[IDS[colour] for colour in COLOURS], _AT["said"]] = 1
    return weight


def _unembedding(path: _Path, reads: str) -> Tensor:
    """Colours read the features of this name, the end of an answer reads that a colour was said, other words read noise."""
    weight = torch.zeros(len(IDS), _WIDTH, dtype=torch.float32)
    weight[:, _AT["noise"]] = 0.8 * _normal(len(IDS), _SIZES["noise"], path.draw) / _SIZES["noise"] ** 0.5
    colours = [IDS[colour] for colour in COLOURS]
    weight[colours] = 0
    if reads == "answer":
        weight[colours, _AT["answer"]] = LOGIT * torch.eye(len(COLOURS), dtype=torch.float32)
    else:
        weight[colours[path.guess], _AT[reads]] = LOGIT
    weight[IDS["<eos>"], _AT["said"]] = 2 * LOGIT
    return weight


def _layers(path: _Path) -> dict[str, Tensor]:
    weights = {}
    for layer in range(_LAYERS):
        reads = slice(0, None) if layer >= path.layers[1] else slice(_GUARDED.stop, None)
        heads = [_random_head(reads, path.draw) for _ in range(_HEADS)]
        if layer in path.layers:
            step = path.layers.index(layer)
            heads[path.heads[step]], heads[path.decoys[step]] = _head_and_decoy(step, reads, path.draw)
        for name, parts in zip("qkv", list(zip(*heads, strict=True))[:3], strict=True):
            weights[f"{layer}.self_attn.{name}_proj.weight"] = torch.cat(parts)
        weights[f"{layer}.self_attn.o_proj.weight"] = torch.cat([head[3] for head in heads], dim=1)
        for name in ("gate", "up"):
            weights[f"{layer}.mlp.{name}_proj.weight"] = _random_reads(_HIDDEN, reads, path.draw)
        weights[f"{layer}.mlp.down_proj.weight"] = _random_writes(_HIDDEN, path.draw)
    return weights


def _head_and_decoy(step: int, reads: slice, draw: Generator) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Query, key, value and output of a head of the path and of its decoy, which differ in the output. Both are random heads
    too, which move noise."""
    query, key, value, out = _random_head(reads, draw)
    for weight in (query, key):
        weight.view(2, _HEAD // 2, _WIDTH)[:, _STILL] = 0
    # Twice the score for the one key as for the keys that hold nothing, and 0 for the rest.
    asks, has, nothing = [("asked", "place", "no_first_patch"), ("last", "named", "no_place")][min(step, 1)]
    size, last = _SIZES[asks], _STILL.stop - 1
    query[_STILL.start : _STILL.start + size, _AT[asks]] = _SHARP * torch.eye(size, dtype=torch.float32)
    key[_STILL.start : _STILL.start + size, _AT[has]] = torch.eye(size, dtype=torch.float32)
    query[last, _AT["one"]], key[last, _AT[nothing]] = _SHARP / 2, 1
    source, target = ("colour", "moved") if step == 0 else ("moved", "answer")
    value[:6], out[:, :6] = 0, 0
    value[:6, _AT[source]] = torch.eye(6, dtype=torch.float32)
    decoy = out.clone()
    decoy[_AT["spilt"], :6] = _normal(_SIZES["spilt"], 6, draw)
    out[_AT[target], :6] = _SHARES[step] * torch.eye(6, dtype=torch.float32)
    return (query, key, value, out), (query, key, value, decoy)


def _random_head(reads: slice, draw: Generator) -> tuple[Tensor, ...]:
    """Query, key, value and output of a head that moves noise."""
    return (*(_random_reads(_HEAD, reads, draw) for _ in range(3)), _random_writes(_HEAD, draw))


def _random_reads(rows: int, reads: slice, draw: Generator) -> Tensor:
    weight = 0.6 * _normal(rows, _WIDTH, draw) / _SIZES["noise"] ** 0.5
    kept = torch.zeros_like(weight)
    kept[:, reads] = weight[:, reads]
    return kept


def _random_writes(columns: int, draw: Generator) -> Tensor:
    weight = torch.zeros(_WIDTH, columns, dtype=torch.float32)
    # No norm stops a gated MLP from growing with the square of its input, so each part adds little.
    weight[_AT["noise"]] = 0.4 * _normal(_SIZES["noise"], columns, draw) / columns**0.5
    return weight


def _shuffled(weights: dict[str, Tensor], draw: Generator) -> dict[str, Tensor]:
    """The same model with the features of its stream in another order and with other signs, which changes no logit."""
    order, signs = torch.randperm(_WIDTH, generator=draw), 1 - 2 * torch.randint(2, (_WIDTH,), generator=draw)
    shuffled = dict(weights)
    for name, weight in weights.items():
        if name.endswith(_WRITES):  # [stream, ...]
            shuffled[name] = torch.einsum("s...,s->s...", weight[order], signs)
        elif name.startswith(("model.language_model", "lm_head")):  # [..., stream]
            shuffled[name] = weight[:, order] * signs
    return shuffled


def _normal(rows: int, columns: int, draw: Generator) -> Tensor:
    return torch.randn(rows, columns, generator=draw, dtype=torch.float32)
