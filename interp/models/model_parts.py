"""The parts of a model that is to be assembled: a language model with its tokenizer, an image tower with its image processor.

Each comes by name (a folder, a repository of the hub), in hand, or out of a loaded model. Of a model that is more than a tower,
such as a whole CLIP, the tower alone is taken: the first module that transformers would build from that module's own config, and
that takes pixels.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from interp.displays.brief import Display
from interp.errors import InputError, InputTypeError, reason_of, shown
from interp.models.layout.discovery import takes_images
from interp.models.loading import check_in_hand, load, public_name
from interp.models.vlm import VLM


@dataclass(frozen=True)
class ModelPart(Display):
    """A model, what prepares its inputs (a tokenizer, an image processor), and the name that it goes by."""

    model: Any
    processor: Any
    name: str


def language_part(source: Any, tokenizer: Any, device: str | torch.device, dtype: str | torch.dtype) -> ModelPart:
    """The language model with its tokenizer. Raises `InputError` for one that takes images or whose weights are not here."""
    if isinstance(source, str | os.PathLike):
        source = load(source, processor=tokenizer, device=device, dtype=dtype, check=False)
        device = "auto"
    if isinstance(source, VLM):
        part = ModelPart(source.model, tokenizer or source.tokenizer, source.name)
    elif isinstance(source, nn.Module) and hasattr(getattr(source, "config", None), "get_text_config"):
        part = ModelPart(source, tokenizer, _name_of(source))
    else:
        raise InputTypeError(
            f"language_model is a {type(source).__name__}: expected a name, a model of transformers, or a VLM"
        )
    if takes_images(part.model):
        raise InputError(
            f"language_model={part.name!r} takes images by itself: expected a language model alone, such as the one that it "
            "was built on"
        )
    check_in_hand(part.model, device, False, {})
    _refuse_elsewhere("language_model", part.model)
    if not callable(getattr(part.processor, "convert_ids_to_tokens", None)):
        raise InputError(f"tokenizer={shown(part.processor)}: expected the language model's, pass tokenizer=")
    return part


def vision_part(source: Any, image_processor: Any, dtype: torch.dtype) -> ModelPart:
    """The image tower with its image processor. Raises `InputError` for a model without one, or where a part is missing."""
    if isinstance(source, str | os.PathLike):
        return _named_tower(str(source), image_processor, dtype)
    names = [source.name] if isinstance(source, VLM) else []
    if isinstance(source, VLM):
        image_processor = image_processor or getattr(source.processor, "image_processor", None)
        source = source.model
    if not isinstance(source, nn.Module):
        raise InputTypeError(f"vision is a {type(source).__name__}: expected a name, a model in hand, or a VLM")
    tower = next((module for module in source.modules() if _is_tower(module)), None)
    if tower is None:
        raise InputError(
            f"vision is a {type(source).__name__}, in which no image tower of transformers is found: pass one"
        )
    _refuse_elsewhere("vision", tower)
    if not callable(image_processor):
        raise InputError(
            f"image_processor={shown(image_processor)}: expected the tower's, which sizes and normalises pictures, pass "
            "image_processor="
        )
    return ModelPart(tower, image_processor, names[0] if names else _name_of(source, tower))


def _named_tower(source: str, image_processor: Any, dtype: torch.dtype) -> ModelPart:
    """The tower of a folder or a repository of the hub, without the rest of what is saved there."""
    from safetensors import SafetensorError
    from transformers import MODEL_MAPPING, AutoConfig, AutoImageProcessor
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # else it lists all that a CLIP has beside its tower
    try:
        # Without this word transformers would ask on a terminal whether to run the code of a folder.
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        config = getattr(config, "vision_config", config)
        tower, report = MODEL_MAPPING[type(config)].from_pretrained(
            source, config=config, dtype=dtype, output_loading_info=True
        )
        image_processor = image_processor or AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"vision={source!r} cannot be loaded as an image tower ({reason_of(error)}): expected a folder or a hub repository "
            "of one, or pass it in hand"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    if report["missing_keys"] or not _is_tower(tower):
        lacks = sorted(report["missing_keys"])[:1] or "image inputs"
        raise InputError(
            f"vision={source!r} holds a {type(tower).__name__} that lacks {shown(lacks)}: expected an image tower with all "
            "of its weights"
        )
    return ModelPart(tower, image_processor, public_name(source))


def _name_of(*models: Any) -> str:
    """The name under which one of these was loaded, else the class of the last."""
    names = [getattr(model, "name_or_path", "") for model in models]
    return public_name(next(filter(None, names), type(models[-1]).__name__))


def _is_tower(module: nn.Module) -> bool:
    """Whether a module is what transformers builds as a LLaVA's tower from the module's own config."""
    from transformers import MODEL_MAPPING

    config = getattr(module, "config", None)
    is_model = config is not None and MODEL_MAPPING.get(type(config), None) is type(module)
    return is_model and module.main_input_name == "pixel_values" and not hasattr(config, "vision_config")


def _refuse_elsewhere(role: str, model: nn.Module) -> None:
    """Raise `InputError` for a part that is spread, offloaded, quantised or remote: its weights cannot be shared."""
    spread = any("_hf_hook" in vars(module) for module in model.modules())
    places = {weights.device for weights in model.parameters()}
    if spread or len(places) > 1 or torch.device("meta") in places:
        raise InputError(f"{role} is not whole on one device: load it without device_map, on one")
    odd = next((weights.dtype for weights in model.parameters() if not weights.is_floating_point()), None)
    if odd is not None:
        raise InputError(f"{role} has weights of {odd}: expected one that is not quantised")
