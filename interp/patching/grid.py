"""The grid of a patching sweep: its pairs, its layers, positions and heads, and how its numbers become a result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError, InterpError
from interp.interventions.selection import select_heads, select_layers
from interp.models import VLM, Batch
from interp.models.running.places import HEADED, STATES, proved
from interp.models.vlm import Intervention
from interp.patching.metrics import Bound, Measure, Metric, bind, name_of
from interp.patching.pairs import DIRECTIONS, Pairs, matched, picture_of
from interp.patching.result import PatchResult, on_the_scale
from interp.provenance import Provenance, fingerprint


@dataclass(frozen=True)
class Grid:
    """What is patched, checked: each layer of `site` at each column of `pairs`, in each of `heads` where there are any,
    under `interventions` that hold in all runs; and what is measured."""

    pairs: Pairs
    site: str
    layers: list[int]
    heads: list[int] | None
    direction: str
    metric: Metric | Measure
    interventions: Sequence[Intervention]

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.layers), len(self.pairs.names), *(() if self.heads is None else (len(self.heads),))

    @property
    def sides(self) -> tuple[Batch, Batch]:
        """The runs that states are taken from, and those that they are written into."""
        sides = self.pairs.clean, self.pairs.corrupted
        return sides if self.direction == "denoise" else sides[::-1]

    def measures(self, vlm: VLM) -> list[Bound]:
        """The metric of each row."""
        rows = len(self.pairs)
        return [bind(self.metric, vlm, rows, row) for row in range(rows)]

    def ends(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The metric of each row on the clean and on the corrupted run, from that on the two sides.

        Raises `InputError` where it is the same on both, so that no share of it can be said to come back.
        """
        clean, corrupted = (source, target) if self.direction == "denoise" else (target, source)
        if not (clean - corrupted).mean().abs() > 1e-6:
            raise InputError(
                f"the metric {name_of(self.metric)!r} is {clean.mean().item():.4g} on clean and {corrupted.mean().item():.4g} "
                "on corrupted: expected runs with different answers"
            )
        return clean, corrupted


def grid_of(
    vlm: VLM,
    clean: Batch,
    corrupted: Batch,
    site: str,
    layers: Any,
    positions: Any,
    heads: Any,
    direction: str,
    metric: Metric | Measure,
    interventions: Sequence[Intervention],
) -> Grid:
    """The grid that these arguments of a sweep describe; nothing is run but what proves a site.

    Raises `InputError` for an unknown direction, site, layer, position or head, for heads at a site without, and for pairs
    that do not match; `LayoutError` for a layer in which the site was not proved.
    """
    if direction not in DIRECTIONS:
        raise InputError(f"direction={direction!r}: expected one of {', '.join(DIRECTIONS)}")
    if site not in (*STATES, *HEADED):
        raise InputError(f"site={site!r} is unknown: use one of {', '.join((*STATES, *HEADED))}")
    pairs = matched(clean, corrupted, positions)
    for batch in (clean, corrupted):
        vlm.edits_of(batch, interventions)
        _check_alone(vlm, batch, interventions)
    chosen = select_layers(vlm, layers)
    grid = Grid(pairs, site, chosen, _heads_of(vlm, site, chosen, heads), direction, metric, interventions)
    grid.measures(vlm)
    return grid


def _check_alone(vlm: VLM, batch: Batch, interventions: Sequence[Intervention]) -> None:
    """Refuse interventions that hold in a batch and not in each of its rows alone: masks of all rows, states of another."""
    for row in range(len(batch)) if interventions and len(batch) > 1 else ():
        try:
            vlm.edits_of(batch.row(row), interventions)
        except InterpError as error:
            raise InputError(
                f"interventions must hold in each row alone, as a sweep runs it, and in row {row} they do not: {error}"
            ) from error


def _heads_of(vlm: VLM, site: str, layers: list[int], heads: Any) -> list[int] | None:
    """The heads that are patched one at a time, None where a site is patched whole."""
    if site in STATES and heads is not None:
        raise InputError(f"heads={heads!r}: {site} has no heads, leave heads out or use one of {', '.join(HEADED)}")
    if site in ("resid_pre", "resid_post"):
        return None
    found = [proved(vlm, layer, site) for layer in layers]
    if heads is None:
        return None
    counts = [each.number for each in found]
    if isinstance(heads, str) and heads == "all":
        if len(set(counts)) > 1:
            raise InputError(
                f"heads='all': layers {layers} have {counts} heads at {site}, expected as many in each: sweep those of one "
                "number on their own"
            )
        return list(range(counts[0]))
    fewest = min(range(len(layers)), key=lambda index: counts[index])
    return select_heads(vlm, heads, counts[fewest], layers[fewest])


def result_of(
    vlm: VLM,
    grid: Grid,
    per_row: Float[Tensor, "row layer position *head"],
    ends: tuple[Tensor, Tensor],
    seed: int,
    notes: tuple[str, ...] = (),
    method: str = "exact",
) -> PatchResult:
    """The metric of every cell in every row, and of the clean and the corrupted rows, as a result."""
    effect, low, high = on_the_scale(per_row, *ends, seed)
    picture, boxes = picture_of(grid.pairs)
    data = fingerprint(grid.pairs.clean, grid.pairs.corrupted)
    return PatchResult(
        values=per_row.mean(dim=0),
        effect=effect,
        low=low,
        high=high,
        per_row=per_row,
        clean_rows=ends[0],
        corrupted_rows=ends[1],
        layers=grid.layers,
        columns=[group.tolist() for group in grid.pairs.groups[0]],
        tokens=grid.pairs.names,
        site=grid.site,
        metric=name_of(grid.metric),
        direction=grid.direction,
        heads=grid.heads,
        method=method,
        picture=picture,
        boxes=boxes,
        provenance=Provenance(
            model=vlm.name,
            revision=vlm.revision,
            data=data,
            seed=seed,
            interventions=tuple(map(repr, grid.interventions)),
            notes=notes,
        ),
    )
