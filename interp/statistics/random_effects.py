"""The mean over models, such as toys of five seeds: every model has its own true value, and each is measured with an error.

    value_i = mean + u_i + e_i,   u_i of variance tau^2 (between models),   e_i of the variance error_i^2 (of measuring)

The mean of models is a number about models, and other models of the same kind would have another one. Its error is made of both
parts, so it is read from how much the values differ, not from the errors alone.

- *tau^2* solves ``Q(tau^2) = n - 1``, where ``Q(t) = sum((value - mean)^2 / (error^2 + t))`` and the mean has the weights
  ``1 / (error^2 + t)`` (Paule and Mandel 1982); 0 where Q(0) is smaller. Its 95 % interval solves the same for the quantiles of
  chi^2 with n - 1 degrees of freedom (Q-profile, Viechtbauer 2007). Cochran's test that all models have one true value is
  ``p = P(chi^2 > Q(0))``.
- *The mean's interval* is that of Hartung, Knapp, Sidik and Jonkman: Student's t with n - 1 degrees of freedom, error
  ``sqrt(Q(tau^2) / (n - 1) / sum(weights))``. With equal errors it is the plain t interval of the n values. Values that agree by
  luck would make it nearly a point, so it reaches at least as far as 1.96 errors of models that are all alike (Wiksten, Rücker
  and Schwarzer 2016).
- *The next model* would be measured, with an error like these, between `next_low` and `next_high`:
  ``mean -+ t sqrt(Q(tau^2) / (n - 1) (tau^2 + mean(error^2) + 1 / sum(weights)))``, and at least as far as above. The usual
  prediction interval (Higgins, Thompson and Spiegelhalter 2009) is for the *true* value of the next model. With five
  models whose tau is as large as their errors it holds that in .88 of samples, since tau^2 is then hardly known; what is measured
  depends on ``tau^2 + error^2`` alone, and is held in .95.

Errors must be independent: each model has rows of its own. Models that were measured on the same rows share a part of their
errors, which no spread of models shows. `shared` is its size. It is added to the error of the mean, whose t then has
Satterthwaite's degrees of freedom; the next model on the same rows shares it too, so its bounds are without it.

Simulated coverage of the mean with 5 models (tau from 0 to 5 errors): equal errors .95 to .98, errors of 1 to 4 .93 to .98; one
model with a quarter of the others' error .89 where tau is half of theirs or less. docs/calibration.md has some designs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from interp.displays import Display
from interp.errors import InputError, shown
from interp.statistics.half_samples import NORMAL_95

_ROUNDING = 1e-12  # relative to the values
_HALVINGS = 80


def random_effects(
    values: Shaped[Tensor, "model ..."],
    errors: Shaped[Tensor, ...],
    shared: Shaped[Tensor, ...] | float = 0.0,
) -> RandomEffects:
    """The mean over models of values with standard errors, for each cell, with its 95 % bounds and how far models differ.

    >>> found = random_effects(torch.tensor([0.90, 0.94, 0.96, 0.91, 0.99]), torch.full((5,), 0.01))
    >>> f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}], models differ with p {found.p:.0g}"
    '0.94 [0.89, 0.99], models differ with p 5e-11'
    >>> f"{found.tau2.sqrt():.3f}"  # equal errors: the variance of the values less that of measuring
    '0.035'

    `shared` is the standard error that all models have in common, one number or one for each cell; 0 where each has rows of its
    own. Bounds and p are NaN for one model, and all is NaN in a cell where a value or an error is.

    Raises `InputError` where shapes differ or there is no model, and for an error below 0.
    """
    if values.shape != errors.shape or not values.ndim or not len(values):
        raise InputError(
            f"values have shape {tuple(values.shape)} and errors {tuple(errors.shape)}: expected one of each for a model and cell"
        )
    common = torch.as_tensor(shared, dtype=torch.float64)
    for each, name in ((errors, "errors"), (common, "shared")):
        if (each < 0).any() or each.isinf().any():
            raise InputError(f"{name}={shown(each.flatten().tolist())}: expected finite standard errors, 0 or more")
    shape, n = values.shape[1:], len(values)
    cells = _Cells(*(each.detach().cpu().double().reshape(n, -1) for each in (values, errors)))
    common = common.expand(shape).reshape(-1).square()
    numbers = [each.where(~cells.is_unknown, torch.nan).reshape(shape) for each in _numbers(cells, common)]
    return RandomEffects(*numbers, n=n)  # type: ignore[misc,arg-type]


def _numbers(cells: _Cells, shared: Float[Tensor, " cell"]) -> tuple[Tensor, ...]:
    """What `RandomEffects` holds, in its order."""
    from scipy.special import chdtrc, chdtri

    freedom = len(cells.values) - 1
    if not freedom:
        return cells.values[0], *[torch.full_like(cells.values[0], torch.nan)] * 8
    tau2, *of_tau = (cells.tau2(target) for target in (freedom, *chdtri(freedom, [0.025, 0.975]).tolist()))
    q, mean, weights = cells.q(tau2)
    scale, alike = q / freedom, 1 / weights.sum(dim=0)
    parts = (alike, shared), (tau2 + cells.variances.mean(dim=0) + alike, torch.zeros_like(shared))
    bounds = [mean + side * _reach(scale, *part, freedom) for part in parts for side in (-1, 1)]
    return mean, *bounds, tau2, *of_tau, torch.as_tensor(chdtrc(freedom, cells.q(torch.zeros_like(tau2))[0].numpy()))


def _reach(
    scale: Float[Tensor, " cell"], spread: Float[Tensor, " cell"], shared: Float[Tensor, " cell"], freedom: int
) -> Float[Tensor, " cell"]:
    """How far bounds are from the mean: Student's t, whose freedom is Satterthwaite's where there is a shared error."""
    from scipy.special import stdtrit

    between = scale * spread
    both = between + shared
    quantile = torch.as_tensor(
        stdtrit((freedom * (both / between).square()).clamp(max=1e9).nan_to_num(1e9).numpy(), 0.975)
    )
    return torch.maximum(quantile * both.sqrt(), NORMAL_95 * (spread + shared).sqrt())


class _Cells:
    """Values with their variances, Float [model, cell]; `is_unknown` says in which cells one of them is NaN."""

    def __init__(self, values: Float[Tensor, "model cell"], errors: Float[Tensor, "model cell"]):
        self.is_unknown = (values + errors).isnan().any(dim=0)
        self.values = values.masked_fill(self.is_unknown, 0)
        variances = errors.masked_fill(self.is_unknown, 0).square()
        self.rounding = _ROUNDING * self.values.abs().amax(dim=0)
        self.squares = self._residuals(self.values.mean(dim=0)).square().sum(dim=0)
        # A value without an error would have all the weight.
        least = _ROUNDING * torch.maximum(self.squares, variances.amax(dim=0))
        self.variances = torch.maximum(variances, least.clamp(min=1e-150))

    def _residuals(self, mean: Float[Tensor, " cell"]) -> Float[Tensor, "model cell"]:
        residuals = self.values - mean
        return residuals.where(residuals.abs() > self.rounding, 0)

    def q(self, tau2: Float[Tensor, " cell"]) -> tuple[Tensor, Tensor, Tensor]:
        """Q, the weighted mean and its weights, if this were the variance between models."""
        weights = 1 / (self.variances + tau2)
        mean = (weights * self.values).sum(dim=0) / weights.sum(dim=0)
        return (weights * self._residuals(mean).square()).sum(dim=0), mean, weights

    def tau2(self, target: float) -> Float[Tensor, " cell"]:
        """The variance between models at which Q is `target`, by halving; 0 where Q is smaller without any."""
        low, high = torch.zeros_like(self.squares), self.squares / target  # Q(t) < squares / t
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            is_more = self.q(middle)[0] > target
            low, high = torch.where(is_more, middle, low), torch.where(is_more, high, middle)
        return torch.where(self.q(torch.zeros_like(low))[0] > target, high, 0)


@dataclass(frozen=True)
class RandomEffects(Display):
    """A mean over `n` models for each cell, Float [...]: `mean` with its 95 % bounds `low` and `high`; the bounds `next_low` and
    `next_high` of what would be measured on the next model; `tau2`, the variance between models, with its bounds; and the `p`
    that all models have one true value."""

    mean: Float[Tensor, ...]
    low: Float[Tensor, ...]
    high: Float[Tensor, ...]
    next_low: Float[Tensor, ...]
    next_high: Float[Tensor, ...]
    tau2: Float[Tensor, ...]
    tau2_low: Float[Tensor, ...]
    tau2_high: Float[Tensor, ...]
    p: Float[Tensor, ...]
    n: int
