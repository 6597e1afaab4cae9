"""The toy's recipe: ``python -m interp.toy.train --out DIR`` trains the weights again from a seed.

There are four phases, as for LLaVA:

1. *language*: the decoder, on text (captions with a small weight, answers to both groups of questions);
2. *tower*: the image tower, on labels of patches; it is frozen afterwards;
3. *connector*: the connector, on captions of images, with everything else frozen; the result is `stage1`;
4. *instruct*: connector and decoder, on perception questions about images; the result is `tuned`. Abstraction questions
   about images are never trained.

Each phase writes a checkpoint to ``DIR/phases``. A second run of the command continues after the last finished phase.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from interp.files import whole_file
from interp.progress import progress_bar, quiet
from interp.toy import lessons
from interp.toy.language import COLOURS, KINDS, PLACES
from interp.toy.model import build_language_model, build_tower, build_vlm, save, vision_config

STEPS = {"language": 1800, "tower": 2000, "connector": 1000, "instruct": 600}
RATES = {"language": 1e-3, "tower": 2e-3, "connector": 2e-3, "instruct": 5e-4}
BATCHES = {"language": 48, "tower": 64, "connector": 64, "instruct": 48}
HELD_OUT = 192
REPORT_EVERY = 50
CHECK_EVERY = 250
RECALL, RECALL_STATE = 4, 2  # tokens to recall (an object has five words), from the state after the second layer


def optimise(
    phase: str,
    parameters: Iterable[nn.Parameter],
    loss_of_step: Callable[[int], Tensor],
    steps: int,
    check: Callable[[], str] = str,
) -> None:
    """Train with AdamW on a one-cycle schedule, with gradients clipped at norm 1.

    Prints a line of progress every `REPORT_EVERY` steps, and the line that `check` returns every `CHECK_EVERY` steps. On a
    terminal a bar shows the time left.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATES[phase], betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATES[phase], total_steps=steps, pct_start=0.1)
    start, running = time.monotonic(), None
    with progress_bar(f"training {phase}", steps, "steps") as bar:
        for step in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of_step(step)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            running = loss.item() if running is None else 0.95 * running + 0.05 * loss.item()
            if step % REPORT_EVERY == 0 or step == steps - 1:
                print(f"{phase} {step}/{steps} loss {running:.4f} {time.monotonic() - start:.0f} s", flush=True)
            if (step and step % CHECK_EVERY == 0) or step == steps - 1:
                print(check(), flush=True)
            bar.advance()


def weighted_loss(logits: Tensor, lesson: lessons.Lesson) -> Tensor:
    """The cross-entropy of `logits` `[row, token, vocab]` against the lesson's targets, as a weighted mean."""
    losses = nn.functional.cross_entropy(logits.float().flatten(0, 1), lesson.targets.flatten(), reduction="none")
    weights = lesson.weights.flatten()
    return (losses * weights).sum() / weights.sum()


def recall_loss(scores: Tensor, lesson: lessons.Lesson) -> Tensor:
    """The cross-entropy of `scores` `[row, token, RECALL * vocab]` against the `RECALL` tokens before each token."""
    ids = lesson.input_ids
    before = [nn.functional.pad(ids, (back, 0), value=lessons.PAD)[:, :-back] for back in range(1, RECALL + 1)]
    targets = torch.stack(before, dim=-1)
    return nn.functional.cross_entropy(scores.view(*targets.shape, -1).flatten(0, 2), targets.flatten())


@torch.no_grad()
def accuracy_by_kind(logits: Tensor, lesson: lessons.Lesson) -> str:
    """The share of a lesson's answers that are right, for each kind of question, as one line."""
    right = logits.argmax(dim=-1) == lesson.targets
    shares = []
    for index, kind in enumerate(KINDS):
        of_kind = lesson.kinds == index
        if of_kind.any():
            shares.append(f"{kind} {right[of_kind].float().mean().item():.2f}")
    return "  held out: " + ", ".join(shares)


def train_language(seed: int, steps: int) -> nn.Module:
    """Train the decoder on text.

    A look-up ("where is the 3 ?") takes two steps: the state of each place must hold the digit before it, and the last token
    must find the place that holds a 3. The first step does not lower the loss until the second one works, so without help
    the decoder guesses among the objects of the caption for thousands of steps. A recall loss helps: one linear map, which
    is discarded afterwards, predicts the previous tokens from an early state. With it, each kind of look-up is learned
    within hundreds of steps.
    """
    torch.manual_seed(seed)
    model = build_language_model()
    recall = nn.Linear(model.config.hidden_size, RECALL * model.config.vocab_size)

    def loss_of_step(step: int) -> Tensor:
        lesson = lessons.text_lesson(np.random.default_rng([seed, 1, step]), BATCHES["language"])
        output = model(input_ids=lesson.input_ids, use_cache=False, output_hidden_states=True)
        return weighted_loss(output.logits, lesson) + recall_loss(recall(output.hidden_states[RECALL_STATE]), lesson)

    def check() -> str:
        lesson = lessons.text_lesson(np.random.default_rng([seed, 5]), HELD_OUT, split="test")
        return accuracy_by_kind(model(input_ids=lesson.input_ids, use_cache=False).logits, lesson)

    optimise("language", [*model.parameters(), *recall.parameters()], loss_of_step, steps, check)
    return model


