"""Patching: which states carry the answer, found by moving them, or a layer's weights, from one run into another."""

from interp.patching.attribution_patching import attribution_patch
from interp.patching.flow import FlowResult, flow
from interp.patching.layers import SweepResult, layer_contribution, layer_sweep
from interp.patching.metrics import cross_entropy, kl_divergence, logit_difference, probability
from interp.patching.result import PatchResult
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
    "patch_sweep",
    "probability",
    "transplant",
]
