"""A vision tower and a connector written by hand: they name the colour of each cell of a scene, exactly.

The classes are transformers' own (CLIP's tower, LLaVA's connector); only the weights are ours. They make three steps:

================= ==================================================================================================
gather (block 0)  each patch attends to the four patches of its cell, and gets their mean red, green and blue
name (block 1)    the *first* patch of each cell, the top-left one, looks that colour up: its query is the mean, the keys
                  are the six colours and "empty", stored at seven patches, and the values are codes of 0 and 1
connector         the first patch of each cell enters the language model with the code of its colour and the key of its
                  place; all patches enter with their own red, green and blue, and with noise
================= ==================================================================================================

Numbers become exact by three means, without which a stated amount would hold up to noise only:

- *A score that is larger by more than 104 takes all attention*, since exp(-104) is 0 in float32. So a look-up gives the
  code itself, in ones and zeros, whatever the noise of the picture.
- *A norm divides by a constant.* `EPSILON`, 2^40, is added to the variance, and a variance under 2^15 is lost in it. With a gain
  of 2^20, the norm gives back what enters it. So no feature changes the size of another.
- *Each feature of the tower is stored twice, with both signs.* So the mean that a LayerNorm takes off is 0, and what
  rounding leaves of it cancels where a feature is read.

All else is random: the other heads, the MLPs, and the features that they read and write, which no step reads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor
from transformers import CLIPVisionConfig

from interp.toy.language import COLOURS, PLACES
from interp.toy.scenes import CELL, GRID, PATCH, PATCHES, SIZE, TINTS

EPSILON, GAIN = 2.0**40, 2.0**20  # what a norm adds to the variance, and what undoes it
_HEAD, _HEADS, _HIDDEN = 32, 4, 64
_SHARP = 2.0**18  # the factor of the scores that look a colour up
_FAINT = 0.08  # a cell with less chroma is empty; the noise of the ground has 0.01
_GROUND = 27.5 / 127.5 - 1  # the mean of the dark ground, as the processor scales pixels
_STEP = 8.0  # GELU is x from here on, and 0 from -8 down


def slots(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Where each named group of features stands, one after the other.

    >>> slots({"code": 6, "noise": 24})
    {'code': slice(0, 6, None), 'noise': slice(6, 30, None)}
    """
    places, start = {}, 0
    for name, size in sizes.items():
        places[name] = slice(start, start + size)
        start += size
    return places


# The features of the tower, each of which is stored twice.
_SIZES = {"own": 3, "mean": 3, "cell": 9, "book": 7, "code": 7, "key": 9, "later": 1, "one": 1, "spot": 16, "noise": 8}
_AT = slots(_SIZES)
_WIDTH = sum(_SIZES.values())


def colour_tower_config() -> CLIPVisionConfig:
    """The sizes of the tower: two blocks of four heads."""
    return CLIPVisionConfig(
        hidden_size=2 * _WIDTH,
        intermediate_size=_HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=_HEADS,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=_HEAD,
        layer_norm_eps=EPSILON,
    )


def colour_tower(draw: Generator) -> dict[str, Tensor]:
    """The weights of the tower, by their names in it; `draw` draws the random ones."""
    weights = _embeddings(draw)
    for block, (query, key, value, out) in enumerate((_gather(), _name())):
        at = f"encoder.layers.{block}"
        for name, step in {"q": query, "k": key, "v": value}.items():
            weights[f"{at}.self_attn.{name}_proj.weight"] = _reading(_with_random_heads(step, draw))
        weights[f"{at}.self_attn.out_proj.weight"] = _writing(_with_random_heads(out.T, draw).T)
        weights[f"{at}.mlp.fc1.weight"] = _reading(_with_noise(_HIDDEN, draw))
        weights[f"{at}.mlp.fc2.weight"] = _writing(_with_noise(_HIDDEN, draw).T)
    return weights


