"""All shuffles at once give what each shuffle gives alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp.geometry import REGISTRY, alignment_matrix, shuffles
from interp.geometry.layer_grids import NO_HALVES, LayerStacks, Resampling
from interp.geometry.shuffles import cell_p, joint_p

FAST = [name for name, measure in REGISTRY.items() if measure.shuffles is not None]
RESAMPLING = Resampling(NO_HALVES, 7, 3)


def stacks(n=60):
    """Two stacks of related clouds, with ten equal rows in one."""
    rng = np.random.default_rng(0)
    visual, textual = torch.tensor(rng.normal(size=(2, n, 8))), torch.tensor(rng.normal(size=(3, n, 8)))
    textual[0] += visual[0]
    visual[1, :10] = visual[1, 0]
    names = [f"visual state {state}" for state in range(2)], [f"textual state {state}" for state in range(3)]
    return LayerStacks(list(visual), list(textual), names)


@pytest.mark.parametrize("name", [name for name in FAST if REGISTRY[name].kind != "labelled"])
def test_the_null_of_a_grid(name, monkeypatch):
    measure = REGISTRY[name].turned
    k = measure.k and min(measure.k, 7)
    slow = replace(measure, shuffles=None).null_values(stacks(), k, RESAMPLING)
    torch.testing.assert_close(measure.null_values(stacks(), k, RESAMPLING), slow, atol=1e-8, rtol=0)
    monkeypatch.setattr(shuffles, "_HELD", 60**2)  # one table at a time
    torch.testing.assert_close(measure.null_values(stacks(), k, RESAMPLING), slow, atol=1e-8, rtol=0)
    graphs = measure.ready(stacks(), k)
    torch.testing.assert_close(measure.null_values(graphs, k, RESAMPLING), slow, atol=1e-8, rtol=0)


def test_the_null_of_labels():
    measure, cloud, labels = REGISTRY["label_overlap"], stacks().first[1], np.arange(60) % 3
    orders = RESAMPLING.orders(60)
    slow = [measure.value(cloud, labels[order.numpy()], k=7) for order in orders]
    assert measure.shuffles(cloud, labels, orders, 7).tolist() == pytest.approx(slow)


def test_what_differs_by_rounding_reaches_the_value():
    values = torch.tensor([0.25, 0.5], dtype=torch.float64)
    null = values + torch.tensor([[1e-9, -0.1], [-1e-9, -0.2], [1e-9, -0.3]])
    assert cell_p(values, null).tolist() == [1.0, 0.25]
    assert joint_p(values, null).tolist() == [1.0, 0.25]
    unknown = torch.tensor([torch.nan, 0.5], dtype=torch.float64)
    assert cell_p(unknown, null)[0].isnan()


def test_a_state_without_information_has_no_p_under_one():
    states = torch.ones(2, 50, 4)
    other = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0))
    assert alignment_matrix(states, other, k=30).p_family.tolist() == [[1.0, 1.0], [1.0, 1.0]]
