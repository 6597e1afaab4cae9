"""Patching: which states carry the answer, found by moving them from one run into another."""

from interp.patching.metrics import cross_entropy, kl_divergence, logit_difference, probability
from interp.patching.sweep import PatchResult, patch_sweep

__all__ = ["PatchResult", "cross_entropy", "kl_divergence", "logit_difference", "patch_sweep", "probability"]
