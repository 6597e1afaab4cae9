"""The one trace: what is read is what transformers computes, and an edit changes what it should and nothing else."""

import gc
import weakref

import pytest
import torch

import interp
from interp.models.running.steps import Edit, Read, take_mean, whole, write
from interp.models.running.trace import (
    any_head,
    logits_at,
    run_for_shapes,
    run_for_visits,
    run_forward,
    run_until_reads,
    visible,
)
from patterned import BOTH, KINDS, batch_of, load, weights_of


def read_all(vlm, batch):
    depth = vlm.structure.n_layers
    reads = [Read(state, "resid_pre", state, whole) for state in range(depth)]
    return run_forward(vlm, batch, reads=[*reads, Read(depth, "resid_post", depth - 1, whole)], logits="all")


def test_states_are_transformers_hidden_states(toy, mixed):
    with torch.no_grad():
        own = toy.model(**toy.inputs_of(mixed), output_hidden_states=True)
    seen = read_all(toy, mixed)
    for state in range(toy.structure.n_layers):
        torch.testing.assert_close(seen[state], own.hidden_states[state], atol=1e-6, rtol=0)
    assert (seen["logits"] == own.logits).all()
    normed = toy.model.model.language_model.norm(seen[toy.structure.n_layers])
    torch.testing.assert_close(normed, own.hidden_states[-1], atol=1e-6, rtol=0)


def test_attention_and_mlp_add_up_to_the_stream(toy, mixed):
    reads = [Read((site, 2), site, 2, whole) for site in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
    seen = run_forward(toy, mixed, reads=reads, logits=None)
    total = seen["resid_pre", 2] + seen["attn_out", 2] + seen["mlp_out", 2]
    torch.testing.assert_close(total, seen["resid_post", 2], atol=1e-5, rtol=0)


def test_last_logits_are_the_last_of_all(toy, mixed):
    everything = toy.logits(mixed, positions="all")
    assert everything.shape == (3, mixed.inputs["input_ids"].shape[1], toy.structure.vocab_size)
    # only the last position goes through the head, a product of another shape, which rounds otherwise
    torch.testing.assert_close(toy.logits(mixed), everything[:, -1], atol=1e-5, rtol=0)
    with pytest.raises(interp.InputError, match="'first'"):
        toy.logits(mixed, positions="first")


def test_an_edit_acts_from_its_layer_on(toy, mixed):
    rows, columns = mixed.positions["last"].nonzero(as_tuple=True)
    edit = Edit("resid_pre", 4, write, (rows, columns, torch.zeros(3, 128)))
    depth = toy.structure.n_layers
    reads = [Read(state, "resid_pre", state, whole) for state in range(depth)]
    changed = run_forward(toy, mixed, [edit], reads)
    plain = read_all(toy, mixed)
    for state in range(4):
        assert (changed[state] == plain[state]).all()
    assert (changed[4][:, -1] == 0).all()
    assert (changed[4][:, :-1] == plain[4][:, :-1]).all()
    assert (changed[5][:, :-1] == plain[5][:, :-1]).all()  # causal: nothing looks ahead
    assert not torch.allclose(changed["logits"], plain["logits"][:, -1])


def test_generation_is_transformers_own(toy, mixed):
    inputs = toy.inputs_of(mixed)
    own = toy.model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :].tolist()
    end = toy.model.generation_config.eos_token_id
    kept = [row[: row.index(end)] if end in row else row for row in own]
    expected = [toy.tokenizer.decode(row, skip_special_tokens=True) for row in kept]
    assert toy.generate(mixed, max_new_tokens=6) == expected
    assert all(expected)
    assert all("<" not in text for text in expected)
    with pytest.raises(interp.InputError, match="max_new_tokens=0"):
        toy.generate(mixed, max_new_tokens=0)


def test_nnsights_own_trace_is_in_reach(toy, mixed):
    with torch.no_grad(), toy.trace(mixed):
        state = toy.layers[3].output.save()
        normed = toy.norm.output.save()
        logits = toy.head.output.save()
    assert (state == read_all(toy, mixed)[4]).all()
    assert (logits[:, -1] == toy.model.lm_head(normed)[:, -1]).all()


