"""Lenses: reading intermediate states in the model's own vocabulary."""

from interp.lens.logit import LensResult, logit_lens

__all__ = ["LensResult", "logit_lens"]
