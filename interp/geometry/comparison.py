"""All of it for all layers: how the clouds of images and of captions differ, and agree, from state to state.

`compare` takes two stacks of states with the same examples in every layer and gives one frame: each measure, of each
modality or of both together, at each state, with its error and with what it would be for nothing:

- Measures of *one* cloud (dimensions and spectra): the same measure when every feature is shuffled among the examples
  on its own, which leaves each feature's distribution and takes their ties away.
- Measures of *two* paired clouds (`interp.geometry.MEASURES`): the same when the rows of one are shuffled, with the
  share of shuffles that reach the value, the unshuffled one counted, as p.
- Measures of the *gap* between two clouds in one space: what each says of exchanged or shuffled rows
  (`interp.geometry.modality`).

A measure that compares two models says what tuning changed directly: give it the states of both. What changed in the
measures themselves is the difference of two comparisons (`GeometryComparison.change`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError, InputTypeError
from interp.geometry.clouds import States, as_paired_states, distinct_rows, duplicates
from interp.geometry.controls import (
    ALONE,
    DIMENSIONS,
    GAPS,
    UNIONS,
    Draws,
    Layer,
    about,
    neighbours_of,
    of_both,
    of_gap,
    of_one,
    of_path,
)
from interp.geometry.measures import MEASURES
from interp.geometry.overlap import Labels, classes_of
from interp.provenance import Provenance
from interp.results import Result
from interp.statistics.half_samples import half_samples

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


@dataclass(frozen=True, eq=False)
class GeometryComparison(Result):
    """Measures of two modalities over states, one number a row: `measure`, `modality` ("visual", "textual" or "both"),
    `state`, `value`, its standard `error` (NaN where none is known), `chance`, and `p` (NaN where there is no test).

    `n` is the number of examples used and `dropped` the rows that were left out because they repeat another, in all
    states and both modalities alike.
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

    def to_frame(self) -> pd.DataFrame:
        """One row a number: measure, modality, state, value, error, chance, p."""
        numbers = {"value": self.value, "error": self.error, "chance": self.chance, "p": self.p}
        return pd.DataFrame(
            {
                "measure": self.measure,
                "modality": self.modality,
                "state": self.state,
                **{name: column.numpy() for name, column in numbers.items()},
            }
        )

    def change(self, after: GeometryComparison) -> pd.DataFrame:
        """What changed from this comparison to `after`, say from a model before tuning to the tuned one.

        One row a number that both have: measure, modality, state, before, after, difference, error, z. The error takes
        the two as independent, sqrt(e^2 + e'^2), which for the same examples is too wide rather than too narrow.

        Raises `InputError` where they have no number in common.
        """
        if not isinstance(after, GeometryComparison):
            raise InputTypeError(f"after={after!r}: expected what compare() gives for the other model")
        keys = ["measure", "modality", "state"]
        both = self.to_frame().merge(after.to_frame(), on=keys, suffixes=("_before", "_after"))
        if both.empty:
            raise InputError(
                f"the comparisons have no number in common: {sorted(set(self.measure))} at {len(set(self.state))} states and"
                f" {sorted(set(after.measure))} at {len(set(after.state))}"
            )
        found = both[keys].assign(before=both["value_before"], after=both["value_after"])
        found["difference"] = found["after"] - found["before"]
        found["error"] = np.hypot(both["error_before"], both["error_after"])
        return found.assign(z=found["difference"] / found["error"])


