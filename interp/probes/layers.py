"""Probing every layer: where in a model a property can be read off, and where it cannot.

A probe is trained at each state on the same examples and tested on the same others. Its accuracy alone proves little,
so three numbers stand beside it. *Chance* is what the best constant answer gets. The *control* is the same probe on
labels shuffled among the examples: what it reaches above chance is a flaw of the design (too little data, the same
image on both sides of the split), not knowledge of the model's. And the *interval* says how far the number of test
examples lets accuracies differ by luck.

Examples that belong together, patches of one image or questions about one scene, must be given as `groups`: else the
probe recognises the image, not the property. A probe trained on one modality can be tested on the other (`transfer`):
if colour is read off captions with the direction learnt from images, the two share that direction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sklearn.model_selection import GroupShuffleSplit, StratifiedShuffleSplit
from torch import Tensor

from interp.errors import InputError, InputTypeError
from interp.probes.linear import LinearProbe
from interp.results import Provenance, Result

States = Any  # a tensor or array [state, example, feature], or Activations, of which `acts[site][...]` is one
Labels = Any  # one str or int an example: a list, an array, a pandas column
_Z = 1.959964
_TRIES = 100


@dataclass(frozen=True, eq=False)
class ProbeResult(Result):
    """A probe at every state: `accuracy[state]` on `n_test` examples, its 95 % interval `low` to `high`, its controls.

    `control[state]` is the accuracy on shuffled labels (None where not asked for), `chance` that of the best constant
    answer on the test examples, `transfer[state]` that on the other modality's test examples (None where none was
    given). `probes` are the fitted ones, `classes` their labels; `train_rows` and `test_rows` say which examples were
    which.
    """

    accuracy: Float[Tensor, " state"]
    low: Float[Tensor, " state"]
    high: Float[Tensor, " state"]
    control: Float[Tensor, " state"] | None
    chance: float
    probes: tuple[LinearProbe, ...]
    classes: tuple[str | int, ...]
    train_rows: Int[Tensor, " train"]
    test_rows: Int[Tensor, " test"]
    transfer: Float[Tensor, " state"] | None = None
    transfer_low: Float[Tensor, " state"] | None = None
    transfer_high: Float[Tensor, " state"] | None = None

    @property
    def n_train(self) -> int:
        """How many examples the probes were trained on."""
        return len(self.train_rows)

    @property
    def n_test(self) -> int:
        """How many examples they were tested on."""
        return len(self.test_rows)

    def to_frame(self) -> pd.DataFrame:
        """One row a state: state, accuracy, low, high, control, transfer with its interval, chance; NaN for None."""
        parts = ("accuracy", "low", "high", "control", "transfer", "transfer_low", "transfer_high")
        absent = torch.full_like(self.accuracy, torch.nan)
        columns = {name: absent if getattr(self, name) is None else getattr(self, name) for name in parts}
        frame = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
        frame.insert(0, "state", range(len(frame)))
        return frame.assign(chance=self.chance)


def probe_layers(
    acts: States,
    labels: Labels,
    site: str = "resid",
    groups: Labels | None = None,
    test_size: float = 0.3,
    control: bool | int = True,
    transfer: States | None = None,
    seed: int = 0,
    kind: str = "logistic",
    C: float = 1.0,
) -> ProbeResult:
    """A `LinearProbe` of `labels` at every state of `acts`, a tensor or array [state, example, feature] or Activations.

    The split into training and test examples is the same at all states: stratified by class, or, with `groups` (one an
    example), by whole groups, of several random splits the first in which both sides have every class. `low` and `high`
    are Wilson's 95 % interval over the test examples; with groups, over as many independent examples as the variance
    between groups is worth.

    `control` is how many shuffles of the labels to average over (True: one). Training and test labels are shuffled
    apart, so that every class keeps its share in both. With groups it is groups that change places: their labels, in a
    random order of groups, are laid along the examples, so that examples of one group still tend to share a label.

    `transfer`: states of the same examples in the other modality. The probes trained on `acts` are tested on the same
    test rows of it; they standardise it as `acts`, so a constant gap between modalities counts against transfer.

    Raises `InputError` where labels or groups are not one an example, are of one class, a class has too few examples
    (or groups) for both sides, features are not finite, or `transfer` has other states, examples or features.

    >>> rng = np.random.default_rng(0)
    >>> states = rng.normal(size=(2, 200, 8))
    >>> found = probe_layers(states, np.where(states[1, :, 0] > 0, "right", "left"))
    >>> (found.accuracy > 0.9).tolist(), found.n_test
    ([False, True], 60)
    """
    states = _states(acts, site, "acts")
    classes, numbers = _classes(labels, states.shape[1])
    if isinstance(test_size, bool) or not 0 < test_size < 1:
        raise InputError(f"test_size={test_size!r}: expected a share between 0 and 1")
    if not isinstance(control, int) or control < 0:
        raise InputError(f"control={control!r}: expected True, False or a number of shuffles")
    blocks = None if groups is None else _one_each(groups, len(numbers), "groups")[1]
    other = None if transfer is None else _states(transfer, site, "transfer")
    if other is not None and other.shape != states.shape:
        raise InputError(f"transfer has shape {other.shape!r} and acts {states.shape!r}: expected the same")
    train, test = _split(classes, numbers, blocks, test_size, seed)
    names = np.asarray(classes)[numbers]
    shuffles = [_shuffled(numbers, blocks, (train, test), seed + turn) for turn in range(control)]

    probes = tuple(LinearProbe(kind, C).fit(state[train], names[train]) for state in states)
    hits = _hits(probes, states, names, test)
    crossed = None if other is None else _hits(probes, other, names, test)
    return ProbeResult(
        accuracy=torch.from_numpy(hits.mean(axis=1)),
        low=_bounds(hits, blocks, test)[0],
        high=_bounds(hits, blocks, test)[1],
        control=torch.tensor([_control(state, shuffles, train, test, kind, C) for state in states])
        if control
        else None,
        chance=float(np.bincount(numbers[test]).max() / len(test)),
        probes=probes,
        classes=classes,
        train_rows=torch.from_numpy(train),
        test_rows=torch.from_numpy(test),
        transfer=None if crossed is None else torch.from_numpy(crossed.mean(axis=1)),
        transfer_low=None if crossed is None else _bounds(crossed, blocks, test)[0],
        transfer_high=None if crossed is None else _bounds(crossed, blocks, test)[1],
        provenance=_provenance(acts, seed),
    )


def wilson_interval(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `n` trials: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

    Unlike p -+ z sqrt(p(1-p)/n) it stays within [0, 1] and has a width at p = 0 and 1.

    >>> [round(bound, 3) for bound in wilson_interval(0.5, 100)]
    [0.404, 0.596]
    """
    if not 0 <= share <= 1 or n <= 0:
        raise InputError(f"share={share!r} of n={n!r}: expected a share in [0, 1] of a positive number")
    square = _Z**2 / n
    middle = share + square / 2
    reach = _Z * math.sqrt(share * (1 - share) / n + square / (4 * n))
    low, high = (middle - reach) / (1 + square), (middle + reach) / (1 + square)
    return max(0.0, min(share, low)), min(1.0, max(share, high))  # rounding must not put the share outside


