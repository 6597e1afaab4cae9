"""The grid of a patching sweep: what the metric was in each cell, and how much of the answer came back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import scipy.stats
from jaxtyping import Float, UInt8
from torch import Tensor

from interp.errors import InputError
from interp.results import Result
from interp.statistics.bootstrap import bootstrap_ratio


@dataclass(frozen=True)
class PatchResult(Result):
    """The grid of a patching sweep: layers by positions, and by heads where these were patched one at a time.

    `values` is the metric of the patched run, averaged over rows; `effect` the same on the scale where 0 is the corrupted
    run and 1 the clean one, a ratio of means over rows. `low` and `high` bound `effect` (95 %, bootstrap over rows; NaN for
    one row). `per_row` holds each row's metric, `clean_rows` and `corrupted_rows` its two ends, `clean` and `corrupted` their
    means.

    `tokens` names the positions and `columns` lists, for each, the columns that were patched together in the first row:
    one of a token, all of a named group. Where single patches of the first row's picture are among them, `picture` is that
    picture and `boxes` says where on it they lie, as shares of its width and height, NaN for other positions.

    `method` is "exact" or "gradient"; for an exact grid the provenance says how the cells were computed.
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

    def rank_correlation(self, other: PatchResult) -> float:
        """Spearman's correlation of the effects of this grid and another over all their cells, NaN where one is constant.

        Says how well an approximation (`attribution_patch`) orders the cells of the exact grid. Its control is the same
        with the exact grid of other pairs of this layout: what the layout alone gives away. Raises `InputError` for grids
        of different cells.
        """
        flat = [effect.numpy() for effect in self._effects(other)]
        if any(len(effect) < 2 or effect.min() == effect.max() for effect in flat):
            return float("nan")
        return float(scipy.stats.spearmanr(*flat).statistic)

    def top_found(self, other: PatchResult, cells: int = 10) -> float:
        """The share of another grid's `cells` largest effects, of either sign, that are among as many largest of this one.

        Says what is missed when only the cells that an approximation shows are looked at; most of the others are near 0,
        and their order, which counts in a rank correlation, is of no interest. By chance it is `cells` over the number of
        all cells. Raises `InputError` for grids of different cells, and for more cells than there are.
        """
        mine, theirs = self._effects(other)
        if not 1 <= cells <= len(mine):
            raise InputError(f"cells={cells!r}: these grids have {len(mine)} cells, expected an int from 1 to that")
        top = [set(effect.abs().topk(cells).indices.tolist()) for effect in (mine, theirs)]
        return len(top[0] & top[1]) / cells

    def _effects(self, other: PatchResult) -> tuple[Tensor, Tensor]:
        """The effects of two grids of the same cells, one after the other."""
        mine, theirs = ((each.site, each.layers, each.columns, each.heads) for each in (self, other))
        if mine != theirs:
            raise InputError(
                f"{_said(self)} and {_said(other)} have different cells: expected two grids of the same site, layers, "
                "positions and heads"
            )
        return self.effect.flatten(), other.effect.flatten()

    def to_frame(self) -> pd.DataFrame:
        names = ["layer", "position", "token", *(() if self.heads is None else ("head",))]
        grids = [grid.flatten(2) if self.heads else grid[..., None] for grid in self._grids()]
        rows = [
            [layer, ", ".join(map(str, columns)) if len(columns) > 1 else columns[0], token, *head, *cell]
            for i, layer in enumerate(self.layers)
            for j, (columns, token) in enumerate(zip(self.columns, self.tokens, strict=True))
            for k, head in enumerate([()] if self.heads is None else [(head,) for head in self.heads])
            for cell in [[float(grid[i, j, k]) for grid in grids]]
        ]
        return pd.DataFrame(rows, columns=[*names, "value", "effect", "low", "high"])

    def _grids(self) -> tuple[Tensor, ...]:
        return self.values, self.effect, self.low, self.high


def on_the_scale(
    per_row: Float[Tensor, "row ..."], clean: Float[Tensor, " row"], corrupted: Float[Tensor, " row"], seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """`effect`, `low` and `high` of a grid: ``mean(patched - corrupted) / mean(clean - corrupted)`` and its bounds.

    A ratio of means, which rows whose two runs hardly differ cannot blow up.
    """
    moved = per_row - corrupted.reshape(-1, *[1] * (per_row.ndim - 1))
    span = clean - corrupted
    return moved.mean(dim=0) / span.mean(), *bootstrap_ratio(moved, span, seed)


def _said(result: PatchResult) -> str:
    heads = "" if result.heads is None else f", heads {result.heads}"
    return f"{result.site} in layers {_ends(result.layers)} at {len(result.columns)} positions{heads}"


def _ends(layers: Sequence[int]) -> str:
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"
