"""Patching: move states, or weights, from one run or model into another, and see which of them carry the answer."""

from interp.patching.attribution_patching import attribution_patch
from interp.patching.flow import FlowResult, flow
from interp.patching.layer_sweeps import SweepResult, layer_contribution, layer_sweep
from interp.patching.metrics import (
    cross_entropy,
    kl_divergence,
    logit_difference,
    logprob,
    logprob_difference,
    probability,
)
from interp.patching.patch_result import PatchResult
from interp.patching.sweep import patch_sweep
from interp.patching.transplants import transplant

__all__ = [
    "FlowResult",
    "PatchResult",
    "SweepResult",
    "attribution_patch",
    "cross_entropy",
    "flow",
    "kl_divergence",
    "layer_contribution",
    "layer_sweep",
    "logit_difference",
    "logprob",
    "logprob_difference",
    "patch_sweep",
    "probability",
    "transplant",
]
