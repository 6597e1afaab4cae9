"""Information imbalance: do the neighbours in one representation predict those in another, and the other way round?

Take the nearest neighbours of each example in A, and look up their *ranks* among its neighbours in B (1 is the nearest):

    Delta(A -> B) = 2 / (n^2 k) * sum_i sum_{j in N_k^A(i)} rank_B(i, j)

It is (k+1)/n where the neighbourhoods are the same, about 1 where A does not predict B, and can be a little above. Unlike
an overlap it is *not symmetric*: a plane predicts its shadow on a line, the shadow does not predict the plane. So there are
two numbers, a point in the unit square: near (0, 0) both contain the same, near (0, 1) A contains B and more. (Glielmo et
al. 2022.)

`differentiable_imbalance` replaces the nearest neighbours by weights that fall with distance,

    DII(A -> B) = 2/n^2 * sum_ij c_ij rank_B(i, j),   c_ij = softmax_j(-d_A(i, j)^2 / lambda_i),

which has a gradient in the weights of A's features, so that one can learn the weights with which A predicts B best
(`interp.geometry.weighting`; Wild et al. 2025).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError, shown
from interp.geometry.clouds import Cloud, as_pair, check_k, checked_within
from interp.geometry.copies import first_equal
from interp.geometry.distances import SAME
from interp.geometry.neighbors import TIED, Graph, Points, blocks, paired_points, points_of
from interp.geometry.overlap import Neighborhoods, neighborhoods_in


def information_imbalance(x: Graph, y: Graph, k: int = 1, metric: str = "euclidean") -> tuple[float, float]:
    """The information imbalance of paired rows, (x to y, y to x): how badly each predicts the neighbours in the other.

    >>> import numpy as np
    >>> plane = np.random.default_rng(0).normal(size=(500, 2))
    >>> down, up = information_imbalance(plane, plane[:, :1])
    >>> down < 0.1 < 0.3 < up
    True

    From (k+1)/n, where `k` neighbours are the same, to about 1, its value for unrelated clouds. Unchanged by rotation,
    shift and scaling of either. Where points are tied, for the k-th place in one cloud or for a rank in the other, it is
    the mean over random choices: a cloud of equal points gives (n-1+1)/n = 1 in both directions.

    It uses all examples. (DADApy 0.3 averages over random subsets of 2,000 where there are more.)

    Raises `InputError` where rows are not paired, k >= n, or a cloud is not finite.
    """
    one, other = paired_points(x, y, metric)
    check_k(k, one.n)
    forth, back = imbalance_terms(one, other, k)
    return float(forth.mean()), float(back.mean())


def imbalance_terms(one: Points, other: Points, k: int) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Each example's part in the imbalance in both directions; the means of the parts are its values."""
    n = one.n
    forth, back = torch.empty(2, n, dtype=torch.float64)
    parts = blocks(n, n * (k + 2))
    for (rows, first), (_, second) in zip(one.products(parts), other.products(parts), strict=True):
        here, there = one.squared_from(rows, first), other.squared_from(rows, second)
        forth[rows] = mean_rank(neighborhoods_in(here, k), there).cpu()
        back[rows] = mean_rank(neighborhoods_in(there, k), here).cpu()
    return forth * (2 / n), back * (2 / n)


def mean_rank(near: Neighborhoods, squared: Float[Tensor, "r n"]) -> Float[Tensor, " r"]:
    """The mean rank by `squared` distances, infinite to itself, of each row's neighbourhood; ties have their mean rank.

    >>> near = neighborhoods_in(torch.tensor([[torch.inf, 1.0, 2.0, 3.0]]), k=2)
    >>> mean_rank(near, torch.tensor([[torch.inf, 5.0, 4.0, 4.0]])).tolist()
    [2.25]
    """
    means = _ranks(squared, squared.gather(1, near.lists)).mean(dim=1)
    if len(near.tied):  # each example's part in the neighbourhood, times its rank
        ranks = rank_rows(squared[near.tied])
        means[near.tied] = (near.parts.double() * ranks).sum(dim=1) / near.lists.shape[1]
    return means


