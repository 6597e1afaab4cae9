"""Centring: taking away where a cloud lies, so that what is left is how its points differ.

States of a model lie far from the origin, to one side of it. Two clouds that do are alike in every measure of inner
products, whatever their points say: linear CKA without centring is 0.99 for unrelated clouds with such an offset, and
0.02 with it. So the measures of kernels, subspaces and spectra begin here. A cloud whose points are all equal has
nothing left: it is refused, rather than measured by its rounding errors.

From here on numbers are float64, whatever came in: a share of a variance of 1e-8 is lost in float32.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.geometry.clouds import Cloud, as_cloud, as_pair

_ROUNDING = 1e-13  # a cloud that varies by less than this part of its size varies by rounding alone


def centred(x: Cloud, name: str = "x") -> Float[Tensor, "n d"]:
    """`x` `[example, feature]` less its mean row, in float64.

    Raises what `as_cloud` raises, and `InputError` where all rows are equal.

    >>> centred(np.array([[1.0, 5.0], [3.0, 5.0]])).tolist()
    [[-1.0, 0.0], [1.0, 0.0]]
    """
    cloud = doubles(as_cloud(x, name))
    rest = cloud - cloud.mean(dim=0)
    if rest.abs().amax() <= _ROUNDING * cloud.abs().amax():
        raise InputError(f"the {len(cloud)} rows of {name} are all equal: expected examples that differ")
    return rest


def centred_pair(x: Cloud, y: Cloud) -> tuple[Tensor, Tensor]:
    """Two clouds with paired rows, each less its own mean row, in float64 on the device of the first.

    Raises what `as_pair` and `centred` raise.
    """
    first, second = as_pair(x, y)
    return centred(first, "x"), centred(second, "y")


def doubles(values: Tensor) -> Tensor:
    """`values` in float64, on the CPU where their device has none."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def like(values: Tensor, x: Cloud) -> Cloud:
    """`values` as an array where `x` is one, else as a tensor on the device of `x`."""
    if isinstance(x, np.ndarray):
        return values.cpu().numpy()
    device = getattr(x, "device", torch.device("cpu"))
    return values if device.type == "mps" else values.to(device)
