"""Knockout: cut edges carry exactly nothing, the rest of a row shares its attention, and nothing else is touched."""

import numpy as np
import pytest
import torch

import interp
from interp.interventions import Knockout, Truncate
from interp.interventions.knockout import cut
from interp.models.running.attention import eager
from patterned import BOTH, KINDS, attention_modules, batch_of, load, weights_of

PADDED = pytest.mark.parametrize("padded", [False, True])
LOWEST = torch.finfo(torch.float32).min


def edges_by_hand(batch, source, target, self_edges=False):
    """Bool [batch, query, key], pair by pair."""
    source, target = batch.positions.select(source), batch.positions.select(target)
    edges = torch.zeros(len(batch), source.shape[1], source.shape[1], dtype=torch.bool)
    for row, query in target.nonzero().tolist():
        for key in source[row].nonzero().flatten().tolist():
            edges[row, query, key] = self_edges or query != key
    return edges


def weights(vlm, batch, *interventions):
    with weights_of(vlm) as seen:
        vlm.logits(batch, interventions)
    return seen


# What it does ------------------------------------------------------------------------------------------------------------


@PADDED
@pytest.mark.parametrize("heads", [None, [1, -1]])
@pytest.mark.parametrize("name", KINDS)
def test_cut_edges_weigh_exactly_nothing(name, heads, padded):
    vlm, batch = load(name), batch_of(name, padded)
    layers = list(attention_modules(vlm))[-2:]
    plain = weights(vlm, batch)
    after = weights(vlm, batch, Knockout(source="image", target="after_image", layers=layers, heads=heads))
    edges, real = edges_by_hand(batch, "image", "after_image"), batch.positions["all"]
    chosen = torch.tensor([heads is None or head in (1, 3) for head in range(4)])
    for layer in layers:
        was, now = (run[layer].transpose(1, 2) for run in (plain, after))  # [batch, query, head, key]
        gone = edges[:, :, None] & chosen[:, None]
        assert (now[gone] == 0).all()
        torch.testing.assert_close(now.sum(-1)[real], torch.ones(int(real.sum()), 4))
        if layer == layers[0]:  # later layers are given other states
            assert (was[gone] > 0).any()
            kept = ~gone.any(dim=-1)  # [batch, query, head]
            assert (now[kept] == was[kept]).all()
            # what is left keeps its proportions
            left = was.masked_fill(gone, 0)
            torch.testing.assert_close(now[real], (left / left.sum(-1, keepdim=True))[real])
    for layer in set(plain) - set(layers):
        assert (layer > layers[0]) or (plain[layer] == after[layer]).all()


@PADDED
@pytest.mark.parametrize("heads", [None, [0, 2]])
def test_one_layer_is_cut_and_no_other(heads, padded):
    """All layers get one mask; what is cut of it in one is there in those before and behind."""
    vlm, batch = load("llava"), batch_of("llava", padded)
    cuts = Knockout(source="image", target="last", layers=1, heads=heads)
    plain, after = weights(vlm, batch), weights(vlm, batch, cuts)
    edges = edges_by_hand(batch, "image", "last")
    chosen = torch.tensor([heads is None or head in heads for head in range(4)])
    for layer in range(4):
        was, now = (run[layer].permute(0, 2, 3, 1)[edges] for run in (plain, after))  # [edge, head]
        assert was.shape == (int(edges.sum()), 4)
        assert (was > 0).all()
        assert (now[:, ~chosen] > 0).all()
        assert (now[:, chosen] == 0).all() if layer == 1 else (now > 0).all()


