"""Edited weights: after the softmax a cut takes exactly its mass away, and other weights make the heads' means anew.

The oracle puts the new weights into transformers' own eager attention, between its softmax and the values.
"""

import contextlib
from types import SimpleNamespace

import pytest
import torch

import interp
import zoo
from interp.interventions import Ablate, Knockout, Patch, Reweight
from interp.interventions.reweight import KINDS
from interp.models.running.attention import eager, implementation
from interp.models.running.slots import put_projected
from interp.models.running.steps import Edit, Read, whole
from interp.models.running.trace import run_forward
from patterned import attention_modules, batch_of, load

PADDED = pytest.mark.parametrize("padded", [False, True])
# Causal, windows and image blocks, a prefix, chunks: layers in which z = pattern @ v.
WEIGHED = ("llava", "gemma3", "paligemma", "llama4")
# All those of which some layer is not so: a gate behind the mean, a norm or a convolution on the values, a share of
# attention that goes to no key, or a site that was not found.
UNWEIGHED = (
    *("dots3_note", "gemma4", "gemma4_unified", "inkling_mm_model", "kosmos-2", "lfm3_vl", "minicpm_ocr"),
    *("minicpmv4_6", "minicpmv4_7", "muse_glimmer", "muse_spark", "qwen3_5", "qwen3_5_moe", "step3p7"),
)


@contextlib.contextmanager
def softmax_changed(vlm, layers, change):
    """Inside, the weights `[batch, head, query, key]` of these layers are what `change` makes of them."""
    softmax, running = torch.nn.functional.softmax, []

    def changed(*args, **kwargs):
        weights = softmax(*args, **kwargs)
        return change(running[-1], weights) if running and weights.ndim == 4 else weights

    modules = attention_modules(vlm)
    handles = []
    for layer in layers:
        handles.append(modules[layer].register_forward_pre_hook(lambda *_, at=layer: running.append(at)))
        handles.append(modules[layer].register_forward_hook(lambda *_: running.clear()))
    torch.nn.functional.softmax = changed
    try:
        yield
    finally:
        torch.nn.functional.softmax = softmax
        for handle in handles:
            handle.remove()


def expected(vlm, batch, layers, change):
    with softmax_changed(vlm, layers, change), torch.no_grad():
        return vlm.model(**vlm.inputs_of(batch)).logits[:, -1]


def patterns(vlm, batch, *interventions, layers=None):
    """The weights `[batch, query, head, key]` of each layer."""
    layers = list(attention_modules(vlm)) if layers is None else layers
    reads = [Read(layer, "pattern", layer, whole) for layer in layers]
    return run_forward(vlm, batch, vlm.edits_of(batch, interventions), reads, logits=None)


def edges_of(batch, source, target):
    source, target = batch.positions.select(source), batch.positions.select(target)
    own = torch.eye(source.shape[1], dtype=torch.bool)
    return target[:, :, None] & source[:, None, :] & ~own


# Cut after the softmax ---------------------------------------------------------------------------------------------------


@PADDED
@pytest.mark.parametrize("heads", [None, [1, -1]])
@pytest.mark.parametrize("name", WEIGHED)
def test_cut_after_the_softmax_in_the_models_own_attention(name, heads, padded):
    vlm, batch = load(name), batch_of(name, padded)
    layers = list(attention_modules(vlm))[:2]
    edges = edges_of(batch, "image", "after_image")[:, None]
    chosen = torch.tensor([heads is None or head in (1, 3) for head in range(4)])[:, None, None]
    cut = Knockout(source="image", target="after_image", layers=layers, heads=heads, mode="post_softmax")
    found = vlm.logits(batch, [cut])
    by_hand = expected(vlm, batch, layers, lambda layer, weights: weights.masked_fill(edges & chosen, 0))
    torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, vlm.logits(batch), atol=1e-4)
    before = vlm.logits(batch, [Knockout(source="image", target="after_image", layers=layers, heads=heads)])
    assert not torch.allclose(found, before, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    ["fuyu", "kimi_k25", "chameleon", "qwen2_vl", "granite_docling", "cohere2_vision", "exaone4_5", "mistral_large4"],
)
def test_other_ways_to_build_a_layer(name):
    """One projection for q, k and v; latent values; attention that gives more than two things; factors and norms behind."""
    vlm = interp.load(model=zoo.build(name), check=False)
    batch = vlm.prepare(encoding=zoo.encode(name))
    layers = [layer for layer, holds in enumerate(vlm.trait("weighed")) if holds]
    edges = edges_of(batch, "image", "last")[:, None]
    found = vlm.logits(batch, [Knockout(source="image", target="last", layers=layers, mode="post_softmax")])
    with eager(vlm):
        by_hand = expected(vlm, batch, layers, lambda layer, weights: weights.masked_fill(edges, 0))
    torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, vlm.logits(batch), atol=1e-4)


