"""The inputs of a probe: states, and one label, group or type an example, checked before anything is fitted.

States are a tensor or array `[state, example, feature]`, or activations, of which one site is read. Labels are strings, bools or
integers, one an example (`interp.statistics.categories`); they become numbers 0, 1, ... in the order of their sorted names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import InputError, InputTypeError
from interp.statistics.categories import Labels, labels_of, read_labels

States = Any  # a tensor or array [state, example, feature], or Activations, of which `acts[site][...]` is one
EACH = "examples"  # as groups: every example is its own
PRECISIONS = (np.dtype(np.float32), np.dtype(np.float64))


def checked_states(acts: States, site: str, name: str) -> np.ndarray | Tensor:
    """The states as Float [state, example, feature], in float32 or float64: a tensor where they are on an accelerator, else
    an array, without a copy where they are in one of these precisions.

    Raises `InputTypeError` for anything but a tensor, an array or activations; `InputError` for another number of axes,
    for an empty axis, and for numbers that are not finite.
    """
    if not isinstance(acts, Tensor | np.ndarray):
        if isinstance(acts, list | tuple | str | bytes) or not hasattr(acts, "__getitem__"):
            raise InputTypeError(f"{name} is a {type(acts).__name__}: expected activations, a tensor or an array")
        acts = acts[site][...]
    if not (not acts.is_complex() if isinstance(acts, Tensor) else acts.dtype.kind in "fiub"):
        raise InputError(f"{name} has dtype {acts.dtype!s}: expected real numbers")
    states = _tensor(acts) if isinstance(acts, Tensor) else acts
    if isinstance(states, np.ndarray) and states.dtype not in PRECISIONS:
        states = states.astype(np.float64)
    if states.ndim != 3 or 0 in states.shape:
        of_heads = ", pass one head's, as in acts['z'][:, :, 0]" if states.ndim == 4 else ""
        raise InputError(f"{name} has shape {tuple(states.shape)!r}: expected [state, example, feature]{of_heads}")
    bad = [(number, example) for number, state in enumerate(states) for example in _not_finite(state)]
    if bad:
        raise InputError(
            f"{name} has {len(bad)} rows that are not finite, the first at state {bad[0][0]}, example {bad[0][1]}:"
            " drop or repair them"
        )
    return states


def checked_labels(values: Labels, n: int, name: str) -> tuple[list[str | int], np.ndarray]:
    """The distinct labels, sorted, and the number of each example's label.

    Raises the errors of `read_labels`, and `InputError` for numbers that are not whole.
    """
    labels, numbers = read_labels(values, n, name)
    if any(isinstance(label, float) and not label.is_integer() for label in labels):
        raise InputError(f"{name} have shape ({n},) and dtype float64: expected strings or integers")
    plain = [int(label) if isinstance(label, float) else label for label in labels]
    order = sorted(range(len(plain)), key=lambda place: (type(plain[place]).__name__, plain[place]))
    place_of = np.argsort(order)
    return [plain[place] for place in order], place_of[numbers]


def read_groups(
    groups: Labels | None, acts: States, site: str, n: int
) -> tuple[Int[np.ndarray, " example"] | None, Int[np.ndarray, " example"] | None]:
    """The group of each example for the split, and the group that the activations know it to be of; each None where every
    example is its own.

    `groups` are labels, or None for the groups of the activations, or "examples" for none at all.
    """
    known = _of_several(acts.groups(site).numpy()) if hasattr(acts, "groups") else None
    if groups is None:
        return known, known
    if isinstance(groups, str) and groups == EACH and EACH not in getattr(acts, "labels", ()):
        return None, known
    return _of_several(checked_labels(labels_of(groups, acts, site, "groups"), n, "groups")[1]), known


def _of_several(groups: np.ndarray) -> Int[np.ndarray, " example"] | None:
    """The number of each example's group; None where no group has two examples."""
    _, numbers = np.unique(groups, return_inverse=True)
    return numbers if numbers.max() + 1 < len(numbers) else None


def checked_classes(labels: Labels, n: int) -> tuple[tuple[str | int, ...], np.ndarray]:
    """The classes and the number of each example's class. Raises `InputError` for fewer than two classes."""
    distinct, numbers = checked_labels(labels, n, "labels")
    if len(distinct) < 2:
        raise InputError(f"all labels are {distinct[0]!r}, one class: expected two classes or more")
    return tuple(distinct), numbers


def _tensor(states: Tensor) -> np.ndarray | Tensor:
    if states.dtype not in (torch.float32, torch.float64):
        states = states.to(torch.float32 if states.is_floating_point() else torch.float64)
    return states.detach().numpy() if states.device.type == "cpu" else states.detach()


def _not_finite(state: np.ndarray | Tensor) -> list[int]:
    """The examples with a number that is not finite. A sum is finite only if all its terms are, and is faster to take."""
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(float(state.sum())):
            return []
    if isinstance(state, Tensor):
        return (~state.isfinite().all(dim=1)).nonzero().flatten().tolist()
    return np.flatnonzero(~np.isfinite(state).all(axis=1)).tolist()
