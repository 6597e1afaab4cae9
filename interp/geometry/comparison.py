"""Comparison: many measures of the states of images and of captions, at every layer.

`compare` takes two stacks of states with the same examples in every layer and returns one frame: each measure, of each
modality or of both together, at each state, with its error and with its level where there is nothing to find:

- Measures of *one* cloud (dimensions and spectra): the same measure after a shuffle of every feature among the examples on
  its own, which keeps each feature's distribution and removes their dependence.
- Measures of *two* paired clouds: the same after shuffles of the rows of one, with the share of shuffles that reach the
  value as p, the unshuffled one included.
- Measures of the *gap* between two clouds in one space: the same after shuffles of the pairs, or after exchanges of image
  and caption.

`interp.geometry.registry` has an entry for each measure, with its null. To see directly what tuning changed, compare the
states of both models. The difference of two comparisons (`GeometryComparison.change`) is what changed in the measures.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import checked_flag, checked_int
from interp.errors import InputError, InputTypeError, shown
from interp.geometry.clouds import States, as_paired_states, fingerprint_of_ids, the_site
from interp.geometry.copies import distinct_rows, duplicates
from interp.geometry.layer_grids import NO_HALVES, Resampling
from interp.geometry.modality import FIELDS, modality_gap
from interp.geometry.nuisance import notes_of_pooling, notes_of_strata, strata_of
from interp.geometry.outlying import notes_of_captures
from interp.geometry.overlap import label_classes
from interp.geometry.paired_samples import NumberSamples, frame_of_changes
from interp.geometry.preprocessing import prepared_states
from interp.geometry.readings import Reading, StateCloud, naming, of_gap, of_one, of_path, of_two
from interp.geometry.registry import OF_TWO, REGISTRY, Measure
from interp.geometry.shuffles import joint_p
from interp.progress import progress_bar, quiet
from interp.provenance import Provenance
from interp.results import Result
from interp.statistics import holm
from interp.statistics.categories import Labels, labels_of
from interp.statistics.half_samples import half_samples
from interp.statistics.permutation import read_strata

DEFAULT = (
    "2nn",
    "gride",
    "participation_ratio",
    "spectral_entropy",
    "neighbor_overlap",
    "information_imbalance",
    "cka",
)
MODALITIES = ("visual", "textual")
_NUMBERS = ("value", "error", "chance", "p")


@dataclass(frozen=True, eq=False)
class GeometryComparison(Result):
    """Measures of two modalities over states, one number in each row: `measure`, `modality` ("visual", "textual" or "both"),
    `state`, `value`, its standard `error` (NaN where unknown), `chance`, and `p` (NaN without a test).

    Of many p some are small by luck. `p_holm` is Holm's over the states of each measure and modality. `p_family` is the share
    of draws in which the largest of these states, each standardised by its own null, reaches the value, and `p_all` the same
    over all states, modalities and measures with the same kind of null (`interp.geometry.registry`). States share their
    draws, so both find more than Holm's where neighbouring states are alike, and can reject at 33 states.

    `n` is the number of examples in use, and `dropped` are the rows that repeat another and were left out, of all states and
    both modalities. `parts[row, half]` are the values in half-samples and `influence[row, example]` the part of each example in
    a value, NaN where there are none; `change` compares them in pairs. `examples` is a fingerprint of the ids of all
    examples, where activations have them.
    """

    measure: list[str]
    modality: list[str]
    state: list[int]
    value: Float[Tensor, " row"]
    error: Float[Tensor, " row"]
    chance: Float[Tensor, " row"]
    p: Float[Tensor, " row"]
    n: int
    dropped: Int[Tensor, " dropped"]
    preprocess: str = "none"
    p_family: Float[Tensor, " row"] | None = None
    p_all: Float[Tensor, " row"] | None = None
    parts: Float[Tensor, "row half"] | None = None
    influence: Float[Tensor, "row example"] | None = None
    examples: str = ""

    @property
    def p_holm(self) -> Float[Tensor, " row"]:
        """Holm's p over the states of each measure and modality."""
        adjusted = torch.full_like(self.p, torch.nan)
        for rows in grouped(zip(self.measure, self.modality, strict=True)):
            adjusted[rows] = torch.from_numpy(holm(self.p[rows].numpy())).to(adjusted)
        return adjusted

    def to_frame(self) -> pd.DataFrame:
        """One row for each number: measure, modality, state, value, error, chance, p, p_holm, p_family, p_all."""
        unknown = torch.full_like(self.p, torch.nan)
        numbers = {name: getattr(self, name) for name in (*_NUMBERS, "p_holm", "p_family", "p_all")}
        columns = {name: (unknown if number is None else number).numpy() for name, number in numbers.items()}
        return pd.DataFrame({"measure": self.measure, "modality": self.modality, "state": self.state, **columns})

    def change(self, after: GeometryComparison, paired: bool = True) -> pd.DataFrame:
        """What changed from this comparison to `after`, say from a model before tuning to the tuned one.

        One row for each number that both have: measure, modality, state, before, after, difference, error, z, p, p_holm,
        p_family, paired. By default both are of the same examples, and the error is that of the paired difference
        (`interp.geometry.paired_samples`), far smaller than those of the two values. p is two-sided; `p_holm` and `p_family`
        correct it for the states of a measure and modality. `paired` is False for numbers without samples (separability, and
        dimensions where halves have too few examples): they are compared as independent ones, which is too wide.

        `paired=False` compares all numbers so, for other examples: error sqrt(e^2 + e'^2).

        Raises `InputTypeError` for anything but a comparison, and `InputError` where they have no number in common or differ in
        preprocessing, and, for pairs, where the examples, the dropped ones, seeds or numbers of halves differ.
        """
        if not isinstance(after, GeometryComparison):
            raise InputTypeError(f"after={shown(after)}: expected what compare() returns for the other model")
        if self.preprocess != after.preprocess:
            raise InputError(
                f"the comparisons have preprocess={self.preprocess!r} and {after.preprocess!r}: compute both with the same"
            )
        if checked_flag(paired, "paired"):
            self._check_paired(after)
        one, other = (
            NumberSamples(each.to_frame(), *((each.parts, each.influence) if paired else (None, None)), each.n)
            for each in (self, after)
        )
        return frame_of_changes(one, other, self.provenance.seed or 0)

    def _check_paired(self, after: GeometryComparison) -> None:
        if self.n != after.n or self.dropped.tolist() != after.dropped.tolist():
            raise InputError(
                f"the comparisons have {self.n} and {after.n} examples, without {self.dropped.tolist()} and"
                f" {after.dropped.tolist()}: compute both with the same examples, or pass paired=False"
            )
        if self.examples and after.examples and self.examples != after.examples:
            raise InputError(
                "the comparisons are of examples with other ids, or in another order: compute both with the same rows in the"
                " same order, or pass paired=False"
            )
        halves = [(each.provenance.seed, 0 if each.parts is None else each.parts.shape[1]) for each in (self, after)]
        if halves[0] != halves[1]:
            raise InputError(
                f"the comparisons have (seed, halves) {halves[0]} and {halves[1]}: compute both with the same seed and"
                " subsamples, or pass paired=False"
            )


