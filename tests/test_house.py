"""The shape of the code: sizes of files and functions, parameters, and names that stand for one thing only."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import interp

ROOT = Path(interp.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# Entry points of scripts, and commands that are named after the function they call.
SHARED = {"main", "capture"}
COMMANDS = {"train"}  # python -m interp.toy.train, python -m interp.organisms.emoji.train


def functions():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path.relative_to(ROOT), node


def parameters(function):
    named = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    extra = [each for each in (function.args.vararg, function.args.kwarg) if each]
    return len([each for each in named if each.arg not in ("self", "cls")]) + len(extra)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_has_one_concept_and_says_which(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 450
    assert ast.get_docstring(ast.parse("\n".join(lines)))


def test_long_functions_say_what_they_do():
    assert [
        f"{path}:{function.name}"
        for path, function in functions()
        if function.end_lineno - function.lineno >= 60 and not ast.get_docstring(function)
    ] == []


def test_classes_are_short():
    classes = [
        node for path in FILES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)
    ]
    assert [node.name for node in classes if node.end_lineno - node.lineno >= 300] == []


def test_few_functions_have_many_parameters():
    counts = [(parameters(function), f"{path}:{function.name}") for path, function in functions()]
    many = [each for each in counts if each[0] > 6]
    assert len(many) <= 0.015 * len(counts), many


def test_a_name_stands_for_one_thing():
    """No public class or function of two modules bears one name; what a package exports is counted where it is defined."""
    homes = defaultdict(set)
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(str(path.relative_to(ROOT)))
    assert {name: files for name, files in homes.items() if len(files) > 1 and name not in SHARED} == {}


def test_files_bear_names_of_their_own():
    """Two files of one name explain one concept twice, or two concepts by one word; figures are named after what they draw."""
    homes = defaultdict(list)
    for path in FILES:
        if path.stem != "__init__" and "plots" not in path.parts:
            homes[path.stem].append(str(path.relative_to(ROOT)))
    assert {stem: files for stem, files in homes.items() if len(files) > 1 and stem not in COMMANDS} == {}
