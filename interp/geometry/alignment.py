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
from jaxtyping import Float
from torch import Tensor

from interp.arguments import checked_flag, checked_int
from interp.errors import InputError, InputTypeError, shown
from interp.geometry.bypass import INTERMEDIATE, SMALLEST, BypassResult, bypass_of
from interp.geometry.clouds import States, as_paired_states, check_k, fingerprint_of_ids
from interp.geometry.diagonal_peak import DiagonalPeak, peak_of
from interp.geometry.layer_grids import NO_HALVES, LayerStacks, Resampling
from interp.geometry.matrix_change import MatrixChange, change_of
from interp.geometry.nuisance import fingerprint_of_strata, notes_of_pooling, notes_of_strata, strata_of
from interp.geometry.outlying import notes_of_captures
from interp.geometry.phase import LEVEL, phase_of
from interp.geometry.preprocessing import prepared_states
from interp.geometry.registry import measure_of
from interp.geometry.shuffles import joint_p
from interp.progress import quiet
from interp.provenance import Provenance
from interp.results import Result
from interp.statistics.categories import Labels
from interp.statistics.half_samples import generator, half_samples, interval, standard_error
from interp.statistics.permutation import permutation_p

FLIPS = 1000
PERMUTATIONS = 199


@dataclass(frozen=True, eq=False)
class AlignmentMatrix(Result):
    """The similarity of each visual layer with each textual one: `values[visual, textual]` with `low` and `high`.

    `chance` is the level of the measure's null, of unrelated representations, and `floor[visual, textual]` that of each pair
    of layers; `chance` is its mean. `metric`, `k` (None without neighbours), `n` (examples) and `subsamples` are the
    settings. `parts[half, visual, textual]` are the values of each half-sample, and `flips[draw, visual, textual]` the
    differences to textual layer 0 when examples change sides between the two at random; None for measures without
    influences.

    `null[shuffle, visual, textual]` are the values after shuffles of the pairs, the same ones for all cells, None without
    them; `p_diagonal` and `p_family` come from it. `influence[visual, textual, example]` is the part of each example in a value,
    which is their mean, None for measures without. `examples` is a fingerprint of their ids, where activations have them, and
    `strata` one of the strata within which rows were shuffled, where there were any.
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
    preprocess: str = "none"
    null: Float[Tensor, "shuffle visual textual"] | None = None
    influence: Float[Tensor, "visual textual example"] | None = None
    examples: str = ""
    strata: str = ""

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or not self.values.shape == self.low.shape == self.high.shape:
            shapes = [tuple(part.shape) for part in (self.values, self.low, self.high)]
            raise InputError(f"values, low and high have shapes {shapes}: expected [visual, textual] three times")

    @property
    def p_family(self) -> Float[Tensor, "visual textual"]:
        """The p of each pair of layers, corrected for the look at all pairs: how often the largest of all, each standardised
        by its own null, reaches it after a shuffle. NaN without shuffles."""
        return torch.full_like(self.values, torch.nan) if self.null is None else joint_p(self.values, self.null)

    @property
    def p_diagonal(self) -> Float[Tensor, " layer"]:
        """The p of each layer of the diagonal, corrected for the look at all of the diagonal; NaN without shuffles."""
        values = self.values.diagonal()
        if self.null is None:
            return torch.full_like(values, torch.nan)
        return joint_p(values, self.null.diagonal(dim1=1, dim2=2))

    def phase(self, tau: float = 0.8) -> range | None:
        """The contiguous layers about the diagonal's maximum m where image and caption are alike, a half-open range.

        Layer l belongs to it where (S[l, l] - chance) / (S[m, m] - chance) >= tau, its `low` is above chance, and its
        `p_diagonal` is at most 0.05, so that layers that share nothing have a phase in at most 5 % of matrices, however many
        layers there are. None where the maximum is not above chance in this sense. Without intervals the value itself has to
        be above chance; without shuffles p does not count, and one of many layers may be above chance where nothing is
        shared. A gap is at chance where there is none, so it has no phase.

        Raises `InputError` for a matrix that is not square, and for tau outside (0, 1].
        """
        return phase_of(self, tau)

    def bypass(
        self,
        band: tuple[float, float] = INTERMEDIATE,
        placebo: AlignmentMatrix | None = None,
        ceiling: AlignmentMatrix | None = None,
        matched: AlignmentMatrix | None = None,
        smallest: float = SMALLEST,
    ) -> BypassResult:
        """The textual layer most like each visual layer, and whether an intermediate one is more like it than layer 0.

        best[i] = argmax_j S[i, j] (the first of equals), shift[i] = best[i] - i. Textual layer j of T is intermediate
        where band[0] < j / (T - 1) < band[1]. The best is a choice among T layers, so its value is a little too high where
        all are alike; the p of the gain accounts for the choice. The gain is NaN where no layer is intermediate.

        The other arguments are controls for the verdict, that visual features enter at intermediate layers
        (`interp.geometry.entry`). Each is a matrix with the same textual states, metric, k, subsamples and seed: `placebo` of
        `entry_controls(visual[0], placebo)`, needed for "supported"; `ceiling` of other captions of the same meaning; `matched`
        of the same states with rows of one length (`preprocess="cosine"`). They need no shuffles: pass ``permutations=0``.
        `smallest` is the smallest effect of interest.

        Raises `InputError` for a band that is not 0 <= low < high <= 1, and for controls that do not belong to this matrix.
        """
        controls = {"placebo": placebo, "ceiling": ceiling, "matched": matched}
        return bypass_of(self, band, {name: each for name, each in controls.items() if each is not None}, smallest)

    def change(self, other: AlignmentMatrix) -> MatrixChange:
        """What changed from this matrix to `other`, of the same examples: other - self for each pair of layers, in pairs.

        >>> draw = torch.Generator().manual_seed(0)
        >>> code, noise, more = torch.randn(3, 1, 200, 4, generator=draw)
        >>> before, after = (alignment_matrix(code + size * noise, code + more / 2, k=10) for size in (1, 0.8))
        >>> bool(after.low < before.high), float(before.change(after).p) < 0.01  # the intervals overlap
        (True, True)

        Raises `InputTypeError` for anything but a matrix, and `InputError` where the two differ in layers, measure, k,
        number of examples, their ids, preprocessing, or in their halves where those are needed.
        """
        if not isinstance(other, AlignmentMatrix):
            raise InputTypeError(f"other={shown(other)}: expected what alignment_matrix() returns for the other model")
        return change_of(self, other)

    def peak(self, seed: int = 0) -> DiagonalPeak:
        """The peak of the diagonal, chosen on half of the examples and measured on the others, over 50 random halves.

        `seed` is that of the halves. Raises `InputError` for a matrix that is not square, and for a measure without influences.
        """
        return peak_of(self, seed)

    def to_frame(self) -> pd.DataFrame:
        """One row for each pair of layers: visual, textual, value, low, high, chance, p_family."""
        index = pd.MultiIndex.from_product([range(size) for size in self.values.shape], names=["visual", "textual"])
        columns = {"value": self.values, "low": self.low, "high": self.high, "p_family": self.p_family}
        frame = pd.DataFrame({name: column.flatten().numpy() for name, column in columns.items()}, index=index)
        frame = frame.reset_index()
        frame.insert(5, "chance", self.chance)
        return frame


def alignment_matrix(
    visual: States,
    textual: States,
    metric: str = "neighbor_overlap",
    k: int | None = None,
    subsamples: int | None = None,
    seed: int = 0,
    *,
    permutations: int | None = None,
    preprocess: str = "none",
    strata: Labels | None = None,
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
    `subsamples=0` they are NaN and cost nothing. `permutations` shuffles of the rows of `textual` (exchanges of the members of
    some pairs for a gap) give the null of all pairs of layers at once, by default 199 for measures that are sums over pairs of
    examples, and 0 for others, of which each shuffle takes as long as the matrix (svcca, pwcca, procrustes, cknna, gaps, your
    own): pass a number for their p. The chance level is that of the measure's formula; without one it is the mean
    over the null, over three draws where `permutations` is 0. `chance` is the mean over pairs of layers.

    A layer in which all examples are equal (state 0 at the last position, where prompts end alike) is at chance by
    neighbours; other measures refuse it.

    `preprocess` is what is done to each cloud first, "none", "standardise", "clamp", "cosine" or "whiten"
    (`interp.geometry.preprocessing`): ``preprocess="clamp"`` where the notes of `provenance` say that massive features decide.
    Halves and shuffles use the preprocessed clouds. Measures of a gap take "none" alone.

    `strata`, one label an example (or the name of a label of `visual`), keep each shuffle within them: rows change places only
    with rows of their stratum, and chance is the mean over these shuffles (`interp.geometry.nuisance`).

    A long run shows its progress on a terminal or in a notebook; ``progress=False`` hides it.

    Raises `InputError` for an unknown metric, k >= n, examples that are not paired, states that are not finite, and strata for a
    measure without shuffles.
    """
    measure = measure_of(metric).turned
    if strata is not None and measure.null != "shuffle":
        raise InputError(f"strata= for metric={metric!r}: no rows are shuffled for this measure, leave strata out")
    if k is not None and measure.k is None:
        raise InputError(f"k={k!r} for metric={metric!r}: this measure has no neighbours, leave k out")
    stacks = as_paired_states(visual, textual, ("visual", "textual"))
    first, second, notes = prepared_states(stacks, preprocess, [measure.kind])
    n, number = first.shape[1], measure.k if k is None else k
    if number is not None:
        check_k(number, n)
    count = measure.subsamples if subsamples is None else subsamples
    halves = NO_HALVES if not isinstance(count, bool) and count == 0 else half_samples(n, count, seed)
    names = [f"visual state {state}" for state in range(len(first))]
    others = [f"textual state {state}" for state in range(len(second))]
    draws = checked_int(
        (PERMUTATIONS if measure.shuffles else 0) if permutations is None else permutations, "permutations"
    )
    with quiet(not checked_flag(progress, "progress")):
        layers = measure.ready(LayerStacks(list(first), list(second), (names, others)), number)
        grid = measure.grid(layers, halves, number)
        resampling = Resampling(NO_HALVES, draws, seed, strata_of(strata, visual, n))
        null = measure.null_values(layers, number, resampling) if draws else None
        floor = measure.floor(layers, number, resampling, null)
    error = standard_error(grid.parts, n) if len(halves) else torch.full_like(grid.values, torch.nan)
    low, high = interval(grid.values, error, measure.bounds, len(halves))
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
        preprocess=preprocess,
        null=None if null is None else null.float(),
        influence=None if grid.influence is None else grid.influence.float(),
        examples=fingerprint_of_ids(visual),
        strata=fingerprint_of_strata(resampling.strata),
        provenance=Provenance(
            seed=seed,
            notes=(
                *notes,
                *_notes_of_few(draws),
                *notes_of_strata(resampling.strata),
                *notes_of_pooling(visual, textual),
                *notes_of_captures(visual=visual, textual=textual),
            ),
        ),
    )


def _notes_of_few(permutations: int) -> tuple[str, ...]:
    """A line where no p can be small enough for a layer to count as above chance."""
    least = permutation_p(0, permutations)
    if not permutations or least <= LEVEL:
        return ()
    return (
        f"the smallest p of {permutations} permutations is {least:.2g}, so no layer is above chance in phase() and bypass():"
        " pass 19 or more, or 0 to judge by intervals alone",
    )


def _flipped(influence: Float[Tensor, "visual textual n"], seed: int) -> Float[Tensor, "draw visual textual"]:
    """Means over examples of the differences in influence to textual layer 0, each with a random sign."""
    signs = generator(seed).choice(np.array([-1.0, 1.0], dtype=np.float32), size=(FLIPS, influence.shape[2]))
    differences = (influence - influence[:, :1]).float()
    return torch.einsum("dn,vtn->dvt", torch.from_numpy(signs), differences).double() / influence.shape[2]
