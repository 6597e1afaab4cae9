"""Checkpoints: an ordinary folder of transformers, written whole or not at all.

    write_checkpoint(tuned, "out")
    AutoModelForImageTextToText.from_pretrained("out"), interp.load("out")

The folder holds the model, its settings for generation, and its processor with the tokenizer and the chat template. After LoRA it
holds the merged model, and in ``adapter/`` the adapter by itself: a PEFT folder that names its base by the name under which that
was loaded. Parts that were trained in full beside the adapters are in it too, as PEFT's `modules_to_save`.

Until the last moment the files lie in a hidden folder within. The config comes last, and without it nobody takes the folder for a
model. No file names a path of this machine.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from interp.errors import InputError, InputTypeError, shown
from interp.files import whole_folder
from interp.models import VLM

_LAST = "config.json"


def check_folder(out: Any, resume: bool = False) -> Path | None:
    """The folder that a training writes to, checked before anything is trained; None for none.

    >>> check_folder(None)

    Raises `InputError` for a folder that holds a finished model, one that holds anything if this is not to `resume` it, a
    file, and a place where no folder can be made; `InputTypeError` for what is no path.
    """
    if out is None:
        if resume:
            raise InputError("resume=True without out=: expected the folder in which the training was begun")
        return None
    if not isinstance(out, str | os.PathLike) or not str(out):
        raise InputTypeError(f"out={shown(out)}: expected a path to a folder, or None")
    folder = Path(out)
    if (folder / _LAST).exists():
        advice = "it is finished, interp.load opens it" if resume else "name another folder"
        raise InputError(f"out={str(out)!r} holds a model already: {advice}")
    if folder.is_dir() and any(folder.iterdir()) and not resume:
        raise InputError(
            f"out={str(out)!r} is not empty: name a new folder, or go on with what it holds by resume=True"
        )
    above = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"out={str(out)!r} cannot be made: {str(above)!r} is no folder that one can write to")
    return folder


def write_checkpoint(vlm: VLM, out: str | os.PathLike[str], adapter: nn.Module | None = None) -> None:
    """Write a model and its processor as `save_pretrained` does, whole or not at all; with the `adapter` of a tunable model.

    >>> import tempfile, interp
    >>> folder = Path(tempfile.mkdtemp()) / "out"
    >>> write_checkpoint(interp.load("toy"), folder)
    >>> interp.load(folder).name
    'out'

    `adapter` is the model that `tunable_model(..., lora=...)` gave and that was trained since. `out` may hold the
    checkpoints of a training, which stay.

    Raises `InputError` where it holds a model or cannot be written, and for a model whose weights are elsewhere.
    """
    folder = check_folder(out, resume=True)
    assert folder is not None
    if any(weights.is_meta for weights in vlm.model.parameters()):
        raise InputError(f"{vlm.name!r} has no weights here to write: expected a model that is loaded on this machine")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".*.partial"):  # of a write that was killed
            shutil.rmtree(left, ignore_errors=True)
        with whole_folder(folder, last=_LAST) as partial:
            _save_model(vlm.model, partial)
            _save_processor(vlm, partial)
            if adapter is not None:
                _save_adapter(adapter, vlm.structure.layers, partial / "adapter")
    except OSError as error:
        raise InputError(
            f"out={str(out)!r} cannot be written ({error.strerror or error}): expected room for it"
        ) from error


def _save_model(model: Any, folder: Path) -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    with _valid_settings(model) as settings:
        model.save_pretrained(folder)
        if settings is not None:
            settings.to_json_file(folder / "generation_config.json", keys_to_pop=["compile_config"])


@contextmanager
def _valid_settings(model: Any) -> Iterator[Any]:
    """Within it the model has default settings for generation: transformers refuses to save some that it loads itself."""
    settings = getattr(model, "generation_config", None)
    if settings is None:
        yield None
        return
    model.generation_config = type(settings)()
    try:
        yield settings
    finally:
        model.generation_config = settings


def _save_processor(vlm: VLM, folder: Path) -> None:
    processor = vlm.processor if vlm.processor is not None else vlm.tokenizer
    if processor is None:
        return
    # A tokenizer keeps whatever it was loaded with: a precision, which no file can hold, and a key to the hub.
    arguments = getattr(vlm.tokenizer, "init_kwargs", {})
    aside = {name: arguments.pop(name) for name in ("dtype", "torch_dtype", "token") if name in arguments}
    try:
        processor.save_pretrained(folder)
    finally:
        arguments |= aside


def _save_adapter(model: nn.Module, path: str, folder: Path) -> None:
    """The adapters on the layers at this path, and what else is trained in this model, as a folder of PEFT."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    layers: Any = model.get_submodule(path)
    state = get_peft_model_state_dict(layers, save_embedding_layers=False)
    tensors: dict[str, Tensor] = {f"{path}.{name}": each for name, each in state.items()}
    config = copy.copy(layers.peft_config["default"])
    config.target_modules = sorted({name.partition(".lora_")[0] for name in tensors})
    config.modules_to_save = _owners(model, path) or None
    config.inference_mode = True
    for owner in config.modules_to_save or ():
        tensors |= {f"{owner}.{name}": each for name, each in model.get_submodule(owner).state_dict().items()}
    folder.mkdir()
    config.save_pretrained(folder)
    prefixed = {f"base_model.model.{name}": each.detach().cpu().clone() for name, each in tensors.items()}
    save_file(prefixed, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _owners(model: nn.Module, path: str) -> list[str]:
    """The outermost modules that own a parameter that is trained in full; the layers at `path` have adapters alone."""
    owners = {
        name.rpartition(".")[0]
        for name, weights in model.named_parameters(remove_duplicate=False)
        if weights.requires_grad and not name.startswith(f"{path}.")
    }
    return sorted(owner for owner in owners if not any(owner.startswith(f"{other}.") for other in owners))
