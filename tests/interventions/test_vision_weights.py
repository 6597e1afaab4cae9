"""Other attention weights in the image tower, on every architecture on which they can be had.

The oracle is transformers' own eager attention with another softmax, see `towers`.
"""

import copy

import nnsight
import pytest
import torch

import interp
import zoo
from interp.interventions import Knockout, Reweight, Steer
from interp.interventions.reweight import KINDS
from interp.models.running.attention import eager_tower, implementation, tower_implementation
from interp.models.running.steps import Edit, Read, whole
from interp.models.running.structure import resolve
from interp.models.running.trace import run_forward, run_generate
from towers import (
    IN_SOME,
    NO_BLOCKS,
    batch_of,
    even,
    fresh,
    loaded,
    mirrored,
    softmax_changed,
    weighing_blocks,
)

# Their decoders make 4e-5 of 2e-6 that rounding leaves between two towers; 7e-6 between sdpa and eager, untouched.
ROUNDING = ("minicpmv4_6", "minicpmv4_7")
# Full attention, given; a mask for padding; packed images behind a mask; a window; chunks of images, and of windows.
WAYS = ("llava", "lfm2_vl", "mistral3", "got_ocr2", "qwen2_vl", "qwen2_5_vl")


def read(vlm, rows, sites, blocks, *interventions):
    reads = [Read((site, block), site, block, whole) for block in blocks for site in sites]
    return run_forward(vlm, rows, vlm.edits_of(rows, interventions), reads, logits=None)


# The model's own attention ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "change"), [("uniform", even), ("reversed", mirrored)])
@pytest.mark.parametrize("name", IN_SOME)
def test_other_weights_in_the_towers_own_attention(name, kind, change):
    vlm, rows = loaded(name), batch_of(name)
    blocks = weighing_blocks(vlm)
    for chosen in (blocks, blocks[:1]):
        found = vlm.logits(rows, [Reweight(kind=kind, layers=chosen, tower="vision")])
        with softmax_changed(vlm, chosen, change):
            by_hand = vlm.model(**vlm.inputs_of(rows)).logits[:, -1]
        torch.testing.assert_close(found, by_hand, atol=1e-4 if name in ROUNDING else 1e-5, rtol=1e-5)
    assert not torch.allclose(found, vlm.logits(rows), atol=1e-3 if name in ROUNDING else 1e-4)


def test_the_mean_of_the_values_by_hooks(toy, mixed):
    """On the toy, of nothing but its modules: every patch gets the mean of its picture's values."""
    tower = resolve(toy.model, toy.structure.blocks)
    values, handles = {}, []
    for block in (1, 2):
        attention = tower[block].self_attn
        handles.append(attention.v_proj.register_forward_hook(lambda _, __, out, at=block: values.update({at: out})))
        handles.append(
            attention.out_proj.register_forward_pre_hook(
                lambda _, args, at=block: (values[at].mean(dim=1, keepdim=True).expand_as(args[0]),)
            )
        )
    with torch.no_grad():
        by_hand = toy.model(**toy.inputs_of(mixed)).logits[:, -1]
    for handle in handles:
        handle.remove()
    found = toy.logits(mixed, [Reweight(kind="uniform", layers=[1, 2], tower="vision")])
    torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=1e-5)


# The weights -------------------------------------------------------------------------------------------------------------


def test_they_are_transformers_own(toy, mixed):
    found = read(toy, mixed, ["vision_pattern"], range(4))
    tower = resolve(toy.model, toy.structure.vision)
    with eager_tower(toy), torch.no_grad():
        own = tower(toy.inputs_of(mixed)["pixel_values"], output_attentions=True).attentions
    for block in range(4):
        torch.testing.assert_close(found["vision_pattern", block].transpose(1, 2), own[block])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WAYS)
