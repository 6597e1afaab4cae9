"""Patching: which states carry the answer, found by moving them, or a layer's weights, from one run into another."""

from interp.patching.metrics import cross_entropy, kl_divergence, logit_difference, probability
from interp.patching.sweep import PatchResult, patch_sweep
from interp.patching.transplants import transplant

__all__ = [
    "PatchResult",
    "cross_entropy",
    "kl_divergence",
    "logit_difference",
    "patch_sweep",
    "probability",
    "transplant",
]
