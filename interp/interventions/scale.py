"""Scaling: make what some parts write stronger, weaker, or its opposite, and see what depends on it.

    state[layer, row, position] *= factor

A factor of 0 is an ablation, 1 changes nothing, -1 writes the opposite with the same strength, 5 writes it five times.
At site z it scales heads: the output projection is linear, so the head's contribution to the stream is scaled alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from interp.arguments import checked_number
from interp.interventions.selection import keep_iterators
from interp.interventions.writes import multiply_states, spread, where
from interp.models.running.steps import Edit

if TYPE_CHECKING:
    from interp.models import VLM, Batch


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Multiply the states at these positions by `factor`.

    `site` and `heads` are as in `Patch`. In generation new tokens that `positions` name are scaled too.

    Raises `InputError` for an unknown site, layer or head, where none or no position is chosen, and for a factor that is
    no finite number of float32; `LayoutError` for a layer in which the site could not be proved.

    Source: head scaling as in Basile et al. 2025 (Head Pursuit).

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . where is the 3 ?"])
    >>> turned = interp.interventions.Scale(layers=3, positions="all", factor=-1, heads=[0, 2])
    >>> bool((vlm.logits(batch) == vlm.logits(batch, interventions=[turned])).all())
    False
    """

    layers: Any
    positions: Any
    factor: float
    site: str = "z"
    heads: int | Iterable[int] | None = None

    def __post_init__(self) -> None:
        keep_iterators(self)

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]:
        factor = checked_number(self.factor, "factor")
        places = where(vlm, batch, self.site, self.layers, self.positions, self.heads, new)
        return places.edits(multiply_states, spread(torch.tensor(factor), places, "factor"))
