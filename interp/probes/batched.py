"""The logistic probes of all states in one solve: what a GPU is good for.

The probes of different states share nothing but the labels, so each state has its own loss, the mean cross-entropy plus
|w|^2 / (2 C n), which is scikit-learn's divided by C n. Fitted one after the other, each step is a product of small
matrices, and a GPU waits. Here every step is one batched product over states. The method is scikit-learn's, L-BFGS: the
curvature is guessed from the last steps and changes of the gradient, each state's from its own, and each state has its
own step length. States that have converged stand still until the last one has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import InputError
from interp.probes.inputs import classes_of
from interp.probes.linear import LinearProbe, check_strength

Loss = Callable[[Tensor], tuple[Tensor, Tensor]]  # parameters [state, ...] to losses [state] and gradients
_MEMORY = 10
_MAX_ITERATIONS = 5000
_TOLERANCE = 1e-5  # the largest element of a gradient at which a state has converged
_HALVINGS = 30
_SUFFICIENT = 1e-4


def fit_batched(states: Tensor, y: Any, C: float = 1.0) -> tuple[LinearProbe, ...]:
    """A `LinearProbe` of kind "logistic" for each of `states`, Float [state, example, feature], on the device they are on.

    `y` is one label an example, as for `LinearProbe`, and so is `C`. The probes are those that `LinearProbe.fit` gives, up
    to the tolerance of the solvers. Raises `InputError` for a `C` that is not positive, states of another shape or
    precision or not finite, and labels that are not one an example, are no strings or integers, or are of one class;
    `InputTypeError` for labels without a length.

    >>> states = torch.randn(3, 100, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> probes = fit_batched(states, (states[2, :, 1] > 0).long().numpy())
    >>> [probe.coef_.shape for probe in probes], int(abs(probes[2].coef_).argmax())
    ([(1, 4), (1, 4), (1, 4)], 1)
    """
    check_strength(C)
    if not isinstance(states, Tensor) or states.ndim != 3 or states.dtype not in (torch.float32, torch.float64):
        seen = (
            f"of shape {tuple(states.shape)} and {states.dtype}"
            if isinstance(states, Tensor)
            else type(states).__name__
        )
        raise InputError(f"states {seen}: expected a tensor [state, example, feature] in float32 or float64")
    if not states.isfinite().all():
        raise InputError("states has numbers that are not finite: leave such examples out")
    classes, numbers = classes_of(y, states.shape[1])
    # Near 1 by a power of two, which rounds nothing: the squares of what is huge or tiny are infinite or lost.
    largest = states.abs().amax(dim=1, keepdim=True)
    unit = torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), largest.frexp().exponent - 1), 1)
    x = states / unit
    mean = x.mean(dim=1, keepdim=True)
    spread = x.std(dim=1, keepdim=True, correction=0)
    floor = 10 * torch.finfo(states.dtype).eps * mean.abs()
    scale = torch.where(spread > floor, spread, torch.ones_like(spread))
    x = (x - mean) / scale
    loss = logistic_loss(x, torch.from_numpy(numbers).to(x.device), len(classes), C)
    free = 1 if len(classes) == 2 else len(classes)
    solved = minimise(loss, x.new_zeros(len(x), x.shape[2] + 1, free))
    units = unit.double()
    parts = (solved, (mean * units)[:, 0], (scale * units)[:, 0])
    return tuple(
        LinearProbe.from_state({"kind": "logistic", "C": float(C), "classes_": list(classes), **_folded(*each)})
        for each in zip(*(part.to("cpu").double().numpy() for part in parts), strict=True)
    )


def _folded(solved: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> dict[str, np.ndarray]:
    """A solution for standardised features as one for features as they came in."""
    weights = solved[:-1].T / scale
    return {"coef_": weights, "intercept_": solved[-1] - weights @ mean, "mean_": mean, "scale_": scale}


def logistic_loss(x: Tensor, y: Tensor, n_classes: int, C: float) -> Loss:
    """The loss of weights and intercepts `[state, feature + 1, class]`, intercepts last, and its gradient.

    `x` is [state, example, feature], `y` Int [example]. Of two classes the first has the score 0, and the parameters are
    the second's. Intercepts are not regularised.
    """
    n, shrink = x.shape[1], 1 / (C * x.shape[1])
    targets = torch.nn.functional.one_hot(y, n_classes).to(x.dtype)
    first = 1 if n_classes == 2 else 0

    def loss(parameters: Tensor) -> tuple[Tensor, Tensor]:
        weights, offsets = parameters[:, :-1], parameters[:, -1:]
        scores = torch.baddbmm(offsets, x, weights)
        if first:
            scores = torch.cat([torch.zeros_like(scores), scores], dim=2)
        logs = scores.log_softmax(dim=2)
        losses = -(logs * targets).sum(dim=(1, 2)) / n + shrink / 2 * weights.square().sum(dim=(1, 2))
        excess = (logs.exp() - targets)[:, :, first:] / n
        slopes = torch.baddbmm(weights, x.transpose(1, 2), excess, beta=shrink)
        return losses, torch.cat([slopes, excess.sum(dim=1, keepdim=True)], dim=1)

    return loss


def minimise(loss: Loss, start: Tensor) -> Tensor:
    """The parameters `[state, ...]` at which each state's smooth convex loss is least, by L-BFGS."""
    at, (value, gradient) = start, loss(start)
    steps: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(_MAX_ITERATIONS):
        open_ = gradient.abs().flatten(1).amax(dim=1) > _TOLERANCE
        if not open_.any():
            break
        way = downhill(gradient, steps) * _along(open_.to(at.dtype), at)
        new, new_value, new_gradient = search(loss, at, value, gradient, way)
        moved, turned = new - at, new_gradient - gradient
        curvature = dot(moved, turned)
        # A state that stands still has nothing to tell of curvature: its pair is left out of account.
        steps = [*steps, (moved, turned, torch.where(curvature > 0, 1 / curvature, 0))][-_MEMORY:]
        at, value, gradient = new, new_value, new_gradient
        if not moved.any():  # no step is downhill any more, in this precision
            break
    return at


def downhill(gradient: Tensor, steps: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Newton's direction with the curvature that the last steps have shown: the two-loop recursion of L-BFGS."""
    way, shares = -gradient, []
    for moved, turned, inverse in reversed(steps):
        share = inverse * dot(moved, way)
        way = way - _along(share, way) * turned
        shares.append(share)
    if steps:
        moved, turned, inverse = steps[-1]
        size = dot(turned, turned) * inverse
        way = way / _along(torch.where(size > 0, size, 1), way)
    for (moved, turned, inverse), share in zip(steps, reversed(shares), strict=True):
        way = way + _along(share - inverse * dot(turned, way), way) * moved
    return way


def search(loss: Loss, at: Tensor, value: Tensor, gradient: Tensor, way: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Go along `way`, each state half as far until its loss falls enough; a state that finds no such step stays."""
    slope, length = dot(gradient, way), torch.ones_like(value)
    slack = torch.finfo(value.dtype).eps * value.abs()  # what rounding may add
    for _ in range(_HALVINGS):
        new = at + _along(length, at) * way
        new_value, new_gradient = loss(new)
        good = new_value <= value + _SUFFICIENT * length * slope + slack
        if good.all():
            return new, new_value, new_gradient
        length = torch.where(good, length, length / 2)
    new = at + _along(torch.where(good, length, 0), at) * way
    return new, *loss(new)


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each state's, Float [state]."""
    return (a * b).flatten(1).sum(dim=1)


def _along(numbers: Tensor, like: Tensor) -> Tensor:
    """One number a state, with as many axes as `like` has."""
    return numbers.reshape(-1, *[1] * (like.ndim - 1))
