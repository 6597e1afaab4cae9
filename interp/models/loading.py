"""Loading a model: the bundled toy, a folder, a repository of the hub, or objects in hand; locally or on NDIF.

Loading has three steps: the weights are opened as a model of nnsight, its parts are found, and the layout is proved on
the model itself. A model that fails a proof is refused here, so that no later number rests on a wrong layout.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from interp.errors import InputError, InterpError, LayoutError, is_out_of_memory, reason_of
from interp.models.adapters import base_of, is_adapter, merge_adapter
from interp.models.copying import sharing_module
from interp.models.layout.discovery import find_structure, takes_images
from interp.models.running.offloading import device_first, run_device, send_inputs_where_it_runs
from interp.models.running.structure import Structure
from interp.models.running.training_mode import refuse_training
from interp.models.tensor_files import fault_of_pickle
from interp.models.toy_folders import toy_folder
from interp.models.vlm import VLM

IMAGES, TEXTS = "image-text-to-text", "text-generation"
_QUANTISED = ("nf4", "fp4", "int4", "4bit", "int8", "8bit", "fp8")  # nnsight takes these in the place of a dtype
# Options that say where files come from, and so are the processor's too.
_ORIGIN = ("revision", "trust_remote_code", "subfolder", "token", "cache_dir", "local_files_only", "force_download")
_DEFAULTS = {"trust_remote_code": False, "dtype": "auto"}


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
    """Load a vision-language model, or a causal language model alone, and prove its layout.

    >>> import interp
    >>> interp.load("toy").structure.n_layers
    8

    `repo` is ``"toy"`` (the bundled model; also ``"toy:base"``, ``"toy:stage1"``, ``"toy:tuned"``, and of other seeds
    ``"toy:tuned@1"`` to ``"toy:tuned@4"``), a local folder (with or without its processor; a LoRA of PEFT is merged into the
    model that it names), or a repository of the Hugging Face hub. Or pass a transformers `model` in hand, in eval mode; it stays
    on its device and in its precision. `processor` replaces the one that was saved beside the weights; a language model that
    takes no images needs a tokenizer alone.
    `device="auto"` is the first GPU if there is one (under torchrun each process has its own), else the CPU;
    `dtype="auto"` is the precision that the checkpoint declares.
    `remote=True` runs traces on NDIF and loads no weights here; `remote="local"` is nnsight's simulation of that.
    `structure` replaces what discovery finds, or parts of it by name, ``{"norm": "model.norm"}``; `check=False` leaves the
    proofs out. Any other argument goes to transformers' `from_pretrained`.

    Raises `InputError` for an unknown toy or one that is not shipped, a folder without a model or without some of its weights, an
    adapter whose model is not found, a repository that cannot be read, an argument of the wrong kind, arguments that do not go
    together with a `model` in hand, a part in training mode, and states that are not finite in this precision, with the layer;
    `LayoutError` where a part cannot be found or a proof fails.
    """
    if remote:
        _register_package()
    if (repo is None) == (model is None):
        raise InputError("expected either a name, as in load('toy'), or a model in hand, load(model=...)")
    on_server = _is_server(remote)
    _check_processor(processor)
    options = {"revision": revision, "attn_implementation": attn_implementation, **from_pretrained}
    options |= {"trust_remote_code": trust_remote_code, "dtype": checked_dtype(dtype)}
    if model is None and is_adapter(repo) and not on_server:
        whole, processor = _merged(Path(str(repo)), processor, device=device, **options)
        vlm = load(model=whole, processor=processor, remote=remote, structure=structure, check=check)
        vlm.name = public_name(str(repo))
        return vlm
    if model is not None:
        check_in_hand(model, device, on_server, options)
        _check_processor(processor, takes_images(model))
        wrapped, name = _wrap(model, processor), getattr(model, "name_or_path", "") or type(model).__name__
    else:
        name = str(repo)
        source = _locate(repo, on_server)
        wrapped = _open(source, processor, dispatch=not on_server, device=chosen_device(device), **options)
    vlm = VLM(
        send_inputs_where_it_runs(wrapped),
        find_structure(wrapped._module, structure),
        public_name(name),
        revision,
        remote,
    )
    if check and vlm.device.type != "meta":
        _prove(vlm, structure is not None)
    return vlm


# Names, devices and precisions -------------------------------------------------------------------------------------------


def _is_server(remote: bool | str) -> bool:
    """Whether traces run on a server, so that no weights are loaded here."""
    server = remote is True or str(remote).startswith("http")
    if not server and remote is not False and remote != "local":
        raise InputError(f"remote={remote!r}: expected True for NDIF, 'local' for its simulation, or an address")
    return server


def public_name(name: str) -> str:
    """The name of a model in results and messages: of a folder only the last part, since a path may name its owner."""
    return Path(name).resolve().name if Path(name).is_absolute() or Path(name).is_dir() else name


def _locate(repo: Any, on_server: bool = False) -> str:
    """The folder of a toy or of a local model; any other name stays as it is, for the hub."""
    if not isinstance(repo, str | os.PathLike):
        raise InputError(f"a {type(repo).__name__} is not a name: expected one, as in load('toy'), or load(model=...)")
    source = name = str(repo)
    if name.partition(":")[0] == "toy":
        source = str(toy_folder(name))
    elif Path(name).exists() and not (Path(name) / "config.json").is_file() and not is_adapter(name):
        raise InputError(f"{name!r} holds no model: expected a folder with a config.json that save_pretrained wrote")
    if on_server and Path(source).exists():
        raise InputError(f"{name!r} is on this machine, not on NDIF: use remote='local' to try it, or a hub repository")
    return source


def chosen_device(device: str | torch.device) -> torch.device:
    """This device; for "auto" the first GPU, under torchrun the process's own, or the CPU where there is none."""
    if device == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        # Under torchrun, each process takes a GPU of its own.
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"device={device!r} is unknown: expected 'auto', 'cpu', 'cuda' or 'cuda:1'") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device={device!r}: this machine has {torch.cuda.device_count()} GPUs, use 'auto' or 'cpu'")
    return place


