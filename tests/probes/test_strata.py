"""Strata: a property that probes read from a nuisance alone is no finding once labels are shuffled within its strata."""

import numpy as np
import pytest

import interp
from interp.probes import probe_layers


def reached(seed, strata, shared=0.0):
    rng = np.random.default_rng(seed)
    length = rng.integers(4, 8, size=160)
    labels = rng.random(160) < np.array([0.05, 0.3, 0.7, 0.95])[length - 4]
    states = np.outer(length - 5.5, np.ones(4)) + rng.normal(size=(160, 4)) + shared * labels[:, None]
    options = {"control": False, "permutations": 99, "seed": seed, "progress": False}
    result = probe_layers(states[None], labels.astype(int), strata=length if strata else None, **options)
    return float(result.p[0]) <= 0.05


def test_a_property_of_the_nuisance_is_found_without_strata_alone():
    assert np.mean([reached(seed, False) for seed in range(20)]) > 0.9
    assert np.mean([reached(seed, True) for seed in range(150)]) < 0.09
    assert np.mean([reached(seed, True, shared=3.0) for seed in range(20)]) > 0.8


def test_groups_lie_within_a_stratum():
    states, labels = np.random.default_rng(0).normal(size=(1, 40, 3)), np.arange(40) % 2
    with pytest.raises(interp.InputError, match="groups have rows of several strata"):
        probe_layers(states, labels, groups=np.arange(40) // 4, strata=np.arange(40) % 2, progress=False)


def test_strata_without_another_order_are_refused():
    """p would be 1 and the control the accuracy itself, which reads like a property that is not there."""
    states, labels = np.random.default_rng(0).normal(size=(1, 80, 3)), np.arange(80) % 2
    picture = np.arange(80) // 4
    for strata, groups in ((labels, None), (picture, picture)):
        with pytest.raises(interp.InputError, match="strata of the test examples have one label or no two"):
            probe_layers(states, labels if strata is not picture else picture % 2, groups=groups, strata=strata)
    assert probe_layers(states, picture // 2 % 2, groups=picture, strata=picture % 2, progress=False).p is not None
