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

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from interp.errors import InputError

_TRIES = 100


class Order:
    """The ways to put the labels of some rows in another order: row by row, or, with groups, in blocks.

    Groups' labels, in a random order of groups, are laid along the rows, so that rows of one group still tend to share a
    label, as they do in the data.
    """

    def __init__(self, rows: np.ndarray, blocks: np.ndarray | None) -> None:
        if blocks is None:
            self.places, self.parts = rows, None
        else:
            self.places = rows[np.argsort(blocks[rows], kind="stable")]  # group by group
            self.parts = np.split(self.places, 1 + np.flatnonzero(np.diff(blocks[self.places])))

    def drawn(self, numbers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The labels of `places`, in another order."""
        if self.parts is None:
            return rng.permutation(numbers[self.places])
        return numbers[np.concatenate([self.parts[part] for part in rng.permutation(len(self.parts))])]


def shuffled(numbers: np.ndarray, blocks: np.ndarray | None, sides: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """The labels in another order, each side's among itself, so that every class keeps its share in both."""
    rng = np.random.default_rng([seed, 1])
    changed = numbers.copy()
    for side in sides:
        order = Order(side, blocks)
        changed[order.places] = order.drawn(numbers, rng)
    return changed


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
    return torch.from_numpy((1 + as_good) / (1 + permutations))


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
