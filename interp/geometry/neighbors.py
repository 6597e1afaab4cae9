"""The graph of nearest neighbours: what intrinsic dimension, overlaps and densities are all read from.

In thousands of dimensions coordinates say little, but who is near whom still does, and it survives rotation, shift
and scaling. So most measures here look at a cloud through one thing only: each point's neighbours, in order.

Three decisions matter. *A point is not its own neighbour*: it is left out by its index, not by being the first in the
list, which is another point where two are equal. *Distances do not cancel*: they are computed as |a|^2 + |b|^2 - 2ab
about the centre, which is fast, and again from the differences a - b wherever the first form lost digits. *Ties are
fair*: where several points are equally far and not all can be among the k nearest, each is one in part (`shares`), as
often as a random choice would take it. A cloud of equal points then says nothing, instead of agreeing with any other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.geometry.clouds import Cloud, as_cloud, check_k

METRICS = ("euclidean", "cosine")
_BLOCK = 2**23  # numbers held at once in a block of distances: 64 MiB
_CANCELLED = 1e-4  # below this part of |a|^2 + |b|^2 a squared distance is computed again, from the difference
_MANY = 0.02  # where more than this share of a block is lost, all of it is computed from differences
_DIGITS = 2.0**36  # squared distances that differ by less than 1 in this are the same: rounding must not break ties


@dataclass(frozen=True, eq=False)
class Neighbors:
    """Each point's k nearest others, nearest first: their `indices` and `distances`, both `[example, k]`."""

    indices: Int[Tensor, "n k"]
    distances: Float[Tensor, "n k"]


def nearest_neighbors(x: Cloud, k: int, metric: str = "euclidean") -> Neighbors:
    """The `k` nearest neighbours of each row of `x` `[example, feature]`, the row itself left out by its index.

    `metric` is "euclidean", or "cosine": the Euclidean distance of the rows on the unit sphere, sqrt(2 - 2 cos), which
    orders neighbours as the cosine does. Among equally far points the order is arbitrary. Computed in blocks of rows,
    in float64, on the device of `x`.

    Raises `InputError` where k >= n, the metric is unknown, or `x` is no finite cloud (or has a zero row, for cosine).

    >>> found = nearest_neighbors(torch.tensor([[0.0], [1.0], [3.0]]), k=2)
    >>> found.indices.tolist(), found.distances.tolist()
    ([[1, 2], [0, 2], [1, 0]], [[1.0, 3.0], [1.0, 2.0], [2.0, 3.0]])
    """
    cloud = place(as_cloud(x), metric)
    n = len(cloud)
    check_k(k, n)
    indices, distances = [], []
    for rows in blocks(n, n):
        nearest = squared_distances(cloud, rows).topk(k, largest=False)
        indices.append(nearest.indices)
        distances.append(nearest.values.sqrt())
    return Neighbors(torch.cat(indices), torch.cat(distances))


def place(cloud: Float[Tensor, "n d"], metric: str, name: str = "x") -> Float[Tensor, "n d"]:
    """The cloud whose Euclidean distances order points as `metric` does: itself, or its rows at unit length."""
    if metric not in METRICS:
        raise InputError(f"metric={metric!r} is unknown: use one of {METRICS}")
    if metric == "euclidean":
        return cloud
    lengths = cloud.norm(dim=1, keepdim=True)
    if (lengths == 0).any():
        raise InputError(f"{name} has {int((lengths == 0).sum())} rows of zeros, which have no direction: drop them")
    return cloud / lengths


def blocks(n: int, width: int) -> list[slice]:
    """Slices of `n` rows, so that a block of rows by `width` stays within memory."""
    step = max(1, _BLOCK // max(1, width))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def squared_distances(cloud: Float[Tensor, "n d"], rows: slice) -> Float[Tensor, "r n"]:
    """Squared Euclidean distances of `cloud[rows]` to all points, with infinity where a row meets itself."""
    centred = cloud - cloud.mean(dim=0)
    lengths = centred.square().sum(dim=1)
    scale = lengths[rows, None] + lengths
    squared = (scale - 2 * (centred[rows] @ centred.T)).clamp_(min=0)
    index = torch.arange(len(cloud), device=cloud.device)
    squared[index[rows] - rows.start, index[rows]] = torch.inf
    lost = (squared <= _CANCELLED * scale).nonzero()
    if len(lost) > _MANY * squared.numel():
        exact = torch.cdist(cloud[rows], cloud, compute_mode="donot_use_mm_for_euclid_dist").square()
        squared = torch.where(squared.isinf(), squared, exact)
        lost = lost[:0]
    for pairs in lost.split(max(1, _BLOCK // cloud.shape[1])):
        here, there = pairs.T
        squared[here, there] = (cloud[here + rows.start] - cloud[there]).square().sum(dim=1)
    digits, exponent = torch.frexp(squared)
    rounded = torch.ldexp((digits * _DIGITS).round() / _DIGITS, exponent)
    return torch.where(squared.isinf(), squared, rounded)


def shares(distances: Float[Tensor, "*b r n"], k: int) -> Float[Tensor, "*b r n"]:
    """How far each point is one of the k nearest: 1, 0, or a part where the k-th place is tied; rows sum to k.

    Of t points tied for the last m places each gets m/t, the probability that a random order would give it one.

    >>> shares(torch.tensor([[torch.inf, 1.0, 2.0, 2.0]]), k=2).tolist()
    [[0.0, 1.0, 0.5, 0.5]]
    """
    last = distances.topk(k, dim=-1, largest=False, sorted=False).values.amax(dim=-1, keepdim=True)
    nearer = (distances < last).to(distances.dtype)
    tied = (distances == last).to(distances.dtype)
    left = k - nearer.sum(dim=-1, keepdim=True)
    return nearer.addcmul_(tied, left / tied.sum(dim=-1, keepdim=True))
