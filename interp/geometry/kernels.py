"""All pairs: are the same examples alike, and the same ones unlike, in two representations?

Each cloud gives an n x n table of how alike its examples are: inner products, a Gaussian of distances, or the distances
themselves. Two such tables can be compared although the clouds share nothing but their examples:

- `cka` (Kornblith et al. 2019): the cosine of two centred tables of a kernel. All pairs count, the far ones most.
- `distance_correlation` (Szekely et al. 2007): the same cosine for tables of distances; 0 only for independence.
- `rsa` (Kriegeskorte et al. 2008): the rank correlation of the distances of all pairs.
- `cknna` (Huh et al. 2024): like CKA, but only pairs that are near neighbours in both clouds count.

None fits a map, so none can overfit as a regression does. But the usual, *biased* forms have another fault: a point is most
like itself, so the diagonals of both tables agree whatever the clouds are, and the diagonal weighs more the more features
there are. Unrelated Gaussians have a biased linear CKA of 0.5 with as many features as examples, and of 0.8 with four times
as many. The *debiased* forms leave the diagonal out and centre without it (U-centring: Szekely and Rizzo 2014; the same
number as the HSIC_1 of Song et al. 2012). For independent clouds of any size they are 0 on average, and negative about half
of the time. They are the default here.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import checked_choice
from interp.errors import InputError
from interp.geometry.clouds import Cloud, as_pair, check_k
from interp.geometry.distances import (
    PairTable,
    centred_table,
    check_left,
    distances,
    each_pair,
    inner_products,
    mean_ranks,
    rbf,
    sorted_squares,
)
from interp.geometry.neighbors import blocks
from interp.geometry.scaling import centred_pair, doubles, unit_rows

KERNELS = ("linear", "rbf")
_CANCELLED = 1e-6  # below this part of the diagonal's squares, a difference from them has lost half its digits


# Centred tables -------------------------------------------------------------------------------------------------------


def cka(x: Cloud, y: Cloud, debiased: bool = True, kernel: str = "linear", bandwidth: float | None = None) -> float:
    """The centred kernel alignment of paired rows of `x` and `y`, both `[example, feature]`.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 400))
    >>> y = np.random.default_rng(1).normal(size=(100, 400))
    >>> abs(cka(x, y)) < 0.05, cka(x, y, debiased=False) > 0.75
    (True, True)
    >>> round(cka(x, 3 * x + 1), 6)
    1.0

        CKA = <K, L> / sqrt(<K, K> <L, L>),  <K, L> = sum_ij K_ij L_ij

    with K and L the centred tables of the kernel k(a, b) of all pairs of rows. `kernel="linear"` is a.b: for centred columns
    the biased form is then ||Y'X||^2 / (||X'X|| ||Y'Y||). `kernel="rbf"` is exp(-|a - b|^2 / (2 s^2)), with s `bandwidth`
    (1 where None) times the median distance of all pairs of the same cloud.

    The debiased form lies in [-1, 1] and is 0 on average for independent clouds; the biased one lies in [0, 1], and
    unrelated clouds reach about d / (n + d). 1 for equal tables. Symmetric; unchanged by rotation, shift and isotropic
    scaling of either cloud, but not by scaling of single columns: the largest decide.

    (Public code of Huh et al. adds 1e-6 to the denominator, so that its values depend on the scale of the features, and
    uses s = 1 in the units of the features. Linear values agree with these for features that are not tiny.)

    Raises `InputError` where rows are not paired, a cloud is not finite or constant, there are fewer than four examples for
    the debiased form, centring leaves nothing of a table (all pairs equally alike), the kernel is unknown, or `bandwidth`
    is not a positive number or comes with the linear kernel.
    """
    return float(_cka_terms(x, y, debiased, kernel, bandwidth).sum().clamp(-1, 1))


def _cka_terms(
    x: Cloud, y: Cloud, debiased: bool = True, kernel: str = "linear", bandwidth: float | None = None
) -> Float[Tensor, " n"]:
    """Each example's part in `cka`, sum_j K_ij L_ij / sqrt(<K, K> <L, L>); the sum of the parts is its value."""
    checked_choice(kernel, "kernel", KERNELS)
    if kernel == "linear" and bandwidth is not None:
        raise InputError(f"bandwidth={bandwidth!r}: the linear kernel has none, use kernel='rbf'")
    first, second = _unit_size(x, y, debiased)
    if kernel == "rbf":
        return _alignment(rbf(first, bandwidth, "x"), rbf(second, bandwidth, "y"), len(first), debiased)
    if first.shape[1] * second.shape[1] <= len(first) ** 2:
        return _linear_alignment(first, second, debiased)
    return _alignment(inner_products(first), inner_products(second), len(first), debiased)


