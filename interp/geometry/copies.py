"""Copies: rows that are equal, or equal but for rounding, and the one rule that every measure goes by.

A picture that was captured in two batches gives two rows that differ in their last digits. To a measure of neighbours they are
a pair a million times nearer than all others: one such pair for each point turns a dimension of 10 into 0.05. So rows that are
equal but for rounding are treated as equal rows are. **Two rows are copies where all of this holds:**

1. *Rounding explains their distance.* It is at most so many units in the last place of the longer of them: 32 in float32 and
   float64, where rounding adds up over long sums, and 4 in float16 and bfloat16, which are rounded after such sums. The
   precision is the coarsest that holds all values of the cloud: what was captured in bfloat16 keeps its precision in float32.
   (Toy, one token in two batches: up to 5 units in float32, 2 in the others.)
2. *The cloud is much wider.* Their distance is at most 1/32 of that of any two rows (the root of its mean square). In a cloud
   far from the origin rounding may be as large as the cloud, and then only equal rows are copies. All rows are copies of one,
   if the cloud as a whole is no wider than 4 (1/2) units, and so are most of its features.
3. *They stand apart.* Pairs as near as that are no fewer than pairs up to four times as far. A line has pairs at any distance,
   however small, and more the farther they are: those are not copies.

Clouds of whole numbers are exact: there only equal rows are copies. Of copies the first row stands for all. `distinct_rows`
gives the rows that remain without copies, in all clouds jointly, so that rows stay paired.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.geometry.clouds import as_layers, for_distances

# The largest distance of copies as a part of their length, for each precision: units in the last place times how many.
COPIES = {
    torch.bfloat16: 4 * 2.0**-7,
    torch.float16: 4 * 2.0**-10,
    torch.float32: 32 * 2.0**-23,
    torch.float64: 32 * 2.0**-52,
}
_ALL_WHOLE = 2.0**23  # from here on float32 has whole numbers alone
_ALL_COPIES = 1 / 8  # of that, the width of a cloud of copies of one row
_NARROW = 1 / 32
_APART = 4.0
_FEW = 32
_AT_ONCE = 2**23  # numbers in one block of rows
_PAIRS = 2**20  # pairs in one block
_DIRECTIONS = 16
_FIRST = 4  # directions that are looked at first
_WITHIN = 5.0  # standard deviations
_ESTIMATE = 2.2  # an estimated distance is larger than the true one by more than this once in 10^8 cases


def copy_tolerance(cloud: Float[Tensor, "n d"]) -> float:
    """The largest distance of two copies as a part of their length, by the precision of the cloud; 0 for whole numbers.

    >>> copy_tolerance(torch.tensor([[0.5, 1.25]])) == COPIES[torch.bfloat16], copy_tolerance(torch.tensor([[1.0, 2.0]]).double())
    (True, 0.0)
    """
    if cloud.dtype == torch.float64 and _all(cloud, torch.round) and float(cloud.abs().amax()) < _ALL_WHOLE:
        return 0.0
    for kind in COPIES:
        if kind == cloud.dtype or _all(cloud, lambda values, kind=kind: values.to(kind).to(values.dtype)):
            return COPIES[kind]
    return COPIES[torch.float64]


def _all(cloud: Tensor, change: Any) -> bool:
    """Whether no value changes; for most clouds the first row is enough to say no."""
    return torch.equal(change(cloud[:1]), cloud[:1]) and torch.equal(change(cloud), cloud)


def duplicates(cloud: Float[Tensor, "n d"], part: float | None = None) -> Int[Tensor, " m"]:
    """The rows that are copies of an earlier row, in order; for `part` see `first_equal`.

    >>> duplicates(torch.tensor([[0.0, 1.0], [2.0, 3.0], [0.0, 1.0]])).tolist()
    [2]
    """
    first = first_equal(cloud, part)
    return (first != torch.arange(len(cloud), device=cloud.device)).nonzero().flatten()


def first_equal(cloud: Float[Tensor, "n d"], part: float | None = None) -> Int[Tensor, " n"]:
    """For each row the number of the first row that it is a copy of, its own where it is none.

    `part` is the `copy_tolerance`: that of the cloud, or of the one that this cloud was computed from. No row stands for
    others and is a copy itself.

    >>> first_equal(torch.tensor([[0.1, 1.1], [2.2, 3.3], [0.1000001, 1.1]])).tolist()
    [0, 1, 0]
    """
    part = copy_tolerance(cloud) if part is None else part
    first = _first_exactly(cloud)
    if not part:
        return first
    rows, place = torch.unique(first, return_inverse=True)
    distinct = cloud if len(rows) == len(cloud) else cloud[rows]
    near = _first_nearly(distinct, part)
    return first if near is None else rows[near[place]]


def is_one_point(cloud: Float[Tensor, "n d"]) -> bool:
    """Whether all rows are copies of one."""
    part = copy_tolerance(cloud)
    return _one_point(cloud, part, *_sizes(cloud)[:2]) if part else bool((cloud == cloud[0]).all())


def distinct_rows(*clouds: Any, metric: str = "euclidean") -> Int[Tensor, " row"]:
    """The examples to keep so that no two rows are copies in any of `clouds`, which have paired rows.

    Each cloud is `[example, feature]`, `[state, example, feature]` or activations, all sites of them; of copies the first
    stays. Rows that are equal but for rounding are copies too (`interp.geometry.copies` has the rule), and with
    `metric="cosine"` so are rows of one direction. Index all clouds with the result: if you drop rows from one alone, the
    pairing is lost.

    Raises `InputError` where the numbers of examples differ, and the errors of `as_cloud` and `as_states`.

    >>> x = torch.tensor([[0.0], [1.0], [0.0], [2.0]])
    >>> y = torch.tensor([[5.0], [6.0], [7.0], [6.0]])
    >>> distinct_rows(x, y).tolist()
    [0, 1]
    """
    layers = [layer for number, cloud in enumerate(clouds) for layer in as_layers(cloud, f"cloud {number}")]
    if not layers:
        raise InputError("distinct_rows() has no cloud: pass at least one")
    sizes = sorted({len(layer) for layer in layers})
    if len(sizes) > 1:
        raise InputError(f"the clouds have {sizes} examples: expected paired clouds, of the same examples")
    keep = torch.ones(sizes[0], dtype=torch.bool)
    for layer in layers:
        keep[duplicates(for_distances(layer, metric), copy_tolerance(layer)).cpu()] = False
    return keep.nonzero().flatten()


def _first_exactly(cloud: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
    """`first_equal` for rows that are equal to the last bit.

    Rows are compared by a sum of their bits, each times a random odd number, modulo 2^64: exact in any order of addition,
    and equal for unequal rows once in 2^63. Rows with equal sums are then compared themselves.
    """
    n, d = cloud.shape
    order = torch.arange(n, device=cloud.device)
    if d > _FEW and bool((_first_exactly(cloud[:, :_FEW]) == order).all()):
        return order  # a few features are enough: all rows differ
    bits = torch.int32 if cloud.dtype == torch.float32 else torch.int64
    draw = torch.Generator().manual_seed(0)
    odd = (2 * torch.randint(2**62, (d,), generator=draw, device="cpu") + 1).to(cloud.device)
    step = max(1, _AT_ONCE // d)
    sums = torch.cat([((part + 0.0).view(bits).long() * odd).sum(dim=1) for part in cloud.split(step)])  # -0.0 is 0.0
    _, inverse = torch.unique(sums, return_inverse=True)
    first = torch.full((n,), n, device=cloud.device).scatter_reduce(0, inverse, order, "amin")[inverse]
    repeated = (first != order).nonzero().flatten()
    if len(repeated):
        unlike = torch.cat([(cloud[rows] != cloud[first[rows]]).any(dim=1) for rows in repeated.split(step)])
        first[repeated[unlike]] = repeated[unlike]
    return first


def _first_nearly(cloud: Float[Tensor, "n d"], part: float) -> Int[Tensor, " n"] | None:
    """`first_equal` for rows none of which are equal to the last bit; None where there are no copies."""
    n = len(cloud)
    if n < 2:
        return None
    lengths, width, shadows = _sizes(cloud)
    if _one_point(cloud, part, lengths, width):
        return torch.zeros(n, dtype=torch.int64, device=cloud.device)
    limits = (part * lengths).clamp(max=_NARROW * width)
    one, other, farther = [], [], 0
    for a, b, estimate in _candidates(shadows, limits):
        limit = torch.maximum(limits[a], limits[b])
        near = estimate <= _ESTIMATE * limit
        a, b, limit, farther = a[near], b[near], limit[near], farther + int((~near).sum())
        within = _distances_of(cloud, a, b) <= limit
        one.append(a[within])
        other.append(b[within])
        farther += int((~within).sum())
    pairs = sorted(zip(*(torch.cat(each).tolist() for each in (one, other)), strict=True)) if one else []
    if not pairs or len(pairs) < farther:
        return None
    first = list(range(n))
    for a, b in pairs:  # a < b, in order of a: whether a is a copy is known before its pairs come
        if first[a] == a and first[b] == b:
            first[b] = a
    return torch.tensor(first, device=cloud.device)


def _sizes(cloud: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " n"], float, Float[Tensor, "n direction"]]:
    """The length of each row, the root of the mean square of the distances of all pairs, and the rows about their centre along
    some Gaussian directions, all in float64."""
    n, d = cloud.shape
    unit = float(cloud.abs().amax()) or 1.0  # squares neither overflow nor vanish
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(d, _DIRECTIONS, generator=draw, dtype=torch.float64, device="cpu").to(cloud.device)
    centre = cloud.mean(dim=0, dtype=torch.float64)
    lengths, squares, shadows = [], cloud.new_zeros((), dtype=torch.float64), []
    for rows in cloud.split(max(1, _AT_ONCE // d)):
        wide = rows.double()
        rest = (wide - centre) / unit
        lengths.append(torch.linalg.vector_norm(wide / unit, dim=1))
        squares += rest.square().sum()
        shadows.append(rest @ directions)
    return unit * torch.cat(lengths), unit * float((2 * squares / (n - 1)).sqrt()), unit * torch.cat(shadows)


def _one_point(cloud: Float[Tensor, "n d"], part: float, lengths: Float[Tensor, " n"], width: float) -> bool:
    """Whether a cloud is no wider than rounding, as a whole and in most of its features: one may be far larger than others."""
    part *= _ALL_COPIES
    if width > part * float(lengths.mean()):
        return False
    spread = cloud.double().std(dim=0)
    varies = spread > 0
    return not varies.any() or bool((spread / cloud.abs().amax(dim=0))[varies].median() <= part)


def _candidates(
    shadows: Float[Tensor, "n direction"], limits: Float[Tensor, " n"]
) -> Iterator[tuple[Int[Tensor, " p"], Int[Tensor, " p"], Float[Tensor, " p"]]]:
    """Pairs of rows a < b that may be nearer than four limits, with an estimate of their distance.

    The difference of two rows along a Gaussian direction is a Gaussian of the size of their distance. So near rows are near
    each other in the order along one direction, and the mean square along several estimates the square of the distance.
    """
    n, reach = len(shadows), _WITHIN * _APART * limits
    order = shadows[:, 0].argsort()
    shadows, reach = shadows[order], reach[order]
    line = shadows[:, 0].contiguous()
    places = torch.arange(n, device=line.device)
    counts = torch.searchsorted(line, line + reach, right=True) - places - 1
    ends = counts.cumsum(0)
    start = 0
    while start < n:
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(torch.searchsorted(ends, before + _PAIRS, right=True)))
        here = counts[start:stop]
        a = places[start:stop].repeat_interleave(here)
        b = a + 1 + torch.arange(len(a), device=a.device) - (here.cumsum(0) - here).repeat_interleave(here)
        for direction in range(1, _FIRST):
            near = (shadows[a, direction] - shadows[b, direction]).abs() <= reach[a]
            a, b = a[near], b[near]
        estimate = (shadows[a] - shadows[b]).square().mean(dim=1).sqrt()
        near = estimate * _WITHIN <= reach[a]
        a, b = order[a[near]], order[b[near]]
        yield torch.minimum(a, b), torch.maximum(a, b), estimate[near]
        start = stop


def _distances_of(cloud: Float[Tensor, "n d"], a: Int[Tensor, " p"], b: Int[Tensor, " p"]) -> Float[Tensor, " p"]:
    """The distances of pairs of rows, from their differences."""
    unit = float(cloud.abs().amax()) or 1.0
    step = max(1, _AT_ONCE // cloud.shape[1])
    parts = zip(a.split(step), b.split(step), strict=True)
    return torch.cat([((cloud[i].double() - cloud[j]) / unit).norm(dim=1) for i, j in parts]) * unit