def _ranks(squared: Tensor, at: Tensor) -> Float[Tensor, "r k"]:
    """The ranks of the values `at` in their rows, by counting the values that are less and those that are not more."""
    within = 1 + TIED[squared.dtype]
    table = squared.new_empty(*at.shape, squared.shape[1])  # a sum of numbers is ten times faster than one of booleans
    less = torch.lt(squared[:, None], (at / within)[..., None], out=table).sum(dim=2)
    no_more = torch.le(squared[:, None], (at * within)[..., None], out=table).sum(dim=2)
    return (less + no_more + 1).double() / 2


def rank_rows(squared: Float[Tensor, "r n"]) -> Float[Tensor, "r n"]:
    """The rank of each value in its row, from 1; equal values have their mean rank."""
    ordered = squared.sort(dim=1).values
    within = 1 + TIED[squared.dtype]
    below = torch.searchsorted(ordered, squared / within, right=False)
    return (below + torch.searchsorted(ordered, squared * within, right=True) + 1).double() / 2


def differentiable_imbalance(
    x: Cloud, y: Cloud, weights: Cloud | None = None, k: int | None = None, factor: float = 0.1
) -> Float[Tensor, ""]:
    """The differentiable information imbalance from `x`, its features times `weights`, to `y`: a tensor with a gradient.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(300, 2))
    >>> weights = torch.ones(2, dtype=torch.float64, requires_grad=True)
    >>> differentiable_imbalance(x, x[:, :1], weights).backward()
    >>> bool(weights.grad[0] < 0 < weights.grad[1])  # more of the first feature, less of the second
    True

        2/n^2 sum_{i, j != i} c_ij rank_y(i, j),   c_ij = softmax_j(-d_ij^2 / (factor r_ik^2))

    with d the Euclidean distances of weighted `x` and r_ik the distance to the k-th neighbour; `k` is 5 % of the examples and
    at most 100 by default. It nears the information imbalance with k=1 as `factor` goes to 0. (DADApy's `DiffImbalance`,
    with its point-adaptive smoothing.) It needs memory for three tables of n x n in float64.

    Raises `InputError` where rows are not paired, there is not one weight for each feature, k >= n or factor is not above 0,
    and where a point of weighted `x` has k copies, so that r_ik is 0.
    """
    first, second = as_pair(x, y)
    n, d = first.shape
    k = default_k(n) if k is None else k
    check_k(k, n)
    checked_within(factor, "factor", "a number above 0, a part of the squared distance to neighbour k")
    scaled = first[first_equal(first)].double()
    if weights is not None:
        weights = torch.from_numpy(weights) if isinstance(weights, np.ndarray) else weights
        if not isinstance(weights, Tensor) or tuple(weights.shape) != (d,) or not bool(weights.isfinite().all()):
            raise InputError(f"weights={shown(weights)}: expected one finite number for each of the {d} features")
        scaled = scaled * weights.to(scaled)
    return soft_imbalance(scaled, rank_matrix(second), k, factor)


def default_k(n: int) -> int:
    """The neighbour whose distance is the unit of smoothing: 5 % of the examples, at most the 100th."""
    return max(1, min(100, round(n / 20), n - 1))


def soft_imbalance(x: Float[Tensor, "n d"], ranks: Float[Tensor, "n n"], k: int, factor: float) -> Float[Tensor, ""]:
    """`differentiable_imbalance` from a cloud with a gradient to fixed ranks."""
    n = len(x)
    centred = x - x.mean(dim=0)
    lengths = centred.square().sum(dim=1)
    scale = lengths[:, None] + lengths
    squared = scale - 2 * centred @ centred.T
    squared = squared.masked_fill(squared <= SAME * scale, 0)  # equal rows
    itself = torch.eye(n, dtype=torch.bool, device=x.device)
    reach = squared.masked_fill(itself, torch.inf).kthvalue(k, dim=1).values
    if not bool((reach > 0).all()):
        raise InputError(
            f"{int((reach <= 0).sum())} of {n} examples have {k} copies in weighted x: use a larger k, or other weights"
        )
    near = torch.softmax((-squared / (factor * reach[:, None])).masked_fill(itself, -torch.inf), dim=1)
    return (near * ranks).sum() * 2 / n**2


def rank_matrix(y: Cloud, metric: str = "euclidean") -> Float[Tensor, "n n"]:
    """The rank of each example among the neighbours of each, ties with their mean rank; 0 on the diagonal."""
    points = points_of(y, metric)
    parts = [rank_rows(points.squared(rows)) for rows in blocks(points.n, points.n)]
    return torch.cat(parts).fill_diagonal_(0)
