"""The grid of a patching sweep: a request for one is checked, and the numbers of its cells become a result.

`patch_sweep` and `attribution_patch` take the same arguments and give the same kind of result. Each makes a `SweepRequest` of
its arguments; the request makes a `SweepGrid`, which has the pairs, layers, columns and heads of the cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from interp.arguments import checked_choice, checked_seed
from interp.errors import InputError, InterpError
from interp.interventions.selection import check_heads_exist, select_heads, select_layers
from interp.models import VLM, Batch, Intervention
from interp.models.running.places import HEADED, STATES, proved_place
from interp.patching.metrics import Metric, MetricFunction, RowMetric, bind_to_pairs, name_of
from interp.patching.paired_batches import PairedBatches, pair_batches, picture_of
from interp.patching.patch_result import PatchResult, relative_effect
from interp.provenance import provenance_of_run
from interp.statistics.intervals import few_rows

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
    seed: int

    def grid(self, vlm: VLM, clean: Batch, corrupted: Batch) -> SweepGrid:
        """The grid that this request describes. The model runs only to prove a site.

        Raises `InputError` for an unknown direction, site, layer, position or head, for heads at a site without heads, for
        pairs that do not match, and for interventions that do not hold in each row alone; `LayoutError` for a layer in which
        the site was not proved.
        """
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
        return SweepGrid(
            vlm, pairs, site, layers, heads, direction, name_of(self.metric), metrics, self.interventions, seed
        )


@dataclass(frozen=True)
class SweepGrid:
    """The cells of a sweep: each layer of `site` at each column of `pairs`, and with `heads` each of them alone.

    `metrics` has what the metric of each row is in one run, or in two, the first minus the second. `interventions` hold in all
    runs, and `seed` makes the draws.
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

    @property
    def shape(self) -> tuple[int, ...]:
        """The numbers of layers and columns, and of heads if these are patched one at a time."""
        return len(self.layers), len(self.pairs.columns), *(() if self.heads is None else (len(self.heads),))

    @property
    def source_and_target(self) -> tuple[Batch, Batch]:
        """The batch whose states are read, and the batch into whose runs they are written."""
        sides = self.pairs.clean, self.pairs.corrupted
        return sides if self.direction == "denoise" else sides[::-1]

    def clean_and_corrupted(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The metric of each row in the clean and in the corrupted run, from the metric in the source and the target run.

        Raises `InputError` if it is the same in both, so that no share of it can come back.
        """
        clean, corrupted = (source, target) if self.direction == "denoise" else (target, source)
        if not (clean - corrupted).mean().abs() > 1e-6:
            raise InputError(
                f"the metric {self.metric!r} is {clean.mean().item():.4g} on clean and {corrupted.mean().item():.4g} "
                "on corrupted: expected runs with different answers"
            )
        return clean, corrupted

    def result(
        self,
        per_row: Float[Tensor, "row layer position *head"],
        clean: Float[Tensor, " row"],
        corrupted: Float[Tensor, " row"],
        notes: tuple[str, ...],
        method: str,
    ) -> PatchResult:
        """The result with the metric of every cell in every row, and of the clean and the corrupted runs."""
        effect, low, high = relative_effect(per_row, clean, corrupted, self.seed)
        picture, boxes = picture_of(self.pairs)
        batches, columns = (self.pairs.clean, self.pairs.corrupted), self.pairs.columns
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
            provenance=provenance_of_run(
                self.vlm, batches, self.interventions, self.seed, (*notes, *few_rows(len(per_row)))
            ),
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
