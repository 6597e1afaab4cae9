"""Half precision: in bfloat16 and float16, every number is what plain hooks give in the same precision, and near float32's.

Tolerances, relative to the largest value: none for states, logits and lenses, which are the model's own operations on the
same tensors; `ROUNDINGS` steps of the precision for sweeps, whose versions run in batches of another size; and `NEAR`
against float32, for which each of 4 layers rounds its states several times.
"""

import functools

import pytest
import torch

import interp
import zoo
from interp.interventions import Knockout, Skip
from interp.lens import logit_lens
from interp.patching import layer_sweep, logit_difference, patch_sweep

ARCHITECTURES = ("llava", "qwen2_vl", "gemma3")
DTYPES = (torch.bfloat16, torch.float16)
ROUNDINGS = 16
NEAR = {torch.bfloat16: 0.1, torch.float16: 0.0125}
A, B = 5, 6


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    zoo.build(request.param).save_pretrained(folder)
    return request.param, folder


@functools.cache
def loaded(folder, dtype):
    return interp.load(folder, dtype=dtype, device="cpu")


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def half(request, folder):
    """The architecture's name and its model in half precision, loaded and proved."""
    try:
        torch.randn(2, 2, dtype=request.param) @ torch.randn(2, 2, dtype=request.param)
    except RuntimeError:
        pytest.skip(f"this processor has no kernels for {request.param}")
    return folder[0], loaded(folder[1], request.param)


@pytest.fixture
def full(folder):
    return loaded(folder[1], torch.float32)


def row(vlm, name, change=0):
    encoding = zoo.encode(name, rows=((3, 6),))
    encoding["input_ids"][:, -4:] += change
    return vlm.prepare(encoding=encoding)


def layers_of(vlm):
    return vlm.model.get_submodule(vlm.structure.layers)


def run(vlm, batch, layer=None, edit=None):
    """The logits and the outputs of all layers by plain hooks, with the output of one layer edited."""
    states = []

    def hook(number, output):
        state = output[0] if isinstance(output, tuple) else output
        if number == layer:
            state = edit(state)
        states.append(state)
        return (state, *output[1:]) if isinstance(output, tuple) else state

    handles = [
        module.register_forward_hook(lambda module, args, output, number=number: hook(number, output))
        for number, module in enumerate(layers_of(vlm))
    ]
    try:
        with torch.no_grad():
            logits = vlm.model(**vlm.inputs_of(batch)).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits, states


def relative(value, expected):
    return ((value.float() - expected.float()).abs().max() / expected.float().abs().max()).item()


def test_every_proof_passes(half):
    name, vlm = half
    assert vlm.dtype in DTYPES
    assert set(vlm.check(row(vlm, name)).to_frame()["outcome"]) == {"passed"}


def test_logits_and_states_are_those_of_hooks(half):
    name, vlm = half
    batch = row(vlm, name)
    logits, states = run(vlm, batch)
    assert torch.equal(vlm.logits(batch, positions="all"), logits)
    acts = interp.capture(vlm, batch, positions="all", reduce="none", progress=False)
    assert acts["resid"].dtype == vlm.dtype
    assert torch.equal(acts["resid"][1:], torch.cat(states))
    mean = interp.capture(vlm, batch, positions="image", dtype="float32", progress=False)["resid"][1:, 0]
    image = batch.positions["image"][0]
    torch.testing.assert_close(mean, torch.cat(states)[:, image].float().mean(dim=1), rtol=1e-5, atol=1e-5)


def test_sinks_are_judged_in_float32(half):
    name, vlm = half
    assert torch.equal(row(vlm, name).positions["content"], row(vlm, name).positions["text"])


def test_a_sweep_is_that_of_hooks(half):
    name, vlm = half
    clean, corrupted = row(vlm, name), row(vlm, name, change=1)
    result = patch_sweep(vlm, clean, corrupted, site="resid_post", positions=[-1, -3], metric=logit_difference(A, B))
    states, width = run(vlm, clean)[1], clean.inputs["input_ids"].shape[1]

    def patched(layer, column):
        def edit(state):
            state = state.clone()
            state[:, column] = states[layer][:, column]
            return state

        logits = run(vlm, corrupted, layer, edit)[0][0, -1].float()
        return (logits[A] - logits[B]).item()

    ends = [(logits[A] - logits[B]).item() for logits in (run(vlm, b)[0][0, -1].float() for b in (clean, corrupted))]
    step = torch.finfo(vlm.dtype).eps * run(vlm, clean)[0].float().abs().max().item()
    assert result.clean_rows.item() == pytest.approx(ends[0], abs=step)
    assert result.corrupted_rows.item() == pytest.approx(ends[1], abs=step)
    cells = result.to_frame()
    for layer in (0, 2):
        for column in (width - 1, width - 3):
            (cell,) = cells[(cells["layer"] == layer) & (cells["position"] == column)]["value"]
            assert cell == pytest.approx(patched(layer, column), abs=ROUNDINGS * step)


def test_a_lens_reads_the_states_of_hooks(half):
    name, vlm = half
    batch = row(vlm, name)
    lens = logit_lens(vlm, batch, positions="last", top_k=3, targets=A)
    states = run(vlm, batch)[1]
    with torch.no_grad():
        for state in (1, 3):
            logits = by_hand(vlm, states[state - 1])
            rank = int((logits > logits[A]).sum())
            assert int(lens.target_ranks[state].flatten()[0]) == rank


def by_hand(vlm, state):
    norm, head = (vlm.model.get_submodule(path) for path in (vlm.structure.norm, vlm.structure.head))
    return head(norm(state[:, -1]))[0].float()


@pytest.mark.parametrize("call", ["logits", "capture", "knockout", "layers"])
def test_numbers_are_near_those_of_float32(half, full, call):
    name, vlm = half
    calls = {
        "logits": lambda m, b: m.logits(b),
        "capture": lambda m, b: interp.capture(m, b, positions="image", dtype="float32", progress=False)["resid"][-1],
        "knockout": lambda m, b: m.logits(b, [Knockout(source="image", target="last", layers="all")]),
        "layers": lambda m, b: layer_sweep(m, b, intervention=Skip, metric=logit_difference(A, B)).values,
    }
    value, expected = (calls[call](m, row(m, name)) for m in (vlm, full))
    assert relative(value, expected) < NEAR[vlm.dtype]
