"""The one trace: what is read is what transformers computes, and an edit changes what it should and nothing else."""

import gc
import weakref

import pytest
import torch

import interp
from interp.models.running.steps import Edit, Read, take_each, take_mean, whole, write
from interp.models.running.trace import run_for_shapes, run_forward, run_until_reads


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


def test_edits_of_one_site_are_applied_in_order(toy, mixed):
    rows, columns = mixed.positions["last"].nonzero(as_tuple=True)
    ones, twos = (Edit("resid_post", 1, write, (rows, columns, torch.full((3, 128), value))) for value in (1.0, 2.0))
    read = [Read("state", "resid_post", 1, take_each, (rows, columns, None))]
    assert (run_forward(toy, mixed, [ones, twos], read)["state"] == 2).all()
    assert (run_forward(toy, mixed, [twos, ones], read)["state"] == 1).all()


def test_pooling_is_the_mean_over_the_mask():
    torch.manual_seed(0)
    value, mask = torch.randn(2, 5, 3), torch.tensor([[1, 1, 0, 0, 0], [0, 0, 0, 1, 1]]).bool()
    expected = torch.stack([value[0, :2].mean(0), value[1, 3:].mean(0)])
    torch.testing.assert_close(take_mean(value, mask, None), expected)
    assert take_mean(value.bfloat16(), mask, None).dtype == torch.bfloat16
    assert take_mean(value.bfloat16(), mask, torch.float32).dtype == torch.float32


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


def test_unknown_sites_and_layers(toy, mixed):
    with pytest.raises(interp.InputError, match="site='hook_z' is unknown"):
        run_forward(toy, mixed, reads=[Read(0, "hook_z", 0, whole)])
    with pytest.raises(interp.InputError, match="layer 8: 'toy' has layers 0 to 7"):
        run_forward(toy, mixed, reads=[Read(0, "resid_pre", 8, whole)])
    with pytest.raises(interp.InputError, match="layers='some'"):
        toy.layer_indices("some")
    assert toy.layer_indices(-1) == [7]


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
