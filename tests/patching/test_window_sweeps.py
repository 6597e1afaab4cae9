"""Windows against their definitions, written out; control positions: as many as were selected, before the target, and the
same whatever the padding."""

import pytest
import torch

import interp
from interp.patching.window_sweeps import (
    as_batches,
    centred_windows,
    draw_controls,
    sliding_windows,
    windows_to_end,
)

# Windows ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "width"), [(8, 1), (8, 3), (8, 4), (8, 9), (32, 9), (3, 20)])
def test_a_centred_window_is_what_lies_around_its_layer(layers, width):
    """As in the sources: from l - width // 2 to l + width // 2, one less at the end where the width is even."""
    for layer, window in enumerate(centred_windows(layers, width)):
        reach = width // 2 - (width % 2 == 0)
        assert list(window) == [near for near in range(layer - width // 2, layer + reach + 1) if 0 <= near < layers]


def test_sliding_and_onward_windows():
    assert [list(window) for window in sliding_windows(5, 3)] == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert sliding_windows(5, 5) == [range(5)]
    assert [list(window) for window in windows_to_end(3)] == [[0, 1, 2], [1, 2], [2]]


@pytest.mark.parametrize("width", [0, -1, 2.0, "3", None, True, [1]])
def test_what_is_no_width(width):
    for windows in (centred_windows, sliding_windows):
        with pytest.raises(interp.InputError, match="expected a number of layers of 1 or more"):
            windows(8, width)


def test_a_window_wider_than_the_model():
    with pytest.raises(interp.InputError, match="window=9: the model has 8 layers"):
        sliding_windows(8, 9)


# Batches ----------------------------------------------------------------------------------------------------------------


def test_what_is_no_data(mixed):
    for given in (["image"], "image", 3, None, (mixed, 3)):
        with pytest.raises(interp.errors.InputTypeError, match="expected a batch"):
            as_batches(given)
    with pytest.raises(interp.InputError, match="batch is an empty list"):
        as_batches([])
    assert as_batches(mixed) == as_batches((mixed,)) == [mixed]


# Controls ---------------------------------------------------------------------------------------------------------------


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
