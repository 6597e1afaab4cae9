"""The bypass: which textual layer is each visual layer most like, and is an intermediate one more alike than the first?

A gain of an intermediate layer over the first says which layers are more alike, not where features enter:
`interp.geometry.entry` has the controls that tell the two apart. The functions here take an `AlignmentMatrix` for its arrays
alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import as_number
from interp.errors import InputError
from interp.geometry.clouds import checked_within
from interp.geometry.entry import COLUMNS, entry_contrasts, entry_verdict
from interp.geometry.phase import LEVEL, LayerValues, above_floor
from interp.geometry.shuffles import joint_p
from interp.results import Result
from interp.statistics.half_samples import interval, standard_error
from interp.statistics.permutation import permutation_p
from interp.statistics.verdicts import Verdict

INTERMEDIATE = (0.15, 0.85)
SMALLEST = 0.05  # the smallest effect of interest, in units of the measure


def bypass_of(
    matrix: LayerValues, band: tuple[float, float], controls: Mapping[str, LayerValues], smallest: float
) -> BypassResult:
    """The bypass of a matrix, with the textual layers strictly inside `band` of the depth as the intermediate ones."""
    checked_within(smallest, "smallest", "the smallest effect of interest, above 0")
    ends = [as_number(end) for end in band] if isinstance(band, tuple | list) else []
    if len(ends) != 2 or None in ends or not 0 <= ends[0] < ends[1] <= 1:  # type: ignore[operator]
        raise InputError(f"band={band!r}: expected two relative depths, 0 <= low < high <= 1")
    n_visual, n_textual = matrix.values.shape
    depths = torch.arange(n_textual, dtype=torch.float64) / max(1, n_textual - 1)
    middle = (band[0] < depths) & (depths < band[1])
    rows = torch.arange(n_visual)
    best = matrix.values.argmax(dim=1)
    gain = torch.full_like(matrix.values[:, 0], torch.nan)
    if middle.any():
        gain = matrix.values[:, middle].amax(dim=1) - matrix.values[:, 0]
    gain_low, gain_high = interval(
        gain, _gain_error(matrix, middle), halves=math.inf if matrix.parts is None else len(matrix.parts)
    )
    return BypassResult(
        best=best,
        shift=best - rows,
        values=matrix.values[rows, best],
        low=matrix.low[rows, best],
        high=matrix.high[rows, best],
        chance=matrix.chance,
        intermediate=bool(middle[best[0]] and above_floor(matrix)[0, best[0]] and not _entry_p(matrix, best) > LEVEL),
        entry_gain=float(matrix.values[0, best[0]] - matrix.values[0, 0]),
        gain=gain,
        gain_low=gain_low,
        gain_high=gain_high,
        p=_gain_p(matrix, gain, middle),
        band=(float(band[0]), float(band[1])),
        contrasts=entry_contrasts(matrix, middle, controls),
        smallest=float(smallest),
        provenance=matrix.provenance,
    )


def _entry_p(matrix: LayerValues, best: Tensor) -> float:
    """The p of the best textual layer of visual layer 0, corrected for the choice among all; NaN without shuffles."""
    if matrix.null is None:
        return torch.nan
    return float(joint_p(matrix.values[0], matrix.null[:, 0])[best[0]])


def _gain_error(matrix: LayerValues, middle: Tensor) -> Tensor:
    """The standard error of the gain, with the same best intermediate layer in all halves."""
    if matrix.parts is None or not len(matrix.parts) or not middle.any():
        return torch.full_like(matrix.values[:, 0], torch.nan)
    chosen = torch.where(middle, matrix.values, -torch.inf).argmax(dim=1)
    rows = torch.arange(len(matrix.values))
    return standard_error(matrix.parts[:, rows, chosen] - matrix.parts[:, :, 0], matrix.n)


def _gain_p(matrix: LayerValues, gain: Tensor, middle: Tensor) -> Tensor:
    if matrix.flips is None or not middle.any():
        return torch.full_like(gain, torch.nan)
    reached = (matrix.flips[:, :, middle].amax(dim=2) >= gain).sum(dim=0)
    return torch.from_numpy(permutation_p(reached.numpy(), len(matrix.flips))).float()


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
    and its `low` is above `chance`, with a p of at most 0.05 among all textual layers; `entry_gain` is S[0, best] - S[0, 0].

    None of this says that features *enter* there: all clouds that share some content have a gain where textual layer 0 is the
    worse readout of it. `verdict` does, with a placebo. `contrasts` has the gain of visual state 0 at each intermediate layer,
    alone and beyond each control (`interp.geometry.entry`); `smallest` is the smallest effect of interest, in units of the
    measure.
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
    contrasts: pd.DataFrame | None = None
    smallest: float = SMALLEST

    @property
    def verdict(self) -> Verdict:
        """Whether visual features enter at intermediate textual layers: "supported", "contradicted" or "undecided".

        Supported where some intermediate layer is ahead of textual layer 0 by more than each control explains: where the least
        lower bound over `contrasts` is above 0 and the estimate at least half of `smallest`. Contradicted where the gain, or what
        is left of it beyond a control, is below `smallest`. Without a placebo it is never supported: pass one to `bypass`.
        """
        return self._judged[0]

    @property
    def entry_p(self) -> float:
        """The p of the claim that `verdict` judges, the largest over controls; NaN without a placebo."""
        return self._judged[1]

    @property
    def _judged(self) -> tuple[Verdict, float]:
        frame = pd.DataFrame(columns=COLUMNS) if self.contrasts is None else self.contrasts
        return entry_verdict(frame, self.smallest)

    def to_frame(self) -> pd.DataFrame:
        """One row for each visual layer: visual, textual (the best), shift, value, low, high, chance, gain, gain_low,
        gain_high, p."""
        columns = {"textual": self.best, "shift": self.shift, "value": self.values, "low": self.low, "high": self.high}
        frame = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
        frame.insert(0, "visual", range(len(frame)))
        gains = {"gain": self.gain, "gain_low": self.gain_low, "gain_high": self.gain_high, "p": self.p}
        return frame.assign(chance=self.chance, **{name: column.numpy() for name, column in gains.items()})
