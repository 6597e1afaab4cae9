"""Each measure with its error and its control, at one layer: what `compare` calls state by state.

A control is what a measure gives where there is nothing to find. For one cloud it is the same cloud with every feature
shuffled among the examples on its own: the features stay what they are, their ties go. For two it is the same clouds with
the rows of one shuffled. A graph of neighbours that was made once is shuffled by renaming its points, not made again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import InputError
from interp.geometry.clusters import density_peaks, homogeneity
from interp.geometry.dimension import intrinsic_dimension
from interp.geometry.measures import MEASURES, Measure
from interp.geometry.modality import ModalityGap, modality_gap
from interp.geometry.neighbors import Neighbors, nearest_neighbors
from interp.geometry.overlap import label_overlap
from interp.geometry.spectra import curvature_per_example, participation_ratio, spectral_entropy
from interp.geometry.subspaces import principal_angles
from interp.statistics.half_samples import generator, reach, standard_error, wide

DIMENSIONS = {"2nn": 2, "gride": 32, "mle": 20}  # the neighbours each takes
SPECTRA: dict[str, Callable[[Tensor], float]] = {
    "participation_ratio": participation_ratio,
    "spectral_entropy": spectral_entropy,
}
PATHS = ("curvature",)
LABELLED = ("label_overlap",)
ALONE = (*DIMENSIONS, *SPECTRA, *PATHS, *LABELLED)  # what is asked of one modality
LABEL_K = 30
GAPS: dict[str, Callable[[ModalityGap], tuple[float, float, float, float]]] = {
    "paired_cosine": lambda gap: (gap.paired_cosine, math.nan, gap.shuffled_cosine, gap.p),
    "corrected_cosine": lambda gap: (gap.corrected_cosine, gap.corrected_error, 0.0, math.nan),
    "centroid_distance": lambda gap: (gap.centroid_relative, math.nan, gap.centroid_chance, math.nan),
    "separability": lambda gap: (gap.separability, gap.separability_error, 0.5, math.nan),
}
_METRICS = {"neighbor_overlap": "euclidean", "mutual_knn": "cosine"}  # those that take a graph
_TOGETHER = 4  # shuffled clouds that are held at once


@dataclass(frozen=True)
class Number:
    """One measure of one modality or of both, with its standard error, its level for nothing, and p; NaN where unknown."""

    measure: str
    modality: str
    value: float
    error: float
    chance: float
    p: float


@dataclass(frozen=True, eq=False)
class Draws:
    """The halves of the examples that errors are read from, and how many shuffles controls take."""

    halves: Int[Tensor, "s h"]
    permutations: int
    seed: int

    def orders(self, n: int) -> list[Int[Tensor, " n"]]:
        """As many random orders of n examples; the same ones at every layer."""
        rng = generator(self.seed)
        return [torch.from_numpy(rng.permutation(n)) for _ in range(self.permutations)]


@dataclass(frozen=True, eq=False)
class Layer:
    """One modality's cloud at one state, with the labels of its examples and a graph that is made once."""

    modality: str
    state: int
    cloud: Tensor
    labels: np.ndarray | None

    @property
    def name(self) -> str:
        """How errors call it."""
        return f"{self.modality} state {self.state}"

    @cached_property
    def _graphs(self) -> dict[str, Neighbors]:
        return {}

    def graph(self, k: int, metric: str = "euclidean") -> Neighbors:
        """The graph of its neighbours, `k` or more."""
        known = self._graphs.get(metric)
        if known is None or known.k < k:
            most = max(k, *(wide(MEASURES[name].k or 1) for name, by in _METRICS.items() if by == metric))
            self._graphs[metric] = nearest_neighbors(self.cloud, max(k, min(most, len(self.cloud) - 1)), metric)
        return self._graphs[metric]

    def alone(self, seed: int) -> Tensor:
        """Its cloud with each feature shuffled among the examples on its own."""
        rng = torch.Generator().manual_seed(seed)
        columns = [column[torch.randperm(len(column), generator=rng).to(column.device)] for column in self.cloud.T]
        return torch.stack(columns, dim=1)


def neighbours_of(name: str) -> int:
    """How many neighbours a measure of this name takes; 0 where it takes none."""
    alone = {**DIMENSIONS, **dict.fromkeys(LABELLED, LABEL_K)}
    return alone[name] if name in alone else (MEASURES[name].k or 0) if name in MEASURES else 0


