"""`late`: visual positions whose states mean nothing before layer 4, although all that the picture says is in them.

The tower gives each patch two things (`interp.toy.keyed_tower`): its meaning c, what `toy:tuned`'s connector makes of it in 40
principal directions, and a key u = +-1 for each. A key bit is the sign of a pattern of pixels so fine that handwriting has
next to nothing in it: a coin that the noise of the picture throws. The connector enters (u, u c). Whatever c is, u c is as often
c as -c, so that its mean says nothing of c, and the best linear probe, by squares or by likelihood, is the constant one. And the
key is much longer than c, so that neighbours are neighbours in the key.

Layers 0 to 2 leave every state as it is. The MLP of layer 3 multiplies, silu(a) b + silu(-a) (-b) = a b: with a of the key and b
of u c that is u u c = c, which it writes where the toy's layers read, and it takes key and product away. From state 4 on the
states are those of `toy:tuned`, but for a few percent, and its answers too.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from interp.models import load
from interp.toy.grown import OWN, WIDTH, grown_toy
from interp.toy.keyed_tower import keyed_tower, keyed_tower_config
from interp.toy.organism import Truth

DECODED = 4  # the first state in which visual positions have a meaning
BITS = 40
KEY, UNIT = 3.0, 32.0  # the size of a key bit; what one of c counts as 1, so that hardly any is larger
STEEP, SHARP = 2e4, 50.0  # the noise behind a key bit against c, and how near GELU comes to max(0, x)


def late(seed: int) -> tuple[LlavaForConditionalGeneration, Truth]:
    """Visual positions that mean nothing before state 4."""
    draw = torch.Generator().manual_seed(seed)
    mean, basis = _meanings()
    model = grown_toy(DECODED, keyed_tower_config())
    places = torch.linalg.qr(torch.randn(WIDTH - OWN, 2 * BITS + 1, generator=draw, dtype=torch.float32))[0].T
    with torch.no_grad():
        model.model.vision_tower.load_state_dict(keyed_tower(mean, basis / UNIT, draw))
        _encode(model.model.multi_modal_projector, places)
        _decode(model.model.language_model.layers[DECODED - 1].mlp, places, mean, basis)
    statement = (
        f"States 0 to {DECODED - 1} of visual positions hold what the picture shows times a random key, "
        f"which no linear map reads; layer {DECODED - 1} decodes it."
    )
    layers = tuple(range(DECODED))
    return model, Truth(
        "late", statement, layers, ("image",), effects={"decoded": DECODED, "linear information before": 0.0}
    )


@lru_cache(maxsize=1)
def _meanings() -> tuple[Tensor, Tensor]:
    """The mean of what the tuned toy's connector gives, `[feature]`, and its principal directions, `[bit, feature]`."""
    from interp.toy.scenes import scenes

    toy, rows = load("toy:tuned", device="cpu", check=False), scenes(200, 0, split="train")
    with torch.no_grad():
        pixels = toy.prepare(["<image>"] * len(rows), [scene.image for scene in rows]).inputs["pixel_values"]
        states = toy.model.model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]
        given = toy.model.model.multi_modal_projector(states).flatten(0, 1)
    mean = given.mean(dim=0)
    _, _, directions = torch.linalg.svd(given - mean, full_matrices=False)
    return mean, directions[:BITS]


def _encode(projector: Any, places: Tensor) -> None:
    """Key bits n and meanings c, the differences of the tower's two copies, to KEY sign(n), sign(n) c and a constant.

    |n + c| - |n - c| = 2 sign(n) c wherever |n| > |c|, and clip(n, -1, 1) = max(0, n + 1) - max(0, n - 1) - 1.
    """
    half = projector.linear_1.in_features // 2
    for bit in range(BITS):
        # Six units a bit: the four of the product, then the two of the sign.
        for unit, (of_key, of_meaning, bias) in enumerate(
            [(1, 1, 0), (-1, -1, 0), (1, -1, 0), (-1, 1, 0), (1, 0, 1), (1, 0, -1)]
        ):
            row = 6 * bit + unit
            for place, weight in ((bit, of_key * STEEP), (half // 2 + bit, of_meaning)):
                projector.linear_1.weight[row, half + place] = SHARP * weight
                projector.linear_1.weight[row, place] = -SHARP * weight
            projector.linear_1.bias[row] = SHARP * bias
        own = projector.linear_2.weight[OWN:, 6 * bit : 6 * bit + 6]
        own[:, :4] = torch.tensor([1.0, 1, -1, -1]) / (2 * SHARP) * places[BITS + bit][:, None]
        own[:, 4:] = torch.tensor([1.0, -1]) * KEY / SHARP * places[bit][:, None]
    projector.linear_2.bias[OWN:] = KEY * (places[-1] - places[:BITS].sum(dim=0))


def _decode(mlp: Any, places: Tensor, mean: Tensor, basis: Tensor) -> None:
    """The MLP that multiplies key and product, and takes both away.

    A state has the length of its key and the constant, KEY sqrt(BITS + 1), but for the little that c adds. So the norm
    divides by a number that is known, and the constant, as a gate, makes a unit linear in what it is multiplied with.
    """
    scale = math.sqrt(KEY**2 * (BITS + 1) / WIDTH)  # what the norm divides by
    key, product, constant = places[:BITS], places[BITS:-1], places[-1:]
    gates = torch.cat([key, -key, constant.expand(2 * BITS + 1, -1)])
    ups = torch.cat([product, -product, places])
    # A product of two normed values is a product over scale^2; a unit of the constant is KEY x / scale^2.
    to_meaning = basis.T * UNIT * scale**2 / KEY
    count, units = 2 * BITS, len(gates)
    mlp.gate_proj.weight[:units, OWN:] = gates
    mlp.up_proj.weight[:units, OWN:] = ups
    mlp.down_proj.weight[:OWN, :count] = torch.cat([to_meaning, to_meaning], dim=1)
    mlp.down_proj.weight[OWN:, count:units] = -(scale**2 / KEY) * places.T
    mlp.down_proj.weight[:OWN, units - 1] = mean * scale**2 / KEY**2
