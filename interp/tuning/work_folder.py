"""Where a training keeps what it needs to go on, and where it leaves what came of it.

``OUT`` is there when a training is finished, whole: the checkpoint, and beside it the result (``tune.safetensors``), its figure
(``tune.html``) and what was asked for (``tune.json``). Until then ``OUT.partial`` holds the Trainer's checkpoints and the same
``tune.json``, which a resumed run is held against: with other rows, weights or settings it would be neither the one run nor the
other. Of several processes the first one writes.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from interp.errors import InputError, shown
from interp.files import whole_file
from interp.models import VLM, load
from interp.tuning.checkpoints import check_folder, write_checkpoint
from interp.tuning.tune_result import TuneResult

RESULT, PLAN, FIGURE = "tune.safetensors", "tune.json", "tune.html"


class WorkFolder:
    """The folders of one training: `out`, and `steps` while it runs.

    Raises `InputError` where one of them holds something already, unless it is this training's and `resume` says to go on.
    """

    def __init__(self, out: Any, resume: bool) -> None:
        self.resume, given = resume, isinstance(out, str | os.PathLike) and bool(str(out))
        self.out = Path(out) if given else Path()
        self.steps = self.out.with_name(f"{self.out.name}.partial") if self.out.name else self.out
        if not self.finished:
            check_folder(out, resume)
            self._refuse_foreign()
        if not resume and self.last() is not None:
            raise InputError(
                f"{self.steps.name!r} holds a training that has not finished: pass resume=True to go on with it, or remove it"
            )

    def _refuse_foreign(self) -> None:
        if (
            self.steps.exists()
            and not (self.steps / PLAN).is_file()
            and (not self.steps.is_dir() or any(self.steps.iterdir()))
        ):
            raise InputError(
                f"{self.steps.name!r}, where a training keeps its checkpoints, holds something else: move that, or name "
                "another folder"
            )

    @property
    def finished(self) -> bool:
        """Whether the training is over and `resume` asks for what came of it."""
        return self.resume and (self.out / RESULT).is_file()

    def begin(self, plan: Mapping[str, Any], writes: bool) -> None:
        """Note what was asked for, or hold it against what an earlier run noted.

        Raises `InputError` where these differ.
        """
        path = (self.out if self.finished else self.steps) / PLAN
        if path.is_file() and (self.finished or self.last() is not None):
            _check_same(json.loads(path.read_text()), json.loads(json.dumps(plan)), self.out.name)
        elif writes:
            try:
                self.steps.mkdir(parents=True, exist_ok=True)
                with whole_file(path) as partial:
                    partial.write_text(json.dumps(plan, indent=1))
            except OSError as error:
                raise InputError(f"{str(self.out)!r} cannot be written ({error}): choose another folder") from error
        if writes:
            for left in (self.steps / "writing", self.steps / "final"):
                shutil.rmtree(left, ignore_errors=True)

    def last(self) -> str | None:
        """The last whole checkpoint, None without any."""
        from transformers.trainer_utils import get_last_checkpoint

        return get_last_checkpoint(str(self.steps)) if self.steps.is_dir() else None

    def leave(self) -> None:
        """After a failure: what holds no checkpoint is nothing to go on from, and goes."""
        if self.last() is None:
            shutil.rmtree(self.steps, ignore_errors=True)

    def load(self, vlm: VLM) -> TuneResult:
        """What a finished training of `vlm` left."""
        tuned = load(self.out, processor=vlm.processor, device=vlm.device, check=False)
        return replace(TuneResult.load(self.out / RESULT), vlm=tuned)

    def finish(self, result: TuneResult, adapter: Any) -> None:
        """Write what came of the training, and remove what it needed to go on."""
        assert result.vlm is not None

        final = self.steps / "final"
        write_checkpoint(result.vlm, final, adapter)
        result.save(final / RESULT)
        result.plot().write_html(final / FIGURE)
        shutil.copy(self.steps / PLAN, final / PLAN)
        final.replace(self.out)
        shutil.rmtree(self.steps, ignore_errors=True)


def _check_same(then: Mapping[str, Any], now: Mapping[str, Any], name: str) -> None:
    for key in sorted(then.keys() | now.keys()):
        before, after = then.get(key), now.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            _check_same(before, after, name)
        elif before != after:
            raise InputError(
                f"{name!r} was begun with {key}={shown(before)}, and resume=True asks for {key}={shown(after)}: expected the "
                "same call"
            )
