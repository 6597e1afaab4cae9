"""Intervals for measures of neighbours: half-samples without replacement.

A bootstrap would put copies of points next to each other and make neighbours out of nothing. A half-sample is drawn
without replacement, so no point is in it twice, and has neighbourhoods of its own: of k' = k (b-1)/(n-1) points for b of
n examples (`reach`), so that they reach as far, and chance stays the same.

Its value differs from the whole's by as much, on average, as the whole's does from the truth: the variance of a mean of b
out of n is 1/b - 1/n of the population's, which for b = n/2 is 1/n. The spread of the half-samples is thus the standard
error (times sqrt(b/(n-b)) where n is odd); 1.96 of it either side of the value is the 95 % interval. It errs on the safe
side: in simulations of overlaps the error was 1.2 to 1.5 times the true one for clouds with something in common, and up to
twice at chance and for nearly equal ones.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import checked_seed
from interp.errors import InputError

NORMAL_95 = 1.959964


def half_samples(n: int, count: int, seed: int) -> Int[Tensor, "count b"]:
    """`count` random halves of `n` examples, each drawn without replacement, in ascending order.

    Raises `InputError` for fewer than two halves, fewer than four examples, and a seed that is none.
    """
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 2:
        raise InputError(f"subsamples={count!r}: an interval takes an integer of 2 or more")
    if n < 4:
        raise InputError(f"{n} examples are too few for an interval: pass 4 or more")
    rng = generator(seed)
    drawn = [np.sort(rng.permutation(n)[: n // 2]) for _ in range(count)]
    return torch.from_numpy(np.stack(drawn))


def generator(seed: int) -> np.random.Generator:
    """Random numbers from a seed; raises `InputError` where it is no integer of 0 or more."""
    return np.random.default_rng(checked_seed(seed))


def reach(k: int, n: int, size: int) -> int:
    """The neighbours that reach as far in a subset of `size` as `k` do among `n`.

    >>> reach(30, 101, 51)
    15
    """
    return max(1, round(k * (size - 1) / (n - 1)))


def wide(k: int) -> int:
    """The length of a list of neighbours in which nearly every half-sample leaves those that reach as far as `k`.

    Half of the list is left on average, and half of `k` are wanted; the rest is about four standard deviations of what is
    left.

    >>> wide(30)
    66
    """
    return k + 6 * math.ceil(math.sqrt(k))


def standard_error(parts: Float[Tensor, "half ..."], n: int) -> Float[Tensor, " ..."]:
    """The standard error of a value from those of half-samples of `n` examples, which are along the first dimension."""
    half = n // 2
    return parts.std(dim=0) * math.sqrt(half / (n - half))


def interval(
    values: Float[Tensor, "*shape"], error: Float[Tensor, "*shape"], bounds: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """The 95 % interval about each value, cut to `bounds`."""
    reached = NORMAL_95 * error
    return (values - reached).clamp(min=bounds[0]), (values + reached).clamp(max=bounds[1])
