"""Information imbalance: does one representation tell who is near in another, and does that one tell it back?

If two examples that are near in A are near in B too, A predicts B. So take each example's nearest neighbours in A, and
look up their *ranks* among its neighbours in B (1 is the nearest):

    Delta(A -> B) = 2 / (n^2 k) * sum_i sum_{j in N_k^A(i)} rank_B(i, j)

It is (k+1)/n where the neighbourhoods are the same, about 1 where A says nothing of B, and can be a little above. Unlike
an overlap it is *not symmetric*: a plane predicts its shadow on a line, the shadow does not predict the plane. Two
numbers, so, and a point in the unit square: near (0, 0) both say the same, near (0, 1) A says all that B does and more.
(Glielmo et al. 2022.)

`differentiable_imbalance` replaces the nearest neighbours by weights that fall off with distance,

    DII(A -> B) = 2/n^2 * sum_ij c_ij rank_B(i, j),   c_ij = softmax_j(-d_A(i, j)^2 / lambda_i),

which has a gradient in the weights of A's features, so that one can learn how to weight them for A to predict B best
(`interp.geometry.weighting`; Wild et al. 2025).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError, shown
from interp.geometry.clouds import Cloud, as_pair, check_k
from interp.geometry.neighbors import TIED, Graph, Points, blocks, points_of
from interp.geometry.overlap import Neighborhoods, neighborhoods_in


def information_imbalance(x: Graph, y: Graph, k: int = 1, metric: str = "euclidean") -> tuple[float, float]:
    """The information imbalance of paired rows, (x to y, y to x): how badly each tells who is near in the other.

    From (k+1)/n, where `k` neighbours are the same, to about 1, its value for unrelated clouds. Unchanged by rotation,
    shift and scaling of either. Where points are tied, in the one cloud for the k-th place or in the other for a rank, it
    is the mean over random choices: a cloud of equal points gives (n-1+1)/n = 1 both ways.

    All examples are used. (DADApy 0.3 averages over random subsets of 2,000 where there are more.)

    Raises `InputError` where rows are not paired, k >= n, or a cloud is not finite.

    >>> import numpy as np
    >>> plane = np.random.default_rng(0).normal(size=(500, 2))
    >>> down, up = information_imbalance(plane, plane[:, :1])
    >>> down < 0.1 < 0.3 < up
    True
    """
    one, other = points_of(x, y, metric)
    check_k(k, one.n)
    forth, back = imbalance_terms(one, other, k)
    return float(forth.mean()), float(back.mean())


def imbalance_terms(one: Points, other: Points, k: int) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """What each example adds to the imbalance, there and back, whose means they are."""
    n = one.n
    forth, back = torch.empty(2, n, dtype=torch.float64)
    parts = blocks(n, n * (k + 2))
    for (rows, first), (_, second) in zip(one.products(parts), other.products(parts), strict=True):
        here, there = one.squared_from(rows, first), other.squared_from(rows, second)
        forth[rows] = mean_rank(neighborhoods_in(here, k), there).cpu()
        back[rows] = mean_rank(neighborhoods_in(there, k), here).cpu()
    return forth * (2 / n), back * (2 / n)


def mean_rank(near: Neighborhoods, squared: Float[Tensor, "r n"]) -> Float[Tensor, " r"]:
    """The mean rank by `squared` distances, infinite to oneself, of those in each row's neighbourhood; ties averaged.

    >>> near = neighborhoods_in(torch.tensor([[torch.inf, 1.0, 2.0, 3.0]]), k=2)
    >>> mean_rank(near, torch.tensor([[torch.inf, 5.0, 4.0, 4.0]])).tolist()
    [2.25]
    """
    found = _ranks(squared, squared.gather(1, near.lists)).mean(dim=1)
    if len(near.tied):  # everyone's part in the neighbourhood, times everyone's rank
        ranks = rank_rows(squared[near.tied])
        found[near.tied] = (near.parts.double() * ranks).sum(dim=1) / near.lists.shape[1]
    return found


def _ranks(squared: Tensor, at: Tensor) -> Float[Tensor, "r k"]:
    """The rank among each row of its values `at`, by counting what is less and what is no more."""
    within = 1 + TIED[squared.dtype]
    held = squared.new_empty(*at.shape, squared.shape[1])  # adding up numbers is ten times faster than truth values
    less = torch.lt(squared[:, None], (at / within)[..., None], out=held).sum(dim=2)
    no_more = torch.le(squared[:, None], (at * within)[..., None], out=held).sum(dim=2)
    return (less + no_more + 1).double() / 2


def rank_rows(squared: Float[Tensor, "r n"]) -> Float[Tensor, "r n"]:
    """Everyone's rank in each row, from 1, the mean rank where several are equal."""
    ordered = squared.sort(dim=1).values
    within = 1 + TIED[squared.dtype]
    below = torch.searchsorted(ordered, squared / within, right=False)
    return (below + torch.searchsorted(ordered, squared * within, right=True) + 1).double() / 2


