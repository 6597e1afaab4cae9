"""Which features of one representation predict the neighbours in another?

Of the thousands of features of a layer, few may decide which examples are near in a caption's space. `learn_weights` looks
for weights of x's features with which x predicts y best, by descending the differentiable information imbalance
(`interp.geometry.imbalance`; Wild et al. 2025). The weights start at 1 over each feature's standard deviation, so that
units do not matter, and only their proportions count.

More weights fit more noise: judge a fit by examples that took no part in it. So the result has the imbalance on held-out
examples too, beside that of the first weights and that of fits to shuffled rows of y.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import checked_int, checked_number
from interp.errors import InputError
from interp.geometry.clouds import Cloud, as_pair, checked_within
from interp.geometry.copies import first_equal
from interp.geometry.imbalance import default_k, rank_matrix, soft_imbalance
from interp.geometry.outlying import notes_of_outlying
from interp.progress import Bar, progress_bar
from interp.provenance import Provenance
from interp.results import Result
from interp.statistics.half_samples import generator


@dataclass(frozen=True, eq=False)
class FeatureWeights(Result):
    """The weights with which x predicts y best, and what they achieve: `weights[feature]` of features in units of their
    standard deviation, the largest 1.

    `path[step]` is the differentiable imbalance on the examples of the fit. On held-out examples: `held_out` with the
    weights, `start` with the weights before the fit, `shuffled[shuffle]` with weights fitted to rows of y in another order,
    one of which may do as well by luck.
    """

    weights: Float[Tensor, " feature"]
    path: Float[Tensor, " step"]
    start: float
    held_out: float
    shuffled: Float[Tensor, " shuffle"]
    n: int

    def to_frame(self) -> pd.DataFrame:
        """One row for each feature, the heaviest first: feature, weight."""
        order = self.weights.argsort(descending=True)
        return pd.DataFrame({"feature": order.numpy(), "weight": self.weights[order].numpy()})


@torch.inference_mode(False)  # the caller may be in it, and a tensor that is made in it has no gradient
def learn_weights(
    x: Cloud,
    y: Cloud,
    steps: int = 200,
    learning_rate: float = 0.05,
    penalty: float = 0.0,
    k: int | None = None,
    factor: float = 0.1,
    held_out: float = 0.3,
    shuffles: int = 3,
    seed: int = 0,
    *,
    progress: bool = True,
) -> FeatureWeights:
    """The weights of the features of `x` that minimise its differentiable imbalance to `y`, rows paired.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(300, 5))
    >>> weights = learn_weights(x, x[:, [1, 3]], steps=60)
    >>> sorted(weights.to_frame().feature[:2].tolist())
    [1, 3]

    Adam over `steps`, with a learning rate that falls to 0 as a cosine. The objective adds `penalty` times the sum of the
    weights over their largest: a larger penalty leaves fewer features (an L1 penalty). `held_out` is the share of the
    examples, drawn with `seed`, that takes no part in the fit. The fit is repeated on `shuffles` orders of the rows of `y`.
    It needs memory for a few tables of n x n in float64: use a few thousand examples. A long fit shows its progress on a
    terminal or in a notebook; ``progress=False`` hides it.

    Raises the errors of `differentiable_imbalance`, and `InputError` for settings out of range and a cloud whose features
    are all constant; constant features have weight 0.
    """
    first, second = as_pair(x, y)
    fit = _Fit(checked_int(steps, "steps", least=1), learning_rate, penalty, k, factor)
    checked_int(shuffles, "shuffles", least=1)
    checked_within(held_out, "held_out", "a number above 0 and below 1", high=1.0)
    rng = generator(seed)
    order = torch.from_numpy(rng.permutation(len(first))).to(first.device)
    size = round(len(first) * (1 - held_out))
    if min(size, len(first) - size) < 4:
        raise InputError(
            f"{len(first)} examples leave {len(first) - size} held out: pass more, each side needs 4 or more"
        )
    train, test = order[:size], order[size:]
    notes = notes_of_outlying(x=first, y=second)
    first = first[first_equal(first)].double()
    spread = first[train].std(dim=0)
    if not bool((spread > 0).any()):
        raise InputError(f"all {first.shape[1]} features of x are constant: expected one or more that vary")
    start = torch.where(spread > 0, 1 / spread, 0.0)
    orders = [train, *(train[torch.from_numpy(rng.permutation(size)).to(train.device)] for _ in range(shuffles))]
    with progress_bar("learning weights", fit.steps * len(orders), "steps", progress) as bar:
        (weights, path), *null = (fit.weights(first[train], second[rows], start, bar) for rows in orders)
    ranks = rank_matrix(second[test])
    before, after, *shuffled = (
        float(fit.imbalance(first[test] * each, ranks)) for each in (start, weights, *(each for each, _ in null))
    )
    return FeatureWeights(
        (weights * spread / (weights * spread).max()).cpu(),
        path,
        before,
        after,
        torch.tensor(shuffled, dtype=torch.float64),
        len(first),
        provenance=Provenance(seed=seed, notes=notes),
    )


@dataclass(frozen=True)
class _Fit:
    """The settings of a fit."""

    steps: int
    rate: float
    penalty: float
    k: int | None
    factor: float

    def __post_init__(self) -> None:
        checked_within(self.rate, "learning_rate", "a number above 0")
        if checked_number(self.penalty, "penalty") < 0:
            raise InputError(f"penalty={self.penalty!r}: expected a number of 0 or more")

    def imbalance(self, x: Tensor, ranks: Tensor) -> Tensor:
        """The differentiable imbalance from a cloud to ranks."""
        return soft_imbalance(x, ranks, default_k(len(x)) if self.k is None else self.k, self.factor)

    @torch.enable_grad()  # also where the caller has turned gradients off
    def weights(self, x: Tensor, y: Tensor, start: Tensor, bar: Bar) -> tuple[Tensor, Tensor]:
        """The weights at the end, and the imbalance at each step."""
        ranks, scaled = rank_matrix(y), x * start
        logs = torch.zeros_like(start, requires_grad=True)  # weights are positive, and only their proportions count
        optimiser = torch.optim.Adam([logs], lr=self.rate)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
        path = []
        for _ in range(self.steps):
            optimiser.zero_grad()
            weights = logs.exp()
            loss = self.imbalance(scaled * weights, ranks)
            path.append(float(loss.detach()))
            (loss + self.penalty * weights.sum() / weights.max()).backward()
            optimiser.step()
            decay.step()
            bar.advance()
        return start * logs.detach().exp(), torch.tensor(path, dtype=torch.float64)
