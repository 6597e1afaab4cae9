"""Scaling against what a plain hook does, and where it must agree with other interventions."""

import pytest
import torch

import interp
from interp.interventions import Ablate, Scale, Steer


def test_heads_are_scaled_as_a_hook_scales_them(toy, mixed):
    module = toy.model.get_submodule(f"{toy.structure.layers}.4.self_attn.o_proj")

    def scale(module, given):
        heads = given[0].clone().unflatten(-1, (4, 32))
        heads[:, :, [1, 3]] *= -2.5
        return (heads.flatten(2),)

    handle = module.register_forward_pre_hook(scale)
    try:
        with torch.no_grad():
            expected = toy.model(**toy.inputs_of(mixed)).logits[:, -1]
    finally:
        handle.remove()
    found = toy.logits(mixed, [Scale(layers=4, positions="all", factor=-2.5, heads=[1, 3])], positions="all")[:, -1]
    # A hook scales padding too, which nothing sees.
    torch.testing.assert_close(found, expected)


def test_a_factor_of_one_changes_no_bit_and_of_zero_ablates(toy, mixed):
    for site in ("z", "resid_pre", "mlp_out"):
        same = Scale(site=site, layers="all", positions="text", factor=1)
        assert torch.equal(toy.logits(mixed, [same]), toy.logits(mixed))
        none = Scale(site=site, layers=[2, 5], positions="text", factor=0)
        cut = Ablate(site=site, layers=[2, 5], positions="text")
        assert torch.equal(toy.logits(mixed, [none]), toy.logits(mixed, [cut]))


def test_two_scalings_are_one_by_their_product(toy, mixed):
    twice = [Scale(layers=3, positions="last", factor=factor) for factor in (4, 0.25)]
    assert torch.equal(toy.logits(mixed, twice), toy.logits(mixed))


def test_new_tokens_are_scaled_too(toy):
    """Scaled to nothing in all that is fed, each step is that of the growing text run again."""
    batch = toy.prepare(["a red 3 at top and a blue"])
    change = Scale(site="attn_out", layers=[0, 6], positions="all", factor=0.1)
    (said,) = toy.generate(batch, max_new_tokens=3, interventions=[change])
    text = batch.texts[0]
    for _ in range(3):
        token = int(toy.logits(toy.prepare([text]), [change]).argmax())
        text += " " + toy.tokenizer.decode([token])
    assert text.split()[-len(said.split()) :] == said.split()


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), True, "2", None, torch.ones(2)])
def test_what_is_no_factor(toy, mixed, factor):
    for change in (
        Scale(layers=0, positions="last", factor=factor),
        Steer(direction=torch.ones(1), layers=0, positions="last", scale=factor),
    ):
        with pytest.raises(interp.InputError, match="expected a finite number") as caught:
            toy.logits(mixed, [change])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("direction", "scale", "words"),
    [
        (torch.ones(128), 1e39, r"scale=1e\+39: expected a finite number"),
        (torch.full((128,), 1e30), 1e10, r"scale=10000000000\.0 times the direction is too large for torch.float32"),
        (
            torch.ones(128, dtype=torch.float16),
            1e5,
            r"scale=100000\.0 times the direction is too large for torch.float16",
        ),
        (torch.full((128,), torch.nan), 1.0, r"direction of shape \(128,\) has numbers that are not finite"),
    ],
)
def test_what_cannot_be_added_is_refused(toy, mixed, direction, scale, words):
    change = Steer(direction=direction, layers=0, positions="last", scale=scale)
    with pytest.raises(interp.InputError, match=words) as caught:
        toy.logits(mixed, [change])
    assert "\n" not in str(caught.value)


def test_a_factor_too_large_for_states_is_refused(toy, mixed):
    with pytest.raises(interp.InputError, match=r"factor=1e\+39: expected a finite number"):
        toy.logits(mixed, [Scale(layers=0, positions="last", factor=1e39)])
