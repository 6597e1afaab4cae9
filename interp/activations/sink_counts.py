"""Sink counts: in how many rows attention sinks are among the captured positions, and how large they are.

The state of a sink dwarfs those of other tokens (`interp.models.running.sinks` has the rule), so a mean with one of them, or
a cloud with a few, shows little else. A capture reads the norms of its states along the way and counts such rows. The counts
of batches and shards add up, and become a note in the provenance. Lenses and readouts count and note them the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from interp.models import VLM, Batch, Edit
from interp.models.running.sinks import FACTOR, norm_ratios, take_norms
from interp.models.running.steps import Read, reads_of_states

# Rows with sinks, the largest ratio and the state at which it is, and the names of positions without them. In a manifest.
SinkCount = Mapping[str, Any]
_KEY = "norms"
OUTWEIGH = "which outweigh all else in means and distances"


def reads_for_sinks(vlm: VLM, sites: Mapping[str, Sequence[int]], edits: Sequence[Edit]) -> list[Read]:
    """The reads of the norms of the states that are captured; for other sites, of those that enter their layers."""
    states = {layer + (site == "resid_post") for site, layers in sites.items() for layer in layers}
    reads = reads_of_states(vlm, take_norms, (), edits)
    return [Read((_KEY, read.key), read.site, read.layer, read.function) for read in reads if read.key in states]


def count_sinks(
    vlm: VLM,
    batch: Batch,
    edits: Sequence[Edit],
    reads: Sequence[Read],
    values: Mapping[Any, Any],
    mask: Bool[Tensor, "batch seq"],
) -> SinkCount | None:
    """The count of a batch from what these reads gave, at the positions of the mask; None without sinks."""
    states = [read.key[1] for read in reads]
    norms = torch.stack([values[read.key].cpu() for read in reads])
    ratios = norm_ratios(vlm, norms, states, batch.positions).where(mask, 0.0)
    sinks = ratios.amax(dim=0) > FACTOR
    if not sinks.any():
        return None
    images = batch.positions["image"]
    kinds = {"content": ~images, "image_content": images}
    # These names know the model as it is. They leave out no sink that is there because of an edit.
    left_out = {name: kind & ~batch.positions[name] if edits else kind for name, kind in kinds.items()}
    place = int(ratios.flatten(1).amax(dim=1).argmax())
    return {
        "rows": int(sinks.any(dim=1).sum()),
        "ratio": round(ratios[place].max().item(), 1),
        "state": states[place],
        "without": [name for name, tokens in left_out.items() if (sinks & tokens).any()],
    }


def add_counts(counts: Iterable[SinkCount | None]) -> SinkCount | None:
    """The count of all these together."""
    known = [count for count in counts if count is not None]
    if not known:
        return None
    largest = max(known, key=lambda count: count["ratio"])
    names = sorted({name for count in known for name in count["without"]})
    return {**largest, "rows": sum(count["rows"] for count in known), "without": names}


def reads_of_norms(vlm: VLM, edits: Sequence[Edit]) -> list[Read]:
    """The reads of the norms of all states."""
    return reads_for_sinks(vlm, {"resid": range(vlm.structure.n_layers + 1)}, edits)


def notes_of_sinks(count: SinkCount | None, rows: int, effect: str = OUTWEIGH) -> tuple[str, ...]:
    """The note of a count; none without sinks."""
    return () if count is None else (note_of(count, rows, effect),)


def note_of(count: SinkCount, rows: int, effect: str = OUTWEIGH) -> str:
    """The count as a line of a provenance; `rows` are all of the capture, and `effect` is what sinks do to its numbers."""
    names = " and ".join(f'positions="{name}"' for name in count["without"])
    instead = (
        f"{names} leaves them out" if names else "the interventions make them, so no name of positions leaves them out"
    )
    return (
        f"tokens of outlying norm (attention sinks) are among the positions in {count['rows']} of {rows} rows, with norms of "
        f"up to {count['ratio']:g} times the usual one (state {count['state']}), {effect}: "
        f"{instead}"
    )
