"""How a training runs: LLaVA's settings, under the caller's.

Every setting is a field of transformers' `TrainingArguments` and means what it means there. `DEFAULTS` are those of LLaVA's
second stage, visual instruction tuning (Liu et al. 2023): one epoch of AdamW at 2e-5, a cosine with 3 % warm-up, gradients
clipped at norm 1, no weight decay. LLaVA has 128 rows in a step; here it is 16, and with the fields
`gradient_accumulation_steps` and `per_device_train_batch_size` and several processes any number.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import torch

from interp.arguments import checked_choice, checked_flag, checked_int, checked_number, checked_seed
from interp.errors import InputError, InputTypeError, reason_of, shown

DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-5,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.03,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 16,
    "save_strategy": "steps",
    "save_steps": 500,
    "save_total_limit": 2,
    "report_to": "none",
    "seed": 0,
}
# What the trainer needs to be so.
_FIXED: dict[str, Any] = {
    "remove_unused_columns": False,
    "logging_strategy": "steps",
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "disable_tqdm": True,
    "eval_strategy": "no",
    "load_best_model_at_end": False,
    "push_to_hub": False,
    "eval_on_start": False,
    "auto_find_batch_size": False,
    "average_tokens_across_devices": True,
    "save_only_model": False,
}
# What a call of `tune` says elsewhere, or what cannot be had: frozen tensors are shared with the model that is given.
_ELSEWHERE = {
    "output_dir": "pass out=",
    "resume_from_checkpoint": "pass resume=True",
    "use_cpu": "a model is trained on the device that it was loaded on",
    "label_names": "labels stand on answers",
    **dict.fromkeys(
        ("fsdp", "deepspeed", "parallelism_config"),
        "frozen tensors belong to the model that is given, and cannot be spread",
    ),
}
_COUNTS = ("max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "save_steps")


def training_arguments(arguments: Any, device: torch.device, half: torch.dtype | None, folder: Path | None) -> Any:
    """transformers' `TrainingArguments` from a mapping over `DEFAULTS`, or from such an object.

    `half` is the precision of a model in 16 bits: what is trained has 32, so it needs mixed precision, bf16 unless fp16 is asked
    for.
    Without a `folder` no checkpoint is written.

    Raises `InputTypeError` for anything else, `InputError` for a field that is unknown, that `tune` sets itself or whose value
    cannot be used.
    """
    from transformers import TrainingArguments

    if isinstance(arguments, TrainingArguments):
        made = copy.copy(arguments)
        if made.fsdp or made.deepspeed or made.parallelism_config:
            raise InputError(f"arguments has fsdp, deepspeed or parallelism_config: {_ELSEWHERE['fsdp']}")
    else:
        given = _checked_fields(arguments, {each.name: each for each in fields(TrainingArguments)})
        chosen = DEFAULTS | given | _FIXED | {"output_dir": str(folder or "."), "use_cpu": device.type == "cpu"}
        if half and not given.get("fp16"):
            chosen.setdefault("bf16", True)
        try:
            made = TrainingArguments(**chosen)
        except (TypeError, ValueError, ImportError, KeyError) as error:
            raise InputError(f"arguments={shown(dict(given))} cannot be used: {reason_of(error)}") from error
    if device.type == "cpu" and (made.fp16 or half is torch.float16):
        raise InputError("a CPU trains nothing in float16: take bf16, or load the model in bfloat16 or float32")
    if half and not (made.bf16 or made.fp16):
        raise InputError(
            "the model is in 16 bits and what is trained in 32: set bf16 or fp16 in arguments, or load it in float32"
        )
    for name, value in _FIXED.items():
        setattr(made, name, value)
    made.output_dir = str(folder or ".")
    if folder is None:
        made.save_strategy = "no"
    made._n_gpu = min(made.n_gpu, 1)  # one process trains on one device; torchrun starts more
    _set_checkpointing(made)
    if made.ddp_find_unused_parameters is None:  # a process whose rows have no pictures does not run the connector
        made.ddp_find_unused_parameters = True
    if made.device != device and (made.device.type, made.device.index or 0) != (device.type, device.index or 0):
        raise InputError(
            f"the model is on {device} and transformers trains on {made.device} here: load it there, or set "
            "CUDA_VISIBLE_DEVICES"
        )
    return made


def _checked_fields(arguments: Any, known: Mapping[str, Field[Any]]) -> dict[str, Any]:
    """The caller's fields, held against those that are `known`."""
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping):
        raise InputTypeError(
            f"arguments={shown(arguments)}: expected a dict of fields of transformers' TrainingArguments, or such an object"
        )
    for name, value in arguments.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f": did you mean {near[0]!r}?" if near else ", see transformers' TrainingArguments"
            raise InputError(f"arguments has {shown(name)}, which is no field of TrainingArguments{hint}")
        if name in _ELSEWHERE:
            raise InputError(f"arguments has {name!r}: leave it out, {_ELSEWHERE[name]}")
        if name in _FIXED and value != _FIXED[name]:
            raise InputError(f"arguments has {name}={shown(value)}: leave it out, tune needs {_FIXED[name]!r}")
        if name == "save_strategy":
            checked_choice(str(value), name, ("no", "steps", "epoch"))
        if name in _COUNTS and not (name == "save_steps" and isinstance(value, float)):
            checked_int(value, f"arguments[{name!r}]", least=1)
        if known[name].type in (bool, bool | None) and value is not None:
            checked_flag(value, f"arguments[{name!r}]")
        if isinstance(known[name].default, float):
            checked_number(value, f"arguments[{name!r}]")
        if name in ("num_train_epochs", "learning_rate") and not float(value) > 0:
            raise InputError(f"arguments[{name!r}]={shown(value)}: expected a number above 0")
    if "seed" in arguments:
        checked_seed(arguments["seed"])
    return dict(arguments)


def _set_checkpointing(made: Any) -> None:
    """Checkpointed layers must let gradients begin within the model, which torch's older way cannot."""
    for name in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        if hasattr(made, name):
            options = dict(getattr(made, name) or {})
            if options.setdefault("use_reentrant", False):
                raise InputError(
                    f"arguments has {name}={shown(options)}: use_reentrant must be False, else a layer whose input needs no "
                    "gradient is not trained"
                )
            setattr(made, name, options)


# What changes neither what is learned nor what it costs, or stands elsewhere.
_UNSAID = (
    *_FIXED,
    *_ELSEWHERE,
    *("save_strategy", "save_steps", "save_total_limit", "save_on_each_node", "report_to", "run_name", "project"),
    *("local_rank", "gradient_checkpointing", "log_level", "log_level_replica", "log_on_each_node", "ddp_backend"),
    *("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
)


def changed_fields(made: Any, usual: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings of a run, as plain values, that differ from the `usual` ones, which are transformers' own by default."""
    from transformers import TrainingArguments

    known = {each.name: each.default for each in fields(TrainingArguments)} | {"activation_checkpointing": False}
    known |= dict(usual or {})
    return {
        name: value
        for name, value in sorted(made.to_dict().items())
        if name in known
        and name not in _UNSAID
        and value != known[name]
        and (name == "lr_scheduler_kwargs" or isinstance(value, str | int | float))
        and (name == "dataloader_drop_last" or not name.startswith(("hub_", "dataloader_")))
    }
