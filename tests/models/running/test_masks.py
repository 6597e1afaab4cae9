"""Masks: every form that reaches a layer is read as one, written back as what it was, and says who sees whom."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.interventions.knockout import cut
from interp.models.running.masks import as_allowed, like, none_is_causal
from patterned import attention_modules, batch_of, load

LOWEST = torch.finfo(torch.float32).min


# One form and another ----------------------------------------------------------------------------------------------------


@st.composite
def masks(draw):
    """A layer's own mask in any form, the states that come with it, and what None stands for."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    form = draw(st.sampled_from(["none", "bool", "float", "bias"]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    batch, heads, queries = draw(st.integers(1, 3)), draw(st.sampled_from([1, 4])), draw(st.integers(1, 6))
    hidden, causal = torch.randn(batch, queries, 8, dtype=dtype), draw(st.booleans())
    if form == "none":
        return None, hidden, causal
    keys = queries + draw(st.integers(0, 3))
    allowed = torch.rand(draw(st.sampled_from([1, batch])), heads, queries, keys) < 0.6
    bias = torch.randn(allowed.shape) * 4 * (form == "bias")
    blocked = draw(st.sampled_from([float("-inf"), torch.finfo(dtype).min, -1e4]))
    return (allowed if form == "bool" else bias.masked_fill(~allowed, blocked).to(dtype)), hidden, causal


@given(masks())
@settings(max_examples=200, deadline=None)
def test_a_mask_that_was_not_edited_is_the_same_mask(case):
    mask, hidden, causal = case
    before = as_allowed(mask, hidden, causal)
    assert before.dtype == torch.bool
    assert len(before) == len(hidden)
    assert like(before.clone(), before, mask, hidden) is mask


@given(masks(), st.sampled_from([1, 4]), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_an_edited_mask_means_what_was_written(case, heads, kept):
    mask, hidden, causal = case
    before = as_allowed(mask, hidden, causal)
    heads = max(heads, before.shape[1])
    wanted = torch.rand(len(before), heads, *before.shape[2:]) < kept
    wanted[..., 0] |= ~wanted.any(dim=-1)  # no query without a key
    written = like(wanted, before, mask, hidden)
    assert (as_allowed(written, hidden, causal) == wanted).all()
    if mask is None:
        assert written is None or written.dtype == hidden.dtype
    else:
        assert written.dtype == mask.dtype


def test_a_bias_stays_wherever_nothing_was_cut():
    bias = torch.randn(2, 4, 5, 5)
    mask = bias.masked_fill(~torch.ones(5, 5).bool().tril(), LOWEST)
    before = as_allowed(mask, torch.zeros(2, 5, 8), True)
    wanted = before.clone()
    wanted[:, 1, 4, 2], wanted[0, 0, 1, 3] = False, True
    written = like(wanted, before, mask, torch.zeros(2, 5, 8))
    assert (written[:, 1, 4, 2] == LOWEST).all()
    assert written[0, 0, 1, 3] == 0
    untouched = wanted == before
    assert (written[untouched] == mask[untouched]).all()


def test_what_none_stands_for():
    hidden = torch.zeros(2, 3, 8)
    assert as_allowed(None, hidden, True)[1, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert as_allowed(None, hidden, False).all()


def test_what_is_no_mask_of_edges():
    for mask in (torch.ones(2, 5), "blocks"):
        with pytest.raises(ValueError, match=r"expected \(batch, heads, query, key\)"):
            as_allowed(mask, torch.zeros(2, 5, 8), True)


def test_a_query_is_left_a_key():
    hidden = torch.zeros(1, 3, 8)
    before = as_allowed(None, hidden, True)
    wanted = before.clone()
    wanted[:, :, 1] = False
    with pytest.raises(ValueError, match="attend to nothing"):
        like(wanted, before, None, hidden)
    blind = torch.zeros(1, 1, 3, 3, dtype=torch.bool)  # as rows of padding are
    assert like(blind, blind, blind, hidden) is blind


def test_which_implementations_are_read():
    def module(implementation, **more):
        return SimpleNamespace(config=SimpleNamespace(_attn_implementation=implementation), **more)

    assert none_is_causal(module("sdpa", is_causal=True))
    assert none_is_causal(module("sdpa"))
    assert not none_is_causal(module("sdpa", is_causal=False))
    assert not none_is_causal(module("eager", is_causal=True))
    assert none_is_causal(SimpleNamespace())  # a module that does not say is taken for a decoder's
    for name in ("flash_attention_2", "flex_attention"):
        with pytest.raises(interp.InputError, match=f"attn_implementation='{name}'.*'sdpa' or 'eager'"):
            none_is_causal(module(name))


def test_what_runs_in_a_trace_carries_no_annotations():
    assert not any(function.__annotations__ for function in (as_allowed, like, cut))


@pytest.mark.parametrize("padded", [False, True])
def test_the_forms_that_transformers_sends(padded):
    """If this fails, transformers has a form that `masks` was not written for."""
    forms = {}
    for implementation in ("eager", "sdpa"):
        vlm, batch = load("llava", implementation), batch_of("llava", padded)
        module = attention_modules(vlm)[0]
        handle = module.register_forward_pre_hook(
            lambda _, args, kwargs, at=implementation: forms.update({at: kwargs["attention_mask"]}), with_kwargs=True
        )
        vlm.logits(batch)
        handle.remove()
    assert forms["eager"].dtype == torch.float32
    assert forms["eager"].ndim == 4
    assert (forms["sdpa"] is None) is not padded
    assert not padded or forms["sdpa"].dtype == torch.bool
