"""Interventions: frozen values that say what to change, where, in which layers.

They are taken as ``interventions=[...]`` by `vlm.logits`, `vlm.generate`, `interp.capture` and the lenses, and applied
in forward order in one place, `interp.models.running.trace`; at one site of one layer, in the order in which they are given.
"""

from interp.interventions.knockout import Knockout, Truncate
from interp.interventions.project import Project
from interp.interventions.replacement import Ablate, Patch
from interp.interventions.reweight import Reweight
from interp.interventions.scale import Scale
from interp.interventions.skip import Skip
from interp.interventions.steer import Steer

__all__ = ["Ablate", "Knockout", "Patch", "Project", "Reweight", "Scale", "Skip", "Steer", "Truncate"]
