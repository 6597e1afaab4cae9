"""The geometry of representations: how many dimensions they fill, and how far two of them agree.

These functions know no model. They take clouds of points, a tensor or array `[example, feature]` (or `[state, example,
feature]` for a stack of layers), and return numbers with their errors and chance levels.

>>> import numpy as np
>>> cloud = np.random.default_rng(0).normal(size=(500, 3))
>>> 2.5 < intrinsic_dimension(cloud).value < 3.5
True
>>> neighbor_overlap(cloud, 2 * cloud + 1)
1.0
"""

from __future__ import annotations

from interp.geometry.alignment import AlignmentMatrix, BypassResult, alignment_matrix
from interp.geometry.clouds import distinct_rows
from interp.geometry.dimension import Estimate, dimension_scaling, intrinsic_dimension
from interp.geometry.neighbors import Neighbors, nearest_neighbors
from interp.geometry.overlap import label_overlap, mutual_knn, neighbor_overlap, overlap_chance, overlap_interval

__all__ = [
    "AlignmentMatrix",
    "BypassResult",
    "Estimate",
    "Neighbors",
    "alignment_matrix",
    "dimension_scaling",
    "distinct_rows",
    "intrinsic_dimension",
    "label_overlap",
    "mutual_knn",
    "nearest_neighbors",
    "neighbor_overlap",
    "overlap_chance",
    "overlap_interval",
]
