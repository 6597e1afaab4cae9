"""Adapters of PEFT: what a folder that holds one belongs to, and the weights that come of it.

An adapter is a small correction of some weights, kept in a folder of its own that names the model it was trained on, its base.
This package reads a model's weights, so an adapter is merged into its base: computed in float32 and rounded to the model's
precision once.
"""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import InputError, reason_of

NAME = "adapter_config.json"
NEEDS_PEFT = 'adapters need the package peft: pip install "interp-vlm[tuning]"'


def is_adapter(folder: Any) -> bool:
    """Whether this is a folder with an adapter and without a model."""
    with suppress(TypeError, ValueError, OSError):
        return (Path(folder) / NAME).is_file() and not (Path(folder) / "config.json").exists()
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


def merge_adapter(model: Any, folder: Path) -> nn.Module:
    """The model with the adapter in this folder merged into its weights, which are changed in place.

    Raises `InputError` for an adapter that does not fit the model, that cannot be read, and without the package peft.
    """
    try:
        from peft import LoraConfig, PeftModel
    except ImportError as error:
        raise InputError(NEEDS_PEFT) from error
    from safetensors import SafetensorError

    try:
        adapted: Any = PeftModel(model, LoraConfig.from_pretrained(str(folder), inference_mode=True))
        loaded = adapted.load_adapter(str(folder), "default")
        foreign = [*loaded.missing_keys, *loaded.unexpected_keys]
        if foreign:
            raise ValueError(f"{foreign[0]} is in one of them alone")
        exact = merged_weights(adapted.get_base_model())
        whole = adapted.merge_and_unload(safe_merge=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, SafetensorError) as error:
        raise InputError(
            f"the adapter in {str(folder)!r} does not fit a {type(model).__name__} ({reason_of(error)}): expected the adapter "
            "of this very model"
        ) from error
    with torch.no_grad():
        for name, weights in exact.items():
            whole.get_parameter(name).copy_(weights)
    for weights in whole.parameters():  # as in any model that was loaded
        weights.requires_grad_(weights.is_floating_point())
    return whole.eval()


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights (and biases) of the modules that have adapters with these added, float32, by their names without them.

    The model stays as it is. Merging is PEFT's, one module after the other, so that only one is copied at a time.
    """
    if not any(".lora_" in name for name, _ in model.named_parameters()):
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer

    merged: dict[str, Tensor] = {}
    for path, part in model.named_modules():
        if isinstance(part, BaseTunerLayer):
            own: Any = copy.deepcopy(part).to(torch.float32)
            own.merge(safe_merge=True)
            merged |= {f"{path}.{name}": each.detach() for name, each in own.get_base_layer().named_parameters()}
    return merged
