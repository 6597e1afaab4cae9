"""Models: loading a VLM, finding and proving its parts, batches and positions, and running it.

Three levels, each of which imports only those below it:

- `batches`: texts and images become one encoding of n rows, with positions, grids, spans and targets;
- `running`: `Core`, a wrapped model with its structure; sites and their slots; the one trace that edits and reads them;
- `layout`: finding the parts of a model and proving by effect that they are what they are called.

`vlm` (what a user holds), `loading` (how they get it) and `assembling` (how it is made of parts) stand on top.
"""

from interp.models.assembling import assemble
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
    "assemble",
    "find_structure",
    "load",
    "reads_of_states",
    "run_forward",
]
