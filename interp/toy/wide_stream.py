"""A wide stream: the tuned toy in a residual stream with further features, which start out as ones that nothing uses.

The new model computes what the toy computes, up to rounding, and has room for what an organism plants:

- `features` more in the stream. No weight reads or writes them yet. The norm divides by the root of a mean square over more
  features, so its weights and its epsilon are changed to give the toy's features as they were.
- In every layer one more head, which writes nothing, and `neurons` more in the MLP. The head's queries and keys are random and so
  small that it gives nearly equal weights to all it sees. Its values are random too.
- Heads are twice as wide. The toy's rotary pairs turn as before, each other pair is new. The slowest of these turns by
  0.00013 a token, so a product of a query and a key in `SLOW` depends on what the two tokens are, not on where.

A *flag* is a feature in which all tokens of a kind have the size `FLAG`. It is so small that half of the toy's epsilon
pays for it: the norm's mean square is that of the toy, to the last bit or so. A query of a flag and a key of another one give
a score of minus hundreds or more, whose weight after the softmax is exactly 0.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration

from interp.models import load

FLAG = 2.0**-7
SLOW = 31  # of the 64 of a head: the first half of its slowest rotary pair
_FAINT = 0.005  # of the new head's queries and keys: scores of 0.003 or so


def widen(toy: LlavaForConditionalGeneration, features: int, neurons: int) -> LlavaForConditionalGeneration:
    """The toy with so many more features in the stream, behind its own, and neurons in each MLP, and a fifth head."""
    config = LlavaConfig(**toy.config.to_dict())
    text = config.text_config
    old, dim = text.hidden_size, text.head_dim
    text.hidden_size, text.intermediate_size = old + features, text.intermediate_size + neurons
    text.num_attention_heads = text.num_key_value_heads = text.num_attention_heads + 1
    text.head_dim = 2 * dim
    text.rms_norm_eps = (text.rms_norm_eps * old - FLAG**2) / text.hidden_size
    with torch.random.fork_rng(devices=[]):
        wide = LlavaForConditionalGeneration(config).to(toy.dtype).eval()
    wide.generation_config = toy.generation_config
    weights = dict(toy.state_dict())
    with torch.no_grad():
        for name, new in wide.state_dict().items():
            value = weights[name]
            is_norm = value.shape == (old,) and name.endswith("norm.weight")
            if is_norm:
                value = value * (old / text.hidden_size) ** 0.5
            elif "language_model" in name and "self_attn" in name:
                value = _wider_heads(name, value, dim)
            if value.shape != new.shape:
                new.fill_(float(is_norm))
            new[tuple(slice(size) for size in value.shape)] = value
    return wide


def _wider_heads(name: str, value: Tensor, dim: int) -> Tensor:
    """The weights of heads of twice the width: rotary pair j becomes pair 2 j. Scores are divided by a larger root."""
    by_head = value.T if name.endswith("o_proj.weight") else value
    by_head = by_head.unflatten(0, (-1, dim))
    new = by_head.new_zeros(len(by_head), 2 * dim, by_head.shape[-1])
    new[:, 0::2] = by_head * (2**0.5 if name.endswith("q_proj.weight") else 1.0)
    return new.flatten(0, 1).T if name.endswith("o_proj.weight") else new.flatten(0, 1)


@torch.no_grad()
def wide_toy(features: int, neurons: int, draw: torch.Generator) -> LlavaForConditionalGeneration:
    """``toy:tuned`` after `widen`, with tokens of words flagged in the first new feature, those of images in the second."""
    model = widen(load("toy:tuned", device="cpu", check=False).model, features, neurons)
    old = model.config.text_config.hidden_size - features
    model.get_input_embeddings().weight[:, old] = FLAG
    model.model.multi_modal_projector.linear_2.bias[old + 1] = FLAG
    for layer in model.model.language_model.layers:
        queries, keys, values = (each[-1] for each in projections(layer.self_attn))
        for each, size in ((queries, _FAINT), (keys, _FAINT), (values, old**-0.5)):
            each[:, :old] = torch.randn(each[:, :old].shape, generator=draw, dtype=torch.float32) * size
        for each in (queries, keys):
            each[[SLOW, SLOW + len(each) // 2]] = 0
    return model


def projections(attention: nn.Module) -> tuple[Float[Tensor, "head dim feature"], ...]:
    """Views of a layer's weights of queries, keys and values, by head."""
    dim = attention.head_dim
    return tuple(getattr(attention, f"{name}_proj").weight.unflatten(0, (-1, dim)) for name in "qkv")


def norms(model: LlavaForConditionalGeneration) -> list[tuple[Any, list[nn.Linear]]]:
    """Each norm of the decoder, with the maps that read the stream through it."""
    decoder, pairs = model.model.language_model, []
    for layer in decoder.layers:
        attention, mlp = layer.self_attn, layer.mlp
        pairs.append((layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj]))
        pairs.append((layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj]))
    return [*pairs, (decoder.norm, [model.lm_head])]


@torch.no_grad()
def shuffle_stream(model: LlavaForConditionalGeneration, order: Int[Tensor, " feature"]) -> None:
    """Put the features of the stream in another order, in place: feature i comes to stand at ``order[i]``."""
    inverse, layers = order.argsort(), model.model.language_model.layers
    writers = [model.model.multi_modal_projector.linear_2]
    writers += [linear for layer in layers for linear in (layer.self_attn.o_proj, layer.mlp.down_proj)]
    for writer in writers:
        writer.weight.copy_(writer.weight[inverse])
        if writer.bias is not None:
            writer.bias.copy_(writer.bias[inverse])
    embedding: Any = model.get_input_embeddings()
    embedding.weight.copy_(embedding.weight[:, inverse])
    for norm, readers in norms(model):
        norm.weight.copy_(norm.weight[inverse])
        for reader in readers:
            reader.weight.copy_(reader.weight[:, inverse])
