"""Wilson's interval of a share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from calibrations import Row
from interp.statistics import wilson_interval


def coverage(n: int) -> Callable[[int], bool]:
    """Whether the interval of a share of `n` trials holds the true share, drawn uniformly from [.05, .95]."""

    def draw(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        truth = rng.uniform(0.05, 0.95)
        low, high = wilson_interval(rng.binomial(n, truth) / n, n)
        return low <= truth <= high

    return draw


ROWS = [Row("wilson_interval", f"{n} binary rows", "coverage", coverage(n)) for n in (10, 20, 50, 200)]
