"""Adapters of PEFT: what a folder that holds one belongs to, and the weights that come of it.

An adapter is a small correction of some weights, kept in a folder of its own that names the model it was trained on, its base.
This package reads a model's weights, so an adapter is merged into its base: computed in float32 and rounded to the model's
precision once.
"""

from __future__ import annotations

import copy
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import InputError, reason_of, shown
from interp.models.copying import sharing_module
from interp.models.tensor_files import read_tensors

NAME = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_OF_MODELS = ("model*.safetensors", "pytorch_model*.bin")
NEEDS_PEFT = 'adapters need the package peft: pip install "interp-vlm[tuning]"'


def is_adapter(folder: Any) -> bool:
    """Whether this is a folder with an adapter and without the weights of a model; a model's config may lie beside it."""
    with suppress(TypeError, ValueError, OSError):
        weights = (each for pattern in _OF_MODELS for each in Path(folder).glob(pattern))
        return (Path(folder) / NAME).is_file() and next(weights, None) is None
    return False


def base_of(folder: Path) -> tuple[str, str | None]:
    """The name and the revision of the model that an adapter belongs to.

    Raises `InputError` for a folder that does not say, or that holds something else than LoRA.
    """
    try:
        config = json.loads((folder / NAME).read_text(encoding="utf-8"))
        base, kind = config["base_model_name_or_path"], config.get("peft_type")
    except (OSError, ValueError, TypeError, KeyError):
        base = kind = None
    if not isinstance(base, str) or not base or is_adapter(base):
        raise InputError(
            f"{str(folder)!r} names no model that its adapter belongs to: expected base_model_name_or_path"
        )
    if kind != "LORA":
        raise InputError(f"{str(folder)!r} holds an adapter of type {kind}: expected LORA, which can be merged")
    return base, config.get("revision")


def merge_adapter(model: Any, folder: Path) -> None:
    """Merge the adapter in this folder into the model's weights, which are changed in place.

    An adapter that goes by the names of this very model is put on it as it is. Any other is PEFT's to load, which knows the names
    of older releases of transformers; some names of today it takes for those.

    Raises `InputError` for an adapter that does not fit the model, that cannot be read, and without the package peft.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise InputError(NEEDS_PEFT) from error
    file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if file is None:  # PEFT would look for a repository of the folder's name
        raise InputError(f"{str(folder)!r} holds no weights of its adapter: expected {_WEIGHTS[0]} beside {NAME}")
    tensors = read_tensors(file)
    try:
        config: Any = LoraConfig.from_pretrained(str(folder), inference_mode=True)
        config.megatron_config = None  # with it PEFT imports a module that the file names
        tensors = {name.removeprefix("base_model.model."): each for name, each in tensors.items()}
        modules = {name.partition(".lora_")[0] for name in tensors if ".lora_" in name}
        whole = {name: each for name, each in tensors.items() if ".lora_" not in name}
        if modules and {*modules, *(f"{name}.weight" for name in modules), *whole} <= _all_names(model):
            weights = whole | _merged_by_name(
                model, config, {name: tensors[name] for name in tensors if name not in whole}
            )
        else:
            weights = _merged_by_peft(model, config, folder)
        with torch.no_grad():
            for name, each in weights.items():
                own = model.get_parameter(name)
                if each.shape != own.shape or not each.is_floating_point():
                    raise ValueError(f"{name} is {shown(each)} in {each.dtype}, expected {tuple(own.shape)}")
                own.copy_(each)
        for parameter in model.parameters():  # as in any model that was loaded; PEFT freezes it
            parameter.requires_grad_(parameter.is_floating_point())
    except Exception as error:  # whatever PEFT makes of settings that it does not check
        raise InputError(
            f"the adapter in {str(folder)!r} does not fit a {type(model).__name__} ({reason_of(error)}): expected the adapter "
            "of this very model"
        ) from error


def _all_names(model: nn.Module) -> set[str]:
    """The names of all modules and parameters."""
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return parameters | {name for name, _ in model.named_modules(remove_duplicate=False)}


def _merged_by_name(model: nn.Module, config: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights under these adapters with them added, where the model has modules of their names."""
    from peft import inject_adapter_in_model, set_peft_model_state_dict

    # PEFT takes names for older ones where it meets the config of a model: here it meets the parts alone.
    parts: Any = nn.Module()
    for name, part in sharing_module(model).named_children():
        parts.add_module(name, part)
    config.target_modules = "|".join(sorted({re.escape(name.partition(".lora_")[0]) for name in tensors}))
    config.exclude_modules = config.modules_to_save = None
    inject_adapter_in_model(config, parts)
    for name, parameter in parts.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
    loaded = set_peft_model_state_dict(parts, tensors)
    _refuse_rest([name for name in loaded.missing_keys if ".lora_" in name], loaded.unexpected_keys)
    return merged_weights(parts)


def _merged_by_peft(model: Any, config: Any, folder: Path) -> dict[str, Tensor]:
    """All weights of the model with the adapter that PEFT makes of this folder."""
    from peft import PeftModel

    adapted: Any = PeftModel(sharing_module(model), config)
    loaded = adapted.load_adapter(str(folder), "default")
    _refuse_rest(loaded.missing_keys, loaded.unexpected_keys)
    exact = merged_weights(adapted.get_base_model())
    return dict(adapted.merge_and_unload(safe_merge=True).named_parameters()) | exact


def _refuse_rest(missing: list[str], unexpected: list[str]) -> None:
    for names, what in ((missing, "is missing in the adapter"), (unexpected, "has no place in the model")):
        if names:
            raise ValueError(f"{names[0]} {what}")


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights (and biases) of the modules that have adapters with these added, float32, by their names without them.

    The model stays as it is. Merging is PEFT's, one module after the other, so that only one is copied at a time.
    """
    if not any(".lora_" in name for name, _ in model.named_parameters()):
        return {}
    from peft.tuners.lora.layer import ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged: dict[str, Tensor] = {}
    for path, part in model.named_modules():
        if isinstance(part, BaseTunerLayer) and not isinstance(part, ParamWrapper):  # that is for tensors of experts
            own: Any = copy.deepcopy(part).to(torch.float32)
            own.merge(safe_merge=True)
            merged |= {f"{path}.{name}": each.detach() for name, each in own.get_base_layer().named_parameters()}
    return merged
