"""The design of a probe's test: which examples it is trained and tested on, and what its accuracy is compared with.

The split is stratified by class, so both sides have every class in like shares. Examples that belong together (the patches
of one image, the questions about one scene) are on one side. Otherwise a probe can be right because it has seen the image
in training, not because its states hold the property.

Four controls say what a probe reaches where there is nothing to read:

- *Labels shuffled within each side* (`control`): what luck gives with so few test examples. It is blind to one image on both
  sides of the split: its two parts get labels that have nothing to do with each other.
- *Labels shuffled by group over both sides* (`group_control`): each group gets the labels of another one, and the split
  stays. Where it tears groups apart, a probe that recognises them is right about these labels too: an accuracy above
  chance is leakage. Where it does not, this control is the first one.
- *Permutations of the test labels* (`p`): how often do the answers of the fitted probe agree as well with the test labels
  in another order? If the states hold nothing of the label, and no group is on both sides, every order of the test labels
  is equally likely, whatever the probe has learnt, because it has never seen them. So the test is exact, and as nothing is
  fitted again, a thousand permutations cost less than one fit. All states share the permutations, so the p of any state among
  all (`p_family`) is exact too.
- *A control task* (Hewitt and Liang 2019): examples have types, such as words or glyphs, and each type gets a label at
  random. A probe can learn such labels only by memorising types. *Selectivity*, the accuracy less that of the control task,
  is what memorising does not explain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from sklearn.model_selection import GroupShuffleSplit, StratifiedShuffleSplit
from torch import Tensor

from interp.errors import InputError
from interp.statistics.permutation import BlockOrder, permutation_p, shuffle_labels

_TRIES = 100
_AT_ONCE = 2**24  # labels in one block of permutations


def split_examples(
    classes: Sequence[str | int], numbers: np.ndarray, blocks: np.ndarray | None, test_size: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The examples to train on and those to test on, in order; every class on both sides, no group on both.

    `numbers` is the class of each example, `blocks` its group, or None where every example is its own. Raises `InputError`
    where a class has too few examples or groups, or no split has every class on both sides.
    """
    units, unit_of = ("examples", np.arange(len(numbers))) if blocks is None else ("groups", blocks)
    for number, name in enumerate(classes):
        count = len(np.unique(unit_of[numbers == number]))
        if count < 2:
            raise InputError(
                f"class {name!r} has {count} {units}: expected 2 or more, for training and for the test{_remedy(blocks)}"
            )
    n = len(np.unique(unit_of))
    held_out = math.ceil(test_size * n)
    if min(held_out, n - held_out) >= (len(classes) if blocks is None else 1):
        splitter = StratifiedShuffleSplit if blocks is None else GroupShuffleSplit
        splits = splitter(_TRIES, test_size=held_out, random_state=seed)
        for train, test in splits.split(numbers, numbers, blocks):
            if len(np.unique(numbers[train])) == len(np.unique(numbers[test])) == len(classes):
                return np.sort(train), np.sort(test)
    rarest = classes[int(np.bincount(numbers).argmin())]
    raise InputError(
        f"no split of {n} {units} with test_size={test_size!r} has all {len(classes)} classes on both sides: add "
        f"{units} of the rare ones ({rarest!r} is the rarest), or change test_size{_remedy(blocks)}"
    )


def _remedy(blocks: np.ndarray | None) -> str:
    return "" if blocks is None else " (examples of one picture or prompt are one group, unless groups= says otherwise)"


def check_strata(
    numbers: np.ndarray, blocks: np.ndarray | None, test: np.ndarray, strata: np.ndarray | None, seed: int
) -> None:
    """Raises `InputError` for strata that leave the test labels no other order: p would be 1, whatever the probe reads."""
    if strata is None:
        return
    order, rng = BlockOrder(test, blocks, strata), np.random.default_rng([seed, 7])
    if all(np.array_equal(order.draw(numbers, rng), numbers[order.places]) for _ in range(_TRIES)):
        units = "examples" if blocks is None else "groups"
        raise InputError(
            f"the {len(np.unique(strata[test]))} strata of the test examples have one label or no two {units} each, so that no"
            " label can change places: expected strata with several labels, such as fewer bins of length"
        )


def permuted_hits(
    answers: np.ndarray,
    numbers: np.ndarray,
    blocks: np.ndarray | None,
    test: np.ndarray,
    permutations: int,
    seed: int,
    strata: np.ndarray | None = None,
) -> tuple[Float[Tensor, " state"], Float[Tensor, "draw state"]]:
    """How many answers of each state are right, and how many are under each permutation of the test labels, which all states
    share.

    `answers` [state, test] are the classes that the probes name, `numbers` [example] the true ones. With `strata` labels change
    places within them.
    """
    order, rng = BlockOrder(test, blocks, strata), np.random.default_rng([seed, 3])
    answers = answers[:, np.searchsorted(test, order.places)]
    observed = (answers == numbers[order.places]).sum(axis=1)
    null, at_once = [], max(1, _AT_ONCE // len(test))
    for first in range(0, permutations, at_once):
        labels = np.stack([order.draw(numbers, rng) for _ in range(first, min(first + at_once, permutations))])
        right = torch.zeros(len(labels), len(answers), dtype=torch.float32)
        for each in np.unique(numbers[order.places]):  # counts below 2^24 are exact in float32
            right += torch.from_numpy(labels == each).float() @ torch.from_numpy(answers == each).float().T
        null.append(right.double())
    return torch.from_numpy(observed.astype(np.float64)), torch.cat(null)


def p_values(
    answers: np.ndarray, numbers: np.ndarray, blocks: np.ndarray | None, test: np.ndarray, permutations: int, seed: int
) -> Float[Tensor, " state"]:
    """(1 + permutations in which a state's answers are right as often) / (1 + permutations); the arguments are those of
    `permuted_hits`."""
    observed, null = permuted_hits(answers, numbers, blocks, test, permutations, seed)
    return permutation_p((null >= observed).sum(dim=0).double(), permutations)


def group_labels(numbers: np.ndarray, groups: np.ndarray, train: np.ndarray, seed: int) -> np.ndarray:
    """The labels shuffled by group over both sides of a split: each group takes over the labels of another one."""
    for turn in range(_TRIES):
        labels = shuffle_labels(numbers, groups, (np.arange(len(numbers)),), seed + _TRIES * turn)
        if len(np.unique(labels[train])) == len(np.unique(numbers)):
            break
    return labels


def control_task(numbers: np.ndarray, types: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """A label for each example that depends on its type alone. Each type draws its label from those of the examples.

    Raises `InputError` where the sides of the split have no type in common, or the training side has one type: no probe
    could learn such a task.
    """
    known = np.unique(types[train])
    if not np.isin(types[test], known).any():
        raise InputError(
            "no type is on both sides of the split: expected common types, or no control task can be learnt"
        )
    if len(known) < 2:
        raise InputError("all training examples have one type: expected two types or more, each gets a random label")
    rng = np.random.default_rng([seed, 4])
    for _ in range(_TRIES):
        labels = rng.choice(numbers, size=types.max() + 1)
        if len(np.unique(labels[known])) > 1:
            break
    else:
        labels[known[0]] = numbers[numbers != labels[known[0]]][0]
    return labels[types]
