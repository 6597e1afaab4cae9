"""The graph of nearest neighbours, from which intrinsic dimension, overlaps and densities are all computed.

In thousands of dimensions coordinates say little. The order of a point's neighbours still says much, and it survives
rotation, shift and scaling. So most measures here look at a cloud only through the neighbours of each point, in order. Compute
the graph once (`nearest_neighbors`); every measure that needs no more takes it in place of the cloud.

The graph is exact, and costs little more than the product of the cloud with itself. Four decisions matter:

- *A point is not its own neighbour.* It is excluded by its index, not by its first place in the list: where two points are
  equal, another point may be first.
- *Distances do not cancel.* They are |a|^2 + |b|^2 - 2ab about the centre, which is one matrix product, and are computed
  again from the differences a - b wherever the sum has lost digits.
- *Equal rows are equally far.* Products use distinct rows only, so copies of a point have the same distance to the last bit.
  Rows that are equal but for rounding are copies too (`interp.geometry.copies`).
- *Ties are fair.* Where several points are equally far and not all can be among the k nearest, each is a neighbour in part
  (`shares`), as often as a random choice would take it. A cloud of equal points then carries no information, instead of
  agreeing with any other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.arguments import checked_choice
from interp.displays import Display
from interp.errors import InputError
from interp.geometry.clouds import METRICS, Cloud, as_cloud, check_k, for_distances
from interp.geometry.copies import copy_tolerance, duplicates, first_equal

_BLOCK = 2**22  # numbers in one block of distances: 16 or 32 MiB
# Below this part of |a|^2 + |b|^2 a squared distance is computed again, from the difference; above, half its digits are right.
_CANCELLED = {torch.float32: 2e-3, torch.float64: 1e-4}
_DEEP = 256  # with fewer features a product costs no more than the copy of its half
_WHOLE = 2**29  # the most bytes of a table of all pairs in memory
_MANY = 0.02  # where more than this share of a block has lost digits, all of it is computed from differences
# Squared distances that differ by less than this part are tied, so that rounding does not break the ties of a lattice.
# float32 has too few digits for that: there only copies of one point are tied.
TIED = {torch.float32: 0.0, torch.float64: 2.0**-36}


@dataclass(frozen=True, eq=False)
class Neighbors(Display):
    """Each point's k nearest others, nearest first: their `indices` and `distances`, both `[example, k]`.

    `next_distance` `[example]` is the distance of the neighbour after the last (infinity where no other is left), which says
    whether the last place is tied. `extent` is the root of the mean square of all distances, `metric` their kind, and
    `cloud` the points themselves.
    """

    indices: Int[Tensor, "n k"]
    distances: Float[Tensor, "n k"]
    next_distance: Float[Tensor, " n"]
    extent: float
    metric: str
    cloud: Float[Tensor, "n d"]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def k(self) -> int:
        """The number of neighbours of each point."""
        return self.indices.shape[1]

    @cached_property
    def points(self) -> Points:
        """The cloud ready for distances, for what the lists do not contain."""
        return ready(self.cloud, self.metric)

    @cached_property
    def level_anywhere(self) -> bool:
        """Whether two neighbours in a row are equally far from any point."""
        return bool(level(self.distances[:, :-1], self.distances[:, 1:]).any()) or bool(self.tied(self.k).any())

    def permuted(self, order: Int[Tensor, " n"]) -> Neighbors:
        """The graph of the same points in another order: point i is the old point `order[i]`."""
        order = order.to(self.indices.device)
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        indices = place[self.indices[order]]
        return Neighbors(
            indices, self.distances[order], self.next_distance[order], self.extent, self.metric, self.cloud[order]
        )

    def tied(self, k: int) -> Bool[Tensor, " n"]:
        """Where the neighbour after the k-th is as far as the k-th, so that the k-th place is a matter of chance."""
        after = self.distances[:, k] if k < self.k else self.next_distance
        return level(self.distances[:, k - 1], after)


# Wider at run time than for type checkers, as `Cloud` is.
if TYPE_CHECKING:
    Graph = Cloud | Neighbors
else:
    Graph = Any


def nearest_neighbors(x: Cloud, k: int, metric: str = "euclidean") -> Neighbors:
    """The `k` nearest neighbours of each row of `x` `[example, feature]`, without the row itself.

    >>> graph = nearest_neighbors(torch.tensor([[0.0], [1.0], [3.0]]), k=2)
    >>> graph.indices.tolist(), graph.distances.tolist()
    ([[1, 2], [0, 2], [1, 0]], [[1.0, 3.0], [1.0, 2.0], [2.0, 3.0]])

    `metric` is "euclidean", or "cosine": the Euclidean distance of the rows on the unit sphere, sqrt(2 - 2 cos), which
    orders neighbours as the cosine does. Among equally far points the order is arbitrary. Computed in blocks of rows,
    on the device of `x`, in float32 for clouds of float32 or less: distances are then right to 1e-4, and neighbours whose
    distances differ by less may change places. The graph has tensors, also for an array.

    Raises `InputError` where k >= n, the metric is unknown, or `x` is not a finite cloud (or has a zero row, for cosine).
    """
    return _graph(as_cloud(x), k, metric, "x")


def _graph(cloud: Float[Tensor, "n d"], k: int, metric: str, name: str) -> Neighbors:
    check_k(k, len(cloud))
    points = ready(cloud, metric, name)
    n = points.n
    width = min(k + 1, n - 1)
    indices = torch.empty(n, width, dtype=torch.int64, device=cloud.device)
    distances = torch.empty(n, width, dtype=torch.float64, device=cloud.device)
    for rows, products in points.products(blocks(n, n)):
        indices[rows], distances[rows] = points.nearest(rows, products, width)
    after = distances[:, k] if width > k else distances.new_full((n,), torch.inf)
    return Neighbors(indices[:, :k], distances[:, :k], after, points.extent, metric, cloud)


def graph_of(x: Graph, k: int, metric: str = "euclidean", name: str = "x", columns: int | None = None) -> Neighbors:
    """`x` itself where it is a graph of at least `k` neighbours by `metric`, else the graph of the cloud `x`, with `columns`
    neighbours where it has so many.

    Raises `InputError` for a graph of fewer neighbours or another metric, and the errors of `nearest_neighbors`.
    """
    if not isinstance(x, Neighbors):
        cloud = as_cloud(x, name)
        check_k(k, len(cloud))
        return _graph(cloud, max(k, min(columns or k, len(cloud) - 1)), metric, name)
    check_k(k, len(x))
    _check_metric(x, metric, name)
    if x.k < k:
        raise InputError(f"{name} is a graph of {x.k} neighbours, fewer than {k}: make it with k={k} or more")
    return x


def pair_of(x: Graph, y: Graph, k: int, metric: str, columns: int | None = None) -> tuple[Neighbors, Neighbors]:
    """Two graphs of paired points; raises the errors of `graph_of`, and where the numbers of points differ."""
    first, second = _paired(x, y)
    return graph_of(first, k, metric, "x", columns), graph_of(second, k, metric, "y", columns)


def points_of(x: Graph, metric: str = "euclidean", name: str = "x") -> Points:
    """A cloud, or that of a graph, ready for distances; raises the errors of `graph_of`."""
    if not isinstance(x, Neighbors):
        return ready(as_cloud(x, name), metric, name)
    _check_metric(x, metric, name)
    return x.points


def paired_points(x: Graph, y: Graph, metric: str) -> tuple[Points, Points]:
    """Two paired clouds, or those of two graphs, ready for distances; raises the errors of `pair_of`."""
    first, second = _paired(x, y)
    return points_of(first, metric, "x"), points_of(second, metric, "y")


def size_of(x: Graph) -> int:
    """The number of points of a cloud or a graph; raises the errors of `as_cloud`."""
    return len(x) if isinstance(x, Neighbors) else len(as_cloud(x))


def _paired(x: Graph, y: Graph) -> tuple[Tensor | Neighbors, Tensor | Neighbors]:
    first, second = (
        part if isinstance(part, Neighbors) else as_cloud(part, name) for part, name in ((x, "x"), (y, "y"))
    )
    if len(first) != len(second):
        raise InputError(f"x has {len(first)} examples and y {len(second)}: rows must be paired")
    device = (first.cloud if isinstance(first, Neighbors) else first).device
    return first, second if isinstance(second, Neighbors) else second.to(device)


def _check_metric(x: Neighbors, metric: str, name: str) -> None:
    if x.metric != checked_choice(metric, "metric", METRICS):
        raise InputError(f"{name} is a graph by {x.metric!r} and metric={metric!r}: expected the same metric twice")


def refuse_copies(graph: Neighbors, lacks: str) -> None:
    """Refuse points at distance 0 from another, which have no `lacks`, and name the rows to drop."""
    equal = int((graph.distances[:, 0] == 0).sum())
    if equal:
        placed = for_distances(graph.cloud, graph.metric)
        rows = duplicates(placed, copy_tolerance(graph.cloud)).tolist()
        repeated = ", ".join(map(str, rows[:3])) + (", ..." if len(rows) > 3 else "")
        alike, what = "equal", "keep distinct_rows(x)"
        if graph.metric == "cosine":
            alike, what = "point the same way as", "take rows of unit length and keep distinct_rows(x, metric='cosine')"
        nearly = "" if len(rows) == len(duplicates(placed, 0.0)) else ", some but for rounding"
        raise InputError(
            f"{equal} of {len(graph)} examples {alike} another (rows {repeated} repeat earlier ones{nearly}) and have no {lacks}:"
            f" {what}, of all paired clouds jointly"
        )


def blocks(n: int, width: int) -> list[slice]:
    """Slices of `n` rows, so that a block of rows by `width` fits in memory."""
    step = max(1, _BLOCK // max(1, width))
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def ready(cloud: Float[Tensor, "n d"], metric: str = "euclidean", name: str = "x") -> Points:
    """The distinct rows of a cloud about their centre, in units in which squares neither overflow nor vanish."""
    placed = for_distances(cloud, metric, name)
    first = first_equal(placed, copy_tolerance(cloud))
    rows, copies = torch.unique(first, return_inverse=True)
    distinct = placed if len(rows) == len(placed) else placed[rows]
    values = torch.sub(distinct, distinct.mean(dim=0), out=empty_table(distinct, *distinct.shape))
    most = max(abs(float(end)) for end in torch.aminmax(values))
    unit = 2.0 ** math.floor(math.log2(most)) if most > 0 else 1.0
    lengths = torch.linalg.vector_norm(values.div_(unit), dim=1).square()
    return Points(values, lengths, distinct, unit, None if len(rows) == len(placed) else copies)


@dataclass(frozen=True, eq=False)
class Points(Display):
    """A cloud ready for distances: its distinct rows, and the number of each example's row among them.

    `values` are the rows about their centre in units of `unit`, `lengths` their squared lengths, and `rows` the rows
    themselves, whose differences lose no digits.
    """

    values: Float[Tensor, "m d"]
    lengths: Float[Tensor, " m"]
    rows: Float[Tensor, "m d"]
    unit: float
    copies: Int[Tensor, " n"] | None

    @property
    def n(self) -> int:
        """The number of examples, with copies."""
        return len(self.values) if self.copies is None else len(self.copies)

    @property
    def extent(self) -> float:
        """The root of the mean square of the distances of all pairs of examples, in the units of the cloud."""
        spread = self.lengths.sum(dtype=torch.float64)
        if self.copies is not None:  # distinct rows have another centre than all examples
            spread = self.lengths[self.copies].sum(dtype=torch.float64)
            spread = spread - self.n * self.values[self.copies].mean(dim=0, dtype=torch.float64).square().sum()
        return self.unit * math.sqrt(2 * max(float(spread), 0.0) / (self.n - 1))

    def number(self, examples: Int[Tensor, "*s"]) -> Int[Tensor, "*s"]:
        """The number of each example's row among the distinct ones."""
        return examples if self.copies is None else self.copies[examples]

    def products(self, parts: Sequence[slice]) -> Iterator[tuple[slice, Float[Tensor, "r m"]]]:
        """Each of `parts`, slices that cover all examples in order, with |b|^2 - 2ab of its rows a and all distinct b.

        The table is symmetric: where all of it fits in memory, one half is computed and the other copied. The caller may
        change a block until it reads the next one.
        """
        m, d = self.values.shape
        if self.copies is not None or d < _DEEP or m * m * self.values.element_size() > _WHOLE:
            block = empty_table(self.values, max(part.stop - part.start for part in parts), m)
            for rows in parts:
                yield rows, self._products(rows, out=block[: rows.stop - rows.start])
            return
        table = empty_table(self.values, m, m)
        for rows in parts:
            right = table[rows, rows.start :]
            torch.addmm(right, self.values[rows], self.values[rows.start :].T, beta=0, alpha=-2, out=right)
            table[rows.stop :, rows] = right[:, rows.stop - rows.start :].T
            yield rows, table[rows].add_(self.lengths)

    def _products(self, rows: slice | Int[Tensor, " r"], out: Tensor | None = None) -> Float[Tensor, "r m"]:
        own = self.number(torch.arange(self.n, device=self.values.device)[rows])
        return torch.addmm(self.lengths, self.values[own], self.values.T, alpha=-2, out=out)

    def nearest(
        self, rows: slice, products: Float[Tensor, "r m"], k: int
    ) -> tuple[Int[Tensor, "r k"], Float[Tensor, "r k"]]:
        """The k nearest others of each of `rows`, in order, and their distances in the units of the cloud."""
        here = torch.arange(self.n, device=self.values.device)[rows]
        own = self.number(here)
        # |a|^2 is the same along a row: it does not change the order.
        squared = products if self.copies is None else products[:, self.copies]
        squared[torch.arange(len(here), device=here.device), here] = torch.inf
        first = squared.topk(k, largest=False)
        indices, nearest = first.indices, first.values.double()
        scale = self.lengths[own, None].double() + self.lengths[self.number(indices)]
        nearest = (nearest + self.lengths[own, None]).clamp_(min=0)
        lost = nearest <= _CANCELLED[self.values.dtype] * scale
        whole = lost[:, -1]  # the border itself has lost digits: the neighbours within are unknown
        if whole.any():
            again = self.squared(here[whole]).topk(k, largest=False)
            indices[whole], nearest[whole], lost[whole] = again.indices, again.values.double(), False
        if lost.any():
            at = lost.nonzero()
            nearest[lost] = self.apart(here[at[:, 0]], indices[lost])
            nearest, order = nearest.sort(dim=1)
            indices = indices.gather(1, order)
        return indices, nearest.sqrt_().mul_(self.unit)

    def squared(self, rows: slice | Int[Tensor, " r"]) -> Float[Tensor, "r n"]:
        """Squared distances of `rows` to all examples, in units of `unit`; infinity from an example to itself."""
        return self.squared_from(rows, self._products(rows))

    def squared_from(self, rows: slice | Int[Tensor, " r"], products: Float[Tensor, "r m"]) -> Float[Tensor, "r n"]:
        """`squared`, from the products of these rows, which it changes."""
        here = torch.arange(self.n, device=self.values.device)[rows]
        own = self.number(here)
        number = torch.arange(len(here), device=here.device)
        squared = products.add_(self.lengths[own, None])
        squared[number, own] = torch.inf
        share = _CANCELLED[self.values.dtype]
        if (
            squared.amin(dim=1) <= share * (self.lengths[own] + self.lengths.max())
        ).any():  # else all have their digits
            lost = squared <= share * (self.lengths[own, None] + self.lengths)
            at = lost.nonzero()
            if len(at) > _MANY * lost.numel():
                squared = self._all_exactly(own).to(squared.dtype)
            elif len(at):
                parts = [self._differences(own[pairs[:, 0]], pairs[:, 1]) for pairs in at.split(self._pairs)]
                squared[at[:, 0], at[:, 1]] = torch.cat(parts).to(squared.dtype)
        squared[number, own] = 0
        if self.copies is not None:
            squared = squared[:, self.copies]
        squared[torch.arange(len(here), device=here.device), here] = torch.inf
        return squared

    @property
    def _pairs(self) -> int:
        """The number of pairs of rows in one block."""
        return max(1, _BLOCK // self.values.shape[1])

    def apart(self, first: Int[Tensor, " p"], second: Int[Tensor, " p"]) -> Float[Tensor, " p"]:
        """The squared distances of pairs of examples, in units of `unit`, from differences."""
        one, other = self.number(first), self.number(second)
        parts = zip(one.split(self._pairs), other.split(self._pairs), strict=True)
        return torch.cat([self._differences(a, b) for a, b in parts])

    def _differences(self, one: Int[Tensor, " p"], other: Int[Tensor, " p"]) -> Float[Tensor, " p"]:
        return ((self.rows[one].double() - self.rows[other]) / self.unit).square().sum(dim=1)

    def _all_exactly(self, own: Int[Tensor, " r"]) -> Float[Tensor, "r m"]:
        some = self.rows[own].double() / self.unit
        direct = "donot_use_mm_for_euclid_dist"
        parts = [
            torch.cdist(some, part.double() / self.unit, compute_mode=direct) for part in self.rows.split(self._pairs)
        ]
        return torch.cat(parts, dim=1).square_()


def empty_table(values: Tensor, rows: int, columns: int) -> Float[Tensor, "r c"]:
    """An empty table of the type of `values` and on their device.

    On a CPU numpy allocates it, with large pages: to touch a new table of torch's takes a third as long as the product
    that fills it.
    """
    if values.device.type != "cpu":
        return values.new_empty(rows, columns)
    return torch.from_numpy(np.empty((rows, columns), dtype=values.numpy().dtype))


def shares(squared: Float[Tensor, "*b r n"], k: int) -> Float[Tensor, "*b r n"]:
    """Each point's part among the k nearest: 1, 0, or between where the k-th place is tied; rows sum to k.

    Of t points tied for the last m places each has m/t, the probability that a random order gives it one of them.

    >>> shares(torch.tensor([[torch.inf, 1.0, 2.0, 2.0]]), k=2).tolist()
    [[0.0, 1.0, 0.5, 0.5]]
    """
    last = squared.topk(k, dim=-1, largest=False, sorted=False).values.amax(dim=-1, keepdim=True)
    within = 1 + TIED[squared.dtype]
    nearer = (squared * within < last).to(squared.dtype)
    tied = (squared <= last * within).to(squared.dtype) - nearer
    left = k - nearer.sum(dim=-1, keepdim=True)
    return nearer.addcmul_(tied, left / tied.sum(dim=-1, keepdim=True))


def level(distances: Float[Tensor, "*s"], after: Float[Tensor, "*s"]) -> Bool[Tensor, "*s"]:
    """Where the later of two distances is no larger than the earlier, except by rounding."""
    return after <= distances * (1 + TIED[distances.dtype])