def first_patch(place: int) -> int:
    """The number of the first patch of a cell, in reading order.

    >>> [first_patch(place) for place in range(9)]
    [0, 2, 4, 12, 14, 16, 24, 26, 28]
    """
    row, column = divmod(place, GRID)
    return (row * PATCHES + column) * (CELL // PATCH)


def connect(features: Mapping[str, slice], width: int, draw: Generator) -> dict[str, Tensor]:
    """The weights of a connector into a stream of `width` features, by their names in it.

    `features` say where in the stream the "colour" (six ones and zeros), the "place" (nine), "empty", the "pixels" (three) and
    the "noise" stand.
    """
    first, second = _zeros(width, _WIDTH), _zeros(width, width)
    hidden = slots({"colour": 6, "empty": 1, "place": 9, "pixels": 3, "noise": width - 19})
    first[hidden["colour"], _AT["code"]] = _STEP * torch.eye(7, dtype=torch.float32)[:6]
    first[hidden["empty"], _AT["code"]] = _STEP * torch.eye(7, dtype=torch.float32)[6:]
    first[hidden["place"], _AT["key"]] = _STEP * torch.eye(9, dtype=torch.float32)
    first[hidden["pixels"], _AT["own"]] = torch.eye(3, dtype=torch.float32)
    # Of ones, which a norm gives back to the last bit: noise that no picture changes.
    first[hidden["noise"], _AT["spot"]] = _normal(width - 19, _SIZES["spot"], draw) / _SIZES["spot"] ** 0.5
    for name in ("colour", "empty", "place"):
        second[features[name], hidden[name]] = (
            torch.eye(second[features[name], hidden[name]].shape[0], dtype=torch.float32) / _STEP
        )
    second[features["pixels"], hidden["pixels"]] = torch.eye(3, dtype=torch.float32)
    noise = second[features["noise"], hidden["noise"]]
    noise += 0.3 * _normal(noise.shape[0], noise.shape[1], draw) / noise.shape[1] ** 0.5
    return {"linear_1.weight": _reading(first), "linear_2.weight": second}


# The steps ---------------------------------------------------------------------------------------------------------------


def _embeddings(draw: Generator) -> dict[str, Tensor]:
    """What enters the first block: the mean red, green and blue of each patch above the ground, and what each patch is."""
    kernel = _zeros(_WIDTH, 3, PATCH, PATCH)
    kernel[_AT["own"]] = torch.eye(3, dtype=torch.float32)[:, :, None, None] / PATCH**2
    patch = _zeros(1 + PATCHES**2, _WIDTH)  # the class token, then the patches
    patch[:, _AT["noise"]] = _normal(1 + PATCHES**2, _SIZES["noise"], draw)
    patch[:, _AT["spot"]] = _normal(1 + PATCHES**2, _SIZES["spot"], draw).sign()
    patch[:, _AT["one"]] = patch[:, _AT["later"]] = 1
    patch[1:, _AT["own"]] = -_GROUND
    patch[1:8, _AT["book"]] = torch.eye(7, dtype=torch.float32)
    for place in range(len(PLACES)):
        first = 1 + first_patch(place)
        patch[[first, first + 1, first + PATCHES, first + PATCHES + 1], _AT["cell"].start + place] = 1
        patch[first, _AT["key"].start + place] = 1
        patch[first, _AT["later"]] = 0
    return {
        "embeddings.class_embedding": _zeros(2 * _WIDTH),
        "embeddings.patch_embedding.weight": _writing(kernel),
        "embeddings.position_embedding.weight": _writing(patch.T).T,
    }


def _gather() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value and output of the head that averages the colours of a cell."""
    query, key, value, out = (_zeros(_HEAD, _WIDTH) for _ in range(4))
    query[:9, _AT["cell"]] = 2.0**12 * torch.eye(9, dtype=torch.float32)
    key[:9, _AT["cell"]] = torch.eye(9, dtype=torch.float32)
    value[:3, _AT["own"]] = torch.eye(3, dtype=torch.float32)
    out[:3, _AT["mean"]] = torch.eye(3, dtype=torch.float32)
    return query, key, value, out.T


def _name() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value and output of the head that looks the mean colour up; of a faint one it finds "empty"."""
    query, key, value, out = (_zeros(_HEAD, _WIDTH) for _ in range(4))
    tints = torch.tensor([TINTS[colour] for colour in COLOURS], dtype=torch.float32) / 127.5 - 1 - _GROUND
    query[:3, _AT["mean"]] = _SHARP * torch.eye(3, dtype=torch.float32)
    query[3, _AT["one"]], query[3, _AT["later"]] = _SHARP * _FAINT, _SHARP * 4
    key[:3, _AT["book"]] = torch.nn.functional.pad(torch.nn.functional.normalize(tints).T, (0, 1))
    key[3, _AT["book"]] = torch.eye(7, dtype=torch.float32)[6]
    value[:7, _AT["book"]] = torch.eye(7, dtype=torch.float32)
    out[:7, _AT["code"]] = torch.eye(7, dtype=torch.float32)
    return query, key, value, out.T


# Weights -----------------------------------------------------------------------------------------------------------------


def _with_random_heads(step: Tensor, draw: Generator) -> Tensor:
    """The rows of a head that makes a step `[d_head, feature]`, and those of random heads, which know noise alone."""
    return torch.cat([step, _with_noise((_HEADS - 1) * _HEAD, draw)])


def _with_noise(rows: int, draw: Generator) -> Tensor:
    weight = _zeros(rows, _WIDTH)
    weight[:, _AT["noise"]] = _normal(rows, _SIZES["noise"], draw) / _SIZES["noise"] ** 0.5
    return weight


def _reading(weight: Tensor) -> Tensor:
    """A map from the features, as one from features that are stored twice."""
    return torch.cat([weight, -weight], dim=1) / 2


def _writing(weight: Tensor) -> Tensor:
    """A map to the features, as one to features that are stored twice."""
    return torch.cat([weight, -weight], dim=0)


def _normal(rows: int, columns: int, draw: Generator) -> Tensor:
    return torch.randn(rows, columns, generator=draw, dtype=torch.float32)


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float32)
