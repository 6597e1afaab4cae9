"""Skip: positions go around a layer, which still reads them; and Steer: a direction is added as it is given."""

import numpy as np
import pytest
import torch

import interp
import zoo
from interp.interventions import Skip, Steer
from interp.models.running.steps import Read, reads_of_states, whole
from interp.models.running.trace import run_forward
from patterned import batch_of, load


def states(vlm, batch, *interventions):
    """All states `[state, batch, seq, width]`."""
    edits = vlm.edits_of(batch, interventions)
    seen = run_forward(vlm, batch, edits, reads_of_states(vlm, whole, (), edits), logits=None)
    return torch.stack([seen[state] for state in range(len(seen))])


def hooked(vlm, batch, module, hook):
    handle = module.register_forward_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad():
            return vlm.model(**vlm.inputs_of(batch)).logits[:, -1]
    finally:
        handle.remove()


# Skip --------------------------------------------------------------------------------------------------------------------


def test_in_all_layers_visual_states_stay_what_they_were_at_first(toy, mixed):
    image = mixed.positions["image"]
    found = states(toy, mixed, Skip(layers="all", positions="image"))
    assert (found[:, image] == found[0, image]).all()
    assert not torch.allclose(found[-1, ~image], states(toy, mixed)[-1, ~image])


@pytest.mark.parametrize("name", ["llava", "gemma3", "gemma4", "qwen3_5", "cohere2_vision", "qwen3_vl"])
def test_only_what_is_added_between_layers_reaches_what_skips_all_of_them(name):
    """So under DeepStack alone the visual states move."""
    vlm = interp.load(model=zoo.build(name), check=False)
    batch = vlm.prepare(encoding=zoo.encode(name))
    vlm.check(batch)
    image = batch.positions["image"]
    found = states(vlm, batch, Skip(layers="all", positions="image"))
    assert bool((found[:, image] == found[0, image]).all()) == vlm.structure.continuous == (name != "qwen3_vl")


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl", "gemma4", "qwen3_5", "cohere2_vision", "chameleon"])
def test_it_is_what_a_hook_does(name):
    vlm = interp.load(model=zoo.build(name), check=False)
    batch = vlm.prepare(encoding=zoo.encode(name))
    mask = batch.positions["text"][..., None]
    layer = vlm.model.get_submodule(f"{vlm.structure.layers}.1")

    def around(module, args, kwargs, out):
        entered = args[0] if args else kwargs["hidden_states"]
        changed = torch.where(mask, entered, out[0] if isinstance(out, tuple) else out)
        return (changed, *out[1:]) if isinstance(out, tuple) else changed

    found = vlm.logits(batch, [Skip(layers=1, positions="text")])
    torch.testing.assert_close(found, hooked(vlm, batch, layer, around), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, vlm.logits(batch), atol=1e-4)


def test_keys_and_values_of_what_skips_stay_readable(toy, mixed):
    """The layer's own attention gives what it gave; only what is added at these positions is gone."""
    reads = [Read(site, site, 3, whole) for site in ("z", "attn_out", "mlp_out", "resid_pre", "resid_post")]
    edits = toy.edits_of(mixed, [Skip(layers=3, positions="image")])
    plain, found = (run_forward(toy, mixed, e, reads, logits=None) for e in ((), edits))
    for site in ("z", "attn_out", "mlp_out"):
        assert torch.equal(plain[site], found[site])
    image = mixed.positions["image"]
    assert torch.equal(found["resid_post"][image], plain["resid_pre"][image])
    assert torch.equal(found["resid_post"][~image], plain["resid_post"][~image])


def test_what_is_edited_on_its_way_in_leaves_as_it_entered(toy, mixed):
    ahead = Steer(direction=torch.ones(128), layers=2, positions="all", scale=1.0)
    found = states(toy, mixed, Skip(layers=2), ahead)
    assert torch.equal(found[3][mixed.positions["all"]], found[2][mixed.positions["all"]])
    assert not torch.allclose(found[2], states(toy, mixed)[2])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"layers": []}, r"layers=\[\] names no layer"),
        ({"layers": 8}, "layer 8: 'toy' has layers 0 to 7"),
        ({"layers": 0, "positions": []}, r"positions=\[\] selects nothing in this batch"),
        ({"layers": 0, "positions": "picture"}, "positions='picture' is unknown"),
    ],
)
def test_no_layer_and_no_position_to_skip(toy, mixed, wrong, words):
    with pytest.raises(interp.InputError, match=words):
        toy.logits(mixed, [Skip(**wrong)])


