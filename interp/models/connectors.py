"""Connectors: what takes the states of an image tower into the stream of a language model.

LLaVA's first stage trains nothing but the connector, and its authors publish it alone, as a file of tensors beside no model.
transformers' LLaVA has one form of connector, two linear maps with an activation between them,

    connector(states) = linear_2(act(linear_1(states)))

Here every other form becomes this one:

| keys, behind any prefix such as ``model.mm_projector.`` | what it is | what it becomes |
|---|---|---|
| ``0.weight``, ``0.bias``, ``2.weight``, ``2.bias`` | LLaVA's ``mlp2x_gelu`` | the two maps, with the exact GELU |
| ``weight``, ``bias`` | LLaVA's ``linear`` | the first map; no activation; the second is the identity |
| ``linear_1.weight``, ..., ``linear_2.bias`` | transformers' own | as they are, with the exact GELU |

The identity changes no bit of what passes it: every product is with 1 or 0. (On a GPU it rounds where TF32 is on.)
A file is read for its tensors alone (see `interp.models.tensor_files`).
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from interp.displays.brief import Display
from interp.errors import InputError, InputTypeError, reason_of, shown
from interp.models.tensor_files import read_tensors

# LLaVA's training script writes the connector under this name.
_FILE = "mm_projector"
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_OWN = {f"linear_{n}.{kind}": f"linear_{n}.{kind}" for n in (1, 2) for kind in ("weight", "bias")}
# The keys of each form, and the keys of transformers' connector that they become.
_FORMS = {
    "linear": {kind: f"linear_1.{kind}" for kind in ("weight", "bias")},
    "mlp2x_gelu": {key.replace("linear_1", "0").replace("linear_2", "2"): key for key in _OWN},
    "transformers'": _OWN,
}
# A module does not say its activation: these are tried, the commonest first.
_ACTIVATIONS = ("gelu", "linear", "relu", "silu", "gelu_pytorch_tanh", "quick_gelu", "tanh")


@dataclass(frozen=True)
class ConnectorWeights(Display):
    """The weights of a connector under the keys of transformers' LLaVA, and its activation by transformers' name."""

    tensors: Mapping[str, Tensor]
    activation: str = "gelu"

    @property
    def has_bias(self) -> bool:
        return "linear_1.bias" in self.tensors


def connector_weights(source: Any, d_vision: int, d_model: int, seed: int = 0) -> ConnectorWeights:
    """The weights of a connector from `d_vision` to `d_model` features, where they are and in their own precision.

    `source` is a file of tensors (safetensors, or what `torch.save` wrote), a folder or a hub repository with LLaVA's
    ``mm_projector.bin``, a module or tensors by name with the keys of one of the forms above, or None for new random weights:
    those that torch gives to a new `nn.Linear`, as LLaVA's training script does, drawn from the `seed`.

    >>> weights = connector_weights(torch.nn.Linear(4, 3), d_vision=4, d_model=3)
    >>> weights.activation, tuple(weights.tensors["linear_1.weight"].shape), weights.tensors["linear_2.weight"].trace().item()
    ('linear', (3, 4), 3.0)

    Raises `InputError` for a file that is missing, empty or holds anything but tensors, for a key that is missing or foreign,
    for weights of another width or that are not finite, and for a module that computes something else.
    """
    if source is None:
        return _new_weights(d_vision, d_model, seed)
    if isinstance(source, nn.Module):
        name, tensors = f"the connector, a {type(source).__name__},", source.state_dict()
    elif isinstance(source, str | os.PathLike):
        path = _locate_file(source)
        name, tensors = repr(path.name), read_tensors(path)
    elif isinstance(source, Mapping):
        name, tensors = "the connector", dict(source)
    else:
        raise InputTypeError(
            f"connector={shown(source)}: expected a file of tensors, a module, tensors by name, or None for a new one"
        )
    form, weights = _renamed(name, tensors)
    if form == "linear":
        weights["linear_2.weight"] = torch.eye(d_model, dtype=torch.float32).to(weights["linear_1.weight"])
        if "linear_1.bias" in weights:
            weights["linear_2.bias"] = torch.zeros_like(weights["linear_1.bias"])
    _check_weights(name, weights, d_vision, d_model)
    activation = "linear" if form == "linear" else "gelu"
    if isinstance(source, nn.Module):
        activation = _activation_of(name, source, weights)
    return ConnectorWeights(weights, activation)


def _new_weights(d_vision: int, d_model: int, seed: int) -> ConnectorWeights:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        maps = nn.Linear(d_vision, d_model, dtype=torch.float32), nn.Linear(d_model, d_model, dtype=torch.float32)
    tensors = {
        f"linear_{n}.{key}": tensor for n, each in enumerate(maps, 1) for key, tensor in each.state_dict().items()
    }
    return ConnectorWeights(tensors)


# Files -------------------------------------------------------------------------------------------------------------------


def _locate_file(source: str | os.PathLike[str]) -> Path:
    """The file itself, the one in a folder that LLaVA's script wrote, or the one in a repository of the hub."""
    path = Path(source)
    if os.path.isdir(path):
        files = [path / f"{_FILE}{suffix}" for suffix in _SUFFIXES if (path / f"{_FILE}{suffix}").is_file()]
        if len(files) != 1:
            raise InputError(
                f"the folder {path.name!r} holds {len(files)} files {_FILE}.*: expected one, or name a file"
            )
        return files[0]
    if os.path.isfile(path):
        return path
    # A repository has an owner and a name, no ending of a file.
    if path.suffix in _SUFFIXES or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise InputError(
            f"connector={shown(str(source))}: there is no such file, expected a file, a folder or a repository"
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(str(source), f"{_FILE}.bin"))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise InputError(
            f"connector={shown(str(source))}: there is no such file here, and the hub gives no {_FILE}.bin of that "
            f"repository ({reason_of(error)})"
        ) from error


