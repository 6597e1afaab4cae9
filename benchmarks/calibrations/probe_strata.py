"""A probe of a property that goes with a nuisance: labels shuffled within strata of the nuisance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from calibrations import Row
from interp.probes import probe_layers


def rejects(within: bool, shared: float) -> Callable[[int], bool]:
    """Whether a property is found in 160 examples whose length drives it and the states."""

    def draw(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        length = rng.integers(4, 8, size=160)
        labels = rng.random(160) < np.array([0.05, 0.3, 0.7, 0.95])[length - 4]
        states = np.outer(length - 5.5, np.ones(4)) + rng.normal(size=(160, 4)) + shared * labels[:, None]
        strata = length if within else None
        result = probe_layers(
            states[None], labels.astype(int), control=False, permutations=99, seed=seed, strata=strata, progress=False
        )
        return bool(result.p[0] <= 0.05)

    return draw


ROWS = [
    Row(
        "probe_layers p",
        "160 examples, length drives states and labels, no strata: found",
        "power",
        rejects(False, 0.0),
    ),
    Row(
        "probe_layers p", "160 examples, length drives states and labels, strata", "false positives", rejects(True, 0.0)
    ),
    Row("probe_layers p", "the same, 3 standard deviations beyond length, strata", "power", rejects(True, 3.0)),
]
