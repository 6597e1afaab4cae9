"""Steering: add a direction to states, and see the model move along it.

    state[layer, row, position] += scale * direction

The direction is added as it is given, in the units of the states: nothing is normalised. Scale it by the norm of the
states you add it to where layers or models are to be compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from interp.arguments import checked_number
from interp.errors import InputError, shown
from interp.interventions.selection import keep_iterators
from interp.interventions.writes import add_states, finite_direction, is_one_for_all, spread, where
from interp.models.running.steps import Edit

if TYPE_CHECKING:
    from interp.models import VLM, Batch


@dataclass(frozen=True, kw_only=True)
class Steer:
    """Add ``scale * direction`` to the states at these positions.

    `direction` is a tensor that broadcasts to `[layers, selected positions, width]`, or at a site with heads (q, k, v, z)
    to `[layers, selected positions, heads, d_head]`; it is not normalised. `site` and `heads` are as in `Patch`. A scale of
    0 changes nothing.

    In generation new tokens that `positions` name are steered too; a direction for each position steers the prompt alone.

    Raises `InputError` for an unknown site, layer or head, where none or no position is chosen, for a scale that is no
    finite number of float32, and for a direction that does not fit, is not finite, or is not once it is scaled;
    `InputTypeError` for one that is no tensor.

    Source: activation addition as in Turner et al. 2023.

    >>> import torch, interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . where is the 3 ?"])
    >>> ahead = interp.interventions.Steer(direction=torch.ones(128), layers=3, positions="last", scale=2.0)
    >>> bool((vlm.logits(batch) == vlm.logits(batch, interventions=[ahead])).all())
    False
    """

    direction: Any = field(repr=False)
    layers: Any
    positions: Any
    scale: float
    site: str = "resid_pre"
    heads: int | Iterable[int] | None = None

    def __post_init__(self) -> None:
        keep_iterators(self)

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]:
        direction = finite_direction(self.direction)
        if direction.is_complex() or direction.dtype == torch.bool:
            raise InputError(f"direction is of {direction.dtype}: expected real numbers")
        added = direction * checked_number(self.scale, "scale")
        if not added.isfinite().all():
            raise InputError(
                f"scale={shown(self.scale)} times the direction is too large for {added.dtype}: make it smaller"
            )
        places = where(vlm, batch, self.site, self.layers, self.positions, self.heads)
        if is_one_for_all(direction, places):
            places = where(vlm, batch, self.site, self.layers, self.positions, self.heads, new)
        return places.edits(add_states, spread(added, places, "direction"))
