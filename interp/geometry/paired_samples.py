"""Paired samples: how sure is the difference of a value before and after, such as of two checkpoints, on the same examples?

The two values have most of their error in common: which examples were drawn. So not the two errors are compared, but the
differences of each example, or of each half:

- where the *influence* of each example is known (`interp.geometry.layer_grids`): p and interval are those of
  `interp.statistics.paired_change`, and the p of a family is that of its largest difference over its error, when examples change
  sides at random, the same ones for all cells (Westfall and Young 1993);
- else from the differences of the same *half-samples*, which are 1.0 to 1.7 times too large: p and interval are Student's with
  one degree of freedom less than halves, and the p of a family is Holm's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import norm, t
from torch import Tensor

from interp.errors import InputError
from interp.statistics import family_p, holm, paired_change
from interp.statistics.half_samples import NORMAL_95, generator, standard_error

SIGNS = 1999


@dataclass(frozen=True, eq=False)
class CellChanges:
    """The difference of each cell with its standard error, 95 % interval and p, and the same after `flips`, None where
    influences are unknown."""

    difference: Float[Tensor, " cell"]
    error: Float[Tensor, " cell"]
    low: Float[Tensor, " cell"]
    high: Float[Tensor, " cell"]
    p: Float[Tensor, " cell"]
    flips: Float[Tensor, "draw cell"] | None

    def family(self, cells: Sequence[int] | Tensor) -> Float[Tensor, " some"]:
        """The p of some cells, corrected for the look at all of them."""
        if self.flips is None:
            return torch.from_numpy(holm(self.p[cells].numpy()))
        return family_p(self.difference[cells].abs(), self.flips[:, cells].abs())


def changes_by_influence(
    difference: Float[Tensor, " cell"],
    before: Float[Tensor, "cell example"],
    after: Float[Tensor, "cell example"],
    seed: int,
) -> CellChanges:
    """The changes of cells from the influence of each example on them."""
    change = paired_change(before.T.double(), after.T.double(), seed=seed)
    each = (after.double() - before.double()).T
    n = len(each)
    signs = generator(seed).integers(0, 2, size=(SIGNS, n)) * 2 - 1
    flips = torch.from_numpy(signs).double() @ each / n
    same = (each == 0).all(dim=0)  # zeros alone would be read as answers, none of them right
    low, high = (
        torch.where(same, difference, difference + bound - change.difference) for bound in (change.low, change.high)
    )
    return CellChanges(difference, each.std(dim=0) / n**0.5, low, high, change.p, flips)


def changes_by_halves(
    difference: Float[Tensor, " cell"], before: Float[Tensor, "half cell"], after: Float[Tensor, "half cell"], n: int
) -> CellChanges:
    """The changes of cells from their values in the same halves of `n` examples."""
    error = standard_error(after.double() - before.double(), n)
    freedom = len(before) - 1
    ratio = torch.where(difference == 0, 0.0, difference.abs() / error)
    p = torch.from_numpy(2 * t.sf(ratio.numpy(), freedom))
    reach = float(t.ppf(0.975, freedom)) * error
    return CellChanges(difference, error, difference - reach, difference + reach, p, None)


@dataclass(frozen=True, eq=False)
class NumberSamples:
    """The rows of a frame of numbers (measure, modality, state, value, error) with the samples behind each, NaN or None where
    there are none."""

    frame: pd.DataFrame
    parts: Float[Tensor, "row half"] | None
    influence: Float[Tensor, "row example"] | None
    n: int


def frame_of_changes(before: NumberSamples, after: NumberSamples, seed: int) -> pd.DataFrame:
    """The change of each number that both have, in pairs where both have samples; the states of a measure are a family.

    Numbers without samples are compared as if independent: error sqrt(e^2 + e'^2), p of the normal distribution, `paired` False.
    """
    keys = ["measure", "modality", "state"]
    rows = [each.frame[[*keys, "value", "error"]].assign(row=range(len(each.frame))) for each in (before, after)]
    both = rows[0].merge(rows[1], on=keys, suffixes=("_before", "_after"))
    if both.empty:
        raise InputError(
            f"the comparisons have no number in common: {sorted(set(before.frame.measure))} at"
            f" {before.frame.state.nunique()} states and {sorted(set(after.frame.measure))} at {after.frame.state.nunique()}"
        )
    change = both[keys].assign(before=both["value_before"], after=both["value_after"])
    change["difference"] = change["after"] - change["before"]
    for _, states in both.groupby(keys[:2], sort=False):
        changes, is_paired = _changes(states, before, after, seed)
        place = states.index
        change.loc[place, "error"] = changes.error.numpy()
        change.loc[place, "z"] = (changes.difference / changes.error).numpy()
        change.loc[place, "p"] = changes.p.numpy()
        change.loc[place, "p_holm"] = holm(changes.p.numpy())
        change.loc[place, "p_family"] = changes.family(range(len(states))).numpy()
        change.loc[place, "paired"] = is_paired
    return change.astype({"paired": bool})


def _changes(states: pd.DataFrame, before: NumberSamples, after: NumberSamples, seed: int) -> tuple[CellChanges, bool]:
    """The changes of the states of one measure, and whether they are in pairs."""
    difference = torch.from_numpy((states["value_after"] - states["value_before"]).to_numpy(copy=True))
    rows = [states[f"row_{name}"].tolist() for name in ("before", "after")]
    one, other = (_known(of.influence, mine) for of, mine in zip((before, after), rows, strict=True))
    if one is not None and other is not None:
        return changes_by_influence(difference, one, other, seed), True
    one, other = (_known(of.parts, mine) for of, mine in zip((before, after), rows, strict=True))
    if one is not None and other is not None:
        return changes_by_halves(difference, one.T, other.T, before.n), True
    error = torch.from_numpy(np.hypot(states["error_before"].to_numpy(), states["error_after"].to_numpy()))
    p = torch.from_numpy(2 * norm.sf((difference.abs() / error).numpy()))
    reach = NORMAL_95 * error
    return CellChanges(difference, error, difference - reach, difference + reach, p, None), False


def _known(samples: Tensor | None, rows: list[int]) -> Float[Tensor, "cell sample"] | None:
    """The samples of some rows; None where one of them has none."""
    mine = None if samples is None else samples[rows]
    return mine if mine is not None and bool(mine.isfinite().all()) else None