def distance_correlation(x: Cloud, y: Cloud, debiased: bool = True) -> float:
    """The *squared* distance correlation dCor^2 of paired rows of `x` and `y`, both `[example, feature]`.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(300, 1))
    >>> round(distance_correlation(x, 2 - x), 6)
    1.0
    >>> abs(cka(x, x**2)) < 0.05, distance_correlation(x, x**2) > 0.1
    (True, True)

        dCor^2 = <A, B> / sqrt(<A, A> <B, B>),  <A, B> = sum_ij A_ij B_ij

    with A and B the centred tables of Euclidean distances. For distributions it is 0 only for independence, so it detects
    dependence that linear CKA does not.

    The debiased form (Szekely and Rizzo 2014) lies in [-1, 1] and is 0 on average for independent clouds. It can be
    negative, so the square is returned, without a root. The biased form (Szekely et al. 2007) lies in [0, 1]; its root is
    their dCor, and it goes to 1 for any two clouds as the number of features grows. 1 for clouds that are equal up to
    rotation, shift and isotropic scaling, under which it does not change. Symmetric.

    Raises `InputError` where rows are not paired, a cloud is not finite or constant, there are fewer than four examples for
    the debiased form, or all pairs are equally far.
    """
    return float(_distance_correlation_terms(x, y, debiased).sum().clamp(-1, 1))


def _distance_correlation_terms(x: Cloud, y: Cloud, debiased: bool = True) -> Float[Tensor, " n"]:
    """Each example's part in `distance_correlation`; the sum of the parts is its value."""
    first, second = _unit_size(x, y, debiased)
    return _alignment(distances(first), distances(second), len(first), debiased)


def _unit_size(x: Cloud, y: Cloud, debiased: bool) -> tuple[Tensor, Tensor]:
    """Both clouds centred, with a largest entry of 1, so that no square overflows."""
    first, second = centred_pair(x, y)
    if debiased and len(first) < 4:
        raise InputError(f"{len(first)} examples leave nothing when debiased: pass four or more, or debiased=False")
    return first / first.abs().amax(), second / second.abs().amax()


def _alignment(first: PairTable, second: PairTable, n: int, debiased: bool) -> Float[Tensor, " n"]:
    """Each example's part in the cosine of two tables, after centring both."""
    (first, size), (second, other_size) = centred_table(first, n, debiased), centred_table(second, n, debiased)
    parts: list[Tensor] = []
    for rows in blocks(n, n):
        one, other = first(rows), second(rows)
        parts.append(torch.stack([(one * other).sum(dim=1), one.square_().sum(dim=1), other.square_().sum(dim=1)]))
    cross, own, other_own = torch.cat(parts, dim=1)
    return _cosine(cross, own.sum(), other_own.sum(), size, other_size)


def _linear_alignment(x: Float[Tensor, "n d"], y: Float[Tensor, "n e"], debiased: bool) -> Float[Tensor, " n"]:
    """`_alignment` of inner products without their tables: sum_j (x_i.x_j)(y_i.y_j) = x_i (X'Y) y_i.

    The product includes the diagonal, which is then subtracted. Where a few enormous rows make up nearly all of it, as in
    language models, the subtraction loses the digits of the rest, and tables are computed after all.
    """
    one, other = _factors(x, debiased), _factors(y, debiased)
    own, other_own = _size(x, one[2]), _size(y, other[2])
    size, other_size = (cloud.square().sum(dim=1).square().sum() for cloud in (x, y))
    if own < _CANCELLED * size or other_own < _CANCELLED * other_size:
        return _alignment(inner_products(x), inner_products(y), len(x), debiased)
    return _cosine(_row_products(one, other), own, other_own, size, other_size)