def checked_dtype(dtype: Any) -> Any:
    """A torch dtype, "auto", or the name of a quantisation."""
    if isinstance(dtype, str) and dtype in ("auto", *_QUANTISED):
        return dtype
    precision = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(precision, torch.dtype) or not precision.is_floating_point:
        raise InputError(f"dtype={dtype!r} is unknown: expected 'auto', 'float32', 'bfloat16' or torch.float16")
    return precision


# Weights and models in hand ----------------------------------------------------------------------------------------------


def _open(source: str, processor: Any = None, *, dispatch: bool, device: torch.device, **options: Any) -> Any:
    """A folder or a repository as a model of nnsight, with the processor that lies there unless one is given."""
    from nnsight import TransformersModel
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.utils import logging

    logging.disable_progress_bar()
    options = {name: value for name, value in options.items() if name != "attn_implementation" or value}
    origin = {name: options[name] for name in _ORIGIN if name in options}
    task = IMAGES
    try:
        task = _task_of(source, options.get("config"), origin)
        _check_processor(processor, task == IMAGES)
        if processor is None and not _lacks_processor(source):
            processor = _processor_of(source, task, origin)
        if not dispatch:
            return TransformersModel(source, task=task, **_parts(processor, task), **options)
        if options["dtype"] in _QUANTISED:  # nnsight knows what transformers needs for each
            placement = {} if "device_map" in options else {"device": device}
            return TransformersModel(
                source, task=task, dispatch=True, **_parts(processor, task), **placement, **options
            )
        kind = AutoModelForImageTextToText if task == IMAGES else AutoModelForCausalLM
        model, report = kind.from_pretrained(
            source, **{"output_loading_info": True, "ignore_mismatched_sizes": True, **options}
        )
        _refuse_drawn(source, model, report)
        if getattr(model, "_hf_peft_config_loaded", False):  # its own weights are not those that it runs with
            raise InputError(
                f"{source!r} holds a model and an adapter: expected one of them; merge them by PEFT's merge_and_unload, or move "
                "the adapter to a folder of its own"
            )
        return _wrap(model if getattr(model, "hf_device_map", None) else model.to(device), processor)
    except InputError:
        raise
    except UnpicklingError as error:
        raise InputError(
            f"{source!r} has a file of weights that {fault_of_pickle(error)}: expected tensors alone"
        ) from error
    except (OSError, ValueError, TypeError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{source!r} cannot be loaded as a model for {task} ({reason}): expected 'toy', a folder or a hub repository"
        ) from error


def _refuse_drawn(source: str, model: nn.Module, report: Mapping[str, Any]) -> None:
    """Raise `InputError` for a checkpoint without some of its weights, which transformers draws at random."""
    names = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if names:
        raise InputError(
            f"{source!r} lacks {len(names)} weights of a {type(model).__name__}, or has them in another shape, such as "
            f"{names[0]!r}: expected all; to go on with random ones there, load it by transformers and pass model="
        )


def _merged(folder: Path, processor: Any, **options: Any) -> tuple[nn.Module, Any]:
    """The model that an adapter belongs to, with the adapter merged into it, and its processor.

    Raises `InputError` where that model cannot be loaded, or is another one than the adapter's.
    """
    name, revision = base_of(folder)
    try:
        base = load(name, processor=processor, check=False, **{**options, "revision": options["revision"] or revision})
    except InputError as error:
        raise InputError(
            f"the adapter in {str(folder)!r} belongs to {name!r}, which is not found here: {error}"
        ) from error
    model = sharing_module(base.model)
    merge_adapter(model, folder)
    return model, base.processor if base.takes_images else base.tokenizer


