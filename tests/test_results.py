"""Results: a saved result is read back unchanged, and other files are refused."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import interp
from interp.lens import AttributionResult, Component
from interp.models.layout.checks import Check, CheckReport
from interp.provenance import Provenance
from interp.results import Result


@dataclass(frozen=True)
class Anything(Result):
    value: Any


@dataclass(frozen=True)
class Another(Result):
    value: Any


def same(a, b):
    if isinstance(a, torch.Tensor | np.ndarray):
        return type(a) is type(b) and bool((a == b).all()) and a.dtype == b.dtype
    if isinstance(a, pd.DataFrame):
        return a.equals(b)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(same(*pair) for pair in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        0.1,
        "blue <b>",
        range(2, 6),
        (1, [2, (3,)]),
        {"a": torch.arange(3), "b": {"c": np.eye(2)}},
        torch.randn(2, 3).bfloat16(),
        torch.tensor([True, False]),
        [torch.zeros(0, 4), "x"],
        pd.DataFrame({"word": ["a", "b"], "score": [0.1, 0.2]}),
        Another(torch.ones(2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_saved_result_is_read_back(value, tmp_path):
    provenance = Provenance(model="toy", seed=3, interventions=("cut",))
    path = Anything(value, provenance=provenance).save(tmp_path / "saved")
    again = Result.load(path)
    assert type(again) is Anything
    assert same(again.value.value, value.value) if isinstance(value, Another) else same(again.value, value)
    assert again.provenance == provenance
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


def test_what_is_no_result(tmp_path):
    with pytest.raises(interp.InputError, match="none' is not a file: expected one that a result's save"):
        Anything.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(interp.InputError, match=r"text' is not a safetensors file .*expected one that save"):
        Anything.load(tmp_path / "text")
    save_file({"x": torch.ones(1)}, tmp_path / "plain")
    with pytest.raises(interp.InputError, match="plain' has format None: expected 'interp-result-1'"):
        Anything.load(tmp_path / "plain")
    path = Another(1).save(tmp_path / "another")
    with pytest.raises(interp.InputError, match="holds a 'Another', expected Anything"):
        Anything.load(path)


def test_a_failed_save_leaves_no_file(tmp_path):
    with pytest.raises(interp.InputError, match="cannot be kept"):
        Anything(object()).save(tmp_path / "object")
    with pytest.raises(interp.InputError, match="cannot be written"):
        Anything(1).save(tmp_path / "no" / "such" / "folder")
    assert not list(tmp_path.iterdir())


def as_written_before(path, new, old):
    """The file of a result with the name of a stored value's class as older versions wrote it, with a module."""
    with safe_open(str(path), framework="pt") as stored:
        header, tensors = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    fields = header["fields"].replace(f'"type": "{new}"', f'"type": "{old}"')
    assert fields != header["fields"]
    save_file(tensors or {"none": torch.zeros(1)}, path, metadata={**header, "fields": fields})


def test_values_are_read_whatever_module_their_class_was_in(tmp_path):
    parts = (Component("embed"), Component("attn_out", 3, 1, "image"))
    one = torch.zeros(1, 2)
    result = AttributionResult(one[0], one[0], one[0], one[0], one, torch.zeros(1), parts, ["red"])
    report = CheckReport((Check("readout", "passed", 1e-6, "1e-4", "adds up"),))
    for value, name, module in (
        (result, "Component", "interp.lens.attribution"),
        (report, "Check", "interp.models.checks"),
    ):
        path = value.save(tmp_path / name)
        assert module not in path.read_bytes().decode("latin-1")
        again = type(value).load(path)
        as_written_before(path, name, f"{module}:{name}")
        for each in (again, type(value).load(path)):
            assert getattr(each, "parts", None) == getattr(value, "parts", None)
            assert getattr(each, "checks", None) == getattr(value, "checks", None)


def test_a_file_names_stored_values_alone(tmp_path):
    path = CheckReport((Check("readout", "passed", 1e-6, "1e-4", "adds up"),)).save(tmp_path / "report")
    for name in ("subprocess:Popen", "interp.errors:shown", "Result", "interp.results:StoredValue", "nothing"):
        as_written_before(path, "Check", name)
        with pytest.raises(interp.InputError, match=f"names '{name}': expected a class of values"):
            CheckReport.load(path)
        as_written_before(path, name, "Check")


def test_a_result_without_a_frame_says_what_is_missing():
    with pytest.raises(TypeError, match="Anything has no to_frame: its class must define one"):
        Anything(1).to_frame()
