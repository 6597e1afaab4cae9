"""Capturing activations: one pass over the data, reduced where the activation is made.

Only what was asked for leaves a trace. In memory for a look, or with `out=` into a folder: then memory does not grow
with the data, the run can be stopped at any moment and started again, and several processes share the work.
"""

from __future__ import annotations

import itertools
import os
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch

from interp.activations.container import Activations, Places, cat_examples
from interp.activations.extraction import (
    REDUCTIONS,
    Taken,
    Wanted,
    hold_positions,
    is_mask,
    kind_of,
    known_sites,
    layers_of,
    take,
)
from interp.activations.plan import make_plan
from interp.activations.portions import Halving, Piece, Portion, pieces, portions, shard_rows
from interp.activations.processes import Processes, processes
from interp.activations.progress import Advance, shown_progress
from interp.activations.shards import Shard, add_hashes, in_memory
from interp.activations.store import Store, open_activations
from interp.arguments import as_int
from interp.data.rows import pictures_of
from interp.data.sources import Batches, Row, Rows, source_of
from interp.errors import InputError, InputTypeError, InterpError
from interp.models import VLM, Intervention
from interp.models.layout.patches import RowsNotApart

_ON_ERROR = ("raise", "skip")


def capture(
    vlm: VLM,
    data: Any,
    sites: str | Sequence[str] = ("resid",),
    positions: Any = "image",
    reduce: str = "mean",
    batch_size: int = 8,
    interventions: Sequence[Intervention] = (),
    dtype: torch.dtype | str | None = None,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    progress: bool = True,
    *,
    layers: Any = "all",
    columns: Mapping[str, str] | None = None,
    prompt: str | None = None,
    chat: bool = False,
    on_error: str = "raise",
    rows_per_shard: int | None = None,
) -> Activations:
    """Capture activations of `data` at `sites`, at the selected positions of each row.

    `reduce` says what becomes of a row's selected positions: their "mean" (accumulated in float32), the "last" one, one
    drawn with `seed` ("sample"), or "none", each of them an example of its own. `layers` are the layers that are taken
    (the states, for `resid`), or a dict of them by site. Everything comes back on the CPU, in `dtype` or else the model's own.

    `data` is a list of batches or of (image, text), a folder of pictures, a `datasets.Dataset` (or a stream of one), or
    toy scenes. `columns` names what its columns are to us, ``{"text": "caption", "id": "file", "label": "class", "group":
    "scene"}``; `prompt` is the text of each row, ``"<image> {caption}"``, and with `chat` it is put into the model's chat
    template. A row that cannot be read is an error, or with ``on_error="skip"`` left out and listed in the manifest.

    With `out` the activations are written to a folder, a shard at a time, and given back unread. Called again with the
    same arguments, it goes on where it was stopped (`resume`) and makes damaged shards anew. Under `torchrun` each
    process takes its share; the result is that of one process. `rows_per_shard` is rounded up to whole windows.

    Raises `InputError` for an unknown site, layer, position or reduction, a row in which no position is selected, data
    without rows, a row that cannot be read, and a folder that holds something else; `LayoutError` where the model has
    no such site; `InterpError` where the disk is full, which costs no finished shard.

    >>> import interp
    >>> acts = interp.capture(interp.load("toy"), interp.toy.scenes(4, seed=0), progress=False)
    >>> acts["resid"].shape
    torch.Size([9, 4, 128])
    """
    _check(batch_size=batch_size, reduce=reduce, seed=seed, on_error=on_error, rows_per_shard=rows_per_shard)
    wanted = Wanted(_sites(vlm, sites, layers), positions, reduce, _dtype(dtype), _interventions(interventions), seed)
    source = source_of(data, columns, prompt)
    _check_masks(source, wanted)
    size = shard_rows(batch_size, reduce != "none", rows_per_shard)
    asked = {"columns": dict(columns or {}), "prompt": prompt, "chat": chat}
    plan = make_plan(vlm, wanted, batch_size=batch_size, rows_per_shard=size, size=source.size, **asked)
    run = _Run(vlm, wanted, batch_size, chat, on_error == "skip")
    work = portions(source, size)
    if out is None:
        started = time.monotonic()
        with shown_progress(source.size, progress) as advance:
            shards = [run.shard(portion, advance) for portion in _read(work)]
        return in_memory(plan, shards, _told(started, run, [len(shard.ids) for shard in shards]))
    with processes() as ours:
        _fill(out, plan, resume, run, work, ours, source.size, progress)
    return open_activations(out)