def test_a_mask_of_nothing_is_no_position_to_skip(toy, mixed):
    with pytest.raises(interp.InputError, match=r"positions=Tensor of shape \(3, 49\) selects nothing in this batch"):
        toy.logits(mixed, [Skip(layers=0, positions=torch.zeros_like(mixed.positions["all"]))])


# Steer -------------------------------------------------------------------------------------------------------------------


def test_a_direction_is_added_as_it_is_given(toy, mixed):
    direction = torch.randn(128, generator=torch.Generator().manual_seed(0)) * 5
    text = mixed.positions["text"]
    found = states(toy, mixed, Steer(direction=direction, layers=4, positions="text", scale=-0.5))
    plain = states(toy, mixed)
    torch.testing.assert_close(found[4][text], plain[4][text] - 0.5 * direction)
    assert torch.equal(found[4][~text], plain[4][~text])
    layer = toy.model.get_submodule(f"{toy.structure.layers}.3")

    def add(module, args, kwargs, out):
        return out + (-0.5 * direction) * text[..., None]

    steer = Steer(direction=direction, layers=4, positions="text", scale=-0.5)
    torch.testing.assert_close(toy.logits(mixed, [steer]), hooked(toy, mixed, layer, add), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma", "llama4", "qwen3_5"])
def test_heads_are_steered_alone(name):
    vlm, batch = load(name), batch_of(name, padded=True)
    layer = next(layer for layer, place in enumerate(vlm.trait("z")) if place is not None)
    width = vlm.structure.z[layer].d_head
    steer = Steer(direction=torch.ones(2, width), layers=layer, positions="last", scale=3, site="z", heads=[1, 3])
    read = [Read(0, "z", layer, whole)]
    plain, found = (
        run_forward(vlm, batch, edits, read, logits=None)[0] for edits in ((), vlm.edits_of(batch, [steer]))
    )
    expected = plain.clone()
    expected[:, -1, [1, 3]] += 3
    assert torch.equal(found, expected)
    assert not torch.allclose(vlm.logits(batch, [steer]), vlm.logits(batch))


def test_nothing_is_added_at_scale_nought(toy, mixed):
    still = Steer(direction=torch.ones(128), layers="all", positions="all", scale=0)
    assert (toy.logits(mixed, [still]) == toy.logits(mixed)).all()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"direction": [1.0]}, "direction is a list: expected a tensor"),
        ({"direction": torch.ones(7)}, r"\(7,\) does not fit \(1, 3, 128\)"),
        ({"scale": float("nan")}, "scale=nan: expected a finite number"),
        ({"scale": float("-inf")}, "scale=-inf: expected a finite number"),
        ({"scale": np.float32("nan")}, r"scale=np.float32\(nan\): expected a finite number"),
        ({"scale": torch.ones(2)}, r"scale=Tensor of shape \(2,\): expected a finite number"),
        ({"scale": 10**400}, "scale=1000.*: expected a finite number"),
        ({"scale": np.bool_(True)}, "scale=np.True_: expected a finite number"),
        ({"scale": "large"}, "scale='large': expected a finite number"),
        ({"scale": True}, "scale=True: expected a finite number"),
        ({"layers": []}, r"layers=\[\] names no layer"),
        ({"heads": 0}, "heads=0: resid_pre has no heads"),
        ({"site": "resid"}, "site='resid' is unknown"),
    ],
)
def test_wrong_steering(toy, mixed, wrong, words):
    with pytest.raises(interp.InterpError, match=words):
        toy.logits(
            mixed, [Steer(**{"direction": torch.ones(128), "layers": 0, "positions": "last", "scale": 1.0, **wrong})]
        )


def test_numbers_of_other_libraries_are_numbers(toy, mixed):
    expected = toy.logits(mixed, [Steer(direction=torch.ones(128), layers=3, positions="last", scale=2)])
    for scale in (2.0, np.float32(2), np.int64(2), np.array(2.0), torch.tensor(2.0)):
        steer = Steer(direction=torch.ones(128), layers=3, positions="last", scale=scale)
        assert (toy.logits(mixed, [steer]) == expected).all()