def differentiable_imbalance(
    x: Cloud, y: Cloud, weights: Cloud | None = None, k: int | None = None, factor: float = 0.1
) -> Float[Tensor, ""]:
    """The differentiable information imbalance from `x`, its features times `weights`, to `y`: a tensor with a gradient.

        2/n^2 sum_{i, j != i} c_ij rank_y(i, j),   c_ij = softmax_j(-d_ij^2 / (factor r_ik^2))

    with d the Euclidean distances of weighted `x` and r_ik that to the k-th neighbour, `k` 5 % of the examples and at most
    100 by default. It nears the information imbalance with k=1 as `factor` goes to 0. (DADApy's `DiffImbalance`, with its
    point-adaptive smoothing.) Holds n x n numbers of float64, three times.

    Raises `InputError` where rows are not paired, weights are not one a feature, k >= n or factor is not above 0, and
    where a point of weighted `x` has k copies, of which none is nearer.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(300, 2))
    >>> weights = torch.ones(2, dtype=torch.float64, requires_grad=True)
    >>> differentiable_imbalance(x, x[:, :1], weights).backward()
    >>> bool(weights.grad[0] < 0 < weights.grad[1])  # more of the first feature, less of the second
    True
    """
    first, second = as_pair(x, y)
    n, d = first.shape
    k = max(1, min(100, round(n / 20), n - 1)) if k is None else k
    check_k(k, n)
    if not isinstance(factor, int | float | np.number) or isinstance(factor, bool) or not 0 < factor < float("inf"):
        raise InputError(f"factor={factor!r}: expected a number above 0, a part of the squared distance to neighbour k")
    scaled = first.double()
    if weights is not None:
        weights = torch.from_numpy(weights) if isinstance(weights, np.ndarray) else weights
        if not isinstance(weights, Tensor) or tuple(weights.shape) != (d,) or not bool(weights.isfinite().all()):
            raise InputError(f"weights={shown(weights)}: expected a finite one for each of the {d} features")
        scaled = scaled * weights.to(scaled)
    return soft_imbalance(scaled, rank_matrix(second), k, factor)


def soft_imbalance(x: Float[Tensor, "n d"], ranks: Float[Tensor, "n n"], k: int, factor: float) -> Float[Tensor, ""]:
    """`differentiable_imbalance` of a cloud with a gradient to ranks that stay the same."""
    n = len(x)
    centred = x - x.mean(dim=0)
    lengths = centred.square().sum(dim=1)
    squared = (lengths[:, None] + lengths - 2 * centred @ centred.T).clamp(min=0)
    itself = torch.eye(n, dtype=torch.bool, device=x.device)
    reach = squared.masked_fill(itself, torch.inf).kthvalue(k, dim=1).values
    if not bool((reach > 0).all()):
        raise InputError(
            f"{int((reach <= 0).sum())} of {n} examples have {k} copies of themselves in weighted x: use a larger k or weights"
            " that tell them apart"
        )
    near = torch.softmax((-squared / (factor * reach[:, None])).masked_fill(itself, -torch.inf), dim=1)
    return (near * ranks).sum() * 2 / n**2


def rank_matrix(y: Cloud, metric: str = "euclidean") -> Float[Tensor, "n n"]:
    """Everyone's rank among each example's neighbours, ties averaged; 0 on the diagonal."""
    points, _ = points_of(y, y, metric)
    n = points.n
    found = torch.empty(n, n, dtype=torch.float64, device=points.values.device)
    for rows in blocks(n, n):
        found[rows] = rank_rows(points.squared(rows))
    return found.fill_diagonal_(0)
