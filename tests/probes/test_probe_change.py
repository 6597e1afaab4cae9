"""Paired comparisons of probes: two checkpoints, and two modalities, on the same test examples."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from interp.errors import InputError, InputTypeError
from interp.probes import ProbeChange, probe_layers

QUIET = {"permutations": 0, "control": False, "progress": False}


def two_checkpoints(seed, gain, groups=None, n=300):
    """States in which the label is written, a little more clearly after than before, with the same noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=n)
    noise = rng.normal(size=(2, n, 4))
    before, after = noise.copy(), noise + 0.1 * rng.normal(size=noise.shape)
    before[:, :, 0] += labels
    after[:, :, 0] += labels
    after[1, :, 0] += gain * labels
    return [probe_layers(states, labels, groups=groups, **QUIET) for states in (before, after)]


def test_p_is_mcnemars_exact_one():
    before, after = two_checkpoints(0, 1.0)
    change = before.change(after)
    assert isinstance(change, ProbeChange)
    gained = (after.hits & ~before.hits).sum(dim=1)
    lost = (before.hits & ~after.hits).sum(dim=1)
    for state in range(2):
        expected = binomtest(int(gained[state]), int(gained[state] + lost[state])).pvalue
        assert float(change.p[state]) == pytest.approx(expected)
    torch.testing.assert_close(change.difference, after.accuracy - before.accuracy)
    torch.testing.assert_close(change.before, before.accuracy)
    assert (change.low <= change.difference).all()
    assert (change.difference <= change.high).all()
    assert (change.p_holm >= change.p).all()
    assert (change.n, list(change.to_frame().columns)) == (
        90,
        ["state", "before", "after", "difference", "low", "high", "p", "p_holm"],
    )


def test_pairing_finds_what_two_intervals_hide():
    overlap, paired = 0, 0
    for seed in range(20):
        before, after = two_checkpoints(seed, 1.0)
        overlap += bool(before.high[1] >= after.low[1])
        paired += bool(before.change(after).p[1] <= 0.05)
    assert overlap >= 15
    assert paired >= 15


def test_groups_count_as_wholes():
    groups = np.repeat(np.arange(60), 5)
    before, after = two_checkpoints(0, 1.0, groups)
    assert before.change(after).n == 18


def test_transfer_is_compared_with_the_probes_own_accuracy():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=300)
    states, other = rng.normal(size=(2, 2, 300, 4))
    states[:, :, 0] += 3 * labels
    other[1, :, 0] += 3 * labels
    result = probe_layers(states, labels, transfer=other, **QUIET)
    change = result.transfer_change()
    torch.testing.assert_close(change.after, result.transfer)
    torch.testing.assert_close(change.before, result.accuracy)
    assert (change.p_holm < 0.05).tolist() == [True, False]


@pytest.mark.usefixtures("unchecked")
def test_refusals_are_one_line():
    before, after = two_checkpoints(0, 1.0)
    rng = np.random.default_rng(0)
    states, labels = rng.normal(size=(2, 300, 4)), rng.integers(2, size=300)
    for other, message in [
        (
            probe_layers(states, labels, seed=1, **QUIET),
            "other has other test rows: expected probes of the same examples",
        ),
        (probe_layers(states[:1], labels, **QUIET), "other has 1 states, this result 2"),
        (replace(after, test_labels=1 - after.test_labels), "other test labels"),
        (replace(after, classes=("a", "b")), "other classes"),
        (replace(after, test_groups=after.test_labels), "other test groups"),
        (replace(after, answers=None), "other result has no answers: it is of an earlier version"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            before.change(other)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputTypeError, match="other=1: expected a ProbeResult"):
        before.change(1)
    with pytest.raises(InputError, match="pass transfer= to probe_layers"):
        before.transfer_change()
    with pytest.raises(InputError, match="this result has no answers"):
        replace(before, answers=None).best_state()
