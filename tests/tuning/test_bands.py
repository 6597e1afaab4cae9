"""Which layers a band has, by name and from a measurement."""

import pytest
import torch

import interp
from interp.errors import InputError, InputTypeError
from interp.geometry import alignment_matrix
from interp.interventions import Truncate
from interp.patching import layer_contribution, layer_sweep, probability
from interp.tuning.bands import Band, band_of, bands, checked_bands


def test_all_bands_but_full_and_connector_have_one_size():
    for n_layers, size in ((8, None), (32, 8), (36, 10), (5, 2), (2, 1)):
        made = bands(n_layers, size)
        assert list(made) == ["full", "early", "middle", "late", "uniform", "random", "connector"]
        expected = n_layers // 2 if size is None else size
        sizes = {name: len(band.layers) for name, band in made.items()}
        assert sizes == {"full": n_layers, "connector": 0} | {name: expected for name in list(made)[1:-1]}
        assert all(set(band.layers) <= set(range(n_layers)) for band in made.values())
        assert [name for name, band in made.items() if band.connector] == ["connector"]


def test_bands_lie_where_their_names_say():
    made = bands(32, 10)
    assert made["early"].layers == tuple(range(10))
    assert made["middle"].layers == tuple(range(11, 21))
    assert made["late"].layers == tuple(range(22, 32))
    assert bands(32, 8)["uniform"].layers == (0, 4, 8, 12, 16, 20, 24, 28)


def test_random_layers_are_drawn_from_all_with_the_seed():
    draws = [bands(8, 4, seed)["random"].layers for seed in range(400)]
    assert draws == [bands(8, 4, seed)["random"].layers for seed in range(400)]
    assert len(set(draws)) > 60  # of 70
    counts = torch.tensor([layer for draw in draws for layer in draw]).bincount()
    assert (counts.double() / 400 - 0.5).abs().max() < 0.1


@pytest.mark.parametrize(("n_layers", "size"), [(8, 8), (8, 0), (8, 2.0), (1, None)])
def test_no_band_is_as_large_as_the_model(n_layers, size, unchecked):
    with pytest.raises(InputError, match="expected an int"):
        bands(n_layers, size)


def test_a_phase_is_of_states_and_a_band_of_the_layers_they_enter():
    assert band_of(range(2, 5), 8).layers == (2, 3, 4)
    assert band_of(range(6, 9), 8).layers == (6, 7)  # state 8 leaves the last layer
    assert band_of(range(0, 9), 8).layers == tuple(range(8))
    assert band_of(range(2, 5), 8, size=4).layers == (2, 3, 4, 5)
    assert band_of(range(0, 2), 8, size=4).layers == (0, 1, 2, 3)
    assert band_of(range(6, 9), 8, size=4).layers == (4, 5, 6, 7)
    assert band_of(range(1, 7), 8, size=2).layers == (3, 4)


def matrix(peak, n_states=5):
    text, noise = torch.randn(2, n_states, 200, 8, generator=torch.Generator().manual_seed(0))
    spread = torch.full((n_states, 1, 1), 3.0)
    spread[peak] = 0.5
    return alignment_matrix(text + spread * noise, text, k=10)


def test_a_matrix_gives_the_band_of_its_phase():
    aligned = matrix([1, 2])
    assert aligned.phase() == range(1, 3)
    assert band_of(aligned, 4) == band_of(aligned.phase(), 4) == Band((1, 2))
    with pytest.raises(InputError, match="matrix is of 5 states: expected 9"):
        band_of(aligned, 8)


def test_a_matrix_without_a_phase_is_refused():
    x, y = torch.randn(2, 5, 200, 8, generator=torch.Generator().manual_seed(0))
    unrelated = alignment_matrix(x, y, k=10)
    assert unrelated.phase() is None
    for measurement in (unrelated, None):
        with pytest.raises(
            InputError, match=r"no state at which picture and text are alike beyond chance; name the layers"
        ):
            band_of(measurement, 4)


def test_a_contribution_gives_the_layers_that_contribute_most(toy):
    scene = interp.toy.scenes(1, seed=0)[0]
    batch = toy.prepare([scene.questions[0].prompt], [scene.image])
    sweep = layer_contribution(toy, batch, control=False, progress=False)
    for size in (None, 3):
        chosen = band_of(sweep, 8, size).layers
        left = [layer for layer in range(8) if layer not in chosen]
        assert len(chosen) == (size or 4)
        assert sweep.values[list(chosen)].min() >= sweep.values[left].max()
    refused = [
        layer_contribution(toy, batch, window=2, control=False, progress=False),
        layer_sweep(toy, batch, Truncate, metric=probability("red"), positions="image", progress=False),
    ]
    for other in refused:
        with pytest.raises(InputError, match="expected what layer_contribution gives for each of 8 layers on its own"):
            band_of(other, 8)
    with pytest.raises(InputError, match="for each of 9 layers"):
        band_of(sweep, 9)


@pytest.mark.parametrize("states", [range(8, 9), range(7, 10), range(-1, 3), range(3, 3)])
def test_states_of_another_model_are_refused(states):
    with pytest.raises(InputError, match="expected states of a model of 8 layers"):
        band_of(states, 8)


def test_what_is_no_measurement_is_refused():
    with pytest.raises(InputTypeError, match="expected an AlignmentMatrix, its phase"):
        band_of([2, 3], 8)


def test_a_band_has_sorted_layers_and_flags():
    assert Band([3, 1]).layers == (1, 3)
    assert Band(range(2)).resolved(True, False) == Band((0, 1), connector=True, vision=False, head=False)
    assert Band((), connector=False, head=True).resolved(True, False) == Band(
        (), connector=False, vision=False, head=True
    )


@pytest.mark.parametrize("layers", [[1, 1], [-1], [0.5], "all", 3, [True]])
def test_layers_that_are_none_are_refused(layers, unchecked):
    with pytest.raises(InputError, match=r"layers=.*: expected ints from 0 on, each once"):
        Band(layers)


def test_flags_are_true_or_false(unchecked):
    with pytest.raises(InputError, match="connector=1: expected True or False"):
        Band((1,), connector=1)


@pytest.mark.parametrize("given", [["middle"], {1: range(2)}, {" ": range(2)}, 3])
def test_bands_have_names(given):
    with pytest.raises(InputTypeError, match="expected a dict of bands by name"):
        checked_bands(given)


def test_no_bands_are_refused():
    with pytest.raises(InputError, match="expected one band at least"):
        checked_bands({})