def test_rows_sum_to_one_over_the_keys_they_may_see(name, kind):
    vlm, rows = loaded(name), batch_of(name)
    sites = ["vision_mask", "vision_pattern"]
    plain = read(vlm, rows, sites, [0])
    after = read(vlm, rows, sites, [0, 1], Reweight(kind=kind, layers=0, tower="vision"))
    sees = plain["vision_mask", 0].transpose(1, 2).expand_as(plain["vision_pattern", 0])
    was, now = plain["vision_pattern", 0], after["vision_pattern", 0]
    assert torch.equal(was > 0, sees)
    assert (now >= 0).all()
    assert (now[~sees] == 0).all()
    torch.testing.assert_close(now.sum(dim=-1), torch.ones(now.shape[:-1]))
    assert not torch.allclose(now, was)
    if kind == "shuffled":
        torch.testing.assert_close(now.sort(dim=-1).values, was.sort(dim=-1).values)
    if kind == "uniform":
        torch.testing.assert_close(now[sees], (sees / sees.sum(dim=-1, keepdim=True))[sees])
    assert (after["vision_pattern", 1] > 0).equal(read(vlm, rows, sites, [1])["vision_pattern", 1] > 0)


@pytest.mark.parametrize(("name", "number"), [("qwen2_vl", 2), ("qwen2_5_vl", 5), ("mistral3", 2)])
def test_chunks_are_images_or_windows(name, number):
    """As many groups of tokens that see each other and no others."""
    sees = read(loaded(name), batch_of(name), ["vision_mask"], [0])["vision_mask", 0][0, 0]
    assert torch.equal(sees, sees.T)
    assert len({tuple(row) for row in sees.tolist()}) == number
    assert int(sees.sum(dim=1).reciprocal().sum().round()) == number


def test_draws_depend_on_seed_block_head_and_row(toy, mixed):
    def drawn(seed):
        return read(
            toy, mixed, ["vision_pattern"], [0, 1], Reweight(kind="random", layers=[0, 1], tower="vision", seed=seed)
        )

    once, again, other = drawn(0), drawn(0), drawn(1)
    first, second = (once["vision_pattern", block] for block in (0, 1))
    assert torch.equal(second, again["vision_pattern", 1])
    assert not torch.allclose(first, other["vision_pattern", 0])
    assert not torch.allclose(first, second)
    assert not torch.allclose(first[0, 0, 0], first[0, 0, 1])
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(first[0, 0], first[0, 1])


def test_no_other_block_is_touched(toy, mixed):
    plain = read(toy, mixed, ["vision_pattern", "vision_z", "vision_post"], range(4))
    after = read(
        toy,
        mixed,
        ["vision_pattern", "vision_z", "vision_post"],
        range(4),
        Reweight(kind="reversed", layers=-2, tower="vision"),
    )
    for site in ("vision_pattern", "vision_z", "vision_post"):
        for block in (0, 1):
            assert torch.equal(after[site, block], plain[site, block])
        assert not torch.allclose(after[site, 2], plain[site, 2])


def with_double(value):
    return value * 2


@pytest.mark.parametrize("name", WAYS)
def test_values_are_weighed_as_they_are_edited_and_z_comes_behind(name):
    vlm, rows = loaded(name), batch_of(name)
    even_weights = vlm.edits_of(rows, [Reweight(kind="uniform", layers=0, tower="vision")])
    reads = [Read(site, site, 0, whole) for site in ("vision_v", "vision_z", "vision_pattern")]
    plain, of_v, of_z = (
        run_forward(vlm, rows, [*edits, *even_weights], reads, logits=None)
        for edits in ([], [Edit("vision_v", 0, with_double)], [Edit("vision_z", 0, with_double)])
    )
    torch.testing.assert_close(of_v["vision_v"], 2 * plain["vision_v"])
    for seen in (of_v, of_z):
        torch.testing.assert_close(seen["vision_z"], 2 * plain["vision_z"])
        torch.testing.assert_close(seen["vision_pattern"], plain["vision_pattern"])
    logits = [
        run_forward(vlm, rows, [*even_weights, Edit(site, 0, with_double)])["logits"]
        for site in ("vision_v", "vision_z")
    ]
    torch.testing.assert_close(*logits, atol=1e-5, rtol=1e-5)


