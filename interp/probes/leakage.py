"""Leakage: test examples that a probe has as good as seen in training, such as another question about the same picture.

Where a picture, and with it a label, is on both sides of a split, a probe can be right because it recognises the picture, and no
shuffle of the labels within a side shows that. Activations know which rows share a picture, and the split goes by these groups.
An array does not, so here distances are looked at, as the probe sees them: features standardised on the training examples.

The rule: **in data of any dimension from 1 on, a sphere of half the size holds at most half as many neighbours.** Pairs of a test
and a training example of one label stand apart from all others where for some distance *x*

1. pairs with distances of *x* to 2 *x* are at most a quarter of those up to *x*, and so many fewer than an equal number once in
   2,000 such draws at most (binomial);
2. pairs up to *x* are at most a tenth of all pairs: more of them are a structure of the label, not single pictures;
3. a tenth of the test examples or more are in such a pair.

Pairs of one label are compared, so clusters of classes do not count. Sub-types of a class that lie as far apart do, where there
are more than ten: a probe may know those by heart too. In designs where 3 to 36 examples share a picture, leakage is seen in
all of 20 to 40 draws where they differ by 0.01 of what pictures differ by, and up to 0.1 in 10 dimensions, 0.2 in 20 and 0.3 in
100; in 5 dimensions it is seen in 3 of 4 draws at 0.1 and in none at 0.2. So no note is no proof: pass `groups`. It is seen in
at most 2 of 40 draws where examples are independent (normal in 1 to 100 dimensions, exponential, lognormal, on a line), in
clusters by class, or a random walk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import binom
from torch import Tensor

_APART = 2.0
_BETWEEN = 0.25
_CHANCE = 5e-4
_MOST = 0.1  # of all pairs
_LEAST = 0.1  # of the test examples
_TESTED = 200  # test examples that are looked at
_NARROW = 64  # up to so many features distances are computed in float64
_AT_ONCE = 1000


def find_leaks(
    states: Any, numbers: np.ndarray, sides: tuple[np.ndarray, np.ndarray], known: np.ndarray | None, seed: int
) -> tuple[Int[np.ndarray, " example"] | None, tuple[str, ...]]:
    """What is on both sides of a split: the group of each example, None where nothing is seen, and notes of it.

    `known` are the groups that activations know of, None without any. Else those are groups that stand out by their distance.
    """
    torn = [] if known is None else np.intersect1d(*(known[side] for side in sides))
    near = near_rows(states, numbers, *sides, seed)
    notes = []
    if len(torn):
        notes.append(
            f"leakage: {len(torn)} pictures or prompts have examples on both sides of the split; leave groups= out, and see"
            " group_control"
        )
    if near is not None:
        notes.append(
            f"leakage at {near.where}: up to {near.share:.0%} of the test examples are far nearer to training examples of their"
            " label than others of that label; pass groups= (one picture, prompt or source a group), and see group_control"
        )
    if len(torn):
        return known, tuple(notes)
    return None if near is None else near_groups(states[near.state], sides[0], near.distance), tuple(notes)


def near_rows(states: Any, numbers: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int) -> NearRows | None:
    """The states at which test examples stand out as near to training examples of their label; None where there are none.

    >>> rng = np.random.default_rng(0)
    >>> picture = np.repeat(np.arange(50), 4)
    >>> states = (rng.normal(size=(50, 20))[picture] + 0.1 * rng.normal(size=(200, 20)))[None]
    >>> seen = near_rows(states, picture % 2, np.arange(0, 200, 2), np.arange(1, 200, 2), seed=0)
    >>> seen.states, round(seen.share, 2)
    ((0,), 1.0)

    `states` are Float [example, feature], one each; `numbers` the class of each example.
    """
    rng = np.random.default_rng([seed, 5])
    tested = test if len(test) <= _TESTED else np.sort(rng.choice(test, _TESTED, replace=False))
    found = {number: _gap(state, numbers, train, tested) for number, state in enumerate(states)}
    seen = {number: each for number, each in found.items() if each is not None}
    if not seen:
        return None
    most = max(seen, key=lambda number: seen[number][1])
    return NearRows(tuple(seen), most, *seen[most])


def near_groups(state: Any, train: np.ndarray, distance: float) -> Int[np.ndarray, " example"]:
    """The group of each example of a state: those that are at most so far apart are one, and what is joined to them."""
    x = _standardised(state, train, np.arange(len(state)))
    one, other = [], []
    for first in range(0, len(x), _AT_ONCE):
        near = (_distances(x[first : first + _AT_ONCE], x) <= distance).nonzero()
        one.append(near[:, 0].cpu() + first)
        other.append(near[:, 1].cpu())
    ends = (torch.cat(one).numpy(), torch.cat(other).numpy())
    return connected_components(coo_array((np.ones(len(ends[0])), ends), shape=(len(x),) * 2), directed=False)[1]


def _gap(state: Any, numbers: np.ndarray, train: np.ndarray, tested: np.ndarray) -> tuple[float, float] | None:
    """The largest distance that the rule of this module finds, and the share of the tested examples with a pair so near."""
    known, asked = _standardised(state, train, np.concatenate([train, tested])).tensor_split([len(train)])
    every, nearest = [], []
    for number in np.unique(numbers[tested]):
        of_class = [torch.from_numpy(numbers[rows] == number).to(known.device) for rows in (tested, train)]
        distances = _distances(asked[of_class[0]], known[of_class[1]]).cpu().numpy()
        every.append(distances.ravel())
        nearest.append(distances.min(axis=1))
    pairs, first = np.sort(np.concatenate(every)), np.sort(np.concatenate(nearest))
    x = np.unique(pairs[: int(_MOST * len(pairs))])
    near = np.searchsorted(pairs, x, side="right")
    between = np.searchsorted(pairs, _APART * x, side="right") - near
    share = np.searchsorted(first, x, side="right") / len(first)
    fits = (between <= _BETWEEN * near) & (near <= _MOST * len(pairs)) & (share >= _LEAST)
    fits[fits] = binom.sf(near[fits] - 1, (near + between)[fits], 0.5) <= _CHANCE
    return (float(x[fits][-1]), float(share[fits][-1])) if fits.any() else None


def _standardised(state: Any, train: np.ndarray, rows: np.ndarray) -> Float[Tensor, "row feature"]:
    """Rows of a state in units of its spread over training examples, some of them where there are many."""
    state = torch.as_tensor(state)
    some = state[train[:: -(-len(train) // _TESTED)]].double()  # no square overflows
    mean = some.mean(dim=0)
    spread = (some - mean).square().mean(dim=0).sqrt()  # twice as fast as torch.std
    spread = torch.where(spread > 0, spread, 1)
    part = state[rows].sub_(mean.to(state.dtype)).div_(spread.to(state.dtype))
    return part.double() if part.shape[1] <= _NARROW else part.float()


def _distances(a: Float[Tensor, "a feature"], b: Float[Tensor, "b feature"]) -> Float[Tensor, "a b"]:
    wide = a.shape[1] > _NARROW
    return torch.cdist(a, b, compute_mode="use_mm_for_euclid_dist" if wide else "donot_use_mm_for_euclid_dist")


@dataclass(frozen=True)
class NearRows:
    """The `states` at which test examples stand out as near to training examples; at `state`, where most do, a `share` of them
    is at most `distance` from one of their label, in units of the features' spread."""

    states: tuple[int, ...]
    state: int
    distance: float
    share: float

    @property
    def where(self) -> str:
        """The states, in words."""
        few = ", ".join(map(str, self.states[:3]))
        return (
            f"state {few}"
            if len(self.states) == 1
            else f"{len(self.states)} states ({few}{', ...' * (len(self.states) > 3)})"
        )
