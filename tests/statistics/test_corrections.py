"""Corrections: Holm by hand, and the level of a family of cells that depend on each other."""

import numpy as np
import pytest
import torch

from interp.errors import InputError
from interp.statistics import family_p, holm
from interp.statistics.corrections import family_p_of_parts


def test_holm_by_hand_in_any_shape_with_nan_passed_over():
    adjusted = holm([[0.001, 0.04], [float("nan"), 0.03], [0.3, 0.9]])
    expected = [[0.005, 0.12], [np.nan, 0.12], [0.6, 0.9]]
    np.testing.assert_allclose(adjusted, expected)
    np.testing.assert_allclose(holm(torch.tensor([0.04, 0.03, 0.9])), [0.09, 0.09, 0.9], rtol=1e-6)
    assert holm([0.9, 0.8]).tolist() == [1, 1]
    assert np.isnan(holm([np.nan])).all()
    assert holm([]).shape == (0,)
    with pytest.raises(InputError, match=r"^p=\[0.5, 1.5\]: expected values in \[0, 1\], or NaN for no test$"):
        holm([0.5, 1.5])


def simulated(rng, draws, cells, alike):
    """An observed value and its null, on a scale of its own in each cell; cells share `alike` of their variance."""
    shared = rng.normal(size=(draws + 1, 1)) * np.sqrt(alike) + rng.normal(size=(draws + 1, cells)) * np.sqrt(1 - alike)
    values = torch.from_numpy(shared * np.arange(1, cells + 1) + np.arange(cells) ** 2)
    return values[0], values[1:]


@pytest.mark.parametrize("alike", [0.0, 0.9])
def test_any_of_33_states_is_under_05_in_05_of_nulls(alike):
    rng = np.random.default_rng(0)
    any_under = [bool((family_p(*simulated(rng, 19, 33, alike)) <= 0.05).any()) for _ in range(3000)]
    assert 0.04 < np.mean(any_under) < 0.06


def test_cells_that_depend_on_each_other_cost_less_than_holm_takes():
    rng = np.random.default_rng(1)
    seen = {"family": 0, "holm": 0}
    for _ in range(100):
        observed, null = simulated(rng, 999, 33, 0.9)
        observed = observed - null.mean(dim=0)
        observed[7] = 2.6 * null[:, 7].std()
        null = null - null.mean(dim=0)
        one_by_one = (1 + (null >= observed).sum(dim=0)) / 1000
        seen["family"] += bool(family_p(observed, null)[7] <= 0.05)
        seen["holm"] += bool(holm(one_by_one)[7] <= 0.05)
    assert seen["family"] >= 95
    assert seen["holm"] <= 5


def test_a_cell_without_spread_or_with_nan_does_not_count():
    rng = np.random.default_rng(2)
    observed, null = simulated(rng, 99, 3, 0.0)
    still, gap = torch.full((100, 1), 0.1), torch.full((100, 1), torch.nan)
    p = family_p(torch.cat([observed, still[0], gap[0]]), torch.cat([null, still[1:], gap[1:]], dim=1))
    parts = family_p_of_parts([(observed, null), (still[0], still[1:]), (gap[0], gap[1:])])
    assert torch.equal(p.nan_to_num(-1), parts.nan_to_num(-1))
    assert (p[:3] == family_p(observed, null)).all()
    assert p[3] == 1
    assert p[4].isnan()
    assert (
        float(family_p(torch.tensor(5.0), torch.zeros(99))) == 0.01
    )  # one value in all draws, and another in the data
    with pytest.raises(InputError, match=r"^null has shape \(9, 2\) and observed \(3,\): expected one draw or more"):
        family_p(torch.zeros(3), torch.zeros(9, 2))


@pytest.mark.usefixtures("unchecked")
def test_values_of_other_kinds_and_families_of_no_cell():
    null = torch.tensor([[3, 0], [1, 2], [2, 2]])
    assert family_p(torch.tensor([3, 0]), null).tolist() == family_p(torch.tensor([3.0, 0.0]), null.double()).tolist()
    assert family_p(torch.zeros(0), torch.zeros(9, 0)).shape == (0,)
    with pytest.raises(InputError, match=r"^null has shape \(0, 2\) and observed \(2,\): expected one draw or more"):
        family_p(torch.zeros(2), torch.zeros(0, 2))
    with pytest.raises(InputError, match=r"^p=-0.1: expected values in \[0, 1\], or NaN for no test$"):
        holm(-0.1)


def test_a_draw_that_differs_by_rounding_alone_reaches_the_observed_value():
    """The same shuffle sums in another order: 0.1 + 0.2 + 0.3 is 0.6 from one side, 0.6000000000000001 from the other."""
    observed = torch.tensor([(0.1 + 0.2) + 0.3], dtype=torch.float64)
    null = torch.tensor([[0.1 + (0.2 + 0.3)], [0.2], [0.1]], dtype=torch.float64)
    assert null[0] < observed
    assert float(family_p(observed, null)) == 0.5
    still = torch.cat([observed, null[0]])[:, None]
    assert float(family_p(still[0], still[1:])) == 1  # no spread but rounding
