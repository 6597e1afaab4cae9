"""Shards: the activations of consecutive rows, and how all of them become one.

In memory they are joined; in a folder each is a file. Either way the manifest is the same: the plan of the run, a
description of each shard, and the ids and labels of all rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.activations.container import Activations, Places, cat_examples
from interp.errors import InputError

FORMAT = "interp-activations-1"
# What the manifest has once for all shards.
_OF_ALL = ("ids", "labels")


def row_hash(number: int, content: bytes) -> str:
    """The hash of a row and its number in the data."""
    return hashlib.sha256(f"{number}:".encode() + content).hexdigest()


def add_hashes(hashes: Iterable[str]) -> str:
    """One hash of many rows: the sum of theirs, which is the same however rows are grouped."""
    return f"{sum(int(each, 16) for each in hashes) % 2**256:064x}"


def merge(plan: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], run: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of these shards, in the order of the data. Raises `InputError` where none of them has a row."""
    rows = sum(entry["rows"] for entry in entries)
    skipped = [each for entry in entries for each in entry["skipped"]]
    if not rows:
        if not skipped:
            raise InputError("data is empty: expected at least one row")
        raise InputError(
            f"none of {len(skipped)} rows of the data could be read: the first error was {skipped[0]['error']}"
        )
    labels = {}
    for name in dict.fromkeys(name for entry in entries for name in entry["labels"]):
        labels[name] = [v for entry in entries for v in entry["labels"].get(name, [None] * entry["rows"])]
    kinds = dict.fromkeys(kind for entry in entries for kind in entry["examples"])
    return {
        "format": FORMAT,
        "complete": True,
        **plan,
        "data": add_hashes(entry["data"] for entry in entries),
        "rows": rows,
        "examples": {kind: sum(entry["examples"].get(kind, 0) for entry in entries) for kind in kinds},
        "skipped": skipped,
        "shards": [{name: entry[name] for name in entry if name not in _OF_ALL} for entry in entries],
        "ids": [each for entry in entries for each in entry["ids"]],
        "labels": labels,
        "run": dict(run),
    }


def in_memory(plan: Mapping[str, Any], shards: Sequence[Shard], run: Mapping[str, Any]) -> Activations:
    """The activations of all shards, joined in memory."""
    manifest = merge(plan, [shard.about() for shard in shards], run)
    shards = [shard for shard in shards if shard.ids]
    located = {}
    for kind in manifest["examples"]:
        rows, before = [], 0
        for shard in shards:
            rows.append(shard.places[kind].rows + before)
            before += len(shard.ids)
        located[kind] = Places(torch.cat(rows), torch.cat([shard.places[kind].columns for shard in shards]))
    sites = {site: cat_examples([shard.tensors[site] for shard in shards]) for site in manifest["sites"]}
    return as_activations(manifest, sites, located)


def as_activations(manifest: Mapping[str, Any], sites: Mapping[str, Any], located: Mapping[str, Any]) -> Activations:
    """The activations that a manifest describes."""
    return Activations(
        sites=sites,
        layers={site: tuple(about["layers"]) for site, about in manifest["sites"].items()},
        ids=tuple(manifest["ids"]),
        labels=manifest["labels"],
        manifest={name: value for name, value in manifest.items() if name not in ("ids", "labels")},
        kinds={site: about["kind"] for site, about in manifest["sites"].items()},
        located=located,
    )


@dataclass(frozen=True)
class Shard:
    """The activations of consecutive rows: `[state, example, ...]` for each site, and the places of the examples.

    The rows of `places` are counted from the shard's first; `skipped` are those that could not be read. `data` is a
    hash of texts and pictures, `source` one of the rows' ids, texts and labels.
    """

    tensors: Mapping[str, Tensor]
    places: Mapping[str, Places]
    ids: tuple[str, ...]
    labels: Mapping[str, Sequence[Any]]
    data: str
    source: str
    skipped: tuple[Mapping[str, Any], ...] = ()

    def about(self) -> dict[str, Any]:
        """Its description for the manifest, as plain values."""
        return {
            "rows": len(self.ids),
            "examples": {kind: len(places.rows) for kind, places in self.places.items()},
            "shapes": {site: list(tensor.shape) for site, tensor in self.tensors.items()},
            "dtypes": {site: str(tensor.dtype).removeprefix("torch.") for site, tensor in self.tensors.items()},
            "data": self.data,
            "source": self.source,
            "skipped": [dict(each) for each in self.skipped],
            "ids": list(self.ids),
            "labels": {label: list(values) for label, values in self.labels.items()},
        }