# Runs of every kind ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llava", "blip-2", "qwen2_5_vl", "mistral3"])
def test_whatever_attention_the_model_was_loaded_with(name):
    eagerly, rows = fresh(name)
    eagerly.model.set_attn_implementation("eager")
    eagerly.checked_on = rows
    assert tower_implementation(eagerly) == "eager" != tower_implementation(loaded(name))
    for kind in KINDS:
        change = [Reweight(kind=kind, layers="all", tower="vision", seed=3)]
        mine, theirs = eagerly.logits(rows, change), loaded(name).logits(batch_of(name), change)
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def implementations(vlm):
    """Of every config that some module looks up, by its kind."""
    configs = [module.config for module in vlm.model.modules() if hasattr(module, "config")]
    return {type(config).__name__: config._attn_implementation for config in configs}


def fail(value):
    raise ZeroDivisionError


@pytest.mark.parametrize(("name", "tower"), [("llava", "CLIPVisionConfig"), ("qwen2_vl", "Qwen2VLVisionConfig")])
def test_the_tower_alone_is_eager_and_for_the_run_alone(name, tower):
    vlm, rows = loaded(name), batch_of(name)
    change = vlm.edits_of(rows, [Reweight(kind="uniform", layers=0, tower="vision")])
    before, during = implementations(vlm), []
    run_forward(vlm, rows, change)
    with eager_tower(vlm):
        during = implementations(vlm)
    assert during == {**before, tower: "eager"} != before
    assert implementation(vlm) == "sdpa"
    assert implementations(vlm) == before
    with pytest.raises(ZeroDivisionError):
        run_forward(vlm, rows, [*change, Edit("resid_pre", 0, fail)])
    assert implementations(vlm) == before


def test_with_others_and_in_any_order(toy, mixed):
    both = [
        Reweight(kind="shuffled", layers="all", tower="vision"),
        Reweight(kind="uniform", layers=[2, 5]),
        Knockout(source="image", target="last", layers=3),
        Steer(direction=torch.ones(toy.structure.d_model), layers=4, positions="image", scale=0.5),
    ]
    together = toy.logits(mixed, both)
    assert torch.equal(together, toy.logits(mixed, both[::-1]))
    for left_out in range(4):
        assert not torch.equal(together[::2], toy.logits(mixed, both[:left_out] + both[left_out + 1 :])[::2])
    text = torch.tensor([False, True, False])
    alone = [both[0]]
    torch.testing.assert_close(toy.logits(mixed, alone)[text], toy.logits(mixed)[text], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_new_tokens_are_those_of_another_tower(name):
    parts = interp.load("toy", device="cpu", check=False)
    vlm, rows = copy.copy(loaded(name)), batch_of(name)
    vlm.nnsight = nnsight.TransformersModel(
        vlm.model, task="image-text-to-text", processor=parts.processor, tokenizer=parts.tokenizer
    )
    options = {"do_sample": False, "num_beams": 1, "min_new_tokens": 6}
    change = [Reweight(kind="uniform", layers="all", tower="vision")]
    cut = [Knockout(source="image", target="last", layers="all")]
    for others in ([], cut):
        edits = vlm.edits_of(rows, [*change, *others], 5)
        found = run_generate(vlm, rows, edits, 6, **options)
        plain = vlm.edits_of(rows, others, 5)
        with softmax_changed(vlm, weighing_blocks(vlm), even):
            theirs = run_generate(vlm, rows, plain, 6, **options)
        assert torch.equal(found, theirs)
        assert not torch.equal(found, run_generate(vlm, rows, plain, 6, **options))


def test_what_is_captured_is_what_ran(toy, few):
    data = [(scene.image, "<image> what colour is the 3 ?") for scene in few]
    options = {"sites": ("vision", "projector", "resid"), "positions": "image", "progress": False, "batch_size": 3}
    change = Reweight(kind="reversed", layers=[1, 3], tower="vision")
    acts = interp.capture(toy, data, interventions=[change], **options)
    plain = interp.capture(toy, data, **options)
    assert (acts.manifest["attention"], acts.manifest["vision_attention"]) == ("sdpa", "eager")
    assert (plain.manifest["attention"], plain.manifest["vision_attention"]) == ("sdpa", "sdpa")
    torch.testing.assert_close(acts["vision"][:2], plain["vision"][:2])
    assert not torch.allclose(acts["vision"][2], plain["vision"][2])
    rows = toy.prepare(texts=[text for _, text in data], images=[image for image, _ in data])
    with softmax_changed(toy, [1, 3], mirrored):
        features = toy.model.get_image_features(toy.inputs_of(rows)["pixel_values"]).pooler_output
    of_pictures = torch.stack([each.mean(dim=0) for each in features])
    torch.testing.assert_close(acts["projector"][0], of_pictures, atol=1e-5, rtol=1e-5)


def test_they_can_be_sent(toy, remote_toy, mixed):
    for kind in KINDS:
        change = [Reweight(kind=kind, layers=[0, 2], tower="vision")]
        torch.testing.assert_close(remote_toy.logits(mixed, change), toy.logits(mixed, change), atol=1e-5, rtol=0)
        assert not torch.allclose(toy.logits(mixed, change), toy.logits(mixed))
    assert remote_toy.generate(mixed, interventions=change) == toy.generate(mixed, interventions=change)


def test_a_tower_on_a_server_is_not_switched(toy, mixed):
    away = copy.copy(toy)
    away.trait("vision_weighed")
    away.remote = "https://example.org"
    with pytest.raises(interp.InputError, match="runs on a server, where attention in its image tower is 'sdpa'"):
        away.logits(mixed, [Reweight(kind="uniform", layers=0, tower="vision")])


# What is refused ---------------------------------------------------------------------------------------------------------


def test_a_tower_that_runs_once_for_some_batches_alone():
    """Once for small pictures, and once more for the tiles of large ones: an edit would change one run of two."""
    vlm, tiled = fresh("step3p7")
    start = 130  # what stands before the whole of a picture; its tiles stand before that
    rows = [ids[ids.index(start) :] for ids in tiled.inputs["input_ids"].tolist()]
    small = vlm.prepare(encoding={**zoo.pad(rows), "pixel_values": tiled.inputs["pixel_values"]})
    vlm.checked_on = small
    change = [Reweight(kind="uniform", layers="all", tower="vision")]
    found = vlm.logits(small, change)
    with softmax_changed(vlm, [0, 1], even):
        by_hand = vlm.model(**vlm.inputs_of(small)).logits[:, -1]
    torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=1e-5)
    with pytest.raises(interp.LayoutError, match="runs its image tower 2 times for this batch, expected once"):
        vlm.logits(tiled, change)