def _check(**given: Any) -> None:
    """Refuse options that are none of the known ones."""
    for name, known in (("reduce", REDUCTIONS), ("on_error", _ON_ERROR)):
        if given[name] not in known:
            raise InputError(f"{name}={given[name]!r} is unknown: use one of {', '.join(known)}")
    for name, least in (("batch_size", 1), ("seed", 0), ("rows_per_shard", 1)):
        value = as_int(given[name])
        if (name, given[name]) != ("rows_per_shard", None) and (value is None or value < least):
            raise InputError(f"{name}={given[name]!r}: expected {least} or more")


def _sites(vlm: VLM, sites: str | Sequence[str], layers: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(sites, str | Iterable):
        raise InputTypeError(f"sites={sites!r}: expected one or more of {', '.join(known_sites())}")
    names = (sites,) if isinstance(sites, str) else tuple(sites)
    for site in names:
        if site not in known_sites():
            raise InputError(f"site={site!r} is unknown: use one of {', '.join(known_sites())}")
    if not names:
        raise InputError(f"sites={sites!r}: expected one or more of {', '.join(known_sites())}")
    by_site = layers if isinstance(layers, Mapping) else dict.fromkeys(names, layers)
    unasked = [site for site in by_site if site not in names]
    if unasked:
        raise InputError(f"layers={layers!r} names {unasked[0]!r}, sites are {', '.join(names)}: expected one of them")
    return {site: layers_of(vlm, site, by_site.get(site, "all")) for site in names}


def _interventions(given: Any) -> tuple[Intervention, ...]:
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise InputTypeError(f"interventions={given!r}: expected a list of interventions")
    return tuple(given)


def _check_masks(source: Rows | Batches, wanted: Wanted) -> None:
    """Refuse masks over rows that are put into batches here, where they would meet other rows than they were made for."""
    masked = ["positions"] if is_mask(wanted.positions) else []
    for each in wanted.interventions:
        names: list[str] = [item.name for item in fields(each)] if is_dataclass(each) else []
        masked += [f"{type(each).__name__}({name}=...)" for name in names if is_mask(getattr(each, name))]
    if masked and not isinstance(source, Batches):
        raise InputError(
            f"{masked[0]} is a Bool mask, and the rows of this data are sorted into batches: expected a name or ints, or "
            "give the data as the Batch that the mask is of"
        )


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise InputError(f"dtype={dtype!r} is unknown: expected 'float32', 'bfloat16', torch.float16 or the like")
    return found


def _read(work: Iterable[Callable[[], Portion | None]]) -> Iterable[Portion]:
    """The portions until the data ends."""
    for read in work:
        portion = read()
        if portion is None:
            return
        yield portion


def _fill(
    out: Any,
    plan: Mapping[str, Any],
    resume: bool,
    run: _Run,
    work: Iterable[Callable[[], Portion | None]],
    ours: Processes,
    size: int | None,
    progress: bool,
) -> None:
    """Write the shards of this process that are not there yet; the first process writes the manifest of all."""
    started = time.monotonic()
    store = _begun(out, plan, resume, ours)
    share = None if size is None else -(-size // ours.size)
    mine = (read for index, read in enumerate(work) if index % ours.size == ours.rank)
    found = captured = last = 0
    try:
        with shown_progress(share, progress and ours.rank == 0) as advance:
            for index, portion in zip(itertools.count(ours.rank, ours.size), _read(mine), strict=False):
                last = index + 1
                entry = store.entry(index)
                if entry is not None:
                    store.compare(index, portion.source)
                    found += 1
                    advance(len(portion.ids), entry["bytes"])
                else:
                    store.write(index, run.shard(portion, advance))
                    captured += len(portion.ids)
        told = ours.together({"shards": last, "found": found, "captured": captured, "limit": run.halving.limit})
        if ours.rank == 0:
            about = _told(started, run, [each["captured"] for each in told])
            about |= {"processes": ours.size, "shards_found": sum(each["found"] for each in told)}
            about["batches_halved_to"] = min((each["limit"] for each in told if each["limit"]), default=None)
            store.finish(max(each["shards"] for each in told), about)
    except BaseException:
        if ours.size == 1:  # others may be at work in the folder still
            store.abandon()
        raise
    finally:
        store.release()
    ours.together(None)


def _told(started: float, run: _Run, rows: Sequence[int]) -> dict[str, Any]:
    """How a run went: the only part of a manifest that differs between two runs of one plan."""
    seconds = time.monotonic() - started
    return {
        "seconds": round(seconds, 3),
        "rows_per_second": round(sum(rows) / max(seconds, 1e-6), 3),
        "batches_halved_to": run.halving.limit,
    }


def _begun(out: Any, plan: Mapping[str, Any], resume: bool, ours: Processes) -> Store:
    """The folder, made by the first process; what it refuses, all refuse."""
    refused = None
    if ours.rank == 0:
        try:
            store = Store.begin(out, plan, resume)
            store.prepare()
        except InterpError as error:
            refused = error
    refused = ours.together(refused)[0]
    if refused:
        raise refused
    return store if ours.rank == 0 else Store.begin(out, plan, True)


@dataclass
class _Run:
    """One pass: how batches are made and run, and what happened on the way."""

    vlm: VLM
    wanted: Wanted
    batch_size: int
    chat: bool
    skip: bool
    halving: Halving = field(default_factory=lambda: Halving(lambda said: warnings.warn(said, stacklevel=2)))

    def shard(self, portion: Portion, advance: Advance) -> Shard:
        """Run the rows of a portion; the results are in their order."""
        skipped: list[dict[str, Any]] = []

        def leave_out(row: Row, error: InputError) -> None:
            said = str(error)
            for picture in pictures_of(row.image):
                if isinstance(picture, str | os.PathLike):  # where it lies is nobody's business
                    said = said.replace(os.fspath(picture), os.path.basename(picture))
            skipped.append({"row": row.index, "id": row.id, "error": said})

        taken: list[Taken] = []
        numbers: list[tuple[int, ...]] = []
        hashes = []
        for piece, digest in pieces(self.vlm, portion, self.batch_size, self.chat, leave_out if self.skip else None):
            parts = [part for parts in self.halving.run(self._held(piece), self._take) for part in parts]
            taken += [each for each, _ in parts]
            numbers += [each for _, each in parts]
            hashes.append(digest)
            advance(len(piece.numbers), sum(t.nbytes for part, _ in parts for t in part.tensors.values()))
        kept = sorted(number for part in numbers for number in part)
        tensors, places = _in_order(taken, numbers, kept)
        return Shard(
            tensors=tensors,
            places=places,
            ids=tuple(portion.ids[number - portion.first] for number in kept),
            labels=_by_name([portion.labels[number - portion.first] for number in kept]),
            data=add_hashes(hashes),
            source=portion.source,
            skipped=tuple(skipped),
        )

    def _take(self, piece: Piece) -> list[tuple[Taken, tuple[int, ...]]]:
        try:
            return [(take(self.vlm, piece.batch, self.wanted, piece.numbers), piece.numbers)]
        except RowsNotApart as error:
            try:
                alone = [piece.part([row]) for row in range(len(piece.numbers))]
            except InputError as uncut:  # an encoding of which it is not known whose pixels are whose
                raise InputError(f"{error}; {uncut}") from None
            return [part for row in alone for part in self._take(row)]

    def _held(self, piece: Piece) -> Piece:
        if not is_mask(self.wanted.positions):
            return piece
        return Piece(hold_positions(piece.batch, self.wanted.positions), piece.numbers)


def _in_order(
    taken: Sequence[Taken], numbers: Sequence[Sequence[int]], kept: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Places]]:
    """What was taken batch by batch, in the order of the data; rows are counted among those that were kept."""
    if not taken:
        return {}, {}
    counted = {number: row for row, number in enumerate(kept)}
    rows_of = [torch.tensor([counted[number] for number in part]) for part in numbers]
    places, orders = {}, {}
    for kind in taken[0].places:
        rows = torch.cat([mine[each.places[kind].rows] for mine, each in zip(rows_of, taken, strict=True)])
        orders[kind] = torch.argsort(rows, stable=True)
        columns = torch.cat([each.places[kind].columns for each in taken])
        places[kind] = Places(rows[orders[kind]], columns[orders[kind]])
    tensors = {
        site: cat_examples([each.tensors[site] for each in taken])[:, orders[kind_of(site)]]
        for site in taken[0].tensors
    }
    return tensors, places


def _by_name(labels: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in labels for name in row)
    return {name: [row.get(name) for row in labels] for name in names}