def compare(
    visual: States,
    textual: States,
    metrics: Iterable[str] = DEFAULT,
    labels: Labels | None = None,
    subsamples: int = 10,
    permutations: int = 199,
    seed: int = 0,
    *,
    preprocess: str = "none",
    strata: Labels | None = None,
    progress: bool = True,
) -> GeometryComparison:
    """Measures of `visual` and `textual`, both `[state, example, feature]` with paired examples, at every state.

    >>> rng = np.random.default_rng(0)
    >>> visual = rng.normal(size=(3, 100, 8))
    >>> textual = np.concatenate([rng.normal(size=(2, 100, 8)), visual[2:] + 0.1])
    >>> frame = compare(visual, textual, metrics=["participation_ratio", "cka"]).to_frame()
    >>> frame[frame.measure == "cka"].value.round(1).abs().tolist()
    [0.0, 0.0, 1.0]

    Both may be a tensor, an array, a site of activations, or activations of one site. `labels` are one label an example, or the
    name of a label of `visual`, where that is activations. `metrics` are names in `interp.geometry.REGISTRY`, yours too
    (`register_measure`):

    - of each modality: "2nn", "gride" (ranks 16 and 32), "mle" (20 neighbours), "participation_ratio", "spectral_entropy",
      "curvature" (of the paths through the states, at those between two others), and "label_overlap", which needs `labels`;
    - of both at the same state, with equally many states of each: the names of `interp.geometry.MEASURES`, turned so that
      more is more alike;
    - the gap, with equally many features of each: "paired_cosine", "corrected_cosine", "centroid_distance" (over the
      spread), "separability", "principal_angle" (the mean of ten, radians) and "homogeneity" (of density peaks of both
      clouds as one, in modality).

    Errors are the estimator's own for dimensions and gaps, and from half-samples without replacement for others (`subsamples`
    of them, 0 for none). `chance` is the mean over `permutations` draws of the measure's null where it has no formula, and p
    uses all draws; for dimensions, spectra and curvature it is that of one shuffle, without a test. One graph of neighbours
    is computed for each cloud and metric, and shared.

    Examples that repeat another, up to rounding, in any state of either modality have no dimension. Where a measure needs
    distinct ones, repeated ones are left out of *all* numbers, in all states and both modalities, and listed in `dropped`.

    `preprocess` is what is done to each cloud of the examples that are left, "none", "standardise", "clamp", "cosine" or
    "whiten" (`interp.geometry.preprocessing`). Halves and shuffles use the preprocessed clouds. With measures of a gap it is
    "none" alone.

    `strata`, one label an example (or the name of a label of `visual`), keep each shuffle of rows, labels and paths within
    them, so that chance and p leave out what they explain (`interp.geometry.nuisance`).

    A long run shows its progress on a terminal or in a notebook; ``progress=False`` hides it.

    Raises `InputError` for unknown metrics, examples that are not paired, states that are not finite, a state in which
    more than half of the examples repeat others (leave it out), and the errors of the measures.
    """
    measures = _known(metrics, labels)
    if isinstance(visual, Mapping) and labels is not None:
        the_site(visual, "visual")  # it refuses several
        labels = labels_of(labels, visual, next(iter(visual)))
    first, second = as_paired_states(visual, textual, MODALITIES)
    classes = None if labels is None else label_classes(labels, first.shape[1])[1]
    rows = _distinct(first, second, measures)
    dropped = torch.ones(first.shape[1], dtype=torch.bool)
    dropped[rows] = False
    stacks = first[:, rows], second[:, rows]
    first, second, notes = prepared_states(stacks, preprocess, [measure.kind for measure in measures])
    n = len(rows)
    _check_enough(n, measures)
    classes = None if classes is None else classes[rows.numpy()]
    if len(first) != len(second) and any(measure.kind in OF_TWO for measure in measures):
        alone = tuple(name for name, measure in REGISTRY.items() if measure.kind not in OF_TWO)
        raise InputError(
            f"visual has {len(first)} states and textual {len(second)}: measures of both need equally many, only {alone} do"
            " not"
        )
    halves = half_samples(n, subsamples, seed) if subsamples else NO_HALVES
    numbers_of_strata = strata_of(strata, visual, len(dropped))
    within = None if numbers_of_strata is None else read_strata(numbers_of_strata[rows.numpy()], n)
    resampling = Resampling(halves, checked_int(permutations, "permutations", least=1), seed, within)
    with quiet(not checked_flag(progress, "progress")):
        readings = list(_readings(measures, (first, second), classes, resampling))
    names = [measure.name for measure in measures]
    readings.sort(key=lambda each: (names.index(each.measure), each.modality, each.state))
    out = dropped.nonzero().flatten()
    notes = (
        *notes,
        *_notes_of_dimensions(readings),
        *notes_of_strata(within),
        *notes_of_pooling(visual, textual),
        *notes_of_captures(visual=visual, textual=textual),
    )
    if len(out):
        notes = (f"{len(out)} of {len(dropped)} examples repeat others and were left out", *notes)
    numbers = {name: torch.tensor([getattr(each, name) for each in readings], dtype=torch.float64) for name in _NUMBERS}
    return GeometryComparison(
        measure=[each.measure for each in readings],
        modality=[each.modality for each in readings],
        state=[each.state for each in readings],
        **numbers,
        n=n,
        dropped=out,
        preprocess=preprocess,
        p_family=_joint_p(readings, grouped((each.measure, each.modality) for each in readings)),
        p_all=_joint_p(readings, grouped(_draws_of(REGISTRY[each.measure]) for each in readings)),
        parts=_rows([each.parts for each in readings]),
        influence=_rows([each.influence for each in readings]),
        examples=fingerprint_of_ids(visual),
        provenance=Provenance(seed=seed, notes=notes),
    )


