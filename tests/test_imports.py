"""Imports go one way, and the root is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import interp

ROOT = Path(interp.__file__).parent

# What each room may import, beside itself, `errors` and `results`.
METHODS = {"toy", "tuning", "patching", "lens", "activations", "interop"}
ALLOWED = {
    "errors": set(),
    "results": {"plots"},  # a result's plot() alone reaches upwards, late
    "geometry": set(),
    "probes": set(),
    "models": set(),
    "interventions": {"models"},
    **{room: {"interventions", "models"} for room in METHODS},
    "interop": {"activations", "interventions", "models"},
    # data are read in one way wherever they are taken, and patches are clouds like any other
    "lens": {"activations", "interventions", "models", "geometry"},
    "plots": {*METHODS, "interventions", "models", "geometry", "probes"},
    "reports": {*METHODS, "plots", "interventions", "models", "geometry", "probes"},
    "cli": {*METHODS, "reports", "plots", "interventions", "models", "geometry", "probes"},
}


def rooms_imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module] if node.module != "interp" else [f"interp.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            root, _, rest = name.partition(".")
            if root == "interp" and rest:
                yield rest.split(".")[0]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    allowed = {room, "errors", "results", "InputError"} | ALLOWED[room]
    assert set(rooms_imported(path)) <= allowed


def test_importing_the_package_is_light():
    code = (
        "import sys, time; t = time.perf_counter(); import interp; t = time.perf_counter() - t; "
        "print(t, [m for m in ('torch', 'numpy', 'pandas', 'transformers', 'nnsight', 'plotly') if m in sys.modules])"
    )
    seconds, _, heavy = min(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.partition(" ")
        for _ in range(3)
    )
    assert heavy.strip() == "[]"
    assert float(seconds) < 0.3


def test_every_public_name_is_there():
    for name in interp.__all__:
        assert getattr(interp, name) is not None
    assert set(interp.__all__) <= set(dir(interp))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        interp.nothing
