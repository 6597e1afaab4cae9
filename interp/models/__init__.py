"""Models: loading a VLM, finding and proving its parts, batches and positions, and running it."""

from interp.models.batch import Batch
from interp.models.checks import Check, CheckReport
from interp.models.discovery import find_structure
from interp.models.loading import load
from interp.models.positions import Positions
from interp.models.structure import Structure
from interp.models.vlm import VLM, Intervention

__all__ = ["VLM", "Batch", "Check", "CheckReport", "Intervention", "Positions", "Structure", "find_structure", "load"]