def grouped(keys: Iterable[Hashable]) -> list[list[int]]:
    """The rows of each key.

    >>> grouped(["cka", "rsa", "cka"])
    [[0, 2], [1]]
    """
    rows: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, []).append(row)
    return list(rows.values())


def _draws_of(measure: Measure) -> tuple[str | None, bool]:
    """What the draws of a measure change: measures that share it share their draws."""
    return measure.null, measure.kind == "labelled"


def _joint_p(readings: Sequence[Reading], families: Iterable[list[int]]) -> Float[Tensor, " row"]:
    """The p of each reading among those of its family that have a null; NaN without one."""
    p = torch.full((len(readings),), torch.nan, dtype=torch.float64)
    for family in families:
        nulls = {row: null for row in family if (null := readings[row].null) is not None}
        if nulls:
            values = torch.tensor([readings[row].value for row in nulls], dtype=torch.float64)
            p[list(nulls)] = joint_p(values, torch.stack(list(nulls.values()), dim=1))
    return p


def _rows(samples: Sequence[Tensor | None]) -> Float[Tensor, "row sample"] | None:
    """Samples of equal length, one row each, NaN where there are none."""
    length = next((len(each) for each in samples if each is not None), 0)
    unknown = torch.full((length,), torch.nan, dtype=torch.float64)
    return torch.stack([unknown if each is None else each.double() for each in samples]) if length else None


