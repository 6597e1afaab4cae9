"""Interventions that replace states: `Patch` writes given ones, `Ablate` writes uninformative ones.

Both act at a site of some layers, at some positions of each row, and leave every other number as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.errors import InputError, InputTypeError
from interp.models.batch import Batch
from interp.models.encodings import shown
from interp.models.forward import Edit, Read, run_forward, whole, write
from interp.models.places import STATES

if TYPE_CHECKING:
    from interp.models import VLM


def keep_iterators(intervention: Any) -> None:
    """Make tuples of the iterators among its fields: an intervention is used many times, they would be empty after one."""
    for each in fields(intervention):
        value = getattr(intervention, each.name)
        if isinstance(value, Iterator):
            object.__setattr__(intervention, each.name, tuple(value))


@dataclass(frozen=True, kw_only=True)
class Patch:
    """Write `value` at these positions: activation patching.

    `value` is a tensor that broadcasts to `[layers, selected positions, width]`, the positions in row order, or a
    one-row `Batch`, whose own states at the same site, layers and positions are written into every row.

    Raises `InputError` for an unknown site or layer, where no position is selected, and where the value does not fit the
    positions: every row must select as many as a batch given as value does.

    >>> import torch, interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . where is the 3 ?"])
    >>> zero = interp.interventions.Patch(site="resid_pre", layers=0, positions=[2], value=torch.zeros(128))
    >>> bool((vlm.logits(batch) == vlm.logits(batch, interventions=[zero])).all())
    False
    """

    site: str
    layers: Any
    positions: Any
    value: Any = field(repr=False)

    def __post_init__(self) -> None:
        keep_iterators(self)

    def edits(self, vlm: VLM, batch: Batch) -> list[Edit]:
        layers, rows, columns = _where(vlm, batch, self.site, self.layers, self.positions)
        if isinstance(self.value, Tensor):
            value = self.value
        elif isinstance(self.value, Batch):
            _refuse_other_rows(batch, self.value, self.positions)
            value = _states_of(vlm, self.value, self.site, layers, self.positions).repeat(1, len(batch), 1)
        else:
            raise InputTypeError(f"value is a {type(self.value).__name__}: expected a tensor or a one-row Batch")
        shape = (len(layers), len(rows), vlm.structure.d_model)
        try:
            spread = value.expand(shape)
        except RuntimeError:
            raise InputError(
                f"value of shape {tuple(value.shape)} does not fit {shape} (layers, selected positions, width)"
            ) from None
        return [Edit(self.site, layer, write, (rows, columns, new)) for layer, new in zip(layers, spread, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Ablate:
    """Take the information out of these positions: write zeros, or the mean of this batch's states there.

    With `value="mean"` each layer's selected states, of all rows, are replaced by their average in the unchanged run; a
    tensor is written as it is (it broadcasts to `[layers, selected positions, width]`).

    Raises `InputError` for an unknown site, layer or value, and where no position is selected.
    """

    site: str
    layers: Any
    positions: Any
    value: Any = "zero"

    def __post_init__(self) -> None:
        keep_iterators(self)

    def edits(self, vlm: VLM, batch: Batch) -> list[Edit]:
        if isinstance(self.value, str) and self.value not in ("zero", "mean"):
            raise InputError(f"value={self.value!r}: expected 'zero', 'mean' or a tensor")
        layers, _, _ = _where(vlm, batch, self.site, self.layers, self.positions)
        if isinstance(self.value, str) and self.value == "mean":
            value = _states_of(vlm, batch, self.site, layers, self.positions).mean(dim=1, keepdim=True)
        elif isinstance(self.value, str):
            value = torch.zeros(1)
        else:
            value = self.value
        return Patch(site=self.site, layers=self.layers, positions=self.positions, value=value).edits(vlm, batch)


def _where(vlm: VLM, batch: Batch, site: str, layers: Any, positions: Any) -> tuple[list[int], Tensor, Tensor]:
    if site not in STATES:
        raise InputError(f"site={site!r} is unknown: use one of {', '.join(STATES)}")
    rows, columns = batch.positions.select(positions).nonzero(as_tuple=True)
    if not len(rows):
        raise InputError(f"positions={shown(positions)} selects nothing in this batch, expected at least one position")
    return vlm.layer_indices(layers), rows, columns


def _refuse_other_rows(batch: Batch, value: Batch, positions: Any) -> None:
    """Refuse a batch as value whose states would not land row by row on the positions they are written to."""
    if len(value) != 1:
        raise InputError(f"value is a batch of {len(value)} rows: expected one row, take row(i) of it")
    given = int(value.positions.select(positions).sum())
    for row, count in enumerate(batch.positions.select(positions).sum(dim=1).tolist()):
        if count != given:
            raise InputError(
                f"positions={shown(positions)} selects {count} positions in row {row} and {given} in the batch that is its "
                "value: expected as many"
            )


def _states_of(vlm: VLM, batch: Batch, site: str, layers: list[int], positions: Any) -> Tensor:
    """The states `[layers, selected positions, width]` of a batch's own unchanged run."""
    mask = batch.positions.select(positions)
    seen = run_forward(vlm, batch, reads=[Read(layer, site, layer, whole) for layer in layers], logits=None)
    return torch.stack([seen[layer][mask.to(seen[layer].device)] for layer in layers])
