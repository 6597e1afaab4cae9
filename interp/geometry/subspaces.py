"""Subspaces: can one representation be rotated, or mapped, onto another?

The measures of `kernels` compare pairs of examples; these fit a map. Each takes two clouds of the same examples and asks how
well one becomes the other:

- `procrustes`: by a rotation and a scale. All variance counts, the large directions most.
- `svcca` (Raghu et al. 2017): by any linear map between their first principal components, which then count equally.
- `pwcca` (Morcos et al. 2018): by any linear map, each direction weighted by how much of `x` it explains.

A fit can overfit. The canonical correlations of unrelated clouds grow with the number of directions over the number of
examples, and are 1 where there are as many directions as examples: the fewer the components, the more a value says. Each
docstring gives the value of unrelated clouds.

`principal_angles` compares *where* two clouds lie in one space of features; their examples need not be the same.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import checked_int
from interp.errors import InputError
from interp.geometry.clouds import Cloud, as_cloud, as_pair, check_one_space
from interp.geometry.scaling import as_given, centred, centred_pair

_RANK = {torch.float32: 1e-6, torch.float64: 1e-10}  # a singular value below this part of the largest is rounding
_CONSTANT = 1e-10  # and so is a column whose spread is below this part of the largest


def svcca(x: Cloud, y: Cloud, components: int = 10) -> float:
    """The mean canonical correlation of the first `components` principal components of `x` and `y`, rows paired.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 5))
    >>> round(svcca(x, 3 * x + 1, components=3), 6)
    1.0

    Columns are standardised (n - 1 in the variance), without those that do not vary; with U1 and U2 the first left
    singular vectors, it is the mean singular value of U1'U2. In [0, 1]; 1 where the components span the same
    directions. Unrelated clouds give about 0.85 sqrt(components / n) (0.12 at 10 of 500), whatever their widths.
    Symmetric; unchanged by shift and scaling of each column, not by rotation, which mixes columns before they are
    standardised.

    Raghu et al. keep as many components as explain 99 % of the variance; 10 is the choice of Huh et al. (2024). Their code
    computes them by a random decomposition, and so differs from this one by 0.002 to 0.04, and more where singular values
    are close to each other. This one is exact.

    Raises `InputError` where rows are not paired, a cloud is not finite or constant, or has fewer than `components`.
    """
    clouds = as_pair(x, y)
    one, other = (
        _directions(_standardised(rest), components, name, cloud.dtype)
        for rest, name, cloud in zip(centred_pair(*clouds), ("x", "y"), clouds, strict=True)
    )
    return float(torch.linalg.svdvals(one.T @ other).mean().clamp(max=1))


def pwcca(x: Cloud, y: Cloud, components: int | None = None) -> float:
    """The canonical correlations of `x` and `y`, rows paired, weighted by how much of `x` each direction explains.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 5))
    >>> y = np.hstack([x[:, :2], np.random.default_rng(1).normal(size=(100, 3))])
    >>> round(pwcca(x[:, :2], y), 6), 0.4 < pwcca(x, y) < 0.6
    (1.0, True)

        PWCCA = sum_i a_i r_i / sum_i a_i,  a_i = sum_j |h_i . x_j|

    with r_i the correlations, h_i the canonical variables of `x` (at unit length, one entry an example), and x_j its
    centred columns. `components` keeps the first principal components of each cloud, None all.

    In [0, 1]; 1 where the cloud of fewer directions is a linear map of the other. **Asymmetric**: pwcca(x, y) weighs by
    x, pwcca(y, x) by y. Unchanged by any invertible linear map of y (with all components), and by shift and isotropic
    scaling of x; a rotation of x changes the weights, which sum over its columns. Unrelated clouds give about sqrt(m /
    n), with m the larger number of directions (0.85 of it where both have equally many), and 1 where either cloud has n - 1
    directions, as many as centred examples can have: that is refused.

    Where x has more directions than y, those without a partner have no weight, and do not lower the value. Google's
    public code weighs by the cloud with fewer columns, not by x.

    Raises `InputError` where rows are not paired, a cloud is not finite or constant, has fewer than `components`, or spans
    all n - 1 directions.
    """
    clouds = as_pair(x, y)
    first, second = centred_pair(*clouds)
    one = _directions(first, components, "x", clouds[0].dtype)
    other = _directions(second, components, "y", clouds[1].dtype)
    for directions, name in ((one, "x"), (other, "y")):
        if directions.shape[1] >= len(first) - 1:
            raise InputError(
                f"{name} has {directions.shape[1]} directions in {len(first)} examples, so that all correlations are 1: use"
                " fewer components or more examples"
            )
    turn, correlations, _ = torch.linalg.svd(one.T @ other, full_matrices=False)
    weights = ((one @ turn).T @ first).abs().sum(dim=1)
    return float((weights @ correlations.clamp(max=1)) / weights.sum())


def procrustes(x: Cloud, y: Cloud) -> float:
    """The disparity of `x` and `y`, rows paired, after the best rotation and scaling: 0 for the same shape.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 2))
    >>> turned = np.hstack([5 * x[:, ::-1] + 1, np.zeros((100, 3))])
    >>> round(procrustes(x, turned), 6)
    0.0

        min over R, c of ||X - c Y R||^2 = 1 - s^2,  s the sum of the singular values of X'Y

    for centred clouds, each scaled to a sum of squares of 1. This is the squared `disparity` of `scipy.spatial.procrustes`;
    of clouds of unequal width the narrower one gets columns of zeros. Other code returns 2 - 2s (without a scale), its root,
    or arccos s.

    In [0, 1], 1 the farthest. Rotations of many features fit anything: unrelated round Gaussians of width d give about
    1 - 0.72 d / n while d is far below n, and go to 0 as d / n grows. Symmetric; unchanged by rotation, reflection,
    shift and isotropic scaling of either cloud.

    Raises `InputError` where rows are not paired, and where a cloud is not finite or constant.
    """
    first, second = (_narrow(cloud / cloud.abs().amax()) for cloud in centred_pair(x, y))
    alike = torch.linalg.svdvals((first / first.norm()).T @ (second / second.norm())).sum()
    return float(1 - alike.clamp(max=1).square())


def principal_angles(x: Cloud, y: Cloud, components: int = 10) -> Cloud:
    """The angles between the spans of the first principal components of `x` and of `y`: Float `[components]`, radians.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(50, 2)) @ np.eye(2, 3)
    >>> y = np.random.default_rng(1).normal(size=(40, 2)) @ np.eye(2, 3, k=1)
    >>> np.degrees(principal_angles(x, y, components=2)).round().tolist()
    [0.0, 90.0]

    From the smallest, in [0, pi/2]; 0 is a direction in both. The i-th is the least angle between a direction of the
    one and of the other, both orthogonal to those of the angles before. Both clouds are `[example, feature]` in one space
    of features; their rows need not be paired, nor equally many: two modalities, or two classes, at one layer. Each is
    centred by itself, so the angles depend on the directions in which clouds vary, not on where they lie. (Bjorck and Golub
    1973; as `scipy.linalg.subspace_angles`, which gives the largest first. Small angles are computed from their sines.)

    Unrelated spans of c of d directions are nearly at right angles where c is far below d: the least cosine is 0, the
    largest about 1.7 sqrt(c / d). Where c is above d / 2, 2c - d angles are 0 whatever the clouds are. Components with
    nearly equal variances are determined up to a rotation among them: where the c-th and the next have nearly the same, the
    span is arbitrary in part, and so are the angles.

    Returns an array where x is one, else a tensor on the device of x. Symmetric; unchanged by shift and scaling of either
    cloud, and by a rotation of both.

    Raises `InputError` where widths differ, a cloud is not finite or constant, or has fewer than `components`.
    """
    clouds = as_cloud(x, "x"), as_cloud(y, "y")
    check_one_space(*clouds)
    one = _directions(centred(clouds[0], "x").T, components, "x", clouds[0].dtype)
    other = _directions(centred(clouds[1], "y").T, components, "y", clouds[1].dtype).to(one.device)
    inner = one.T @ other
    cosines = torch.linalg.svdvals(inner)
    sines = torch.linalg.svdvals(other - one @ inner).flip(0)  # of the part of the second span that is not in the first
    return as_given(torch.atan2(sines, cosines), x)


def _standardised(cloud: Float[Tensor, "n d"]) -> Float[Tensor, "n _"]:
    """The columns of a centred cloud at unit variance, without those that are constant."""
    cloud = cloud / cloud.abs().amax()
    spread = cloud.std(dim=0)
    varies = spread > _CONSTANT * spread.max()
    return cloud[:, varies] / spread[varies]


def _directions(
    matrix: Float[Tensor, "n d"], components: int | None, name: str, kind: torch.dtype
) -> Float[Tensor, "n c"]:
    """The first left singular vectors of `matrix`; where `components` is None, all that are not due to rounding.

    That depends on the type of the cloud: a cloud in three directions has as many as features once it is stored in float32,
    and canonical correlations would count the others like these three.
    """
    if components is not None:
        components = checked_int(components, "components", least=1)
    left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
    rank = int((values > _RANK[kind] * values[0]).sum())
    if components is not None and components > rank:
        raise InputError(f"components={components!r}: {name} has {rank}, use fewer or a cloud that has more")
    return left[:, : components or rank]


def _narrow(cloud: Float[Tensor, "n d"]) -> Float[Tensor, "n _"]:
    """The cloud after a rotation that leaves no more columns than rows; singular values of products stay the same."""
    if cloud.shape[1] <= len(cloud):
        return cloud
    return torch.linalg.qr(cloud.T, mode="r").R.T
