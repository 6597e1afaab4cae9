"""Loading a model: the bundled toy, a folder, a repository of the hub, or objects in hand; locally or on NDIF."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from interp.errors import InputError, InterpError, LayoutError
from interp.models.layout.discovery import find_structure
from interp.models.running.structure import Structure
from interp.models.vlm import VLM

TASK = "image-text-to-text"
TOY_MODELS = ("base", "stage1", "tuned")
_QUANTISED = ("nf4", "fp4", "int4", "4bit", "int8", "8bit", "fp8")  # what nnsight takes in the place of a dtype
_WEIGHTS = Path(__file__).parents[1] / "toy" / "weights"


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

    `repo` is ``"toy"`` (the bundled model; also ``"toy:base"``, ``"toy:stage1"``, ``"toy:tuned"``), a local folder (with or
    without its processor), or a repository of the Hugging Face hub. Or pass a transformers `model` in hand, in eval mode,
    where it is and as it is. `processor` takes the place of the one that lies beside the weights.
    `device="auto"` takes the first GPU where there is one (under torchrun each process its own), else the CPU;
    `dtype="auto"` what the checkpoint declares.
    `remote=True` runs traces on NDIF and loads no weights here; `remote="local"` is nnsight's simulation of that.
    `structure` replaces what discovery finds, or parts of it by name, ``{"norm": "model.norm"}``; `check=False` leaves the
    proofs out. Anything else goes to transformers' `from_pretrained`.

    Raises `InputError` for an unknown toy name, a folder that holds no model, a repository that cannot be read, a value
    that is not taken, and beside a `model` in hand for what only loading can do; `LayoutError` where a part cannot be
    found or a proof fails.

    >>> import interp
    >>> interp.load("toy").structure.n_layers
    8
    """
    _register_package()
    if (repo is None) == (model is None):
        raise InputError("expected either a name, as in load('toy'), or a model in hand, load(model=...)")
    if not (isinstance(remote, bool) or remote == "local" or str(remote).startswith("http")):
        raise InputError(
            f"remote={remote!r}: expected True for NDIF, 'local' for its simulation, or a server's address"
        )
    elsewhere = remote is True or str(remote).startswith("http")
    if processor is not None and not hasattr(processor, "tokenizer"):
        raise InputError(
            f"processor is a {type(processor).__name__}: expected a processor, which has a tokenizer and takes images too"
        )
    if model is not None:
        beside = {"revision": revision, "attn_implementation": attn_implementation, **from_pretrained}
        beside |= {"trust_remote_code": trust_remote_code or None, "dtype": None if dtype == "auto" else dtype}
        _refuse_in_hand(model, device, elsewhere, [name for name, value in beside.items() if value is not None])
        wrapped, name = _wrap(model, processor), getattr(model, "name_or_path", "") or type(model).__name__
    else:
        if not isinstance(repo, str | os.PathLike):
            raise InputError(f"a {type(repo).__name__} is no name: expected one, as in load('toy'), or load(model=...)")
        name = str(repo)
        source = str(_locate(name))
        if elsewhere and Path(source).exists():
            raise InputError(f"{name!r} lies here, not on NDIF: use remote='local' to try it, or a hub repository")
        options = {"attn_implementation": attn_implementation} if attn_implementation else {}
        wrapped = _open(
            source,
            processor,
            dispatch=not elsewhere,
            device=_device(device),
            revision=revision,
            dtype=_dtype(dtype),
            trust_remote_code=trust_remote_code,
            **options,
            **from_pretrained,
        )
    vlm = VLM(wrapped, find_structure(wrapped._module, structure), _said_name(name), revision, remote)
    if check and vlm.device.type != "meta":
        _prove(vlm, given=structure is not None)
    return vlm


def _said_name(name: str) -> str:
    """A model's name in everything that is written down: of a folder the last part, which says nothing of its owner."""
    return Path(name).resolve().name if Path(name).is_absolute() or Path(name).is_dir() else name


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
        if not torch.cuda.is_available():
            return torch.device("cpu")
        # Started together with others (torchrun), each process takes a GPU of its own.
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device={device!r} is unknown: expected 'auto', 'cpu', 'cuda' or 'cuda:1'") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device={device!r}: {torch.cuda.device_count()} GPUs are to be had here, use 'auto' or 'cpu'")
    return found


