"""Captured activations under TransformerLens's names, against transformers' own states."""

import pytest
import torch
from transformer_lens import ActivationCache

import interp
from interp.interop import to_transformer_lens

ALL = {"positions": "all", "reduce": "none", "progress": False}


@pytest.fixture(scope="module")
def acts(toy, mixed):
    return interp.capture(toy, [mixed], ("resid", "resid_mid", "attn_out", "mlp_out"), **ALL)


def test_states_have_their_names_and_places(toy, mixed, acts):
    cache = to_transformer_lens(acts)
    assert isinstance(cache, ActivationCache)
    with torch.no_grad():
        states = toy.model(**toy.inputs_of(mixed), output_hidden_states=True).hidden_states
    real = mixed.positions["all"]
    for layer in range(8):
        found = cache["resid_pre", layer]
        torch.testing.assert_close(found[real], states[layer][real], atol=1e-6, rtol=0)
        assert (found[~real] == 0).all()
    torch.testing.assert_close(cache["resid_pre", 3] + cache["attn_out", 3], cache["resid_mid", 3], atol=1e-5, rtol=0)
    last = cache["resid_mid", 7] + cache["mlp_out", 7]
    torch.testing.assert_close(last, cache["blocks.7.hook_resid_post"], atol=1e-5, rtol=0)


def test_heads_have_their_axes(toy, mixed):
    cache = to_transformer_lens(interp.capture(toy, [mixed], ("z", "k", "pattern"), **ALL))
    real = mixed.positions["all"]
    batch, seq = real.shape
    assert cache["z", 2].shape == cache["k", 2].shape == (batch, seq, 4, 32)
    pattern = cache["pattern", 2]
    assert pattern.shape == (batch, 4, seq, seq)
    torch.testing.assert_close(pattern.sum(dim=-1), real[:, None].expand(-1, 4, -1).float(), atol=1e-5, rtol=0)
    assert (pattern * ~real[:, None, None, :] == 0).all()  # no weight on padding
    assert (pattern.triu(1) == 0).all()


def test_its_methods_run(acts):
    cache = to_transformer_lens(acts)
    whole = cache.accumulated_resid(layer=8, incl_mid=False)
    assert whole.shape[0] == 9
    assert torch.equal(cache.stack_activation("mlp_out")[2], cache["mlp_out", 2])


def test_pooled_activations_have_one_position(toy, few):
    acts = interp.capture(toy, few, layers=[0, 8], progress=False)
    cache = to_transformer_lens(acts)
    assert sorted(cache.keys()) == ["blocks.0.hook_resid_pre", "blocks.7.hook_resid_post"]
    assert torch.equal(cache["resid_post", 7][:, 0], acts["resid"][1])


def test_what_enters_a_layer_wins(toy, few):
    acts = interp.capture(toy, few, ("resid_pre", "resid"), progress=False)
    assert torch.equal(to_transformer_lens(acts)["resid_pre", 4][:, 0], acts["resid_pre"][4])


def test_from_a_folder(toy, few, tmp_path):
    interp.capture(toy, few, out=tmp_path / "acts", **ALL)
    cache = to_transformer_lens(interp.open_activations(tmp_path / "acts"))
    assert cache["resid_pre", 0].shape == (3, 37, 128)


def test_what_has_no_name_there(toy, few):
    acts = interp.capture(toy, few, ("vision", "resid"), progress=False)
    with pytest.raises(interp.InputError, match=r"'vision' has no name in TransformerLens.*\['resid'\]"):
        to_transformer_lens(acts)
