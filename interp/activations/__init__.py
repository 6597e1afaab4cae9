"""Activations: taking the states of a whole data set out of a model, into memory or into a folder."""

from interp.activations.capturing import capture
from interp.activations.container import Activations
from interp.activations.store import open_activations

__all__ = ["Activations", "capture", "open_activations"]