# What comes in ------------------------------------------------------------------------------------------------------


def _states(acts: States, site: str, name: str) -> np.ndarray:
    """The states as Float64 [state, example, feature] on the CPU."""
    if not isinstance(acts, Tensor | np.ndarray):
        if isinstance(acts, list | tuple) or not hasattr(acts, "__getitem__"):
            raise InputTypeError(f"{name} is a {type(acts).__name__}: expected activations, a tensor or an array")
        acts = acts[site][...]
    array = acts.detach().to("cpu", torch.float64).numpy() if isinstance(acts, Tensor) else np.asarray(acts, np.float64)
    if array.ndim != 3 or 0 in array.shape:
        raise InputError(f"{name} has shape {array.shape!r}: expected [state, example, feature]")
    bad = np.argwhere(~np.isfinite(array).all(axis=2))
    if len(bad):
        raise InputError(
            f"{name} has {len(bad)} rows that are not finite, the first at state {bad[0, 0]}, example {bad[0, 1]}:"
            " drop or repair them"
        )
    return array


def _one_each(values: Labels, n: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values and the number of each example's, after checking that there is one for each of `n`."""
    try:
        length = len(values)
    except TypeError:
        raise InputTypeError(f"{name} is a {type(values).__name__}: expected one label an example") from None
    if isinstance(values, str | bytes | dict) or length != n:
        raise InputError(f"{length} {name} for {n} examples: expected one an example")
    array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "iubUSOT":
        raise InputError(f"{name} have shape {array.shape!r} and dtype {array.dtype!s}: expected strings or integers")
    if array.dtype.kind in "OT":
        odd = [value for value in array if not isinstance(value, str | int | np.integer)]
        if odd:
            raise InputError(f"{name} contain {odd[0]!r}: expected strings or integers")
        array = np.asarray([str(value) for value in array])
    distinct, numbers = np.unique(array, return_inverse=True)
    return distinct, numbers


def _classes(labels: Labels, n: int) -> tuple[tuple[str | int, ...], np.ndarray]:
    distinct, numbers = _one_each(labels, n, "labels")
    if len(distinct) < 2:
        raise InputError(f"all labels are {distinct[0].item()!r}, one class: expected two classes or more")
    return tuple(distinct.tolist()), numbers


def _provenance(acts: States, seed: int) -> Provenance:
    found = getattr(acts, "provenance", None)
    return replace(found, seed=seed) if isinstance(found, Provenance) else Provenance(seed=seed)


# The split and the control ------------------------------------------------------------------------------------------


def _split(
    classes: Sequence[str | int], numbers: np.ndarray, blocks: np.ndarray | None, test_size: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and rows to test on, in order; every class in both, no group in both."""
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


def _shuffled(numbers: np.ndarray, blocks: np.ndarray | None, sides: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """The labels in another order, each side's among itself; groups' labels are moved together."""
    rng = np.random.default_rng([seed, 1])
    shuffled = numbers.copy()
    for side in sides:
        if blocks is None:
            shuffled[side] = rng.permutation(numbers[side])
            continue
        places = side[np.argsort(blocks[side], kind="stable")]  # the side's rows, group by group
        order = [places[blocks[places] == block] for block in rng.permutation(np.unique(blocks[side]))]
        shuffled[places] = numbers[np.concatenate(order)]
    return shuffled


def _control(
    state: np.ndarray, shuffles: Sequence[np.ndarray], train: np.ndarray, test: np.ndarray, kind: str, strength: float
) -> float:
    scores = [LinearProbe(kind, strength).fit(state[train], y[train]).score(state[test], y[test]) for y in shuffles]
    return float(np.mean(scores))


# What comes out -----------------------------------------------------------------------------------------------------


def _hits(probes: Sequence[LinearProbe], states: np.ndarray, names: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Float [state, test]: 1 where the probe of a state names a test example rightly."""
    return (
        np.stack([probe.predict(state[test]) == names[test] for probe, state in zip(probes, states, strict=True)]) * 1.0
    )


def _bounds(hits: np.ndarray, blocks: np.ndarray | None, test: np.ndarray) -> tuple[Tensor, Tensor]:
    bounds = [wilson_interval(row.mean(), _independent(row, None if blocks is None else blocks[test])) for row in hits]
    low, high = torch.tensor(bounds, dtype=torch.float64).T
    return low, high


def _independent(hits: np.ndarray, blocks: np.ndarray | None) -> float:
    """How many independent examples these are worth: n over the design effect of their groups, at least 1.

    The design effect is the variance of the mean with groups as units, sum_g (sum_i (hit_i - p))^2 / n^2, over that
    with examples as units, p (1-p) / n. Where all hits are equal it cannot be seen, and a group counts as one.
    """
    n = len(hits)
    if blocks is None:
        return n
    _, numbers = np.unique(blocks, return_inverse=True)
    left = hits - hits.mean()
    variance = np.square(left).mean() / n
    if variance == 0:
        return len(np.unique(blocks))
    grouped = np.square(np.bincount(numbers, weights=left)).sum() / n**2
    return n / max(1.0, grouped / variance)
