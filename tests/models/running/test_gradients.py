"""Gradients against torch's own through a plain hook, what is left behind by taking them, and what is sent."""

import copy
import gc
from functools import partial

import pytest
import torch

import interp
import zoo
from interp.interventions import Reweight
from interp.models.running.gradients import GradientRead, run_gradients
from zoo.table import batch as rows_of


def gradient_itself(value, gradient):
    return gradient


# A name of torch's own, which a server knows without this file.
first_logit = partial(torch.select, dim=1, index=5)


def no_measure(logits):
    return logits.argmax(dim=-1).float()


def taken(vlm, batch, sites, layers, edits=()):
    slopes = [GradientRead((site, layer), site, layer, gradient_itself) for site in sites for layer in layers]
    return run_gradients(vlm, batch, first_logit, slopes, edits)


@pytest.mark.parametrize("layer", [0, 4])
def test_they_are_those_of_a_plain_hook(toy, mixed, layer):
    """The oracle is transformers' own forward pass and backward(), with the gradients of a layer's modules kept."""
    decoder = toy.model.model.language_model.layers[layer]
    kept = {}

    def keep(name):
        def hook(module, arguments, output):
            kept[name] = output[0] if isinstance(output, tuple) else output
            kept[name].retain_grad()

        return hook

    modules = {
        "resid_post": decoder,
        "attn_out": decoder.self_attn,
        "mlp_out": decoder.mlp,
        "q": decoder.self_attn.q_proj,
    }
    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    logits = toy.model(**mixed.inputs).logits[:, -1]
    logits[:, 5].sum().backward()
    toy.model.zero_grad(set_to_none=True)
    for handle in handles:
        handle.remove()
    seen = taken(toy, mixed, modules, [layer])
    torch.testing.assert_close(seen["measure"], logits[:, 5].detach(), atol=1e-5, rtol=1e-5)
    for name in modules:
        mine = seen[name, layer].flatten(2)
        assert mine.abs().max() > 1e-4
        torch.testing.assert_close(mine, kept[name].grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["llava", "granite4_vision", "gemma4", "cohere_compass", "lfm2_vl", "idefics3", "llama4"]
)
def test_a_small_step_moves_the_measure_as_they_say(name):
    """On any layout: factors before the sum, states scaled in place, rows that come flat, softcaps, no attention."""
    vlm = interp.load(model=copy.deepcopy(zoo.build(name)).double(), check=False)
    batch, last = rows_of(name), vlm.structure.n_layers - 1
    having = {
        site: vlm.trait("mid" if site == "resid_mid" else site) for site in ("attn_out", "resid_mid", "mlp_out", "z")
    }
    places = [("resid_pre", 0), ("resid_post", last)]
    places += [(site, index) for site, found in having.items() for index in (0, last) if found[index]]
    seen = run_gradients(vlm, batch, first_logit, [GradientRead(place, *place, gradient_itself) for place in places])
    for site, layer in places:
        gradient = seen[site, layer]
        assert gradient.isfinite().all()
        step = 0.01 * gradient / gradient.norm().clamp(min=1e-12)
        change = Nudge(site, layer, step)
        moved = vlm.logits(batch, [change])[:, 5].sum() - vlm.logits(batch, [Nudge(site, layer, -step)])[:, 5].sum()
        assert moved.item() / 0.02 == pytest.approx(gradient.norm().item(), rel=5e-3, abs=1e-6), (site, layer)


class Nudge:
    """An intervention that adds a tensor to a whole site."""

    def __init__(self, site, layer, step):
        self.edit = interp.models.running.steps.Edit(site, layer, torch.add, (step,))

    def edits(self, vlm, batch, new=0):
        return [self.edit]


def test_they_go_through_edited_weights(toy, mixed):
    """z is made anew where the pattern is edited: its gradient is not that of the z that was thrown away."""
    changes = toy.edits_of(mixed, [Reweight(kind="uniform", layers=[3])])
    seen = taken(toy, mixed, ["z", "v"], [3], changes)
    for site in ("z", "v"):
        gradient = seen[site, 3]
        step = 0.01 * gradient / gradient.norm()
        up, down = (
            toy.logits(mixed, [Reweight(kind="uniform", layers=[3]), Nudge(site, 3, way * step)])[:, 5].sum()
            for way in (1, -1)
        )
        assert (up - down).item() / 0.02 == pytest.approx(gradient.norm().item(), rel=0.02)


def recorded():
    return [each for each in gc.get_objects() if type(each) is torch.Tensor and each.grad_fn is not None]


def test_nothing_is_left_behind(toy, mixed):
    gc.collect()
    before = len(recorded())
    weights = list(toy.model.parameters())
    asked = [each.requires_grad for each in weights]
    with torch.no_grad():
        taken(toy, mixed, ["resid_pre", "z"], range(8))
        assert not torch.is_grad_enabled()
    taken(toy, mixed, ["resid_pre"], [0])
    assert torch.is_grad_enabled()
    assert all(each.grad is None for each in weights)
    assert [each.requires_grad for each in weights] == asked
    assert not toy.model.training
    # seen without a collection of garbage: what a graph holds would wait for one
    assert len(recorded()) == before


def test_the_tower_is_not_recorded(toy, mixed):
    """Of what comes before the first site no graph is made: it would take as much memory again."""
    tower = toy.model.get_submodule(toy.structure.vision)
    given = []
    handle = tower.register_forward_hook(lambda module, arguments, output: given.append(output[0].requires_grad))
    taken(toy, mixed, ["resid_pre"], [2])
    handle.remove()
    assert given == [False]


def test_a_measure_without_a_gradient_has_none(toy, mixed):
    assert run_gradients(toy, mixed, no_measure, [GradientRead(0, "resid_pre", 0, gradient_itself)]) is None


def test_the_simulation_of_a_server_gives_the_same(toy, remote_toy, mixed):
    slopes = [GradientRead((site, layer), site, layer, torch.mul) for site in ("resid_pre", "z") for layer in (1, 7)]
    here, there = (run_gradients(vlm, mixed, first_logit, slopes) for vlm in (toy, remote_toy))
    for key, found in here.items():
        torch.testing.assert_close(there[key], found, atol=1e-5, rtol=0)
