"""Readings: one measure at one state, with its error, its chance level and p, as `compare` lists them.

Errors are those of an estimator where it has one, else from half-samples. The chance level is the mean over the draws of
the measure's null (`interp.geometry.registry`), and p the share of draws that reach the value, the value itself counted.
One graph of neighbours is computed for each cloud and metric, and shared by all measures; a graph is shuffled by renaming
its points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import InputError
from interp.geometry.dimension import Estimate
from interp.geometry.layer_grids import LayerStacks, Resampling
from interp.geometry.modality import FIELDS, ModalityGap
from interp.geometry.neighbors import Neighbors, nearest_neighbors
from interp.geometry.registry import OF_TWO, REGISTRY, Measure
from interp.statistics.half_samples import reach, standard_error, wide
from interp.statistics.permutation import permutation_p

_ROUNDING = 1e-12


@dataclass(frozen=True)
class Reading:
    """One measure of one modality or of both at one state; NaN for what is unknown. `warning` is that of a dimension."""

    measure: str
    modality: str
    state: int
    value: float
    error: float
    chance: float
    p: float = math.nan
    warning: str = ""


@dataclass(frozen=True, eq=False)
class StateCloud:
    """One modality's cloud at one state, with the labels of its examples and graphs that are computed once."""

    modality: str
    state: int
    cloud: Tensor
    labels: np.ndarray | None
    resampling: Resampling

    @property
    def name(self) -> str:
        """Its name in error messages."""
        return f"{self.modality} state {self.state}"

    @cached_property
    def _graphs(self) -> dict[str, Neighbors]:
        return {}

    def graph(self, metric: str) -> Neighbors:
        """The graph of its neighbours, of enough of them for every registered measure and for half-samples."""
        if metric not in self._graphs:
            users = [measure for measure in REGISTRY.values() if measure.graph == metric]
            most = max(wide(each.k or 1) if each.kind in OF_TWO else each.k or 1 for each in users)
            self._graphs[metric] = nearest_neighbors(self.cloud, min(most, len(self.cloud) - 1), metric)
        return self._graphs[metric]

    def input_of(self, measure: Measure) -> Any:
        """The input of a measure: the graph, which others share, or the cloud."""
        if measure.graph is None or (measure.kind in OF_TWO and measure.layers is None):
            return self.cloud
        return self.graph(measure.graph)

    @cached_property
    def permuted(self) -> StateCloud:
        """The cloud after a shuffle of each feature among the examples on its own."""
        rng = torch.Generator().manual_seed(self.resampling.seed)
        columns = [column[torch.randperm(len(column), generator=rng).to(column.device)] for column in self.cloud.T]
        return StateCloud(self.modality, self.state, torch.stack(columns, dim=1), None, self.resampling)


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Put the clouds in question before the message of an error."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def of_one(measure: Measure, cloud: StateCloud) -> Reading:
    """The reading of one cloud alone, or of one with labels."""
    n, k, resampling = len(cloud.cloud), measure.k, cloud.resampling
    labels = cloud.labels if measure.kind == "labelled" else None

    def value(x: Any, rows: Any = slice(None), near: int | None = k) -> Any:
        return measure.value(x, *(() if labels is None else (labels[rows],)), k=near)

    result = value(cloud.input_of(measure))
    estimate = isinstance(result, Estimate)
    if estimate:
        error = result.error
    else:
        parts = [value(cloud.cloud[half], half.numpy(), k and reach(k, n, len(half))) for half in resampling.halves]
        error = _error(parts, n)
    place = measure.name, cloud.modality, cloud.state, result.value if estimate else result, error
    warning = result.warning if estimate else ""
    if measure.null is None:
        return Reading(*place, measure.level(n, k), warning=warning)
    if measure.null == "permute":
        control = value(cloud.permuted.input_of(measure))
        return Reading(*place, control.value if estimate else control, warning=warning)
    return _tested(place, [value(cloud.input_of(measure), order.numpy()) for order in resampling.orders(n)])


def of_path(measure: Measure, modality: str, states: Tensor, resampling: Resampling) -> Iterator[Reading]:
    """The readings of each example's path, at every state that lies between two others.

    The null is the path of strangers: each state comes from another example.
    """
    rng = torch.Generator().manual_seed(resampling.seed)
    orders = [torch.randperm(states.shape[1], generator=rng).to(states.device) for _ in states]
    strangers = torch.stack([state[order] for state, order in zip(states, orders, strict=True)])
    numbers, control = (measure.path_values(path) for path in (states, strangers))
    for state, (own, other) in enumerate(zip(numbers, control, strict=True), start=1):
        known = own[own.isfinite()]
        error = float(known.std()) / math.sqrt(len(known)) if len(known) > 1 else math.nan
        value = float(known.mean()) if len(known) else math.nan
        chance = measure.level(len(own), None) if measure.null is None else float(other.nanmean())
        yield Reading(measure.name, modality, state, value, error, chance)


def of_two(measure: Measure, one: StateCloud, other: StateCloud) -> Reading:
    """The reading of both clouds together: of a pair turned so that more is more alike, of a gap as it is."""
    measure, n, resampling = measure.compared, len(one.cloud), one.resampling
    inputs = []
    for cloud in (one, other):
        with naming(cloud.name):
            inputs.append(cloud.input_of(measure))
    stacks = LayerStacks(inputs[:1], inputs[1:], ([one.name], [other.name]))
    grid = measure.grid(stacks, resampling.halves, measure.k)
    place = measure.name, "both", one.state, float(grid.values), _error(grid.parts.flatten().tolist(), n)
    if measure.null is None:
        return Reading(*place, measure.level(n, measure.k))
    return _tested(place, measure.null_values(stacks, measure.k, resampling).flatten().tolist())


def of_gap(measure: Measure, gap: ModalityGap, state: int) -> Reading:
    """The reading of one of the measures that a `ModalityGap` has."""
    value, error, chance, p = (getattr(gap, name) if name else math.nan for name in FIELDS[measure.name])
    return Reading(
        measure.name, "both", state, value, error, chance if chance == chance else measure.level(gap.n, None), p
    )


def _tested(place: tuple[str, str, int, float, float], null: Sequence[float]) -> Reading:
    """A reading with the mean of its null and the p of its value, the last but one of `place`."""
    reached = sum(drawn >= place[3] - _ROUNDING for drawn in null)
    # A value that is NaN has no p, and neither has one whose null is NaN.
    known = math.isfinite(place[3]) and all(map(math.isfinite, null))
    return Reading(*place, float(np.mean(null)), permutation_p(reached, len(null)) if known else math.nan)


def _error(parts: Sequence[float], n: int) -> float:
    """The standard error from half-samples, NaN without."""
    return float(standard_error(torch.tensor(parts, dtype=torch.float64), n)) if len(parts) > 1 else math.nan
