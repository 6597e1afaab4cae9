"""Results: a saved result is read back unchanged, and other files are refused."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import interp
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
    from safetensors.torch import save_file

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


def test_a_result_without_a_frame_says_what_is_missing():
    with pytest.raises(TypeError, match="Anything has no to_frame: its class must define one"):
        Anything(1).to_frame()
