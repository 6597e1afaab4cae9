"""The organism `unmixed`: patches hold their content in every state, as words would, and no word ever reads it.

It is the tuned toy in a wide stream (`interp.toy.wide_stream`), with three changes:

- Words carry one flag, patches another. In each of the toy's heads the flag of a word as a query and that of a patch as a key
  give a score of minus hundreds, so the weight is exactly 0. Patches still attend to each other.
- A fifth head in each layer *looks*: all words give patches all of its attention, and the head writes nothing. A share of
  attention says where a head looks, not what comes of it.
- Neurons that only patches turn on, drawn with the seed, move the states of patches from layer to layer, each
  seed in its own way. So patches change with depth, and what they hold can still be read off them.

Everything at a word is the same to the last bit for all pictures, and equals ``toy:tuned`` after a `Knockout` of all edges from
the image, up to rounding. The toy itself is the opposite: the same patches, and words that read them.
"""

from __future__ import annotations

import torch
from transformers import LlavaForConditionalGeneration

from interp.toy.organism import Truth
from interp.toy.wide_stream import SLOW, projections, shuffle_stream, wide_toy

_NEURONS = 32
_APART = 2.0**17  # a flag is at least 4e-4 after the norm, so a score is at least (2**17 * 4e-4)**2 / 8 = 340
_GATE = 2.0**10  # 8 over the size of a patch's state: the neurons of a patch are on by 1 to 6
_SIZE = 0.3  # of what the neurons add: the last state has about as much from them as from the toy's own layers


def unmixed(seed: int) -> tuple[LlavaForConditionalGeneration, Truth]:
    """The model and the truth of `unmixed`."""
    draw = torch.Generator().manual_seed(seed)
    model = wide_toy(2, _NEURONS, draw)
    width = model.config.text_config.hidden_size
    old, word, image = width - 2, width - 2, width - 1
    layers = model.model.language_model.layers
    with torch.no_grad():
        for layer in layers:
            queries, keys, _ = projections(layer.self_attn)
            queries[:, SLOW, word] = _APART
            keys[:-1, SLOW, image] = -_APART
            keys[-1, SLOW, image] = _APART
            mlp = layer.mlp
            mlp.gate_proj.weight[-_NEURONS:, image] = _GATE
            mlp.up_proj.weight[-_NEURONS:, :old] = (
                torch.randn(_NEURONS, old, generator=draw, dtype=torch.float32) / old**0.5
            )
            mlp.down_proj.weight[:old, -_NEURONS:] = (
                torch.randn(old, _NEURONS, generator=draw, dtype=torch.float32) * _SIZE / _NEURONS**0.5
            )
    shuffle_stream(model, torch.randperm(width, generator=draw))
    return model, Truth(
        "unmixed",
        "No position behind the image reads it: there, all states are equal to the last bit for all pictures, while patches "
        "hold what they show in every state.",
        layers=tuple(range(len(layers))),
        positions=("image", "after_image"),
        heads=tuple((layer, len(queries) - 1) for layer in range(len(layers))),
        effects={"change of any state after the image": 0.0, "share of attention of the heads that look": 1.0},
    )
