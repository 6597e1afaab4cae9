"""Projecting out: take one direction, or the span of several, out of states and leave the rest.

    state[layer, row, position] = h - D D+ h

Where steering adds along a direction, this removes what stands along it, however much that is: afterwards no linear
readout along these directions tells two states apart. If an answer changes, the model used them; if it does not, what they
carry was not needed, or is also written elsewhere. A random direction removed in the same way is the control.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import InputError
from interp.interventions.selection import keep_iterators
from interp.interventions.writes import Where, finite_direction, places_of, where
from interp.models.running.steps import Edit

if TYPE_CHECKING:
    from interp.models import VLM, Batch


@dataclass(frozen=True, kw_only=True)
class Project:
    """Remove the component along `direction` from the states at these positions.

    `direction` is a tensor `[width]`, `[directions, width]` for the span of several, or `[layers, directions, width]` for
    each layer its own; at a site with heads (q, k, v, z) its width is `d_head`, and it is removed from each of the `heads`.
    Lengths do not matter, and directions may depend on each other: what is removed is their span. `site` and `heads` are
    as in `Patch`.

    In generation new tokens that `positions` name are projected too.

    Raises `InputError` for an unknown site, layer or head, where none or no position is chosen, and for directions that
    do not fit, are not finite, or are all zero in a layer; `InputTypeError` for what is no tensor.

    Source: directional ablation as in Arditi et al. 2024, by the projection of Ravfogel et al. 2020.

    >>> import torch, interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . where is the 3 ?"])
    >>> first = interp.interventions.Project(direction=torch.eye(128)[0], layers=3, positions="all")
    >>> there = {"sites": ["resid_pre"], "layers": [3], "positions": "all", "progress": False}
    >>> seen = interp.capture(vlm, [batch], interventions=[first], **there)
    >>> float(seen["resid_pre"][...][..., 0].abs().max()) < 1e-5
    True
    """

    direction: Any = field(repr=False)
    layers: Any
    positions: Any
    site: str = "resid_pre"
    heads: int | Iterable[int] | None = None

    def __post_init__(self) -> None:
        keep_iterators(self)

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]:
        direction = finite_direction(self.direction)
        if not direction.is_floating_point():
            raise InputError(f"direction is of {direction.dtype}: expected real numbers, of a floating type")
        places = where(vlm, batch, self.site, self.layers, self.positions, self.heads, new)
        return places.edits(project_states, [_basis(each) for each in _of_layers(direction, places)])


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def project_states(value, past, rows, columns, heads, basis):
    """The selected positions (of the chosen heads) less their part in the span of the orthonormal rows of `basis`."""
    at, _ = places_of(value, past, rows, columns, heads)
    basis = basis.to(value.device)
    states = value[at].to(basis.dtype)
    value = value.clone()
    value[at] = (states - states @ basis.T @ basis).to(value.dtype)
    return value


# Directions --------------------------------------------------------------------------------------------------------------


def _of_layers(direction: Tensor, places: Where) -> list[Tensor]:
    """The directions [directions, width] of each layer."""
    count, widths = len(places.layers), [shape[-1] for shape in places.shapes]
    each = direction.expand(count, *direction.shape[-2:]) if direction.ndim in (1, 2) else direction
    if direction.ndim == 1:
        each = each[:, None]
    if each.ndim != 3 or each.shape[0] != count or any(width != each.shape[-1] for width in widths):
        raise InputError(
            f"direction of shape {tuple(direction.shape)} does not fit: expected ({widths[0]},), (directions, {widths[0]}) or "
            f"({count}, directions, {widths[0]})"
        )
    return list(each)


def _basis(directions: Tensor) -> Tensor:
    """Orthonormal rows [rank, width] with the span of these, in float32."""
    lengths = directions.norm(dim=1, keepdim=True, dtype=torch.float64)
    if not lengths.any():
        raise InputError(f"direction of shape {tuple(directions.shape)} is zero: expected one that points somewhere")
    # Each of length 1 first: a short direction counts as much as a long one, and none is taken for rounding.
    unit = directions.double()[lengths[:, 0] > 0] / lengths[lengths > 0][:, None]
    _, sizes, rows = torch.linalg.svd(unit, full_matrices=False)
    return rows[sizes > 1e-6 * sizes[0]].float()