def _dtype(dtype: Any) -> Any:
    """A torch dtype, or what stands in its place: "auto", the name of a quantisation."""
    if isinstance(dtype, str) and dtype in ("auto", *_QUANTISED):
        return dtype
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(
            f"dtype={dtype!r} is unknown: expected 'auto', 'float32', 'bfloat16', torch.float16 or the like"
        )
    return found


def _open(source: str, processor: Any = None, *, dispatch: bool, device: torch.device, **options: Any) -> Any:
    """A folder or a repository as nnsight's; a folder without a processor like a model in hand without one."""
    from nnsight import TransformersModel
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    logging.disable_progress_bar()
    placement = {} if "device_map" in options else {"device": device}
    try:
        if not dispatch:
            # Without weights nothing can be placed, and the processor is not found by itself.
            given = {name: options[name] for name in ("revision", "trust_remote_code")}
            processor = processor or AutoProcessor.from_pretrained(source, **given)
            return TransformersModel(source, task=TASK, **_parts(processor), **options)
        if processor is not None or not _lacks_processor(source):
            return TransformersModel(source, task=TASK, dispatch=True, **_parts(processor), **placement, **options)
        return _wrap(AutoModelForImageTextToText.from_pretrained(source, **{"device_map": device, **options}), None)
    except (OSError, ValueError, TypeError, KeyError, ImportError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = (
            lines[-1] if "original errors" in lines[0] else lines[0]
        )  # a pipeline's tracebacks come behind its message
        raise InputError(
            f"{source!r} cannot be loaded as a model for {TASK} ({reason}): expected 'toy', a folder or a hub repository"
        ) from error


def _lacks_processor(source: str) -> bool:
    """Whether this is a folder without any file of a processor or a tokenizer; what damaged ones hold is not guessed."""
    folder = Path(source)
    return folder.is_dir() and not any(list(folder.glob(f"*{part}*")) for part in ("processor", "tokenizer"))


def _parts(processor: Any) -> dict[str, Any]:
    return {} if processor is None else {"processor": processor, "tokenizer": getattr(processor, "tokenizer", None)}


def _refuse_in_hand(model: Any, device: str | torch.device, elsewhere: bool, beside: list[str]) -> None:
    """Refuse what is no transformers model or cannot be run as it is, and what is passed beside it to no effect."""
    kind = type(model).__name__
    if not isinstance(model, nn.Module) or not hasattr(getattr(model, "config", None), "get_text_config"):
        raise InputError(f"model is a {kind}: expected a transformers model in hand; a name goes first, load('toy')")
    if beside:
        raise InputError(f"beside model= {', '.join(beside)} is not taken: load the model so, or pass its name instead")
    if model.training:
        raise InputError(f"the {kind} is in training mode, in which dropout is on: call model.eval() first")
    if not elsewhere and all(weights.is_meta for weights in model.parameters()):
        raise InputError(
            f"the {kind} has no weights here, only the meta device: load them, or pass remote=True for NDIF"
        )
    here = next(model.parameters()).device
    wanted = here if device == "auto" else _device(device)
    if (wanted.type, wanted.index or 0) != (here.type, here.index or 0):
        raise InputError(
            f"device={device!r}, but the {kind} is on {str(here)!r}: move it yourself, model.to({device!r})"
        )


def _wrap(model: nn.Module, processor: Any) -> Any:
    """A model in hand as nnsight's, with whatever it has of a processor."""
    from nnsight import NNsight, TransformersModel

    return NNsight(model) if processor is None else TransformersModel(model, task=TASK, **_parts(processor))


def _prove(vlm: VLM, given: bool) -> None:
    try:
        checks = vlm.check().checks
    except Exception as error:
        if not given or isinstance(error, InterpError):
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise LayoutError(
            f"{vlm.name!r} cannot be run with the structure= that was given ({said}): leave out what does not fit"
        ) from error
    failed = [check for check in checks if check.outcome == "failed"]
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

    ndif.register(sys.modules[__name__.partition(".")[0]])
