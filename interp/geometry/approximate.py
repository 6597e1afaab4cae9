"""An approximate graph of neighbours, for more points than all pairs can be computed for.

The exact graph of n points takes n^2 d operations: minutes at 100,000 points, hours at a million. A navigable small-world
graph (HNSW, Malkov and Yashunin 2018) finds most of each point's neighbours by a walk from neighbour to neighbour. The result
does not show what it misses, so the miss is measured: for some points drawn at random the exact neighbours are computed too,
and the `recall` is the share of them that the graph has. Every measure of neighbours takes the graph in place of a cloud; an
overlap of two graphs of recall r is off by up to 2 (1 - r).

The search is faiss's, an optional dependency: ``pip install "interp-vlm[approximate]"``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interp.arguments import checked_int
from interp.errors import InputError
from interp.geometry.clouds import Cloud, as_cloud, check_k, for_distances
from interp.geometry.neighbors import Neighbors, ready
from interp.statistics.half_samples import generator

SAMPLE = 1000  # points whose exact neighbours are computed too
_LINKS, _BUILD = 32, 128  # the links of each point, and the candidates for them
_ROWS = 2**10  # points in one search


@dataclass(frozen=True, eq=False)
class ApproximateNeighbors(Neighbors):
    """A graph that may miss neighbours: `recall` is the share of the true ones in it, measured on `sample` points."""

    recall: float
    sample: int


def approximate_neighbors(
    x: Cloud, k: int, metric: str = "euclidean", effort: int = 4, seed: int = 0
) -> ApproximateNeighbors:
    """Nearly all of the `k` nearest neighbours of each row of `x` `[example, feature]`, with the share that the graph has.

    >>> cloud = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    >>> approximate_neighbors(cloud, k=10).recall > 0.95
    True

    Each walk keeps `effort` times k candidates: a larger effort misses less and takes longer. The distances of the points in
    the graph are exact. A neighbour that the graph misses is missing in every measure: look at `recall` before you use the
    graph. The search runs on the CPU. A point may have fewer than k copies.

    Raises `InputError` where faiss is not installed, for an effort below 1, and the errors of `nearest_neighbors`.
    """
    try:
        import faiss
    except ImportError as error:
        raise InputError("approximate_neighbors needs faiss: pip install 'interp-vlm[approximate]'") from error
    cloud = as_cloud(x)
    n = len(cloud)
    check_k(k, n)
    effort = checked_int(effort, "effort", least=1)
    points = ready(cloud, metric)
    placed = for_distances(cloud, metric)
    rows = ((placed - placed.mean(dim=0)) / points.unit).float().cpu().numpy()
    width = min(k + 1, n - 1)
    index = faiss.IndexHNSWFlat(rows.shape[1], _LINKS)
    index.hnsw.efConstruction = _BUILD
    index.hnsw.efSearch = effort * (width + 1)
    index.add(rows)
    indices = torch.empty(n, width, dtype=torch.int64)
    distances = torch.empty(n, width, dtype=torch.float64)
    for start in range(0, n, _ROWS):
        own = torch.arange(start, min(start + _ROWS, n))
        candidates = torch.from_numpy(index.search(rows[start : start + _ROWS], width + 1)[1])
        indices[own] = _without_itself(candidates, own, n)
        exact = points.apart(
            own[:, None].expand(-1, width).flatten().to(cloud.device), indices[own].flatten().to(cloud.device)
        )
        near, order = exact.view(-1, width).cpu().sort(dim=1)
        indices[own], distances[own] = indices[own].gather(1, order), near.sqrt() * points.unit
    sample = torch.from_numpy(generator(seed).permutation(n)[:SAMPLE])
    recall = _recall(points.squared(sample.to(cloud.device)).cpu(), indices[sample, :k], k)
    indices, distances = indices.to(cloud.device), distances.to(cloud.device)
    after = distances[:, k] if width > k else distances.new_full((n,), torch.inf)
    return ApproximateNeighbors(
        indices[:, :k], distances[:, :k], after, points.extent, metric, cloud, recall=recall, sample=len(sample)
    )


def _without_itself(candidates: Tensor, own: Tensor, n: int) -> Tensor:
    """The first of the candidates that are not the point itself; the point after it takes the place of a missing one."""
    keep = candidates != own[:, None]
    keep[keep.all(dim=1), -1] = False  # the point itself is not among them: the farthest goes
    others = candidates[keep].view(len(own), -1)
    missing = others < 0
    others[missing] = ((own[:, None] + 1) % n).expand_as(others)[missing]
    return others


def _recall(squared: Tensor, indices: Tensor, k: int) -> float:
    """The share of each row's k nearest among `indices`; all that are as near as the k-th count."""
    last = squared.topk(k, dim=1, largest=False, sorted=True).values[:, -1:]
    return float((squared.gather(1, indices) <= last * (1 + 1e-6)).double().mean())