@PADDED
@pytest.mark.parametrize("name", KINDS)
def test_it_is_the_run_with_a_mask_made_by_hand(name, padded):
    vlm, batch = load(name), batch_of(name, padded)
    layers = list(attention_modules(vlm))[:2]
    edges = edges_by_hand(batch, "image", "after_image")[:, None]

    def by_hand(module, args, kwargs):
        return args, {**kwargs, "attention_mask": kwargs["attention_mask"].masked_fill(edges, LOWEST)}

    modules = attention_modules(vlm)
    handles = [modules[layer].register_forward_pre_hook(by_hand, with_kwargs=True) for layer in layers]
    try:
        with torch.no_grad():
            expected = vlm.model(**batch.inputs).logits[:, -1]
    finally:
        for handle in handles:
            handle.remove()
    found = vlm.logits(batch, [Knockout(source="image", target="after_image", layers=layers)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, vlm.logits(batch), atol=1e-4)


@PADDED
@pytest.mark.parametrize("heads", [None, 2])
@pytest.mark.parametrize("name", BOTH)
def test_both_implementations_agree(name, heads, padded):
    """As closely as they do without a knockout: delta nets make more of how the towers round."""
    batch, layers = batch_of(name, padded), list(attention_modules(load(name)))
    cuts = [Knockout(source="image", target="after_image", layers=layers, heads=heads)]
    eager, sdpa = (load(name, how).logits(batch, cuts) for how in ("eager", "sdpa"))
    plain, plain_sdpa = (load(name, how).logits(batch) for how in ("eager", "sdpa"))
    torch.testing.assert_close(eager, sdpa, atol=1e-5 + 2 * float((plain - plain_sdpa).abs().max()), rtol=0)
    assert (eager - plain).abs().max() > 1e-2


@pytest.mark.parametrize("heads", [None, [1, 2]])
def test_every_form_of_a_mask_is_cut_alike(toy, mixed, heads):
    """None for rows without padding, bool for padded ones, numbers under eager attention: the layer before the cut tells."""
    cuts = [Knockout(source="image", target="after_image", layers=[1, 2, 5], heads=heads)]
    forms = []
    handle = attention_modules(toy)[0].register_forward_pre_hook(
        lambda module, args, kwargs: forms.append(getattr(kwargs["attention_mask"], "dtype", None)), with_kwargs=True
    )
    try:
        nothing = torch.cat([toy.logits(mixed.row(row), cuts) for row in (0, 2)])
        true_or_false = toy.logits(mixed, cuts)[[0, 2]]
        with eager(toy):
            numbers = toy.logits(mixed, cuts)[[0, 2]]
    finally:
        handle.remove()
    assert forms == [None, None, torch.bool, torch.float32]
    torch.testing.assert_close(nothing, numbers, atol=1e-5, rtol=0)
    torch.testing.assert_close(true_or_false, numbers, atol=1e-5, rtol=0)
    assert (numbers - toy.logits(mixed)[[0, 2]]).abs().max() > 1e-2


@PADDED
@pytest.mark.parametrize("how", ["eager", "sdpa"])
def test_an_edge_that_was_never_there_changes_no_bit(how, padded):
    vlm, batch = load("llava", how), batch_of("llava", padded)
    plain = vlm.logits(batch)
    nowhere = torch.zeros_like(batch.positions["all"])
    padding = batch.positions["padding"]
    for source, target in [
        (nowhere, "all"),
        ("all", nowhere),
        ("last", "image"),  # behind it
        ("last", "last"),  # itself
        (padding, "all"),
        ("all", padding),
    ]:
        nothing = Knockout(source=source, target=target, layers="all")
        assert (vlm.logits(batch, [nothing]) == plain).all(), (source, target)


def test_self_edges_are_cut_only_when_asked():
    vlm, batch = load("llava"), batch_of("llava", padded=True)
    image = batch.positions["image"]
    for self_edges in (False, True):
        seen = weights(vlm, batch, Knockout(source="image", target="image", layers=1, self_edges=self_edges))[1]
        own = seen.diagonal(dim1=2, dim2=3).transpose(1, 2)[image]
        assert ((own == 0) if self_edges else (own > 0)).all()


def test_iterators_last_and_numpys_ints_are_ints():
    vlm, batch = load("llava"), batch_of("llava", padded=True)
    given = {"source": iter([4, 5]), "target": iter([-1]), "layers": iter([1, 2]), "heads": (head for head in [0, 3])}
    knockout = Knockout(**given)
    arrays = Knockout(source=np.array([4, 5]), target=[-1], layers=[1, 2], heads=np.array([0, 3]))
    first = vlm.logits(batch, [knockout])
    assert (vlm.logits(batch, [knockout]) == first).all()
    assert (vlm.logits(batch, [arrays]) == first).all()
    assert not torch.allclose(first, vlm.logits(batch))
    one = [Knockout(source="image", target="last", layers=1, heads=head) for head in (2, np.int64(2))]
    assert (vlm.logits(batch, one[:1]) == vlm.logits(batch, one[1:])).all()


def test_knockouts_add_up():
    vlm, batch = load("llava"), batch_of("llava", padded=True)
    halves = [Knockout(source=part, target="last", layers=[1, 2]) for part in ([4, 5], [6, 7])]
    both = Knockout(source=[4, 5, 6, 7], target="last", layers=[1, 2])
    assert (vlm.logits(batch, halves) == vlm.logits(batch, [both])).all()


def test_a_step_of_a_generation_has_its_own_queries_and_the_keys_of_its_cache():
    """A static cache holds room for more keys than there are, that of a window the last ones alone."""
    source, target = torch.tensor([[0, 1, 0, 0]]).bool(), torch.tensor([[0, 0, 0, 1]]).bool()
    left = cut(torch.ones(1, 1, 2, 6).bool(), 2, source, target, None, False)
    assert left[0, 0].int().tolist() == [[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 1, 1]]
    left = cut(torch.ones(1, 1, 1, 3).bool(), 3, source, target, None, False)
    assert left[0, 0].int().tolist() == [[0, 1, 1]]
    with pytest.raises(ValueError, match="the mask has 1 keys for a prompt of 4 positions"):
        cut(torch.ones(1, 1, 4, 1).bool(), 0, source, target, None, False)


# Truncate ----------------------------------------------------------------------------------------------------------------


@PADDED
@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma", "llama4"])
def test_truncated_positions_are_masked_from_their_layer_on(name, padded):
    """As if these keys were padding there; what they themselves see is of no account."""
    vlm, batch = load(name), batch_of(name, padded)
    image = batch.positions["image"]

    def by_hand(module, args, kwargs):
        gone = image[:, None, None, :] & ~torch.eye(image.shape[1], dtype=torch.bool)
        return args, {**kwargs, "attention_mask": kwargs["attention_mask"].masked_fill(gone, LOWEST)}

    for first in (2, 0):
        modules = attention_modules(vlm)
        handles = [
            modules[layer].register_forward_pre_hook(by_hand, with_kwargs=True) for layer in modules if layer >= first
        ]
        try:
            with torch.no_grad():
                expected = vlm.model(**batch.inputs).logits
        finally:
            for handle in handles:
                handle.remove()
        found = vlm.logits(batch, [Truncate(positions="image", from_layer=first)], positions="all")
        others = batch.positions["all"] & ~image
        torch.testing.assert_close(found[others], expected[others], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(found[others], vlm.logits(batch, positions="all")[others], atol=1e-4)
    last = [Truncate(positions="image", from_layer=layer) for layer in (3, -1)]
    assert (vlm.logits(batch, last[:1]) == vlm.logits(batch, last[1:])).all()


def test_truncated_at_once_an_image_might_as_well_be_another(toy, few):
    text = "<image> what colour is the 3 ?"
    one, other = (toy.prepare([text], [scene.image]) for scene in few[:2])
    gone = [Truncate(positions="image", from_layer=0)]
    assert (toy.logits(one, gone) == toy.logits(other, gone)).all()
    assert not torch.allclose(toy.logits(one), toy.logits(other))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"from_layer": 8}, "layer 8: 'toy' has layers 0 to 7"),
        ({"from_layer": "all"}, "from_layer='all': expected an int, the first layer without them"),
        ({"from_layer": [1, 2]}, r"from_layer=\[1, 2\]: expected an int"),
        ({"positions": "all"}, "positions='all' are all positions: expected some to be left"),
        ({"positions": []}, r"positions=\[\] selects nothing in this batch"),
        ({"positions": "padding"}, "positions='padding' are padding alone"),
    ],
)
def test_what_cannot_be_truncated(toy, mixed, wrong, words):
    with pytest.raises(interp.InputError, match=words):
        toy.logits(mixed, [Truncate(**{"positions": "image", "from_layer": 1, **wrong})])


