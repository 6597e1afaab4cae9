"""Tables of all pairs of a cloud's points, without all of a table in memory.

Kernels, distance correlation and representational similarity look at every pair of n examples: at 20,000 examples one
table has 3.2 GB in float64, and several are needed at once. So a table is a function here, from a slice of rows to those
rows, `[row, example]`. It computes them anew at each call, and everything that uses it goes block by block.

Where the values of all pairs have to be in order, for a median or for ranks, each pair is stored once and in float32. That
is exact enough, and has an advantage: equal distances, which differ by rounding in float64, are equal again.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.geometry.clouds import checked_within
from interp.geometry.neighbors import blocks

PairTable = Callable[[slice], Tensor]  # from a slice of rows to the Float [row, example] of them

_NOTHING = 1e-20  # the part of a table's squared entries that is left after centring by rounding alone
SAME = 1e-12  # a squared distance below this part of |a|^2 + |b|^2 is rounding: the points are equal


def inner_products(x: Float[Tensor, "n d"]) -> PairTable:
    """The table of inner products of rows."""
    return lambda rows: x[rows] @ x.T


def squared_distances(x: Float[Tensor, "n d"]) -> PairTable:
    """The table of squared Euclidean distances of the rows of a centred cloud; 0 for a row and itself."""
    lengths = x.square().sum(dim=1)
    return lambda rows: _squares(x, lengths, rows, slice(0, len(x)))


def distances(x: Float[Tensor, "n d"]) -> PairTable:
    """The table of Euclidean distances of the rows of a centred cloud."""
    squared = squared_distances(x)
    return lambda rows: squared(rows).sqrt_()


def gaussian(x: Float[Tensor, "n d"], width: float) -> PairTable:
    """The table of exp(-distance^2 / (2 width^2)) of the rows of a centred cloud."""
    squared = squared_distances(x)
    return lambda rows: squared(rows).div_(-2 * width**2).exp_()


def rbf(x: Float[Tensor, "n d"], bandwidth: float | None, name: str) -> PairTable:
    """The table of the Gaussian kernel of a centred cloud, `bandwidth` (1 where None) times its median distance wide."""
    factor = 1.0 if bandwidth is None else bandwidth
    width = checked_within(factor, "bandwidth", "a positive number of median distances") * median_distance(x)
    if not width:
        raise InputError(f"half of the pairs of {name} are equal rows, the median distance is 0: drop duplicates")
    return gaussian(x, width)


def centred_table(table: PairTable, n: int, debiased: bool) -> tuple[PairTable, Tensor]:
    """The table with rows and columns that sum to 0, by an offset for each; and the sum of its squares before that.

    For the debiased form the diagonal is 0 before and after, and the rest of each row sums to 0.
    """
    within = n - 2 if debiased else n
    sums, squares = [], []
    for rows in blocks(n, n):
        block = table(rows)
        if debiased:
            block.diagonal(offset=rows.start).zero_()
        sums.append(block.sum(dim=1))
        squares.append(block.square_().sum())
    by_row = torch.cat(sums)
    offsets = by_row.sum() / (2 * within * (n - 1 if debiased else n)) - by_row / within

    def centred_rows(rows: slice) -> Tensor:
        block = table(rows).add_(offsets[rows, None]).add_(offsets)
        if debiased:
            block.diagonal(offset=rows.start).zero_()
        return block

    return centred_rows, torch.stack(squares).sum()


def check_left(own: Tensor, size: Tensor, n: int, name: str) -> None:
    """Refuse a table of n rows whose sum of squares after centring, `own`, is only a rounding error of `size`."""
    if own <= _NOTHING * size:
        raise InputError(f"all pairs of the {n} rows of {name} are equally alike: nothing is left to compare")


def each_pair(x: Float[Tensor, "n d"], rows: slice, lengths: Float[Tensor, " n"]) -> Float[Tensor, " pair"]:
    """The squared distances of `rows` to the rows that come after them, in float32, row after row.

    `lengths` are the squared lengths of the rows of `x`, a centred cloud.
    """
    block = _squares(x, lengths, rows, slice(rows.start, len(x))).float()
    return block[torch.ones_like(block, dtype=torch.bool).triu_(diagonal=1)]


def sorted_squares(x: Float[Tensor, "n d"]) -> Float[Tensor, " pair"]:
    """The squared distances of all n (n - 1) / 2 pairs of a centred cloud's rows, in order, in float32."""
    n = len(x)
    lengths = x.square().sum(dim=1)
    values = torch.empty(n * (n - 1) // 2, dtype=torch.float32)
    done = 0
    for rows in blocks(n, 4 * n):  # selecting the pairs of a block needs several copies of it
        squares = each_pair(x, rows, lengths)
        values[done : done + len(squares)] = squares.cpu()
        done += len(squares)
    values.numpy().sort()  # in place: torch's sort returns indices too, of twice the size
    return values.to(x.device)


def median_distance(x: Float[Tensor, "n d"]) -> float:
    """The median Euclidean distance of all pairs of a centred cloud's rows; the mean of two in the middle.

    >>> round(median_distance(torch.tensor([[0.0], [1.0], [3.0], [7.0]]) - 2.75), 6)
    3.5
    """
    values = sorted_squares(x)
    middle = values[(len(values) - 1) // 2 : len(values) // 2 + 1]
    return math.fsum(middle.double().sqrt().tolist()) / len(middle)


def mean_ranks(ordered: Float[Tensor, " pair"], values: Float[Tensor, " some"]) -> Float[Tensor, " some"]:
    """The ranks of `values` among `ordered`, from 1, the mean rank where several are equal.

    >>> mean_ranks(torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([5.0, 2.0])).tolist()
    [4.0, 2.5]
    """
    ascending, order = values.sort()  # a search in ascending order is five times as fast, by the cache
    below = torch.searchsorted(ordered, ascending, right=False)
    ranks = (below + torch.searchsorted(ordered, ascending, right=True) + 1).double() / 2
    return torch.empty_like(ranks).index_copy_(0, order, ranks)


def _squares(
    x: Float[Tensor, "n d"], lengths: Float[Tensor, " n"], rows: slice, columns: slice
) -> Float[Tensor, "r c"]:
    scale = lengths[rows, None] + lengths[columns]
    squared = torch.addmm(scale, x[rows], x[columns].T, alpha=-2)
    return squared.masked_fill_(squared <= SAME * scale, 0)