@pytest.mark.parametrize("name", NO_BLOCKS)
def test_a_model_without_blocks(name):
    with pytest.raises(interp.LayoutError, match="has no image tower made of blocks"):
        loaded(name).logits(batch_of(name), [Reweight(kind="uniform", layers=0, tower="vision")])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"layers": 4}, "layer 4: 'toy' has blocks in its image tower 0 to 3"),
        ({"layers": []}, r"layers=\[\] names no layer: expected 'all', an int or ints from 0 to 3"),
        ({"layers": [1, -3]}, r"layers=\[1, -3\] names layer 1 more than once"),
        ({"layers": "some"}, "layers='some': expected 'all', an int or ints from 0 to 3"),
        ({"kind": "flat"}, "kind='flat' is unknown: use one of uniform"),
    ],
)
def test_wrong_weights_of_the_tower(toy, mixed, wrong, words):
    with pytest.raises(interp.InputError, match=words):
        toy.logits(mixed, [Reweight(**{"kind": "uniform", "layers": 0, "tower": "vision", **wrong})])


def test_a_batch_without_images_is_refused(toy):
    text = toy.prepare(texts=["a red 3 at top . where is the 3 ?"])
    with pytest.raises(interp.InputError, match="tower='vision': the batch has no image") as caught:
        toy.logits(text, [Reweight(kind="uniform", layers=0, tower="vision")])
    assert "\n" not in str(caught.value)


def test_who_sees_whom_is_read_alone(toy, mixed):
    with pytest.raises(interp.InputError, match=r"site='vision_mask' says who may see whom .* can only be read"):
        run_forward(toy, mixed, [Edit("vision_mask", 0, whole)])
