"""Permutation tests: how often would chance have given as much?

``p = (1 + draws that reach the observed value) / (1 + draws)``: the observed order is one of the orders that were possible,
so p is never 0, and it is exact where all orders are equally likely (Phipson and Smyth 2010).

Rows that belong together, such as the patches of one image, are permuted in blocks (`Order`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Count = TypeVar("Count", float, np.ndarray)


def permutation_p(reached: Count, draws: int) -> Count:
    """The p of a value that `reached` of `draws` permutations reach too; of several values, an array of them.

    >>> permutation_p(0, 99)
    0.01
    """
    return (1 + reached) / (1 + draws)


class Order:
    """The ways to put the labels of some rows in another order: row by row, or, with groups, in blocks.

    The labels of the groups, in a random order of groups, are laid along the rows. So rows of one group still tend to share
    a label, as they do in the data.
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
