"""What a training did: what was trained, the loss of each step, and what the steps cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.results import Result
from interp.tuning.step_costs import PHASES

if TYPE_CHECKING:
    from interp.models import VLM


@dataclass(frozen=True, eq=False)
class TuneResult(Result):
    """The training of some parts of a model: `vlm` is the tuned one, which `save` leaves out.

    Of each step, `loss[step]` is the mean over its answer tokens (with `extra_loss[step]` in it, 0 without one), `rate[step]` the
    learning rate and `seconds[step, phase]` the wall-clock time of the forward pass, the backward pass and the optimiser (with
    clipping and schedule), without the preparation of data. The first step is counted and not timed: its seconds are NaN.

    `flops` are the operations of the first step in all processes, forward and backward, two for each multiplication with its
    addition. `gradient_bytes`, `optimizer_bytes` and `activation_bytes` (what the forward pass of one batch keeps for its
    backward pass) are measured there on the tensors of one process. `peak_bytes` is the most memory of the GPU in use, NaN on
    a CPU.

    `trained` are the names of the trained parameters (with LoRA, of adapters), `trained_parameters` and `frozen_parameters` how
    many numbers they and the others hold. `hashes_before` and `hashes_after` have a SHA-256 of each frozen tensor, of the given
    model and of the tuned one, by name, and `unchanged` says whether they are equal. `rows` were there to train on; of those
    that were read `cut_off` lost a part of their answers to the length limit; `skipped` could not be used.
    """

    layers: tuple[int, ...]
    trained: tuple[str, ...]
    trained_parameters: int
    frozen_parameters: int
    hashes_before: dict[str, str]
    hashes_after: dict[str, str]
    loss: Float[Tensor, " step"]
    extra_loss: Float[Tensor, " step"]
    rate: Float[Tensor, " step"]
    seconds: Float[Tensor, "step phase"]
    flops: float
    gradient_bytes: float
    optimizer_bytes: float
    activation_bytes: float
    peak_bytes: float
    rows: int
    cut_off: int
    skipped: int
    vlm: VLM | None = field(default=None, repr=False, compare=False, metadata={"saved": False})

    def __post_init__(self) -> None:
        steps = len(self.loss)
        shapes = [tuple(each.shape) for each in (self.loss, self.extra_loss, self.rate, self.seconds)]
        if shapes != [(steps,), (steps,), (steps,), (steps, len(PHASES))]:
            raise InputError(
                f"loss, extra_loss, rate and seconds have shapes {shapes}: expected [step] and [step, {len(PHASES)}]"
            )

    @property
    def unchanged(self) -> bool:
        """Whether every frozen tensor is what it was, bit for bit."""
        return self.hashes_before == self.hashes_after

    @property
    def step_seconds(self) -> float:
        """The median over steps of the seconds of all three phases, NaN where no step was timed."""
        timed = self.seconds.sum(dim=1)
        timed = timed[~timed.isnan()]
        return float(timed.quantile(0.5)) if len(timed) else math.nan

    def to_frame(self) -> pd.DataFrame:
        """One row for each step: step (from 1), loss, extra_loss, rate, forward, backward, optimizer (seconds)."""
        columns = {name: getattr(self, name).numpy() for name in ("loss", "extra_loss", "rate")}
        columns |= {name: self.seconds[:, place].numpy() for place, name in enumerate(PHASES)}
        return pd.DataFrame({"step": range(1, len(self.loss) + 1), **columns})


def record_of(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The fields of a `TuneResult` that a trainer's history of steps holds."""
    steps = [entry for entry in history if "loss" in entry]

    def column(name: str, default: float = math.nan) -> Tensor:
        return torch.tensor([entry.get(name, default) for entry in steps], dtype=torch.float64)

    totals = ("flops", "gradient_bytes", "optimizer_bytes", "activation_bytes", "peak_bytes")
    return {
        "loss": column("loss"),
        "extra_loss": column("extra_loss", 0.0),
        "rate": column("learning_rate"),
        "seconds": torch.stack([column(name) for name in PHASES], dim=1),
        **{name: max((entry[name] for entry in steps if name in entry), default=math.nan) for name in totals},
    }
