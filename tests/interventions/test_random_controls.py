"""The control of an intervention: as many others as it names, before the place where the effect is measured."""

from dataclasses import dataclass

import pytest
import torch

import interp
from interp.interventions import Ablate, Knockout, Reweight, Skip, Steer, Truncate
from interp.interventions.random_controls import controls_of, draw_controls, random_heads, random_positions


@pytest.fixture(scope="module")
def batch(toy):
    scenes = list(interp.toy.scenes(3, seed=0))
    return toy.prepare([scene.questions[0].prompt for scene in scenes], [scene.image for scene in scenes])


def test_one_that_makes_its_own(toy, batch):
    steer = Steer(direction=torch.ones(128), layers=[2], positions="image", scale=1.0)
    controls = controls_of(toy, [batch, batch], steer, seed=3)
    assert controls.kind == "own"
    assert torch.equal(controls.of_batches[1][0].direction, steer.control(3).direction)


def test_other_heads_where_heads_are_named(toy, batch):
    for named in (
        Ablate(site="z", layers=[1, 2], positions="all", heads=[0, -1]),
        Knockout(source="image", target="last", layers=[1], heads=[0, 3]),
    ):
        controls = controls_of(toy, [batch], named)
        assert controls.kind == "heads"
        assert controls.of_batches[0][0].heads == [1, 2]
        assert controls.drawn.tolist() == controls.wanted.tolist() == [2, 2, 2]
    few = random_heads(toy, [batch], Ablate(site="z", layers=[1], positions="all", heads=[0, 1, 2]))
    assert (few.wanted[0], few.drawn[0]) == (3, 1)
    assert few.of_batches[0][0].heads == [3]


def test_other_positions_else_other_layers(toy, batch):
    for named in (Skip(layers=[4], positions=[5, 6]), Truncate(positions=[5, 6], from_layer=2)):
        controls = controls_of(toy, [batch], named)
        mask = controls.of_batches[0][0].positions
        assert controls.kind == "positions"
        assert mask.sum(dim=1).tolist() == [2, 2, 2]
        assert not mask[:, 5:7].any()
        assert type(controls.of_batches[0][0]) is type(named)
    cut = random_positions(toy, [batch], Knockout(source=[5], target=[8], layers=[1])).of_batches[0][0]
    assert not cut.source[:, 8:].any()
    assert cut.target == [8]
    for named in (Skip(layers=[4, 5]), Reweight(kind="uniform", layers=[4, 5])):  # all positions, none
        controls = controls_of(toy, [batch], named)
        assert controls.kind == "layers"
        assert len(set(controls.of_batches[0][0].layers) - {4, 5}) == 2
        other = controls_of(toy, [batch], named, seed=1)
        assert controls.of_batches[0][0].layers != other.of_batches[0][0].layers


def test_where_nothing_is_left_to_draw(toy, batch):
    @dataclass(frozen=True)
    class Nothing:
        def edits(self, vlm, batch, new=0):
            return []

    for named in (Skip(layers="all"), Nothing(), Reweight(kind="uniform", layers=[0], tower="vision")):
        with pytest.raises(interp.InputError, match="has no control: it leaves no other heads, positions or layers"):
            controls_of(toy, [batch], named)


def draw(chosen, target, real, seed=0):
    return draw_controls(chosen, target, real, torch.Generator().manual_seed(seed))


def test_as_many_others_before_the_target():
    rng = torch.Generator().manual_seed(1)
    real = torch.ones(50, 30, dtype=torch.bool)
    real[:, :4] = False
    chosen, target = (torch.rand(2, 50, 30, generator=rng) < 0.2) & real
    others, wanted, drawn = draw(chosen, target, real)
    assert not (others & (chosen | ~real)).any()
    for row in range(50):
        last = target[row].nonzero().max().item()
        assert not others[row, last:].any()
        free = (real[row] & ~chosen[row])[:last].sum().item()
        assert wanted[row] == chosen[row, :last].sum()
        assert drawn[row] == others[row].sum() == min(wanted[row].item(), free)
    assert (draw(chosen, target, real, seed=2)[0] != others).any()


def test_every_other_position_is_drawn_as_often():
    one = torch.zeros(4000, 6, dtype=torch.bool)
    chosen, target, real = one.clone(), one.clone(), ~one
    chosen[:, 1], target[:, 5] = True, True
    shares = draw(chosen, target, real)[0].float().mean(dim=0)
    torch.testing.assert_close(shares, torch.tensor([0.25, 0, 0.25, 0.25, 0.25, 0]), atol=0.03, rtol=0)


def test_padding_makes_no_difference_and_no_target_draws_nothing():
    real = torch.ones(3, 8, dtype=torch.bool)
    chosen, target = torch.zeros(2, 3, 8, dtype=torch.bool)
    chosen[:, 2:4], target[:2, 7] = True, True
    plain = draw(chosen, target, real)[0]
    padded = draw(*(torch.nn.functional.pad(mask, (5, 0)) for mask in (chosen, target, real)))[0]
    assert (padded[:, 5:] == plain).all()
    assert not padded[:, :5].any()
    assert not plain[2].any()
