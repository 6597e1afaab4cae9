"""Activation patching over the whole grid: every layer, every position.

Two runs of one prompt layout, a *clean* one and a *corrupted* one with another answer. The clean state of one layer
and position is written into the corrupted run, and the metric says how much of the clean answer comes back:
``effect = (patched - corrupted) / (clean - corrupted)``, 0 = nothing, 1 = all of it. The other direction, `noise`,
writes corrupted states into the clean run and reports on the same scale: 1 = still clean, 0 = as corrupted.

All positions of one layer are rows of one forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.models import VLM, Batch
from interp.models.batch import fingerprint
from interp.models.forward import Edit, Read, run_forward, whole, write
from interp.models.places import STATES
from interp.patching.metrics import Measure, Metric, bind, name_of
from interp.results import Provenance, Result

_DIRECTIONS = ("denoise", "noise")
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class PatchResult(Result):
    """The grid of a patching sweep.

    `values[layer, position]` is the metric of the patched run, averaged over rows; `effect` the same on the scale where
    0 is the corrupted run and 1 the clean one. `low` and `high` bound `effect` (mean over rows, 95 %, normal
    approximation; NaN for one row). `per_row[row, layer, position]` holds each row's metric, `clean_rows` and
    `corrupted_rows` its two ends, `clean` and `corrupted` their means. `tokens` names the positions, `columns` says
    where they stand.
    """

    values: Float[Tensor, "layer position"]
    effect: Float[Tensor, "layer position"]
    low: Float[Tensor, "layer position"]
    high: Float[Tensor, "layer position"]
    per_row: Float[Tensor, "row layer position"]
    clean_rows: Float[Tensor, " row"]
    corrupted_rows: Float[Tensor, " row"]
    layers: list[int]
    columns: list[int]
    tokens: list[str]
    site: str
    metric: str

    def __post_init__(self) -> None:
        grid = (len(self.layers), len(self.columns))
        if self.values.shape != grid or self.per_row.shape[1:] != grid or len(self.tokens) != grid[1]:
            raise InputError(f"values of shape {tuple(self.values.shape)} do not fit {grid} layers and positions")

    @property
    def clean(self) -> float:
        return self.clean_rows.mean().item()

    @property
    def corrupted(self) -> float:
        return self.corrupted_rows.mean().item()

    def to_frame(self) -> pd.DataFrame:
        columns = ["layer", "position", "token", "value", "effect", "low", "high"]
        rows = [
            [layer, column, token, *(float(grid[i, j]) for grid in (self.values, self.effect, self.low, self.high))]
            for i, layer in enumerate(self.layers)
            for j, (column, token) in enumerate(zip(self.columns, self.tokens, strict=True))
        ]
        return pd.DataFrame(rows, columns=columns)


def patch_sweep(
    vlm: VLM,
    clean: Batch,
    corrupted: Batch,
    site: str = "resid_pre",
    layers: Any = "all",
    positions: Any = "all",
    direction: str = "denoise",
    *,
    metric: Metric | Measure,
) -> PatchResult:
    """Patch each layer and position on its own and measure how much of the answer moves with it.

    `clean` and `corrupted` have as many rows, of equal layout: as many tokens, images in the same places. `positions`
    selects the same places in every row. `effect` is a ratio of means over rows, ``mean(patched - corrupted) /
    mean(clean - corrupted)``, which rows whose two runs hardly differ cannot blow up.

    Raises `InputError` where the two batches do not have the same layout, the metric does not tell the two runs apart,
    a position is not the same in all rows, or a name is unknown.

    Source: activation patching as in Meng et al. 2022 and Heimersheim and Nanda 2024.

    >>> import interp
    >>> from interp.patching import patch_sweep, logit_difference
    >>> vlm = interp.load("toy")
    >>> clean = vlm.prepare(texts=["a red 3 at top . what colour is the 3 ?"])
    >>> corrupted = vlm.prepare(texts=["a blue 3 at top . what colour is the 3 ?"])
    >>> result = patch_sweep(vlm, clean, corrupted, positions=[2, -1], metric=logit_difference("red", "blue"))
    >>> result.effect.shape
    torch.Size([8, 2])
    """
    if direction not in _DIRECTIONS:
        raise InputError(f"direction={direction!r}: expected one of {', '.join(_DIRECTIONS)}")
    if site not in STATES:
        raise InputError(f"site={site!r} is unknown: use one of {', '.join(STATES)}")
    chosen = vlm.layer_indices(layers)
    columns = _same_columns(clean, corrupted, positions)
    measures = [bind(metric, vlm, len(clean), row) for row in range(len(clean))]
    clean_rows, corrupted_rows = (
        _measured(measures, run_forward(vlm, batch)["logits"]) for batch in (clean, corrupted)
    )
    span = (clean_rows - corrupted_rows).mean()
    if not span.abs() > 1e-6:
        raise InputError(
            f"the metric {name_of(metric)!r} is {clean_rows.mean().item():.4g} on clean and {corrupted_rows.mean().item():.4g} "
            "on corrupted: expected runs with different answers"
        )
    source, target = (clean, corrupted) if direction == "denoise" else (corrupted, clean)
    per_row = torch.stack(
        [
            _grid(vlm, source.row(row), target.row(row), site, chosen, columns[row], measure)
            for row, measure in enumerate(measures)
        ]
    )
    shares = (per_row - corrupted_rows[:, None, None]) / span
    effect = shares.mean(dim=0)
    half = 1.96 * shares.std(dim=0) / math.sqrt(len(shares)) if len(shares) > 1 else torch.full_like(effect, math.nan)
    first_row = clean.row(0)
    return PatchResult(
        values=per_row.mean(dim=0),
        effect=effect,
        low=effect - half,
        high=effect + half,
        per_row=per_row,
        clean_rows=clean_rows,
        corrupted_rows=corrupted_rows,
        layers=chosen,
        columns=columns[0],
        tokens=[first_row.tokens[0][column] for column in columns[0]],
        site=site,
        metric=name_of(metric),
        provenance=Provenance(model=vlm.name, revision=vlm.revision, data=fingerprint(clean, corrupted)),
    )


def _same_columns(clean: Batch, corrupted: Batch, positions: Any) -> list[list[int]]:
    """The selected columns of each row, counted without padding; equal layouts are what makes patching meaningful."""
    if len(clean) != len(corrupted):
        raise InputError(f"{len(clean)} clean and {len(corrupted)} corrupted rows: expected pairs")
    columns: list[list[int]] = []
    for index in range(len(clean)):
        kinds = []
        for batch in (clean, corrupted):
            real = batch.positions["all"][index]
            kinds.append((batch.positions["image"][index][real], batch.positions.select(positions)[index][real]))
        same = kinds[0][0].shape == kinds[1][0].shape and bool((kinds[0][0] == kinds[1][0]).all())
        if not same:
            raise InputError(
                f"row {index}: clean has {len(kinds[0][0])} tokens and corrupted {len(kinds[1][0])}, or images in other "
                "places: expected equal layouts, as interp.toy.pairs gives"
            )
        columns.append(kinds[0][1].nonzero().flatten().tolist())
    if not columns[0] or any(len(row) != len(columns[0]) for row in columns):
        raise InputError(
            f"positions={positions!r} selects {[len(row) for row in columns]} positions: expected as many in each row"
        )
    return columns


def _measured(measures: Sequence[Measure], logits: Tensor) -> Tensor:
    """Each row's own metric of its logits, Float `[row]`."""
    return torch.cat([measure(logits[row : row + 1]).cpu() for row, measure in enumerate(measures)])


def _grid(
    vlm: VLM, source: Batch, target: Batch, site: str, layers: Sequence[int], columns: list[int], measure: Measure
) -> Tensor:
    """The metric `[layer, position]` of one target row, with the source row's state written in one place at a time."""
    reads = [Read(layer, site, layer, whole) for layer in layers]
    given = run_forward(vlm, source, reads=reads, logits=None)
    grid = torch.empty(len(layers), len(columns))
    for i, layer in enumerate(layers):
        for start in range(0, len(columns), _ROWS_AT_ONCE):
            part = torch.tensor(columns[start : start + _ROWS_AT_ONCE])
            new = given[layer][0, part.to(given[layer].device)]
            edit = Edit(site, layer, write, (torch.arange(len(part)), part, new))
            logits = run_forward(vlm, target.repeat(len(part)), [edit])["logits"]
            grid[i, start : start + len(part)] = measure(logits).cpu()
    return grid
