"""Objects in a few lines: no tensor is printed, whatever an object holds."""

import importlib
import inspect
import pkgutil
from dataclasses import dataclass, is_dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import interp
from interp import geometry, interventions, patching
from interp.displays import Display, brief
from interp.displays.brief import MOST_LINES, WIDTH
from interp.models.layout.checks import Check, CheckReport

LINES = 20


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (0.1234567891, "0.123457"),
        (1e-12, "1e-12"),
        ("a", "'a'"),
        ([1, 2], "[1, 2]"),
        ((1,), "(1,)"),
        ((), "()"),
        (["a"] * 8, "8 x 'a'"),
        (list(range(100)), "[0, 1, 2, 3, ... 100 in all]"),
        ({"a": 1}, "{'a': 1}"),
        (torch.zeros(3, 4), "Tensor[3, 4] float32"),
        (torch.tensor(2.5), "2.5"),
        (torch.tensor([True, False]), "Tensor[2] bool, 1 True"),
        (np.zeros((2, 0)), "ndarray[2, 0] float64"),
        (pd.DataFrame({"a": [1], "b": [2]}), "DataFrame of 1 rows: a, b"),
        (Image.new("RGB", (3, 2)), "Image 3x2 RGB"),
        (len, "len"),
        (object(), "object(...)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_in_a_part_of_a_line(value, text):
    assert brief(value) == text


@dataclass(frozen=True)
class Anything(Display):
    value: object
    other: object = None


@pytest.mark.parametrize(
    "value",
    [
        torch.randn(1000, 1000),
        [torch.randn(50)] * 50,
        {f"key {number}": torch.randn(9) for number in range(99)},
        "x" * 10**6,
        "line\n" * 1000,
        ["long words " * 20] * 30 + ["another"],
        [[list(range(99))] * 99] * 99,
        pd.DataFrame(np.zeros((1000, 60))),
        [Anything(torch.randn(30, 30))] * 12,
        torch.nn.Sequential(*[torch.nn.Linear(3, 3)] * 40),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_repr_is_short(value):
    for each in (Anything(value), Anything(Anything(value), value)):
        lines = repr(each).splitlines()
        assert len(lines) <= MOST_LINES + 1
        assert max(map(len, lines)) <= WIDTH
        assert "tensor(" not in repr(each)


def test_many_fields_are_cut():
    kind = type("Wide", (Display,), {"__annotations__": {f"field_{number}": str for number in range(200)}})
    wide = dataclass(kind)(*["a text of some length"] * 200)
    assert len(repr(wide).splitlines()) <= LINES


def test_a_class_keeps_a_repr_of_its_own():
    class Own(Display):
        def __repr__(self):
            return "own"

    @dataclass(frozen=True)
    class Derived(Own):
        value: int = 1

    assert repr(Derived()) == "own"


def test_an_object_that_is_not_complete_has_a_repr():
    assert repr(object.__new__(Anything)) == "Anything(...)"


def test_an_intervention_is_one_line_with_all_digits():
    steer = interventions.Steer(
        direction=torch.randn(128), layers=list(range(40)), positions="last", scale=0.123456789012
    )
    assert "scale=0.123456789012" in repr(steer)
    mask = torch.zeros(1, 400, dtype=torch.bool)
    ablate = interventions.Ablate(site="resid_pre", layers=range(3), positions=mask, value="zero")
    assert repr(ablate).count("\n") == repr(steer).count("\n") == 0
    assert "positions=Tensor[1, 400] bool, 0 True" in repr(ablate)


def test_a_value_of_an_intervention_is_its_type_and_shape(mixed):
    steer = interventions.Steer(direction=torch.randn(128), layers=1, positions="last", scale=1.0)
    patch = interventions.Patch(site="z", layers=0, positions="last", value=mixed.row(0))
    project = interventions.Project(direction=torch.randn(2, 128), layers=1, positions="last")
    assert "direction=Tensor[128] float32" in repr(steer)
    assert "direction=Tensor[2, 128] float32" in repr(project)
    assert "value=Batch(...)" in repr(patch)


def test_many_objects_of_one_kind_are_counted():
    assert brief([Anything("x" * 300)] * 3) == "3 x Anything"
    assert brief([Anything("x" * 300)] * 2) == "[Anything(...), Anything(...)]"
    assert brief([Anything(1), Anything(2), Anything(2)]).startswith("[Anything(value=1, other=None), ")
    assert repr(interp.toy.scenes(6, seed=0)) == "SceneDataset(scenes=6 x Scene, modality='image')"


def test_proofs_are_a_line_each(toy):
    first, *lines = repr(toy.check()).splitlines()
    assert first == "CheckReport(7 passed)"
    assert [line.split()[:2] for line in lines] == [
        [name, "passed:"] for name in ("layers", "readout", "identity", "effect", "sites", "last", "image")
    ]
    assert max(map(len, lines)) <= WIDTH
    report = CheckReport((Check("image", "pending", float("nan"), "== 0", "no\npicture " * 90),))
    assert repr(report).splitlines()[1].startswith("  image    pending: no picture no")
    assert len(repr(report).splitlines()) == 2
    assert "not measured (== 0)" in repr(CheckReport((Check("image", "failed", float("nan"), "== 0", "x"),)))


def test_completions_name_all_positions(toy, mixed):
    named = toy.prepare(texts=["a red 3 at top ."], spans={"digit": "3"}).positions
    for positions in (mixed.positions, named):
        names = positions._ipython_key_completions_()
        assert {"image", "content", "image_content"} <= set(names)
        assert all(positions[name].dtype == torch.bool for name in names)
    assert "digit" in names


def test_objects_that_users_meet(toy, mixed, few):
    pair = interp.toy.pairs(1, seed=0)[0]
    steer = interventions.Steer(direction=torch.randn(128), layers=[1], positions="last", scale=1.0)
    objects = [
        toy,
        toy.structure,
        toy.readout,
        mixed,
        mixed.positions,
        few,
        few[0],
        pair,
        steer,
        interventions.Patch(site="resid_pre", layers=[1], positions="last", value=mixed.row(0)),
        interp.Data([("text " * 500, None)] * 100),
        patching.logit_difference("red", "blue"),
        patching.kl_divergence(torch.randn(3, 75)),
        interp.Provenance(notes=("a note " * 90,) * 30),
        geometry.dimension_scaling(torch.randn(300, 5)),
        steer.edits(toy, mixed),
    ]
    for each in objects:
        assert len(repr(each).splitlines()) <= LINES, type(each)
        assert "tensor(" not in repr(each), type(each)
    # a list of estimates is a line each at most
    assert len(repr(geometry.dimension_scaling(torch.randn(300, 5))[0]).splitlines()) == 1


def public_dataclasses():
    for module in pkgutil.iter_modules(interp.__path__, "interp."):
        room = importlib.import_module(module.name)
        for name in getattr(room, "__all__", ()):
            kind = getattr(room, name)
            if inspect.isclass(kind) and is_dataclass(kind) and kind.__module__.startswith("interp."):
                yield kind


# These hold words and numbers alone, or are sent with a trace and print none of their tensors.
SMALL = {
    "Edit",
    "Read",
    "Readout",
    "Architecture",
    "Check",
    "Component",
    "LogitScaling",
    "Question",
    "SceneObject",
    "Verdict",
}


def test_every_public_value_has_a_short_repr():
    kinds = {kind for kind in public_dataclasses() if kind.__name__ not in SMALL}
    assert interp.Batch in kinds
    assert {kind.__name__ for kind in kinds if not issubclass(kind, Display)} == set()
