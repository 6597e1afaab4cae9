"""The folder of a comparison of bands: what each run found, written when it is over, so that a comparison that died goes on.

``comparison.json`` says what was asked for; a call that goes on is held against it. Each run of a band and a seed leaves
``01-early-seed0.safetensors``, what the training was (a `TuneResult`), and ``01-early-seed0.json``, its answers. While it runs
there is the folder ``01-early-seed0`` of its training too, from which `tune` goes on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.errors import InputError, InputTypeError, shown
from interp.files import whole_file
from interp.tuning.tune_result import TuneResult

PLAN, RESULT, TIMES = "comparison.json", "comparison.safetensors", "times.json"


@dataclass(frozen=True)
class BandRun:
    """One band tuned with one seed: the `result` of the training, without its model, and its right `answers`, by "test" and
    "text"."""

    result: TuneResult
    answers: dict[str, Bool[Tensor, " question"]]


class RunFolder:
    """The folder `out` of a comparison that was asked for by `plan`.

    Raises `InputError` for a folder that holds something else, or another comparison, and for one that holds this comparison
    where `resume` does not say to go on.
    """

    def __init__(self, out: Any, plan: Mapping[str, Any], resume: bool) -> None:
        if not isinstance(out, str | os.PathLike) or not str(out):
            raise InputTypeError(f"out={shown(out)}: expected the name of a folder")
        self.path, plan = Path(out), json.loads(json.dumps(plan))
        if (self.path / PLAN).is_file():
            if not resume:
                raise InputError(
                    f"{self.path.name!r} holds a comparison: pass resume=True to go on with it, or choose another folder"
                )
            _check_same(self._read(PLAN), plan, self.path.name)
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InputError(f"{self.path.name!r} holds something else already: expected a new or an empty folder")
        else:
            self._write(PLAN, json.dumps(plan, indent=1))

    def run(self, place: int, name: str, seed: int, train: Callable[..., BandRun]) -> BandRun:
        """The run of the band at this place and of this name with this seed: from its files, or `train(out=, resume=)` and then
        written."""
        stem = f"{place:02d}-{re.sub(r'[^A-Za-z0-9]+', '-', name)[:40]}-seed{seed}"
        answers, result, model = (self.path / f"{stem}{ending}" for ending in (".json", ".safetensors", ""))
        if not answers.is_file():
            begun = model.exists() or model.with_name(f"{model.name}.partial").exists()
            run = train(out=model, resume=begun)
            run.result.save(result)
            right = {data: "".join("01"[bool(each)] for each in part) for data, part in run.answers.items()}
            self._write(answers.name, json.dumps(right))
        shutil.rmtree(model, ignore_errors=True)
        right = self._read(answers.name)
        tables = {data: torch.tensor([each == "1" for each in part]) for data, part in right.items()}
        return BandRun(TuneResult.load(result), tables)

    def times(self, measure: Callable[[], Tensor]) -> Tensor:
        """The seconds that were measured, or those that `measure` gives, which are then written."""
        if not (self.path / TIMES).is_file():
            self._write(TIMES, json.dumps(measure().tolist()))
        return torch.tensor(self._read(TIMES), dtype=torch.float64)

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            what = "choose another folder" if name == PLAN else "remove it, and it is made again"
            raise InputError(f"{name!r} in {self.path.name!r} cannot be read ({error}): {what}") from error

    def _write(self, name: str, text: str) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with whole_file(self.path / name) as partial:
                partial.write_text(text)
        except OSError as error:
            raise InputError(f"{str(self.path)!r} cannot be written ({error}): choose another folder") from error


def _check_same(then: Mapping[str, Any], now: Mapping[str, Any], name: str) -> None:
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key):
            raise InputError(
                f"{name!r} was begun with {key}={shown(then.get(key))}, and this call has {shown(now.get(key))}: expected the "
                "same call, or another folder"
            )
