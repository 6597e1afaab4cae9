"""The geometry of representations: what their clouds of points look like, and how far two of them agree.

These functions know no model. They take clouds of points, a tensor or array `[example, feature]`, and return numbers with their
errors and chance levels. `alignment_matrix`, `compare` and `curvature` take stacks of layers, `[state, example, feature]`, or
activations of one site.

>>> import numpy as np
>>> cloud = np.random.default_rng(0).normal(size=(500, 3))
>>> 2.5 < intrinsic_dimension(cloud).value < 3.5
True
>>> neighbor_overlap(cloud, 2 * cloud + 1)
1.0
"""

from __future__ import annotations

from interp.geometry.alignment import AlignmentMatrix, alignment_matrix
from interp.geometry.approximate import ApproximateNeighbors, approximate_neighbors
from interp.geometry.bypass import BypassResult
from interp.geometry.clusters import Peaks, adjusted_rand, density_peaks, find_peaks, homogeneity
from interp.geometry.comparison import GeometryComparison, compare
from interp.geometry.copies import distinct_rows
from interp.geometry.correlation import IdCorrelation, id_correlation
from interp.geometry.density import Density, log_density
from interp.geometry.diagonal_peak import DiagonalPeak
from interp.geometry.dimension import Estimate, dimension_scaling, intrinsic_dimension, plateau
from interp.geometry.entry import entry_controls
from interp.geometry.imbalance import differentiable_imbalance, information_imbalance
from interp.geometry.kernels import cka, cknna, distance_correlation, rsa
from interp.geometry.matrix_change import MatrixChange
from interp.geometry.modality import ModalityGap, modality_gap
from interp.geometry.neighbors import Neighbors, nearest_neighbors
from interp.geometry.nuisance import partial_out
from interp.geometry.outlying import outlying_rows
from interp.geometry.overlap import (
    cycle_knn,
    label_overlap,
    mutual_knn,
    neighbor_overlap,
    overlap_chance,
    overlap_interval,
)
from interp.geometry.phase import PhaseChange, phase_change
from interp.geometry.pool_sizes import PoolSizes, pool_sizes
from interp.geometry.preprocessing import clamp, preprocess, standardise
from interp.geometry.registry import MEASURES, REGISTRY, Measure, register_measure, unregister_measure
from interp.geometry.scaling import massive_features
from interp.geometry.spectra import curvature, curvature_per_example, eigenvalues, participation_ratio, spectral_entropy
from interp.geometry.subspaces import principal_angles, procrustes, pwcca, svcca
from interp.geometry.weighting import FeatureWeights, learn_weights

__all__ = [
    "MEASURES",
    "REGISTRY",
    "AlignmentMatrix",
    "ApproximateNeighbors",
    "BypassResult",
    "Density",
    "DiagonalPeak",
    "Estimate",
    "FeatureWeights",
    "GeometryComparison",
    "IdCorrelation",
    "MatrixChange",
    "Measure",
    "ModalityGap",
    "Neighbors",
    "Peaks",
    "PhaseChange",
    "PoolSizes",
    "adjusted_rand",
    "alignment_matrix",
    "approximate_neighbors",
    "cka",
    "cknna",
    "clamp",
    "compare",
    "curvature",
    "curvature_per_example",
    "cycle_knn",
    "density_peaks",
    "differentiable_imbalance",
    "dimension_scaling",
    "distance_correlation",
    "distinct_rows",
    "eigenvalues",
    "entry_controls",
    "find_peaks",
    "homogeneity",
    "id_correlation",
    "information_imbalance",
    "intrinsic_dimension",
    "label_overlap",
    "learn_weights",
    "log_density",
    "massive_features",
    "modality_gap",
    "mutual_knn",
    "nearest_neighbors",
    "neighbor_overlap",
    "outlying_rows",
    "overlap_chance",
    "overlap_interval",
    "partial_out",
    "participation_ratio",
    "phase_change",
    "plateau",
    "pool_sizes",
    "preprocess",
    "principal_angles",
    "procrustes",
    "pwcca",
    "register_measure",
    "rsa",
    "spectral_entropy",
    "standardise",
    "svcca",
    "unregister_measure",
]