@pytest.mark.gpu
def test_on_a_gpu(mixed, toy):
    vlm = interp.load("toy")
    assert vlm.device.type == "cuda"
    torch.testing.assert_close(vlm.logits(mixed).cpu(), toy.logits(mixed), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("busy", [True, False])
def test_a_trace_keeps_nothing_when_it_is_done(toy, mixed, busy):
    """However it ends, what enters the layers is free at once: whether Python looks at its youngest objects all the time,
    by which they get old and are looked at no more, or never."""
    entered = []
    layer = toy.model.get_submodule(toy.structure.layers)[0]
    handle = layer.register_forward_pre_hook(lambda _, args: entered.append(weakref.ref(args[0])))
    read = [Read("mean", "resid_post", 1, take_mean, (mixed.positions["all"], None))]
    runs = {
        "to the end": lambda: run_forward(toy, mixed, reads=read),
        "stopped": lambda: run_forward(toy, mixed, reads=read, logits=None),
        "until reads": lambda: run_until_reads(toy, mixed.inputs, read),
        "for shapes": lambda: run_for_shapes(toy, mixed.inputs, [toy.layers[0]]),
    }
    before = gc.get_threshold()
    gc.collect()
    gc.set_threshold(20 if busy else 10**6, 1, 10**6)
    try:
        for name, run in runs.items():
            run()
            assert all(ref() is None for ref in entered), name
    finally:
        gc.set_threshold(*before)
        handle.remove()
    assert len(entered) == len(runs)


def test_garbage_is_collected_after_a_trace_as_it_was_before(toy, mixed):
    gc.disable()
    run_forward(toy, mixed)
    assert not gc.isenabled()
    gc.enable()
    with pytest.raises(ZeroDivisionError):
        run_forward(toy, mixed, [Edit("resid_pre", 0, divide)])
    assert gc.isenabled()


def divide(value):
    return 1 // 0


# Visits ------------------------------------------------------------------------------------------------------------------


def test_visits_are_what_a_plain_hook_sees(toy, mixed):
    """Of each of two modules its one run: the first input, the first output, and the others that are tensors."""
    layer = toy.layers[2]
    hooked = {}
    for name, module in (("attn", layer.self_attn._module), ("mlp", layer.mlp._module)):
        hooked[name] = module.register_forward_hook(
            lambda _, args, kwargs, output, at=name: hooked.update({at: (args or (kwargs["hidden_states"],), output)}),
            with_kwargs=True,
        )
    handles = list(hooked.values())
    with torch.no_grad():
        toy.model(**toy.inputs_of(mixed))
    for handle in handles:
        handle.remove()
    visits = run_for_visits(toy, mixed.inputs, [layer.self_attn, layer.mlp])
    assert list(visits) == [layer.self_attn.path, layer.mlp.path]
    (attn,), (mlp,) = visits.values()
    assert torch.equal(attn.input, hooked["attn"][0][0])
    assert torch.equal(attn.output, hooked["attn"][1][0])
    assert torch.equal(mlp.input, hooked["mlp"][0][0])
    assert torch.equal(mlp.output, hooked["mlp"][1])
    assert (attn.others, mlp.others) == ((None,), ())  # sdpa has None in the place of weights
    (shapes,) = run_for_shapes(toy, mixed.inputs, [toy.blocks[0]])[toy.blocks[0].path]
    assert shapes.input == shapes.outputs[0] == (2, 37, toy.structure.d_vision)
    assert not shapes.is_list


def test_which_logits():
    logits = torch.arange(24).reshape(2, 3, 4)
    assert logits_at(logits, "all") is logits
    assert logits_at(logits, "end").tolist() == logits[:, 2].tolist()
    rows, columns = torch.tensor([0, 1]), torch.tensor([2, 0])
    assert logits_at(logits, (rows, columns)).tolist() == [logits[0, 2].tolist(), logits[1, 0].tolist()]


# Who sees whom -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_visible_is_where_attention_is_above_zero(name, padded):
    """Full, sliding and chunked layers, image blocks, prefixes: on every real position, at every layer."""
    vlm, batch = load(name), batch_of(name, padded)
    with weights_of(vlm) as seen:
        vlm.logits(batch)
    real = batch.positions["all"]
    found = visible(vlm, batch)
    assert [allowed is not None for allowed in found] == [layer in seen for layer in range(4)]
    for layer, weights in seen.items():
        assert (found[layer][real] == (weights > 0).any(dim=1)[real]).all(), layer
        # what a knockout without self edges rests on
        assert found[layer].diagonal(dim1=1, dim2=2)[real].all()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", BOTH)
def test_both_implementations_show_the_same(name, padded):
    eager, sdpa = (visible(load(name, how), batch_of(name, padded)) for how in ("eager", "sdpa"))
    for a, b in zip(eager, sdpa, strict=True):
        assert (a is None and b is None) or (a == b).all()


def test_the_kinds_of_layer_differ():
    """The models above do have windows, chunks, image blocks and layers without attention, so their tests say something."""
    ahead = {}
    for name in KINDS:
        batch = batch_of(name, padded=False)
        real, image = batch.positions["all"], batch.positions["image"]
        found = [allowed for allowed in visible(load(name), batch) if allowed is not None]
        both_ways = image[:, :, None] & image[:, None, :]
        ahead[name] = [bool((allowed & both_ways).triu(1).any()) for allowed in found]
        last = [int(allowed[0, -1].sum()) for allowed in found]
        assert (min(last) < int(real[0].sum())) is (name in ("gemma3", "llama4")), name
    assert ahead["gemma3"] == ahead["paligemma"] == [True] * 4
    assert not any(ahead["llava"] + ahead["llama4"] + ahead["qwen3_5"])
    assert visible(load("qwen3_5"), batch_of("qwen3_5", padded=True), layers=[0, 3])[0] is None


def test_some_head_is_enough():
    allowed = torch.zeros(1, 2, 2, 2).bool()
    allowed[0, 1, 1, 0] = True
    assert any_head(allowed)[0].tolist() == [[False, False], [True, False]]
    assert not any_head.__annotations__
