"""LoRA on a band: PEFT's adapters on the linear modules of some layers, and on no other.

An adapter adds a product of two narrow matrices to a frozen weight, W + (alpha / r) B A, and only A and B are trained (Hu et al.
2021). A rank says all of it: every `nn.Linear` in the layers of the band gets one, with alpha = 2 r as LLaVA's recipe has it.
A `peft.LoraConfig` says more; what it targets counts within the band alone. Weights that are no linear module, such as those of
experts that are one tensor, have no adapter.

The adapters are float32, and PEFT casts states on their way in and out, so they need no autocast in any precision.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from interp.arguments import checked_int
from interp.errors import InputError, reason_of, shown
from interp.models.adapters import NEEDS_PEFT

# What would train, or change, something outside of the adapters of the band.
_ELSEWHERE = (
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
    "layers_to_transform",
    "layer_replication",
)


def add_adapters(model: nn.Module, path: str, numbers: Sequence[int], lora: Any) -> Any:
    """Put adapters on the linear modules of the layers with these numbers, and freeze all others; their list is at `path`.

    Returns the config of the adapters, which the list keeps as its `peft_config`.

    Raises `InputError` for a `lora` that is neither a rank nor a `LoraConfig`, no layer, a config that targets nothing in them
    or that trains something beside adapters, and where the package peft is missing.
    """
    config, layers = adapter_config(lora), model.get_submodule(path)
    if not numbers:
        raise InputError(
            f"lora={shown(lora)} without a layer: expected layers= to name at least one, adapters go there"
        )
    linear = [
        name
        for name, part in layers.named_modules()
        if name.partition(".")[0] in set(map(str, numbers)) and _is_linear(part)
    ]
    targets = [name for name in linear if _is_target(config, f"{path}.{name}")]
    if not targets:
        kinds = ", ".join(sorted({name.rpartition(".")[2] for name in linear})) or "none at all"
        raise InputError(
            f"lora targets {shown(config.target_modules)} in layers {shown(list(numbers))}, and no linear module there is "
            f"that: expected one that they have ({kinds})"
        )
    from peft import inject_adapter_in_model

    frozen = {name: weights.data_ptr() for name, weights in layers.named_parameters()}
    # Exactly these: of a name in a list PEFT takes every module whose path ends with it. And it meets the layers alone: in
    # a whole model with experts it would take some names for theirs.
    config.target_modules, config.exclude_modules = "|".join(map(re.escape, targets)), None
    config.inference_mode = False
    for pattern in (config.rank_pattern, config.alpha_pattern):
        for name in [name for name in pattern if name.startswith(f"{path}.")]:
            pattern[name.removeprefix(f"{path}.")] = pattern.pop(name)
    try:
        inject_adapter_in_model(config, layers)
    except (ValueError, TypeError, RuntimeError, AttributeError, ImportError, NotImplementedError) as error:
        raise InputError(
            f"PEFT cannot make these adapters ({reason_of(error)}): expected another LoraConfig"
        ) from error
    for name, weights in layers.named_parameters():
        if weights.requires_grad:
            weights.data = weights.data.float()
        elif frozen[name.replace(".base_layer.", ".")] != weights.data_ptr():
            raise InputError(
                f"init_lora_weights={shown(config.init_lora_weights)} changes the weights under the adapters: expected "
                "True, 'gaussian' or another that leaves them as they are"
            )
    return config


def plain_config(lora: Any) -> Any:
    """A rank or a config as JSON has it, the same in every process: sets are sorted."""
    given = lora.to_dict() if hasattr(lora, "to_dict") else lora
    return json.loads(json.dumps(given, default=lambda value: sorted(value) if isinstance(value, set) else str(value)))


def adapter_config(lora: Any) -> Any:
    """A rank or a config as a config of our own. Raises `InputError` for anything else."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise InputError(NEEDS_PEFT) from error
    if not isinstance(lora, LoraConfig):
        rank = checked_int(lora, "lora", least=1, what="a rank, or a peft.LoraConfig; a rank is an int")
        return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    for name in _ELSEWHERE:
        if getattr(lora, name, None):
            raise InputError(
                f"LoraConfig({name}={shown(getattr(lora, name))}): expected none, layers=, connector=, vision= and head= say "
                "what is trained"
            )
    if lora.bias != "none" or lora.lora_bias:
        raise InputError(
            f"LoraConfig(bias={lora.bias!r}, lora_bias={lora.lora_bias}): expected 'none' and False, the matrices of the "
            "adapters alone are trained in the band"
        )
    return copy.deepcopy(lora)


def _is_linear(part: nn.Module) -> bool:
    """Whether this is a linear module and nothing more: some routers derive from it and return several values."""
    if not isinstance(part, nn.Linear):
        return False
    if type(part).forward is nn.Linear.forward:
        return True
    with torch.no_grad(), suppress(RuntimeError, TypeError, ValueError, IndexError):
        output = part(part.weight.new_zeros(1, part.in_features))
        return isinstance(output, torch.Tensor) and output.shape == (1, part.out_features)
    return False


def _is_target(config: Any, name: str) -> bool:
    """Whether a config targets this linear module; without `target_modules` it targets all."""
    from peft.tuners.tuners_utils import check_target_module_exists

    if config.target_modules in (None, "all-linear"):
        config = copy.copy(config)
        config.target_modules = {name}
    return bool(check_target_module_exists(config, name))
