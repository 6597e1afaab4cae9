"""Interventions: frozen values that say what to change, where, in which layers.

They are taken as ``interventions=[...]`` by `vlm.logits`, `vlm.generate`, `interp.capture` and the lenses, and applied
in forward order in one place, `interp.models.forward`.
"""

from interp.interventions.knockout import Knockout
from interp.interventions.states import Ablate, Patch

__all__ = ["Ablate", "Knockout", "Patch"]
