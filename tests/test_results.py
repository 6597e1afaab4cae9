"""Results: what is kept comes back, and what is no result is refused."""

import importlib.metadata
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import interp
from interp.arguments import as_int, checked_seed, checked_share
from interp.lens import AttributionResult, Component
from interp.models.layout.checks import Check, CheckReport
from interp.provenance import Provenance, package_versions
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
def test_what_is_kept_comes_back(value, tmp_path):
    provenance = Provenance(model="toy", seed=3, interventions=("cut",))
    path = Anything(value, provenance=provenance).save(tmp_path / "kept")
    again = Result.load(path)
    assert type(again) is Anything
    assert same(again.value.value, value.value) if isinstance(value, Another) else same(again.value, value)
    assert again.provenance == provenance
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_versions_are_read_once_and_given_to_each_alone():
    first = package_versions()
    first["torch"] = "changed"
    assert package_versions() == {**first, "torch": importlib.metadata.version("torch")}


def test_what_is_no_result(tmp_path):
    with pytest.raises(interp.InputError, match="is no file"):
        Anything.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(interp.InputError, match="is no safetensors file"):
        Anything.load(tmp_path / "text")
    save_file({"x": torch.ones(1)}, tmp_path / "plain")
    with pytest.raises(interp.InputError, match="holds no result of this package"):
        Anything.load(tmp_path / "plain")
    kept = Another(1).save(tmp_path / "another")
    with pytest.raises(interp.InputError, match="holds a 'Another', expected Anything"):
        Anything.load(kept)


def test_nothing_is_left_behind_where_a_result_cannot_be_kept(tmp_path):
    with pytest.raises(interp.InputError, match="cannot be kept"):
        Anything(object()).save(tmp_path / "object")
    with pytest.raises(interp.InputError, match="cannot be written"):
        Anything(1).save(tmp_path / "no" / "such" / "folder")
    assert not list(tmp_path.iterdir())


def test_a_seed_is_an_int_that_all_generators_take():
    for seed in (0, np.int64(7), torch.tensor(7), 2**32 - 1):
        assert type(checked_seed(seed)) is int
        assert checked_seed(seed) == seed
    for wrong in (None, "x", -1, 1.5, True, np.True_, torch.tensor(True), torch.ones(2), 2**32, float("nan")):
        with pytest.raises(interp.InputError, match=r"^seed=[^\n]*: expected an int of 0 or more, below 2\*\*32$"):
            checked_seed(wrong)


def test_no_float_and_no_bool_is_an_int():
    assert [as_int(value) for value in (3, np.uint8(3), torch.tensor([3]))] == [3, 3, 3]
    assert [as_int(value) for value in (3.0, True, np.True_, torch.tensor(True), "3", None)] == [None] * 6


def test_a_share_is_between_its_bounds():
    assert [checked_share(value, "size") for value in (0.3, np.float32(0.5), torch.tensor(0.25))] == [0.3, 0.5, 0.25]
    for wrong in (0, 1, 1.0, -0.1, True, "0.3", None, float("nan")):
        with pytest.raises(interp.InputError, match=r"^size=[^\n]*: expected a share between 0 and 1$"):
            checked_share(wrong, "size")
    with pytest.raises(interp.InputError, match=r"^size=0.6: expected a share between 0 and 0.6$"):
        checked_share(0.6, "size", below=0.6)


def test_every_error_is_an_interp_error():
    assert issubclass(interp.InputError, interp.InterpError)
    assert issubclass(interp.InputError, ValueError)
    assert issubclass(interp.InputTypeError, TypeError)
    assert issubclass(interp.LayoutError, interp.InterpError)


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
