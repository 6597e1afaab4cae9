"""Where do the layers of a language model meet an image and its caption?

Show the model n images alone and their n captions alone, keep a vector an example at every layer, and compare each
visual layer i with each textual layer j: S[i, j] is how alike the two see the same n examples. Two things are read off
this matrix:

- **The abstraction phase** (`AlignmentMatrix.phase`): the layers at which image and caption, at the same depth, are
  alike, a range about the maximum of the diagonal. It is where the model represents what is meant, not how it was told.
- **The bypass** (`AlignmentMatrix.bypass`): which textual layer each visual layer is most like. Where the visual
  features that *enter* the model are already more like an intermediate textual layer than like layer 0, they bypass the
  early layers, which serve text alone. (Both after Palacios et al., 2026; the exact forms here are this package's own.)

The two stacks need not be two modalities: one against itself says which layers of a modality are alike, one of two
checkpoints against the other what training changed.

Every value comes with the level that unrelated representations would reach, and with an interval from half-samples
without replacement (`interp.statistics.half_samples`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.geometry.clouds import States, as_paired_states, check_k
from interp.geometry.grids import NO_HALVES, LayerStacks
from interp.geometry.registry import measure_of
from interp.provenance import Provenance
from interp.results import Result
from interp.statistics.half_samples import generator, half_samples, interval, standard_error

INTERMEDIATE = (0.15, 0.85)
FLIPS = 1000
_ROUNDING = 1e-6  # overlaps are summed in float32: a layer that says nothing is at chance to 1e-7, not above it


@dataclass(frozen=True, eq=False)
class BypassResult(Result):
    """Of each visual layer, the textual layer that is most like it, and whether an intermediate one beats the first.

    `best[visual]` is the most similar textual layer, `shift[visual]` how much deeper it is (best - visual), `values`, `low`
    and `high` the similarity there.

    `gain[visual]` is by how much the best of the intermediate textual layers, those strictly inside `band` of the depth (0
    the first textual layer, 1 the last), beats textual layer 0: max_j S[i, j] - S[i, 0]; `gain_low` and `gain_high` are
    its 95 % interval from half-samples. `p[visual]` is that of a paired permutation test: what each example bears on the
    values is exchanged at random between textual layer 0 and the others, and the maximum is taken anew, so that having
    chosen the best costs nothing. NaN where the measure does not say what an example bears on. Where nothing is shared, 5 %
    of p at most are below 0.05, of some measures none: it errs on the safe side.

    `intermediate` is True where the best layer of visual layer 0, the features that enter the model, lies inside `band`
    and its `low` is above `chance`; `entry_gain` is S[0, best] - S[0, 0].
    """

    best: Int[Tensor, " visual"]
    shift: Int[Tensor, " visual"]
    values: Float[Tensor, " visual"]
    low: Float[Tensor, " visual"]
    high: Float[Tensor, " visual"]
    chance: float
    intermediate: bool
    entry_gain: float
    gain: Float[Tensor, " visual"]
    gain_low: Float[Tensor, " visual"]
    gain_high: Float[Tensor, " visual"]
    p: Float[Tensor, " visual"]
    band: tuple[float, float] = INTERMEDIATE

    def to_frame(self) -> pd.DataFrame:
        """One row a visual layer: visual, textual (the best), shift, value, low, high, chance, gain, gain_low, gain_high, p."""
        columns = {"textual": self.best, "shift": self.shift, "value": self.values, "low": self.low, "high": self.high}
        frame = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
        frame.insert(0, "visual", range(len(frame)))
        gains = {"gain": self.gain, "gain_low": self.gain_low, "gain_high": self.gain_high, "p": self.p}
        return frame.assign(chance=self.chance, **{name: column.numpy() for name, column in gains.items()})


@dataclass(frozen=True, eq=False)
class AlignmentMatrix(Result):
    """The similarity of each visual layer with each textual one: `values[visual, textual]` with `low` and `high`.

    `chance` is what unrelated representations reach, and `floor[visual, textual]` what those of each pair of layers do,
    where that depends on the layers; `metric`, `k` (None where none is taken), `n` (examples) and `subsamples` say how it
    was made. `parts[half, visual, textual]` are the values of each half-sample, and `flips[draw, visual, textual]` the
    differences to textual layer 0 when examples are exchanged between the two at random; None where there are none.
    """

    values: Float[Tensor, "visual textual"]
    chance: float
    low: Float[Tensor, "visual textual"]
    high: Float[Tensor, "visual textual"]
    metric: str
    k: int | None
    n: int
    subsamples: int
    floor: Float[Tensor, "visual textual"] | None = None
    parts: Float[Tensor, "half visual textual"] | None = None
    flips: Float[Tensor, "draw visual textual"] | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or not self.values.shape == self.low.shape == self.high.shape:
            shapes = [tuple(part.shape) for part in (self.values, self.low, self.high)]
            raise InputError(f"values, low and high have shapes {shapes}: expected [visual, textual] three times")

    def phase(self, tau: float = 0.8) -> range | None:
        """The contiguous layers about the diagonal's maximum m where image and caption are alike, a half-open range.

        A layer l belongs where (S[l, l] - chance) / (S[m, m] - chance) >= tau and its `low` is above chance. None where
        even the maximum's is not. Without intervals the value itself is compared. A bound is that of one layer: where
        nothing is shared, one of many layers may be above chance all the same (one of nine in 1 of 100 matrices by
        overlaps, in 1 of 5 by "information_imbalance").

        Raises `InputError` for a matrix that is not square, and for tau outside (0, 1].
        """
        if self.values.shape[0] != self.values.shape[1]:
            raise InputError(
                f"a {tuple(self.values.shape)!r} matrix has no diagonal: a phase takes equally many layers"
            )
        if isinstance(tau, bool) or not isinstance(tau, int | float | np.number) or not 0 < tau <= 1:
            raise InputError(f"tau={tau!r}: expected a share of the maximum, above 0 and at most 1")
        raised = (self.values - self._floor).diagonal()
        above = self._above.diagonal()
        top = int(raised.argmax())
        if not above[top]:
            return None
        within = ((raised >= tau * raised[top]) & above).tolist()
        start, stop = top, top + 1
        while start > 0 and within[start - 1]:
            start -= 1
        while stop < len(within) and within[stop]:
            stop += 1
        return range(start, stop)

    def bypass(self, band: tuple[float, float] = INTERMEDIATE) -> BypassResult:
        """The textual layer most like each visual layer, and whether an intermediate one is more like it than layer 0.

        best[i] = argmax_j S[i, j] (the first of equals), shift[i] = best[i] - i. Textual layer j of T is intermediate
        where band[0] < j / (T - 1) < band[1]. A best layer is chosen among T: its value is a little too high where all
        are alike; the p of the gain has no such fault.

        Where no layer is intermediate there is no gain: NaN.

        Raises `InputError` for a band that is not 0 <= low < high <= 1.
        """
        if not _is_band(band):
            raise InputError(f"band={band!r}: expected two relative depths, 0 <= low < high <= 1")
        n_visual, n_textual = self.values.shape
        depths = torch.arange(n_textual) / max(1, n_textual - 1)
        middle = (band[0] < depths) & (depths < band[1])
        rows = torch.arange(n_visual)
        best = self.values.argmax(dim=1)
        gain = torch.full_like(self.values[:, 0], torch.nan)
        if middle.any():
            gain = self.values[:, middle].amax(dim=1) - self.values[:, 0]
        gain_low, gain_high = interval(gain, self._gain_error(middle))
        return BypassResult(
            best=best,
            shift=best - rows,
            values=self.values[rows, best],
            low=self.low[rows, best],
            high=self.high[rows, best],
            chance=self.chance,
            intermediate=bool(middle[best[0]] and self._above[0, best[0]]),
            entry_gain=float(self.values[0, best[0]] - self.values[0, 0]),
            gain=gain,
            gain_low=gain_low,
            gain_high=gain_high,
            p=self._gain_p(gain, middle),
            band=(float(band[0]), float(band[1])),
            provenance=self.provenance,
        )

    def _gain_error(self, middle: Tensor) -> Tensor:
        """The standard error of the gain of the best intermediate layer, which stays the same in all halves."""
        if self.parts is None or not len(self.parts) or not middle.any():
            return torch.full_like(self.values[:, 0], torch.nan)
        chosen = torch.where(middle, self.values, -torch.inf).argmax(dim=1)
        rows = torch.arange(len(self.values))
        return standard_error(self.parts[:, rows, chosen] - self.parts[:, :, 0], self.n)

    def _gain_p(self, gain: Tensor, middle: Tensor) -> Tensor:
        if self.flips is None or not middle.any():
            return torch.full_like(gain, torch.nan)
        as_much = (self.flips[:, :, middle].amax(dim=2) >= gain).sum(dim=0)
        return (as_much + 1) / (len(self.flips) + 1)

    def to_frame(self) -> pd.DataFrame:
        """One row a pair of layers: visual, textual, value, low, high, chance."""
        index = pd.MultiIndex.from_product([range(size) for size in self.values.shape], names=["visual", "textual"])
        columns = {"value": self.values, "low": self.low, "high": self.high}
        frame = pd.DataFrame({name: column.flatten().numpy() for name, column in columns.items()}, index=index)
        return frame.reset_index().assign(chance=self.chance)

    @property
    def _floor(self) -> Tensor:
        return torch.full_like(self.values, self.chance) if self.floor is None else self.floor

    @property
    def _above(self) -> Tensor:
        return (self.low if self.subsamples else self.values) > self._floor + _ROUNDING


def alignment_matrix(
    visual: States,
    textual: States,
    metric: str = "neighbor_overlap",
    k: int | None = None,
    subsamples: int | None = None,
    seed: int = 0,
) -> AlignmentMatrix:
    """The similarity of each layer of `visual` with each of `textual`, both `[state, example, feature]`, rows paired.

    Either may be a tensor, an array, or a site of activations. `metric` is any of `interp.geometry.MEASURES`, taken so that
    more is more alike (1 less the disparity of "procrustes", 1 less the mean of both directions of
    "information_imbalance"), over `k` neighbours where it takes them (30 for "neighbor_overlap", the default; 10 for
    "mutual_knn"; 1 for "information_imbalance"):

        S[i, j] = 1/(n k) sum_e |N_k(visual_i, e) & N_k(textual_j, e)|,  chance k/(n-1)

    What belongs to one layer, its graph or its distances, is made once. `low` and `high` are the 95 % interval from
    `subsamples` halves drawn without replacement with `seed`, by default 50 for overlaps and 10 for others; with
    `subsamples=0` they are NaN and cost nothing. Where the chance level has no formula ("svcca", "pwcca", "procrustes",
    "cka_biased", "cycle_knn", "cknna", "id_correlation") it is the mean over three shuffles of the rows of `textual`, for each
    pair of layers, and `chance` is the mean over these.

    A layer in which all examples are equal (state 0 at the last position, where prompts end alike) comes out at chance
    by neighbours; other measures refuse it.

    Raises `InputError` for an unknown metric, k >= n, examples that are not paired, and states that are not finite.

    >>> states = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0))
    >>> found = alignment_matrix(states, states, k=5)
    >>> found.values.diagonal().tolist(), found.bypass().best.tolist()
    ([1.0, 1.0, 1.0], [0, 1, 2])
    """
    measure = measure_of(metric).turned
    if k is not None and measure.k is None:
        raise InputError(f"k={k!r} was given for metric={metric!r}, which takes no neighbours: leave it out")
    first, second = as_paired_states(visual, textual, ("visual", "textual"))
    n, number = first.shape[1], measure.k if k is None else k
    if number is not None:
        check_k(number, n)
    count = measure.subsamples if subsamples is None else subsamples
    halves = NO_HALVES if not isinstance(count, bool) and count == 0 else half_samples(n, count, seed)
    names = [f"visual state {state}" for state in range(len(first))]
    others = [f"textual state {state}" for state in range(len(second))]
    stacks = LayerStacks(list(first), list(second), (names, others))
    grid = measure.grid(stacks, halves, number)
    floor = measure.floor(stacks, number, seed)
    error = standard_error(grid.parts, n) if len(halves) else torch.full_like(grid.values, torch.nan)
    low, high = interval(grid.values, error, measure.bounds)
    return AlignmentMatrix(
        grid.values,
        float(floor.mean()),
        low,
        high,
        metric,
        number,
        n,
        len(halves),
        floor,
        grid.parts,
        None if grid.influence is None else _flipped(grid.influence, seed),
        provenance=Provenance(seed=seed),
    )


def _is_band(band: object) -> bool:
    """Whether it is two numbers, 0 <= low < high <= 1."""
    if not isinstance(band, tuple | list) or not all(isinstance(end, int | float | np.number) for end in band):
        return False
    return len(band) == 2 and 0 <= band[0] < band[1] <= 1


def _flipped(influence: Float[Tensor, "visual textual n"], seed: int) -> Float[Tensor, "draw visual textual"]:
    """Means of the differences to textual layer 0 in what each example bears on, its sign turned or not."""
    signs = generator(seed).choice(np.array([-1.0, 1.0], dtype=np.float32), size=(FLIPS, influence.shape[2]))
    differences = (influence - influence[:, :1]).float()
    return torch.einsum("dn,vtn->dvt", torch.from_numpy(signs), differences).double() / influence.shape[2]
