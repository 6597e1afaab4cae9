"""Imports go one way, there are no circles, and the root is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import interp

ROOT = Path(interp.__file__).parent

# Storeys from the ground up; a room may import the rooms named for it, and those that these may import.
BELOW = {
    "displays": set(),
    "errors": set(),
    "arguments": {"errors"},
    "progress": {"errors", "arguments"},
    "provenance": {"displays"},
    "files": set(),
    "results": {"displays", "errors", "provenance", "files"},
    "guide": {"displays", "errors"},
    "statistics": {"errors", "arguments", "progress", "displays"},
    "geometry": {"results", "statistics"},
    "probes": {"results", "statistics", "geometry"},
    "models.batches": {"arguments", "displays", "progress", "provenance"},
    "models.running": {"models.batches"},
    "models.layout": {"models.running", "results"},
    "models": {"models.layout"},
    "data": {"models"},
    "activations": {"data", "results"},
    "interventions": {"activations", "statistics"},
    "interop": {"activations"},
    "toy": {"models", "statistics"},
    "patching": {"interventions", "statistics"},
    "readouts": {"interventions", "statistics"},
    "words": {"interventions", "geometry"},
    "lens": {"interventions", "statistics", "readouts", "words"},
    "tuning": {"patching", "words", "statistics"},
    "organisms": {"patching", "lens", "geometry", "probes", "tuning", "toy"},
    "plots": {"patching", "lens", "geometry", "probes", "tuning"},
    "reports": {"plots", "toy"},
    "": {"errors", "cli"},  # the root names every room, and imports one when it is first used
    "cli": {"reports", "interop", ""},
}


def module_name(path):
    parts = ("interp", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imported(path):
    """The modules of this package that a file imports: anywhere in it, for type checkers alone too."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path.name} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name for name in names if name.partition(".")[0] == "interp")


def room_of(module):
    names = module.split(".")[1:]
    return next((room for depth in (2, 1) if (room := ".".join(names[:depth])) in BELOW), names[0] if names else "")


def all_below(room):
    rooms, left = set(), [room]
    while left:
        room = left.pop()
        if room not in rooms:
            rooms.add(room)
            left += BELOW[room]
    return rooms


@pytest.mark.parametrize("module", [name for name in MODULES if name != "interp"])
def test_imports_go_one_way(module):
    wrong = {name for name in imported(MODULES[module]) if room_of(name) not in all_below(room_of(module))}
    assert not wrong


def circles(arrows):
    """The circles among these arrows (module -> modules), each as the modules that reach each other (Tarjan 1972)."""
    number, lowest, stack, found = {}, {}, [], []

    def visit(node):
        number[node] = lowest[node] = len(number)
        stack.append(node)
        for other in arrows[node]:
            if other not in number:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], number[other])
        if lowest[node] == number[node]:
            circle = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(circle) > 1:
                found.append(sorted(circle))

    for node in arrows:
        if node not in number:
            visit(node)
    return found


def test_no_circle_of_any_length():
    assert circles({name: set(imported(path)) - {name} for name, path in MODULES.items()}) == []


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": {"b"}}) == [["b", "c", "d"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("interp.models")])
def test_names_are_imported_and_not_modules(module):
    """A trace is sent with what it names: functions and classes travel as they are, a module only by its name."""
    for node in ast.parse(MODULES[module].read_text()).body:
        if isinstance(node, ast.ImportFrom):
            assert not {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)


def test_every_module_can_be_imported_first():
    """Packages import what they export: a module that is imported before its package must not meet it half made."""
    code = """
import importlib, sys
for module in sys.argv[1:]:
    for name in [name for name in sys.modules if name.partition(".")[0] == "interp"]:
        del sys.modules[name]
    importlib.import_module(module)
"""
    modules = ("interp.words", "interp.readouts", "interp.models.running.trace", "interp.data", "interp.plots.lens")
    subprocess.run([sys.executable, "-c", code, *modules], check=True)


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
    with pytest.raises(AttributeError, match=r"no attribute 'patch_sweep': it is interp\.patching\.patch_sweep$"):
        interp.patch_sweep
    assert not hasattr(interp, "__wrapped__")
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'$"):
        interp.nothing
