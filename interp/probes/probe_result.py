"""The result of probing every layer: accuracies with their controls, and the directions that the probes read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.arguments import checked_int
from interp.errors import InputError
from interp.probes.linear import LinearProbe
from interp.results import Result

_COLUMNS = ("accuracy", "low", "high", "p", "control", "control_task", "selectivity")
TRANSFER = ("transfer", "transfer_low", "transfer_high")


@dataclass(frozen=True, eq=False)
class ProbeResult(Result):
    """A probe at every state: `accuracy[state]` on `n_test` examples, its 95 % interval `low` to `high`, its controls.

    `chance` is the accuracy of the best constant answer on the test examples. `p[state]` is the share of `permutations` of
    the test labels with which the probe's answers agree as often. `control[state]` is the accuracy on shuffled labels,
    `control_task[state]` that on labels drawn for each type, `transfer[state]` that on the other modality's test examples;
    each is None where it was not asked for. `probes` are the fitted ones, of states after `preprocess`, `classes` their
    labels, `train_rows` and `test_rows` the examples of each side.
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
        """One row a state: state, accuracy and its interval, p, controls, transfer and its interval, chance; NaN for None."""
        absent = torch.full_like(self.accuracy, torch.nan)
        columns = {name: getattr(self, name) for name in (*_COLUMNS, *TRANSFER)}
        numbers = {name: (absent if column is None else column).numpy() for name, column in columns.items()}
        return pd.DataFrame({"state": range(len(absent)), **numbers, "chance": self.chance})
