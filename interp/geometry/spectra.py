"""Spectra: over how many directions does a cloud spread, and how much does its path bend from layer to layer?

The eigenvalues of a cloud's covariance are its variances along its principal axes. As shares p they are a distribution over
directions, and a count of the directions it spreads over is a number of effective dimensions:

- `participation_ratio`: 1 / sum p^2. Equal shares in m directions give m; the large shares decide.
- `spectral_entropy`: -sum p ln p as a part of its maximum. Small shares count for more.

Both are *linear* and *global*: a circle has two such dimensions, while `intrinsic_dimension` finds one. The numbers of
examples and of features bound both, so compare values only at equal numbers, and read them against a Gaussian cloud
without structure.

`curvature` looks at the same examples at many layers: each is a path through the space of states. The angle between one
step and the next says whether layers go on in one direction (0), write things unrelated to what the layer before wrote
(pi/2), or reverse it (towards pi).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.geometry.clouds import Cloud, States, as_states
from interp.geometry.scaling import as_given, centred, doubles

_AT_MEAN = 1e-7  # a row shorter than this part of the longest is at the mean, up to rounding


def eigenvalues(x: Cloud) -> Cloud:
    """The eigenvalues of the covariance of `x` `[example, feature]`, largest first: Float `[min(example, feature)]`.

    The covariance has n - 1 in its denominator; the eigenvalues sum to the total variance. With no more examples than
    features the last one is 0, as n centred rows span at most n - 1 directions. Returns an array for an array, else a
    tensor on the device of `x`.

    Raises the errors of `as_cloud`, and `InputError` where all rows are equal.

    >>> eigenvalues(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]])).mul(3).round().tolist()
    [8.0, 2.0]
    """
    cloud = centred(x)
    return as_given(_squares(cloud) / (len(cloud) - 1), x)


def participation_ratio(x: Cloud) -> float:
    """The number of directions over which `x` `[example, feature]` spreads: (sum l)^2 / sum l^2 of `eigenvalues(x)`.

    >>> square = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> round(participation_ratio(square), 6)
    2.0

    From 1, all on a line, to min(n - 1, d), equally in all directions. A round Gaussian cloud of n points in d
    dimensions gives n d / (n + d), not d. Unchanged by rotation, shift and scaling. A few features of enormous size, as in
    language models, bring it near 1: standardise the columns to see the others. (From neuroscience: Gao et al. 2017; here
    for the covariance of the sample, without a correction for its noise.)

    Raises the errors of `eigenvalues`.
    """
    shares = _shares(_unit_size(x))
    return float(1 / shares.square().sum())


def spectral_entropy(x: Cloud, normalise_rows: bool = True) -> float:
    """How evenly `x` `[example, feature]` spreads over directions: -sum p ln p / ln min(n, d), in [0, 1].

    >>> square = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> round(spectral_entropy(square), 6)
    1.0
    >>> round(spectral_entropy(square, normalise_rows=False), 3)
    0.469

    The mean row is subtracted from all rows, each is then scaled to length 1 (not with `normalise_rows=False`), and p
    are the eigenvalues of Z'Z, or of ZZ', as shares. 0: all on a line; 1: equally in all min(n, d) directions. r equal
    directions give ln r / ln min(n, d). A Gaussian cloud without structure is below 1, more so the nearer n is to d: 0.92
    at n = d. A row at the mean itself has no direction and does not count. Where rows are examples this is the *dataset*
    entropy; where they are the tokens of one prompt, its *prompt* entropy.

    This is the matrix entropy of Skean et al. (2025) at alpha = 1. Some public code sets negative *entries* of the Gram
    matrix to 0 instead of the negative *eigenvalues* that rounding makes: for data of rank 5 it gives 0.57 instead of
    0.28, and numbers published with it are too high. Other code divides by ln n or ln d, or does not divide.

    Raises the errors of `as_cloud`, and `InputError` for one feature, whose entropy is 0 of at most 0, and where all rows
    are equal.
    """
    cloud = _unit_size(x)
    if cloud.shape[1] < 2:
        raise InputError(f"x has shape {tuple(cloud.shape)}: expected two features or more")
    if normalise_rows:
        lengths = cloud.norm(dim=1, keepdim=True)
        cloud = torch.where(lengths > _AT_MEAN * lengths.amax(), cloud / lengths, 0.0)
    return float(torch.special.entr(_shares(cloud)).sum() / math.log(min(cloud.shape)))


def curvature(states: States) -> Cloud:
    """How far examples turn at each layer: the mean of `curvature_per_example` over examples, Float `[state - 2]`.

    In radians, in [0, pi]. Item l is the turn at state l + 1. Steps unrelated to each other, a random walk, give pi/2;
    a straight line 0; states unrelated to each other 2 pi/3, since each step reverses half of the one before. An example
    with a step of length 0 has no angle there and is left out; NaN where no example has one. Returns an array for an
    array, else a tensor on the device of `states`.

    Raises the errors of `curvature_per_example`.

    >>> line = torch.arange(4.0)[:, None, None] * torch.ones(4, 5, 3)
    >>> curvature(line).tolist()
    [0.0, 0.0]
    """
    return as_given(_angles(states).nanmean(dim=1), states)


def curvature_per_example(states: States) -> Cloud:
    """The angle between each example's steps into and out of a state: Float `[state - 2, example]`, in radians.

    With `states` `[state, example, feature]` and v_l = h_(l+1) - h_l it is arccos cos(v_(l-1), v_l), computed from the
    sum and the difference of the two at unit length, which is exact for small angles. NaN where a step has length 0.
    (The trajectory curvature of VLM studies, arXiv 2604.09425, for one example; the form is this package's.)

    Raises the errors of `as_states`, and `InputError` for fewer than three states.

    >>> corner = torch.tensor([[[0.0, 0.0]] * 2, [[1.0, 0.0]] * 2, [[1.0, 1.0]] * 2])
    >>> curvature_per_example(corner).mul(180 / math.pi).round().tolist()
    [[90.0, 90.0]]
    """
    return as_given(_angles(states), states)


def _angles(states: States) -> Float[Tensor, "turn n"]:
    stack = as_states(states)
    if len(stack) < 3:
        raise InputError(
            f"states has shape {tuple(stack.shape)}: expected three states or more, a turn takes two steps"
        )
    angles = []
    before = None
    for here, there in pairwise(stack):  # state by state: float64 of a whole stack is large
        step = doubles(there) - doubles(here)
        lengths = step.norm(dim=1, keepdim=True)
        unit = step / lengths  # 0 / 0 is NaN, and so is every angle with it
        if before is not None:
            angles.append(2 * torch.atan2((unit - before).norm(dim=1), (unit + before).norm(dim=1)))
        before = unit
    return torch.stack(angles)


def _squares(cloud: Float[Tensor, "n d"]) -> Float[Tensor, " m"]:
    """The squared singular values of `cloud`, largest first, from its smaller product with itself."""
    product = cloud.T @ cloud if cloud.shape[1] <= len(cloud) else cloud @ cloud.T
    return torch.linalg.eigvalsh(product).flip(0).clamp(min=0)


def _unit_size(x: Cloud) -> Float[Tensor, "n d"]:
    """`x` centred, with a largest entry of 1, so that no square overflows."""
    cloud = centred(x)
    return cloud / cloud.abs().amax()


def _shares(cloud: Float[Tensor, "n d"]) -> Float[Tensor, " m"]:
    squares = _squares(cloud)
    return squares / squares.sum()
