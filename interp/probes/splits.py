"""Which examples a probe is trained on, and which it is tested on.

Examples are split by class, so that both sides have every class in like shares. Examples that belong together, the patches
of one image or the questions about one scene, stand on one side: else a probe is right about the test because it has seen
the image, not because the property is written there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from sklearn.model_selection import GroupShuffleSplit, StratifiedShuffleSplit

from interp.errors import InputError

_TRIES = 100


def split_rows(
    classes: Sequence[str | int], numbers: np.ndarray, blocks: np.ndarray | None, test_size: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to test on, in order; every class in both, no group in both.

    `numbers` is the class of each example, `blocks` its group, None where every example is its own. Raises `InputError`
    where a class has too few examples or groups, or no split has every class on both sides.
    """
    units, of = ("examples", np.arange(len(numbers))) if blocks is None else ("groups", blocks)
    for number, name in enumerate(classes):
        count = len(np.unique(of[numbers == number]))
        if count < 2:
            raise InputError(f"class {name!r} has {count} {units}: expected 2 or more, for training and for the test")
    for train, test in _candidates(numbers, blocks, test_size, seed, len(classes)):
        if len(np.unique(numbers[train])) == len(np.unique(numbers[test])) == len(classes):
            return np.sort(train), np.sort(test)
    rarest = classes[int(np.bincount(numbers).argmin())]
    raise InputError(
        f"no split of {len(np.unique(of))} {units} with test_size={test_size!r} has all {len(classes)} classes on both"
        f" sides: give more {units} of the rare ones ({rarest!r} is the rarest), or another test_size"
    )


def _candidates(
    numbers: np.ndarray, blocks: np.ndarray | None, test_size: float, seed: int, n_classes: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    n = len(numbers) if blocks is None else len(np.unique(blocks))
    held_out = math.ceil(test_size * n)
    if min(held_out, n - held_out) < (n_classes if blocks is None else 1):
        return
    splitter = StratifiedShuffleSplit if blocks is None else GroupShuffleSplit
    yield from splitter(_TRIES, test_size=held_out, random_state=seed).split(numbers, numbers, blocks)
