"""Where a cloud lies and how large its features are: two things to settle before any distance or product.

**Centring.** States of a model lie far from the origin, to one side of it. In measures of inner products two such clouds are
alike whatever their points say: linear CKA without centring is 0.99 for unrelated clouds with such an offset, and 0.02 with
it. So the measures of kernels, subspaces and spectra begin with `centred`, in float64, as float32 loses a share of variance
of 1e-8. They refuse a cloud whose points are all equal: only rounding errors would be left.

**Scaling.** In most language models a few features of a few tokens are hundreds of times larger than all others ("massive
activations", Sun et al. 2024). They say next to nothing about what a token means, but they make up nearly all of a
Euclidean distance. `massive_features` names them. There are three ways out, and no measure takes one by itself:

- `clamp` limits values to so many times a typical deviation, the same for all features;
- `standardise` gives every feature mean 0 and standard deviation 1, so that all count the same, also those of noise;
- `metric="cosine"` in measures of neighbours removes the length of rows, though not the large features.

A few attention sinks among the examples (`interp.geometry.outlying`) have massive features of their own: they make up the
spread of these features, and after `standardise` all other examples agree in them. So drop `outlying_rows` first. Of 1,363
tokens of SmolLM2 at state 16, with 100 sinks among them, 375 features of 576 are massive, without the sinks 18. The
participation ratio is 1.0 as they are, 1.6 after `standardise`, 57 without the sinks, and 136 after both.

Do the same to all layers and modalities that you compare.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.geometry.clouds import Cloud, States, as_cloud, as_pair, as_states, check_lengths, checked_within, precision
from interp.geometry.copies import is_one_point

TIMES = 20.0


def centred(x: Cloud, name: str = "x") -> Float[Tensor, "n d"]:
    """`x` `[example, feature]` less its mean row, in float64.

    Raises the errors of `as_cloud`, and `InputError` where all rows are equal but for rounding.

    >>> centred(np.array([[1.0, 5.0], [3.0, 5.0]])).tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    """
    original = as_cloud(x, name)
    cloud = doubles(original)
    rest = cloud - cloud.mean(dim=0)
    if is_one_point(original):
        raise InputError(f"the {len(cloud)} rows of {name} are all equal: expected examples that differ")
    return rest


def centred_pair(x: Cloud, y: Cloud) -> tuple[Tensor, Tensor]:
    """Two clouds with paired rows, each less its own mean row, in float64 on the device of the first.

    Raises the errors of `as_pair` and `centred`.
    """
    first, second = as_pair(x, y)
    return centred(first, "x"), centred(second, "y")


def unit_rows(cloud: Float[Tensor, "n d"], name: str) -> Float[Tensor, "n d"]:
    """The rows at length 1; raises `InputError` for rows of zeros."""
    lengths = cloud.norm(dim=1, keepdim=True)
    check_lengths(lengths, name)
    return cloud / lengths


def doubles(values: Tensor) -> Tensor:
    """`values` in float64, on the CPU where their device has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def as_given(values: Tensor, x: Cloud) -> Cloud:
    """`values` as an array where `x` is one, else as a tensor on the device of `x`."""
    if isinstance(x, np.ndarray):
        return values.cpu().numpy()
    device = getattr(x, "device", torch.device("cpu"))
    return values if device.type == "mps" else values.to(device)


def standardise(x: Cloud) -> Cloud:
    """`x` `[example, feature]` with each feature's mean 0 and standard deviation 1 (ddof=1) over examples.

    Constant features become 0. Returns an array for an array, else a tensor on the device of `x`; computed in float64 and
    returned in the precision of `x` (float32 for less).

    A few outlying rows make up the spread of their features: see `outlying_rows`, and drop those first.

    Raises the errors of `as_cloud`.

    >>> standardise(torch.tensor([[1.0, 7.0], [3.0, 7.0], [5.0, 7.0]])).tolist()
    [[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
    """
    cloud = as_cloud(x)
    varies = (cloud != cloud[0]).any(dim=0)
    wide = cloud.double()
    rest = wide - wide.mean(dim=0)
    spread = torch.where(varies, rest.std(dim=0), 1.0)
    return as_given(torch.where(varies, rest / spread, 0.0).to(precision(x)), x)


def clamp(x: Cloud, times: float = TIMES) -> Cloud:
    """`x` `[example, feature]` with each value at most `times` typical deviations from the median of its feature.

    The typical deviation is the median over all features of their median absolute deviation, one number for the cloud, so
    that features keep their proportions. Returns an array for an array, else a tensor on the device of `x`, in the
    precision of `x` (float32 for less).

    Raises the errors of `massive_features`.

    >>> x = torch.tensor([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [3.0, 900.0]])
    >>> clamp(x, times=10).max()
    tensor(7.5000)
    """
    cloud = as_cloud(x)
    middle, typical = _typical(cloud, times)
    cut = torch.minimum(torch.maximum(cloud, middle - times * typical), middle + times * typical)
    return as_given(cut.to(precision(x)), x)


def massive_features(states: States, times: float = TIMES) -> Int[Tensor, " feature"]:
    """The features with a value more than `times` typical deviations from their median, in any of `states`.

    `states` is a cloud `[example, feature]` or a stack of them `[state, example, feature]`; see `clamp` for the typical
    deviation. Features that a few outlying rows alone make massive are among them: without those rows,
    ``massive_features(x[kept])``, they are not; see `outlying_rows`.

    Raises `InputError` where more than half of all features are constant, so that the typical deviation is 0, and for
    `times` of 0 or less.

    >>> x = torch.tensor([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0], [3.0, 900.0]])
    >>> massive_features(x).tolist()
    [1]
    """
    stack = as_states(states) if getattr(states, "ndim", 3) == 3 else as_cloud(states)[None]
    massive = torch.zeros(stack.shape[2], dtype=torch.bool, device=stack.device)
    for cloud in stack:
        middle, typical = _typical(cloud, times)
        massive |= ((cloud - middle).abs() > times * typical).any(dim=0)
    return massive.nonzero().flatten().cpu()


def _typical(cloud: Tensor, times: float) -> tuple[Tensor, float]:
    """Each feature's median, and the median over features of the median absolute deviation from it."""
    checked_within(times, "times", "a number above 0")
    middle = cloud.quantile(0.5, dim=0) if len(cloud) < 2**14 else cloud.median(dim=0).values
    typical = float((cloud - middle).abs().median(dim=0).values.median())
    if not typical:
        raise InputError(f"half of the {cloud.shape[1]} features or more are nearly constant: drop them first")
    return middle, typical
