"""Replay: layers made by hand, called again for some positions, with stored keys and with a changed value inside."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from interp.models.running.places import Place
from interp.models.running.replay import (
    Cache,
    KeysMade,
    Run,
    Signature,
    call_changed,
    call_for_last,
    call_layer,
    from_position,
    put_before,
    with_cache,
    with_states,
)
from interp.models.running.slots import Argument, HeadsSlot, MidSlot, OutputSlot
from interp.models.running.structure import Heads

LENGTH, WIDTH = 4, 6
CACHE, MASK = Argument("past_key_values", 2), Argument("attention_mask", 1)


class Layer(nn.Module):
    """Attention with uniform weights over all that came before, and a linear part behind it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(WIDTH, WIDTH).requires_grad_(False)

    def forward(self, hidden_states, attention_mask=None, past_key_values=None):
        keys, values = (hidden_states[:, None] * scale for scale in (2.0, 3.0))
        keys, values = past_key_values.update(keys, values, 0)
        queries, length = hidden_states.shape[1], values.shape[2]
        allowed = attention_mask
        if allowed is None:
            allowed = torch.ones(queries, length).bool().tril(0 if queries > 1 else length)[None, None]
        weights = allowed.float() / allowed.sum(dim=-1, keepdim=True)
        return (hidden_states + self.inner((weights @ values)[:, 0]), None)


@pytest.fixture
def run():
    layer, cache, states = Layer(), Cache(), torch.randn(1, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    call = (states,), {"past_key_values": cache}
    output, _ = layer(*call[0], **call[1])
    values = {("call", 0): call, ("enters", 0): states, ("leaves", 0): output}
    return Run({0: layer}, {0: Signature(CACHE, MASK, True)}, {}, values, cache.keys)


@pytest.mark.parametrize("start", range(LENGTH))
def test_a_layer_called_from_a_position_gives_what_the_whole_gives(run, start):
    states = run.values["enters", 0].expand(2, -1, -1).clone()
    states[1, start:] += 1
    whole, _ = run.layers[0](states, past_key_values=Cache())
    part = call_layer(run, 0, states[:, start:], start, run.keys)
    torch.testing.assert_close(part, whole[:, start:])
    last = call_for_last(run, 0, states[:, start:], start)
    torch.testing.assert_close(last, whole[:, -1:])


@pytest.mark.parametrize("slot", ["output", "input", "mid"])
def test_a_value_inside_a_layer_is_changed(run, slot):
    """Of a linear part it is known what another input, another output and another sum give."""
    layer, heads = run.layers[0], Heads("inner", "input", 1, 0, WIDTH, 3, 0)
    states = run.values["enters", 0].expand(3, -1, -1)
    slots = {"output": OutputSlot(2.0), "input": HeadsSlot(heads, 1), "mid": MidSlot(OutputSlot())}
    run.places[0] = Place(SimpleNamespace(_module=layer.inner), slots[slot])
    shapes = []

    def change(value):
        shapes.append(tuple(value.shape))
        return torch.zeros_like(value)

    changed = call_changed(run, 0, states[:, 1:], 1, change)
    expected = {"output": states, "input": states + layer.inner.bias, "mid": torch.zeros_like(states)}[slot]
    torch.testing.assert_close(changed, expected[:, 1:])
    assert shapes == [(3, LENGTH - 1, 2, 3) if slot == "input" else (3, LENGTH - 1, WIDTH)]
    assert not layer.inner._forward_hooks
    assert not layer.inner._forward_pre_hooks


def test_a_cache_records_or_puts_before():
    new = torch.ones(2, 1, 1, 3), torch.ones(2, 1, 1, 3) * 2
    record = Cache()
    assert record.update(*new, 5) == new == record.keys[5]
    assert record.get_seq_length() == 0
    stored = {5: (torch.zeros(1, 1, 3, 3), torch.zeros(1, 1, 3, 3) - 1)}
    past = Cache(stored, 2)
    keys, values = past.update(*new, 5)
    assert keys[1, 0, :, 0].tolist() == [0, 0, 1]
    assert values[1, 0, :, 0].tolist() == [-1, -1, 2]
    assert past.get_seq_length() == 2
    with pytest.raises(KeysMade):
        Cache(stored, 2, leave=True).update(*new, 5)
    assert put_before(torch.zeros(1, 1, 9, 3), new[0], 2) is new[0]  # keys of a picture


def test_arguments_are_cut_to_the_positions_and_spread_over_versions():
    mask, angles = torch.arange(16).reshape(1, 1, 4, 4), torch.arange(4)[None]
    cut = from_position({"mask": mask, "both": (angles, 3), "name": "x"}, 1, 4, 5)
    assert cut["mask"].shape == (5, 1, 3, 4)
    assert cut["mask"][4, 0].tolist() == mask[0, 0, 1:].tolist()
    assert cut["both"][0].tolist() == [[1, 2, 3]] * 5
    assert (cut["both"][1], cut["name"]) == (3, "x")


def test_states_and_caches_are_put_by_place_or_by_name():
    assert with_states((1, 2), {"a": 3}, 9) == ((9, 2), {"a": 3})
    assert with_states((), {"x": 1, "a": 3}, 9) == ((), {"x": 9, "a": 3})
    assert with_cache(((1, 2, 3), {}), 9, CACHE) == ((1, 2, 9), {})
    assert with_cache(((1,), {"past_key_values": 3}), 9, CACHE) == ((1,), {"past_key_values": 9})


def test_what_a_model_adds_between_its_layers_is_known():
    states = torch.zeros(1, 2, 3)
    values = {("leaves", layer): states + layer for layer in range(3)} | {
        ("enters", layer): states + (layer - 1 if layer == 1 else 5) for layer in range(3)
    }
    run = Run({0: None, 1: None, 2: None}, {}, {}, values, None)
    assert run.added[1] is None
    assert (run.added[2] == 4).all()
    assert 0 not in run.added
