"""The plan of a capture: what is asked of which model, as plain values that stand in the manifest.

Two runs with equal plans over the same data make the same activations; so a folder is gone on with only by a run with
the plan it was begun with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.activations.container import Activations
from interp.activations.extraction import Wanted, kind_of
from interp.models import VLM, Batch
from interp.models.running.attention import implementation, tower_implementation
from interp.provenance import fingerprint, package_versions

# So many numbers of each weight stand for all of it.
_SAMPLED = 64


def make_plan(vlm: VLM, wanted: Wanted, **run: Any) -> dict[str, Any]:
    """Everything the activations depend on but the data; `run` is what the caller adds of how the data is read."""
    return {
        "model": vlm.name,
        "revision": vlm.revision,
        "weights": fingerprint_of_weights(vlm.model),
        "attention": "eager" if _needs_weights(wanted) else implementation(vlm),
        "vision_attention": "eager" if _needs_tower_weights(wanted) else tower_implementation(vlm),
        "n_layers": vlm.structure.n_layers,
        "sites": {site: {"layers": list(layers), "kind": kind_of(site)} for site, layers in wanted.sites.items()},
        "positions": wanted.positions if isinstance(wanted.positions, str) else describe(wanted.positions),
        "reduce": wanted.reduce,
        "dtype": None if wanted.dtype is None else str(wanted.dtype).removeprefix("torch."),
        "seed": wanted.seed,
        "interventions": [describe(each) for each in wanted.interventions],
        **run,
        "versions": package_versions(),
    }


def _needs_weights(wanted: Wanted) -> bool:
    """Whether the weights of attention are read or edited, which eager attention alone holds."""
    return "pattern" in wanted.sites or any(getattr(each, "needs_weights", False) for each in wanted.interventions)


def _needs_tower_weights(wanted: Wanted) -> bool:
    """The same of the weights of the image tower."""
    return any(getattr(each, "needs_tower_weights", False) for each in wanted.interventions)


def describe(value: Any) -> str:
    """A value in one line by what it holds, arrays by their shape and a hash: equal lines mean equal values."""
    if is_dataclass(value) and not isinstance(value, type | Batch | Activations):
        inside = ", ".join(f"{item.name}={describe(getattr(value, item.name))}" for item in fields(value))
        return f"{type(value).__name__}({inside})"
    if isinstance(value, Batch):
        return f"Batch of {len(value)} rows {fingerprint(value)[:16]}"
    if isinstance(value, Activations):
        held = (f"{site}{list(value.layers[site])}: {_described_states(value[site])}" for site in sorted(value))
        return f"Activations of {len(value.ids)} rows {{{', '.join(held)}}}"
    if isinstance(value, np.generic):
        return describe(value.item())
    if isinstance(value, Tensor | np.ndarray):
        tensor = torch.as_tensor(value)
        return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)} {hashlib.sha256(_bytes(tensor)).hexdigest()[:16]}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {describe(item)}' for key, item in value.items())}}}"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | range):
        return f"[{', '.join(describe(item) for item in value)}]"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(describe, value)))}}}"
    plain = value is None or isinstance(value, str | bytes | int | float | range)
    return repr(value) if plain else f"{type(value).__module__}.{getattr(value, '__qualname__', type(value).__name__)}"


def _described_states(site: Any) -> str:
    """A captured site, read state by state: the same in memory and in a folder, and whatever run captured it."""
    digest = hashlib.sha256()
    for state in site:
        digest.update(_bytes(state))
    return f"{str(site.dtype).removeprefix('torch.')}{list(site.shape)} {digest.hexdigest()[:16]}"


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def fingerprint_of_weights(model: Any) -> str | None:
    """A hash of the names, shapes, types and some numbers of all weights; None where they are not here (on NDIF)."""
    digest = hashlib.sha256()
    for name, weights in model.named_parameters():
        if weights.is_meta:
            return None
        flat = weights.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLED)
        sample = flat[::step].to("cpu", torch.float32)
        digest.update(f"{name}{tuple(weights.shape)}{weights.dtype}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()
