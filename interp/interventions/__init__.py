"""Interventions: frozen values that say what to change, where, and in which layers.

`vlm.logits`, `vlm.generate`, `interp.capture` and the lenses take them as ``interventions=[...]``. One place,
`interp.models.running.trace`, applies them in the order of the forward pass; at one site of one layer it follows the order
of the list.

A new intervention is a frozen dataclass with a method ``edits(vlm, batch, new=0)`` that returns `Edit` values, plus its name
in this file. `Read` takes a value out of a run.
"""

from interp.interventions.arithmetic import Project, Scale, Steer
from interp.interventions.knockout import Knockout, Truncate
from interp.interventions.replacement import Ablate, Patch, Skip
from interp.interventions.reweight import Reweight
from interp.models import Edit, Read

__all__ = [
    "Ablate",
    "Edit",
    "Knockout",
    "Patch",
    "Project",
    "Read",
    "Reweight",
    "Scale",
    "Skip",
    "Steer",
    "Truncate",
]
