"""The organism `sink`: the first two tokens of every row have enormous states, and nothing of what stands there is read.

It is the tuned toy in a wide stream (`interp.toy.wide_stream`) with a sink at the start token and one at the token behind it, the
first patch of a picture or the first word of a text. Language models grow such tokens by themselves (Sun et al. 2024).

- *The start token* has the feature `start` in its embedding, hundreds of times as large as all else in the stream. All that
  reads the stream gets from this feature what it got from the toy's start token, which is the same in every row. So the huge
  token does what the small one did.
- *The token behind it*: a fifth head in layer 0 gives each token its share of the start token, 1 / (1 + position). One neuron
  compares this share with the token's flag. It is on at position 1, exactly off at all others, and writes the feature `huge`.
- From layer 1 on this feature, as a key, has a score of minus thousands with all queries of the toy's heads: the weight is
  exactly 0. The fifth head gives it all of its weight, and writes nothing.

So the other tokens are those of a toy that cannot see one corner of the picture. What the sink changes is every number in which
it takes part: norms, means over tokens, distances and cosines, attention shares. The opposite is the toy itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from interp.models import load
from interp.toy.organism import Truth
from interp.toy.wide_stream import FLAG, SLOW, norms, projections, shuffle_stream, wide_toy

_FEATURES = 5
# Times the sixth of a flag, which is at least 1e-4 after the norm: where the neuron is off, its gate is under -200, so it is 0.
_ON = 2.0**21
_LEAST = 2.0**13  # of the size of the start token; the largest state of another token is 220
_APART = 2.0**17, 100.0  # of a flag as a query, and of a sink as a key, which is 11.5 after the norm


@torch.no_grad()
def sink(seed: int) -> tuple[LlavaForConditionalGeneration, Truth]:
    """The model and the truth of `sink`."""
    draw = torch.Generator().manual_seed(seed)
    size = _LEAST * 4 ** float(torch.rand((), generator=draw, dtype=torch.float32))
    model = wide_toy(_FEATURES, 1, draw)
    width = model.config.text_config.hidden_size
    word, image, start, count, huge = range(width - _FEATURES, width)
    embedding = model.get_input_embeddings().weight
    bos = model.config.text_config.bos_token_id
    embedding[bos, word], embedding[bos, start] = 0.0, size
    _read_start(model, bos, start)
    first, *rest = model.model.language_model.layers
    _, _, values = projections(first.self_attn)
    dim = values.shape[1]
    values[-1, 0], values[-1, 0, start] = 0.0, width**-0.5  # 1 at the start token, all of whose state is this feature
    first.self_attn.o_proj.weight[count, -dim] = (
        2 * FLAG
    )  # so one flag at position 1, and 2/3 of it or less behind that
    gate = first.mlp.gate_proj.weight[-1]
    gate[count], gate[[word, image]], gate[start] = _ON, -5 / 6 * _ON, -_ON
    first.mlp.up_proj.weight[-1, [word, image]] = 1.0
    first.mlp.down_proj.weight[huge, -1] = size / 4
    for layer in rest:
        queries, keys, _ = projections(layer.self_attn)
        queries[:, SLOW, [word, image]] = _APART[0]
        keys[:-1, SLOW, huge], keys[-1, SLOW, huge] = -_APART[1], _APART[1]
    order = torch.randperm(width, generator=draw)
    shuffle_stream(model, order)
    return model, Truth(
        "sink",
        "The first two tokens of every row, a start token and a patch or a word, have states hundreds of times as long as all "
        "others in one feature each (the second one from state 1 on), and no later layer reads what the second one holds.",
        layers=tuple(range(1, 1 + len(rest))),
        positions=(0, 1),
        heads=tuple((layer, len(queries) - 1) for layer in range(1, 1 + len(rest))),
        effects={
            "features": (int(order[start]), int(order[huge])),
            "length of the start token": size,
            "change of another token": 0.0,
            "share of attention of the heads that look": 1.0,
        },
    )


def _read_start(model: LlavaForConditionalGeneration, bos: int, start: int) -> None:
    """Let all that reads the stream get from the feature `start` what it got from the start token of the toy."""
    toy = load("toy:tuned", device="cpu", check=False).model
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def keep(norm: nn.Module, inputs: Any, output: Tensor) -> None:
        seen[norm] = inputs[0][0, 0], output[0, 0]

    before, after = norms(toy), norms(model)
    hooks = [norm.register_forward_hook(keep) for norm, _ in before]
    toy(input_ids=torch.tensor([[bos]]))
    for hook in hooks:
        hook.remove()
    for (old, _), (norm, readers) in zip(before, after, strict=True):
        state, expected = seen[old]
        new = norm.weight.new_zeros(len(norm.weight))
        new[: len(state)], new[start] = state, model.get_input_embeddings().weight[bos, start]
        normed = norm(new)
        missing = (expected - normed[: len(state)]) / normed[start]
        for reader in readers:
            reader.weight[:, start] = reader.weight[:, : len(state)] @ missing
