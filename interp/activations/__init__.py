"""Activations: taking the states of a whole data set out of a model."""

from interp.activations.collector import Activations, capture

__all__ = ["Activations", "capture"]
