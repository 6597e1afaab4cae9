"""The abstraction phase: the layers, at equal depth, at which the representations of image and caption are alike.

The phase is a range of layers about the maximum of the diagonal of an `AlignmentMatrix`. The functions here take the matrix
for its arrays alone (`LayerValues`).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.arguments import as_number
from interp.errors import InputError
from interp.geometry.clouds import checked_within
from interp.provenance import Provenance

LEVEL = 0.05
_ROUNDING = 1e-6  # overlaps are sums in float32: a layer without information is at chance to 1e-7, not above it


@runtime_checkable
class LayerValues(Protocol):
    """The arrays of an `AlignmentMatrix` that a phase or a bypass is read from."""

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
    def n(self) -> int: ...
    @property
    def subsamples(self) -> int: ...
    @property
    def provenance(self) -> Provenance: ...


def phase_of(matrix: LayerValues, tau: float) -> range | None:
    """The layers about the diagonal's maximum whose excess over chance is at least `tau` of the maximum's."""
    if matrix.values.shape[0] != matrix.values.shape[1]:
        raise InputError(f"a {tuple(matrix.values.shape)!r} matrix has no diagonal: pass equally many layers of both")
    if as_number(tau) != 1:  # a bool is not a share
        checked_within(tau, "tau", "a share of the maximum, above 0 and at most 1", high=1.0)
    raised = (matrix.values - floor_of(matrix)).diagonal()
    above = above_floor(matrix).diagonal() & ~(matrix.p_diagonal > LEVEL)  # NaN, without shuffles, does not count
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


def floor_of(matrix: LayerValues) -> Float[Tensor, "visual textual"]:
    """The chance level of each pair of layers."""
    return torch.full_like(matrix.values, matrix.chance) if matrix.floor is None else matrix.floor


def above_floor(matrix: LayerValues) -> Bool[Tensor, "visual textual"]:
    """Which values are above chance by their intervals, or themselves where there are no intervals."""
    return (matrix.low if matrix.subsamples else matrix.values) > floor_of(matrix) + _ROUNDING
