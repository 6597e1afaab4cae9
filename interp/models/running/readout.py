"""The readout: how a model makes logits of a state of its residual stream.

    z = head(norm(state))[..., :vocab_size]
    logits = cap * tanh(scale * z / cap)        or, without a cap, scale * z

`LogitScaling` is what a model does to ``z``, as `interp.models.layout.additions` measures it. A `Readout` has it together with
the model's own norm and head, and reads states out, inside a trace or outside:

    vlm.readout.logits(state)       # [..., width] -> [..., vocab]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch


@dataclass(frozen=True)
class LogitScaling:
    """What the model does to ``z = head(norm(state))``: ``cap * tanh(scale * z / cap)``, or ``scale * z``.

    `suppressed` are token ids whose logits the model overwrites with the lowest number.
    """

    scale: float = 1.0
    cap: float | None = None
    suppressed: tuple[int, ...] = ()

    @property
    def kind(self) -> str:
        """ "plain", "scaled", "softcapped", or "scaled+softcapped"."""
        names = {"scaled": self.scale != 1, "softcapped": self.cap is not None}
        return "+".join(name for name, holds in names.items() if holds) or "plain"


@dataclass(frozen=True)
class Readout:
    """A final norm, an unembedding and what the model does to their result.

    `norm` and `head` are modules, their nnsight envoys, or any functions of a tensor.
    """

    norm: Any
    head: Any
    vocab_size: int
    scaling: LogitScaling = LogitScaling()

    # Plain torch, run inside the trace.
    def logits(self, state):
        """The logits `[..., vocab]` of a state `[..., width]`."""
        logits = self.head(self.norm(state))[..., : self.vocab_size]
        if self.scaling.scale != 1:
            logits = logits * self.scaling.scale
        if self.scaling.cap is not None:
            logits = self.scaling.cap * torch.tanh(logits / self.scaling.cap)
        if self.scaling.suppressed:
            logits = logits.clone()
            logits[..., list(self.scaling.suppressed)] = torch.finfo(logits.dtype).min
        return logits

    def without_norm(self) -> Readout:
        """The same head on states as they are."""
        return replace(self, norm=_unchanged)


def _unchanged(state):
    return state
