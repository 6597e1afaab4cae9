"""What is done to states before they are probed is fitted on the training examples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.errors import InputError
from interp.geometry.preprocessing import PREPROCESS
from interp.probes import probe_layers


def states_with_a_massive_feature(n=200, d=12):
    """The label in feature 3 of state 1, and a massive feature 7 that follows it at state 0."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(2, n, d))
    labels = np.where(rng.random(n) < 0.5, "long", "short")
    states[0, :, 7] = 3000 * (labels == "long") + 100 * rng.normal(size=n)
    states[1, :, 3] += 3 * (labels == "long")
    return states, labels


@pytest.mark.parametrize("kind", ["logistic", "ridge", "mean_difference"])
def test_a_massive_feature_is_noted_and_clamp_takes_it_out(kind):
    states, labels = states_with_a_massive_feature()
    result = probe_layers(states, labels, kind=kind, permutations=0)
    (note,) = result.provenance.notes
    assert note.startswith("acts: feature 7 of 12 makes up to 99.9 % of squared distances at states 0,")
    assert result.accuracy[0] > 0.95
    clamped = probe_layers(states, labels, kind=kind, permutations=0, preprocess="clamp")
    assert (clamped.provenance.notes, clamped.preprocess) == ((), "clamp")
    assert clamped.accuracy[0] < 0.7
    assert clamped.accuracy[1] == result.accuracy[1] > 0.85


@pytest.mark.parametrize("how", ["standardise", "clamp", "cosine", "whiten"])
def test_test_examples_have_no_part_in_what_is_fitted(how):
    states, labels = states_with_a_massive_feature()
    before = probe_layers(states, labels, permutations=0, preprocess=how, transfer=states)
    changed = states.copy()
    changed[:, before.test_rows.numpy()] += 50
    after = probe_layers(changed, labels, permutations=0, preprocess=how)
    for one, other in zip(before.probes, after.probes, strict=True):
        np.testing.assert_allclose(one.coef_, other.coef_)
    assert torch.equal(before.transfer, before.accuracy)  # the other modality goes through the same change
    rows = before.train_rows.numpy()
    cloud = torch.from_numpy(states[1])
    expected = PREPROCESS["none" if how == "standardise" else how](cloud[rows])(cloud)[before.test_rows].numpy()
    right = before.probes[1].predict(expected) == labels[before.test_rows.numpy()]
    assert float(before.accuracy[1]) == pytest.approx(right.mean())


def test_tensors_and_directions():
    states, labels = states_with_a_massive_feature()
    of_array = probe_layers(states, labels, permutations=0, preprocess="clamp")
    of_tensor = probe_layers(torch.from_numpy(states), labels, permutations=0, preprocess="clamp")
    assert torch.equal(of_array.accuracy, of_tensor.accuracy)
    assert int(of_array.direction(1, "long").argmax()) == 3
    with pytest.raises(InputError, match="preprocess='whiten': the probes read components"):
        probe_layers(states, labels, permutations=0, preprocess="whiten").direction(1, "long")
    with pytest.raises(InputError, match="preprocess='zscore'"):
        probe_layers(states, labels, preprocess="zscore")
