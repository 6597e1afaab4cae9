"""The plan of a capture: what is captured of which model, as plain values for the manifest.

Two runs with equal plans over the same data make the same activations. So a run goes on with a folder only if it has the
plan that the folder was begun with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.activations.container import Activations
from interp.activations.extraction import CaptureRequest, kind_of
from interp.displays import dtype_name
from interp.models import VLM, Batch
from interp.models.running.attention import implementation, tower_implementation
from interp.models.running.offloading import weights_here
from interp.provenance import fingerprint, package_versions

# How many numbers of each weight its hash is made of.
_SAMPLE = 64


def make_plan(vlm: VLM, selection: CaptureRequest, reading: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the activations depend on but the data; `reading` says how that is read."""
    weights = "pattern" in selection.sites or _any(selection, "needs_weights")
    return {
        "model": vlm.name,
        "revision": vlm.revision,
        "weights": fingerprint_of_weights(vlm.model),
        # Only eager attention has weights to read or edit.
        "attention": "eager" if weights else implementation(vlm),
        "vision_attention": "eager" if _any(selection, "needs_tower_weights") else tower_implementation(vlm),
        "n_layers": vlm.structure.n_layers,
        "sites": {site: {"layers": list(layers), "kind": kind_of(site)} for site, layers in selection.sites.items()},
        "positions": selection.positions if isinstance(selection.positions, str) else one_line(selection.positions),
        "reduce": selection.reduce,
        "dtype": None if selection.dtype is None else dtype_name(selection),
        "seed": selection.seed,
        "interventions": [one_line(each) for each in selection.interventions],
        **reading,
        "versions": package_versions(),
    }


def _any(selection: CaptureRequest, need: str) -> bool:
    return any(getattr(each, need, False) for each in selection.interventions)


def one_line(value: Any) -> str:
    """A value in one line with all that it holds, arrays by their shape and a hash: equal lines mean equal values."""
    if is_dataclass(value) and not isinstance(value, type | Batch | Activations):
        inside = ", ".join(f"{item.name}={one_line(getattr(value, item.name))}" for item in fields(value))
        return f"{type(value).__name__}({inside})"
    if isinstance(value, Batch):
        return f"Batch of {len(value)} rows {fingerprint(value)[:16]}"
    if isinstance(value, Activations):
        # Read state by state: the line is the same in memory and in a folder, and after any run that captured them.
        sites = (f"{site}{list(value.layers[site])}: {_hash_line(value[site], value[site])}" for site in sorted(value))
        return f"Activations of {len(value.ids)} rows {{{', '.join(sites)}}}"
    if isinstance(value, np.generic):
        return one_line(value.item())
    if isinstance(value, Tensor | np.ndarray):
        tensor = torch.as_tensor(value)
        return _hash_line(tensor, [tensor])
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {one_line(item)}' for key, item in value.items())}}}"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | range):
        return f"[{', '.join(one_line(item) for item in value)}]"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(one_line, value)))}}}"
    plain = value is None or isinstance(value, str | bytes | int | float | range)
    return repr(value) if plain else f"{type(value).__module__}.{getattr(value, '__qualname__', type(value).__name__)}"


def _hash_line(value: Any, parts: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"{dtype_name(value)}{list(value.shape)} {digest.hexdigest()[:16]}"


def fingerprint_of_weights(model: Any) -> str | None:
    """A hash of the names, shapes, types and some numbers of all weights; None where they are not in memory (on NDIF)."""
    digest = hashlib.sha256()
    # Tied weights once: in memory they are one tensor, and offloaded they are two names for it.
    names = {name for name, _ in model.named_parameters()}
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    names -= {name for name, source in tied.items() if source in names}
    for path, module in model.named_modules():
        if not module._parameters:
            continue
        with weights_here(module):
            for own, weights in module._parameters.items():
                name = f"{path}.{own}" if path else own
                if weights is None or name not in names:
                    continue
                if weights.is_meta:
                    return None
                flat = weights.detach().reshape(-1)
                step = max(1, flat.numel() // _SAMPLE)
                sample = flat[::step].to("cpu", torch.float32)
                digest.update(f"{name}{tuple(weights.shape)}{weights.dtype}".encode())
                digest.update(sample.numpy().tobytes())
    return digest.hexdigest()