@pytest.mark.parametrize("name", WEIGHED)
def test_a_rows_mass_shrinks_by_what_was_cut(name):
    vlm, batch = load(name), batch_of(name, padded=True)
    layer = list(attention_modules(vlm))[1]
    cut = Knockout(source="image", target="after_image", layers=layer, heads=[0, 2], mode="post_softmax")
    plain, after = patterns(vlm, batch), patterns(vlm, batch, cut)
    gone = edges_of(batch, "image", "after_image")[:, :, None] & torch.tensor([1, 0, 1, 0]).bool()[:, None]
    assert (after[layer][gone] == 0).all()
    assert torch.equal(after[layer][~gone], plain[layer][~gone])
    assert (plain[layer][gone] > 0).any()
    lost = plain[layer].masked_fill(~gone, 0).sum(dim=-1)
    torch.testing.assert_close(after[layer].sum(dim=-1), plain[layer].sum(dim=-1) - lost)
    first = next(iter(attention_modules(vlm)))
    assert torch.equal(after[first], plain[first])


def test_what_is_not_cut_stays_to_the_bit(toy, mixed):
    cut = Knockout(source="image", target="last", layers=3, heads=1, mode="post_softmax")
    reads = [Read(site, site, 3, whole) for site in ("z", "attn_out")]
    plain = run_forward(toy, mixed, (), [*reads, Read("pattern", "pattern", 3, whole)], logits=None)
    after = run_forward(toy, mixed, toy.edits_of(mixed, [cut]), reads, logits=None)
    pictured = mixed.positions["image"].any(dim=1)
    touched = mixed.positions["last"] & pictured[:, None]
    others = torch.arange(4) != 1
    assert torch.equal(after["z"][~touched], plain["z"][~touched])
    assert torch.equal(after["z"][:, :, others], plain["z"][:, :, others])
    assert torch.equal(after["attn_out"][~touched], plain["attn_out"][~touched])
    assert not torch.allclose(after["attn_out"][touched], plain["attn_out"][touched])
    nothing = Knockout(source="last", target="image", layers="all", mode="post_softmax")
    same = run_forward(toy, mixed, [Edit("pattern", layer, whole) for layer in range(8)])["logits"]
    assert torch.equal(toy.logits(mixed, [nothing]), same)


def test_where_no_head_gives_anything_else_the_output_is_not_made_anew():
    """Not even with a projection that rounds otherwise when it runs again."""
    before = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    z = before.clone()
    z[1, 2, 3] += 1
    attention = SimpleNamespace(output=(torch.zeros(2, 5, 7), "weights"))
    put_projected(attention, lambda z: torch.ones(*z.shape[:2], 7), before, z)
    assert attention.output[1] == "weights"
    assert attention.output[0].any(dim=-1).nonzero().tolist() == [[1, 2]]


def test_cuts_of_one_layer_add_up_and_z_is_edited_behind_them(toy, mixed):
    halves = [
        Knockout(source="image", target=target, layers=[2, 4], mode="post_softmax") for target in ([-1], [-2, -3])
    ]
    both = Knockout(source="image", target=[-1, -2, -3], layers=[2, 4], mode="post_softmax")
    assert torch.equal(toy.logits(mixed, halves), toy.logits(mixed, [both]))
    patch = Patch(site="z", layers=[2, 4], positions="last", value=torch.ones(32), heads=1)
    read = [Read("z", "z", 4, whole), Read("out", "attn_out", 4, whole)]
    seen = run_forward(toy, mixed, toy.edits_of(mixed, [patch, both]), read, logits=None)
    assert (seen["z"][:, -1, 1] == 1).all()
    projection = toy.model.get_submodule(f"{toy.structure.layers}.4.{toy.structure.z[4].module}")
    with torch.no_grad():
        torch.testing.assert_close(projection(seen["z"].flatten(2)), seen["out"])
    weights = run_forward(
        toy, mixed, toy.edits_of(mixed, [patch, both]), [Read(0, "pattern", 4, whole), Read(1, "v", 4, whole)], None
    )
    z = torch.einsum("bqhk,bkhd->bqhd", weights[0], weights[1])
    torch.testing.assert_close(seen["z"][:, :, 0], z[:, :, 0])


def test_edited_values_are_weighed(toy, mixed):
    """v comes before the weights: an ablated value is what the rest of a row takes."""
    cuts = [
        Knockout(source="image", target="last", layers=2, mode="post_softmax"),
        Ablate(site="v", layers=2, positions="text"),
    ]
    z = run_forward(toy, mixed, toy.edits_of(mixed, cuts), [Read(0, "z", 2, whole)], logits=None)[0]
    special = mixed.positions["special"]
    assert special.any() or (z[1, -1] == 0).all()
    assert torch.equal(toy.logits(mixed, cuts), toy.logits(mixed, cuts[::-1]))


