"""Clouds of points: what every measure of geometry takes, and what is refused.

A cloud is `[example, feature]`: one vector for each example, at one layer. A stack of them, `[state, example, feature]`, has
the same examples at every layer. Both may be torch tensors (of any floating type, on any device) or numpy arrays. Products
of clouds are computed in float32 for clouds of float32 or less, which is twice as fast, and in float64 for others. Clouds
of whole numbers are full of exact ties and become float64. Sensitive steps (differences of close points, logarithms, sums,
decompositions) are float64 for all.

Equal rows matter. A point at distance 0 has no ratio of distances, and among equal points the choice of the nearest is
arbitrary. Each measure says what it does with them; `interp.geometry.copies` says which rows are equal.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import as_number, checked_choice, checked_int
from interp.errors import InputError, InputTypeError, shown

# Wider at run time than for type checkers: the checks below refuse anything else, with errors of this package.
if TYPE_CHECKING:
    Cloud = Tensor | np.ndarray
else:
    Cloud = Any
METRICS = ("euclidean", "cosine")
STACKED = "alignment_matrix, compare and curvature take all states"
States = Any  # a Cloud with one dimension more, or an object whose `[...]` gives one, such as a site of activations


def as_cloud(x: Cloud, name: str = "x") -> Float[Tensor, "n d"]:
    """`x` `[example, feature]` as a tensor of float32 or float64 on its device (on the CPU where that has no float64).

    Half precision becomes float32; whole numbers of any type become float64; other types stay as they are.

    Raises `InputTypeError` where `x` is neither tensor nor array, and `InputError` where it is not two-dimensional,
    has fewer than two rows or no feature, or is not finite.
    """
    if isinstance(x, Mapping):
        site = next(iter(x), "resid")
        raise InputTypeError(
            f"{name} is activations of {', '.join(map(str, x))}: expected one cloud, a state of a site as in acts[{site!r}][4];"
            f" {STACKED}"
        )
    return _finite(_as_tensor(x, name), name, ("example", "feature"))


def as_pair(x: Cloud, y: Cloud, names: tuple[str, str] = ("x", "y")) -> tuple[Tensor, Tensor]:
    """Two clouds with paired rows, as tensors on the device of the first.

    Raises the errors of `as_cloud`, and `InputError` where the numbers of rows differ.
    """
    return _paired(as_cloud(x, names[0]), as_cloud(y, names[1]), names)


def as_states(x: States, name: str = "states") -> Float[Tensor, "state n d"]:
    """`x` `[state, example, feature]` with the types of `as_cloud`; reads `x[...]` where `x` is neither tensor nor array.

    Of activations of one site it reads that site. Raises the errors of `as_cloud`, with the first state that is not finite,
    and `InputError` for activations of several sites.
    """
    if isinstance(x, Mapping):
        x, name = the_site(x, name)
    return _finite(_as_tensor(x, name), name, ("state", "example", "feature"))


def the_site(acts: Mapping[str, Any], name: str) -> tuple[Any, str]:
    """The one site of activations, and its name for messages; raises `InputError` where there are several or none."""
    sites = list(acts)
    if len(sites) != 1:
        raise InputError(
            f"{name} has {len(sites)} sites, {', '.join(sites)}: expected one, as in acts[{(sites or ['resid'])[0]!r}]"
        )
    return acts[sites[0]], f"{name}[{sites[0]!r}]"


def fingerprint_of_ids(x: States) -> str:
    """A hash of the ids of the rows of activations; empty for states without ids, such as tensors."""
    ids = getattr(x, "ids", ())
    return hashlib.sha256("\n".join(map(str, ids)).encode()).hexdigest()[:16] if isinstance(ids, tuple) and ids else ""


def as_paired_states(x: States, y: States, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Two stacks of clouds with paired examples, on the device of the first; see `as_pair`."""
    check_same_order(x, y, names)
    return _paired(as_states(x, names[0]), as_states(y, names[1]), names)


def check_same_order(x: States, y: States, names: tuple[str, str]) -> None:
    """Refuse activations with the same ids in different orders, of which rows are not paired."""
    ids, others = ([*map(str, each)] if isinstance(each := getattr(of, "ids", ()), tuple) else [] for of in (x, y))
    if ids != others and sorted(ids) == sorted(others):
        at = next(at for at, (one, other) in enumerate(zip(ids, others, strict=True)) if one != other)
        raise InputError(
            f"row {at} of {names[0]} has the id {shown(ids[at])} and that of {names[1]} {shown(others[at])}, and both have the"
            " same ids: expected paired rows, select those of one in the order of the other"
        )


def as_layers(x: States, name: str) -> list[Tensor]:
    """The clouds of a cloud, of a stack of them, or of all sites of activations."""
    if isinstance(x, Mapping):
        return [layer for site in x for layer in as_states(x[site], f"{name}[{site!r}]")]
    whole = _as_tensor(x, name)
    return [as_cloud(whole, name)] if whole.ndim == 2 else list(as_states(whole, name))


def precision(x: Cloud) -> torch.dtype:
    """The type of a result: float32 for a cloud of float32 or less, float64 for any other."""
    kind = _as_tensor(x, "x").dtype
    return torch.float32 if kind.is_floating_point and kind.itemsize <= 4 else torch.float64


