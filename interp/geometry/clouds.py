"""Clouds of points: what every measure of geometry takes, and what is refused.

A cloud is `[example, feature]`: one vector an example, at one layer. A stack of them, `[state, example, feature]`, has
the same examples at every layer. Either may be a torch tensor (of any floating type, on any device) or a numpy array;
all measures compute in float64, where the squared distances of half-precision states neither overflow nor cancel.

Equal rows are no small matter here. A point at distance 0 has no ratio of distances, and among equal points the
nearest ones are nobody in particular. Each measure says what it does with them; `distinct_rows` gives the rows that
remain when they are dropped, in all clouds jointly, so that rows stay paired.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError, InputTypeError

# Wider at run time than what is meant: what a caller passes is checked below, by errors in this package's words.
if TYPE_CHECKING:
    Cloud = Tensor | np.ndarray
else:
    Cloud = Any
States = Any  # a Cloud with one dimension more, or something of which `[...]` is one, such as a site of activations


def as_cloud(x: Cloud, name: str = "x") -> Float[Tensor, "n d"]:
    """`x` `[example, feature]` as a float64 tensor on its device (on the CPU where the device has no float64).

    Raises `InputTypeError` where `x` is neither tensor nor array, and `InputError` where it is not two-dimensional,
    has fewer than two rows or no feature, or is not finite.
    """
    return _finite(_as_tensor(x, name), name, ("example", "feature"))


def as_pair(x: Cloud, y: Cloud, names: tuple[str, str] = ("x", "y")) -> tuple[Tensor, Tensor]:
    """Two clouds whose rows are paired, as float64 tensors on the device of the first.

    Raises what `as_cloud` raises, and `InputError` where the numbers of rows differ.
    """
    first, second = as_cloud(x, names[0]), as_cloud(y, names[1])
    _check_paired(first, second, names, 0)
    return first, second.to(first.device)


def as_states(x: States, name: str = "states") -> Float[Tensor, "state n d"]:
    """`x` `[state, example, feature]` as a float64 tensor; `x[...]` is taken where `x` is neither tensor nor array.

    Raises what `as_cloud` raises, naming the first state that is not finite.
    """
    return _finite(_as_tensor(x, name), name, ("state", "example", "feature"))


def as_paired_states(x: States, y: States, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Two stacks of clouds with paired examples, as float64 tensors on the device of the first; see `as_pair`."""
    first, second = as_states(x, names[0]), as_states(y, names[1])
    _check_paired(first, second, names, 1)
    return first, second.to(first.device)


def check_k(k: int, n: int, name: str = "k") -> None:
    """Refuse a number of neighbours that `n` points cannot have: 1 <= k < n, the point itself never counted."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise InputError(f"{name}={k!r}: a number of neighbours is an integer of 1 or more")
    if k >= n:
        raise InputError(
            f"{name}={k!r} neighbours were asked of {n} examples: expected {name} < {n}, pass a smaller one"
        )


def duplicates(cloud: Float[Tensor, "n d"]) -> Int[Tensor, " m"]:
    """The rows that equal an earlier row, in order.

    >>> duplicates(torch.tensor([[0.0, 1.0], [2.0, 3.0], [0.0, 1.0]])).tolist()
    [2]
    """
    _, inverse = torch.unique(cloud, dim=0, return_inverse=True)
    order = torch.arange(len(cloud), device=cloud.device)
    first = torch.full((len(cloud),), len(cloud), device=cloud.device).scatter_reduce(0, inverse, order, "amin")
    return (first[inverse] != order).nonzero().flatten()


def distinct_rows(*clouds: Any) -> Int[Tensor, " kept"]:
    """The examples to keep so that no two rows are equal in any of `clouds`, which have paired rows.

    Each cloud is `[example, feature]` or `[state, example, feature]`; the first of equal rows is kept. Index all clouds
    with the result: dropping rows from one alone would break the pairing.

    Raises `InputError` where the numbers of examples differ, and what `as_cloud` and `as_states` raise.

    >>> x = np.array([[0.0], [1.0], [0.0], [2.0]])
    >>> y = np.array([[5.0], [6.0], [7.0], [6.0]])
    >>> distinct_rows(x, y).tolist()
    [0, 1]
    """
    layers: list[Tensor] = []
    for number, cloud in enumerate(clouds):
        name = f"cloud {number}"
        whole = _as_tensor(cloud, name)
        layers.extend([as_cloud(whole, name)] if whole.ndim == 2 else as_states(whole, name))
    if not layers:
        raise InputError("distinct_rows() was given no cloud: pass at least one")
    sizes = sorted({len(layer) for layer in layers})
    if len(sizes) > 1:
        raise InputError(f"the clouds have {sizes} examples: paired clouds have the same ones")
    keep = torch.ones(sizes[0], dtype=torch.bool)
    for layer in layers:
        keep[duplicates(layer).cpu()] = False
    return keep.nonzero().flatten()


def _as_tensor(x: Any, name: str) -> Tensor:
    if not isinstance(x, Tensor | np.ndarray):
        with suppress(TypeError, KeyError, IndexError, AttributeError):
            x = x[...]
    if not isinstance(x, Tensor | np.ndarray):
        raise InputTypeError(f"{name} is a {type(x).__name__}: expected a torch tensor or a numpy array")
    if isinstance(x, np.ndarray):
        if x.dtype.kind not in "fiub":
            raise InputError(f"{name} has dtype {x.dtype!s}: expected numbers")
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float64))
    if x.is_complex():
        raise InputError(f"{name} has dtype {x.dtype!s}: expected real numbers")
    return x.detach()


def _finite(x: Tensor, name: str, axes: tuple[str, ...]) -> Tensor:
    wanted = ", ".join(axes)
    if x.ndim != len(axes):
        raise InputError(f"{name} has shape {tuple(x.shape)!r}: expected [{wanted}]")
    if x.shape[-2] < 2 or 0 in x.shape:
        raise InputError(f"{name} has shape {tuple(x.shape)!r}: expected [{wanted}] with two examples or more")
    if x.device.type == "mps":  # which has no float64
        x = x.cpu()
    x = x.to(torch.float64)
    bad = ~torch.isfinite(x).all(dim=-1)
    if bad.any():
        places = bad.nonzero()
        where = ", ".join(f"{axis} {index}" for axis, index in zip(axes, places[0].tolist(), strict=False))
        raise InputError(
            f"{name} has {len(places)} rows that are not finite, the first at {where}: drop or repair them"
        )
    return x


def _check_paired(first: Tensor, second: Tensor, names: tuple[str, str], axis: int) -> None:
    if first.shape[axis] != second.shape[axis]:
        raise InputError(
            f"{names[0]} has {first.shape[axis]} examples and {names[1]} {second.shape[axis]}: rows must be paired"
        )
