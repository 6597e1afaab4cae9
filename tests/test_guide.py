"""The guide names every public call, every call that it names exists, and the page of the docs is made of it."""

import importlib
import inspect
from pathlib import Path

import pytest

import interp
from interp import guide
from interp.results import Result, StoredValue

DOCS = Path(__file__).parent.parent / "docs"
NAMED = [call for row in interp.help().rows for call in row[1]]
# What a call returns or raises, and tables of measures: no answers to a question by themselves.
VALUES = {"Alignment", "Neighbors", "ApproximateNeighbors", "Measure", "Dictionary", "WordAlignment"}
VALUES |= {"Pair", "Question", "Scene", "SceneDataset", "SceneObject", "Organism", "Truth", "help"}


def public_calls():
    for room in ("", *interp._SUBMODULES):
        module = importlib.import_module(f"interp.{room}".rstrip("."))
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            kept = inspect.isclass(value) and issubclass(value, Result | StoredValue | interp.InterpError)
            if callable(value) and not inspect.ismodule(value) and name not in VALUES and not kept:
                yield name


def test_every_public_call_is_in_it():
    known = {call.rpartition(".")[2] for call in NAMED}
    assert sorted(set(public_calls()) - known) == []


@pytest.mark.parametrize("call", sorted(set(NAMED)))
def test_every_call_that_it_names_exists(call):
    value = interp
    for name in call.split(".")[1:]:
        value = getattr(value, name)
    assert callable(value)


def test_no_call_stands_twice():
    assert len(NAMED) == len(set(NAMED))


def test_it_fits_a_terminal():
    lines = repr(interp.help()).splitlines()
    assert max(map(len, lines)) <= 120
    assert "(docs/geometry.md)" in repr(interp.help("cka"))


def test_the_page_is_made_of_it():
    assert guide.as_markdown() in (DOCS / "index.md").read_text()
    assert all((DOCS / f"{page}.md").is_file() for *_, page in interp.help().rows)


def test_it_is_searched_by_a_word():
    assert "interp.models.run_forward" in repr(interp.help("Edit")) + repr(interp.help("run_forward"))
    assert len(interp.help("geometry").rows) > 5
    assert interp.help("no such thing").rows == ()
    assert repr(interp.help("no such thing")) == "Guide: no row names this word, interp.help() lists them all"
    assert interp.help("Logit lens").rows == interp.help("logit_lens").rows == interp.help("tunedlens").rows
    for form, call in (
        ("ablation", "Ablate"),
        ("steering", "Steer"),
        ("knockouts", "Knockout"),
        ("sinks", "Positions"),
    ):
        assert any(each.endswith(call) for row in interp.help(form).rows for each in row[1]), form
    assert "<table" in interp.help("lens")._repr_html_()
    with pytest.raises(interp.InputTypeError, match="expected a word"):
        interp.help(interp.load)
