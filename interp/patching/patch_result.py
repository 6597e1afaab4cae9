"""The result of a patching sweep: the metric in each cell of the grid, and how much of the answer comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd
import scipy.stats
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from interp.arguments import checked_int
from interp.errors import InputError
from interp.patching.family_changes import change_from, common_rows, family_change, few_notes, rounded, sign_flip_p
from interp.results import Result
from interp.statistics import Change
from interp.statistics.intervals import few_rows, mean_interval, ratio_interval

# A span under this share of the metric is small.
_SMALL = 0.01


@dataclass(frozen=True)
class PatchResult(Result):
    """The grid of a patching sweep: layers by positions, and by heads if these were patched one at a time.

    `values` is the metric of the patched run, averaged over rows. `effect` is the same on a scale where 0 is the corrupted run
    and 1 the clean one: a ratio of means over rows. `low` and `high` bound `effect` (95 %, `ratio_interval`; NaN for one
    row). `per_row` holds each row's metric, `clean_rows` and `corrupted_rows` the metric of the two unpatched runs, and `clean`
    and `corrupted` their means.

    All labels say what holds in every row. `tokens` names the positions: the word there ("clean / corrupted" where the two
    runs differ), "patch 2,3" (row and column, from 0), the name of a group, or as in "9 words: 0, 1, 2 …" how many words
    differ. `columns` lists, for each, the positions that were patched together, counted without padding: one for a token,
    all of a named group, none where rows differ. `roles` are "image", "last", "special", "question" or "text" (question and
    last), and `patches` the row and column of single patches, None where rows differ; both are None in older files.

    If single patches are among the positions and all clean rows have one picture of one size, `boxes` gives their places on
    it, as shares of its width and height, with NaN for other positions. `picture` is the picture if it is the same in all.

    `right_clean` and `right_corrupted` say which of the given rows the model answers rightly on either side (None for metrics
    without an answer, and in older files), and `kept` which of them the result has: all, or those that are right on both.

    `p` is that of each cell among all cells: does the patch change anything? `change(other)` compares two results row by row.

    `control_rows` is the metric of each row with the states of a random donor, another row with another answer, `control` its
    effect, on the same scale, and `beyond_control()` what the row's own partner does beyond it; None if it was not asked for.

    `method` is "exact" or "gradient". The notes of an exact grid's provenance say how the cells were computed.
    """

    values: Float[Tensor, "layer position *head"]
    effect: Float[Tensor, "layer position *head"]
    low: Float[Tensor, "layer position *head"]
    high: Float[Tensor, "layer position *head"]
    per_row: Float[Tensor, "row layer position *head"]
    clean_rows: Float[Tensor, " row"]
    corrupted_rows: Float[Tensor, " row"]
    layers: list[int]
    columns: list[list[int]]
    tokens: list[str]
    site: str
    metric: str
    direction: str
    heads: list[int] | None = None
    method: str = "exact"
    picture: UInt8[Tensor, "height width 3"] | None = None
    boxes: Float[Tensor, "position 4"] | None = None
    roles: list[str | None] | None = None
    patches: list[tuple[int, int] | None] | None = None
    control_rows: Float[Tensor, "row layer position *head"] | None = None
    right_clean: Bool[Tensor, " given"] | None = None
    right_corrupted: Bool[Tensor, " given"] | None = None
    kept: Bool[Tensor, " given"] | None = None

    def __post_init__(self) -> None:
        grid = (len(self.layers), len(self.columns), *(() if self.heads is None else (len(self.heads),)))
        if self.values.shape != grid or self.per_row.shape[1:] != grid or len(self.tokens) != grid[1]:
            raise InputError(f"values of shape {tuple(self.values.shape)} do not fit the grid {grid}")

    @property
    def clean(self) -> float:
        return self.clean_rows.mean().item()

    @property
    def corrupted(self) -> float:
        return self.corrupted_rows.mean().item()

    @property
    def control(self) -> Float[Tensor, "layer position *head"] | None:
        """The effect with the states of random donors: what any run with another answer does in this cell."""
        if self.control_rows is None:
            return None
        span = (self.clean_rows - self.corrupted_rows).mean()
        return change_from(self.corrupted_rows, self.control_rows).mean(dim=0) / span

    @cached_property
    def p(self) -> Float[Tensor, "layer position *head"]:
        """The p of each cell among all cells of the grid: does the patch change the metric of the run that it is written into?

        From signs that are flipped row by row, shared by all cells; NaN for fewer than 6 rows (`family_changes`).
        """
        target = self.corrupted_rows if self.direction == "denoise" else self.clean_rows
        changed = change_from(target, self.per_row)
        return sign_flip_p(rounded(changed, self.per_row.abs()), self.provenance.seed or 0)

    def change(self, other: PatchResult) -> Change:
        """How much larger each effect is in another result of the same rows, such as that of another checkpoint.

        Paired: of each result, row i counts as ``effect + (change_i - effect span_i) / mean(span)``, whose mean is the effect.
        The bounds are those of the mean difference, and p is that of each cell among all (`family_changes`). Rows count that both
        results keep. Where a span may be 0, the bounds are infinite and p is NaN.

        Raises `InputError` for grids of different cells, metrics, directions or rows.
        """
        self._effects(other)
        for name in ("metric", "direction"):
            one, two = getattr(self, name), getattr(other, name)
            if one != two:
                raise InputError(f"{name}s {one!r} and {two!r}: expected two results with the same {name}")
        rows = common_rows((self.provenance, self._given), (other.provenance, other._given))
        parts = [
            (change_from(each.corrupted_rows, each.per_row)[few], (each.clean_rows - each.corrupted_rows)[few])
            for each, few in zip((self, other), rows, strict=True)
        ]
        return _change_of_effects(parts, self.provenance.seed or 0)

    def beyond_control(self) -> Change:
        """How much larger each effect is than that of the random donors, paired by row as in `change`.

        Raises `InputError` for a result without a control.
        """
        if self.control_rows is None:
            raise InputError("this result has no control: expected one of a sweep with control=True")
        span = self.clean_rows - self.corrupted_rows
        parts = [(change_from(self.corrupted_rows, rows), span) for rows in (self.control_rows, self.per_row)]
        return _change_of_effects(parts, self.provenance.seed or 0)

    @property
    def _given(self) -> Bool[Tensor, " given"]:
        return torch.ones(len(self.per_row), dtype=torch.bool) if self.kept is None else self.kept

    def rank_correlation(self, other: PatchResult) -> float:
        """Spearman's correlation of the effects of this grid and another over all their cells, NaN if one is constant.

        It says how well an approximation (`attribution_patch`) orders the cells of the exact grid. The control is the same
        correlation with the exact grid of other pairs of this layout: what the layout alone predicts. The number describes these
        rows: it has no interval, and cells are not independent, so the p of a correlation would mean nothing. To see how far it
        depends on the rows, compute it for several sets of pairs. Raises `InputError` for grids of different cells.
        """
        effects = [effect.numpy() for effect in self._effects(other)]
        if any(len(effect) < 2 or effect.min() == effect.max() for effect in effects):
            return float("nan")
        return float(scipy.stats.spearmanr(*effects).statistic)

    def top_found(self, other: PatchResult, cells: int = 10) -> float:
        """The share of another grid's `cells` largest effects, of either sign, that are among as many largest of this one.

        It says what you miss if you look only at the cells that an approximation shows. Most other cells are near 0, and
        their order, which counts in a rank correlation, is of no interest. By chance it is `cells` over the number of all
        cells, and the layout alone gives more. It has no interval, as `rank_correlation` has none. Raises `InputError` for grids
        of different cells, and for more cells than there are.
        """
        effects = self._effects(other)
        checked_int(cells, "cells", 1, len(effects[0]))
        top = [set(effect.abs().topk(cells).indices.tolist()) for effect in effects]
        return len(top[0] & top[1]) / cells

    def _effects(self, other: PatchResult) -> tuple[Tensor, Tensor]:
        """The effects of two grids of the same cells, one after the other. Positions that differ between rows fit any."""
        one, two = ((each.site, each.layers, each.heads, len(each.columns)) for each in (self, other))
        if one != two or any(a != b for a, b in zip(self.columns, other.columns, strict=True) if a and b):
            raise InputError(
                f"{_description(self)} and {_description(other)} have different cells: expected two grids of the same site, "
                "layers, positions and heads"
            )
        return self.effect.flatten(), other.effect.flatten()

    def to_frame(self) -> pd.DataFrame:
        """One row a cell: layer, position ("differs" where rows differ), token, role, patch_row, patch_column, head if heads
        were patched one at a time, value, effect, low, high, p (among all cells), control."""
        control = torch.full_like(self.effect, torch.nan) if self.control is None else self.control
        parts = (self.values, self.effect, self.low, self.high, self.p, control)
        grids = [part if self.heads else part[..., None] for part in parts]
        rows = [
            [layer, *place, *head, *(float(grid[i, j, k]) for grid in grids)]
            for i, layer in enumerate(self.layers)
            for j, place in enumerate(self._places())
            for k, head in enumerate([()] if self.heads is None else [(head,) for head in self.heads])
        ]
        names = ["layer", "position", "token", "role", "patch_row", "patch_column"]
        names += [*(() if self.heads is None else ("head",)), "value", "effect", "low", "high", "p", "control"]
        return pd.DataFrame(rows, columns=names).astype({"patch_row": "Int64", "patch_column": "Int64"})

    def _places(self) -> list[tuple[Any, ...]]:
        """For each column its positions, name, role, patch row and patch column, as a frame shows them."""
        unknown = [None] * len(self.columns)
        labels = zip(self.columns, self.tokens, self.roles or unknown, self.patches or unknown, strict=True)
        return [
            (_position_text(columns), token, role, *((None, None) if patch is None else patch))
            for columns, token, role, patch in labels
        ]


def _position_text(columns: list[int]) -> int | str:
    """The positions of a column of the grid: one as an int, several as a list, "differs" where rows differ."""
    return columns[0] if len(columns) == 1 else ", ".join(map(str, columns)) or "differs"


def relative_effect(
    per_row: Float[Tensor, "row ..."], clean: Float[Tensor, " row"], corrupted: Float[Tensor, " row"], seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """`effect`, `low` and `high` of a grid: ``mean(patched - corrupted) / mean(clean - corrupted)`` and its bounds.

    It is a ratio of means, so a row whose two runs hardly differ cannot dominate it. Where the mean span, the denominator,
    may be 0 (`is_uncertain`), any ratio is possible, and the bounds are infinite.
    """
    change, span = change_from(corrupted, per_row), clean - corrupted
    low, high = ratio_interval(change, span, seed=seed)
    if len(span) > 1 and is_uncertain(span):
        low, high = torch.full_like(low, -torch.inf), torch.full_like(high, torch.inf)
    return change.mean(dim=0) / span.mean(), low, high


def _change_of_effects(parts: Sequence[tuple[Tensor, Tensor]], seed: int) -> Change:
    """The change between two effects, each of the changes of rows in every cell and of their spans."""
    before, after = (_effects_of_rows(change.double(), span.double()) for change, span in parts)
    found = family_change(before, after, seed)
    if len(before) > 1 and any(is_uncertain(span) for _, span in parts):
        nowhere = torch.full_like(found.low, torch.inf)
        return replace(found, low=-nowhere, high=nowhere, p=nowhere * torch.nan)
    return found


def _effects_of_rows(change: Float[Tensor, "row ..."], span: Float[Tensor, " row"]) -> Float[Tensor, "row ..."]:
    """For each row ``effect + (change - effect span) / mean(span)``: their mean is the effect, and they differ from each other
    as the effect would between draws of rows."""
    effect = change.mean(dim=0) / span.mean()
    return effect + (change - effect * span.reshape(-1, *[1] * (change.ndim - 1))) / span.mean()


def is_uncertain(span: Float[Tensor, " row"]) -> bool:
    """Whether the mean of clean - corrupted may be 0: it is under two standard errors, or its `mean_interval` holds 0. A single
    row has no error; its span is compared with the size of the metric in `notes_of_rows`.

    >>> is_uncertain(torch.tensor([1.0, 1.2, 0.9])), is_uncertain(torch.tensor([3.0, -2.0, 0.5]))
    (False, True)
    """
    low, high = mean_interval(span)
    return bool(low <= 0 <= high or span.mean().abs() < 2 * span.std() / len(span) ** 0.5)


def notes_of_rows(clean: Float[Tensor, " row"], corrupted: Float[Tensor, " row"]) -> tuple[str, ...]:
    """What the rows are too few or too alike for, in words."""
    span, n = clean - corrupted, len(clean)
    mean, notes = f"clean - corrupted is {span.mean().item():.3g}", (*few_rows(n), *few_notes(n))
    if n > 1 and is_uncertain(span):
        error = f"{mean} on average, with a standard error of {(span.std() / n**0.5).item():.2g}"
        remedy = "it may be 0, so effects may be anything: read values, or choose rows with keep='right'"
        notes = (f"{error} over {n} rows, {remedy}", *notes)
    if n == 1 and span.abs().item() < _SMALL * max(clean.abs().item(), corrupted.abs().item()):
        notes = (f"{mean}, under {_SMALL:.0%} of the metric: the effects are ratios of two small differences", *notes)
    return notes


def _description(result: PatchResult) -> str:
    heads = "" if result.heads is None else f", heads {result.heads}"
    first, last = result.layers[0], result.layers[-1]
    layers = str(first) if len(result.layers) == 1 else f"{first} to {last}"
    return f"{result.site} in layers {layers} at {len(result.columns)} positions{heads}"
