"""Provenance: which model, data, seed, versions and interventions a number came from.

Every result carries one. `Provenance(...)` is enough where no model is involved; `provenance_of_run` fills in what a run of
a model knows: its name and revision, and a hash of the inputs that it got.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

_PACKAGES = ("interp-vlm", "torch", "transformers", "nnsight", "numpy", "scikit-learn")
# Read once: that takes longer than a forward pass of the toy. A dict is shipped with a trace as it is, a cache is not.
_INSTALLED: dict[str, str] = {}


def package_versions() -> dict[str, str]:
    """The versions of what numbers depend on: Python and the packages that are installed."""
    if not _INSTALLED:
        for package in _PACKAGES:
            with suppress(PackageNotFoundError):
                _INSTALLED[package] = version(package)
    return {"python": platform.python_version(), **_INSTALLED}


@dataclass(frozen=True)
class Provenance:
    """Where a result came from: the model and its revision, a hash of the data, the seed, versions, interventions, and notes
    on how it was computed where that could have been another way."""

    model: str | None = None
    revision: str | None = None
    data: str | None = None
    seed: int | None = None
    interventions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=package_versions)


class HasName(Protocol):
    """A model, as far as provenance goes."""

    name: str
    revision: str | None


class HasInputs(Protocol):
    """A batch, as far as provenance goes."""

    @property
    def inputs(self) -> Mapping[str, Tensor]: ...


def provenance_of_run(
    vlm: HasName,
    batches: Sequence[HasInputs],
    interventions: Sequence[Any] = (),
    seed: int | None = None,
    notes: tuple[str, ...] = (),
) -> Provenance:
    """The provenance of what `vlm` gives for these batches under these interventions."""
    changes = tuple(map(repr, interventions))
    return Provenance(vlm.name, vlm.revision, fingerprint(*batches), seed, changes, notes)


def fingerprint(*batches: HasInputs) -> str:
    """A hash of all that the model gets from these batches: equal inputs have an equal fingerprint."""
    import torch

    digest = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch.inputs):
            tensor = batch.inputs[name]
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
