"""The abstraction phase: the layers, at equal depth, at which the representations of image and caption are alike.

The phase is a range of layers about the maximum of the diagonal of an `AlignmentMatrix`. `phase_change` compares the phases of
two models on the same examples. Two phases with thresholds of their own do not say which is wider: a peak that falls from 0.77 to
0.44 takes its threshold down with it, and so includes more layers. Both models are therefore measured against one threshold, that
of the model before, and their difference comes from the same half-samples, in which what the examples share cancels.

The functions here take a matrix for its arrays alone (`LayerValues`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from scipy.stats import t
from torch import Tensor

from interp.arguments import as_number
from interp.displays import Display
from interp.errors import InputError, InputTypeError, shown
from interp.geometry.clouds import checked_within
from interp.provenance import Provenance
from interp.statistics.half_samples import interval, standard_error
from interp.statistics.verdicts import Verdict, verdict

LEVEL = 0.05
_OF_HALVES = ("metric", "k", "n", "subsamples")
_ROUNDING = 1e-6  # overlaps are sums in float32: a layer without information is at chance to 1e-7, not above it


@runtime_checkable
class LayerValues(Protocol):
    """The arrays of an `AlignmentMatrix` that a phase, a bypass or a change is read from."""

    @property
    def values(self) -> Float[Tensor, "visual textual"]: ...
    @property
    def low(self) -> Float[Tensor, "visual textual"]: ...
    @property
    def high(self) -> Float[Tensor, "visual textual"]: ...
    @property
    def chance(self) -> float: ...
    @property
    def floor(self) -> Float[Tensor, "visual textual"] | None: ...
    @property
    def parts(self) -> Float[Tensor, "half visual textual"] | None: ...
    @property
    def flips(self) -> Float[Tensor, "draw visual textual"] | None: ...
    @property
    def p_diagonal(self) -> Float[Tensor, " layer"]: ...
    @property
    def null(self) -> Float[Tensor, "shuffle visual textual"] | None: ...
    @property
    def influence(self) -> Float[Tensor, "visual textual example"] | None: ...
    @property
    def n(self) -> int: ...
    @property
    def metric(self) -> str: ...
    @property
    def k(self) -> int | None: ...
    @property
    def subsamples(self) -> int: ...
    @property
    def preprocess(self) -> str: ...
    @property
    def examples(self) -> str: ...
    @property
    def strata(self) -> str: ...
    @property
    def provenance(self) -> Provenance: ...


def phase_of(matrix: LayerValues, tau: float) -> range | None:
    """The layers about the diagonal's maximum whose excess over chance is at least `tau` of the maximum's."""
    if matrix.values.shape[0] != matrix.values.shape[1]:
        raise InputError(f"a {tuple(matrix.values.shape)!r} matrix has no diagonal: pass equally many layers of both")
    if as_number(tau) != 1:  # a bool is not a share
        checked_within(tau, "tau", "a share of the maximum, above 0 and at most 1", high=1.0)
    raised = (matrix.values - floor_of(matrix)).diagonal()
    return _run(raised, above_chance(matrix), tau * float(raised.max()))


def above_chance(matrix: LayerValues) -> Bool[Tensor, " layer"]:
    """Which layers of the diagonal are above chance, by their intervals and by their p among all layers."""
    return above_floor(matrix).diagonal() & ~(matrix.p_diagonal > LEVEL)  # NaN, without shuffles, does not count


def _run(raised: Float[Tensor, " layer"], above: Bool[Tensor, " layer"], threshold: float) -> range | None:
    """The layers about the maximum at or above the threshold, without a gap, each of them above chance."""
    top = int(raised.argmax())
    within = ((raised >= threshold) & above).tolist()
    if not within[top]:
        return None
    start, stop = top, top + 1
    while start > 0 and within[start - 1]:
        start -= 1
    while stop < len(within) and within[stop]:
        stop += 1
    return range(start, stop)


def phase_change(before: LayerValues, after: LayerValues, tau: float = 0.8, smallest: float = 0.05) -> PhaseChange:
    """Whether the abstraction phase of one model is wider, and higher, than that of another one on the same examples.

    Let d be the diagonal above chance. **Wider**: with one threshold for both, tau max(d_before), the number of layers at or
    above it after, less that before. Borders are interpolated between layers, so that a layer at the threshold is no jump. The
    smallest effect of interest is one layer. **Higher**: the mean of d_after - d_before over the common phase, that of the mean
    of both diagonals, which favours neither. `smallest` is its smallest effect of interest.

    >>> import torch
    >>> from interp.geometry import alignment_matrix
    >>> text, noise = torch.randn(2, 5, 200, 8, generator=torch.Generator().manual_seed(0))
    >>> spread = torch.tensor([3.0, 3.0, 0.5, 3.0, 3.0])[:, None, None]
    >>> before = alignment_matrix(text + spread * noise, text, k=10)
    >>> after = alignment_matrix(text + spread.clamp(max=0.5) * noise, text, k=10)
    >>> change = phase_change(before, after)
    >>> change.before, change.after, change.extends.value, change.strengthens.value
    (range(2, 3), range(0, 5), 'supported', 'contradicted')

    Intervals and p are from the half-samples that both matrices share.

    Raises `InputError` for matrices of other examples, measures, half-samples, preprocessing, strata or sizes, without
    half-samples or a diagonal.
    """
    check_same_halves(before, after, "after", "preprocess", "examples", "strata")
    if before.values.shape != after.values.shape:
        sizes = tuple(before.values.shape), tuple(after.values.shape)
        raise InputError(f"before is {sizes[0]} and after {sizes[1]}: expected equally many layers of both models")
    old = phase_of(before, tau)
    (was, halves_before), (is_now, halves_after) = _raised_diagonal(before, "before"), _raised_diagonal(after, "after")
    threshold = tau * was.max()
    wider = _width(is_now, threshold) - _width(was, threshold)
    of_halves = tau * halves_before.amax(dim=1)
    wider_halves = _width(halves_after, of_halves) - _width(halves_before, of_halves)
    both = was + is_now
    common = _run(both, both > -math.inf, tau * float(both.max()))
    layers = list(common or [int(both.argmax())])
    higher, higher_halves = (is_now - was)[layers].mean(), (halves_after - halves_before)[:, layers].mean(dim=1)
    extends, extends_p = _judged(wider, wider_halves, before.n, 1.0)
    strengthens, strengthens_p = _judged(higher, higher_halves, before.n, smallest)
    if old is None:  # a share of no peak is no threshold
        extends, extends_p = Verdict("undecided", math.nan, -math.inf, math.inf, 1.0, math.inf), math.nan
    return PhaseChange(
        tau=float(tau),
        threshold=float(threshold),
        before=old,
        after=_run(is_now, above_chance(after), float(threshold)),
        extends=extends,
        extends_p=extends_p,
        common=range(layers[0], layers[-1] + 1),
        levels=(float(was[layers].mean()), float(is_now[layers].mean())),
        strengthens=strengthens,
        strengthens_p=strengthens_p,
    )


def _raised_diagonal(matrix: LayerValues, name: str) -> tuple[Float[Tensor, " layer"], Float[Tensor, "half layer"]]:
    """The diagonal above chance, among all examples and among each half-sample."""
    if matrix.parts is None or len(matrix.parts) < 2:
        raise InputError(f"{name} has no half-samples: compute it with subsamples of 2 or more")
    floor = floor_of(matrix)
    return (matrix.values - floor).diagonal().double(), (matrix.parts - floor).diagonal(dim1=1, dim2=2).double()


def _width(raised: Float[Tensor, "*half layer"], threshold: Float[Tensor, "*half"]) -> Float[Tensor, "*half"]:
    """The number of layers at or above the threshold, with borders in proportion between layers."""
    over = raised - threshold[..., None]
    over = torch.cat([over[..., :1], over, over[..., -1:]], dim=-1)  # the first and the last layer count whole
    ends, size = over.clamp(min=0), over.abs()
    shares = (ends[..., 1:] + ends[..., :-1]) / (size[..., 1:] + size[..., :-1]).clamp(min=torch.finfo(over.dtype).tiny)
    shares = torch.where((over[..., 1:] >= 0) & (over[..., :-1] >= 0), torch.ones_like(shares), shares)
    return shares.sum(dim=-1) - (shares[..., 0] + shares[..., -1]) / 2


def _judged(
    difference: Float[Tensor, ""], halves: Float[Tensor, " half"], n: int, smallest: float
) -> tuple[Verdict, float]:
    """The verdict on a difference, and its p of two sides, with the error of paired half-samples."""
    error = standard_error(halves, n)
    low, high = interval(difference, error, halves=len(halves))
    value, of_value = float(difference), float(error)
    p = (
        2 * float(t.sf(value / of_value, len(halves) - 1))
        if of_value > 0
        else 1 / (1 + len(halves))
        if value > 0
        else 1.0
    )
    return verdict(value, low, high, smallest), min(1.0, p)


def floor_of(matrix: LayerValues) -> Float[Tensor, "visual textual"]:
    """The chance level of each pair of layers."""
    return torch.full_like(matrix.values, matrix.chance) if matrix.floor is None else matrix.floor


def above_floor(matrix: LayerValues) -> Bool[Tensor, "visual textual"]:
    """Which values are above chance by their intervals, or themselves where there are no intervals."""
    return (matrix.low if matrix.subsamples else matrix.values) > floor_of(matrix) + _ROUNDING


def check_same_halves(matrix: LayerValues, other: LayerValues, name: str, *also: str) -> None:
    """Refuse two matrices that are not of the same examples, measure and half-samples, so that differences are not paired.

    `also` are further settings to compare; ids of examples only where both are known.
    """
    for each in (matrix, other):
        if not hasattr(each, "floor"):
            raise InputTypeError(f"{name}: {shown(each)} is no matrix, expected what alignment_matrix() returns")
    settings = [(what, getattr(matrix, what), getattr(other, what)) for what in (*_OF_HALVES, *also)]
    settings.append(("seed", matrix.provenance.seed, other.provenance.seed))
    settings.append(("textual states", matrix.values.shape[1], other.values.shape[1]))
    for what, one, another in settings:
        if one != another and (what != "examples" or (one and another)):
            raise InputError(
                f"{name} has {what} {another!r}, this matrix {one!r}: compute both with the same arguments"
            )


@dataclass(frozen=True)
class PhaseChange(Display):
    """How the abstraction phase of one model differs from that of another on the same examples.

    `threshold` is the likeness above chance from which a layer belongs to the phase, `tau` of the maximum before; `before` and
    `after` are the layers about each maximum that reach it. `extends` is the verdict on "wider", in layers, and undecided where
    there is no phase before. `common` is the phase of the mean of both diagonals, `levels` the mean likeness above chance there,
    before and after, and `strengthens` the verdict on "higher", their difference. Each p is of two sides, uncorrected, and counts
    for the claim alone: 1 where the difference points the other way.
    """

    tau: float
    threshold: float
    before: range | None
    after: range | None
    extends: Verdict
    extends_p: float
    common: range
    levels: tuple[float, float]
    strengthens: Verdict
    strengthens_p: float