@contextmanager
def about(place: str) -> Iterator[None]:
    """Errors within say which clouds they are about."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def of_one(layer: Layer, asked: Sequence[str], draws: Draws) -> Iterator[Number]:
    """What is asked of one cloud alone."""
    wanted = [name for name in asked if name in {*DIMENSIONS, *SPECTRA}]
    strangers = Layer(layer.modality, layer.state, layer.alone(draws.seed), None) if wanted else layer
    for name in wanted:
        if name in DIMENSIONS:
            k = DIMENSIONS[name]
            found, control = (intrinsic_dimension(each.graph(k), name) for each in (layer, strangers))
            yield Number(name, layer.modality, found.value, found.error, control.value, math.nan)
        else:
            measure = SPECTRA[name]
            error = _error([measure(layer.cloud[half]) for half in draws.halves], len(layer.cloud))
            yield Number(name, layer.modality, measure(layer.cloud), error, measure(strangers.cloud), math.nan)
    if "label_overlap" in asked and layer.labels is not None:
        yield _labelled(layer, layer.labels, draws)


def _labelled(layer: Layer, labels: np.ndarray, draws: Draws) -> Number:
    graph = layer.graph(LABEL_K)
    value = label_overlap(graph, labels, LABEL_K)
    null = [label_overlap(graph, labels[order.numpy()], LABEL_K) for order in draws.orders(len(labels))]
    parts = [
        label_overlap(layer.cloud[half], labels[half.numpy()], reach(LABEL_K, len(labels), len(half)))
        for half in draws.halves
    ]
    return _number("label_overlap", layer.modality, value, _error(parts, len(labels)), null)


def of_path(modality: str, states: Tensor, draws: Draws) -> Iterator[tuple[int, Number]]:
    """The curvature of each example's path, at every state that has one before and one behind.

    Its control is the path of strangers: each state of another example, which turns by 120 degrees.
    """
    rng = torch.Generator().manual_seed(draws.seed)
    orders = [torch.randperm(states.shape[1], generator=rng).to(states.device) for _ in states]
    strangers = torch.stack([state[order] for state, order in zip(states, orders, strict=True)])
    angles, control = (torch.as_tensor(curvature_per_example(path)) for path in (states, strangers))
    for state, (own, other) in enumerate(zip(angles, control, strict=True), start=1):
        moved = own[own.isfinite()]
        error = float(moved.std()) / math.sqrt(len(moved)) if len(moved) > 1 else math.nan
        value = float(moved.mean()) if len(moved) else math.nan
        yield state, Number("curvature", modality, value, error, float(other.nanmean()), math.nan)


def of_both(one: Layer, other: Layer, asked: Sequence[str], draws: Draws) -> Iterator[Number]:
    """What is asked of both clouds together."""
    for name in asked:
        if name in MEASURES:
            measure = MEASURES[name]
            pair = [_taken(layer, name, measure) for layer in (one, other)]
            found = measure.grid(pair[:1], pair[1:], ([one.name], [other.name]), draws.halves, measure.k)
            null = _null(pair, (one.name, other.name), measure, draws)
            error = _error(found.parts.flatten().tolist(), len(one.cloud))
            yield _number(name, "both", float(found.values), error, null)


def _taken(layer: Layer, name: str, measure: Measure) -> Any:
    """What a measure takes: a graph that is shared, or the cloud."""
    if name not in _METRICS or measure.k is None:
        return layer.cloud
    with about(layer.name):
        return layer.graph(min(wide(measure.k), len(layer.cloud) - 1), _METRICS[name])


def _null(pair: Sequence[Any], names: tuple[str, str], measure: Measure, draws: Draws) -> list[float]:
    """The measure with the rows of the second shuffled."""
    one, other = pair
    orders = draws.orders(len(one))
    shuffled = (
        other.permuted(order) if isinstance(other, Neighbors) else other[order.to(other.device)] for order in orders
    )
    found: list[float] = []
    for start in range(0, len(orders), _TOGETHER):
        some = [next(shuffled) for _ in orders[start : start + _TOGETHER]]
        none = draws.halves[:0]
        called = [names[0]], [names[1]] * len(some)
        found += measure.grid([one], some, called, none, measure.k).values[0].tolist()
    return found


def of_gap(one: Layer, other: Layer, asked: Sequence[str], draws: Draws) -> Iterator[Number]:
    """What is asked of how far the two clouds are apart in one space."""
    if any(name in GAPS for name in asked):
        gap = modality_gap(one.cloud, other.cloud, shuffles=max(draws.permutations, 1), seed=draws.seed)
        for name in asked:
            if name in GAPS:
                yield Number(name, "both", *GAPS[name](gap))
    for name in asked:
        if name in UNIONS:
            measure = UNIONS[name]
            value = measure(one.cloud, other.cloud)
            error = _error([measure(one.cloud[half], other.cloud[half]) for half in draws.halves], len(one.cloud))
            swapped = generator(draws.seed).random((draws.permutations, len(one.cloud))) < 1 / 2
            null = [measure(*_exchanged(one.cloud, other.cloud, torch.from_numpy(swap))) for swap in swapped]
            yield _number(name, "both", value, error, null)


def _exchanged(one: Tensor, other: Tensor, swap: Tensor) -> tuple[Tensor, Tensor]:
    """Two clouds with the modalities of some examples exchanged."""
    there = swap.to(one.device)[:, None]
    return torch.where(there, other, one), torch.where(there, one, other)


def _homogeneity(x: Tensor, y: Tensor) -> float:
    """How far clusters of density peaks of both clouds as one hold one modality each."""
    if x.shape[1] != y.shape[1]:
        raise InputError(f"x has {x.shape[1]} features and y {y.shape[1]}: clusters are found in one space of features")
    return homogeneity(density_peaks(torch.cat([x, y.to(x)])), np.repeat(["x", "y"], [len(x), len(y)]))


def _mean_angle(x: Tensor, y: Tensor) -> float:
    return float(torch.as_tensor(principal_angles(x, y)).mean())


UNIONS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "homogeneity": _homogeneity,
    "principal_angle": _mean_angle,
}


def _number(measure: str, modality: str, value: float, error: float, null: Sequence[float]) -> Number:
    reached = sum(drawn >= value - 1e-12 for drawn in null)
    return Number(measure, modality, value, error, float(np.mean(null)), (reached + 1) / (len(null) + 1))


def _error(parts: Sequence[float], n: int) -> float:
    """The standard error from half-samples, NaN without."""
    return float(standard_error(torch.tensor(parts, dtype=torch.float64), n)) if len(parts) > 1 else math.nan
