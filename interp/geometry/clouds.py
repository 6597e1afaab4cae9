"""Clouds of points: what every measure of geometry takes, and what is refused.

A cloud is `[example, feature]`: one vector for each example, at one layer. A stack of them, `[state, example, feature]`, has
the same examples at every layer. Both may be torch tensors (of any floating type, on any device) or numpy arrays. Products
of clouds are computed in float32 for clouds of float32 or less, which is twice as fast, and in float64 for others. Clouds
of whole numbers are full of exact ties and become float64. Sensitive steps (differences of close points, logarithms, sums,
decompositions) are float64 for all.

Equal rows matter. A point at distance 0 has no ratio of distances, and among equal points the choice of the nearest is
arbitrary. Each measure says what it does with them; `distinct_rows` gives the rows that remain without copies, in all
clouds jointly, so that rows stay paired.
"""

from __future__ import annotations

import math
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import as_number, checked_int
from interp.errors import InputError, InputTypeError, shown

# Wider at run time than for type checkers: the checks below refuse what is no cloud, with errors of this package.
if TYPE_CHECKING:
    Cloud = Tensor | np.ndarray
else:
    Cloud = Any
_FEW = 32
_AT_ONCE = 2**23  # numbers in one block of rows
Labels = Any  # one label for each example: a list, an array, a tensor, a pandas column
States = Any  # a Cloud with one dimension more, or an object whose `[...]` gives one, such as a site of activations


def as_cloud(x: Cloud, name: str = "x") -> Float[Tensor, "n d"]:
    """`x` `[example, feature]` as a tensor of float32 or float64 on its device (on the CPU where that has no float64).

    Half precision becomes float32; whole numbers of any type become float64; other types stay as they are.

    Raises `InputTypeError` where `x` is neither tensor nor array, and `InputError` where it is not two-dimensional,
    has fewer than two rows or no feature, or is not finite.
    """
    return _finite(_as_tensor(x, name), name, ("example", "feature"))


def as_pair(x: Cloud, y: Cloud, names: tuple[str, str] = ("x", "y")) -> tuple[Tensor, Tensor]:
    """Two clouds with paired rows, as tensors on the device of the first.

    Raises the errors of `as_cloud`, and `InputError` where the numbers of rows differ.
    """
    return _paired(as_cloud(x, names[0]), as_cloud(y, names[1]), names)


def as_states(x: States, name: str = "states") -> Float[Tensor, "state n d"]:
    """`x` `[state, example, feature]` with the types of `as_cloud`; reads `x[...]` where `x` is neither tensor nor array.

    Raises the errors of `as_cloud`, with the first state that is not finite.
    """
    return _finite(_as_tensor(x, name), name, ("state", "example", "feature"))


def as_paired_states(x: States, y: States, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Two stacks of clouds with paired examples, on the device of the first; see `as_pair`."""
    return _paired(as_states(x, names[0]), as_states(y, names[1]), names)


def as_labels(labels: Labels, name: str = "labels") -> tuple[np.ndarray, Int[np.ndarray, " n"]]:
    """The distinct labels in order of appearance, and the number of each example's label among them.

    Raises `InputError` where there is not one label for each example, or some are missing: a missing label is no class.

    >>> [part.tolist() for part in as_labels(["b", "a", "b"])]
    [['b', 'a'], [0, 1, 0]]
    """
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
        labels = labels.double() if labels.is_floating_point() else labels  # numpy has no bfloat16
    try:
        array = np.asarray(labels)
        if array.dtype.kind in "US":  # numpy has turned a NaN among strings into a string
            array = np.asarray(labels, dtype=object)
    except ValueError:
        raise InputError(f"{name} have unequal lengths: expected one label an example") from None
    if array.ndim != 1 or not len(array):
        raise InputError(f"{name} have shape {array.shape!r}: expected one label an example")
    numbers, distinct = pd.factorize(array)
    missing = np.flatnonzero(np.isinf(array) | (numbers < 0) if array.dtype.kind == "f" else numbers < 0)
    if len(missing):
        raise InputError(
            f"{len(missing)} of {len(array)} {name} are missing or not finite, the first at example {missing[0]}: drop them"
        )
    return distinct, numbers


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


def duplicates(cloud: Float[Tensor, "n d"]) -> Int[Tensor, " m"]:
    """The rows that equal an earlier row, in order.

    >>> duplicates(torch.tensor([[0.0, 1.0], [2.0, 3.0], [0.0, 1.0]])).tolist()
    [2]
    """
    first = first_equal(cloud)
    return (first != torch.arange(len(cloud), device=cloud.device)).nonzero().flatten()


def first_equal(cloud: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
    """For each row the number of the first row that equals it, its own where no other does.

    Rows are compared by a sum of their bits, each times a random odd number, modulo 2^64: exact in any order of addition,
    and equal for unequal rows once in 2^63. Rows with equal sums are then compared themselves.

    >>> first_equal(torch.tensor([[0.0, 1.0], [2.0, 3.0], [-0.0, 1.0]])).tolist()
    [0, 1, 0]
    """
    n, d = cloud.shape
    order = torch.arange(n, device=cloud.device)
    if d > _FEW and bool((first_equal(cloud[:, :_FEW]) == order).all()):
        return order  # a few features are enough: all rows differ
    bits = torch.int32 if cloud.dtype == torch.float32 else torch.int64
    odd = torch.randint(2**62, (d,), generator=torch.Generator().manual_seed(0)).mul_(2).add_(1).to(cloud.device)
    step = max(1, _AT_ONCE // d)
    sums = torch.cat([((part + 0.0).view(bits).long() * odd).sum(dim=1) for part in cloud.split(step)])  # -0.0 is 0.0
    _, inverse = torch.unique(sums, return_inverse=True)
    first = torch.full((n,), n, device=cloud.device).scatter_reduce(0, inverse, order, "amin")[inverse]
    repeated = (first != order).nonzero().flatten()
    if len(repeated):
        unlike = torch.cat([(cloud[rows] != cloud[first[rows]]).any(dim=1) for rows in repeated.split(step)])
        first[repeated[unlike]] = repeated[unlike]
    return first


def distinct_rows(*clouds: Any) -> Int[Tensor, " row"]:
    """The examples to keep so that no two rows are equal in any of `clouds`, which have paired rows.

    Each cloud is `[example, feature]` or `[state, example, feature]`; of equal rows the first stays. Index all clouds
    with the result: dropping rows from one alone would break the pairing.

    Raises `InputError` where the numbers of examples differ, and the errors of `as_cloud` and `as_states`.

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
        raise InputError("distinct_rows() has no cloud: pass at least one")
    sizes = sorted({len(layer) for layer in layers})
    if len(sizes) > 1:
        raise InputError(f"the clouds have {sizes} examples: expected paired clouds, of the same examples")
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
        raise InputError(f"{name} has shape {tuple(x.shape)!r}: expected [{', '.join(axes)}]")
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
