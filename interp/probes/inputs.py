"""The inputs of a probe: states, and one label, group or type an example, checked before anything is fitted.

States are a tensor or array `[state, example, feature]`, or activations, of which one site is read. Labels are strings or
integers, one an example; they become numbers 0, 1, ... in the order of their sorted names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import InputError, InputTypeError, shown

States = Any  # a tensor or array [state, example, feature], or Activations, of which `acts[site][...]` is one
Labels = Any  # one str or int an example: a list, an array, a pandas column
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


def checked_labels(values: Labels, n: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The distinct labels, sorted, and the number of each example's label. Raises `InputError` unless there are `n`."""
    try:
        length = len(values)
    except TypeError:
        raise InputTypeError(f"{name} is a {type(values).__name__}: expected one label an example") from None
    if isinstance(values, str | bytes | dict) or length != n:
        raise InputError(f"{length} {name} for {n} examples: expected one an example")
    try:
        array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except ValueError:
        raise InputError(f"{name}={shown(values)} have several lengths: expected strings or integers") from None
    if array.ndim != 1 or array.dtype.kind not in "iubUSOT":
        raise InputError(f"{name} have shape {array.shape!r} and dtype {array.dtype!s}: expected strings or integers")
    if array.dtype.kind in "OT":
        odd = [value for value in array if not isinstance(value, str | int | np.integer)]
        if odd:
            raise InputError(f"{name} contain {odd[0]!r}: expected strings or integers")
        array = np.asarray([str(value) for value in array])
    distinct, numbers = np.unique(array, return_inverse=True)
    return distinct, numbers


def checked_classes(labels: Labels, n: int) -> tuple[tuple[str | int, ...], np.ndarray]:
    """The classes and the number of each example's class. Raises `InputError` for fewer than two classes."""
    distinct, numbers = checked_labels(labels, n, "labels")
    if len(distinct) < 2:
        raise InputError(f"all labels are {distinct[0].item()!r}, one class: expected two classes or more")
    return tuple(distinct.tolist()), numbers


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
