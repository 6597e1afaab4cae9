"""The measures that compare two clouds, by name: what each is called, its chance level and how it is taken layer by layer.

All are turned so that more is more alike, so that matrices of them read the same way: of the disparity of `procrustes` and
the mean of both directions of `information_imbalance`, which are 0 for what is alike, 1 less the value is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.geometry.correlation import id_correlation
from interp.geometry.grids import Clouds, Grid, Names, imbalance_grid, kernel_grid, overlap_grid, pairwise_grid
from interp.geometry.kernels import cka, cknna, rbf, rsa
from interp.geometry.overlap import cycle_knn, overlap_chance
from interp.geometry.pairs import Table, distances, inner_products
from interp.geometry.subspaces import procrustes, pwcca, svcca
from interp.statistics.half_samples import generator

SHUFFLES = 3
SIGNED = (-1.0, 1.0)


@dataclass(frozen=True)
class Measure:
    """One way to compare two stacks of clouds.

    `grid(first, second, names, halves, k)` takes it, `names` one for each cloud; `k` is its number of neighbours, None where
    it takes none. `chance(n, k)` is what unrelated clouds give, None where that depends on the clouds and is found by
    shuffling rows. `bounds` are what it cannot exceed, `subsamples` how many halves an interval takes by default: fewer
    where they are dear.
    """

    grid: Callable[..., Grid]
    k: int | None = None
    chance: Callable[[int, Any], float] | None = None
    bounds: tuple[float, float] = (0.0, 1.0)
    subsamples: int = 10

    def floor(self, first: Clouds, second: Clouds, names: Names, k: int | None, seed: int) -> Float[Tensor, "a b"]:
        """What each pair of clouds would give if their rows had nothing to do with each other: by formula, or the mean over
        a few orders of the rows of `second`."""
        n = len(first[0])
        if self.chance is not None:
            return torch.full((len(first), len(second)), self.chance(n, k), dtype=torch.float64)
        rng = generator(seed)
        none = torch.zeros(0, 0, dtype=torch.int64)
        orders = [torch.from_numpy(rng.permutation(n)).to(second[0].device) for _ in range(SHUFFLES)]
        found = [self.grid(first, [cloud[order] for cloud in second], names, none, k).values for order in orders]
        return torch.stack(found).mean(dim=0)


def _zero(n: int, k: int | None) -> float:
    return 0.0


def _kernel(table: Callable[[Tensor, str], Table]) -> Measure:
    return Measure(partial(kernel_grid, table=table), None, _zero, SIGNED)


def _pairwise(measure: Callable[[Tensor, Tensor, Any], float], **fields: Any) -> Measure:
    return Measure(partial(pairwise_grid, measure=measure), **fields)


MEASURES: dict[str, Measure] = {
    "neighbor_overlap": Measure(partial(overlap_grid, metric="euclidean"), 30, overlap_chance, subsamples=50),
    "mutual_knn": Measure(partial(overlap_grid, metric="cosine"), 10, overlap_chance, subsamples=50),
    "cycle_knn": _pairwise(cycle_knn, k=10),
    "cknna": _pairwise(cknna, k=10, bounds=SIGNED),
    "information_imbalance": Measure(imbalance_grid, 1, _zero, SIGNED),
    "cka": _kernel(lambda x, _: inner_products(x)),
    "cka_rbf": _kernel(lambda x, name: rbf(x, None, name)),
    "cka_biased": _pairwise(lambda x, y, _: cka(x, y, debiased=False)),
    "distance_correlation": _kernel(lambda x, _: distances(x)),
    "rsa": _pairwise(lambda x, y, _: rsa(x, y), chance=_zero, bounds=SIGNED),
    "svcca": _pairwise(lambda x, y, _: svcca(x, y)),
    "pwcca": _pairwise(lambda x, y, _: pwcca(x, y)),
    "procrustes": _pairwise(lambda x, y, _: 1 - procrustes(x, y)),
    "id_correlation": _pairwise(
        lambda x, y, _: id_correlation(x, y, permutations=0).value, bounds=(-math.inf, math.inf)
    ),
}


def measure_of(name: str) -> Measure:
    """The measure of this name; raises `InputError`, with the names there are, where there is none."""
    if not isinstance(name, str) or name not in MEASURES:
        raise InputError(f"metric={name!r} is unknown: use one of {tuple(MEASURES)}")
    return MEASURES[name]
