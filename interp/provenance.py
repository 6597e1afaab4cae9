"""Provenance: which model, data, seed, versions and interventions a number came from.

Every result has a `provenance`. Results of a model get it from `provenance_of_run`, which adds the model's name and revision
and a fingerprint of its inputs; other results use `Provenance(...)` directly.

>>> Provenance(model="toy", seed=3).seed
3
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol

from interp.displays import Display

if TYPE_CHECKING:
    from torch import Tensor

_PACKAGES = ("interp-vlm", "torch", "transformers", "nnsight", "numpy", "scikit-learn")
# Filled once, because reading versions takes longer than a forward pass of the toy. It is a dict, and not a cached function,
# because a trace that is sent to a server takes it along.
_INSTALLED: dict[str, str] = {}


def package_versions() -> dict[str, str]:
    """The versions that numbers depend on: of Python and of the installed packages, by name."""
    if not _INSTALLED:
        for package in _PACKAGES:
            with suppress(PackageNotFoundError):
                _INSTALLED[package] = version(package)
    return {"python": platform.python_version(), **_INSTALLED}


@dataclass(frozen=True)
class Provenance(Display):
    """Where a result came from.

    `data` is a fingerprint of the inputs, `interventions` holds the repr of each intervention, and `notes` say how the result
    was computed if there are several ways.
    """

    model: str | None = None
    revision: str | None = None
    data: str | None = None
    seed: int | None = None
    interventions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=package_versions)


class HasName(Protocol):
    """The part of a model that provenance needs."""

    name: str
    revision: str | None


class HasInputs(Protocol):
    """The part of a batch that provenance needs."""

    @property
    def inputs(self) -> Mapping[str, Tensor]: ...


def provenance_of_run(
    vlm: HasName,
    batches: Sequence[HasInputs],
    interventions: Sequence[Any] = (),
    seed: int | None = None,
    notes: tuple[str, ...] = (),
) -> Provenance:
    """The provenance of results of `vlm` on these batches under these interventions."""
    changes = tuple(map(repr, interventions))
    return Provenance(vlm.name, vlm.revision, fingerprint(*batches), seed, changes, notes)


def fingerprint(*batches: HasInputs) -> str:
    """A SHA-256 of the names, shapes, dtypes and bytes of all inputs of these batches: equal inputs, equal fingerprint."""
    import torch

    digest = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch.inputs):
            tensor = batch.inputs[name]
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            # The new last axis has stride 1, so that any tensor can be viewed as bytes, also a strided one.
            digest.update(tensor.cpu().unsqueeze(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
