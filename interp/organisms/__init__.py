"""Organisms: models whose truth is known, with a real language model inside. The toy's own are `interp.toy.planted`."""

from interp.organisms import emoji

__all__ = ["emoji"]