def train_tower(seed: int, steps: int) -> nn.Module:
    """Train the image tower to label patches, with a linear map on its last layer that is discarded afterwards."""
    torch.manual_seed(seed)
    tower = build_tower()
    sizes = [11, len(COLOURS) + 1, len(PLACES)]
    head = nn.Linear(vision_config().hidden_size, sum(sizes))

    def scores(pixels: Tensor) -> tuple[Tensor, ...]:
        return head(tower(pixel_values=pixels).last_hidden_state[:, 1:]).split(sizes, dim=-1)

    def loss_of_step(step: int) -> Tensor:
        pixels, labels = lessons.patch_lesson(np.random.default_rng([seed, 2, step]), BATCHES["tower"])
        parts = [
            nn.functional.cross_entropy(part.float().flatten(0, 1), labels[..., index].flatten())
            for index, part in enumerate(scores(pixels))
        ]
        return torch.stack(parts).sum()

    @torch.no_grad()
    def check() -> str:
        pixels, labels = lessons.patch_lesson(np.random.default_rng([seed, 5]), HELD_OUT, split="test")
        is_object = labels[..., 0] < 10
        right = torch.stack([part.argmax(-1) for part in scores(pixels)], dim=-1) == labels
        digit, colour, place = right[is_object].float().mean(dim=0).tolist()
        ground = right[~is_object][:, 0].float().mean().item()
        return f"  held out: digit {digit:.3f}, colour {colour:.3f}, place {place:.3f}, ground {ground:.3f}"

    optimise("tower", [*tower.parameters(), *head.parameters()], loss_of_step, steps, check)
    return tower


def train_on_images(vlm: Any, phase: str, seed: int, steps: int) -> None:
    """Train the connector on captions (phase "connector"), or connector and decoder on questions (phase "instruct")."""
    captions = phase == "connector"
    task = "caption" if captions else "questions"
    vlm.requires_grad_(False)
    vlm.model.multi_modal_projector.requires_grad_(True)
    if not captions:
        vlm.model.language_model.requires_grad_(True)
        vlm.lm_head.requires_grad_(True)

    def loss_of_step(step: int) -> Tensor:
        rng = np.random.default_rng([seed, 3 if captions else 4, step])
        lesson = lessons.image_lesson(rng, BATCHES[phase], task)
        return weighted_loss(logits_of(lesson), lesson)

    def logits_of(lesson: lessons.Lesson) -> Tensor:
        return vlm(input_ids=lesson.input_ids, pixel_values=lesson.pixel_values, use_cache=False).logits

    @torch.no_grad()
    def check() -> str:
        lesson = lessons.image_lesson(np.random.default_rng([seed, 5]), HELD_OUT, task, split="test")
        logits = logits_of(lesson)
        if captions:
            return f"  held out: caption loss {weighted_loss(logits, lesson).item():.3f}"
        return accuracy_by_kind(logits, lesson)

    optimise(phase, vlm.parameters(), loss_of_step, steps, check)


def load_phase(folder: Path, phase: str, module: nn.Module) -> nn.Module:
    """Load the checkpoint of this phase into the module."""
    path = folder / "phases" / f"{phase}.safetensors"
    if not path.is_file():
        raise SystemExit(f"error: {str(path)!r} is missing: run the phase {phase!r} first")
    module.load_state_dict(load_file(path))
    return module


def run_phase(folder: Path, phase: str, module: nn.Module, train: Callable[[], nn.Module | None]) -> None:
    """Load the checkpoint of this phase into `module`; if there is none, train and write it."""
    path = folder / "phases" / f"{phase}.safetensors"
    if path.is_file():
        load_phase(folder, phase, module)
        return
    trained = train() or module
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in trained.state_dict().items()}, partial)


def main(arguments: list[str] | None = None) -> None:
    """The command line of the recipe."""
    parser = argparse.ArgumentParser(prog="python -m interp.toy.train", description="Train the toy from a seed.")
    parser.add_argument("--out", type=Path, required=True, help="folder for base/, stage1/, tuned/ and phases/")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="a factor for the steps of every phase: 0.001 for a smoke run"
    )
    parser.add_argument("--no-progress", action="store_true", help="show no bars")
    parser.add_argument("--only", choices=list(STEPS), help="run only this phase; earlier phases must be finished")
    options = parser.parse_args(arguments)
    steps = {phase: max(2, round(options.scale * count)) for phase, count in STEPS.items()}
    with quiet(options.no_progress):
        make_weights(options.out, options.seed, steps, options.only)


def make_weights(out: Path, seed: int, steps: Mapping[str, int], only: str | None) -> None:
    """All phases, or only one, as the command line asks for them."""
    if only in (None, "language"):
        run_phase(out, "language", build_language_model(), lambda: train_language(seed, steps["language"]))
    if only in (None, "tower"):
        run_phase(out, "tower", build_tower(), lambda: train_tower(seed, steps["tower"]))
    if only in (None, "connector", "instruct"):
        torch.manual_seed(seed)
        vlm = build_vlm(load_phase(out, "language", build_language_model()), load_phase(out, "tower", build_tower()))
        save(vlm, out / "base")
        run_phase(out, "connector", vlm, lambda: train_on_images(vlm, "connector", seed, steps["connector"]))
        save(vlm, out / "stage1")
        if only != "connector":
            run_phase(out, "instruct", vlm, lambda: train_on_images(vlm, "instruct", seed, steps["instruct"]))
            save(vlm, out / "tuned")


if __name__ == "__main__":
    main()
