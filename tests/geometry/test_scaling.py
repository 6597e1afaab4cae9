from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.errors import InputError
from interp.geometry import clamp, massive_features, neighbor_overlap, standardise


def with_massive(n=200, d=40, seed=0):
    """A cloud, and the same with two features that are hundreds of times larger in some rows."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    large = x.copy()
    large[::3, 7] += 400 * rng.normal(size=len(large[::3]))
    large[:, 21] += 900
    large[5, 21] = -900
    return x, large


def test_massive_features_are_named_and_clamped():
    x, large = with_massive()
    assert massive_features(x).tolist() == []
    assert massive_features(large).tolist() == [7, 21]
    assert massive_features(np.stack([x, large])).tolist() == [7, 21]
    assert massive_features(clamp(large)).tolist() == []
    np.testing.assert_array_equal(clamp(x), x)
    untouched = [feature for feature in range(40) if feature not in (7, 21)]
    np.testing.assert_array_equal(clamp(large)[:, untouched], large[:, untouched])


def test_they_hide_who_is_near_whom():
    x, large = with_massive()
    assert neighbor_overlap(x, large) < 0.5
    assert neighbor_overlap(x, standardise(large)) > 0.7


def test_standardise_is_sklearns_but_for_the_degrees_of_freedom():
    from sklearn.preprocessing import StandardScaler

    x, _ = with_massive()
    expected = StandardScaler().fit_transform(x) * np.sqrt(199 / 200)
    np.testing.assert_allclose(standardise(x), expected, atol=1e-12)


@pytest.mark.parametrize("change", [clamp, standardise])
def test_what_goes_in_comes_out(change):
    x, _ = with_massive()
    assert isinstance(change(x), np.ndarray)
    for dtype in (torch.float32, torch.float64):
        assert change(torch.from_numpy(x).to(dtype)).dtype == dtype
    assert change(torch.from_numpy(x).bfloat16()).dtype == torch.float32
    whole = torch.from_numpy(x * 100).round()  # whose distances are taken in float64
    assert [change(whole.to(dtype)).dtype for dtype in (torch.float32, torch.float16)] == [torch.float32] * 2
    assert change(whole.float().numpy()).dtype == np.float32
    assert change(whole.int()).dtype == torch.float64


def test_refusals():
    x, _ = with_massive()
    for call, message in [
        (lambda: clamp(x, times=0), "times=0"),
        (lambda: massive_features(np.ones((5, 4))), "half of the 4 features or more are nearly constant"),
        (lambda: clamp(x * np.nan), "200 rows that are not finite"),
    ]:
        with pytest.raises(InputError, match=message):
            call()
