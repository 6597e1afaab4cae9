"""Layer against layer: where do the layers of a language model represent an image and its caption alike?

Show the model n images alone and their n captions alone, keep one vector for each example at every layer, and compare each
visual layer i with each textual layer j: S[i, j] is how alike the two represent the same n examples. The matrix shows two
things:

- **The abstraction phase** (`AlignmentMatrix.phase`): the layers at which image and caption, at the same depth, are
  alike, a range about the maximum of the diagonal. There the model represents the meaning, not the modality.
- **The bypass** (`AlignmentMatrix.bypass`): the textual layer most like each visual layer. Where the visual features that
  *enter* the model are already more like an intermediate textual layer than like layer 0, they bypass the early layers,
  which serve text alone. (Both after Palacios et al., 2026; the exact forms here are this package's own.)

The two stacks need not be two modalities: one against itself shows which layers of a modality are alike, one of two
checkpoints against the other what training changed.

Every value comes with the level that unrelated representations reach, and with an interval from half-samples without
replacement (`interp.statistics.half_samples`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import as_number, checked_flag
from interp.errors import InputError
from interp.geometry.clouds import States, as_paired_states, check_k, checked_within
from interp.geometry.layer_grids import NO_HALVES, LayerStacks
from interp.geometry.outlying import notes_of_outlying
from interp.geometry.registry import measure_of
from interp.progress import quiet
from interp.provenance import Provenance
from interp.results import Result
from interp.statistics.half_samples import generator, half_samples, interval, standard_error
from interp.statistics.permutation import permutation_p

INTERMEDIATE = (0.15, 0.85)
FLIPS = 1000
_ROUNDING = 1e-6  # overlaps are sums in float32: a layer without information is at chance to 1e-7, not above it


@dataclass(frozen=True, eq=False)
class BypassResult(Result):
    """For each visual layer, the textual layer most like it, and whether an intermediate one is more alike than the first.

    `best[visual]` is the most similar textual layer, `shift[visual]` its depth beyond the visual one (best - visual),
    `values`, `low` and `high` the similarity there.

    `gain[visual]` is the similarity of the best of the intermediate textual layers, those strictly inside `band` of the depth
    (0 the first textual layer, 1 the last), less that of textual layer 0: max_j S[i, j] - S[i, 0]; `gain_low` and
    `gain_high` are its 95 % interval from half-samples. `p[visual]` is that of a paired permutation test: each example's
    influence changes sides at random between textual layer 0 and the others, and the maximum is computed again, so that
    the choice of the best does not bias p. NaN for measures without influences. Where nothing is shared, at most 5 % of p are
    below 0.05, for some measures none: it errs on the safe side.

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
        """One row for each visual layer: visual, textual (the best), shift, value, low, high, chance, gain, gain_low,
        gain_high, p."""
        columns = {"textual": self.best, "shift": self.shift, "value": self.values, "low": self.low, "high": self.high}
        frame = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
        frame.insert(0, "visual", range(len(frame)))
        gains = {"gain": self.gain, "gain_low": self.gain_low, "gain_high": self.gain_high, "p": self.p}
        return frame.assign(chance=self.chance, **{name: column.numpy() for name, column in gains.items()})


