"""The logistic probes of all states in one solve, so that a GPU has enough to do.

The probes of different states share nothing but the labels. Each state has its own loss, the mean cross-entropy plus
|w|^2 / (2 C n), which is scikit-learn's loss divided by C n. A fit of one state after the other multiplies small matrices,
and a GPU waits. Here every step is one batched product over states. The method is scikit-learn's, L-BFGS: each state
estimates its curvature from its own last steps and the changes of its gradient, and has its own step length. A state that
has converged stays where it is until the last one has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import InputError, shown
from interp.probes.inputs import checked_classes
from interp.probes.linear import LinearProbe, check_strength

Loss = Callable[[Tensor], tuple[Tensor, Tensor]]  # parameters [state, ...] to losses [state] and gradients
_MEMORY = 10
_MAX_ITERATIONS = 5000
_TOLERANCE = 1e-5  # the largest element of a gradient at which a state has converged
_HALVINGS = 30
_SUFFICIENT = 1e-4


def fit_batched(states: Tensor, y: Any, C: float = 1.0) -> tuple[LinearProbe, ...]:
    """A logistic `LinearProbe` for each of `states`, Float [state, example, feature], fitted on the device they are on.

    >>> states = torch.randn(3, 100, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> probes = fit_batched(states, (states[2, :, 1] > 0).long().numpy())
    >>> [probe.coef_.shape for probe in probes], int(abs(probes[2].coef_).argmax())
    ([(1, 4), (1, 4), (1, 4)], 1)

    `y` has one label an example, and `C` is the inverse of the regularisation, both as in `LinearProbe`. The probes are
    those that `LinearProbe.fit` gives, up to the tolerance of the solvers.

    Raises `InputError` for a `C` that is not positive; for states of another shape or precision, or not finite; and for
    labels that are not one an example, not strings or integers, or of one class. Raises `InputTypeError` for labels without
    a length.
    """
    check_strength(C)
    if not isinstance(states, Tensor) or states.ndim != 3 or states.dtype not in (torch.float32, torch.float64):
        kind = getattr(states, "dtype", type(states).__name__)
        raise InputError(
            f"states={shown(states)} of type {kind}: expected a tensor [state, example, feature] in float32 or float64"
        )
    if not states.isfinite().all():
        raise InputError("states have numbers that are not finite: leave such examples out")
    classes, numbers = checked_classes(y, states.shape[1])
    # Squares of huge or tiny features overflow or vanish. A power of two brings them near 1 without rounding.
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
    parts = (solved, (mean * unit.double())[:, 0], (scale * unit.double())[:, 0])
    return tuple(
        LinearProbe.from_state({"kind": "logistic", "C": float(C), "classes_": list(classes), **_unstandardised(*each)})
        for each in zip(*(part.to("cpu").double().numpy() for part in parts), strict=True)
    )


def _unstandardised(solved: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> dict[str, np.ndarray]:
    """A solution for standardised features, in the units of the features as they came in."""
    weights = solved[:-1].T / scale
    return {"coef_": weights, "intercept_": solved[-1] - weights @ mean, "mean_": mean, "scale_": scale}


def logistic_loss(x: Tensor, y: Tensor, n_classes: int, C: float) -> Loss:
    """The loss of weights and intercepts `[state, feature + 1, class]`, intercepts last, and its gradient.

    `x` is [state, example, feature], `y` Int [example]. With two classes, the first class has score 0 and the parameters
    belong to the second. Intercepts are not regularised.
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
    """The parameters `[state, ...]` that minimise each state's smooth convex loss, by L-BFGS."""
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
        # A state that did not move says nothing of its curvature: its pair gets weight 0.
        steps = [*steps, (moved, turned, torch.where(curvature > 0, 1 / curvature, 0))][-_MEMORY:]
        at, value, gradient = new, new_value, new_gradient
        if not moved.any():  # in this precision no step leads downhill
            break
    return at


def downhill(gradient: Tensor, steps: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Newton's direction, with the curvature estimated from the last steps: the two-loop recursion of L-BFGS."""
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
    """Go along `way`, and halve a state's step until its loss falls enough; a state without such a step stays."""
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
    """The inner product of two parameters of each state, Float [state]."""
    return (a * b).flatten(1).sum(dim=1)


def _along(numbers: Tensor, like: Tensor) -> Tensor:
    """One number a state, with as many axes as `like`, for broadcasting."""
    return numbers.reshape(-1, *[1] * (like.ndim - 1))
