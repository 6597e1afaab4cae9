"""Agreement: whether two ways to compute logits give the same, within what the model's precision can tell."""

from __future__ import annotations

import torch
from torch import Tensor

from interp.models import VLM
from interp.models.layout.additions import tolerance

# Every logit is smaller than the values that rule a token out, in any precision.
_RULED_OUT = 6e4


def largest_difference(logits: Tensor, expected: Tensor) -> float:
    """The largest difference of logits. The value that rules a token out, which may be infinite, is equal in both."""
    difference = torch.where(logits == expected, 0.0, (logits.float() - expected.float()).abs())
    return difference.nan_to_num(nan=torch.inf).max().item()


def allowed_difference(vlm: VLM, logits: Tensor) -> float:
    """The difference that logits of this size may have in the model's precision."""
    sizes = logits.float().abs()
    return 10 * tolerance(vlm.dtype) * sizes[sizes < _RULED_OUT].max().item()