def check_k(k: int, n: int, name: str = "k") -> None:
    """Refuse a number of neighbours that `n` points cannot have: 1 <= k < n, as a point is not its own neighbour."""
    if checked_int(k, name, least=1, what="a number of neighbours") >= n:
        raise InputError(f"{name}={k!r} neighbours of {n} examples: expected {name} < {n}, pass a smaller one")


def checked_within(value: Any, name: str, what: str, low: float = 0.0, high: float = math.inf) -> float:
    """A number between `low` and `high`, without these. Raises `InputError` for anything else.

    >>> checked_within(0.5, "tau", "a share above 0")
    0.5
    """
    number = as_number(value)
    if number is None or not low < number < high:
        raise InputError(f"{name}={shown(value)}: expected {what}")
    return number


def check_one_space(x: Tensor, y: Tensor) -> None:
    """Refuse two clouds of unequal width, which cannot lie in one space of features."""
    if x.shape[1] != y.shape[1]:
        raise InputError(
            f"x has {x.shape[1]} features and y {y.shape[1]}: expected equally many, of one space of features"
        )


def for_distances(cloud: Float[Tensor, "n d"], metric: str, name: str = "x") -> Float[Tensor, "n d"]:
    """The cloud whose Euclidean distances order points as `metric` does: itself, or its rows at unit length."""
    if checked_choice(metric, "metric", METRICS) == "euclidean":
        return cloud
    cloud = cloud / cloud.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(cloud.dtype).tiny)
    lengths = cloud.norm(dim=1, keepdim=True)
    check_lengths(lengths, name)
    return cloud / lengths


def check_lengths(lengths: Float[Tensor, "n 1"], name: str) -> None:
    """Refuse rows of length 0."""
    if (lengths == 0).any():
        raise InputError(f"{name} has {int((lengths == 0).sum())} rows of zeros, which have no direction: drop them")


def _as_tensor(x: Any, name: str) -> Tensor:
    if not isinstance(x, Tensor | np.ndarray):
        with suppress(TypeError, KeyError, IndexError, AttributeError):
            x = x[...]
    if not isinstance(x, Tensor | np.ndarray):
        raise InputTypeError(f"{name} is a {type(x).__name__}: expected a torch tensor or a numpy array")
    if isinstance(x, np.ndarray):
        if x.dtype.kind not in "fiub":
            raise InputError(f"{name} has dtype {x.dtype!s}: expected numbers")
        kind = x.dtype if x.dtype in (np.float16, np.float32) else np.float64
        if np.ma.is_masked(x):
            raise InputError(f"{name} has {np.ma.count_masked(x)} masked values: drop or fill them")
        with warnings.catch_warnings():  # about arrays that are read-only: nothing here writes to them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(np.ascontiguousarray(x, dtype=kind))
    if x.is_complex():
        raise InputError(f"{name} has dtype {x.dtype!s}: expected real numbers")
    if x.layout != torch.strided:
        raise InputError(f"{name} has layout {x.layout!s}: expected a dense tensor, pass to_dense()")
    return x.detach()


def _finite(x: Tensor, name: str, axes: tuple[str, ...]) -> Tensor:
    if x.ndim != len(axes):
        raise InputError(
            f"{name} has shape {tuple(x.shape)!r}: expected [{', '.join(axes)}]{_other_axes(x.ndim, len(axes))}"
        )
    if x.shape[-2] < 2 or 0 in x.shape:
        raise InputError(f"{name} has shape {tuple(x.shape)!r}: expected [{', '.join(axes)}] with two examples or more")
    if x.device.type == "mps":  # it has no float64
        x = x.cpu()
    if x.dtype != torch.float64:
        x = x.to(torch.float32 if x.is_floating_point() else torch.float64)
    if not torch.isfinite(torch.stack(torch.aminmax(x))).all():  # NaN is the least and the most
        bad = ~torch.isfinite(x).all(dim=-1)
        places = bad.nonzero()
        where = ", ".join(f"{axis} {index}" for axis, index in zip(axes, places[0].tolist(), strict=False))
        raise InputError(
            f"{name} has {len(places)} rows that are not finite, the first at {where}: drop or repair them"
        )
    return x.double() if _whole(x) else x


def _other_axes(given: int, expected: int) -> str:
    """What to do with a stack in place of a cloud, with a cloud in place of a stack, and with heads."""
    if given == 4:
        return ", pass one head's, as in acts['z'][:, :, 0]"
    return {(3, 2): f", one state of a stack, as in x[4]; {STACKED}", (2, 3): ", pass one cloud as x[None]"}.get(
        (given, expected), ""
    )


def _whole(x: Tensor) -> bool:
    """Whether all values are whole numbers; for most clouds the first row is enough to say no."""
    first = x.flatten(end_dim=-2)[0]
    return bool((first == first.round()).all()) and bool((x == x.round()).all())


def _paired(first: Tensor, second: Tensor, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Both clouds or stacks on the device of the first, after refusing unequal numbers of examples."""
    if first.shape[-2] != second.shape[-2]:
        raise InputError(
            f"{names[0]} has {first.shape[-2]} examples and {names[1]} {second.shape[-2]}: rows must be paired"
        )
    return first, second.to(first.device)
