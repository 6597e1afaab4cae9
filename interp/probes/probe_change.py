"""Two sets of probes on the same test examples, compared example by example.

Two checkpoints that answer the same examples are right and wrong together, so the intervals of two accuracies say little about
their difference. Here the examples that only one of them has right are counted: the exact McNemar test, or signs of whole
groups (`interp.statistics.paired`).
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.results import Result
from interp.statistics.corrections import holm
from interp.statistics.paired import paired_change


def compare_hits(
    before: Bool[Tensor, "state test"],
    after: Bool[Tensor, "state test"],
    groups: Int[Tensor, " test"] | None,
    seed: int,
) -> ProbeChange:
    """The change of the accuracy at each state, from answers to the same examples."""
    change = paired_change(before.T, after.T, None if groups is None else groups.numpy(), seed)
    parts = {name: getattr(change, name) for name in ("before", "after", "difference", "low", "high", "p")}
    return ProbeChange(**parts, p_holm=torch.from_numpy(holm(change.p)), n=change.n)


@dataclass(frozen=True, eq=False)
class ProbeChange(Result):
    """The accuracies `before` and `after` at each state, their `difference` with its 95 % interval `low` to `high`, its `p`, and
    `p_holm`, corrected for all states. `n` is how many test groups (examples, without groups) it comes from."""

    before: Float[Tensor, " state"]
    after: Float[Tensor, " state"]
    difference: Float[Tensor, " state"]
    low: Float[Tensor, " state"]
    high: Float[Tensor, " state"]
    p: Float[Tensor, " state"]
    p_holm: Float[Tensor, " state"]
    n: int

    def to_frame(self) -> pd.DataFrame:
        """One row a state: state, before, after, difference and its interval, p, p_holm."""
        names = ("before", "after", "difference", "low", "high", "p", "p_holm")
        return pd.DataFrame({"state": range(len(self.p)), **{name: getattr(self, name).numpy() for name in names}})