# Keys and shapes ---------------------------------------------------------------------------------------------------------


def _renamed(name: str, tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The form of a connector, and its tensors by transformers' keys."""
    bare = {key.rpartition("projector.")[2]: tensor for key, tensor in tensors.items()}
    keys = sorted(tensors)
    form, known = max(_FORMS.items(), key=lambda each: len(each[1].keys() & bare.keys()))
    if len(bare) < len(keys) or not known.keys() & bare.keys():
        raise InputError(
            f"{name} has the keys {shown(keys)}: expected {_FILE}.0.weight, ... (mlp2x_gelu), {_FILE}.weight, ... (linear) or "
            "linear_1.weight, ..."
        )
    foreign = sorted(key for key in tensors if key.rpartition("projector.")[2] not in known)
    maps = [key for key, tensor in bare.items() if re.fullmatch(r"\d+\.weight", key) and tensor.ndim == 2]
    if form == "mlp2x_gelu" and len(maps) > 2:
        raise InputError(f"{name} is an MLP of {len(maps)} linear maps: expected 2, as transformers' LLaVA has, or 1")
    if foreign:
        raise InputError(
            f"{name} has {len(foreign)} foreign keys, such as {foreign[0]!r}: expected a connector's alone, {form} keys are "
            f"{', '.join(known)}"
        )
    biases = [key for key in known if key.endswith("bias")]
    needed = known if any(key in bare for key in biases) else known.keys() - set(biases)
    missing = [key for key in known if key in needed and key not in bare]
    if missing:
        raise InputError(f"{name} lacks {', '.join(missing)}: expected {', '.join(known)}, the biases all or none")
    return form, {known[key]: tensor.detach() for key, tensor in bare.items()}


def _check_weights(name: str, weights: Mapping[str, Tensor], d_vision: int, d_model: int) -> None:
    """Raise `InputError` for weights of another width, and for any that are no finite numbers."""
    for key, tensor in weights.items():
        shape = (d_model,) if key.endswith("bias") else (d_model, d_vision if key == "linear_1.weight" else d_model)
        if tuple(tensor.shape) != shape:
            raise InputError(
                f"{name} has {key} of shape {tuple(tensor.shape)}: expected {shape}, from the tower's {d_vision} features to "
                f"the language model's {d_model}"
            )
        if tensor.is_meta:
            raise InputError(f"{name} has no weights here, only the meta device: expected the trained weights")
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            raise InputError(
                f"{name} has {key} in {tensor.dtype}, {tensor.layout}: expected dense floating-point numbers"
            )
        if not bool(tensor.float().isfinite().all()):  # there is no isfinite of float8
            raise InputError(f"{name} has values in {key} that are not finite: expected the trained weights")


def _activation_of(name: str, module: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """The activation with which these weights compute what the module does, to 1e-5 of the largest entry in float32."""
    from transformers.activations import ACT2FN

    # Hundreds of rows that are large and small, so that no two activations look alike.
    rows = 3 * torch.randn(
        256, weights["linear_1.weight"].shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float32
    )
    own = {key: tensor.float().cpu() for key, tensor in weights.items()}
    first, second = ((own[f"linear_{n}.weight"].T, own.get(f"linear_{n}.bias", 0.0)) for n in (1, 2))
    errors = {}
    with torch.no_grad():
        try:
            wanted = copy.deepcopy(module).float().cpu().eval()(rows)
        except Exception as error:
            raise InputError(f"{name} fails on states [256, {rows.shape[1]}] ({reason_of(error)})") from error
        size = wanted.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
        for activation in _ACTIVATIONS:
            ours = ACT2FN[activation](rows @ first[0] + first[1]) @ second[0] + second[1]
            errors[activation] = float((ours - wanted).abs().max() / size)
    best = min(_ACTIVATIONS, key=errors.__getitem__)
    if not errors[best] <= 1e-5:
        raise InputError(
            f"{name} is not two linear maps with an activation between them: the nearest, {best!r}, differs by "
            f"{errors[best]:.2g} of the largest entry, expected at most 1e-05"
        )
    return best