def test_layers_without_softmax_attention_are_not_truncated():
    vlm, batch = load("qwen3_5"), batch_of("qwen3_5", padded=True)
    with pytest.raises(interp.InputError, match=r"layer 2 of .* has 'linear'"):
        vlm.logits(batch, [Truncate(positions="image", from_layer=2)])
    assert vlm.logits(batch, [Truncate(positions="image", from_layer=3)]).isfinite().all()


# On the toy --------------------------------------------------------------------------------------------------------------


def test_without_edges_to_the_image_the_answer_is_lost(toy):
    """Generation takes it too, and an image that nothing attends to might as well be another one."""
    asked = [(scene, q) for scene in interp.toy.scenes(20, seed=4) for q in scene.questions if q.kind == "colour"]
    batch = toy.prepare([q.prompt for _, q in asked], [scene.image for scene, _ in asked])
    others = toy.prepare([q.prompt for _, q in asked], [scene.image for scene, _ in asked[1:] + asked[:1]])
    blind = Knockout(source="image", target="after_image", layers="all")

    def right(*interventions):
        answers = toy.generate(batch, max_new_tokens=2, interventions=interventions)
        return sum(answer == q.answer for answer, (_, q) in zip(answers, asked, strict=True)) / len(asked)

    assert right() >= 0.9
    assert right(blind) <= 0.5
    assert (toy.logits(batch, [blind]) == toy.logits(others, [blind])).all()
    assert not torch.allclose(toy.logits(batch), toy.logits(others))


