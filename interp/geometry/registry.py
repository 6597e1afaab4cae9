"""The registry of measures: every measure by its name, with what a reader needs to make sense of its numbers.

A measure is a function that returns one number. Its entry (`Measure`) says the rest, and `compare`, `alignment_matrix`, the
figures and the docs read it from here. The kind of a measure is what its function takes:

- "cloud": `f(x)`, one cloud `[example, feature]`.
- "labelled": `f(x, labels)`, one cloud and a label for each example.
- "path": `f(states)`, a stack `[state, example, feature]`; it returns a number for each example at each state that lies
  between two others, `[state - 2, example]`.
- "pair": `f(x, y)`, two clouds of the same examples, of any widths.
- "gap": `f(x, y)`, two clouds of the same examples in one space of features.

No number means anything without the level that it reaches where there is nothing to find. The null says how to get there:

- "permute": each feature of the cloud is shuffled among the examples on its own. Once, and without a test.
- "shuffle": the rows of the second cloud, or the labels, or the states of a path, are put in another order.
- "exchange": each example's rows change sides between the two clouds with probability one half.
- None: there are no draws and no p, and `chance(n, k)` gives the level.

A measure of two clouds may count up or down with likeness. Tables of likeness, all numbers of "pair" measures and all of
`alignment_matrix`, hold `Measure.turned`, of which more is more alike: 1 less the disparity of `procrustes`, 1 less the mean
information imbalance, minus a distance. `compare` gives gaps as they are.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import as_number, checked_choice, checked_int, checked_number
from interp.displays import Display
from interp.errors import InputError, shown
from interp.geometry.clouds import check_one_space
from interp.geometry.clusters import density_peaks, homogeneity
from interp.geometry.correlation import id_correlation
from interp.geometry.dimension import Estimate, intrinsic_dimension
from interp.geometry.distances import PairTable, distances, inner_products, rbf
from interp.geometry.imbalance import information_imbalance
from interp.geometry.kernels import cka, cknna, distance_correlation, rsa
from interp.geometry.layer_grids import (
    NO_HALVES,
    LayerGrid,
    LayerStacks,
    Resampling,
    exchanged_values,
    imbalance_grid,
    kernel_grid,
    overlap_grid,
    pairwise_grid,
    shuffled_values,
    with_graphs,
)
from interp.geometry.modality import centroid_distance, corrected_cosine, paired_cosine, separability
from interp.geometry.neighbors import Graph
from interp.geometry.overlap import cycle_knn, label_overlap, mutual_knn, neighbor_overlap, overlap_chance
from interp.geometry.shuffles import (
    cosine_shuffles,
    cycle_shuffles,
    imbalance_shuffles,
    kernel_shuffles,
    label_shuffles,
    overlap_shuffles,
    rank_shuffles,
)
from interp.geometry.spectra import curvature_per_example, participation_ratio, spectral_entropy
from interp.geometry.subspaces import principal_angles, procrustes, pwcca, svcca

# The nulls that each kind of measure can have.
KINDS: dict[str, tuple[str, ...]] = {
    "cloud": ("permute",),
    "labelled": ("shuffle",),
    "path": ("shuffle",),
    "pair": ("shuffle",),
    "gap": ("exchange", "shuffle"),
}
OF_TWO = ("pair", "gap")
_FLOOR_DRAWS = 3
_UNIT, _SIGNED, _POSITIVE = (0.0, 1.0), (-1.0, 1.0), (0.0, math.inf)


@dataclass(frozen=True, eq=False)
class Measure(Display):
    """One measure: its function, what kind of clouds it takes, and what its numbers are read against.

    - `name`, `function`, `kind` and `null` as the module explains them. A function of neighbours takes their number as its last
      argument; `k` is the default, None where there are no neighbours. A function may return an `Estimate` with its own error.
    - `chance(n, k)`: the level for n examples, where a formula gives it. `alignment_matrix` then draws no null.
    - `distinct`: whether `compare` leaves equal rows out; a matrix takes all rows.
    - `bounds`: the least and the largest value. Intervals and axes end there.
    - `alike`: "higher" where more is more alike, "lower" for a distance, which is turned to `turn` less its value.
    - `subsamples`: the number of halves for an interval in `alignment_matrix`; fewer for what is slow.
    - `title`: its name in figures.

    The rest is for measures that share work. `graph` is the metric of the graph of neighbours that the function takes in place
    of a cloud; a pair needs `layers` with it. `layers(stacks, halves, k)` computes the turned measure for two whole stacks, and
    `shuffles(stacks, orders, k)` the same after each of many shuffles, for labels `shuffles(x, labels, orders, k)`.
    """

    name: str
    function: Callable[..., Any]
    kind: str
    null: str | None = None
    chance: Callable[[int, Any], float] | None = None
    k: int | None = None
    distinct: bool = False
    bounds: tuple[float, float] = (-math.inf, math.inf)
    alike: str = "higher"
    turn: float = 0.0
    subsamples: int = 10
    title: str = ""
    graph: str | None = None
    layers: Callable[..., LayerGrid] | None = None
    shuffles: Callable[..., Tensor] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"name={shown(self.name)}: expected a word that no other measure has")
        if not callable(self.function):
            raise InputError(f"function={shown(self.function)}: expected a function that returns one number")
        checked_choice(self.kind, "kind", KINDS)
        checked_choice(self.alike, "alike", ("higher", "lower"))
        if self.null is not None:
            checked_choice(self.null, f"kind={self.kind!r} with null", KINDS[self.kind])
        elif self.chance is None:
            raise InputError(f"null=None and chance=None for {self.name!r}: pass one, {KINDS[self.kind]} or a formula")
        if self.k is not None:
            checked_int(self.k, "k", least=1)
        checked_int(self.subsamples, "subsamples", least=2)
        checked_number(self.turn, "turn")
        ends = [as_number(bound) for bound in self.bounds] if isinstance(self.bounds, tuple | list) else []
        if len(ends) != 2 or None in ends or not ends[0] < ends[1]:  # type: ignore[operator]
            raise InputError(f"bounds={shown(self.bounds)}: expected the least and the largest value, as in (0, 1)")
        if self.layers is not None and self.kind != "pair":
            raise InputError(f"layers= for a measure of kind {self.kind!r}: only measures of pairs have their own grid")
        if not self.title:
            object.__setattr__(self, "title", self.name.replace("_", " "))

    def value(self, *inputs: Any, k: int | None = None) -> Any:
        """The number of these clouds (and labels), or the `Estimate`, with `k` neighbours where it takes them."""
        if self.kind == "gap":
            check_one_space(*inputs[:2])
        result = self.function(*inputs) if k is None else self.function(*inputs, k)
        if isinstance(result, Estimate):
            return result
        number = as_number(result)
        if number is None:
            raise InputError(f"measure {self.name!r} returned {shown(result)}: expected one number, such as a float")
        return number

    def path_values(self, states: Float[Tensor, "state n d"]) -> Float[Tensor, "inner n"]:
        """The numbers of a measure of paths, one for each example at each state between two others."""
        result = self.function(states)
        numbers = result if isinstance(result, Tensor) else torch.from_numpy(np.asarray(result))
        expected = (len(states) - 2, states.shape[1])
        if numbers.shape != expected:
            raise InputError(f"measure {self.name!r} returned {shown(numbers)}: expected shape {expected}")
        return numbers if numbers.is_floating_point() else numbers.double()

    def level(self, n: int, k: int | None) -> float:
        """The chance level by formula; NaN where there is none."""
        if self.chance is None:
            return math.nan
        level = as_number(self.chance(n, k))
        if level is None:
            raise InputError(f"chance of measure {self.name!r} is not a number: expected a formula chance(n, k)")
        return level

    @property
    def turned(self) -> Measure:
        """This measure as one of likeness: itself where higher is more alike, else `turn` less its value."""
        if self.alike == "higher":
            return self
        low, high = self.bounds
        return replace(
            self,
            function=lambda *inputs: self.turn - self.value(*inputs),
            bounds=(self.turn - high, self.turn - low),
            alike="higher",
            title=f"{self.turn:g} - {self.title}" if self.turn else f"minus {self.title}",
        )

    @property
    def compared(self) -> Measure:
        """This measure as `compare` gives it: turned for pairs, as it is for all other kinds."""
        return self.turned if self.kind == "pair" else self

    def ready(self, stacks: LayerStacks, k: int | None) -> LayerStacks:
        """The stacks with graphs in place of clouds where this measure takes them: a grid and its null then share them."""
        if self.graph is None or self.layers is None or k is None:
            return stacks
        return with_graphs(stacks, k, self.graph)

    def grid(self, stacks: LayerStacks, halves: Int[Tensor, "s h"], k: int | None) -> LayerGrid:
        """The measure of each cloud of the one stack with each of the other, among all examples and among each half."""
        if self.layers is not None:
            return self.layers(stacks, halves, k)
        return pairwise_grid(stacks, halves, k, self._of_two)

    def null_values(self, stacks: LayerStacks, k: int | None, resampling: Resampling) -> Float[Tensor, "draw a b"]:
        """The values of the grid under the null, one layer of the result for each draw."""
        if self.null == "exchange":
            return exchanged_values(stacks, resampling, lambda x, y: self._of_two(x, y, k))
        if self.shuffles is not None:
            return self.shuffles(stacks, resampling.orders(stacks.n), k)
        return shuffled_values(stacks, resampling, lambda shuffled: self.grid(shuffled, NO_HALVES, k))

    def floor(
        self, stacks: LayerStacks, k: int | None, resampling: Resampling, null: Float[Tensor, "draw a b"] | None = None
    ) -> Float[Tensor, "a b"]:
        """The chance level of each pair of clouds: by formula where there are no strata, else the mean over the null, of a few
        draws where there is none."""
        if self.chance is not None and resampling.strata is None:
            return torch.full((len(stacks.first), len(stacks.second)), self.level(stacks.n, k), dtype=torch.float64)
        if null is not None:
            return null.mean(dim=0)
        return self.null_values(stacks, k, replace(resampling, permutations=_FLOOR_DRAWS)).mean(dim=0)

    def _of_two(self, x: Tensor, y: Tensor, k: int | None) -> float:
        return self.value(x, y, k=k)


_BY_KIND: dict[str, dict[str, Measure]] = {kind: {} for kind in KINDS}
REGISTRY: Mapping[str, Measure] = MappingProxyType(ChainMap(*reversed(_BY_KIND.values())))
MEASURES: Mapping[str, Measure] = MappingProxyType(_BY_KIND["pair"])


def register_measure(
    name: str, function: Callable[..., Any], kind: str, null: str | None = None, **details: Any
) -> Measure:
    """Add a measure of your own, which then works in `compare`, `alignment_matrix` (kinds "pair" and "gap") and figures.

    The energy distance of two clouds in one space, 2 E|X - Y| - E|X - X'| - E|Y - Y'|, is 0 for one distribution and
    positive for any two that differ. Its null exchanges the clouds of some examples at random: both clouds then have one
    distribution.

    >>> import torch
    >>> def energy_distance(x, y):
    ...     pairs = len(x) * (len(x) - 1)
    ...     return 2 * torch.cdist(x, y).mean() - torch.cdist(x, x).sum() / pairs - torch.cdist(y, y).sum() / pairs
    >>> measure = register_measure("energy_distance", energy_distance, kind="gap", null="exchange", alike="lower")

    >>> from interp.geometry import alignment_matrix, compare
    >>> images, captions = torch.randn(2, 3, 60, 4, generator=torch.Generator().manual_seed(0))
    >>> captions[2] += 2  # a gap at state 2 alone
    >>> frame = compare(images, captions, metrics=["energy_distance"]).to_frame()
    >>> frame[["value", "chance", "p"]].iloc[2].round(3).tolist()
    [4.403, 0.048, 0.005]
    >>> matrix = alignment_matrix(images, captions, metric="energy_distance")  # minus the distance: more is more alike
    >>> [round(value) for value in matrix.values[0].tolist()]
    [0, 0, -4]
    >>> figure = matrix.plot()
    >>> unregister_measure("energy_distance")

    `function(x, y)` gets tensors `[example, feature]` with paired rows (for `kind="cloud"` one, for "labelled" one and the
    labels) and returns one number. With `k=` in `details` it gets a number of neighbours as its last argument. `null` is
    "permute" for a cloud, "shuffle" for labels, paths and pairs, "exchange" or "shuffle" for a gap; with None pass a formula
    `chance(n, k)`. Further `details` are the fields of `Measure`: `chance`, `k`, `distinct`, `bounds`, `alike`, `turn`,
    `subsamples`, `title`, `graph`, `layers`. Errors are those of half-samples.

    Raises `InputError` for a name that another measure has, an unknown kind, null or detail, and, once the measure is used,
    for a function that does not return one number.
    """
    unknown = sorted(set(details) - {item.name for item in fields(Measure)})
    if unknown:
        raise InputError(f"register_measure() has no detail {unknown!r}: use the fields of Measure")
    measure = Measure(name, function, kind, null, **details)
    if name in REGISTRY:
        raise InputError(f"name={name!r} is the name of a measure of kind {REGISTRY[name].kind!r}: choose another")
    _BY_KIND[kind][name] = measure
    return measure


def unregister_measure(name: str) -> None:
    """Remove a measure that `register_measure` added; raises `InputError` for any other name."""
    if not isinstance(name, str) or name in _BUILT_IN or name not in REGISTRY:
        raise InputError(f"name={name!r}: expected the name of a measure that register_measure() added")
    del _BY_KIND[REGISTRY[name].kind][name]


def measure_of(name: str) -> Measure:
    """The measure of two clouds of this name; raises `InputError`, with all names, for any other."""
    known = tuple(each for each, measure in REGISTRY.items() if measure.kind in OF_TWO)
    if not isinstance(name, str) or name not in known:
        raise InputError(f"metric={name!r} is unknown: use one of {known}")
    return REGISTRY[name]


# The measures of this package -----------------------------------------------------------------------------------------


def _zero(n: int, k: int | None) -> float:
    return 0.0


def _mean_imbalance(x: Tensor, y: Tensor, k: int) -> float:
    return sum(information_imbalance(x, y, k)) / 2


def _id_correlation(x: Tensor, y: Tensor) -> float:
    return id_correlation(x, y, permutations=0).value


def _principal_angle(x: Tensor, y: Tensor) -> float:
    return float(torch.as_tensor(principal_angles(x, y)).mean())


def _homogeneity(x: Tensor, y: Tensor) -> float:
    """How far clusters of density peaks of both clouds as one have members of one modality each."""
    return homogeneity(density_peaks(torch.cat([x, y.to(x)])), np.repeat(["x", "y"], [len(x), len(y)]))


def _dimension(method: str, k: int) -> Measure:
    function, title = partial(_estimate, method=method), f"dimension ({method.upper()})"
    return _cloud(method, function, k=k, distinct=True, bounds=_POSITIVE, title=title, graph="euclidean")


def _estimate(graph: Graph, k: int, method: str) -> Estimate:
    """The dimension from `k` neighbours: GRIDE from the ranks k / 2 and k; 2NN has always two."""
    k = max(2, k)
    return intrinsic_dimension(graph, method, n1=k // 2, n2=k, k=k)


_cloud = partial(Measure, kind="cloud", null="permute")
_pair = partial(Measure, kind="pair", null="shuffle")
_turned = partial(_pair, alike="lower", turn=1.0)
_gap = partial(Measure, kind="gap", alike="lower")
_overlap = partial(_pair, chance=overlap_chance, bounds=_UNIT, subsamples=50)
_kernel = partial(_pair, chance=_zero, bounds=_SIGNED)


def _linear(x: Tensor, name: str) -> PairTable:
    return inner_products(x)


def _gaussian(x: Tensor, name: str) -> PairTable:
    return rbf(x, None, name)


def _distances(x: Tensor, name: str) -> PairTable:
    return distances(x)


def _of_tables(table: Callable[[Tensor, str], PairTable]) -> dict[str, Callable[..., Any]]:
    return {"layers": partial(kernel_grid, table=table), "shuffles": partial(kernel_shuffles, table=table)}


def _of_graphs(metric: str) -> dict[str, Any]:
    grid, shuffles = partial(overlap_grid, metric=metric), partial(overlap_shuffles, metric=metric)
    return {"graph": metric, "layers": grid, "shuffles": shuffles}


_ENTRIES = (
    _dimension("2nn", 2),
    _dimension("gride", 32),
    _dimension("mle", 20),
    _cloud("participation_ratio", participation_ratio, bounds=(1.0, math.inf)),
    _cloud("spectral_entropy", spectral_entropy, bounds=_UNIT),
    Measure("curvature", curvature_per_example, "path", "shuffle", bounds=(0.0, math.pi), title="curvature (radians)"),
    Measure(
        "label_overlap",
        label_overlap,
        "labelled",
        "shuffle",
        k=30,
        bounds=_UNIT,
        graph="euclidean",
        shuffles=label_shuffles,
    ),
    _overlap("neighbor_overlap", neighbor_overlap, k=30, **_of_graphs("euclidean")),
    _overlap("mutual_knn", mutual_knn, k=10, title="mutual kNN", **_of_graphs("cosine")),
    _pair("cycle_knn", cycle_knn, k=10, bounds=_UNIT, title="cycle kNN", shuffles=cycle_shuffles),
    _pair("cknna", cknna, k=10, bounds=_SIGNED, title="CKNNA"),
    _turned(
        "information_imbalance",
        _mean_imbalance,
        chance=_zero,
        k=1,
        bounds=(0.0, 2.0),
        layers=imbalance_grid,
        shuffles=imbalance_shuffles,
    ),
    _kernel("cka", cka, title="CKA", **_of_tables(_linear)),
    _kernel("cka_rbf", partial(cka, kernel="rbf"), title="CKA (RBF kernel)", **_of_tables(_gaussian)),
    _pair(
        "cka_biased",
        partial(cka, debiased=False),
        bounds=_UNIT,
        title="CKA (biased)",
        shuffles=partial(kernel_shuffles, table=_linear, debiased=False),
    ),
    _kernel(
        "distance_correlation", distance_correlation, title="squared distance correlation", **_of_tables(_distances)
    ),
    _kernel("rsa", rsa, title="RSA", shuffles=rank_shuffles),
    _pair("svcca", svcca, bounds=_UNIT, title="SVCCA"),
    _pair("pwcca", pwcca, bounds=_UNIT, title="PWCCA"),
    _turned("procrustes", procrustes, bounds=_UNIT),
    _pair("id_correlation", _id_correlation, distinct=True, title="correlation by dimension"),
    Measure("paired_cosine", paired_cosine, "gap", "shuffle", bounds=_SIGNED, shuffles=cosine_shuffles),
    Measure("corrected_cosine", corrected_cosine, "gap", chance=_zero, bounds=(-2.0, 2.0)),
    _gap("centroid_distance", centroid_distance, null="exchange", bounds=_POSITIVE),
    _gap("separability", separability, chance=lambda n, k: 0.5, bounds=_UNIT, turn=1.0),
    _gap("principal_angle", _principal_angle, null="exchange", bounds=(0.0, math.pi / 2)),
    _gap("homogeneity", _homogeneity, null="exchange", distinct=True, bounds=_UNIT, turn=1.0),
)
for _entry in _ENTRIES:
    _BY_KIND[_entry.kind][_entry.name] = _entry
_BUILT_IN = frozenset(REGISTRY)
