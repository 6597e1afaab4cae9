"""What a probe is given: states, and one label, group or type an example, checked before anything is fitted.

States come as a tensor or array `[state, example, feature]`, or as activations, a site of which is one. Labels are strings
or integers, one an example; they become numbers 0, 1, ... in the order of their sorted names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import InputError, InputTypeError, shown

States = Any  # a tensor or array [state, example, feature], or Activations, of which `acts[site][...]` is one
Labels = Any  # one str or int an example: a list, an array, a pandas column
KEPT = (np.dtype(np.float32), np.dtype(np.float64))


def states_of(acts: States, site: str, name: str) -> np.ndarray | Tensor:
    """The states as Float [state, example, feature], in float32 or float64: a tensor where they are on an accelerator, an
    array otherwise, without a copy where they are in one of these precisions.

    Raises `InputTypeError` for what is no tensor, array or activations, `InputError` for another number of axes, an empty
    one, or numbers that are not finite.
    """
    if not isinstance(acts, Tensor | np.ndarray):
        if isinstance(acts, list | tuple | str | bytes) or not hasattr(acts, "__getitem__"):
            raise InputTypeError(f"{name} is a {type(acts).__name__}: expected activations, a tensor or an array")
        acts = acts[site][...]
    if not (not acts.is_complex() if isinstance(acts, Tensor) else acts.dtype.kind in "fiub"):
        raise InputError(f"{name} has dtype {acts.dtype!s}: expected real numbers")
    states = _tensor(acts.detach()) if isinstance(acts, Tensor) else _array(acts)
    if states.ndim != 3 or 0 in states.shape:
        of_heads = ", give one head's, as in acts['z'][:, :, 0]" if states.ndim == 4 else ""
        raise InputError(f"{name} has shape {tuple(states.shape)!r}: expected [state, example, feature]{of_heads}")
    bad = [(state, example) for state, each in enumerate(states) for example in _not_finite(each)]
    if bad:
        raise InputError(
            f"{name} has {len(bad)} rows that are not finite, the first at state {bad[0][0]}, example {bad[0][1]}:"
            " drop or repair them"
        )
    return states


def one_each(values: Labels, n: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The distinct values and the number of each example's, after checking that there is one for each of `n`."""
    try:
        length = len(values)
    except TypeError:
        raise InputTypeError(f"{name} is a {type(values).__name__}: expected one label an example") from None
    if isinstance(values, str | bytes | dict) or length != n:
        raise InputError(f"{length} {name} for {n} examples: expected one an example")
    try:
        array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    except ValueError:
        raise InputError(f"{name}={shown(values)} are of several lengths: expected strings or integers") from None
    if array.ndim != 1 or array.dtype.kind not in "iubUSOT":
        raise InputError(f"{name} have shape {array.shape!r} and dtype {array.dtype!s}: expected strings or integers")
    if array.dtype.kind in "OT":
        odd = [value for value in array if not isinstance(value, str | int | np.integer)]
        if odd:
            raise InputError(f"{name} contain {odd[0]!r}: expected strings or integers")
        array = np.asarray([str(value) for value in array])
    distinct, numbers = np.unique(array, return_inverse=True)
    return distinct, numbers


def classes_of(labels: Labels, n: int) -> tuple[tuple[str | int, ...], np.ndarray]:
    """The classes and the number of each example's. Raises `InputError` where there is one class alone."""
    distinct, numbers = one_each(labels, n, "labels")
    if len(distinct) < 2:
        raise InputError(f"all labels are {distinct[0].item()!r}, one class: expected two classes or more")
    return tuple(distinct.tolist()), numbers


def _tensor(states: Tensor) -> np.ndarray | Tensor:
    if states.dtype not in (torch.float32, torch.float64):
        states = states.to(torch.float32 if states.is_floating_point() else torch.float64)
    return states.numpy() if states.device.type == "cpu" else states


def _array(states: np.ndarray) -> np.ndarray:
    return states if states.dtype in KEPT else states.astype(np.float64)


def _not_finite(state: np.ndarray | Tensor) -> list[int]:
    """The examples with a number that is not finite. A sum is finite only if all its terms are, and is faster to take."""
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(float(state.sum())):
            return []
    if isinstance(state, Tensor):
        return (~state.isfinite().all(dim=1)).nonzero().flatten().tolist()
    return np.flatnonzero(~np.isfinite(state).all(axis=1)).tolist()
