"""Interventions that do arithmetic on states: add a direction, remove one, or multiply by a factor.

    Steer    h + scale * direction
    Project  h - D D+ h               D: the directions as columns, D+ the pseudoinverse of D
    Scale    h * factor

`Steer` moves a state along a direction. The direction is added in the units of the states and is not normalised: scale it
by the norm of the states it is added to if layers or models are to be compared.

`Project` removes all that a state has along one direction, or in the span of several. Afterwards no linear readout along
these directions tells two states apart. If an answer changes, the model used them. If it does not change, the model did not
need them, or their information is also written elsewhere.

The control of both is a random direction: `Steer.control` and `Project.control` give the same intervention with random
directions of the same lengths. What they do too is due to the size of the change, not to its direction.

`Scale` strengthens, weakens or reverses what a part writes. A factor of 0 is an ablation, 1 changes nothing, -1 writes the
opposite. At site z it scales heads: the output projection is linear, so the head's contribution to the stream scales by the
same factor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from interp.arguments import checked_number, checked_seed
from interp.errors import InputError, shown
from interp.interventions.selection import AtSite, Selection
from interp.interventions.writes import (
    add_states,
    broadcast_value,
    checked_direction,
    index_of,
    is_same_everywhere,
    multiply_states,
)
from interp.models import VLM, Batch, Edit


@dataclass(frozen=True, kw_only=True)
class Steer(AtSite):
    """Add ``scale * direction`` to the states at these positions.

    `direction` is a tensor that broadcasts to `[layers, selected positions, width]`, or at a site with heads (q, k, v, z)
    to `[layers, selected positions, heads, d_head]`; it is not normalised. `site` and `heads` are as in `Patch`. A scale of
    0 changes nothing.

    In generation it also steers the new tokens that `positions` names, unless the direction has a value for each position.

    Raises `InputError` for an unknown site, layer or head, for no layer, head or position, for a scale that is not a finite
    number of float32, and for a direction that does not fit, is not finite, or overflows when it is scaled;
    `InputTypeError` for a direction that is not a tensor.

    Source: activation addition as in Turner et al. 2023.

    >>> import torch, interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . where is the 3 ?"])
    >>> ahead = interp.interventions.Steer(direction=torch.ones(128), layers=3, positions="last", scale=2.0)
    >>> bool((vlm.logits(batch) == vlm.logits(batch, interventions=[ahead])).all())
    False
    >>> ahead.control(seed=0).direction.norm().round(decimals=3) == ahead.direction.norm().round(decimals=3)
    tensor(True)
    """

    direction: Any
    layers: Any
    positions: Any
    scale: float
    site: str = "resid_pre"
    heads: int | Iterable[int] | None = None

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]:
        direction = checked_direction(self.direction)
        if direction.is_complex() or direction.dtype == torch.bool:
            raise InputError(f"direction is of {direction.dtype}: expected real numbers")
        change = direction * checked_number(self.scale, "scale")
        if not change.isfinite().all():
            raise InputError(
                f"scale={shown(self.scale)} times the direction is too large for {change.dtype}: make it smaller"
            )
        selection = self.select(vlm, batch)
        if is_same_everywhere(direction, selection):
            selection = self.select(vlm, batch, new)
        return selection.edits(add_states, broadcast_value(change, selection, "direction"))

    def control(self, seed: int = 0) -> Steer:
        """The same intervention along random directions of the same lengths, drawn uniformly with `seed`.

        It tells what any change of this size does. Raises what the intervention raises for its direction.
        """
        return replace(self, direction=random_directions(self.direction, seed))


@dataclass(frozen=True, kw_only=True)
class Scale(AtSite):
    """Multiply the states at these positions by `factor`.

    `site` and `heads` are as in `Patch`. In generation it also scales the new tokens that `positions` names.

    Raises `InputError` for an unknown site, layer or head, for no layer, head or position, and for a factor that is not a
    finite number of float32; `LayoutError` for a layer in which the site could not be proved.

    Source: head scaling as in Basile et al. 2025 (Head Pursuit).

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . where is the 3 ?"])
    >>> opposite = interp.interventions.Scale(layers=3, positions="all", factor=-1, heads=[0, 2])
    >>> bool((vlm.logits(batch) == vlm.logits(batch, interventions=[opposite])).all())
    False
    """

    layers: Any
    positions: Any
    factor: float
    site: str = "z"
    heads: int | Iterable[int] | None = None

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]:
        factor = checked_number(self.factor, "factor")
        selection = self.select(vlm, batch, new)
        return selection.edits(
            multiply_states, broadcast_value(torch.tensor(factor, dtype=torch.float32), selection, "factor")
        )


@dataclass(frozen=True, kw_only=True)
class Project(AtSite):
    """Remove the component along `direction` from the states at these positions.

    `direction` is a tensor `[width]`, `[directions, width]` for the span of several, or `[layers, directions, width]` with
    directions of each layer's own. At a site with heads (q, k, v, z) its width is `d_head`, and it is removed from each of
    the `heads`. Lengths do not matter, and directions may be linearly dependent: their span is removed. `site` and `heads`
    are as in `Patch`.

    In generation it also changes the new tokens that `positions` names.

    Raises `InputError` for an unknown site, layer or head, for no layer, head or position, and for directions that do not
    fit, are not finite, or are all zero in a layer; `InputTypeError` for a direction that is not a tensor.

    Source: directional ablation as in Arditi et al. 2024, by the projection of Ravfogel et al. 2020.

    >>> import torch, interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . where is the 3 ?"])
    >>> first = interp.interventions.Project(direction=torch.eye(128)[0], layers=3, positions="all")
    >>> options = {"sites": ["resid_pre"], "layers": [3], "positions": "all", "progress": False}
    >>> acts = interp.capture(vlm, [batch], interventions=[first], **options)
    >>> float(acts["resid_pre"][...][..., 0].abs().max()) < 1e-5
    True
    """

    direction: Any
    layers: Any
    positions: Any
    site: str = "resid_pre"
    heads: int | Iterable[int] | None = None

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]:
        direction = checked_direction(self.direction)
        if not direction.is_floating_point():
            raise InputError(f"direction is of {direction.dtype}: expected real numbers, of a floating type")
        selection = self.select(vlm, batch, new)
        bases = [orthonormal_basis(each) for each in _directions_by_layer(direction, selection)]
        return selection.edits(project_states, bases)

    def control(self, seed: int = 0) -> Project:
        """The same intervention with as many random directions, drawn uniformly with `seed`.

        It tells what the loss of any directions does. Raises what the intervention raises for its direction.
        """
        return replace(self, direction=random_directions(self.direction, seed))


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def project_states(value, past, rows, columns, heads, basis):
    """`value` without the span of the orthonormal rows of `basis`, at the selected positions (of the selected heads)."""
    index, _ = index_of(value, past, rows, columns, heads)
    basis = basis.to(value.device)
    states = value[index].to(basis.dtype)
    value = value.clone()
    value[index] = (states - states @ basis.T @ basis).to(value.dtype)
    return value


# Directions --------------------------------------------------------------------------------------------------------------


def _directions_by_layer(direction: Tensor, selection: Selection) -> list[Tensor]:
    """The directions `[directions, width]` of each layer."""
    layers, widths = len(selection.layers), [shape[-1] for shape in selection.shapes]
    directions = direction[None] if direction.ndim == 1 else direction
    directions = directions.expand(layers, -1, -1) if directions.ndim == 2 else directions
    if directions.ndim != 3 or len(directions) != layers or any(width != directions.shape[-1] for width in widths):
        raise InputError(
            f"direction of shape {tuple(direction.shape)} does not fit: expected ({widths[0]},), (directions, {widths[0]}) or "
            f"({layers}, directions, {widths[0]})"
        )
    return list(directions)


def random_directions(direction: Any, seed: int) -> Tensor:
    """Directions of the same shape and lengths, each uniform on its sphere, in float32 at least."""
    given = checked_direction(direction)
    given = given.to(torch.promote_types(given.dtype, torch.float32))
    draw = torch.Generator().manual_seed(checked_seed(seed))
    drawn = torch.randn(given.shape, generator=draw, dtype=torch.float64)
    lengths = given.norm(dim=-1, keepdim=True, dtype=torch.float64).cpu()
    return (drawn / drawn.norm(dim=-1, keepdim=True) * lengths).to(given)


def orthonormal_basis(directions: Tensor) -> Tensor:
    """Orthonormal rows `[rank, width]` with the span of these directions, in float32."""
    lengths = directions.norm(dim=1, keepdim=True, dtype=torch.float64)
    if not lengths.any():
        raise InputError(f"direction of shape {tuple(directions.shape)} is zero: expected one that points somewhere")
    # Normalised first: a short direction counts as much as a long one, and none is mistaken for a rounding error.
    unit = directions.double()[lengths[:, 0] > 0] / lengths[lengths > 0][:, None]
    _, sizes, rows = torch.linalg.svd(unit, full_matrices=False)
    return rows[sizes > 1e-6 * sizes[0]].float()
