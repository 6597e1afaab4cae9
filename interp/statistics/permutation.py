"""Permutation tests: how often does chance give as much?

``p = (1 + draws that reach the observed value) / (1 + draws)``. The observed order is one of the possible orders, so p is
never 0; and it is exact where all orders are equally likely (Phipson and Smyth 2010).

Rows that belong together, such as the patches of one image, are permuted in blocks (`BlockOrder`). Permuted one by one,
they would look like more evidence than they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from torch import Tensor

Count = TypeVar("Count", float, np.ndarray, Tensor)


def permutation_p(reached: Count, draws: int) -> Count:
    """The p of a value that `reached` of `draws` permutations reach; for several values an array or tensor of counts.

    >>> permutation_p(0, 99)
    0.01
    """
    return (1 + reached) / (1 + draws)


def shuffle_labels(
    numbers: np.ndarray, blocks: np.ndarray | None, sides: Sequence[np.ndarray], seed: int
) -> np.ndarray:
    """The labels in another order. Each side is shuffled on its own, so every class keeps its share in both.

    >>> labels = np.array([0, 0, 1, 1, 0, 1])
    >>> shuffle_labels(labels, None, (np.arange(4), np.arange(4, 6)), seed=0)[:4].sum()
    np.int64(2)
    """
    rng = np.random.default_rng([seed, 1])
    labels = numbers.copy()
    for side in sides:
        order = BlockOrder(side, blocks)
        labels[order.places] = order.draw(numbers, rng)
    return labels


class BlockOrder:
    """Random orders of the labels of some rows: row by row, or in blocks where `blocks` gives each row's group.

    >>> order = BlockOrder(np.arange(4), np.array([0, 0, 1, 1]))
    >>> {tuple(order.draw(np.array([7, 8, 9, 9]), np.random.default_rng(seed)).tolist()) for seed in range(9)}
    {(7, 8, 9, 9), (9, 9, 7, 8)}

    Groups change places as wholes: their labels, group after group in a random order, are laid along the rows. So rows of
    one group still tend to share a label, as they do in the data. `places` are the rows, group by group.
    """

    def __init__(self, rows: np.ndarray, blocks: np.ndarray | None) -> None:
        self.places, self.parts = rows, None
        if blocks is not None:
            self.places = rows[np.argsort(blocks[rows], kind="stable")]
            self.parts = np.split(self.places, 1 + np.flatnonzero(np.diff(blocks[self.places])))

    def draw(self, numbers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The labels of `places` in a random order."""
        if self.parts is None:
            return rng.permutation(numbers[self.places])
        return numbers[np.concatenate([self.parts[part] for part in rng.permutation(len(self.parts))])]
