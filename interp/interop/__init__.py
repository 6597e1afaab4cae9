"""Interop: captured activations in other libraries."""

from interp.interop.transformer_lens import to_transformer_lens

__all__ = ["to_transformer_lens"]
