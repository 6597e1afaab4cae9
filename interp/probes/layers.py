"""Probing every layer: where in a model a property can be read off, and where it cannot.

A probe is trained at each state on the same examples and tested on the same others. Its accuracy alone proves little, so
others stand beside it. *Chance* is what the best constant answer gets. The *interval* says how far the number of test
examples lets accuracies differ by luck. The *controls* are what it reaches, or could reach, where there is nothing to
read: shuffled labels, their permutation null, and labels that can only be memorised; see `interp.probes.controls`.

Examples that belong together, patches of one image or questions about one scene, must be given as `groups`: else the
probe recognises the image, not the property. A probe trained on one modality can be tested on the other (`transfer`):
if colour is read off captions with the direction learnt from images, the two share that direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

from interp.arguments import checked_seed
from interp.errors import InputError
from interp.probes.batched import fit_batched
from interp.probes.controls import control_task, p_values
from interp.probes.inputs import Labels, States, classes_of, one_each, states_of
from interp.probes.linear import LinearProbe
from interp.probes.result import ProbeResult
from interp.probes.splits import split_rows
from interp.provenance import Provenance
from interp.statistics.permutation import shuffled
from interp.statistics.proportions import bootstrap_bounds


def probe_layers(
    acts: States,
    labels: Labels,
    site: str = "resid",
    groups: Labels | None = None,
    test_size: float | np.floating = 0.3,
    control: bool | int | np.integer = True,
    transfer: States | None = None,
    seed: int = 0,
    kind: str = "logistic",
    C: float = 1.0,
    permutations: int | np.integer = 1000,
    types: Labels | None = None,
) -> ProbeResult:
    """A `LinearProbe` of `labels` at every state of `acts`, a tensor or array [state, example, feature] or Activations.

    The split into training and test examples is the same at all states: stratified by class, or, with `groups` (one an
    example), by whole groups, of several random splits the first in which both sides have every class. Features are
    standardised on the training part. `low` and `high` are a 95 % bootstrap interval over the test part's groups, or its
    examples where there are none. States on an accelerator are fitted there, all in one solve, where kind is "logistic".

    `control` is how many shuffles of the labels to average over (True: one). Training and test labels are shuffled
    apart, so that every class keeps its share in both; with groups it is groups that change places. `permutations` is how
    often the test labels are put in another order, in the same way, for `p`; 0 leaves it out. `types`: one an example, as
    the word it is; the control task's labels are drawn as often as `control` says, and at least once.

    `transfer`: states of the same examples in the other modality. The probes trained on `acts` are tested on the same
    test rows of it; they standardise it as `acts`, so a constant gap between modalities counts against transfer.

    Raises `InputError` where labels, groups or types are not one an example, labels are of one class, a class has too few
    examples (or groups) for both sides, no type stands on both sides, features are not finite, or `transfer` has other
    states, examples or features; and for a seed that is no int from 0 on.

    >>> rng = np.random.default_rng(0)
    >>> states = rng.normal(size=(2, 200, 8))
    >>> found = probe_layers(states, np.where(states[1, :, 0] > 0, "right", "left"))
    >>> (found.accuracy > 0.9).tolist(), (found.p < 0.01).tolist(), found.n_test
    ([False, True], [False, True], 60)
    """
    seed, states = checked_seed(seed), states_of(acts, site, "acts")
    classes, numbers = classes_of(labels, states.shape[1])
    if not isinstance(test_size, Real) or not 0 < test_size < 1:
        raise InputError(f"test_size={test_size!r}: expected a share between 0 and 1")
    if not isinstance(control, Integral) or control < 0:
        raise InputError(f"control={control!r}: expected True, False or a number of shuffles")
    if not isinstance(permutations, Integral) or isinstance(permutations, bool) or permutations < 0:
        raise InputError(f"permutations={permutations!r}: expected a number of permutations, 0 for none")
    blocks = None if groups is None else one_each(groups, len(numbers), "groups")[1]
    kinds = None if types is None else one_each(types, len(numbers), "types")[1]
    other = None if transfer is None else states_of(transfer, site, "transfer")
    if other is not None and other.shape != states.shape:
        raise InputError(
            f"transfer has shape {tuple(other.shape)!r} and acts {tuple(states.shape)!r}: expected the same"
        )
    train, test = split_rows(classes, numbers, blocks, float(test_size), seed)
    shuffles = [shuffled(numbers, blocks, (train, test), seed + turn) for turn in range(int(control))]
    tasks = (
        [] if kinds is None else [control_task(numbers, kinds, train, test, seed + i) for i in range(int(control) or 1)]
    )

    probes = _fitted(states, numbers, train, kind, C)
    answers = _answers(probes, states, test)
    low, high = bootstrap_bounds(answers == numbers[test], _of(blocks, test), seed)
    crossed = None if other is None else _answers(probes, other, test) == numbers[test]
    reach = (None, None) if crossed is None else bootstrap_bounds(crossed, _of(blocks, test), seed)
    for probe in probes:
        probe.classes_ = np.asarray(classes)
    return ProbeResult(
        accuracy=torch.from_numpy((answers == numbers[test]).mean(axis=1)),
        low=low,
        high=high,
        control=_mean_accuracy(states, shuffles, train, test, kind, C),
        chance=float(np.bincount(numbers[test]).max() / len(test)),
        probes=probes,
        classes=classes,
        train_rows=torch.from_numpy(train),
        test_rows=torch.from_numpy(test),
        transfer=None if crossed is None else torch.from_numpy(crossed.mean(axis=1)),
        transfer_low=reach[0],
        transfer_high=reach[1],
        p=p_values(answers, numbers, blocks, test, int(permutations), seed) if permutations else None,
        permutations=int(permutations),
        control_task=_mean_accuracy(states, tasks, train, test, kind, C),
        provenance=_provenance(acts, seed),
    )


def _fitted(
    states: np.ndarray | Tensor, numbers: np.ndarray, train: np.ndarray, kind: str, strength: float
) -> tuple[LinearProbe, ...]:
    """A probe of the class numbers at each state, trained on these rows."""
    if isinstance(states, Tensor) and kind == "logistic":
        return fit_batched(states[:, torch.from_numpy(train).to(states.device)], numbers[train], strength)
    return tuple(LinearProbe(kind, strength).fit(state[train], numbers[train]) for state in states)


def _answers(probes: Sequence[LinearProbe], states: np.ndarray | Tensor, rows: np.ndarray) -> np.ndarray:
    """The class number that the probe of a state gives each of these examples, Int [state, row]."""
    return np.stack([probe.predict(state[rows]) for probe, state in zip(probes, states, strict=True)])


def _mean_accuracy(
    states: np.ndarray | Tensor,
    labelings: Sequence[np.ndarray],
    train: np.ndarray,
    test: np.ndarray,
    kind: str,
    c: float,
) -> Tensor | None:
    """The accuracy [state] of probes fitted and tested on each of these labelings, on average; None for no labeling."""
    if not labelings:
        return None
    right = [_answers(_fitted(states, y, train, kind, c), states, test) == y[test] for y in labelings]
    return torch.from_numpy(np.mean(right, axis=(0, 2)))


def _of(blocks: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if blocks is None else blocks[rows]


def _provenance(acts: States, seed: int) -> Provenance:
    found = getattr(acts, "provenance", None)
    return replace(found, seed=seed) if isinstance(found, Provenance) else Provenance(seed=seed)
