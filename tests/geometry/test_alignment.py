from __future__ import annotations

import doctest
import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.errors import InputError
from interp.geometry import AlignmentMatrix, alignment_matrix, neighbor_overlap, overlap_interval
from interp.geometry.layer_grids import NO_HALVES, Resampling
from interp.geometry.phase import above_floor
from interp.results import Result
from interp.statistics import family_p
from interp.statistics.half_samples import standard_error

LAYERS = 9


def planted(seed=0, n=120, d=16, shared=range(3, 6), entry=None):
    """Visual and textual states [9, n, d]: the same code (turned, with a little noise) in `shared` layers only.

    With `entry`, the visual state 0 carries the code of that textual layer.
    """
    rng = np.random.default_rng(seed)
    visual, textual = rng.normal(size=(2, LAYERS, n, d))
    for layer in shared:
        turn, _ = np.linalg.qr(rng.normal(size=(d, d)))
        visual[layer] = 5 * textual[layer] @ turn + 0.5 * rng.normal(size=(n, d))
    if entry is not None:
        visual[0] = textual[entry] + 0.3 * rng.normal(size=(n, d))
    return torch.tensor(visual), torch.tensor(textual)


def matrix(diagonal, low=None, chance=0.1):
    values = torch.diag(torch.tensor(diagonal))
    floor = values if low is None else torch.diag(torch.tensor(low))
    return AlignmentMatrix(values, chance, floor, values, "neighbor_overlap", 30, 301, 10)


@pytest.mark.parametrize("seed", range(4))
def test_the_planted_phase_is_found_exactly(seed):
    found = alignment_matrix(*planted(seed), k=10, subsamples=10)
    assert found.phase() == range(3, 6)


@pytest.mark.parametrize("seed", range(4))
def test_no_phase_where_nothing_is_shared(seed):
    assert alignment_matrix(*planted(seed, shared=()), k=10).phase() is None


def test_the_p_of_many_layers_is_that_of_their_maximum():
    visual, textual = (states[2:6] for states in planted(n=60))
    found = alignment_matrix(visual, textual, k=6, permutations=39)
    orders = Resampling(NO_HALVES, 39, 0).orders(60)
    null = torch.stack([alignment_matrix(visual, textual[:, order], k=6, permutations=0).values for order in orders])
    torch.testing.assert_close(found.null.double(), null, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.p_family, family_p(found.values, null))
    torch.testing.assert_close(found.p_diagonal, family_p(found.values.diagonal(), null.diagonal(dim1=1, dim2=2)))
    assert (found.p_diagonal[1:] == 1 / 40).all()
    assert found.p_diagonal[0] > 0.05
    without = alignment_matrix(visual, textual, k=6, permutations=0)
    assert without.null is None
    assert without.p_family.isnan().all()
    assert without.phase() == range(1, 4)
    assert alignment_matrix(visual, textual, metric="svcca", subsamples=0).null is None
    assert alignment_matrix(visual[:2], textual[:2], metric="svcca", subsamples=0, permutations=3).null.shape == (
        3,
        2,
        2,
    )
    with pytest.raises(InputError, match="permutations=-1"):
        alignment_matrix(visual, textual, k=6, permutations=-1)


def test_layers_that_share_nothing_have_a_phase_in_one_matrix_of_twenty_at_most():
    """Of 20 layers one is above chance by its own interval in an eighth of matrices, by information imbalance."""
    rng = np.random.default_rng(1)
    phases, alone = 0, 0
    for seed in range(16):
        visual, textual = torch.tensor(rng.normal(size=(2, 20, 30, 4)))
        found = alignment_matrix(visual, textual, "information_imbalance", seed=seed, permutations=39, subsamples=20)
        phases += found.phase() is not None
        alone += replace(found, null=None).phase() is not None
    assert phases <= 1
    assert alone >= 2


def test_phase_at_the_borders_and_across_a_gap():
    assert matrix([0.9, 0.8, 0.2, 0.85]).phase() == range(0, 2)
    assert matrix([0.2, 0.75, 0.8, 0.9]).phase() == range(1, 4)
    assert matrix([0.2, 0.75, 0.8, 0.9]).phase(tau=0.95) == range(3, 4)
    assert matrix([0.2, 0.3], low=[0.1, 0.1]).phase() is None
    assert matrix([0.2, 0.3], low=[0.1, 0.11]).phase() == range(1, 2)


