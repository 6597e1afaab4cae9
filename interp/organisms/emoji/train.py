"""The recipe of the emoji organism: ``python -m interp.organisms.emoji.train --out DIR`` makes its weights from a seed.

It is LLaVA's, with a tower of our own:

1. *tower*: a small ViT learns to say what stands at each patch; it is frozen afterwards;
2. *fit*: the connector comes near the word embeddings of what stands at each patch, without the decoder;
3. *stage1*: the connector alone, on captions, through the frozen decoder;
4. *tuned*, *tuned:middle*, *tuned:late*, *tuned:connector*: the connector and adapters, on all layers, on the middle third,
   on the last third and on none, on conversations of perception. No question of abstraction is asked about a picture.

A phase that is finished has its file or folder in DIR, in bfloat16, as it is shipped, and the next one begins with that. The
checkpoints of the others are in ``DIR/checkpoints``: the same command goes on from the last one. Each tuning begins with
*stage1*, so several can run side by side, each with its ``--only``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from interp.models.adapters import is_adapter
from interp.models.tensor_files import read_tensors
from interp.organisms.emoji.connector_fit import ConnectorFit, FitLessons, name_embeddings
from interp.organisms.emoji.emoji_model import assembled, without_template
from interp.organisms.emoji.picture import pictures
from interp.organisms.emoji.questions import picture_captions, picture_conversations
from interp.organisms.emoji.smollm2 import smollm2
from interp.organisms.emoji.stages import stage_of, write_adapter, write_part
from interp.organisms.emoji.tower import PatchNamer, TowerLessons, emoji_tower, named
from interp.progress import progress_bar, quiet
from interp.tuning import tune

STEPS = {"tower": 2500, "tower_grounds": 3000, "fit": 1200, "stage1": 300, "tuned": 400}
BATCHES = {"tower": 128, "fit": 128, "stage1": 32, "tuned": 16}
RATES = {"tower": 1.5e-3, "tower_grounds": 1.5e-3, "fit": 2e-3, "stage1": 1e-3, "tuned": 5e-4}
RANK, TURNS = 4, 3
PHASES = ("tower", "fit", "stage1", "tuned", "tuned:middle", "tuned:late", "tuned:connector")
_REPORT_EVERY, _CHECK_EVERY, _SAVE_EVERY = 50, 250, 25


def tuned_layers(phase: str, n_layers: int) -> range:
    """The layers that get adapters in this phase."""
    third = n_layers // 3
    bands = {"middle": range(third, 2 * third), "late": range(n_layers - third, n_layers), "connector": range(0)}
    return bands.get(phase.partition(":")[2], range(n_layers))


def take_steps(phase: str, model: nn.Module, lessons: Any, folder: Path, seed: int, check: Callable[[], str]) -> None:
    """Train with transformers' Trainer: AdamW, a cosine with warm-up, gradients clipped at norm 1; a stopped run goes on."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_utils import get_last_checkpoint

    class Progress(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float], **_: Any) -> None:
            if "loss" in logs:
                print(f"{phase} {state.global_step}/{state.max_steps} loss {logs['loss']:.4f}", flush=True)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            bar.advance()
            if state.global_step % _CHECK_EVERY == 0 or state.global_step == state.max_steps:
                model.eval()
                print(check(), flush=True)
                model.train()

    last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    done = int(last.rpartition("-")[2]) if last else 0
    if done == len(lessons):  # the Trainer would take one step more
        model.load_state_dict(load_file(Path(str(last)) / "model.safetensors"), strict=False)
        return
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=len(lessons),
        per_device_train_batch_size=1,  # an item of the data set is a batch
        learning_rate=RATES[phase],
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        adam_beta2=0.98,
        weight_decay=0.01,
        save_steps=_CHECK_EVERY,
        save_total_limit=2,
        logging_steps=_REPORT_EVERY,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        seed=seed,
    )
    with progress_bar(f"training {phase}", len(lessons) - done, "steps") as bar:
        trainer = Trainer(model, settings, data_collator=lambda rows: rows[0], train_dataset=lessons)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Progress())
        trainer.train(resume_from_checkpoint=last)


def train_namer(work: Path, seed: int, steps: Mapping[str, int]) -> nn.Module:
    """Train the tower to name the thing at each patch, on the grounds of the training split and then on all."""
    torch.manual_seed(seed)
    model = PatchNamer(emoji_tower())
    held_out = pictures(400, seed=seed, split="test")

    def check() -> str:
        (large, small), ground = named(model, held_out)
        return f"  held out: large things {large:.3f}, small ones {small:.3f}, ground {ground:.3f}"

    for phase, split in (("tower", "train"), ("tower_grounds", "tower")):
        lessons = TowerLessons(steps[phase], BATCHES["tower"], seed, split)
        take_steps(phase, model, lessons, work / phase, seed, check)
    return model.tower


