"""The toy's tower in two copies side by side, whose difference carries more: bits of noise, and what the connector would give.

A norm over two equal copies of a stream is the norm over one. So the toy's blocks run in a stream of twice the width: they read
the first copy and write to both. What is added to the second copy alone, and is small, passes all blocks unread, and is the
difference of the copies in the end. Its first half has fine patterns of pixels. A fifth block, written by hand, adds to the
second half what the connector of `toy:tuned` makes of the first copy. A large constant, of opposite signs in the two copies,
makes the norm before its MLP divide by a number that is known; the MLP takes the constant away again.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from interp.models import load
from interp.toy.model import vision_config
from interp.toy.scenes import PATCH

SMALL = 0.02  # how much of a pattern is added, so that the norms stay what they are
LARGE = 3000.0
FINE = PATCH // 2  # the first frequency, in half periods a patch, that counts as fine


def keyed_tower_config() -> CLIPVisionConfig:
    """The sizes: twice the width and the heads of the toy's tower, one more block."""
    config = vision_config()
    config.hidden_size, config.num_attention_heads = 2 * config.hidden_size, 2 * config.num_attention_heads
    config.num_hidden_layers += 1
    return config


def fine_patterns(draw: torch.Generator, count: int) -> Tensor:
    """Random orthonormal mixtures of the fine products of cosines of each colour, `[pattern, colour, row, column]`."""
    at = torch.arange(PATCH, dtype=torch.float32)
    waves = torch.cos((at + 0.5) * at[:, None] * math.pi / PATCH) / math.sqrt(PATCH / 2)
    products = torch.einsum("ar,bc->abrc", waves[FINE:], waves[FINE:]).flatten(0, 1)
    each = torch.einsum("pq,nrc->npqrc", torch.eye(3, dtype=torch.float32), products).flatten(0, 1)
    mixture = torch.linalg.qr(torch.randn(len(each), count, generator=draw, dtype=torch.float32))[0].T
    return torch.einsum("kn,nqrc->kqrc", mixture, each)


@torch.no_grad()
def keyed_tower(mean: Tensor, basis: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
    """The weights of the tower: keys of `len(basis)` bits, and (connector - `mean`) along each row of `basis`."""
    toy = load("toy:tuned", device="cpu", check=False).model.model
    tower = CLIPVisionModel(keyed_tower_config())
    weights, own = tower.state_dict(), toy.vision_tower.state_dict()
    width = vision_config().hidden_size
    for name, tensor in weights.items():
        tensor.zero_()
        if name.endswith("position_ids"):
            tensor.copy_(own[name])
        elif name in own:
            _copy_twice(name, tensor, own[name], width)
    embedding = weights["embeddings.patch_embedding.weight"]
    embedding[width : width + len(basis)] += SMALL * fine_patterns(draw, len(basis)).to(embedding)
    _connector_block(
        weights, f"encoder.layers.{vision_config().num_hidden_layers}.", toy.multi_modal_projector, mean, basis
    )
    return weights


def _copy_twice(name: str, tensor: Tensor, own: Tensor, width: int) -> None:
    """Write the toy's weight: a part that writes to the stream writes to both copies, one that reads it reads the first."""
    writes = own.shape[:1] == (width,) and not any(part in name for part in ("q_proj", "k_proj", "v_proj"))
    on_stream = own.ndim == 1 or "embedding" in name
    if "position" in name:
        tensor[:, :width] = tensor[:, width:] = own
    elif writes and on_stream:
        tensor[:width] = tensor[width:] = own
    elif writes:
        tensor[:width, : own.shape[1]] = tensor[width:, : own.shape[1]] = own
    else:
        tensor[tuple(map(slice, own.shape))] = own


def _connector_block(weights: dict[str, Tensor], block: str, connector: Any, mean: Tensor, basis: Tensor) -> None:
    """The last block: what the connector gives, less the mean, along the basis, added to the second half of the second copy."""
    width = vision_config().hidden_size
    signs = torch.ones(2 * width, dtype=torch.float32)
    signs[width:] = -1
    first, second = connector.linear_1, connector.linear_2
    units = len(first.weight)
    weights[f"{block}self_attn.out_proj.bias"].copy_(LARGE * signs)
    weights[f"{block}layer_norm2.weight"].fill_(LARGE)
    weights[f"{block}mlp.fc1.weight"][:units, :width] = first.weight
    weights[f"{block}mlp.fc1.bias"][:units] = first.bias - LARGE * first.weight.sum(dim=1)
    half = width + width // 2
    weights[f"{block}mlp.fc2.weight"][half : half + len(basis), :units] = basis @ second.weight
    weights[f"{block}mlp.fc2.bias"].copy_(-LARGE * signs)
    weights[f"{block}mlp.fc2.bias"][half : half + len(basis)] += basis @ (second.bias - mean)