def test_bypass_sees_where_the_entry_goes():
    visual, textual = planted(entry=4)
    found = alignment_matrix(visual, textual, k=10).bypass()
    assert found.best[[0, 3, 4, 5]].tolist() == [4, 3, 4, 5]
    assert found.shift[[0, 3, 4, 5]].tolist() == [4, 0, 0, 0]
    assert found.intermediate
    assert found.entry_gain > 0.2
    assert found.low[0] > found.chance
    assert not alignment_matrix(visual, textual, k=10).bypass(band=(0.6, 0.9)).intermediate
    assert not alignment_matrix(*planted(entry=0), k=10).bypass().intermediate
    assert not alignment_matrix(*planted(shared=()), k=10).bypass().intermediate


def test_each_value_is_the_overlap_of_that_pair():
    visual, textual = planted(n=60)
    found = alignment_matrix(visual[:2], textual[2:5].float(), k=7, subsamples=12, seed=5)
    assert found.values.shape == (2, 3)
    assert found.chance == 7 / 59
    for i in range(2):
        for j in range(3):
            expected = overlap_interval(visual[i], textual[2 + j].float(), k=7, subsamples=12, seed=5)
            got = (found.values[i, j], found.low[i, j], found.high[i, j])
            assert [float(part) for part in got] == pytest.approx(expected, abs=1e-9)
    cosine = alignment_matrix(visual[:2], textual[:2], metric="mutual_knn", k=7)
    assert cosine.values[1, 0] == pytest.approx(neighbor_overlap(visual[1], textual[0], k=7, metric="cosine"))


def test_blocks_of_rows_change_nothing(monkeypatch):
    visual, textual = planted(n=50)
    whole = alignment_matrix(visual, textual, k=5, subsamples=5)
    monkeypatch.setattr("interp.geometry.neighbors._BLOCK", 18 * 50 * 7)
    parts = alignment_matrix(visual, textual, k=5, subsamples=5)
    torch.testing.assert_close(parts.values, whole.values)
    torch.testing.assert_close(parts.low, whole.low)


def test_a_constant_state_is_at_chance_and_without_intervals_they_are_nan():
    visual, textual = planted(n=50)
    visual[0], textual[0] = 1.7, -0.3
    found = alignment_matrix(visual, textual, k=5, subsamples=0)
    assert found.values[0].tolist() == pytest.approx([found.chance] * LAYERS)
    assert found.low.isnan().all()
    assert found.phase() == range(3, 6)


@pytest.mark.parametrize(("n", "k"), [(40, 5), (60, 10), (60, 30), (101, 10)])
def test_states_that_say_nothing_are_at_chance_and_not_above_it_by_rounding(n, k):
    visual, textual = planted(n=n)
    visual[:] = 1.0
    found = alignment_matrix(visual, textual, k=k)
    assert found.phase() is None
    assert not found.bypass(band=(0, 1)).intermediate
    assert not above_floor(found).any()


def test_takes_what_gives_states_when_indexed():
    class Site:
        def __init__(self, states):
            self.states = states

        def __getitem__(self, index):
            return self.states[index]

    visual, textual = planted(n=40)
    found = alignment_matrix(Site(visual.half()), Site(textual.numpy()), k=5, subsamples=2)
    torch.testing.assert_close(found.values, alignment_matrix(visual.half(), textual, k=5, subsamples=2).values)


def test_frames_are_tidy():
    found = alignment_matrix(*planted(n=40), k=5, subsamples=5)
    frame = found.to_frame()
    assert list(frame.columns) == ["visual", "textual", "value", "low", "high", "chance", "p_family"]
    row = frame[(frame.visual == 2) & (frame.textual == 7)].iloc[0]
    assert row.value == found.values[2, 7]
    best = found.bypass().to_frame()
    assert list(best.columns)[:7] == ["visual", "textual", "shift", "value", "low", "high", "chance"]
    assert list(best.columns)[7:] == ["gain", "gain_low", "gain_high", "p"]
    assert best.value[3] == found.values[3, best.textual[3]]


def test_kept_and_read_again(tmp_path):
    found = alignment_matrix(*planted(n=40), k=5, subsamples=5, seed=7)
    again = Result.load(found.save(tmp_path / "matrix.safetensors"))
    assert isinstance(again, AlignmentMatrix)
    assert torch.equal(again.values, found.values)
    assert (again.phase(), again.provenance.seed) == (found.phase(), 7)
    bypass = found.bypass()
    assert torch.equal(type(bypass).load(bypass.save(tmp_path / "bypass.safetensors")).shift, bypass.shift)


