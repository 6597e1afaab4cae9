"""Random donors: the control of a patch is the same patch from a run that has another answer.

A patch replaces a state by one that belongs to another run. That alone changes the answer: what the patched run knew there is
gone. So a sweep is also made with the states of another row, a *donor*, in place of the row's own partner. A cell that carries
the answer does more than that: half of ``logit_difference(a, b)`` may come back because b is lost.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch

from interp.errors import InputError
from interp.models import Batch
from interp.provenance import fingerprint


def donors_of(source: Batch, answers: Sequence[str] | None = None, seed: int = 0) -> list[int]:
    """For each row of the source side another row, drawn with `seed` among those that have its layout (as many tokens, images
    in the same places), other inputs and, where the `answers` of the rows are known, another one.

    Raises `InputError` for a row without such another row.
    """
    rows = range(len(source))
    layouts = [_layout(source, row) for row in rows]
    inputs = [fingerprint(source.row(row)) for row in rows]
    known = inputs if answers is None else answers
    generator = torch.Generator().manual_seed(seed)
    donors = []
    for row in rows:
        alike = [other for other in rows if layouts[other] == layouts[row] and inputs[other] != inputs[row]]
        fits = [other for other in alike if known[other] != known[row]]
        if not fits:
            wanted = "its layout" if answers is None else "its layout and another answer"
            raise InputError(
                f"control: row {row} has no donor, no other row has {wanted}: expected such rows, or leave control out"
            )
        donors.append(fits[int(torch.randint(len(fits), (1,), generator=generator))])
    return donors


def _layout(batch: Batch, row: int) -> Hashable:
    """What rows must share so that the states of one fit into another: the length, the places of images and their patches."""
    image = batch.positions["image"][row][batch.positions["all"][row]]
    return tuple(image.tolist()), tuple(batch.positions.grid(row))
