"""The result of probing every layer: accuracies with their controls, and the directions that the probes read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.arguments import checked_int
from interp.errors import InputError, InputTypeError, shown
from interp.probes.best_state import BestState, judge_best
from interp.probes.linear import LinearProbe
from interp.probes.probe_change import ProbeChange, compare_hits
from interp.results import Result
from interp.statistics.corrections import holm

_COLUMNS = (
    "accuracy",
    "low",
    "high",
    "p",
    "p_family",
    "p_holm",
    "control",
    "group_control",
    "control_task",
    "selectivity",
)
_AGAIN = "it is of an earlier version, call probe_layers again"
TRANSFER = ("transfer", "transfer_low", "transfer_high")


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and one == other


@dataclass(frozen=True, eq=False)
class ProbeResult(Result):
    """A probe at every state: `accuracy[state]` on `n_test` examples, its 95 % interval `low` to `high`, its controls.

    `chance` is the accuracy of the best constant answer on the test examples. `p[state]` is the share of `permutations` of
    the test labels with which the probe's answers agree as often, `p_family[state]` the share in which those of *any* state
    do, each measured by its own permutations: the chance that one of the states has so small a p by luck.

    `control[state]` is the accuracy on labels shuffled within each side of the split, `group_control[state]` on labels shuffled
    by group over both sides, `control_task[state]` on labels drawn for each type, `transfer[state]` that on the other modality's
    test examples; each is None where it was not asked for, `group_control` also where nothing belongs together.

    `probes` are the fitted ones, of states after `preprocess`, `classes` their labels, `train_rows` and `test_rows` the examples
    of each side. `answers[state, test]` and `transfer_answers` are the numbers of the classes that the probes name,
    `test_labels` those of the true ones, `test_groups` the group of each test example (None where each is its own).
    """

    accuracy: Float[Tensor, " state"]
    low: Float[Tensor, " state"]
    high: Float[Tensor, " state"]
    control: Float[Tensor, " state"] | None
    chance: float
    probes: tuple[LinearProbe, ...]
    classes: tuple[str | int, ...]
    train_rows: Int[Tensor, " train"]
    test_rows: Int[Tensor, " test"]
    transfer: Float[Tensor, " state"] | None = None
    transfer_low: Float[Tensor, " state"] | None = None
    transfer_high: Float[Tensor, " state"] | None = None
    p: Float[Tensor, " state"] | None = None
    permutations: int = 0
    control_task: Float[Tensor, " state"] | None = None
    preprocess: str = "none"
    p_family: Float[Tensor, " state"] | None = None
    group_control: Float[Tensor, " state"] | None = None
    answers: Int[Tensor, "state test"] | None = None
    transfer_answers: Int[Tensor, "state test"] | None = None
    test_labels: Int[Tensor, " test"] | None = None
    test_groups: Int[Tensor, " test"] | None = None

    @property
    def n_train(self) -> int:
        """How many examples the probes were trained on."""
        return len(self.train_rows)

    @property
    def n_test(self) -> int:
        """How many examples they were tested on."""
        return len(self.test_rows)

    @property
    def selectivity(self) -> Float[Tensor, " state"] | None:
        """The accuracy less that of the control task: what memorising types does not explain (None without types)."""
        return None if self.control_task is None else self.accuracy - self.control_task

    @property
    def p_holm(self) -> Float[Tensor, " state"] | None:
        """`p`, corrected for the number of states by Holm's method; `p_family` needs smaller effects where states are alike."""
        return None if self.p is None else torch.from_numpy(holm(self.p))

    @property
    def hits(self) -> Bool[Tensor, "state test"] | None:
        """Whether the probe of each state is right about each test example; None in files of before."""
        return None if self.answers is None or self.test_labels is None else self.answers == self.test_labels

    def best_state(self) -> BestState:
        """The state with the highest accuracy on a random half of the test groups, and its accuracy on the other half.

        >>> from interp.probes import probe_layers
        >>> states = np.random.default_rng(0).normal(size=(3, 300, 4))
        >>> best = probe_layers(states, np.where(states[1, :, 0] > 0, "right", "left")).best_state()
        >>> best.state, best.accuracy > 0.9, best.n
        (1, True, 45)

        The highest of many accuracies is too high by luck. This one has not been chosen by the examples that it is measured on,
        so it is unbiased, and its interval and p hold. Raises `InputError` for fewer than four test groups.
        """
        if self.answers is None or self.test_labels is None:
            raise InputError(f"this result has no answers: {_AGAIN}")
        return judge_best(self.answers, self.test_labels, self.test_groups, self.permutations, self._seed)

    def change(self, other: ProbeResult) -> ProbeChange:
        """How the accuracy of `other`, such as another checkpoint's, differs at each state, on the same test examples.

        >>> from interp.probes import probe_layers
        >>> before = np.random.default_rng(0).normal(size=(2, 300, 4))
        >>> labels, after = np.arange(300) % 2, before.copy()
        >>> after[1, :, 0] += 4 * labels  # written at state 1 alone
        >>> (probe_layers(before, labels).change(probe_layers(after, labels)).p_holm < 0.05).tolist()
        [False, True]

        Right and wrong answers are compared example by example, or by whole groups. Raises `InputTypeError` for anything but a
        `ProbeResult`, `InputError` for one of other states, test examples, labels or groups.
        """
        if not isinstance(other, ProbeResult):
            raise InputTypeError(f"other={shown(other)}: expected a ProbeResult")
        mine, theirs = self.hits, other.hits
        if mine is None or theirs is None:
            raise InputError(f"{'this' if mine is None else 'other'} result has no answers: {_AGAIN}")
        if len(mine) != len(theirs):
            raise InputError(f"other has {len(theirs)} states, this result {len(mine)}: expected as many")
        for name in ("test_rows", "classes", "test_labels", "test_groups"):
            if not _equal(getattr(self, name), getattr(other, name)):
                raise InputError(
                    f"other has other {name.replace('_', ' ')}: expected probes of the same examples, labels and groups, of one"
                    " seed"
                )
        return compare_hits(mine, theirs, self.test_groups, self._seed)

    def transfer_change(self) -> ProbeChange:
        """How the accuracy on the other modality differs from that on the probes' own, on the same test examples.

        Raises `InputError` for a result without transfer.
        """
        mine = self.hits
        if mine is None or self.transfer_answers is None or self.test_labels is None:
            raise InputError("this result has no answers to another modality: pass transfer= to probe_layers")
        return compare_hits(mine, self.transfer_answers == self.test_labels, self.test_groups, self._seed)

    @property
    def _seed(self) -> int:
        return self.provenance.seed or 0

    def direction(self, state: int, label: str | int) -> Float[Tensor, " feature"]:
        """The direction in which the probe of a state reads a class, of length 1, in float32.

        >>> from interp.probes import probe_layers
        >>> states = np.random.default_rng(0).normal(size=(1, 300, 4))
        >>> result = probe_layers(states, np.where(states[0, :, 1] > 0, "right", "left"))
        >>> int(result.direction(0, "right").argmax()), int(result.direction(0, "left").argmin())
        (1, 1)

        Along it the score of `label` rises fastest above the mean score of all classes. It is in the model's own space:
        standardisation is undone. The directions of two classes are opposite. Its length is 1, so the `scale` of
        `Steer` is a length in units of the states. Once the directions of all classes are projected out, the
        probe gives every example the same scores.

        This is what the probe *reads*. The way in which states of the class differ from others may be another direction:
        the difference of means. Raises `InputError` for an unknown state or label, for a probe without a direction, and for
        probes of whitened states.
        """
        if self.preprocess == "whiten":
            raise InputError(
                "preprocess='whiten': the probes read components, expected one of the other ways for a direction"
            )
        number = checked_int(state, "state", -len(self.probes), len(self.probes) - 1)
        if label not in self.classes:
            raise InputError(f"label={label!r} is not a class of this probe: use one of {self.classes!r}")
        weights = self.probes[number].coef_
        if len(self.classes) == 2:
            weights = np.concatenate([-weights, weights])
        direction = weights[self.classes.index(label)] - weights.mean(axis=0)
        length = np.linalg.norm(direction)
        if length == 0:
            raise InputError(f"the probe of state {number} has the same scores for all classes: it has no direction")
        return torch.from_numpy(direction / length).float()

    def to_frame(self) -> pd.DataFrame:
        """One row a state: state, accuracy and its interval, p of the state alone and among all (by shared permutations and by
        Holm), controls, transfer and its interval, chance; NaN for None."""
        absent = torch.full_like(self.accuracy, torch.nan)
        columns = {name: getattr(self, name) for name in (*_COLUMNS, *TRANSFER)}
        numbers = {name: (absent if column is None else column).numpy() for name, column in columns.items()}
        return pd.DataFrame({"state": range(len(absent)), **numbers, "chance": self.chance})
