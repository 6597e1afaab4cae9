"""interp: mechanistic interpretability of vision-language models.

`interp.load` wraps a model, `vlm.prepare` makes a batch of images and texts, and `interp.capture` stores activations;
`interp.patching`, `interp.lens`, `interp.readouts`, `interp.words`, `interp.probes` and `interp.geometry` analyse them.
`interp.help()` says which call answers which question. Importing this package is fast: torch, nnsight and transformers are
imported on first use.

>>> import interp
>>> vlm = interp.load("toy")
>>> vlm.generate(vlm.prepare(texts=["a red 3 at top . what colour is the 3 ?"]))
['red']
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from interp.errors import InputError, InputTypeError, InterpError, LayoutError

__version__ = "0.1.0"

_SUBMODULES = (
    "activations",
    "data",
    "geometry",
    "interop",
    "interventions",
    "lens",
    "models",
    "organisms",
    "patching",
    "plots",
    "probes",
    "progress",
    "readouts",
    "reports",
    "statistics",
    "toy",
    "tuning",
    "words",
)
_EXPORTS = {
    "load": "interp.models",
    "assemble": "interp.models",
    "VLM": "interp.models",
    "Batch": "interp.models",
    "Positions": "interp.models",
    "Structure": "interp.models",
    "CheckReport": "interp.models",
    "Data": "interp.data",
    "capture": "interp.activations",
    "Activations": "interp.activations",
    "open_activations": "interp.activations",
    "Result": "interp.results",
    "Provenance": "interp.provenance",
    "help": "interp.guide",
}
__all__ = ["InputError", "InputTypeError", "InterpError", "LayoutError", "__version__", *_EXPORTS, *_SUBMODULES]

if TYPE_CHECKING:
    from interp import (
        activations,
        data,
        geometry,
        interop,
        interventions,
        lens,
        models,
        organisms,
        patching,
        plots,
        probes,
        progress,
        readouts,
        reports,
        statistics,
        toy,
        tuning,
        words,
    )
    from interp.activations import Activations, capture, open_activations
    from interp.data import Data
    from interp.guide import help
    from interp.models import VLM, Batch, CheckReport, Positions, Structure, assemble, load
    from interp.provenance import Provenance
    from interp.results import Result


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f"interp.{name}")
    home = "" if name.startswith("_") else importlib.import_module("interp.guide").home_of(name)
    raise AttributeError(f"module 'interp' has no attribute {name!r}" + (f": it is {home}" if home else ""))


def __dir__() -> list[str]:
    return sorted(__all__)