def _factors(x: Float[Tensor, "n d"], debiased: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Left and right rows whose inner products are the centred table, and the excess of these on its diagonal.

    Row i of a centred cloud's table sums to -|x_i|^2 without its diagonal. Two more columns add the offsets a of U-centring:
    x_i.x_j + a_i + a_j = (x_i, a_i, 1).(x_j, 1, a_j).
    """
    n = len(x)
    if not debiased:
        return x, x, x.new_zeros(n)
    lengths = x.square().sum(dim=1)
    offsets = lengths / (n - 2) - lengths.sum() / (2 * (n - 1) * (n - 2))
    column, ones = offsets[:, None], x.new_ones(n, 1)
    return torch.cat([x, column, ones], dim=1), torch.cat([x, ones, column], dim=1), lengths + 2 * offsets


def _size(x: Float[Tensor, "n d"], diagonal: Float[Tensor, " n"]) -> Tensor:
    """sum_ij K_ij^2 of a cloud's centred table, from one product, as the rows of x sum to 0.

    Debiased, K_ij = x_i.x_j + a_i + a_j; only on the diagonal, where that is |x_i|^2 + 2 a_i, the table has 0.
    """
    n = len(x)
    offsets = (diagonal - x.square().sum(dim=1)) / 2 if diagonal.any() else diagonal
    spread = 2 * n * offsets.square().sum() + 2 * offsets.sum().square()
    return (x.T @ x).square().sum() + spread - diagonal.square().sum()


def _row_products(one: tuple[Tensor, Tensor, Tensor], other: tuple[Tensor, Tensor, Tensor]) -> Float[Tensor, " n"]:
    """sum_j K_ij L_ij from the factors of both tables, a block of columns of the second at a time."""
    (left, right, diagonal), (other_left, other_right, other_diagonal) = one, other
    sums = -diagonal * other_diagonal
    for columns in blocks(other_left.shape[1], max(left.shape)):
        sums += ((left @ (right.T @ other_right[:, columns])) * other_left[:, columns]).sum(dim=1)
    return sums


def _cosine(cross: Tensor, own: Tensor, other_own: Tensor, size: Tensor, other_size: Tensor) -> Float[Tensor, " n"]:
    check_left(own, size, len(cross), "x")
    check_left(other_own, other_size, len(cross), "y")
    return cross / (own.sqrt() * other_own.sqrt())


# Ranks of distances ---------------------------------------------------------------------------------------------------


def rsa(x: Cloud, y: Cloud) -> float:
    """Representational similarity: the Spearman correlation of the distances of all pairs of rows of `x` with those of `y`.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> round(rsa(x, 5 - 2 * x), 6)
    1.0

    Both are `[example, feature]`, with paired rows. Distances are Euclidean, of the rows as they are; equal distances have
    the mean of their ranks. In [-1, 1], about 0 for unrelated clouds, 1 where distances are in the same order. Symmetric;
    unchanged by rotation, shift and isotropic scaling of either cloud. The n (n - 1) / 2 pairs are not independent, so the
    p-value of Spearman's correlation does not hold for them.

    Others use 1 - Pearson's correlation of rows as the distance, or Pearson's correlation for the comparison (Kriegeskorte
    et al. 2008 leave both open). Distances are compared in float32; those that differ by less than 1 in 10^7 are equal.
    Slow for many examples: seconds at 5,000, minutes at 20,000, on one thread.

    Raises `InputError` where rows are not paired, a cloud is not finite or constant, or all pairs are equally far.
    """
    clouds = [cloud / cloud.abs().amax() for cloud in centred_pair(x, y)]
    lengths = [cloud.square().sum(dim=1) for cloud in clouds]
    ordered = [sorted_squares(cloud) for cloud in clouds]
    for values, name in zip(ordered, ("x", "y"), strict=True):
        if values[0] == values[-1]:
            raise InputError(
                f"all {len(values)} pairs of rows of {name} are equally far: their distances have no order"
            )
    n, middle = len(clouds[0]), (len(ordered[0]) + 1) / 2
    cross, own, other = 0.0, 0.0, 0.0
    for rows in blocks(n, 8 * n):
        one, two = (
            mean_ranks(values, each_pair(cloud, rows, squares)) - middle
            for values, cloud, squares in zip(ordered, clouds, lengths, strict=True)
        )
        cross, own, other = cross + float(one @ two), own + float(one @ one), other + float(two @ two)
    return max(-1.0, min(1.0, cross / (own * other) ** 0.5))


# Near pairs alone -----------------------------------------------------------------------------------------------------


def cknna(x: Cloud, y: Cloud, k: int = 10) -> float:
    """The centred kernel nearest-neighbour alignment (Huh et al. 2024) of paired rows of `x` and `y`.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 5))
    >>> round(cknna(x, x * np.arange(1, 101)[:, None]), 6)
    1.0

        CKNNA = A(K, L) / sqrt(A(K, K) A(L, L)),  A(K, L) = HSIC_1(M * K, M * L)

    with K and L the inner products of rows at unit length, and M_ij = 1 where j is one of the k nearest of i, without i
    itself, in both clouds. It is CKA for pairs that are close in both; for k near n it goes to CKA of unit rows.

    1 for equal tables, about 0.8 k / n for unrelated clouds. Unchanged by rotation and by the lengths of rows, but not
    by shift: rows are *not* centred, as in the paper's code. Where j is near i, i need not be near j, so M * K is not
    symmetric; HSIC_1 is applied as in that code, sum K_ij L_ji + .. - 2 (columns of K).(rows of L) .., and exchanging x and
    y changes the value in its last digits. That code adds 1e-6 to the denominator, this one does not. Among equally near
    points the choice of the nearest is arbitrary.

    Raises `InputError` where rows are not paired, a cloud is not finite or has a row of zeros or rows of one direction
    only, n < 4, k is not in 1 .. n - 1, and where A(K, K) is not positive, for k too near n.
    """
    first, second = as_pair(x, y)
    n = len(first)
    check_k(k, n)
    if n < 4:
        raise InputError(f"{n} examples are too few for cknna: pass four or more")
    one, two = _near(doubles(first), int(k), "x"), _near(doubles(second), int(k), "y")
    cross, own, other = _masked(one, two, n), _masked(one, one, n), _masked(two, two, n)
    for value, name in ((own, "x"), (other, "y")):
        if value <= 0:
            raise InputError(
                f"{name} has an alignment of {value:.3g} with itself at k={k!r} of n={n}: pass a smaller k"
            )
    return cross / (own * other) ** 0.5


def _near(cloud: Float[Tensor, "n d"], k: int, name: str) -> tuple[Int[Tensor, " nk"], Float[Tensor, " nk"]]:
    """The pairs of each row and its k nearest by inner product of unit rows: n i + j of each, in order, and its product."""
    unit = unit_rows(cloud, name)
    if (unit - unit[0]).abs().amax() < 1e-13:
        raise InputError(f"the {len(cloud)} rows of {name} have the same direction: expected examples that differ")
    n, table = len(unit), inner_products(unit)
    places, values = [], []
    for rows in blocks(n, n):
        block = table(rows)
        block.diagonal(offset=rows.start).fill_(-torch.inf)
        nearest = block.topk(k, dim=1)
        places.append(torch.arange(rows.start, rows.stop, device=unit.device)[:, None] * n + nearest.indices)
        values.append(nearest.values)
    place, order = torch.cat(places).flatten().sort()
    return place, torch.cat(values).flatten()[order]


def _masked(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], n: int) -> float:
    """n (n - 3) times the HSIC_1 of two sparse tables, over the entries that both have."""
    (place, values), (other_place, other_values) = one, other
    both = torch.isin(place, other_place)
    place, first = place[both], values[both]
    second = other_values[torch.searchsorted(other_place, place)]
    row, column = place // n, place % n
    mirrored = column * n + row
    mutual = torch.isin(mirrored, place)
    reciprocal = first[mutual] @ second[torch.searchsorted(place, mirrored[mutual])]
    columns = first.new_zeros(n).index_add_(0, column, first)
    rows = second.new_zeros(n).index_add_(0, row, second)
    return float(reciprocal + first.sum() * second.sum() / ((n - 1) * (n - 2)) - 2 * (columns @ rows) / (n - 2))
