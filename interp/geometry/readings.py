"""Readings: one measure at one state, with its error, its chance level and p, as `compare` lists them.

Errors are those of an estimator where it has one, else from half-samples. The chance level is the mean over the draws of
the measure's null (`interp.geometry.registry`), and p the share of draws that reach the value, the value itself counted.
One graph of neighbours is computed for each cloud and metric, of all examples and of each half, and shared by all measures.
A reading keeps its draws, which are the same shuffles at all states, and its values in halves or the influence of each example,
from which the same measure of another model is compared in pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.geometry.dimension import Estimate
from interp.geometry.layer_grids import LayerStacks, Resampling
from interp.geometry.modality import FIELDS, ModalityGap
from interp.geometry.neighbors import Neighbors, nearest_neighbors
from interp.geometry.registry import OF_TWO, REGISTRY, Measure
from interp.geometry.shuffles import cell_p
from interp.statistics.half_samples import reach, standard_error, wide


@dataclass(frozen=True, eq=False)
class Reading:
    """One measure of one modality or of both at one state; NaN for what is unknown. `warning` is that of a dimension.

    `null` are the values of the draws, `parts` those of the half-samples, and `influence` the part of each example, whose mean
    is the value; None where there are none.
    """

    measure: str
    modality: str
    state: int
    value: float
    error: float
    chance: float
    p: float = math.nan
    warning: str = ""
    null: Float[Tensor, " draw"] | None = None
    parts: Float[Tensor, " half"] | None = None
    influence: Float[Tensor, " example"] | None = None


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
    def halves(self) -> list[StateCloud]:
        """The cloud of each half of the examples, with graphs of its own."""
        return [
            replace(self, cloud=self.cloud[half], labels=None if self.labels is None else self.labels[half.numpy()])
            for half in self.resampling.halves
        ]

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

    def value(of: StateCloud, near: int | None = k) -> Any:
        labels = () if measure.kind != "labelled" else (of.labels,)
        return measure.value(of.input_of(measure), *labels, k=near)

    result = value(cloud)
    if isinstance(result, Estimate):
        parts = _known_parts(lambda half: value(half, k and reach(k, n, len(half.cloud))).value, cloud.halves)
        number, error, warning = result.value, result.error, result.warning
    else:
        parts = _parts([value(half, k and reach(k, n, len(half.cloud))) for half in cloud.halves])
        number, error, warning = result, _error(parts, n), ""
    place = measure.name, cloud.modality, cloud.state, number, error
    if measure.null is None:
        return Reading(*place, measure.level(n, k), warning=warning, parts=parts)
    if measure.null == "permute":
        control = value(cloud.permuted)
        chance = control.value if isinstance(control, Estimate) else control
        return Reading(*place, chance, warning=warning, parts=parts)
    assert cloud.labels is not None
    x, labels, orders = cloud.input_of(measure), cloud.labels, resampling.orders(n)
    if measure.shuffles is not None:
        return _tested(place, measure.shuffles(x, labels, orders, k), parts)
    return _tested(place, _parts([measure.value(x, labels[order.numpy()], k=k) for order in orders]), parts)


def of_path(measure: Measure, modality: str, states: Tensor, resampling: Resampling) -> Iterator[Reading]:
    """The readings of each example's path, at every state that lies between two others.

    The null is the path of strangers: each state comes from another example.
    """
    rng = torch.Generator().manual_seed(resampling.seed)
    if resampling.strata is None:
        orders = [torch.randperm(states.shape[1], generator=rng) for _ in states]
    else:
        orders = replace(resampling, permutations=len(states)).orders(states.shape[1])
    strangers = torch.stack([state[order.to(states.device)] for state, order in zip(states, orders, strict=True)])
    numbers, control = (measure.path_values(path) for path in (states, strangers))
    for state, (own, other) in enumerate(zip(numbers, control, strict=True), start=1):
        known = own[own.isfinite()]
        error = float(known.std()) / math.sqrt(len(known)) if len(known) > 1 else math.nan
        value = float(known.mean()) if len(known) else math.nan
        chance = measure.level(len(own), None) if measure.null is None else float(other.nanmean())
        influence = own.double().cpu() if len(known) == len(own) else None
        yield Reading(measure.name, modality, state, value, error, chance, influence=influence)


def of_two(measure: Measure, one: StateCloud, other: StateCloud) -> Reading:
    """The reading of both clouds together: of a pair turned so that more is more alike, of a gap as it is."""
    measure, n, resampling = measure.compared, len(one.cloud), one.resampling
    inputs = []
    for cloud in (one, other):
        with naming(cloud.name):
            inputs.append(cloud.input_of(measure))
    stacks = LayerStacks(inputs[:1], inputs[1:], ([one.name], [other.name]))
    grid = measure.grid(stacks, resampling.halves, measure.k)
    parts = grid.parts.flatten()
    influence = None if grid.influence is None else grid.influence[0, 0]
    place = measure.name, "both", one.state, float(grid.values), _error(parts, n)
    if measure.null is None:
        return Reading(*place, measure.level(n, measure.k), parts=parts, influence=influence)
    return _tested(place, measure.null_values(stacks, measure.k, resampling).flatten(), parts, influence)


def of_gap(measure: Measure, gap: ModalityGap, one: StateCloud, other: StateCloud) -> Reading:
    """The reading of one of the measures that a `ModalityGap` has.

    Its values in halves are computed on their own, but for separability, of which each takes as long as the whole.
    """
    n, resampling = gap.n, one.resampling
    value, error, chance, p = (getattr(gap, name) if name else math.nan for name in FIELDS[measure.name])
    parts, null = None, None
    if measure.name != "separability":
        parts = _parts([measure.value(x.cloud, y.cloud) for x, y in zip(one.halves, other.halves, strict=True)])
        error = _error(parts, n) if math.isnan(error) else error
    if math.isfinite(p):
        stacks = LayerStacks([one.cloud], [other.cloud], ([one.name], [other.name]))
        null = measure.null_values(stacks, None, resampling).flatten()
    level = measure.level(n, None) if math.isnan(chance) else chance
    return Reading(measure.name, "both", one.state, value, error, level, p, null=null, parts=parts)


def _tested(
    place: tuple[str, str, int, float, float], null: Tensor, parts: Tensor | None, influence: Tensor | None = None
) -> Reading:
    """A reading with the mean of its null and the p of its value, the last but one of `place`."""
    p = float(cell_p(torch.tensor(place[3], dtype=torch.float64), null))
    return Reading(*place, float(null.mean()), p, null=null, parts=parts, influence=influence)


def _parts(values: Sequence[float]) -> Float[Tensor, " half"]:
    return torch.tensor(values, dtype=torch.float64)


def _known_parts(
    function: Callable[[StateCloud], float], halves: Sequence[StateCloud]
) -> Float[Tensor, " half"] | None:
    """The values of halves; None where a half has too few examples for the measure."""
    try:
        return _parts([function(half) for half in halves])
    except InputError:
        return None


def _error(parts: Tensor, n: int) -> float:
    """The standard error from half-samples, NaN without."""
    return float(standard_error(parts, n)) if len(parts) > 1 else math.nan
