"""Loading a model: the bundled toy, a folder, a repository of the hub, or objects in hand; locally or on NDIF."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import interp
from interp.errors import InputError, LayoutError
from interp.models.structure import Structure, find_structure
from interp.models.vlm import VLM

TASK = "image-text-to-text"
TOY_MODELS = ("base", "stage1", "tuned")
_WEIGHTS = Path(interp.__file__).parent / "toy" / "weights"


def load(
    repo: str | os.PathLike[str] | None = None,
    *,
    model: nn.Module | None = None,
    processor: Any = None,
    revision: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    attn_implementation: str | None = None,
    remote: bool | str = False,
    trust_remote_code: bool = False,
    structure: Structure | Mapping[str, Any] | None = None,
    check: bool = True,
    **from_pretrained: Any,
) -> VLM:
    """Load a vision-language model and prove its layout.

    `repo` is ``"toy"`` (the bundled model; also ``"toy:base"``, ``"toy:stage1"``, ``"toy:tuned"``), a local folder, or a
    repository of the Hugging Face hub. Or pass a transformers `model` in hand, with its `processor` where there is one.
    `device="auto"` takes the first GPU where there is one, else the CPU; `dtype="auto"` what the checkpoint declares.
    `remote=True` runs traces on NDIF and loads no weights here; `remote="local"` is nnsight's simulation of that.
    `structure` replaces what discovery finds, or parts of it by name, ``{"norm": "model.norm"}``; `check=False` leaves the
    proofs out. Anything else goes to transformers' `from_pretrained`.

    Raises `InputError` for an unknown toy name, a folder that holds no model, a repository that cannot be read;
    `LayoutError` where a part cannot be found or a proof fails.

    >>> import interp
    >>> interp.load("toy").structure.n_layers
    8
    """
    _register_package()
    if (repo is None) == (model is None):
        raise InputError("expected either a name, as in load('toy'), or a model in hand, load(model=...)")
    if model is not None:
        wrapped, name = _wrap(model, processor), getattr(model, "name_or_path", "") or type(model).__name__
    else:
        name = str(repo)
        source = str(_locate(name))
        elsewhere = remote is True or str(remote).startswith("http")
        if elsewhere and Path(source).exists():
            raise InputError(f"{name!r} lies here, not on NDIF: use remote='local' to try it, or a hub repository")
        options = {"attn_implementation": attn_implementation} if attn_implementation else {}
        wrapped = _open(
            source,
            revision=revision,
            dispatch=not elsewhere,
            device=_device(device),
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            **options,
            **from_pretrained,
        )
    found = structure if isinstance(structure, Structure) else find_structure(wrapped._module, structure)
    vlm = VLM(wrapped, found, name, revision, remote)
    if check and vlm.device.type != "meta":
        _prove(vlm)
    return vlm


def _locate(name: str) -> str | Path:
    """The folder of a toy or of a local model; a name that is neither stays as it is, for the hub."""
    kind, _, which = name.partition(":")
    if kind == "toy":
        which = which or "tuned"
        if which not in TOY_MODELS:
            raise InputError(
                f"{name!r} is no toy: use 'toy' or one of {', '.join(f'toy:{item}' for item in TOY_MODELS)}"
            )
        return _WEIGHTS / which
    if Path(name).exists():
        if not (Path(name) / "config.json").is_file():
            raise InputError(
                f"{name!r} holds no model: expected a folder with a config.json that save_pretrained wrote"
            )
        return Path(name)
    return name


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device={device!r} is unknown: expected 'auto', 'cpu', 'cuda' or 'cuda:1'") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device={device!r}: {torch.cuda.device_count()} GPUs are to be had here, use 'auto' or 'cpu'")
    return found


def _open(source: str, **options: Any) -> Any:
    from nnsight import TransformersModel
    from safetensors import SafetensorError
    from transformers import AutoProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    dispatch, device = options.pop("dispatch"), options.pop("device")
    try:
        if not dispatch:
            # Without weights nothing can be placed, and the processor is not found by itself.
            given = {name: options[name] for name in ("revision", "trust_remote_code")}
            processor = AutoProcessor.from_pretrained(source, **given)
            return TransformersModel(source, task=TASK, processor=processor, tokenizer=processor.tokenizer, **options)
        placement = {} if "device_map" in options else {"device": device}
        return TransformersModel(source, task=TASK, dispatch=True, **placement, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{source!r} cannot be loaded as a model for {TASK} ({reason}): expected 'toy', a folder or a hub repository"
        ) from error


def _wrap(model: nn.Module, processor: Any) -> Any:
    """A model in hand as nnsight's, with whatever it has of a processor."""
    from nnsight import NNsight, TransformersModel

    if processor is None:
        return NNsight(model)
    tokenizer = getattr(processor, "tokenizer", None)
    return TransformersModel(model, task=TASK, processor=processor, tokenizer=tokenizer)


def _prove(vlm: VLM) -> None:
    failed = [check for check in vlm.check().checks if check.outcome == "failed"]
    if failed:
        first = failed[0]
        raise LayoutError(
            f"{vlm.name!r} ({type(vlm.model).__name__}) failed the proof {first.name!r}: {first.detail}; measured "
            f"{first.error:.3g}, expected {first.bound}. Pass structure= to say where its parts are, or check=False to go on "
            f"without proof"
        )


def _register_package() -> None:
    """Ship this package's functions by value when a trace is sent: a server does not have it installed."""
    from nnsight import ndif

    ndif.register(interp)
