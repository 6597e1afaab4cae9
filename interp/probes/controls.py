"""What a probe's accuracy is held against: labels that say nothing, and labels that can only be memorised.

- *Shuffled labels, fitted anew* (`control`): the same probe, trained and tested on labels in another order. What it
  reaches above chance is a flaw of the design (too little data, one image on both sides of the split).
- *Permutations of the test labels* (`p`): how often do the answers of the fitted probe agree as well with the test labels
  in another order? If states say nothing of the label, the test labels could as well stand in any order, whatever the
  probe has learnt, because it has never seen them: the test is exact, and as nothing is fitted anew a thousand
  permutations cost less than one fit.
- *A control task* (Hewitt and Liang 2019): where examples have types, as words or glyphs are, each type is given a label at
  random. A probe can be right about it only by memorising types, so its accuracy says how much of a probe's accuracy
  memorising could explain; *selectivity* is what lies above it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from interp.errors import InputError
from interp.statistics.permutation import Order, permutation_p

_TRIES = 100


def p_values(
    answers: np.ndarray, numbers: np.ndarray, blocks: np.ndarray | None, test: np.ndarray, permutations: int, seed: int
) -> Tensor:
    """(1 + permutations in which a state's answers are right as often) / (1 + permutations), Float [state].

    `answers` [state, test] are the classes that the probes name, `numbers` [example] the true ones.
    """
    order, rng = Order(test, blocks), np.random.default_rng([seed, 3])
    answers = answers[:, np.searchsorted(test, order.places)]
    observed = (answers == numbers[order.places]).sum(axis=1)
    as_good = np.zeros(len(answers))
    for _ in range(permutations):
        as_good += (answers == order.drawn(numbers, rng)).sum(axis=1) >= observed
    return torch.from_numpy(permutation_p(as_good, permutations))


def control_task(numbers: np.ndarray, types: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """A label for each example that its type alone decides, drawn for each type from the labels of the examples.

    Raises `InputError` where no type stands on both sides, or only one in the training part: such a task cannot be learnt.
    """
    known = np.unique(types[train])
    if not np.isin(types[test], known).any():
        raise InputError("no type stands in both parts of the split: a control task on these types cannot be learnt")
    if len(known) < 2:
        raise InputError("types are all one in the training part: expected two or more, to be given labels at random")
    rng = np.random.default_rng([seed, 4])
    for _ in range(_TRIES):
        drawn = rng.choice(numbers, size=types.max() + 1)
        if len(np.unique(drawn[known])) > 1:
            break
    else:
        drawn[known[0]] = numbers[numbers != drawn[known[0]]][0]
    return drawn[types]
