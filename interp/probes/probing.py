"""Probing every layer: where in a model a property can be read off, and where it cannot.

A probe is trained at each state on the same examples and tested on the same others. Its accuracy alone proves little, so
it comes with what to compare it with. *Chance* is the accuracy of the best constant answer. The *interval* says how far
accuracies differ by luck with so many test examples. The *controls* are shuffled labels, a permutation test and a task
that can only be memorised (`interp.probes.controls`).

Examples that belong together, such as the patches of one image or the questions about one scene, must be on one side of
the split: else the probe may recognise the image, not the property. Activations know what belongs together; of arrays only
`groups` does, and what looks like leakage is noted (`interp.probes.leakage`). A probe trained on one modality can be tested on
the other (`transfer`): if the direction learnt from images also reads the colour off captions, the two share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from interp.arguments import checked_int, checked_seed, checked_share
from interp.errors import InputError
from interp.geometry.preprocessing import preprocess_for_probes
from interp.probes.batched import fit_batched
from interp.probes.controls import check_strata, control_task, group_labels, permuted_hits, split_examples
from interp.probes.inputs import States, checked_classes, checked_labels, checked_states, read_groups
from interp.probes.leakage import find_leaks
from interp.probes.linear import LinearProbe
from interp.probes.probe_result import TRANSFER, ProbeResult
from interp.progress import Bar, progress_bar
from interp.provenance import Provenance
from interp.statistics.categories import Labels, labels_of
from interp.statistics.corrections import family_p
from interp.statistics.intervals import few_rows, mean_interval
from interp.statistics.permutation import permutation_p, read_strata, shuffle_labels

Probes = tuple[LinearProbe, ...]  # one a state
Fit = Callable[[np.ndarray], Probes]  # class numbers to probes
# Numbers in a state of the training examples, below which threads of numpy would wait for each other in every step of a fit.
_SMALL = 2**20


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
    *,
    preprocess: str = "none",
    strata: Labels | None = None,
    progress: bool = True,
) -> ProbeResult:
    """Probe `labels` at every state of `acts`, a tensor or array [state, example, feature] or Activations.

    >>> rng = np.random.default_rng(0)
    >>> states = rng.normal(size=(2, 200, 8))
    >>> result = probe_layers(states, np.where(states[1, :, 0] > 0, "right", "left"))
    >>> (result.accuracy > 0.9).tolist(), (result.p < 0.01).tolist(), result.n_test
    ([False, True], [False, True], 60)

    `labels`, `groups` and `types` are one string, bool or whole number an example, or the name of a label of the activations:
    `probe_layers(acts, "colour")`. A `LinearProbe` is fitted at each state. The split into training and test examples is
    the same at all states: stratified by class, or by whole groups: the first of several random splits in which both sides
    have every class. Examples of activations are grouped by row and picture (`Activations.groups`), unless `groups` has a label
    an example; with ``groups="examples"``, and for arrays without `groups`, each example is its own. Features are standardised
    on the training examples. `low` and `high` are a 95 % interval (`mean_interval`) over the test groups or examples.
    Logistic probes of states on an accelerator are fitted there, all in one solve.

    `control` is how many shuffles of the labels to average over (True: one). Training and test labels are shuffled
    apart, so every class keeps its share in both; with groups, whole groups change places. Where a picture or prompt is on
    both sides, or test examples are far nearer to training examples than others of their label (`interp.probes.leakage`),
    the provenance notes it, and `group_control` is the accuracy on labels shuffled by what belongs together. `permutations` is
    how often the test labels are put in another order for `p` and `p_family`; 0 leaves them out. `types` gives the type of each
    example, such as its word; the control task draws labels as often as `control` says, and at least once.

    `transfer` holds states of the same examples in the other modality. The probes trained on `acts` are tested on its
    test examples. They standardise it as they do `acts`, so a constant gap between modalities counts against transfer.

    `preprocess` is what is done to the states first, fitted on the training examples: "none", "clamp" where the notes of
    `provenance` say that a few massive features dwarf the others, "cosine" or "whiten" (`interp.geometry.preprocessing`);
    "standardise" is what a probe does anyhow. `transfer` is changed as `acts` are, and `probes` take preprocessed states.

    `strata`, one label an example or the name of one, keep shuffled labels within them, in `control` and in the permutations
    of p, so that p and the control leave out what the strata explain, such as the length of a caption. A group has one stratum.

    A long run shows its progress on a terminal or in a notebook; ``progress=False`` hides it.

    Raises `InputError` where labels, groups or types are not one an example, some are missing or look alike (1 and "1"), or
    the activations have none of that name; where there are fewer than two classes, a class has too few examples (or groups)
    for both sides, strata leave the test labels no other order, the sides have no type in common, features are not finite, or
    `transfer` has other states, examples or features; and for a seed that is not an int from 0.
    """
    seed, states = checked_seed(seed), checked_states(acts, site, "acts")
    labels, types, strata = (
        None if values is None else labels_of(values, acts, site, name)
        for values, name in ((labels, "labels"), (types, "types"), (strata, "strata"))
    )
    classes, numbers = checked_classes(labels, states.shape[1])
    test_size = checked_share(test_size, "test_size")
    turns = int(control) if isinstance(control, bool) else checked_int(control, "control", what="True, False or an int")
    permutations = checked_int(permutations, "permutations")
    blocks, known = read_groups(groups, acts, site, len(numbers))
    within = read_strata(strata, len(numbers))
    type_of = None if types is None else checked_labels(types, len(numbers), "types")[1]
    other = None if transfer is None else checked_states(transfer, site, "transfer")
    if other is not None and other.shape != states.shape:
        raise InputError(f"transfer has shape {tuple(other.shape)}, acts {tuple(states.shape)}: expected the same")
    train, test = split_examples(classes, numbers, blocks, test_size, seed)
    check_strata(numbers, blocks, test, within, seed)
    (states, *others), notes = preprocess_for_probes([states] if other is None else [states, other], train, preprocess)
    shuffles = [shuffle_labels(numbers, blocks, (train, test), seed + turn, within) for turn in range(turns)]
    leaks, leakage = find_leaks(states, numbers, (train, test), known, seed)
    by_group = [] if leaks is None else [group_labels(numbers, leaks, train, seed + turn) for turn in range(turns)]
    tasks = []
    if type_of is not None:
        tasks = [control_task(numbers, type_of, train, test, seed + turn) for turn in range(max(turns, 1))]

    with progress_bar(
        "probes", (1 + len(shuffles) + len(by_group) + len(tasks)) * len(states), "fits", progress
    ) as bar:
        fit = partial(_fit, states, train, kind, C, bar=bar)
        probes = fit(numbers)
        of_shuffles, of_groups, of_tasks = (
            _mean_accuracy(fit, states, each, test) for each in (shuffles, by_group, tasks)
        )
    answers, test_blocks = _answers(probes, states, test), None if blocks is None else blocks[test]
    accuracy, low, high = _accuracy(answers == numbers[test], test_blocks, seed)
    units = test if test_blocks is None else test_blocks
    crossed: dict[str, Any] = {}
    for other in others:
        of_other = _answers(probes, other, test)
        crossed = dict(zip(TRANSFER, _accuracy(of_other == numbers[test], test_blocks, seed), strict=True))
        crossed["transfer_answers"] = torch.from_numpy(of_other)
    for probe in probes:
        probe.classes_ = np.asarray(classes)
    return ProbeResult(
        accuracy=accuracy,
        low=low,
        high=high,
        control=of_shuffles,
        chance=float(np.bincount(numbers[test]).max() / len(test)),
        probes=probes,
        classes=classes,
        train_rows=torch.from_numpy(train),
        test_rows=torch.from_numpy(test),
        **_p_of(partial(permuted_hits, answers, numbers, blocks, test, permutations, seed, within), permutations),
        permutations=permutations,
        control_task=of_tasks,
        **crossed,
        preprocess=preprocess,
        group_control=of_groups if leaks is not None or blocks is None else of_shuffles,
        answers=torch.from_numpy(answers),
        test_labels=torch.from_numpy(numbers[test]),
        test_groups=None if test_blocks is None else torch.from_numpy(test_blocks),
        provenance=_provenance(acts, seed, (*notes, *leakage, *few_rows(len(np.unique(units))))),
    )


def _p_of(hits: Callable[[], tuple[Tensor, Tensor]], permutations: int) -> dict[str, Tensor]:
    """The p of each state, alone and among all, from the same permutations."""
    if not permutations:
        return {}
    observed, null = hits()
    reached = (null >= observed).sum(dim=0).double()
    return {"p": permutation_p(reached, permutations), "p_family": family_p(observed, null)}


def _provenance(acts: States, seed: int, notes: tuple[str, ...]) -> Provenance:
    """That of the activations, with the seed and the notes of this call."""
    own = getattr(acts, "provenance", None)
    own = own if isinstance(own, Provenance) else Provenance()
    return replace(own, seed=seed, notes=(*own.notes, *notes))


def _fit(states: States, train: np.ndarray, kind: str, strength: float, numbers: np.ndarray, bar: Bar) -> Probes:
    """A probe of the class numbers at each state, trained on these rows."""
    if isinstance(states, Tensor) and kind == "logistic":
        probes = fit_batched(states[:, torch.from_numpy(train).to(states.device)], numbers[train], strength)
        bar.advance(len(states))
        return probes
    is_small = len(train) * states.shape[2] < _SMALL
    with threadpool_limits(1 if is_small else None, "blas"):
        return tuple(LinearProbe(kind, strength).fit(state[train], numbers[train]) for state in bar.each(states))


def _answers(probes: Sequence[LinearProbe], states: States, rows: np.ndarray) -> np.ndarray:
    """The class number that the probe of a state gives each of these examples, Int [state, row]."""
    return np.stack([probe.predict(state[rows]) for probe, state in zip(probes, states, strict=True)])


def _accuracy(hits: np.ndarray, blocks: np.ndarray | None, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The share of hits at each state of Bool [state, test], and its 95 % bounds."""
    return torch.from_numpy(hits.mean(axis=1)), *mean_interval(torch.from_numpy(hits.T), blocks, seed)


def _mean_accuracy(fit: Fit, states: States, labelings: Sequence[np.ndarray], test: np.ndarray) -> Tensor | None:
    """The accuracy [state] of probes fitted and tested on these labelings, the mean over them; None without any."""
    if not labelings:
        return None
    right = [_answers(fit(y), states, test) == y[test] for y in labelings]
    return torch.from_numpy(np.mean(right, axis=(0, 2)))
