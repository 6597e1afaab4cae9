"""The command line: ``interp demo``, ``interp doctor``, ``interp capture`` and ``interp tune``, a file each.

Importing it imports neither torch nor plotly, so ``interp --help`` answers at once.
"""

from interp.cli import capture_command, demo_command, doctor_command, tune_command  # noqa: F401  each adds its command to the application
from interp.cli.application import main, run

__all__ = ["main", "run"]
