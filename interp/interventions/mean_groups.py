"""Which states share a mean: the groups of a mean ablation.

A mean over everything removes everything that differs: what the token is, where it stands, which kind of question it belongs
to. A mean within groups keeps what the groups have in common and removes the rest. The groups are positions, kinds of rows, or
both:

    None                     one mean
    "position"               the n-th selected position of every row shares one
    labels                   the rows of one label share one
    ("position", labels)     the n-th selected position of the rows of one label

The states come from the batch itself or from a reference set, whose rows have labels by name: ``{"kind": labels}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.activations import Activations
from interp.displays import Display
from interp.errors import InputError, shown
from interp.interventions.selection import Selection
from interp.statistics.categories import read_labels

_EXPECTED = "expected 'position', labels of the rows, or ('position', labels)"


@dataclass(frozen=True)
class MeanGroups(Display):
    """The group of each state that a mean is taken of, and of each position that it is written to; `selection` has these
    positions."""

    of_states: Tensor
    of_positions: Tensor
    selection: Selection


def groups_of_means(by: Any, prompt: Selection, selection: Selection, reference: Activations | None) -> MeanGroups:
    """The groups of `by`, for the states of `prompt` or of a reference, and for the positions of `selection`.

    Means by position are for the prompt alone. Raises `InputError` for another `by`, for labels that are not one a row, for
    rows that have different numbers of positions, and for groups without a state in the reference.
    """
    by_position, labels = _parts(by)
    written = prompt if by_position else selection
    places, of_rows = _places(written.counts), _rows(written.counts)
    counts = prompt.counts
    if reference is not None:
        counts = torch.bincount(reference.places(prompt.site).rows, minlength=1).tolist()
    own_places, own_rows = _places(counts), _rows(counts)
    if by_position:
        _check_equal(counts if reference is None else [*prompt.counts, *counts], reference)
    else:
        places, own_places = torch.zeros_like(places), torch.zeros_like(own_places)
    kinds, own_kinds = torch.zeros_like(of_rows), torch.zeros_like(own_rows)
    names: list[Any] = []
    if labels is not None:
        names, of_batch, of_reference = _kinds(labels, len(prompt.counts), reference)
        kinds, own_kinds = of_batch[of_rows], (of_batch if reference is None else of_reference)[own_rows]
    width = int(own_places.max()) + 1 if len(own_places) else 1
    own, wanted = own_kinds * width + own_places, kinds * width + places
    missing = sorted(set(wanted.tolist()) - set(own.tolist()))
    if missing:
        raise InputError(
            f"by={shown(by)}: no row of the reference has {names[missing[0] // width]!r}, expected one or more"
        )
    present, of_states = own.unique(return_inverse=True)
    return MeanGroups(of_states, torch.searchsorted(present, wanted), written)


def _parts(by: Any) -> tuple[bool, Any]:
    """Whether means are by position, and the labels of rows, None without any."""
    if by is None or (isinstance(by, str) and by == "position"):
        return by is not None, None
    if isinstance(by, str):
        raise InputError(f"by={by!r}: {_EXPECTED}")
    if (
        isinstance(by, tuple)
        and len(by) == 2
        and isinstance(by[0], str)
        and by[0] == "position"
        and not isinstance(by[1], str)
    ):
        return True, by[1]
    return False, by


def _kinds(labels: Any, rows: int, reference: Activations | None) -> tuple[list[Any], Tensor, Tensor]:
    """The distinct labels, and the number of the label of each row of the batch and of the reference."""
    if reference is None:
        if isinstance(labels, Mapping):
            raise InputError(f"by={shown(labels)}: names are those of a reference's labels, pass one label a row")
        names, numbers = read_labels(labels, rows, "labels in by")
        return names, torch.from_numpy(numbers), torch.from_numpy(numbers)
    if not isinstance(labels, Mapping) or len(labels) != 1:
        raise InputError(
            f"by={shown(labels)}: expected a label of the reference and those of the rows, as {{'kind': [...]}}; it has"
            f" {', '.join(map(repr, reference.labels)) or 'none'}"
        )
    ((name, of_rows),) = labels.items()
    if name not in reference.labels:
        known = ", ".join(map(repr, reference.labels)) or "none"
        raise InputError(f"by={shown(labels)}: the reference has no label {name!r}, it has {known}")
    read_labels(of_rows, rows, "labels in by")
    names, numbers = read_labels([*of_rows, *reference.labels[name]], name="labels in by")
    both = torch.from_numpy(numbers)
    return names, both[:rows], both[rows:]


def _check_equal(counts: list[int], reference: Activations | None) -> None:
    if len(set(counts)) > 1:
        of = "the rows" if reference is None else "the rows and in those of the reference"
        raise InputError(f"by='position' with {sorted(set(counts))} positions in {of}: expected as many in each")


def _places(counts: list[int]) -> Tensor:
    """The place of each position among those of its row."""
    return torch.cat([torch.arange(count) for count in counts])


def _rows(counts: list[int]) -> Tensor:
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
