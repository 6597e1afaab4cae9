"""The recipe of the emoji organism: ``python -m interp.organisms.emoji.train --out DIR`` makes its weights from a seed."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from interp.files import whole_file
from interp.organisms.emoji.picture import pictures
from interp.organisms.emoji.tower import PatchNamer, TowerLessons, emoji_tower, named
from interp.progress import Bar, progress_bar

STEPS = {"tower": 2500}
BATCHES = {"tower": 128}
RATES = {"tower": 1.5e-3}
REPORT_EVERY, CHECK_EVERY = 50, 250


class _Progress(TrainerCallback):
    """Shows the bar, prints a line now and then, and what a check says."""

    def __init__(self, phase: str, bar: Bar, check: Any) -> None:
        self.phase, self.bar, self.check = phase, bar, check

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **_: Any) -> None:
        if "loss" in logs:
            print(f"{self.phase} {state.global_step}/{state.max_steps} loss {logs['loss']:.4f}", flush=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.total = state.max_steps
        self.bar.advance()
        if state.global_step % CHECK_EVERY == 0 or state.global_step == state.max_steps:
            print(self.check(), flush=True)


def take_steps(phase: str, model: nn.Module, lessons: Any, folder: Path, seed: int, check: Any) -> None:
    """Train with transformers' Trainer: AdamW, a cosine with warm-up, gradients clipped at norm 1; a stopped run goes on."""
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=len(lessons),
        per_device_train_batch_size=1,  # an item of the data set is a batch
        learning_rate=RATES[phase],
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        adam_beta2=0.98,
        weight_decay=0.01,
        save_steps=CHECK_EVERY,
        save_total_limit=2,
        logging_steps=REPORT_EVERY,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=seed,
    )
    with progress_bar(f"training {phase}", None, "steps") as bar:
        trainer = Trainer(model, settings, data_collator=lambda rows: rows[0], train_dataset=lessons)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_Progress(phase, bar, check))
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)


def train_namer(folder: Path, seed: int, steps: int) -> nn.Module:
    """Train the tower to name the thing at each patch."""
    torch.manual_seed(seed)
    model = PatchNamer(emoji_tower())
    held_out = pictures(400, seed=seed, split="test")

    def check() -> str:
        model.eval()
        (large, small), ground = named(model, held_out)
        model.train()
        return f"  held out: large things {large:.3f}, small ones {small:.3f}, ground {ground:.3f}"

    take_steps("tower", model, TowerLessons(steps, BATCHES["tower"], seed), folder / "tower", seed, check)
    return model.tower


def finish(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a phase's tensors whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, partial)


def main(arguments: list[str] | None = None) -> None:
    """The command line of the recipe."""
    parser = argparse.ArgumentParser(prog="python -m interp.organisms.emoji.train", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="a factor for the steps of every phase")
    parser.add_argument("--no-progress", action="store_true", help="show no bars")
    options = parser.parse_args(arguments)
    steps = {phase: max(2, round(options.scale * count)) for phase, count in STEPS.items()}
    path = options.out / "tower.safetensors"
    tower = emoji_tower()
    if path.is_file():
        tower.load_state_dict(load_file(path))
    else:
        tower = train_namer(options.out / "checkpoints", options.seed, steps["tower"])
        finish(path, tower.state_dict())


if __name__ == "__main__":
    main()