def _task_of(source: str, config: Any, origin: Mapping[str, Any]) -> str:
    """What a checkpoint is for, by its config: image-text-to-text where transformers has a model for that, else
    text-generation.

    Raises `InputError` for a checkpoint of a model without a language head, which transformers would draw at random.
    """
    import transformers
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig

    config = config if config is not None else AutoConfig.from_pretrained(source, **origin)
    saved = (getattr(config, "architectures", None) or [""])[0]
    if not getattr(getattr(transformers, saved, None), "can_generate", lambda: True)():
        raise InputError(
            f"{source!r} holds a {saved}, which generates no text: expected a model for {IMAGES} or {TEXTS}, with its "
            "language head"
        )
    # Code that comes with a checkpoint says which of transformers' loaders it is for.
    own = getattr(config, "auto_map", None) or {}
    of_texts = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in own
    of_images = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or "AutoModelForImageTextToText" in own
    return TEXTS if of_texts and not of_images else IMAGES


def _lacks_processor(source: str) -> bool:
    """Whether this is a folder without any file of a processor or a tokenizer. A folder with damaged files is not one."""
    folder = Path(source)
    return folder.is_dir() and not any(list(folder.glob(f"*{part}*")) for part in ("processor", "tokenizer"))


def _parts(processor: Any, task: str) -> dict[str, Any]:
    """The arguments of nnsight for a processor, or for a tokenizer alone."""
    if processor is None:
        return {}
    tokenizer = getattr(processor, "tokenizer", processor)
    return {"tokenizer": tokenizer} if task == TEXTS else {"processor": processor, "tokenizer": tokenizer}


def _check_processor(processor: Any, for_images: bool = False) -> None:
    """Refuse what is neither a processor nor a tokenizer, and for a model that takes images a tokenizer alone."""
    is_tokenizer = callable(getattr(processor, "convert_ids_to_tokens", None))
    if processor is None or hasattr(processor, "tokenizer") or (is_tokenizer and not for_images):
        return
    expected = "a processor, which has a tokenizer and takes images too"
    expected += "" if for_images else "; for a language model alone its tokenizer"
    raise InputError(f"processor is a {type(processor).__name__}: expected {expected}")


def check_in_hand(model: Any, device: str | torch.device, on_server: bool, options: dict[str, Any]) -> None:
    """Refuse anything but a transformers model, a model that cannot run as it is, and options that only loading can follow."""
    kind = type(model).__name__
    if not isinstance(model, nn.Module) or not hasattr(getattr(model, "config", None), "get_text_config"):
        raise InputError(f"model is a {kind}: expected a transformers model in hand; a name goes first, load('toy')")
    others = [name for name, value in options.items() if value is not None and value != _DEFAULTS.get(name)]
    if others:
        raise InputError(f"{', '.join(others)} cannot be set for a model in hand: load it with that, or pass its name")
    refuse_training(model)
    place = run_device(model)
    if not on_server and place.type == "meta":
        raise InputError(f"the {kind} has no weights here, only the meta device: load them, or pass remote=True")
    target = place if device == "auto" else chosen_device(device)
    if (target.type, target.index or 0) != (place.type, place.index or 0):
        raise InputError(
            f"device={device!r}, but the {kind} is on {str(place)!r}: move it yourself, model.to({device!r})"
        )


def _processor_of(source: str, task: str, origin: Mapping[str, Any]) -> Any:
    """The processor that was saved beside the weights; a language model's is its tokenizer."""
    from transformers import AutoProcessor, AutoTokenizer

    return (AutoProcessor if task == IMAGES else AutoTokenizer).from_pretrained(source, **origin)


def _wrap(model: nn.Module, processor: Any) -> Any:
    """A model in hand as a model of nnsight, with the parts of its processor if there is one."""
    from nnsight import NNsight, TransformersModel

    task = IMAGES if takes_images(model) else TEXTS
    with device_first(model):
        return NNsight(model) if processor is None else TransformersModel(model, task=task, **_parts(processor, task))


def _prove(vlm: VLM, own_structure: bool) -> None:
    """Raise `LayoutError` for the first proof that fails; with a structure of the user's, for what cannot run with it."""
    try:
        checks = vlm.check().checks
    except Exception as error:
        if not own_structure or isinstance(error, InterpError):
            raise
        raise LayoutError(
            f"{vlm.name!r} cannot be run with the structure= that was given ({reason_of(error)}): leave out what does not fit"
        ) from error
    first = next((check for check in checks if check.outcome == "failed"), None)
    if first is not None:
        raise LayoutError(
            f"{vlm.name!r} ({type(vlm.model).__name__}) failed the proof {first.name!r}: {first.detail}; measured "
            f"{first.error:.3g}, expected {first.bound}. Pass structure= to say where its parts are, or check=False to go on "
            f"without proof"
        )


def _register_package() -> None:
    """Ship this package's functions by value when a trace is sent: a server does not have it installed.

    This holds for everything that cloudpickle writes from then on, so only those who run traces remotely do it: joblib's
    workers have the package, and would not know its classes again by value.
    """
    from nnsight import ndif

    ndif.register(sys.modules[__name__.partition(".")[0]])
