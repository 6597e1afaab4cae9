"""transformers' Trainer with what this package needs of it: a loss over answers, a record of each step, small checkpoints.

The Trainer and accelerate train: the order of rows, mixed precision, accumulation, several processes, clipping, the
optimiser, the schedule, checkpoints and their resuming are theirs. Four things differ here:

- **Loss.** The mean over all answer tokens of a step, however these are spread over accumulated batches and processes: the
  model's own mean over a batch, times the batch's share of the step's tokens. That holds for models that do not take
  the number of tokens too.
- **Record.** What a step cost stands in the Trainer's own history beside loss and learning rate, and so in its checkpoints.
- **Backward pass.** It ends where nothing below is trained, also when activations are checkpointed: for that the Trainer
  would make the embeddings require a gradient.
- **Checkpoints.** They hold what is trained, as safetensors, beside the state of the optimiser, of the schedule and of the
  random numbers. Each is written under another name and renamed when it is whole, so a killed run goes on from a whole one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_utils import rotate_checkpoints

from interp.errors import InputError, InterpError, reason_of, shown
from interp.progress import Bar
from interp.tuning.patch_alignment import PatchAlignment
from interp.tuning.step_costs import StepClock, StepCosts, count_costs, gradient_bytes, state_bytes

_WEIGHTS = "trained.safetensors"
_WRITING = "writing"


class _StepEnds(TrainerCallback):
    """Tells the trainer when a step begins and ends, which only a callback is told."""

    def __init__(self, trainer: TuningTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.trainer.clock.lap("optimizer")


class TuningTrainer(Trainer):
    """Trains what requires a gradient in `model` on the rows of a data set, with an `extra` loss added to the model's."""

    def __init__(
        self, model: nn.Module, args: Any, rows: Any, collator: Any, extra: PatchAlignment | None, bar: Bar
    ) -> None:
        super().__init__(model=model, args=args, data_collator=collator, train_dataset=rows)
        self.remove_callback(PrinterCallback)
        self.add_callback(_StepEnds(self))
        self.model_accepts_loss_kwargs = True  # so that the tokens of a step are counted, for any model
        self._loss_shifts_labels = True
        self.loss_is_scaled_for_ga = True
        self._trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self.bar, self.clock = bar, StepClock(args.device)
        self.extra = extra
        self._watched, self._hooks = None, [model.register_forward_hook(self._reach_something)]
        if self.extra is not None:
            self._hooks.append(self.extra.watched(model).register_forward_hook(self._keep_output))
        self._begun = False
        self._costs: StepCosts | None = None
        self._gradient_bytes, self._cut_off = 0, list[Tensor]()
        self._extra_count, self._extra_loss = 0.0, 0.0

    # A run ---------------------------------------------------------------------------------------------------------------

    def run(self, checkpoint: str | None) -> None:
        """Train, from a checkpoint on if there is one.

        Raises `InputError` for settings that cannot be used together, a checkpoint that cannot be read and data without a step.
        """
        try:
            self.train(resume_from_checkpoint=checkpoint)
        except InterpError as error:
            lines = str(error).strip().splitlines()
            if len(lines) > 1:  # a worker of the DataLoader puts its traceback before the message
                raise InputError(lines[-1].partition(": ")[2]) from None
            raise
        except Exception as error:
            if self._begun or isinstance(error, torch.OutOfMemoryError):
                raise
            if checkpoint is not None:
                raise _unreadable(checkpoint, error) from error
            raise InputError(f"arguments cannot be used: {reason_of(error)}") from error
        finally:
            self.finish()
        if not self.state.global_step:
            raise InputError(
                f"no step was taken: the {len(self.train_dataset)} rows do not fill a batch of "
                f"{self.args.per_device_train_batch_size}; lower per_device_train_batch_size, or leave out dataloader_drop_last"
            )

    def begin(self) -> None:
        """Called when everything is prepared, before the first step."""
        # The hook is for adapters on a frozen model; with it the backward pass would go down to the embeddings.
        if hasattr(self.model, "disable_input_require_grads"):
            self.model.disable_input_require_grads()
        self._costs = StepCosts() if self.state.global_step == 0 and not self.args.torch_compile else None
        self._begun = True
        self.bar.total = self.state.max_steps - self.state.global_step
        if self.args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def finish(self) -> None:
        """Take off the model what was put around it for training, and bring it to eval mode."""
        for hook in self._hooks:
            hook.remove()
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        model.zero_grad(set_to_none=True)
        model.eval()

    def _reach_something(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """A batch without pictures does not run the connector: where that alone is trained, its gradient is 0, not missing."""
        if not outputs["logits"].requires_grad:
            nothing = 0 * next(iter(self._trained.values())).sum()
            outputs["loss"], outputs["logits"] = outputs["loss"] + nothing, outputs["logits"] + nothing

    def _keep_output(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._watched = output

    def _run_epoch(self, *arguments: Any, **options: Any) -> None:
        # A run that was stopped between its last step and its end has no steps left; the Trainer would take one more.
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*arguments, **options)

    # A step --------------------------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The batches of a step, and the number of their answer tokens in all processes."""
        batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.extra is not None:
            counts = [float(self.extra.count(_targets_in(batch))) for batch in batches]
            self._extra_count = self._mean_over_processes(sum(counts)) * self.args.world_size
        return batches, tokens

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The forward and the backward pass of one batch, timed or counted."""
        inputs = dict(inputs)
        numbers, cut_off = inputs.pop("row_numbers"), inputs.pop("cut_off")
        self._cut_off.append(numbers[cut_off])
        counted = nullcontext() if self._costs is None else count_costs(self.model, self._costs)
        self.clock.restart()
        with counted:
            loss = super().training_step(model, inputs, num_items_in_batch)
        self.clock.lap("backward")
        if self._costs is not None:
            self._gradient_bytes = gradient_bytes(self.model)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This batch's share of the step's loss; shares of all batches and the mean over all processes add up to it."""
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()  # its running statistics belong to the frozen model
        targets = _targets_in(inputs)
        inputs = {name: value for name, value in inputs.items() if name not in targets}
        labels = inputs["labels"]
        self._watched = None
        outputs = model(**inputs)
        processes = self.accelerator.num_processes
        tokens = int(labels[..., 1:].ne(-100).sum())
        if tokens == 0:  # the mean over nothing is NaN, and so is its gradient
            loss = outputs["logits"].float().sum() * 0
        else:
            mean = outputs["loss"] if self.label_smoother is None else self.label_smoother(outputs, labels, True)
            loss = mean * (processes * tokens / max(float(num_items_in_batch), 1))
        if self.extra is not None and (count := float(self.extra.count(targets))) > 0:
            added = self.extra.loss(self._watched, targets) * (processes * count / self._extra_count)
            self._extra_loss += float(added.detach())
            loss = loss + added
        self.clock.lap("forward")
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nothing: the Trainer's estimate knows neither pictures nor what is frozen."""
        return 0

    # The record ----------------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Put what a step cost beside its loss. Raises `InputError` for a loss that is not finite."""
        if "loss" in logs:
            step, loss = self.state.global_step, logs["loss"]
            if not math.isfinite(loss):
                raise InputError(
                    f"the loss of step {step} is {loss}: expected a finite number; take a lower learning_rate, clip gradients "
                    "(max_grad_norm), or train in a wider precision"
                )
            logs |= self._costs_of_step()
            self.bar.advance(remark=f"loss {loss:.3g}")
        super().log(logs, start_time)

    def _costs_of_step(self) -> dict[str, Any]:
        seconds = self.clock.read()
        record: dict[str, Any] = {} if self._costs is not None else seconds
        if self._costs is not None:
            flops = torch.tensor(float(self._costs.flops), dtype=torch.float64, device=self.args.device)
            record = {
                "flops": float(self.accelerator.gather(flops).sum()),
                "activation_bytes": self._costs.activation_bytes,
                "gradient_bytes": self._gradient_bytes,
                "optimizer_bytes": state_bytes(self.optimizer),
            }
            self._costs = None
        if self.args.device.type == "cuda":
            record["peak_bytes"] = torch.cuda.max_memory_allocated()
        if self.extra is not None:
            record["extra_loss"], self._extra_loss = self._mean_over_processes(self._extra_loss), 0.0
        cut_off, self._cut_off = torch.cat(self._cut_off), []
        if self.args.world_size > 1:
            cut_off = self.accelerator.gather(self.accelerator.pad_across_processes(cut_off, pad_index=-1))
        return record | {"cut_off": sorted({int(row) for row in cut_off if row >= 0})}

    def _mean_over_processes(self, value: float) -> float:
        if self.args.world_size == 1:
            return value
        return float(self.accelerator.gather(torch.tensor(value, dtype=torch.float64, device=self.args.device)).mean())

    # Checkpoints ---------------------------------------------------------------------------------------------------------

    def _get_output_dir(self, trial: Any) -> str:
        return os.path.join(self.args.output_dir, _WRITING)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint beside the others, and rename it when every process has written its part."""
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self.args.output_dir)
            (written,) = (folder / _WRITING).iterdir()
            written.replace(folder / written.name)
            rotate_checkpoints(str(folder), self.args.save_total_limit)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        from safetensors.torch import save_file

        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            tensors = {name: each.detach().cpu().contiguous() for name, each in self._trained.items()}
            save_file(tensors, folder / _WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        from safetensors.torch import load_file

        folder = Path(resume_from_checkpoint)
        own = "" if self.args.world_size == 1 else f"_{self.args.process_index}"
        # The Trainer would begin anew what it finds no file of.
        for name in (OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME, f"rng_state{own}.pth"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{name} is missing")
        saved = load_file(folder / _WEIGHTS)
        other = sorted(saved.keys() ^ self._trained.keys())
        if other:
            raise InputError(
                f"the checkpoint {shown(folder.name)} was written by another training: {other[0]} is "
                "trained in one of them alone"
            )
        with torch.no_grad():
            for name, each in self._trained.items():
                each.copy_(saved[name])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        try:
            super()._load_rng_state(checkpoint)
        except Exception as error:
            raise _unreadable(checkpoint, error) from error


def _unreadable(checkpoint: str | None, error: Exception) -> InputError:
    return InputError(
        f"the checkpoint {shown(Path(str(checkpoint)).name)} cannot be read ({reason_of(error)}): remove it, and resume=True "
        "goes on from the one before"
    )


def _targets_in(batch: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name.startswith("extra_")}