def compare(
    visual: States,
    textual: States,
    metrics: Iterable[str] = DEFAULT,
    labels: Labels | None = None,
    subsamples: int = 10,
    permutations: int = 20,
    seed: int = 0,
) -> GeometryComparison:
    """Measures of `visual` and `textual`, both `[state, example, feature]` with paired examples, at every state.

    `metrics` are any of

    - "2nn", "gride" (ranks 16 and 32), "mle" (20 neighbours), "participation_ratio", "spectral_entropy", "curvature" (of the
      paths through the states, at those between two others): of each modality;
    - "label_overlap", which takes `labels`: of each modality;
    - the names of `interp.geometry.MEASURES`: of both, at the same state. As many states of each are needed;
    - "paired_cosine", "corrected_cosine", "centroid_distance" (over the spread), "separability", "principal_angle" (the
      mean of ten, radians) and "homogeneity" (of density peaks of both clouds as one, in modality): the gap. As many
      features of each are needed.

    Errors: the estimator's own for dimensions and gaps, half-samples without replacement for others (`subsamples` of them,
    0 for none). `chance` is a mean over `permutations` shuffles where it has no formula, and p takes them all; for
    dimensions, spectra and curvature it is that of one shuffle, without a test. One graph of neighbours is made for each
    cloud and metric, and shared.

    Examples that repeat another in any state of either modality have no dimension. Where a metric needs distinct ones, they
    are left out of *all* numbers, in all states and both modalities, and named in `dropped`.

    Raises `InputError` for unknown metrics, examples that are not paired, states that are not finite, a state in which
    more than half of the examples repeat others (leave it out), and what the measures raise.

    >>> rng = np.random.default_rng(0)
    >>> visual = rng.normal(size=(3, 100, 8))
    >>> textual = np.concatenate([rng.normal(size=(2, 100, 8)), visual[2:] + 0.1])
    >>> frame = compare(visual, textual, metrics=["participation_ratio", "cka"]).to_frame()
    >>> frame[frame.measure == "cka"].value.round(1).abs().tolist()
    [0.0, 0.0, 1.0]
    """
    asked = _known(metrics, labels)
    first, second = as_paired_states(visual, textual, MODALITIES)
    kept = _distinct(first, second, asked)
    dropped = torch.ones(first.shape[1], dtype=torch.bool)
    dropped[kept] = False
    first, second = first[:, kept], second[:, kept]
    n = len(kept)
    _check_enough(n, asked)
    classes = None if labels is None else classes_of(labels, len(dropped))[1][kept.numpy()]
    if len(first) != len(second) and any(name not in ALONE for name in asked):
        raise InputError(
            f"visual has {len(first)} states and textual {len(second)}: measures of both take equally many, of one"
            f" modality alone {ALONE} take any"
        )
    halves = half_samples(n, subsamples, seed) if subsamples else torch.zeros(0, 0, dtype=torch.int64)
    draws = Draws(halves, _count(permutations), seed)
    found = []
    if "curvature" in asked:
        for name, stack in zip(MODALITIES, (first, second), strict=True):
            with about(name):
                found += list(of_path(name, stack, draws))
    for number in range(max(len(first), len(second))):
        stacks = zip(MODALITIES, (first, second), strict=True)
        clouds = [Layer(name, number, stack[number], classes) for name, stack in stacks if number < len(stack)]
        for cloud in clouds:
            with about(cloud.name):
                found += [(number, row) for row in of_one(cloud, asked, draws)]
        if len(clouds) == len(MODALITIES):
            one, other = clouds
            found += [(number, row) for row in of_both(one, other, asked, draws)]
            with about(f"{one.name} (x) and {other.name} (y)"):
                found += [(number, row) for row in of_gap(one, other, asked, draws)]
    found.sort(key=lambda each: (asked.index(each[1].measure), each[1].modality, each[0]))
    out = dropped.nonzero().flatten()
    notes = (f"{len(out)} of {len(dropped)} examples repeat others and were left out",) if len(out) else ()
    return GeometryComparison(
        measure=[row.measure for _, row in found],
        modality=[row.modality for _, row in found],
        state=[number for number, _ in found],
        value=torch.tensor([row.value for _, row in found], dtype=torch.float64),
        error=torch.tensor([row.error for _, row in found], dtype=torch.float64),
        chance=torch.tensor([row.chance for _, row in found], dtype=torch.float64),
        p=torch.tensor([row.p for _, row in found], dtype=torch.float64),
        n=n,
        dropped=out,
        provenance=Provenance(seed=seed, notes=notes),
    )


def _known(metrics: Iterable[str], labels: object) -> list[str]:
    known = (*ALONE, *MEASURES, *GAPS, *UNIONS)
    if not isinstance(metrics, Iterable):
        raise InputError(f"metrics={metrics!r}: expected names, some of {known}")
    asked = [metrics] if isinstance(metrics, str) else list(metrics)
    unknown = [name for name in asked if not isinstance(name, str) or name not in known]
    if unknown or not asked:
        raise InputError(f"metrics={asked!r}: {unknown!r} are unknown, use some of {known}")
    if "label_overlap" in asked and labels is None:
        raise InputError("metrics has 'label_overlap' and labels=None: pass one label an example")
    return list(dict.fromkeys(asked))


def _check_enough(n: int, asked: Sequence[str]) -> None:
    """Refuse measures of more neighbours than there are, which a caller of `compare` does not choose."""
    for name in asked:
        k = neighbours_of(name)
        if k >= n:
            raise InputError(
                f"{name!r} takes {k} neighbours and there are {n} examples: pass {k + 1} or more, or leave it out"
            )


def _count(permutations: int) -> int:
    if isinstance(permutations, bool) or not isinstance(permutations, int | np.integer) or permutations < 1:
        raise InputError(f"permutations={permutations!r}: a chance level takes an integer of 1 or more")
    return int(permutations)


def _distinct(first: Tensor, second: Tensor, asked: Sequence[str]) -> Int[Tensor, " kept"]:
    """The examples to keep: all, or those that are distinct in all states of both modalities where a metric needs that."""
    n = first.shape[1]
    needed = sorted({*DIMENSIONS, "id_correlation", "homogeneity"} & set(asked))
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