@dataclass(frozen=True, eq=False)
class AlignmentMatrix(Result):
    """The similarity of each visual layer with each textual one: `values[visual, textual]` with `low` and `high`.

    `chance` is the level of the measure's null, of unrelated representations, and `floor[visual, textual]` that of each pair
    of layers; `chance` is its mean. `metric`, `k` (None without neighbours), `n` (examples) and `subsamples` are the
    settings. `parts[half, visual, textual]` are the values of each half-sample, and `flips[draw, visual, textual]` the
    differences to textual layer 0 when examples change sides between the two at random; None for measures without
    influences.
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

        Layer l belongs to it where (S[l, l] - chance) / (S[m, m] - chance) >= tau and its `low` is above chance. None where
        even the `low` of the maximum is not. Without intervals the value itself has to be above chance. A bound is that of
        one layer: where nothing is shared, one of many layers may still be above chance (one of nine in 1 of 100 matrices
        by overlaps, in 1 of 5 by "information_imbalance"). A gap is at chance where there is none, so it has no phase.

        Raises `InputError` for a matrix that is not square, and for tau outside (0, 1].
        """
        if self.values.shape[0] != self.values.shape[1]:
            raise InputError(f"a {tuple(self.values.shape)!r} matrix has no diagonal: pass equally many layers of both")
        if as_number(tau) != 1:  # a bool is not a share
            checked_within(tau, "tau", "a share of the maximum, above 0 and at most 1", high=1.0)
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
        where band[0] < j / (T - 1) < band[1]. The best is a choice among T layers, so its value is a little too high where
        all are alike; the p of the gain accounts for the choice. The gain is NaN where no layer is intermediate.

        Raises `InputError` for a band that is not 0 <= low < high <= 1.
        """
        ends = [as_number(end) for end in band] if isinstance(band, tuple | list) else []
        if len(ends) != 2 or None in ends or not 0 <= ends[0] < ends[1] <= 1:  # type: ignore[operator]
            raise InputError(f"band={band!r}: expected two relative depths, 0 <= low < high <= 1")
        n_visual, n_textual = self.values.shape
        depths = torch.arange(n_textual, dtype=torch.float64) / max(1, n_textual - 1)
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
        """The standard error of the gain, with the same best intermediate layer in all halves."""
        if self.parts is None or not len(self.parts) or not middle.any():
            return torch.full_like(self.values[:, 0], torch.nan)
        chosen = torch.where(middle, self.values, -torch.inf).argmax(dim=1)
        rows = torch.arange(len(self.values))
        return standard_error(self.parts[:, rows, chosen] - self.parts[:, :, 0], self.n)

    def _gain_p(self, gain: Tensor, middle: Tensor) -> Tensor:
        if self.flips is None or not middle.any():
            return torch.full_like(gain, torch.nan)
        reached = (self.flips[:, :, middle].amax(dim=2) >= gain).sum(dim=0)
        return torch.from_numpy(permutation_p(reached.numpy(), len(self.flips))).float()

    def to_frame(self) -> pd.DataFrame:
        """One row for each pair of layers: visual, textual, value, low, high, chance."""
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
    *,
    progress: bool = True,
) -> AlignmentMatrix:
    """The similarity of each layer of `visual` with each of `textual`, both `[state, example, feature]`, rows paired.

    >>> states = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0))
    >>> matrix = alignment_matrix(states, states, k=5)
    >>> matrix.values.diagonal().tolist(), matrix.bypass().best.tolist()
    ([1.0, 1.0, 1.0], [0, 1, 2])

    Both may be a tensor, an array, a site of activations, or activations of one site. `metric` is any measure of kind "pair"
    (those of `interp.geometry.MEASURES`) or "gap" in `interp.geometry.REGISTRY`, yours too (`register_measure`). Values are
    turned so that more is more alike: 1 less the disparity of "procrustes", 1 less the mean of both directions of
    "information_imbalance", minus a distance. Measures of neighbours take `k` of them (by default 30 for
    "neighbor_overlap", 10 for "mutual_knn", 1 for "information_imbalance"):

        S[i, j] = 1/(n k) sum_e |N_k(visual_i, e) & N_k(textual_j, e)|,  chance k/(n-1)

    What belongs to one layer, its graph or its distances, is computed once. `low` and `high` are the 95 % interval from
    `subsamples` halves drawn without replacement with `seed`, by default 50 for overlaps and 10 for others; with
    `subsamples=0` they are NaN and cost nothing. The chance level is that of the measure's formula. Without a formula it is
    the mean over three draws of its null, for each pair of layers: a shuffle of the rows of `textual`, or an exchange of the
    members of some pairs for a gap. `chance` is the mean over pairs of layers.

    A layer in which all examples are equal (state 0 at the last position, where prompts end alike) is at chance by
    neighbours; other measures refuse it.

    A long run shows its progress on a terminal or in a notebook; ``progress=False`` hides it.

    Raises `InputError` for an unknown metric, k >= n, examples that are not paired, and states that are not finite.
    """
    measure = measure_of(metric).turned
    if k is not None and measure.k is None:
        raise InputError(f"k={k!r} for metric={metric!r}: this measure has no neighbours, leave k out")
    first, second = as_paired_states(visual, textual, ("visual", "textual"))
    n, number = first.shape[1], measure.k if k is None else k
    if number is not None:
        check_k(number, n)
    count = measure.subsamples if subsamples is None else subsamples
    halves = NO_HALVES if not isinstance(count, bool) and count == 0 else half_samples(n, count, seed)
    names = [f"visual state {state}" for state in range(len(first))]
    others = [f"textual state {state}" for state in range(len(second))]
    stacks = LayerStacks(list(first), list(second), (names, others))
    with quiet(not checked_flag(progress, "progress")):
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
        provenance=Provenance(seed=seed, notes=notes_of_outlying(visual=first, textual=second)),
    )


def _flipped(influence: Float[Tensor, "visual textual n"], seed: int) -> Float[Tensor, "draw visual textual"]:
    """Means over examples of the differences in influence to textual layer 0, each with a random sign."""
    signs = generator(seed).choice(np.array([-1.0, 1.0], dtype=np.float32), size=(FLIPS, influence.shape[2]))
    differences = (influence - influence[:, :1]).float()
    return torch.einsum("dn,vtn->dvt", torch.from_numpy(signs), differences).double() / influence.shape[2]
