"""The grid of a patching sweep: a request for one is checked, and the numbers of its cells become a result.

`patch_sweep` and `attribution_patch` take the same arguments and give the same kind of result. Each makes a `SweepRequest` of
its arguments; the request makes a `SweepGrid`, which has the pairs, layers, columns and heads of the cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import checked_choice, checked_flag, checked_seed
from interp.errors import InputError, InterpError, shown
from interp.interventions.selection import check_heads_exist, select_heads, select_layers
from interp.models import VLM, Batch, Intervention
from interp.models.running.places import HEADED, STATES, proved_place
from interp.models.running.resume import POSITIONS_AT_ONCE
from interp.models.running.trace import run_forward
from interp.patching.donors import donors_of
from interp.patching.metrics import (
    Metric,
    MetricFunction,
    RowMetric,
    bind_to_pairs,
    difference_of_terms,
    name_of,
    rows_to_run,
)
from interp.patching.paired_batches import PairedBatches, pair_batches, picture_of
from interp.patching.patch_result import PatchResult, notes_of_rows, relative_effect
from interp.patching.right_rows import measure_rows, right_note, right_rows, row_answers, row_measure
from interp.provenance import provenance_of_run

DIRECTIONS = ("denoise", "noise")


@dataclass(frozen=True)
class SweepRequest:
    """The arguments of a sweep, as `patch_sweep` takes them."""

    site: str
    layers: Any
    positions: Any
    heads: Any
    direction: str
    metric: Metric | MetricFunction
    interventions: Sequence[Intervention]
    keep: str | None
    control: bool
    seed: int

    def grid(self, vlm: VLM, clean: Batch, corrupted: Batch) -> SweepGrid:
        """The grid that this request describes. The model runs only to prove a site, and to find the rows to keep.

        Raises `InputError` for an unknown direction, site, layer, position or head, for heads at a site without heads, for
        pairs that do not match, for interventions that do not hold in each row alone, where no row is to be kept, and for a
        control without donors; `LayoutError` for a layer in which the site was not proved.
        """
        control = checked_flag(self.control, "control")
        if self.keep not in (None, "right"):
            raise InputError(f"keep={shown(self.keep)}: expected None, or 'right' for rows that are answered rightly")
        seed = checked_seed(self.seed)
        direction = checked_choice(self.direction, "direction", DIRECTIONS)
        site = checked_choice(self.site, "site", (*STATES, *HEADED))
        pairs = pair_batches(clean, corrupted, self.positions)
        for batch in (clean, corrupted):
            vlm.edits_of(batch, self.interventions)
            _check_rows_alone(vlm, batch, self.interventions)
        layers = select_layers(vlm, self.layers)
        heads = _heads_of_all(vlm, site, layers, self.heads)
        metrics = bind_to_pairs(self.metric, vlm, clean, corrupted)
        data = clean, corrupted
        grid = SweepGrid(
            vlm, pairs, site, layers, heads, direction, name_of(self.metric), metrics, self.interventions, seed, data
        )
        grid = grid if self.keep is None else grid.keep_right()
        return replace(grid, donors=grid.find_donors()) if control else grid


@dataclass(frozen=True)
class SweepGrid:
    """The cells of a sweep: each layer of `site` at each column of `pairs`, and with `heads` each of them alone.

    `metrics` has what the metric of each row is in one run, or in two, the first minus the second. `interventions` hold in all
    runs, and `seed` makes the draws. `data` are the batches that were given. `right` says which of their rows the model answers
    rightly on either side, None if that is not known before the sweep. `donors` are the rows whose states are written in the
    control, None without one.
    """

    vlm: VLM
    pairs: PairedBatches
    site: str
    layers: list[int]
    heads: list[int] | None
    direction: str
    metric: str
    metrics: list[tuple[RowMetric, ...]]
    interventions: Sequence[Intervention]
    seed: int
    data: tuple[Batch, Batch]
    right: tuple[Tensor, Tensor] | None = None
    donors: list[int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The numbers of layers and columns, and of heads if these are patched one at a time."""
        return len(self.layers), len(self.pairs.columns), *(() if self.heads is None else (len(self.heads),))

    @property
    def source_and_target(self) -> tuple[Batch, Batch]:
        """The batch whose states are read, and the batch into whose runs they are written."""
        sides = self.pairs.clean, self.pairs.corrupted
        return sides if self.direction == "denoise" else sides[::-1]

    @property
    def of_donors(self) -> SweepGrid:
        """The same cells with the states of the donors."""
        assert self.donors is not None
        source = self.source_and_target[0].part(self.donors)
        is_clean = self.direction == "denoise"
        pairs = replace(self.pairs, clean=source) if is_clean else replace(self.pairs, corrupted=source)
        return replace(self, pairs=pairs, donors=None)

    def find_donors(self) -> list[int]:
        """A donor for each row. Raises `InputError` for a row without one."""
        side = DIRECTIONS.index(self.direction)  # the first answer is that of clean rows, the second of corrupted ones
        answers = [row_answers(terms)[side : side + 1] for terms in self.metrics]
        known = [str(answer[0].tolist()) for answer in answers if answer]
        return donors_of(self.source_and_target[0], known or None, self.seed)

    def keep_right(self) -> SweepGrid:
        """The grid of the rows alone that the model answers rightly on both sides. Raises `InputError` if there is none."""
        clean, corrupted = (self._measure(batch) for batch in (self.pairs.clean, self.pairs.corrupted))
        right = right_rows(self.metrics, clean, corrupted)
        if right is None:
            raise InputError(
                f"keep='right': the metric {self.metric!r} has no answer to judge rows by: expected logit_difference, "
                "logprob_difference, probability, cross_entropy or logprob"
            )
        rows = (right[0] & right[1]).nonzero().flatten().tolist()
        if not rows:
            raise InputError(
                f"keep='right' leaves no row, {right_note(right)}: expected pairs whose answers this model gives"
            )
        return replace(self, pairs=self.pairs.part(rows), metrics=[self.metrics[row] for row in rows], right=right)

    def portions(self, positions: int) -> list[list[int]]:
        """The rows that share a pass of at most so many positions. With interventions, each row runs alone."""
        rows, longest = list(range(len(self.pairs))), self.pairs.clean.inputs["input_ids"].shape[1]
        size = 1 if self.interventions else max(1, positions // longest)
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _measure(self, batch: Batch) -> Tensor:
        """What `measured` gives of each row of a side, `[row, 2]`."""
        values = []
        for rows in self.portions(POSITIONS_AT_ONCE):
            of_terms = []
            for terms in zip(*(self.metrics[row] for row in rows), strict=True):
                part = rows_to_run(self.vlm, batch.part(rows), terms)
                logits = run_forward(self.vlm, part, self.vlm.edits_of(part, self.interventions))["logits"]
                of_terms.append(measure_rows(logits, list(map(row_measure, terms))).cpu())
            values.append(difference_of_terms(of_terms))
        return torch.cat(values)

    def result(
        self,
        runs: tuple[Float[Tensor, "row 2"], Float[Tensor, "row 2"]],
        per_row: Float[Tensor, "row layer position *head"],
        control_rows: Float[Tensor, "row layer position *head"] | None,
        notes: tuple[str, ...],
        method: str,
    ) -> PatchResult:
        """The result with the metric of every cell in every row, that of the control, and what `row_measure` gives of the
        source and the target run.

        Raises `InputError` for clean and corrupted runs with one metric, so that no share of it can come back.
        """
        sides = runs if self.direction == "denoise" else runs[::-1]
        clean, corrupted = (side[:, 0] for side in sides)
        if not (clean - corrupted).mean().abs() > 1e-6:
            raise InputError(
                f"the metric {self.metric!r} is {clean.mean().item():.4g} on clean and {corrupted.mean().item():.4g} "
                "on corrupted: expected runs with different answers"
            )
        right = self.right or right_rows(self.metrics, *sides)
        kept = torch.ones(len(clean), dtype=torch.bool) if self.right is None else self.right[0] & self.right[1]
        effect, low, high = relative_effect(per_row, clean, corrupted, self.seed)
        notes += (right_note(right), *notes_of_rows(clean, corrupted))
        picture, boxes = picture_of(self.pairs)
        columns = self.pairs.columns
        return PatchResult(
            values=per_row.mean(dim=0),
            effect=effect,
            low=low,
            high=high,
            per_row=per_row,
            clean_rows=clean,
            corrupted_rows=corrupted,
            layers=self.layers,
            columns=[column.positions for column in columns],
            tokens=[column.name for column in columns],
            site=self.site,
            metric=self.metric,
            direction=self.direction,
            heads=self.heads,
            method=method,
            picture=picture,
            boxes=boxes,
            roles=[column.role for column in columns],
            patches=[column.patch for column in columns],
            control_rows=control_rows,
            right_clean=None if right is None else right[0],
            right_corrupted=None if right is None else right[1],
            kept=kept,
            provenance=provenance_of_run(self.vlm, self.data, self.interventions, self.seed, notes),
        )


def _check_rows_alone(vlm: VLM, batch: Batch, interventions: Sequence[Intervention]) -> None:
    """Refuse interventions that hold in a batch but not in each row alone: a mask of all rows, the states of another row."""
    for row in range(len(batch)) if interventions and len(batch) > 1 else ():
        try:
            vlm.edits_of(batch.row(row), interventions)
        except InterpError as error:
            raise InputError(
                f"interventions must hold in each row alone, as a sweep runs it, and in row {row} they do not: {error}"
            ) from error


def _heads_of_all(vlm: VLM, site: str, layers: list[int], heads: Any) -> list[int] | None:
    """The heads that are patched one at a time, which every layer must have; None if all of a site is patched at once."""
    check_heads_exist(site, heads)
    if site in ("resid_pre", "resid_post"):
        return None
    kinds = [proved_place(vlm, layer, site) for layer in layers]
    if heads is None:
        return None
    counts = [kind.number for kind in kinds]
    if isinstance(heads, str) and heads == "all":
        if len(set(counts)) > 1:
            raise InputError(
                f"heads='all': layers {layers} have {counts} heads at {site}, expected as many in each: sweep those of one "
                "number on their own"
            )
        return list(range(counts[0]))
    fewest = min(range(len(layers)), key=lambda index: counts[index])
    return select_heads(vlm, heads, counts[fewest], layers[fewest])
