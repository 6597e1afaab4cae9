"""Where a cloud lies and how large its features are: two things to settle before any distance or product.

**Centring.** States of a model lie far from the origin, to one side of it. In measures of inner products two such clouds are
alike whatever their points say: linear CKA without centring is 0.99 for unrelated clouds with such an offset, and 0.02 with
it. So the measures of kernels, subspaces and spectra begin with `centred`, in float64, as float32 loses a share of variance
of 1e-8. They refuse a cloud whose points are all equal: only rounding errors would be left.

**Scaling.** In most language models a few features of a few tokens are hundreds of times larger than all others ("massive
activations", Sun et al. 2024). They say next to nothing about what a token means, but they make up nearly all of a
Euclidean distance. `massive_features` names them. `interp.geometry.preprocessing` has the ways out, of which no measure takes
one by itself.

A few attention sinks among the examples (`interp.geometry.outlying`) have massive features of their own: they make up the
spread of these features, and after `standardise` all other examples agree in them. So drop `outlying_rows` first. Of 1,363
tokens of SmolLM2 at state 16, with 100 sinks among them, 375 features of 576 are massive, without the sinks 18. The
participation ratio is 1.0 as they are, 1.6 after `standardise`, 57 without the sinks, and 136 after both.

Do the same to all layers and modalities that you compare.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.errors import InputError
from interp.geometry.clouds import Cloud, States, as_cloud, as_pair, as_states, check_lengths, checked_within
from interp.geometry.copies import is_one_point

TIMES = 20.0
RARE = 20  # a feature is massive as a whole with massive values in more than one of so many examples


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
        middle, typical = deviations(cloud, times)
        massive |= ((cloud - middle).abs() > times * typical).any(dim=0)
    return massive.nonzero().flatten().cpu()


def deviations(cloud: Tensor, times: float) -> tuple[Tensor, float]:
    """Each feature's median, and the typical deviation: the median over features of the median absolute deviation from it.

    Features that do not vary, and those that are massive as a whole, do not count: `clamp` turns the second into the first, and
    what it returns has the typical deviation of what it took.
    """
    checked_within(times, "times", "a number above 0")
    middle = cloud.quantile(0.5, dim=0) if len(cloud) < 2**14 else cloud.median(dim=0).values
    sizes = (cloud - middle).abs()
    each = sizes.median(dim=0).values
    if not each.median():
        raise InputError(f"half of the {cloud.shape[1]} features or more are nearly constant: drop them first")
    varies = each > 0
    ordinary = varies & ~massive_as_a_whole(sizes, times * float(each[varies].median()))
    return middle, float(each[ordinary if ordinary.any() else varies].median())


def massive_as_a_whole(sizes: Float[Tensor, "n d"], limit: float) -> Bool[Tensor, " d"]:
    """The features of which more than one in twenty examples, and more than one at all, is beyond a limit."""
    return (sizes > limit).sum(dim=0) > max(1.0, len(sizes) / RARE)
