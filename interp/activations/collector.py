"""Capturing activations: one pass over the data, reduced where the activation is made.

Positions are pooled or picked inside the trace, so only what was asked for leaves it. An example is a row of the data;
with ``reduce="none"`` it is one selected position.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.activations.data import rows_of
from interp.errors import InputError
from interp.models import VLM, Batch, Intervention
from interp.models.batch import fingerprint
from interp.models.forward import Read, reads_of_states, run_forward, take_each, take_mean
from interp.models.places import STATES
from interp.results import Provenance

REDUCTIONS = ("mean", "last", "none", "sample")


@dataclass(frozen=True)
class Activations(Mapping[str, Tensor]):
    """What was captured: `acts[site]` is a Tensor `[state, example, feature]`.

    The site `resid` has ``n_layers + 1`` states, every other site one a layer. `ids` names the rows of the data and
    `labels` holds what the data set knows of them; `rows` and `columns` Int `[example]` say which row and which of its
    columns an example was taken from (the column is -1 where an example is a mean over several).
    """

    tensors: Mapping[str, Tensor] = field(repr=False)
    ids: tuple[str, ...] = field(repr=False)
    labels: Mapping[str, Sequence[Any]] = field(repr=False)
    rows: Int[Tensor, " example"] = field(repr=False)
    columns: Int[Tensor, " example"] = field(repr=False)
    manifest: Mapping[str, Any]

    def __getitem__(self, site: str) -> Tensor:
        if site not in self.tensors:
            raise InputError(f"site {site!r} was not captured: these were, {', '.join(self.tensors)}")
        return self.tensors[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def capture(
    vlm: VLM,
    data: Any,
    sites: Sequence[str] = ("resid",),
    positions: Any = "image",
    reduce: str = "mean",
    batch_size: int = 8,
    interventions: Sequence[Intervention] = (),
    dtype: torch.dtype | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Activations:
    """Capture activations of `data` at `sites`, at the selected positions of each row.

    `reduce` says what becomes of a row's selected positions: their "mean" (accumulated in float32), the "last" one, one
    drawn with `seed` ("sample"), or "none", each of them an example of its own. Everything comes back on the CPU, in
    `dtype` or else the model's own.

    Raises `InputError` for an unknown site or reduction, a row in which no position is selected, data without rows.

    >>> import interp
    >>> acts = interp.capture(interp.load("toy"), interp.toy.scenes(4, seed=0), progress=False)
    >>> acts["resid"].shape
    torch.Size([9, 4, 128])
    """
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    known = ("resid", *STATES)
    for site in sites:
        if site not in known:
            raise InputError(f"site={site!r} is unknown: use one of {', '.join(known)}")
    if reduce not in REDUCTIONS:
        raise InputError(f"reduce={reduce!r} is unknown: use one of {', '.join(REDUCTIONS)}")
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size!r}: expected 1 or more")
    rows = rows_of(data)
    generator = torch.Generator().manual_seed(seed)
    taken: dict[str, list[Tensor]] = {site: [] for site in sites}
    places: list[Tensor] = []
    digest = hashlib.sha256()
    done = 0
    for batch in _shown(rows.prepared(vlm, batch_size), len(rows), progress):
        mask = _picked(batch, positions, reduce, generator, done)
        digest.update(fingerprint(batch).encode())
        for site, states in _capture_batch(vlm, batch, sites, mask, reduce, interventions, dtype).items():
            taken[site].append(states)
        places.append(_places(mask, reduce) + torch.tensor([[done], [0]]))
        done += len(batch)
    where = torch.cat(places, dim=1)
    provenance = Provenance(
        model=vlm.name,
        revision=vlm.revision,
        data=digest.hexdigest(),
        seed=seed,
        interventions=tuple(repr(each) for each in interventions),
    )
    return Activations(
        tensors={site: torch.cat(states, dim=1) for site, states in taken.items()},
        ids=rows.ids,
        labels=rows.labels,
        rows=where[0],
        columns=where[1],
        manifest={"positions": repr(positions), "reduce": reduce, "examples": where.shape[1], **asdict(provenance)},
    )


def _picked(
    batch: Batch, positions: Any, reduce: str, generator: torch.Generator, done: int
) -> Bool[Tensor, "batch seq"]:
    """The positions that are read: all selected ones, or the one of each row that the reduction wants."""
    mask = batch.positions.select(positions)
    empty = (~mask.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise InputError(
            f"positions={positions!r} selects no position of row {done + empty[0]}: expected one or more in each row"
        )
    if reduce == "last":
        return mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    if reduce == "sample":
        chosen = torch.multinomial(mask.float(), 1, generator=generator)
        return torch.zeros_like(mask).scatter(1, chosen, True)
    return mask


def _places(mask: Tensor, reduce: str) -> Int[Tensor, "2 example"]:
    if reduce == "mean":
        return torch.stack([torch.arange(len(mask)), torch.full((len(mask),), -1)])
    return torch.stack(mask.nonzero(as_tuple=True))


def _capture_batch(
    vlm: VLM,
    batch: Batch,
    sites: Sequence[str],
    mask: Tensor,
    reduce: str,
    interventions: Sequence[Intervention],
    dtype: torch.dtype | None,
) -> dict[str, Tensor]:
    """Each site's `[state, example, feature]` of one batch."""
    function = take_mean if reduce == "mean" else take_each
    arguments = (mask, dtype) if reduce == "mean" else (*mask.nonzero(as_tuple=True), dtype)
    depth = vlm.structure.n_layers
    edits = vlm.edits_of(batch, interventions)
    reads = {
        site: reads_of_states(vlm, function, arguments, edits)
        if site == "resid"
        else [Read(layer, site, layer, function, arguments) for layer in range(depth)]
        for site in sites
    }
    wanted = [replace(read, key=(site, read.key)) for site, of_site in reads.items() for read in of_site]
    seen = run_forward(vlm, batch, edits, wanted, logits=None)
    return {site: torch.stack([seen[site, read.key] for read in of_site]).cpu() for site, of_site in reads.items()}


def _shown(batches: Iterator[Batch], rows: int, progress: bool) -> Iterator[Batch]:
    """The batches, with a progress bar over the rows where one is wanted."""
    if not progress:
        yield from batches
        return
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task("capture", total=rows)
        for batch in batches:
            yield batch
            bar.advance(task, len(batch))
