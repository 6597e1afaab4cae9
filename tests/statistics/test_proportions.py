"""Wilson's interval against scipy's, and what it refuses."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from interp.errors import InputError
from interp.statistics.proportions import wilson_interval


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (7, 10), (10, 10), (55, 120)])
def test_wilson_agrees_with_scipy(hits, n):
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_share_is_refused():
    for share, n in [
        (1.5, 10),
        ("a", 3),
        ("0.5", 3),
        (0.5, "3"),
        (None, 3),
        (0.5, 0),
        (float("nan"), 3),
        (0.5, np.inf),
    ]:
        with pytest.raises(InputError, match=r"^share=.* of n=.*: expected a share in \[0, 1\] of a positive number$"):
            wilson_interval(share, n)
    assert wilson_interval(torch.tensor(0.5), torch.tensor(10)) == wilson_interval(0.5, 10)