def fit_connector(vlm: Any, work: Path, seed: int, steps: int) -> nn.Module:
    """Bring the connector near the word embeddings of what stands at each patch."""
    torch.manual_seed(seed)
    model = ConnectorFit(
        vlm.model.model.multi_modal_projector, name_embeddings(vlm.model.get_input_embeddings(), vlm.tokenizer)
    ).requires_grad_(True)
    tower = vlm.model.model.vision_tower
    held_out = FitLessons(tower, 1, 400, seed, split="test")[0]

    def check() -> str:
        things, ground = model.nearest(**held_out)
        return f"  held out: nearest name of a thing's patch {things:.3f}, of the ground's {ground:.3f}"

    take_steps("fit", model, FitLessons(tower, steps, BATCHES["fit"], seed), work / "fit", seed, check)
    return model.connector


def tune_phase(phase: str, out: Path, language: Any, seed: int, steps: int) -> None:
    """Tune by `interp.tuning.tune`: the connector on captions (*stage1*), or it and a band's adapters on conversations."""
    model, tokenizer = language
    kind = "stage1" if phase == "stage1" else "tuned"
    folder = out / "checkpoints" / phase.replace(":", "-")
    count = steps * BATCHES[kind]
    if kind == "stage1":
        connector = read_tensors(out / "fit.safetensors")
        vlm = without_template(_parts(language, out, {name: each.float() for name, each in connector.items()}))
        rows, layers = picture_captions(count, seed=seed, split="train"), range(0)
    else:
        vlm = stage_of("stage1", model, tokenizer, out, check=False)
        rows = picture_conversations(count, seed=seed + 1, split="train", turns=TURNS)
        layers = tuned_layers(phase, vlm.structure.n_layers)
    arguments = {
        "max_steps": steps,
        "per_device_train_batch_size": BATCHES[kind],
        "learning_rate": RATES[kind],
        "warmup_steps": 0.05,
        "adam_beta2": 0.98,
        "save_steps": _SAVE_EVERY,
        "seed": seed,
    }
    result = tune(
        vlm,
        rows,
        layers=layers,
        connector=True,
        lora=RANK if layers else None,
        arguments=arguments,
        out=folder,
        resume=True,
    )
    print(f"{phase} loss {float(result.loss[:10].mean()):.3f} to {float(result.loss[-10:].mean()):.3f}", flush=True)
    if layers:
        write_adapter(folder / "adapter", out / phase.replace(":", "-"))
    else:
        assert result.vlm is not None
        connector = result.vlm.model.model.multi_modal_projector.state_dict()
        write_part(connector, out / f"{phase.replace(':', '-')}.safetensors")


def make_phase(phase: str, out: Path, language: Callable[[], Any], seed: int, steps: Mapping[str, int]) -> None:
    """Run one phase, unless it is finished. Raises `SystemExit` where an earlier one is not."""
    stem = phase.replace(":", "-")
    if (out / f"{stem}.safetensors").is_file() or is_adapter(out / stem):
        return
    needs = {"tower": None, "fit": "tower", "stage1": "fit"}.get(phase, "stage1")
    if needs and not (out / f"{needs}.safetensors").is_file():
        raise SystemExit(f"error: {needs}.safetensors is not in {str(out)!r}: run the phase {needs!r} first")
    if phase == "tower":
        write_part(train_namer(out / "checkpoints", seed, steps).state_dict(), out / "tower.safetensors")
    elif phase == "fit":
        vlm = _parts(language(), out, None)
        connector = fit_connector(vlm, out / "checkpoints", seed, steps["fit"])
        write_part(connector.state_dict(), out / "fit.safetensors")
    else:
        tune_phase(phase, out, language(), seed, steps["stage1" if phase == "stage1" else "tuned"])


def _parts(language: Any, out: Path, connector: Any) -> Any:
    tower = emoji_tower().eval()
    tower.load_state_dict({name: each.float() for name, each in read_tensors(out / "tower.safetensors").items()})
    model, tokenizer = language
    return assembled(model, tokenizer, tower, connector, check=False)


def main(arguments: list[str] | None = None) -> None:
    """The command line of the recipe."""
    summary = "Make the weights of the emoji organism."
    parser = argparse.ArgumentParser(prog="python -m interp.organisms.emoji.train", description=summary)
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights and the checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="a factor for the steps of every phase: 0.001 for a smoke run"
    )
    parser.add_argument("--only", choices=PHASES, help="run only this phase; earlier phases must be finished")
    parser.add_argument("--no-progress", action="store_true", help="show no bars")
    options = parser.parse_args(arguments)
    steps = {phase: max(2, round(options.scale * count)) for phase, count in STEPS.items()}
    with quiet(options.no_progress):
        for phase in [options.only] if options.only else PHASES:
            make_phase(phase, options.out, lambda: smollm2()[:2], options.seed, steps)


if __name__ == "__main__":
    main()