@pytest.mark.parametrize("name", UNWEIGHED)
def test_a_layer_whose_heads_give_more_than_a_mean(name):
    vlm = interp.load(model=zoo.build(name), check=False)
    batch = vlm.prepare(encoding=zoo.encode(name))
    if name == "kosmos-2":
        vlm.check(batch)
    layer = next(iter(attention_modules(vlm)))
    for change in (
        Knockout(source=[1], target="last", layers=layer, mode="post_softmax"),
        Reweight(kind="uniform", layers=layer),
    ):
        with pytest.raises(interp.LayoutError, match=r"not pattern @ v alone|no [vz] that could be proved") as caught:
            vlm.logits(batch, [change])
        assert "\n" not in str(caught.value)
    vlm.logits(batch, [Knockout(source=[1], target="last", layers=layer)])


@pytest.mark.parametrize(
    "change",
    [Knockout(source="image", target="last", layers=1, mode="post_softmax"), Reweight(kind="uniform", layers=1)],
)
def test_attention_is_eager_for_the_run_alone(toy, mixed, change):
    seen = []
    handle = attention_modules(toy)[0].register_forward_pre_hook(lambda *_: seen.append(implementation(toy)))
    try:
        for run in (toy.logits, lambda *given: toy.generate(*given[:1], 2, *given[1:])):
            assert implementation(toy) == "sdpa"
            run(mixed)
            assert set(seen) == {"sdpa"}
            seen.clear()
            run(mixed, [change])
            assert set(seen) == {"eager"}
            seen.clear()
    finally:
        handle.remove()
    assert implementation(toy) == "sdpa"


# Other weights -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WEIGHED)
def test_rows_sum_to_one_over_the_keys_they_may_see(name, kind):
    vlm, batch = load(name), batch_of(name, padded=True)
    layers = list(attention_modules(vlm))[1:3]
    masks = run_forward(vlm, batch, reads=[Read(layer, "mask", layer, whole) for layer in layers], logits=None)
    plain, after = patterns(vlm, batch), patterns(vlm, batch, Reweight(kind=kind, layers=layers))
    real = batch.positions["all"]
    for layer in layers:
        sees = masks[layer].transpose(1, 2).expand_as(after[layer])
        now, was = after[layer][real], plain[layer][real]
        torch.testing.assert_close(now.sum(dim=-1), torch.ones(now.shape[:-1]))
        assert (now >= 0).all()
        assert (now[~sees[real]] == 0).all()
        assert not torch.allclose(now, was)
    layer, sees = layers[0], masks[layers[0]].transpose(1, 2).expand_as(after[layers[0]])
    for row, query in real.nonzero().tolist()[::5]:
        for head in range(4):
            keys = sees[row, query, head]
            now, was = after[layer][row, query, head, keys], plain[layer][row, query, head, keys]
            if kind == "uniform":
                torch.testing.assert_close(now, torch.full_like(now, 1 / len(now)))
            elif kind == "shuffled":
                torch.testing.assert_close(now.sort().values, was.sort().values)
            elif kind == "reversed":
                mirrored = was.max() + was.min() - was
                torch.testing.assert_close(now, mirrored / mirrored.sum())


@pytest.mark.parametrize("name", WEIGHED)
def test_even_weights_in_the_models_own_attention(name):
    vlm, batch = load(name), batch_of(name, padded=True)
    layers = list(attention_modules(vlm))[:3]

    def even(layer, weights):
        there = (weights > 0).float()
        return there / there.sum(dim=-1, keepdim=True)

    found = vlm.logits(batch, [Reweight(kind="uniform", layers=layers)])
    torch.testing.assert_close(found, expected(vlm, batch, layers, even), atol=1e-5, rtol=1e-5)


def test_draws_depend_on_seed_layer_head_and_row(toy, mixed):
    once, again, other = (
        patterns(toy, mixed, Reweight(kind="random", layers=[0, 1], seed=seed), layers=[0, 1]) for seed in (0, 0, 1)
    )
    assert torch.equal(once[1], again[1])
    assert not torch.allclose(once[0], other[0])
    assert not torch.allclose(once[0], once[1])
    assert not torch.allclose(once[0][0, -1, 0], once[0][0, -1, 1])
    assert not torch.allclose(once[0][0, -1, 0], once[0][2, -1, 0])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"kind": "flat"}, "kind='flat' is unknown: use one of uniform, random, reversed, shuffled"),
        ({"tower": "ear"}, "tower='ear' is unknown: use one of language, vision"),
        ({"layers": []}, r"layers=\[\] names no layer"),
        ({"seed": -1}, "seed=-1: expected an int of 0 or more"),
        ({"seed": 0.5}, "seed=0.5: expected an int of 0 or more"),
    ],
)
def test_wrong_weights(toy, mixed, wrong, words):
    with pytest.raises(interp.InputError, match=words):
        toy.logits(mixed, [Reweight(**{"kind": "uniform", "layers": 0, **wrong})])
