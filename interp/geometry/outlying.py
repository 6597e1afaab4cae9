"""Outlying rows: a few examples whose vectors dwarf all others, as the states of attention sinks do.

A few such rows decide a mean, a variance and every feature's spread, while neighbours hardly see them: each lies alone. So
they are named, and left to the caller: are they part of what is measured? Captures note attention sinks among their
positions, and ``positions="content"`` leaves them out. That note is the only sign where *every* row is a mean with a sink in
it, for then no row is unlike the others; so what takes activations hands on their notes. All results of this room have these
notes. A measure that returns a bare number has no place for one: ask `outlying_rows` before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.geometry.clouds import States, as_cloud, as_states

# The same as for attention sinks among tokens, see `interp.models.running.sinks`.
LENGTHS = 20.0


def outlying_rows(states: States) -> Int[Tensor, " row"]:
    """The rows that are over 20 times as long as the median row, in any of `states`.

    `states` is a cloud `[example, feature]` or a stack of them `[state, example, feature]`. To judge features without such
    rows, as `massive_features` and `standardise` should be, drop them first.

    >>> x = torch.tensor([[3.0, 4.0], [0.0, 5.0], [5.0, 0.0], [300.0, 400.0]])
    >>> outlying_rows(x).tolist()
    [3]

    Raises the errors of `as_states`.
    """
    stack = as_states(states) if getattr(states, "ndim", 3) == 3 else as_cloud(states)[None]
    outlying = torch.zeros(stack.shape[1], dtype=torch.bool, device=stack.device)
    for cloud in stack:
        lengths = cloud.norm(dim=1)
        middle = lengths.median()  # 0 where most rows are: then there is no usual length
        outlying |= (lengths > LENGTHS * middle) & (middle > 0)
    return outlying.nonzero().flatten().cpu()


def notes_of_outlying(**stacks: Any) -> tuple[str, ...]:
    """A line for each stack `[state, example, feature]`, or cloud, that has outlying rows; a graph of neighbours has no rows."""
    notes = []
    for name, stack in stacks.items():
        if not isinstance(stack, Tensor | np.ndarray):
            continue
        rows = outlying_rows(stack).tolist()
        if rows:
            first = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
            notes.append(
                f"{len(rows)} of {stack.shape[-2]} {name} examples are over {LENGTHS:g} times as long as the median one, as "
                f"attention sinks are ({first}): drop what outlying_rows gives to measure without them"
            )
    return tuple(notes)


def notes_of_captures(**sources: Any) -> tuple[str, ...]:
    """The notes of those of the sources that are activations, each with its name: attention sinks among what was captured."""
    provenances = ((name, getattr(source, "provenance", None)) for name, source in sources.items())
    return tuple(f"{name}: {note}" for name, provenance in provenances for note in getattr(provenance, "notes", ()))