def test_refusals():
    visual, textual = planted(n=40)
    for call, message in [
        (lambda: alignment_matrix(visual, textual, k=40), "k=40 neighbours of 40 examples: expected"),
        (lambda: alignment_matrix(visual, textual[:, :30], k=5), "visual has 40 examples and textual 30"),
        (lambda: alignment_matrix(visual[0], textual, k=5), r"visual has shape \(40, 16\): expected \[state, example"),
        (lambda: alignment_matrix(visual, textual, metric="cosine"), "metric='cosine' is unknown"),
        (lambda: alignment_matrix(visual, textual, k=5, subsamples=-1), "subsamples=-1"),
        (lambda: alignment_matrix(visual[:3], textual, k=5).phase(), "has no diagonal"),
        (lambda: matrix([0.5, 0.6]).phase(tau=0), "tau=0"),
        (lambda: matrix([0.5, 0.6]).bypass(band=(0.9, 0.1)), r"band=\(0.9, 0.1\)"),
    ]:
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize("module", ["", ".clouds", ".neighbors", ".dimension", ".overlap", ".alignment"])
def test_examples_in_docstrings(module):
    assert doctest.testmod(importlib.import_module(f"interp.geometry{module}")).failed == 0


@pytest.mark.parametrize(
    "metric", ["information_imbalance", "cka", "cka_rbf", "distance_correlation", "svcca", "procrustes"]
)
def test_the_planted_phase_is_found_by_other_measures(metric):
    found = alignment_matrix(*planted(), metric=metric)
    assert found.phase() == range(3, 6)
    assert alignment_matrix(*planted(shared=()), metric=metric).phase() is None


def test_a_phase_is_measured_from_chance():
    # 0.5 is 0.83 of 0.6, but half of the way from chance 0.4
    assert matrix([0.5, 0.6], chance=0.4).phase() == range(1, 2)
    assert matrix([0.5, 0.6], chance=0.0).phase() == range(0, 2)
    # -0.1 of a signed measure is above its floor of -0.5
    assert matrix([-0.1, -0.4], chance=-0.5).phase() == range(0, 1)


def test_a_layer_of_a_phase_is_itself_above_chance():
    assert matrix([0.58, 0.6], low=[0.05, 0.5]).phase() == range(1, 2)


def test_the_floor_may_differ_from_layer_to_layer():
    values = torch.diag(torch.tensor([0.5, 0.6]))
    floor = torch.tensor([[0.5, 0.1], [0.1, 0.1]])
    found = AlignmentMatrix(values, 0.2, values, values, "svcca", None, 301, 10, floor=floor)
    assert found.phase() == range(1, 2)


def test_the_gain_has_an_interval_and_a_p_that_knows_of_the_choice():
    visual, textual = planted(entry=4)
    found = alignment_matrix(visual, textual, k=10).bypass()
    assert found.gain[0] == pytest.approx(found.entry_gain)
    assert 0 < found.gain_low[0] < found.gain[0] < found.gain_high[0]
    assert found.p[0] == pytest.approx(1 / 1001)
    early = alignment_matrix(*planted(entry=0), k=10).bypass()
    assert early.gain[0] < 0
    assert early.p[0] > 0.9
    whole = alignment_matrix(visual, textual, k=10)
    chosen = 2 + int(whole.values[0, 2:-2].argmax())
    expected = standard_error(whole.parts[:, 0, chosen] - whole.parts[:, 0, 0], whole.n)
    assert float(found.gain_high[0] - found.gain[0]) == pytest.approx(2.009575 * float(expected))  # t of 49
    none = alignment_matrix(visual, textual, k=10).bypass(band=(0.0, 0.1))  # between two layers
    assert none.gain.isnan().all()
    assert none.p.isnan().all()
    assert alignment_matrix(visual, textual, metric="svcca", subsamples=0).bypass().p.isnan().all()


def test_p_of_layers_that_share_nothing_is_even():
    """The best of seven intermediate layers is above layer 0 nearly always, and p does not mind."""
    found = [alignment_matrix(*planted(seed, n=60, shared=()), k=6, subsamples=0).bypass() for seed in range(30)]
    gains, p = torch.cat([each.gain for each in found]), torch.cat([each.p for each in found])
    assert (gains > 0).double().mean() > 0.8
    assert (p <= 0.05).double().mean() < 0.1
    assert 0.35 < float(p.mean()) < 0.65


def test_a_stack_against_itself_and_kept_with_its_draws(tmp_path):
    visual, _ = planted(n=60)
    found = alignment_matrix(visual, visual, k=6)
    assert found.values.diagonal().tolist() == [1.0] * LAYERS
    again = Result.load(found.save(tmp_path / "matrix.safetensors"))
    assert torch.equal(again.bypass().p, found.bypass().p)
    assert torch.equal(again.bypass().gain_low, found.bypass().gain_low)
