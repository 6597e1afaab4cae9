"""Trainings that tests start as processes of their own: ``python tests/tuning_scripts.py WHAT FOLDER``.

`killed` dies in the fourth step, `torn` while the third checkpoint's optimizer state is being written, both by SIGKILL,
which nothing can catch. `shared` is run by `torchrun`, and each process writes the frame of its result.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import interp
import tuning_oracles as oracles
from interp.tuning import tune

STEPS = 6
SAVED = {"max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 1e-3}
SAVED |= {"save_strategy": "steps", "save_steps": 1}
SHARED = {"max_steps": 5, "learning_rate": 1e-3, **oracles.SEQUENTIAL}


def train(out: Path | None, resume: bool = False, **options: Any) -> Any:
    """Six steps of which five are the first epoch, the rows in an order that the seed draws, a checkpoint at each."""
    vlm = interp.load("toy:stage1", device="cpu")
    return tune(vlm, oracles.rows(20), layers=range(2, 6), arguments=SAVED, out=out, resume=resume, **options)


def train_shared(size: int, out: Path | None = None, **more: Any) -> Any:
    """Five steps with batches of `size` rows in each process."""
    vlm = interp.load("toy:stage1", device="cpu")
    arguments = {"per_device_train_batch_size": size, **SHARED, **more}
    return tune(vlm, oracles.rows(12), layers=range(2, 6), arguments=arguments, out=out)


def train_aligned(size: int) -> Any:
    """Two steps with patch alignment, in which one of two processes has fewer masks, then no picture."""
    vlm, rows = interp.load("toy:stage1", device="cpu"), interp.toy.conversations(6, seed=0, questions=1)
    rows[1] = {**rows[1], "masks": None}
    rows += interp.toy.conversations(2, seed=1, modality="text", questions=1)
    arguments = {**SHARED, "per_device_train_batch_size": size, "max_steps": 2, "gradient_checkpointing": True}
    return tune(vlm, rows, layers=[7], connector=True, patch_alignment=2.0, arguments=arguments)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_step(step: int) -> None:
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    taken: list[int] = []

    def count(*_: Any) -> None:
        taken.append(1)
        if len(taken) == step:
            die()

    register_optimizer_step_pre_hook(count)


def die_in_checkpoint(number: int) -> None:
    """Half of the optimizer state's bytes are on the disk by then."""
    write, written = torch.save, []

    def save(value: Any, file: Any, *arguments: Any, **options: Any) -> None:
        write(value, file, *arguments, **options)
        if "optimizer" in Path(str(file)).name:
            written.append(file)
            if len(written) == number:
                os.truncate(file, os.path.getsize(file) // 2)
                die()

    torch.save = save


def main(what: str, folder: str) -> None:
    torch.set_num_threads(1)
    if what == "shared":
        result = train_shared(2, Path(folder) / "out")
        result.to_frame().to_json(Path(folder) / f"frame{os.environ['RANK']}.json")
        train_aligned(2).to_frame().to_json(Path(folder) / f"aligned{os.environ['RANK']}.json")
        return
    die_in_step(4) if what == "killed" else die_in_checkpoint(3)
    train(Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
