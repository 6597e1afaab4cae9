"""Where do the layers of a language model meet an image and its caption?

Show the model n images alone and their n captions alone, keep a vector an example at every layer, and compare each
visual layer i with each textual layer j: S[i, j] is how alike the two see the same n examples. Two things are read off
this matrix:

- **The abstraction phase** (`AlignmentMatrix.phase`): the layers at which image and caption, at the same depth, are
  alike, a range about the maximum of the diagonal. It is where the model represents what is meant, not how it was told.
- **The bypass** (`AlignmentMatrix.bypass`): which textual layer each visual layer is most like. Where the visual
  features that *enter* the model are already most like an intermediate textual layer, they bypass the early layers,
  which serve text alone. (Both after Palacios et al., 2026; the exact forms here are this package's own.)

Every value comes with the level that unrelated representations would reach, and with an interval (see
`interp.geometry.overlap` for how).
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.geometry.clouds import States, as_paired_states, check_k
from interp.geometry.neighbors import place
from interp.geometry.overlap import half_samples, interval, overlap_chance, overlap_grid
from interp.results import Provenance, Result

METRICS = {"neighbor_overlap": "euclidean", "mutual_knn": "cosine"}
INTERMEDIATE = (0.15, 0.85)


@dataclass(frozen=True, eq=False)
class BypassResult(Result):
    """Of each visual layer, the textual layer that is most like it.

    `best[visual]` is that layer, `shift[visual]` how much deeper it is (best - visual), `values`, `low` and `high` the
    similarity there. `intermediate` is True where the best layer of visual layer 0, the features that enter the model,
    lies strictly inside `band` of the depth (0 the first textual layer, 1 the last) and its `low` is above `chance`.
    `entry_gain` is by how much that layer beats textual layer 0: S[0, best] - S[0, 0].
    """

    best: Int[Tensor, " visual"]
    shift: Int[Tensor, " visual"]
    values: Float[Tensor, " visual"]
    low: Float[Tensor, " visual"]
    high: Float[Tensor, " visual"]
    chance: float
    intermediate: bool
    entry_gain: float
    band: tuple[float, float] = INTERMEDIATE

    def to_frame(self) -> pd.DataFrame:
        """One row a visual layer: visual, textual (the best), shift, value, low, high, chance."""
        columns = {"textual": self.best, "shift": self.shift, "value": self.values, "low": self.low, "high": self.high}
        frame = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
        frame.insert(0, "visual", range(len(frame)))
        return frame.assign(chance=self.chance)


@dataclass(frozen=True, eq=False)
class AlignmentMatrix(Result):
    """The similarity of each visual layer with each textual one: `values[visual, textual]` with `low` and `high`.

    `chance` is what unrelated representations reach; `metric`, `k`, `n` (examples) and `subsamples` say how it
    was made.
    """

    values: Float[Tensor, "visual textual"]
    chance: float
    low: Float[Tensor, "visual textual"]
    high: Float[Tensor, "visual textual"]
    metric: str
    k: int
    n: int
    subsamples: int

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or not self.values.shape == self.low.shape == self.high.shape:
            shapes = [tuple(part.shape) for part in (self.values, self.low, self.high)]
            raise InputError(f"values, low and high have shapes {shapes}: expected [visual, textual] three times")

    def phase(self, tau: float = 0.8) -> range | None:
        """The contiguous layers about the diagonal's maximum with S[l, l] >= tau * S[m, m], as a half-open range.

        None where even the maximum is not above chance: its `low` is at most `chance`. Without intervals the value
        itself is compared.

        Raises `InputError` for a matrix that is not square, and for tau outside (0, 1].
        """
        if self.values.shape[0] != self.values.shape[1]:
            raise InputError(
                f"a {tuple(self.values.shape)!r} matrix has no diagonal: a phase takes equally many layers"
            )
        if not 0 < tau <= 1:
            raise InputError(f"tau={tau!r}: expected a share of the maximum, above 0 and at most 1")
        diagonal = self.values.diagonal()
        top = int(diagonal.argmax())
        if not self._above_chance(top, top):
            return None
        within = (diagonal >= tau * diagonal[top]).tolist()
        start, stop = top, top + 1
        while start > 0 and within[start - 1]:
            start -= 1
        while stop < len(within) and within[stop]:
            stop += 1
        return range(start, stop)

    def bypass(self, band: tuple[float, float] = INTERMEDIATE) -> BypassResult:
        """The textual layer most like each visual layer, and whether what enters goes to an intermediate one.

        best[i] = argmax_j S[i, j] (the first of equals), shift[i] = best[i] - i. Textual layer j of T is intermediate
        where band[0] < j / (T - 1) < band[1]; the claim also needs its `low` above chance. A best layer is chosen
        among T: its value is a little too high where all are alike.

        Raises `InputError` for a band that is not 0 <= low < high <= 1.
        """
        if len(band) != 2 or not 0 <= band[0] < band[1] <= 1:
            raise InputError(f"band={band!r}: expected two relative depths, 0 <= low < high <= 1")
        n_visual, n_textual = self.values.shape
        rows = torch.arange(n_visual)
        best = self.values.argmax(dim=1)
        entry = int(best[0])
        depth = entry / max(1, n_textual - 1)
        return BypassResult(
            best=best,
            shift=best - rows,
            values=self.values[rows, best],
            low=self.low[rows, best],
            high=self.high[rows, best],
            chance=self.chance,
            intermediate=band[0] < depth < band[1] and self._above_chance(0, entry),
            entry_gain=float(self.values[0, entry] - self.values[0, 0]),
            band=(float(band[0]), float(band[1])),
            provenance=self.provenance,
        )

    def to_frame(self) -> pd.DataFrame:
        """One row a pair of layers: visual, textual, value, low, high, chance."""
        index = pd.MultiIndex.from_product([range(size) for size in self.values.shape], names=["visual", "textual"])
        columns = {"value": self.values, "low": self.low, "high": self.high}
        frame = pd.DataFrame({name: column.flatten().numpy() for name, column in columns.items()}, index=index)
        return frame.reset_index().assign(chance=self.chance)

    def _above_chance(self, row: int, column: int) -> bool:
        floor = self.low if self.subsamples else self.values
        return bool(floor[row, column] > self.chance)


def alignment_matrix(
    visual: States,
    textual: States,
    metric: str = "neighbor_overlap",
    k: int = 30,
    subsamples: int = 50,
    seed: int = 0,
) -> AlignmentMatrix:
    """The similarity of each layer of `visual` with each of `textual`, both `[state, example, feature]`, rows paired.

    Either may be a tensor, an array, or a site of activations. `metric` is "neighbor_overlap" (Euclidean, rows as they
    are) or "mutual_knn" (cosine), each over `k` neighbours:

        S[i, j] = 1/(n k) sum_e |N_k(visual_i, e) & N_k(textual_j, e)|,  chance k/(n-1)

    Each layer's distances are computed once. `low` and `high` are the 95 % interval from `subsamples` halves drawn
    without replacement with `seed`; with `subsamples=0` they are NaN and cost nothing.

    A layer in which all examples are equal (state 0 at the last position, where prompts end alike) comes out at chance.

    Raises `InputError` for an unknown metric, k >= n, examples that are not paired, and states that are not finite.

    >>> states = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0))
    >>> found = alignment_matrix(states, states, k=5)
    >>> found.values.diagonal().tolist(), found.bypass().best.tolist()
    ([1.0, 1.0, 1.0], [0, 1, 2])
    """
    if metric not in METRICS:
        raise InputError(f"metric={metric!r} is unknown: use one of {tuple(METRICS)}")
    first, second = as_paired_states(visual, textual, ("visual", "textual"))
    n = first.shape[1]
    check_k(k, n)
    halves = half_samples(n, subsamples, seed) if subsamples else None
    values, error = overlap_grid(
        [place(state, METRICS[metric], f"visual state {number}") for number, state in enumerate(first)],
        [place(state, METRICS[metric], f"textual state {number}") for number, state in enumerate(second)],
        k,
        halves,
    )
    low, high = interval(values, error)
    provenance = Provenance(seed=seed)
    return AlignmentMatrix(
        values, overlap_chance(n, k), low, high, metric, k, n, int(subsamples), provenance=provenance
    )
