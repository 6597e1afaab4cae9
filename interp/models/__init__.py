"""Models: loading a VLM, finding and proving its parts, batches and positions, and running it."""

from interp.models.batches.batch import Batch
from interp.models.batches.positions import Positions
from interp.models.layout.checks import Check, CheckReport
from interp.models.layout.discovery import find_structure
from interp.models.loading import load
from interp.models.running.steps import Edit, Read, reads_of_states
from interp.models.running.structure import Structure
from interp.models.running.trace import run_forward
from interp.models.vlm import VLM, Intervention

__all__ = [
    "VLM",
    "Batch",
    "Check",
    "CheckReport",
    "Edit",
    "Intervention",
    "Positions",
    "Read",
    "Structure",
    "find_structure",
    "load",
    "reads_of_states",
    "run_forward",
]
