"""Shards: the activations of consecutive rows, and how all of them become one.

In memory they are joined; in a folder each is a file. Either way the manifest is the same: the plan of the run, a
description of each shard, and the ids and labels of all rows.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interp.activations.container import Activations, Places, cat_examples
from interp.activations.extraction import kind_of
from interp.activations.reductions import add_pooled
from interp.activations.sink_counts import SinkCount, add_counts
from interp.displays import dtype_name
from interp.errors import InputError

FORMAT = "interp-activations-1"
# What the manifest has once for all shards.
_OF_ALL = ("ids", "labels", "contents")
# So many rows with states that are not finite are named.
_NAMED = 5
# Hashes of a row's pictures, or of its text where it has none; empty where that is not known.
Contents = tuple[str, ...]


def row_hash(number: int, content: bytes) -> str:
    """The hash of a row and its number in the data."""
    return hashlib.sha256(f"{number}:".encode() + content).hexdigest()


def content_hash(content: bytes) -> str:
    """A hash by which equal pictures, or equal texts, are told."""
    return hashlib.sha256(content).hexdigest()[:16]


def add_hashes(hashes: Iterable[str]) -> str:
    """One hash of many rows: the sum of theirs, which is the same however rows are grouped."""
    return f"{sum(int(each, 16) for each in hashes) % 2**256:064x}"


def merge(plan: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], run: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of these shards, in the order of the data. Raises `InputError` where none of them has a row, and where an
    intervention selects nothing in any row."""
    rows = sum(entry["rows"] for entry in entries)
    skipped = [each for entry in entries for each in entry["skipped"]]
    if not rows:
        if not skipped:
            raise InputError("data is empty: expected at least one row")
        raise InputError(
            f"none of {len(skipped)} rows of the data could be read: the first error was {skipped[0]['error']}"
        )
    _refuse_idle(plan, [entry for entry in entries if entry["rows"]])
    labels = {}
    for name in dict.fromkeys(name for entry in entries for name in entry["labels"]):
        labels[name] = [v for entry in entries for v in entry["labels"].get(name, [None] * entry["rows"])]
    kinds = dict.fromkeys(kind for entry in entries for kind in entry["examples"])
    not_finite = _not_finite(plan, [entry.get("not_finite", {}) for entry in entries])
    return {
        "format": FORMAT,
        "complete": True,
        **plan,
        "data": add_hashes(entry["data"] for entry in entries),
        "rows": rows,
        "examples": {kind: sum(entry["examples"].get(kind, 0) for entry in entries) for kind in kinds},
        "skipped": skipped,
        "not_finite": not_finite,
        "sinks": add_counts(entry.get("sinks") for entry in entries),
        "pooled": add_pooled([entry.get("pooled", {}) for entry in entries]),
        "shards": [{name: entry[name] for name in entry if name not in _OF_ALL} for entry in entries],
        "ids": [each for entry in entries for each in entry["ids"]],
        "labels": labels,
        # folders of before have no contents
        "contents": [list(of) for entry in entries for of in entry.get("contents") or [()] * entry["rows"]],
        "run": dict(run),
    }


def _refuse_idle(plan: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a capture that would seem to show that an intervention changes nothing."""
    idle = set(range(len(plan["interventions"]))).intersection(*(entry.get("idle", ()) for entry in entries))
    if idle:
        raise InputError(
            f"{plan['interventions'][min(idle)]} selects nothing in any row of the data, expected at least one position in "
            "one of them"
        )


def _not_finite(
    plan: Mapping[str, Any], counts: Sequence[Mapping[str, Mapping[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """What is not finite in each site, from what is in its shards, with a warning."""
    together: dict[str, dict[str, Any]] = {}
    for site in dict.fromkeys(site for each in counts for site in each):
        of_site = [each[site] for each in counts if site in each]
        rows = [row for each in of_site for row in each["rows"]]
        together[site] = {
            "states": sum(each["states"] for each in of_site),
            "layer": plan["sites"][site]["layers"][min(each["layer"] for each in of_site)],
            "rows": rows[:_NAMED],
            "more": len(rows) > _NAMED or any(each["more"] for each in of_site),
        }
        about = together[site]
        names = ", ".join(map(repr, about["rows"])) + (" and others" if about["more"] else "")
        number = f"{'state' if site in ('resid', 'vision') else 'layer'} {about['layer']}"
        # A narrower dtype may have no number for states that the model has.
        wider = "leave dtype= out or take a wider one" if plan["dtype"] else "load the model with another dtype"
        warnings.warn(
            f"{about['states']} captured examples of {site!r} are not finite, the first in {number}, in rows {names}: "
            f"{wider}, or leave these rows out",
            stacklevel=2,
        )
    return together


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
        manifest={name: value for name, value in manifest.items() if name not in _OF_ALL},
        kinds={site: about["kind"] for site, about in manifest["sites"].items()},
        located=located,
        contents=tuple(tuple(of) for of in manifest.get("contents") or ()),
    )


@dataclass(frozen=True)
class Shard:
    """The activations of consecutive rows: `[state, example, ...]` for each site, and the places of the examples.

    The rows of `places` are counted from the shard's first; `skipped` are those that could not be read. `data` is a
    hash of texts and pictures, `source` one of the rows' ids, texts and labels. `sinks` counts attention sinks. `idle` are
    the numbers of the interventions that select nothing in any row. `pooled` counts the positions that means are of.
    `contents` are hashes of each row's pictures.
    """

    tensors: Mapping[str, Tensor]
    places: Mapping[str, Places]
    ids: tuple[str, ...]
    labels: Mapping[str, Sequence[Any]]
    data: str
    source: str
    contents: tuple[Contents, ...] = ()
    skipped: tuple[Mapping[str, Any], ...] = ()
    sinks: SinkCount | None = None
    idle: frozenset[int] = frozenset()
    pooled: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def count_not_finite(self) -> dict[str, dict[str, Any]]:
        """For each site that has examples with NaN or infinity: how many these are over all layers, the first of the site's
        layers (by its place among them) that has one, and the ids of some of their rows."""
        counts: dict[str, dict[str, Any]] = {}
        for site, tensor in self.tensors.items():
            # The sum of finite numbers in float64 is finite, and needs no tensor as large as the states.
            layers = [n for n, layer in enumerate(tensor) if not layer.sum(dtype=torch.float64).isfinite()]
            if layers:
                wrong = torch.stack([~tensor[n].flatten(1).isfinite().all(dim=1) for n in layers])
                rows = self.places[kind_of(site)].rows[wrong.any(dim=0)].unique().tolist()
                ids = [self.ids[row] for row in rows]
                about = {"layer": layers[0], "rows": ids[:_NAMED], "more": len(ids) > _NAMED}
                counts[site] = {"states": int(wrong.sum()), **about}
        return counts

    def about(self) -> dict[str, Any]:
        """Its description for the manifest, as plain values."""
        return {
            "rows": len(self.ids),
            "examples": {kind: len(places.rows) for kind, places in self.places.items()},
            "shapes": {site: list(tensor.shape) for site, tensor in self.tensors.items()},
            "dtypes": {site: dtype_name(tensor) for site, tensor in self.tensors.items()},
            "data": self.data,
            "source": self.source,
            "skipped": [dict(each) for each in self.skipped],
            "not_finite": self.count_not_finite(),
            "sinks": None if self.sinks is None else dict(self.sinks),
            "idle": sorted(self.idle),
            "pooled": {kind: dict(count) for kind, count in self.pooled.items()},
            "ids": list(self.ids),
            "labels": {label: list(values) for label, values in self.labels.items()},
            "contents": [list(of) for of in self.contents],
        }