def _readings(
    measures: Sequence[Measure], stacks: tuple[Tensor, Tensor], classes: np.ndarray | None, resampling: Resampling
) -> Iterator[Reading]:
    """Every measure at every state: paths first, then state by state, so that only one state's graphs are in memory."""
    for measure in (each for each in measures if each.kind == "path"):
        for name, stack in zip(MODALITIES, stacks, strict=True):
            with naming(name):
                yield from of_path(measure, name, stack, resampling)
    with progress_bar("comparing", max(map(len, stacks)), "states") as bar:
        for state in bar.each(range(max(map(len, stacks)))):
            clouds = [
                StateCloud(name, state, stack[state], classes, resampling)
                for name, stack in zip(MODALITIES, stacks, strict=True)
                if state < len(stack)
            ]
            for cloud in clouds:
                with naming(cloud.name):
                    yield from (of_one(each, cloud) for each in measures if each.kind in ("cloud", "labelled"))
            if len(clouds) == len(MODALITIES):
                yield from _of_both(measures, clouds[0], clouds[1])


def _notes_of_dimensions(readings: Sequence[Reading]) -> Iterator[str]:
    """A line for each dimension of each modality that is surely too low in some states."""
    for measure, modality in dict.fromkeys((each.measure, each.modality) for each in readings):
        low = [each for each in readings if (each.measure, each.modality) == (measure, modality) and each.warning]
        if low:
            states = ", ".join(str(each.state) for each in low)
            yield f"{measure} of {modality} at states {states}: {low[0].warning} (at state {low[0].state})"


def _of_both(measures: Sequence[Measure], one: StateCloud, other: StateCloud) -> Iterator[Reading]:
    """The measures of two clouds at one state; those that one `modality_gap` has share it."""
    shared = [measure for measure in measures if measure.name in FIELDS]
    if shared:
        draws = one.resampling
        with naming(f"{one.name} (x) and {other.name} (y)"):
            gap = modality_gap(
                one.cloud, other.cloud, shuffles=draws.permutations, seed=draws.seed, strata=draws.strata
            )
        yield from (of_gap(each, gap, one, other) for each in shared)
    yield from (of_two(each, one, other) for each in measures if each.kind in OF_TWO and each not in shared)


def _known(metrics: Iterable[str], labels: object) -> list[Measure]:
    known = tuple(REGISTRY)
    if not isinstance(metrics, Iterable):
        raise InputError(f"metrics={metrics!r}: expected names, some of {known}")
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    unknown = [name for name in names if not isinstance(name, str) or name not in known]
    if unknown or not names:
        raise InputError(f"metrics={names!r}: {unknown!r} are unknown, use some of {known}")
    measures = [REGISTRY[name] for name in dict.fromkeys(names)]
    labelled = next((measure.name for measure in measures if measure.kind == "labelled"), None)
    if labelled and labels is None:
        raise InputError(f"metrics has {labelled!r} and labels=None: pass one label an example")
    return measures


def _check_enough(n: int, measures: Sequence[Measure]) -> None:
    """Refuse measures of more neighbours than there are, which a caller of `compare` does not choose."""
    for measure in measures:
        k = measure.k or 0
        if k >= n:
            raise InputError(
                f"{measure.name!r} takes {k} neighbours and there are {n} examples: pass {k + 1} or more, or leave it out"
            )


def _distinct(first: Tensor, second: Tensor, measures: Sequence[Measure]) -> Int[Tensor, " row"]:
    """The examples to keep: all, or those that are distinct in all states of both modalities where a measure needs that."""
    n = first.shape[1]
    needed = sorted(measure.name for measure in measures if measure.distinct)
    if not needed:
        return torch.arange(n)
    for name, stack in zip(MODALITIES, (first, second), strict=True):
        for number, cloud in enumerate(stack):
            repeated = len(duplicates(cloud))
            if 2 * repeated > n:
                raise InputError(
                    f"{name} state {number} has {n - repeated} distinct examples of {n}, too few for {needed}: leave this"
                    " state out, of both modalities"
                )
    return distinct_rows(first, second)
