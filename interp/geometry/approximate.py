"""A graph of neighbours for more points than all pairs of them can be looked at.

The exact graph of n points takes n^2 d operations: minutes at 100,000 points, hours at a million. A navigable small-world
graph (HNSW, Malkov and Yashunin 2018) finds most of each point's neighbours by walking from neighbour to neighbour. What it
misses is not known from the result, so it is measured: for some points drawn at random the exact neighbours are computed
as well, and the `recall` is the share of them that was found. Every measure of neighbours takes the graph in place of a
cloud; an overlap of two graphs of recall r is off by up to 2 (1 - r).

The search is faiss's, an optional dependency: ``pip install "interp-vlm[approximate]"``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.errors import InputError
from interp.geometry.clouds import Cloud, as_cloud, check_k
from interp.geometry.neighbors import Neighbors, place, ready
from interp.statistics.half_samples import generator

SAMPLE = 1000  # points whose exact neighbours are computed too
_LINKS, _BUILD = 32, 128  # what each point of the walk is linked to, and how many are tried when it is put in
_ROWS = 2**10  # points asked for at once


@dataclass(frozen=True, eq=False)
class ApproximateNeighbors(Neighbors):
    """A graph that may miss neighbours: `recall` is the share of the true ones it has, measured on `sample` points."""

    recall: float
    sample: int


def approximate_neighbors(
    x: Cloud, k: int, metric: str = "euclidean", effort: int = 4, seed: int = 0
) -> ApproximateNeighbors:
    """The `k` nearest neighbours of each row of `x` `[example, feature]`, nearly all of them, with the share that was found.

    `effort` times k candidates are kept on each walk: more finds more and takes longer. Distances are exact, those of the
    points that were found. What the walk misses it misses in every measure: look at `recall` before you use the graph.
    The search runs on the CPU. Copies of a point are no trouble as long as they are fewer than k.

    Raises `InputError` where faiss is not installed, for an effort below 1, and what `nearest_neighbors` raises.

    >>> cloud = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    >>> approximate_neighbors(cloud, k=10).recall > 0.95
    True
    """
    try:
        import faiss
    except ImportError as error:
        raise InputError("approximate_neighbors needs faiss: pip install 'interp-vlm[approximate]'") from error
    cloud = as_cloud(x)
    n = len(cloud)
    check_k(k, n)
    if isinstance(effort, bool) or not isinstance(effort, int | np.integer) or effort < 1:
        raise InputError(f"effort={effort!r}: expected an integer of 1 or more")
    points = ready(cloud, metric)
    placed = place(cloud, metric)
    rows = ((placed - placed.mean(dim=0)) / points.unit).float().cpu().numpy()
    width = min(k + 1, n - 1)
    index = faiss.IndexHNSWFlat(rows.shape[1], _LINKS)
    index.hnsw.efConstruction = _BUILD
    index.hnsw.efSearch = int(effort) * (width + 1)
    index.add(rows)
    indices = torch.empty(n, width, dtype=torch.int64)
    distances = torch.empty(n, width, dtype=torch.float64)
    for start in range(0, n, _ROWS):
        own = torch.arange(start, min(start + _ROWS, n))
        found = torch.from_numpy(index.search(rows[start : start + _ROWS], width + 1)[1])
        indices[own] = _without_itself(found, own, n)
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


def _without_itself(found: Tensor, own: Tensor, n: int) -> Tensor:
    """The first of what was found that are not the point itself; what was not found is made up for by the point after."""
    keep = found != own[:, None]
    keep[keep.all(dim=1), -1] = False  # it did not find itself: the farthest goes
    others = found[keep].view(len(own), -1)
    missing = others < 0
    others[missing] = ((own[:, None] + 1) % n).expand_as(others)[missing]
    return others


def _recall(squared: Tensor, indices: Tensor, k: int) -> float:
    """The share of each row's k nearest that was found; whoever is as near as the k-th counts."""
    last = squared.topk(k, dim=1, largest=False, sorted=True).values[:, -1:]
    return float((squared.gather(1, indices) <= last * (1 + 1e-6)).double().mean())
