"""Permutation tests: how often does chance give as much?

``p = (1 + draws that reach the observed value) / (1 + draws)``. The observed order is one of the possible orders, so p is
never 0; and it is exact where all orders are equally likely (Phipson and Smyth 2010).

Rows that belong together, such as the patches of one image, are permuted in blocks (`BlockOrder`). Permuted one by one,
they would look like more evidence than they are.

Rows that differ in a nuisance, such as the length of a caption, are permuted within *strata*: each row changes places only with
rows of its own stratum. The null then contains what the nuisance explains, and p is that of the rest. Within strata the
orders are equally likely where rows of one stratum differ by chance alone, so a stratum of lengths 5 to 20 takes less away than
one for each length. Tests of residuals after a regression (Freedman and Lane 1983) need no strata but hold only about.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Int
from torch import Tensor

from interp.errors import InputError, shown
from interp.statistics.categories import Labels, read_labels

_TRIES = 100
Count = TypeVar("Count", float, np.ndarray, Tensor)


def permutation_p(reached: Count, draws: int) -> Count:
    """The p of a value that `reached` of `draws` permutations reach; for several values an array or tensor of counts.

    >>> permutation_p(0, 99)
    0.01
    """
    return (1 + reached) / (1 + draws)


def read_strata(strata: Labels | None, n: int) -> Int[np.ndarray, " n"] | None:
    """The number of each row's stratum, from one label of any kind a row; None for None.

    >>> read_strata(["short", "long", "short", "long"], 4).tolist()
    [0, 1, 0, 1]

    Raises the errors of `read_labels`, and `InputError` where no stratum has two rows: there is no other order then.
    """
    if strata is None:
        return None
    distinct, numbers = read_labels(strata, n, "strata")
    if len(distinct) == n:
        raise InputError(
            f"strata={shown(strata)}: each of {n} rows is alone in its stratum, so none can change places: expected strata of"
            " two rows or more, such as a few bins of length"
        )
    return numbers


def random_order(
    n: int, rng: np.random.Generator, strata: Int[np.ndarray, " n"] | None = None
) -> Int[np.ndarray, " n"]:
    """A random order of n rows; with `strata` each place is taken by a row of its own stratum.

    >>> random_order(6, np.random.default_rng(0), np.array([0, 1, 0, 1, 0, 1])) % 2
    array([0, 1, 0, 1, 0, 1])
    """
    if strata is None:
        return rng.permutation(n)
    order = np.empty(n, dtype=np.int64)
    order[np.argsort(strata, kind="stable")] = np.lexsort((rng.random(n), strata))
    return order


def shuffle_labels(
    numbers: np.ndarray,
    blocks: np.ndarray | None,
    sides: Sequence[np.ndarray],
    seed: int,
    strata: np.ndarray | None = None,
) -> np.ndarray:
    """The labels in another order, that of `BlockOrder`. Each side is shuffled on its own, so every class keeps its share in
    both (about, with groups of several sizes); with `strata` each stratum of a side is.

    >>> labels = np.array([0, 0, 1, 1, 0, 1])
    >>> shuffle_labels(labels, None, (np.arange(4), np.arange(4, 6)), seed=0)[:4].sum()
    np.int64(2)
    """
    rng = np.random.default_rng([seed, 1])
    labels = numbers.copy()
    for side in sides:
        order = BlockOrder(side, blocks, strata)
        for _ in range(_TRIES):  # a label of few rows may be left out where groups have several sizes
            labels[order.places] = order.draw(numbers, rng)
            if len(np.unique(labels[side])) == len(np.unique(numbers[side])):
                break
    return labels


class BlockOrder:
    """Random orders of the labels of some rows: row by row, or in blocks where `blocks` gives each row's group.

    >>> order = BlockOrder(np.arange(4), np.array([0, 0, 1, 1]))
    >>> {tuple(order.draw(np.array([7, 8, 9, 9]), np.random.default_rng(seed)).tolist()) for seed in range(9)}
    {(7, 8, 9, 9), (9, 9, 7, 8)}

    Each group takes over the labels of another one, in their order; a larger group begins again with the first of them, and a
    smaller one leaves out the last. So rows of one group share a label as often as they do in the data. p is exact where
    labels are one a group or groups are of one size, and on the safe side else. `places` are the rows, group by group.
    With `strata`, the number of each row's stratum, groups change places only within theirs; a group has one.
    """

    def __init__(self, rows: np.ndarray, blocks: np.ndarray | None, strata: np.ndarray | None = None) -> None:
        self.places, self.grouped, self.within = rows, False, list[BlockOrder]()
        if strata is not None:
            _check_whole(rows, blocks, strata)
            self.within = [BlockOrder(rows[strata[rows] == each], blocks) for each in np.unique(strata[rows])]
            self.places = np.concatenate([each.places for each in self.within])
        elif blocks is not None:
            self.grouped, self.places = True, rows[np.argsort(blocks[rows], kind="stable")]
            _, self.starts, self.group_of, self.sizes = np.unique(
                blocks[self.places], return_index=True, return_inverse=True, return_counts=True
            )
            self.offsets = np.arange(len(rows)) - self.starts[self.group_of]

    def draw(self, numbers: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The labels of `places` in a random order."""
        if self.within:
            return np.concatenate([each.draw(numbers, rng) for each in self.within])
        if not self.grouped:
            return rng.permutation(numbers[self.places])
        source = rng.permutation(len(self.sizes))[self.group_of]
        return numbers[self.places[self.starts[source] + self.offsets % self.sizes[source]]]


def _check_whole(rows: np.ndarray, blocks: np.ndarray | None, strata: np.ndarray) -> None:
    """Refuse groups that lie in several strata: they could not change places as wholes."""
    pairs = [] if blocks is None else np.unique(np.stack([blocks[rows], strata[rows]]), axis=1)[0]
    torn = np.flatnonzero(np.diff(pairs) == 0)
    if len(torn):
        raise InputError(
            f"{len(np.unique(np.asarray(pairs)[torn]))} groups have rows of several strata: expected one stratum a group, such as"
            " its mean length, binned"
        )
