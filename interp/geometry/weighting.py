"""Which features of one representation carry what another knows?

Of the thousands of features of a layer, few may decide who is near in a caption's. `learn_weights` looks for weights of
x's features with which x predicts y best, by descending the differentiable information imbalance
(`interp.geometry.imbalance`; Wild et al. 2025). The weights start at 1 over each feature's standard deviation, so that a
unit has no part in it, and only their proportions count.

More weights fit more noise: what was found is worth what it says of examples it was not fitted to. So the imbalance is
given on held-out examples too, with the weights it began with and with rows of y that were shuffled before the fit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.geometry.clouds import Cloud, as_pair
from interp.geometry.imbalance import rank_matrix, soft_imbalance
from interp.provenance import Provenance
from interp.results import Result
from interp.statistics.half_samples import generator


@dataclass(frozen=True, eq=False)
class FeatureWeights(Result):
    """The weights with which x predicts y best, and what they achieve: `weights[feature]` of features in units of their
    standard deviation, the largest 1.

    `path[step]` is the differentiable imbalance on the examples it was fitted to. On held-out ones: `held_out` with the
    weights, `start` with those it began with, `shuffled[shuffle]` with weights fitted to rows of y in another order: by luck
    one of them may do as well.
    """

    weights: Float[Tensor, " feature"]
    path: Float[Tensor, " step"]
    start: float
    held_out: float
    shuffled: Float[Tensor, " shuffle"]
    n: int

    def to_frame(self) -> pd.DataFrame:
        """One row a feature, the heaviest first: feature, weight."""
        order = self.weights.argsort(descending=True)
        return pd.DataFrame({"feature": order.numpy(), "weight": self.weights[order].numpy()})


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
) -> FeatureWeights:
    """The weights of the features of `x` that minimise its differentiable imbalance to `y`, rows paired.

    Adam over `steps`, with a learning rate that falls to 0 as a cosine. `penalty` times the sum of the weights, over
    their largest, is added to what is minimised: more of it leaves fewer features (an L1 penalty). `held_out` of the
    examples, drawn with `seed`, take no part in the fit. The fit is repeated on `shuffles` orders of the rows of `y`.
    Holds n x n numbers of float64 a few times: a few thousand examples.

    Raises what `differentiable_imbalance` raises, and `InputError` for settings out of range and a cloud whose features
    are all constant; constant features get weight 0.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(300, 5))
    >>> found = learn_weights(x, x[:, [1, 3]], steps=60)
    >>> sorted(found.to_frame().feature[:2].tolist())
    [1, 3]
    """
    first, second = as_pair(x, y)
    _check(steps, learning_rate, penalty, held_out, shuffles)
    rng = generator(seed)
    order = torch.from_numpy(rng.permutation(len(first))).to(first.device)
    kept = round(len(first) * (1 - held_out))
    if min(kept, len(first) - kept) < 4:
        raise InputError(
            f"{len(first)} examples leave {len(first) - kept} held out: pass more, 4 or more stand on each side"
        )
    train, test = order[:kept], order[kept:]
    first = first.double()
    spread = first[train].std(dim=0)
    if not bool((spread > 0).any()):
        raise InputError(f"all {first.shape[1]} features of x are constant: there is nothing to weigh")
    start = torch.where(spread > 0, 1 / spread, 0.0)
    rows = _neighbours(k, len(train)), _neighbours(k, len(test))
    weights, path = _fit(first[train], second[train], start, steps, learning_rate, penalty, rows[0], factor)
    orders = [train[torch.from_numpy(rng.permutation(kept)).to(train.device)] for _ in range(shuffles)]
    chance = [
        _fit(first[train], second[mixed], start, steps, learning_rate, penalty, rows[0], factor)[0] for mixed in orders
    ]
    ranks = rank_matrix(second[test])
    begun, found, *shuffled = (
        float(soft_imbalance(first[test] * each, ranks, rows[1], factor)) for each in (start, weights, *chance)
    )
    return FeatureWeights(
        (weights * spread / (weights * spread).max()).cpu(),
        path,
        begun,
        found,
        torch.tensor(shuffled, dtype=torch.float64),
        len(first),
        provenance=Provenance(seed=seed),
    )


def _check(steps: int, learning_rate: float, penalty: float, held_out: float, shuffles: int) -> None:
    for name, count in (("steps", steps), ("shuffles", shuffles)):
        if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
            raise InputError(f"{name}={count!r}: expected an integer of 1 or more")
    if isinstance(penalty, bool) or not isinstance(penalty, int | float | np.number) or not 0 <= penalty < float("inf"):
        raise InputError(f"penalty={penalty!r}: expected a number of 0 or more")
    for name, value, low, high in (("learning_rate", learning_rate, 0, float("inf")), ("held_out", held_out, 0, 1)):
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not low < value < high:
            raise InputError(f"{name}={value!r}: expected a number above {low} and below {high}")


def _neighbours(k: int | None, n: int) -> int:
    return max(1, min(100, round(n / 20), n - 1)) if k is None else k


@torch.enable_grad()  # also where the caller has turned gradients off
def _fit(
    x: Tensor, y: Tensor, start: Tensor, steps: int, rate: float, penalty: float, k: int, factor: float
) -> tuple[Tensor, Tensor]:
    """The weights at the end, and the imbalance at each step."""
    ranks = rank_matrix(y)
    scaled = x * start
    logs = torch.zeros_like(start, requires_grad=True)  # weights are positive, and only their proportions count
    optimiser = torch.optim.Adam([logs], lr=rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    path = []
    for _ in range(steps):
        optimiser.zero_grad()
        weights = logs.exp()
        loss = soft_imbalance(scaled * weights, ranks, k, factor)
        path.append(float(loss.detach()))
        (loss + penalty * weights.sum() / weights.max()).backward()
        optimiser.step()
        decay.step()
    return start * logs.detach().exp(), torch.tensor(path, dtype=torch.float64)
