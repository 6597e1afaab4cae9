"""The best state is judged by examples that have not chosen it."""

import numpy as np
import pytest
import torch

from interp.errors import InputError
from interp.probes import probe_layers
from interp.probes.best_state import judge_best


@pytest.mark.parametrize("grouped", [False, True])
def test_it_is_unbiased_where_33_states_hold_nothing(grouped):
    """The plain best of 33 is right in over 60 %; the judged one in half, within its interval in 95 %."""
    best, plain, held, small = [], [], [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        groups = torch.arange(60).repeat_interleave(3) if grouped else None
        labels, answers = torch.arange(60) % 2, torch.from_numpy(rng.integers(2, size=(33, 60)))
        if grouped:
            labels, answers = labels[groups], answers[:, groups]
        found = judge_best(answers, labels, groups, 99, seed)
        best.append(found.accuracy)
        plain.append(float((answers == labels).double().mean(dim=1).max()))
        held.append(found.low <= 0.5 <= found.high)
        small.append(found.p <= 0.05)
    assert np.mean(best) == pytest.approx(0.5, abs=0.015)
    assert np.mean(plain) > 0.6
    assert np.mean(held) > 0.92
    assert np.mean(small) < 0.08


def test_it_finds_the_state_that_holds_the_label():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=200)
    states = rng.normal(size=(5, 200, 6))
    states[3, :, :3] += 2 * np.eye(3)[labels]
    result = probe_layers(states, labels, permutations=99, progress=False)
    best = result.best_state()
    assert (best.state, best.n, best.p) == (3, 30, 0.01)
    assert best.low < best.accuracy < best.high
    assert 0.3 < best.chance < 0.6
    assert result.best_state() == best
    assert probe_layers(states, labels, permutations=0, progress=False).best_state().p is None


def test_groups_choose_or_judge_as_wholes():
    groups = np.repeat(np.arange(40), 5)
    rng = np.random.default_rng(0)
    states, labels = rng.normal(size=(2, 200, 4)), rng.integers(2, size=40)[groups]
    best = probe_layers(states, labels, groups=groups, progress=False).best_state()
    assert best.n == 30  # 6 of 12 groups


def test_refusals_are_one_line():
    answers, labels = torch.zeros(2, 3, dtype=torch.long), torch.arange(3)
    with pytest.raises(InputError, match="the test has 3 groups: expected four or more"):
        judge_best(answers, labels, None, 0, 0)
