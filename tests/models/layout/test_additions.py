"""Sums with planted parts are solved for, and what does not add up is not taken."""

import pytest
import torch

from interp.models.layout.additions import ROUNDINGS, solve_readout, solve_sum, visits_to_parts
from interp.models.running.readout import LogitScaling
from interp.models.running.structure import Added
from interp.models.running.trace import Visit


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(attn_factor=1.0, mlp_factor=1.0, rest=0.0):
    """The visits to a layer that adds its attention behind a norm and its MLP, each times a factor, and a rest."""
    before, attn, normed, mlp, other = (normal(2, 5, 16, seed=seed) for seed in range(5))
    mid = before + attn_factor * normed
    outputs = {"attn": (before, attn), "attn_norm": (attn, normed), "mlp": (mid, mlp)}
    after = mid + mlp_factor * mlp + rest * other
    visits = {name: [Visit(*each)] for name, each in outputs.items()}
    return before, {"": [Visit(before, after)], **visits}


@pytest.mark.parametrize("factors", [(1.0, 1.0), (0.25, 3.0)])
def test_planted_parts_and_factors(factors):
    before, visits = layer(*factors)
    result = solve_sum(visits, before, "attn", "mlp")
    assert (result.attn.module, result.mlp.module) == ("attn_norm", "mlp")
    assert (result.attn.scale, result.mlp.scale) == pytest.approx(factors, rel=1e-5)
    assert result.error < 0.5 < ROUNDINGS
    assert result.mid


def test_something_else_that_is_added_costs_the_mlp_alone():
    """Attention is still known: the MLP gets exactly state plus attention."""
    before, visits = layer(rest=1e-3)
    result = solve_sum(visits, before, "attn", "mlp")
    assert result.attn == Added("attn_norm")
    assert result.mlp is None
    assert result.error > 100 * ROUNDINGS


def test_rows_in_one_axis():
    before, visits = layer()
    visits["mlp"] = [Visit(None, visits["mlp"][0].output.flatten(0, 1))]
    visits["late"] = [Visit(before + visits["attn_norm"][0].output, None)]
    assert solve_sum(visits, before, "attn", "mlp").mlp == Added("mlp", flat=True)


class Config:
    final_logit_softcapping = None
    logit_scale = 0.125


@pytest.mark.parametrize(("scale", "measured"), [(0.125, 0.125), (8.0, 8.0), (1.0, 1.0), (0.3, 0.3)])
def test_a_scale_is_measured_and_not_believed(scale, measured):
    plain = normal(6, 30, seed=0)
    assert solve_readout(plain, scale * plain, Config()).scale == pytest.approx(measured, rel=1e-5)


def test_a_cap_and_suppressed_ids():
    config = Config()
    config.final_logit_softcapping = 20.0
    plain = normal(6, 30, seed=0)
    logits = 20 * torch.tanh(plain / 20)
    logits[:, 4] = torch.finfo(logits.dtype).min
    assert solve_readout(plain, logits, config) == LogitScaling(cap=20.0, suppressed=(4,))


def test_parts_of_modules(toy, mixed):
    """Children alone, or parts of parts too; each with the visits in the order in which they began."""
    paths = {3: f"{toy.structure.layers}.3"}
    children = visits_to_parts(toy, mixed, paths, nested=False)[3]
    parts = visits_to_parts(toy, mixed, paths)[3]
    assert list(children)[:3] == ["", "input_layernorm", "self_attn"]
    assert "self_attn.q_proj" in parts
    assert "self_attn.q_proj" not in children
    assert torch.equal(parts["mlp"][0].output, children["mlp"][0].output)