# What is refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"mode": "softmax"}, "mode='softmax' is unknown: use one of pre_softmax, post_softmax"),
        ({"layers": []}, r"layers=\[\] names no layer: expected 'all', an int or ints from 0 to 7"),
        ({"layers": [1, -7]}, r"layers=\[1, -7\] names layer 1 more than once"),
        ({"heads": []}, r"heads=\[\] names no head: expected None"),
        ({"heads": [1, -3]}, r"heads=\[1, -3\] names a head of layer 0 more than once"),
        ({"source": "picture"}, "positions='picture' is unknown: use one of image"),
        ({"target": [400]}, "position 400: row 0 has"),
        ({"layers": 8}, "layer 8: 'toy' has layers 0 to 7"),
        ({"heads": [0, 99]}, "head 99: layer 0 of 'toy' has heads 0 to"),
        ({"heads": "all"}, "heads='all': expected None for all heads, an int"),
        ({"heads": 1.5}, "heads=1.5: expected None for all heads, an int"),
        ({"heads": [True]}, r"heads=\[True\]: expected None"),
    ],
)
def test_wrong_values(toy, mixed, wrong, words):
    knockout = Knockout(**{"source": "image", "target": "last", "layers": 0, **wrong})
    with pytest.raises(interp.InputError, match=words):
        toy.logits(mixed, [knockout])


def test_a_name_that_selects_nothing(toy, mixed):
    for ends in ({"source": "image"}, {"target": "image"}):
        knockout = Knockout(**{"source": "all", "target": "last", "layers": 0, **ends})
        toy.logits(mixed, [knockout])  # rows without an image are as they were
        with pytest.raises(interp.InputError, match=f"{next(iter(ends))}='image' selects nothing in this batch"):
            toy.logits(mixed.row(1), [knockout])


def test_an_implementation_without_a_mask_of_edges():
    vlm, batch = load("llava"), batch_of("llava", padded=True)
    attention = attention_modules(vlm)[0].config
    own, attention._attn_implementation = attention._attn_implementation, "flash_attention_2"
    try:
        with pytest.raises(interp.InputError, match=r"'flash_attention_2'.*'sdpa' or 'eager'"):
            vlm.logits(batch, [Knockout(source="image", target="last", layers=0)])
    finally:
        attention._attn_implementation = own


@pytest.mark.parametrize("how", ["eager", "sdpa"])
def test_a_target_keeps_a_key(how):
    vlm, batch = load("llava", how), batch_of("llava", padded=True)
    with pytest.raises(interp.InputError, match=r"position 0 of row 0 would attend to nothing in layer 2"):
        vlm.logits(batch, [Knockout(source="all", target="all", layers=2, self_edges=True)])
    with pytest.raises(interp.InputError, match=r"position 24 of row 0 would attend to nothing in layer 0"):
        vlm.logits(batch, [Knockout(source="all", target="last", layers="all", self_edges=True)])
    vlm.logits(batch, [Knockout(source=range(-21, 0), target="last", layers="all", self_edges=True)])


def test_a_window_shows_less_and_an_image_block_more_than_causality():
    """gemma3: three layers with windows of 8, one without; images see both ways."""
    vlm, batch = load("gemma3"), batch_of("gemma3", padded=True)
    near = Knockout(source=range(-10, 0), target="last", layers=3, self_edges=True)
    assert vlm.logits(batch, [near]).isfinite().all()
    with pytest.raises(interp.InputError, match=r"of row 0 would attend to nothing in layer 1"):
        vlm.logits(batch, [Knockout(source=range(-10, 0), target="last", layers=[3, 1], self_edges=True)])
    first_image = batch.positions["image"] & (batch.positions["image"].cumsum(1) == 1)
    before = batch.positions["all"] & (first_image.flip(1).cumsum(1).flip(1) > 0)
    ahead = Knockout(source=before, target=first_image, layers="all", self_edges=True)
    assert vlm.logits(batch, [ahead]).isfinite().all()


@pytest.mark.parametrize("how", ["eager", "sdpa"])
def test_knockouts_that_only_together_leave_no_key(how):
    vlm, batch = load("llava", how), batch_of("llava", padded=False)
    halves = [Knockout(source=part, target="last", layers=1, self_edges=True) for part in (range(9), range(9, 25))]
    for half in halves:
        vlm.logits(batch, [half])
    with pytest.raises(ValueError, match="a position would attend to nothing"):
        vlm.logits(batch, halves)
