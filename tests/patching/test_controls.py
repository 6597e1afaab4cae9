"""Control positions: as many as were chosen, others, before the target, and the same whatever the padding."""

import torch

from interp.patching.controls import others_before


def draw(chosen, target, real, seed=0):
    return others_before(chosen, target, real, torch.Generator().manual_seed(seed))


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
