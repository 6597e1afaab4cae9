"""What DADApy gave on clouds made from seeds, and the same clouds made again."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
SCRIPT = TESTS.parent / "benchmarks" / "peers" / "dadapy_values.py"


@cache
def recipes():
    """The script that made the stored values, for its recipes: it imports DADApy only when it computes."""
    spec = importlib.util.spec_from_file_location("dadapy_values", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def values():
    return json.loads((TESTS / "geometry" / "peers" / "dadapy.json").read_text())["values"]


@cache
def cloud(name):
    made = recipes().CLOUDS[name]()
    assert recipes().digest(made) == values()[name]["sha256"], f"{name} is not the cloud that DADApy was given"
    return made
