"""The best state, without the luck of the choice: chosen on one half of the test examples, and judged on the other.

The best of 33 accuracies is too high, however each was measured: of 33 states that hold nothing of two classes, the best is right
in 63 % of 60 test examples, on average. Where the choice has not seen the examples that judge it, the accuracy is unbiased.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.displays import Display
from interp.errors import InputError
from interp.probes.controls import p_values
from interp.statistics.intervals import mean_interval


def judge_best(
    answers: Int[Tensor, "state test"],
    labels: Int[Tensor, " test"],
    groups: Int[Tensor, " test"] | None,
    permutations: int,
    seed: int,
) -> BestState:
    """The state with the most right answers among a random half of the groups (of the examples without groups), the first of
    equals, and its accuracy among the others.

    Raises `InputError` for fewer than four groups.
    """
    answered, numbers = answers.numpy(), labels.numpy()
    blocks = None if groups is None else groups.numpy()
    units = np.arange(len(numbers)) if blocks is None else blocks
    every = np.unique(units)
    if len(every) < 4:
        raise InputError(
            f"the test has {len(every)} groups: expected four or more, to choose by half and to judge by half"
        )
    chosen = np.random.default_rng([seed, 6]).permutation(every)[: len(every) // 2]
    judges = np.flatnonzero(~np.isin(units, chosen))
    hits: Bool[np.ndarray, "state test"] = answered == numbers
    state = int(np.delete(hits, judges, axis=1).sum(axis=1).argmax())
    judged = hits[state, judges]
    of_judges = None if blocks is None else blocks[judges]
    low, high = mean_interval(torch.from_numpy(judged), of_judges, seed)
    p = None
    if permutations:
        p = float(p_values(answered[state : state + 1, judges], numbers, blocks, judges, permutations, seed))
    chance = float(np.bincount(numbers[judges]).max() / len(judges))
    return BestState(state, float(judged.mean()), float(low), float(high), p, chance, len(judges))


@dataclass(frozen=True)
class BestState(Display):
    """The `state` that was chosen, and its `accuracy` on `n` other test examples with the 95 % interval `low` to `high`, its `p`
    (None without permutations) and `chance`, the best constant answer there."""

    state: int
    accuracy: float
    low: float
    high: float
    p: float | None
    chance: float
    n: int
