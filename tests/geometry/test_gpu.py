"""The same numbers on a GPU, and what goes in on a device comes out there."""

from __future__ import annotations

import pytest
import torch

from interp.geometry import (
    MEASURES,
    REGISTRY,
    alignment_matrix,
    approximate_neighbors,
    clamp,
    compare,
    curvature,
    density_peaks,
    dimension_scaling,
    eigenvalues,
    id_correlation,
    label_overlap,
    learn_weights,
    log_density,
    modality_gap,
    overlap_interval,
    principal_angles,
    standardise,
)

pytestmark = pytest.mark.gpu


def stacks(n=150, d=12):
    generator = torch.Generator().manual_seed(0)
    visual = torch.randn(3, n, d, generator=generator)
    return visual, visual + torch.randn(3, n, d, generator=generator)


@pytest.mark.parametrize("name", MEASURES)
def test_layer_against_layer(name):
    visual, textual = stacks()
    here = alignment_matrix(visual, textual, metric=name)
    there = alignment_matrix(visual.cuda(), textual.cuda(), metric=name)
    torch.testing.assert_close(there.values, here.values, atol=2e-3, rtol=0)
    torch.testing.assert_close(there.low, here.low, atol=2e-2, rtol=0)
    torch.testing.assert_close(there.bypass().gain, here.bypass().gain, atol=4e-3, rtol=0)


def test_ties_and_copies():
    visual, textual = stacks()
    visual[0] = 1.5
    visual[1, 75:] = visual[1, :75]
    here, there = (alignment_matrix(visual.to(device), textual.to(device), k=9) for device in ("cpu", "cuda"))
    torch.testing.assert_close(there.values, here.values, atol=2e-3, rtol=0)


def test_all_measures_of_all_layers():
    labels = [number % 3 for number in range(150)]
    here, there = (
        compare(
            *(stack.to(device) for stack in stacks()), metrics=REGISTRY, labels=labels, subsamples=3, permutations=3
        )
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(there.value, here.value, atol=2e-2, rtol=1e-2)
    torch.testing.assert_close(there.chance, here.chance, atol=2e-2, rtol=1e-2)


def test_what_goes_in_on_a_device_comes_out_there():
    visual, textual = (stack.cuda() for stack in stacks())
    for found in (
        clamp(visual[0]),
        standardise(visual[0]),
        curvature(visual),
        eigenvalues(visual[0]),
        density_peaks(visual[0]),
        principal_angles(visual[0], textual[0]),
    ):
        assert found.device.type == "cuda"


def test_the_rest_runs():
    visual, textual = (stack[0] for stack in stacks())
    for run in (
        lambda x, y: learn_weights(x, y, steps=20).held_out,
        lambda x, y: id_correlation(x, y, permutations=3).value,
        lambda x, y: modality_gap(x, y, shuffles=3).corrected_cosine,
        lambda x, y: approximate_neighbors(x, 5).recall,
        lambda x, y: label_overlap(x, [0, 1] * 75),
        lambda x, y: overlap_interval(x, y)[2],
        lambda x, y: dimension_scaling(x)[3].value,
        lambda x, y: float(log_density(x, method="pak").values.mean()),
    ):
        assert run(visual.cuda(), textual.cuda()) == pytest.approx(run(visual, textual), rel=2e-2, abs=2e-2)
