"""Patterns are transformers' own attention weights, and the means of the values with them are the heads' outputs."""

import pytest
import torch

from interp.models.layout.patterns import are_shares, explains, is_plain_mean
from interp.models.running.attention import eager
from interp.models.running.masks import PATTERNED
from interp.models.running.steps import Read, whole
from interp.models.running.trace import run_forward
from zoo.table import batch, load


def softmax_layers(vlm):
    return [layer for layer, kind in enumerate(vlm.structure.attention) if kind in PATTERNED]


def read(vlm, rows, sites):
    reads = [Read((site, layer), site, layer, whole) for layer in softmax_layers(vlm) for site in sites]
    return run_forward(vlm, rows, reads=reads, logits=None)


@pytest.mark.parametrize("name", ["llava", "fuyu", "gemma3", "qwen2_vl", "kimi_k25", "chameleon"])
def test_weighed_values_are_z(name):
    vlm, rows = load(name), batch(name)
    seen = read(vlm, rows, ("v", "z", "pattern"))
    for layer in softmax_layers(vlm):
        pattern, v, z = seen["pattern", layer], seen["v", layer], seen["z", layer]
        each = v.repeat_interleave(z.shape[2] // v.shape[2], dim=2)
        torch.testing.assert_close(torch.einsum("bqhk,bkhd->bqhd", pattern, each), z, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_vl", "paligemma", "llama4"])
def test_pattern_is_transformers_own(name):
    vlm, rows = load(name), batch(name)
    seen = read(vlm, rows, ("pattern",))
    with eager(vlm), torch.no_grad():
        own = vlm.model(**vlm.inputs_of(rows), output_attentions=True).attentions
    for layer in softmax_layers(vlm):
        torch.testing.assert_close(seen["pattern", layer].transpose(1, 2), own[layer], rtol=1e-5, atol=1e-6)


def planted(heads=4, groups=2, d_head=8, seq=5):
    """Causal weights [batch, head, query, key], values [batch, key, group, d_head], and the mean of these by hand."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.ones(seq, seq).triu(1).bool()
    scores = torch.randn(2, heads, seq, seq, generator=generator).masked_fill(hidden, -torch.inf)
    values = torch.randn(2, seq, groups, d_head, generator=generator)
    weights = scores.softmax(dim=-1)
    z = torch.stack([weights[:, head] @ values[:, :, head * groups // heads] for head in range(heads)], dim=2)
    return weights, values, z, (~hidden).expand(2, 1, seq, seq)


def test_planted_weights_explain_the_heads_and_no_others_do():
    weights, values, z, allowed = planted()
    real = torch.ones(2, 5).bool()
    assert are_shares(weights, allowed, real)
    assert not are_shares(weights.flip(3), allowed, real)
    assert not are_shares(2 * weights, allowed, real)
    assert is_plain_mean(real, values, z, weights.transpose(1, 2))
    assert not is_plain_mean(real, values, z, weights.flip(1).transpose(1, 2))
    # Values that are alike at every key have one mean under any weights.
    alike = values[:, :1].expand_as(values)
    assert not explains(weights, [alike.flatten(2)], [alike.repeat_interleave(2, dim=2)], real)
