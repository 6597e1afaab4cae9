"""Capturing activations: one pass over the data, reduced where the activation is made.

Only what is asked for leaves a trace. It stays in memory, or with `out=` goes to a folder: then memory does not grow with
the data, the run can be stopped at any moment and started again, and several processes share the work.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any

import torch

from interp.activations.container import Activations, Places, cat_examples
from interp.activations.extraction import (
    BatchStates,
    CaptureRequest,
    extract,
    is_mask,
    kind_of,
    known_sites,
    layers_of,
    refuse_images,
    with_positions,
)
from interp.activations.plan import make_plan
from interp.activations.portions import Halving, Piece, Portion, Work, pieces, portions, read_portions, shard_rows
from interp.activations.processes import Advance, Processes, processes, rows_bar
from interp.activations.reductions import checked_reduction, count_pooled
from interp.activations.shards import Contents, Shard, add_hashes, in_memory
from interp.activations.sink_counts import add_counts
from interp.activations.store import Store, open_activations
from interp.arguments import checked_choice, checked_int
from interp.data.data import Data, as_data
from interp.data.rows import Batches, Row, Rows, Skip, without_faults
from interp.data.sources import source_of
from interp.errors import InputError, InputTypeError, InterpError, RowError
from interp.models import VLM, Intervention
from interp.models.batches.images import images_in
from interp.models.layout.patches import RowsNotApart
from interp.models.vlm import checked_interventions

# The folders of an absolute path between quotes, up to its last part.
_FOLDERS = re.compile(r"(?<=['\"])(?:/|[A-Za-z]:[/\\])[/\\]*(?:[^'\"/\\]+[/\\]+)*(?=[^'\"/\\]+['\"])")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+(?=>)")


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
    columns: Mapping[str, str | None] | None = None,
    prompt: str | None = None,
    chat: bool = False,
    on_error: str = "raise",
    rows_per_shard: int | None = None,
) -> Activations:
    """Capture activations of `data` at `sites`, at the selected positions of each row.

    >>> import interp
    >>> acts = interp.capture(interp.load("toy"), interp.toy.scenes(4, seed=0), progress=False)
    >>> acts["resid"].shape
    torch.Size([9, 4, 128])

    `reduce` says what becomes of a row's selected positions: their "mean" (accumulated in float32), the mean of 4 of them that
    are drawn with `seed` ("mean:4", any number), the "last" one, one that is drawn ("sample"), or "none", where each of them
    is an example. What is drawn depends on the row's number in the data and not on other rows. A row with fewer positions
    than are drawn is at fault. Where images are compared with captions, take the same number for both.

    `layers` are the layers to capture (the states, for `resid`), or a dict of them by site. All tensors are on the CPU, in
    `dtype` or else the model's own.

    `data` is a `Data` or what it is made from: a list of batches, of (image, text) or of texts, a folder of pictures, a
    file, a `datasets.Dataset` (or a stream of one), toy scenes; `columns`, `prompt`, `chat` and `on_error` are as in
    `Data`. With ``on_error="skip"`` rows that are at fault by themselves are left out, and the manifest lists them: those
    that cannot be read, that the processor refuses, and that have no selected position or fewer than `reduce` draws.

    Rows in which an intervention selects nothing stay as they are.

    Where attention sinks are among the selected positions, the provenance notes in how many rows, and the manifest has
    the count under "sinks". ``positions="content"`` is text without them, ``"image_content"`` image tokens without them.

    With `out` the activations are written to a folder, a shard at a time, and returned unread. Called again with the
    same arguments, `capture` goes on where it was stopped (`resume`) and writes damaged shards anew. Under `torchrun` each
    process takes its share; the result is that of one process. `rows_per_shard` is rounded up to whole windows.

    Raises `InputError` for an unknown site, layer, position or reduction, a row in which no position is selected, an
    intervention that selects nothing in any row, data without rows, a row that cannot be read, and a folder that holds
    something else; `LayoutError` where the model does not have the site; `InterpError` where the disk is full: finished
    shards stay.
    """
    reduce = checked_reduction(reduce)
    batch_size, seed = checked_int(batch_size, "batch_size", least=1), checked_int(seed, "seed")
    if rows_per_shard is not None:
        rows_per_shard = checked_int(rows_per_shard, "rows_per_shard", least=1)
    data = as_data(data, columns=columns, prompt=prompt, chat=chat, on_error=on_error)
    chosen = _layers_by_site(vlm, sites, layers)
    refuse_images(vlm, chosen, positions)
    selection = CaptureRequest(chosen, positions, reduce, _dtype(dtype), checked_interventions(interventions), seed)
    source = source_of(data)
    _check_masks(source, selection)
    size = shard_rows(batch_size, reduce != "none", rows_per_shard)
    reading: dict[str, Any] = {"batch_size": batch_size, "rows_per_shard": size, "size": source.size}
    reading |= {"columns": dict(data.columns or {}), "prompt": data.prompt, "chat": data.chat}
    reading |= {"spans": dict(data.spans)} if data.spans else {}
    plan = make_plan(vlm, selection, reading)
    run, work = _Pass(vlm, selection, batch_size, data), portions(source, size)
    if out is None:
        with rows_bar(source.size, progress) as advance:
            shards = [run.shard(portion, advance) for _, portion in read_portions(work)]
        return in_memory(plan, shards, run.summary([len(shard.ids) for shard in shards]))
    with processes() as group, _open_store(out, plan, resume, group) as store:
        share = None if source.size is None else -(-source.size // group.size)
        with rows_bar(share, progress and group.rank == 0) as advance:
            _fill(store, run, work, group, advance)
    return open_activations(out)


def _layers_by_site(vlm: VLM, sites: str | Sequence[str], layers: Any) -> dict[str, tuple[int, ...]]:
    names = (sites,) if isinstance(sites, str) else tuple(sites) if isinstance(sites, Iterable) else None
    if not names:
        error = InputTypeError if names is None else InputError
        raise error(f"sites={sites!r}: expected one or more of {', '.join(known_sites())}")
    for site in names:
        checked_choice(site, "site", known_sites())
    by_site = layers if isinstance(layers, Mapping) else dict.fromkeys(names, layers)
    others = [site for site in by_site if site not in names]
    if others:
        raise InputError(f"layers={layers!r} names {others[0]!r}, sites are {', '.join(names)}: expected one of them")
    return {site: layers_of(vlm, site, by_site.get(site, "all")) for site in names}


def _check_masks(source: Rows | Batches, selection: CaptureRequest) -> None:
    """Refuse masks where rows are sorted into batches: a mask would meet other rows than it was made for."""
    masks = ["positions"] if is_mask(selection.positions) else []
    for each in selection.interventions:
        names: list[str] = [item.name for item in fields(each)] if is_dataclass(each) else []
        masks += [f"{type(each).__name__}({name}=...)" for name in names if is_mask(getattr(each, name))]
    if masks and not isinstance(source, Batches):
        raise InputError(
            f"{masks[0]} is a Bool mask, and the rows of this data are sorted into batches: expected a name or ints, or "
            "give the data as the Batch that the mask is of"
        )


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    value = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(value, torch.dtype) and value.is_floating_point):
        raise InputError(f"dtype={dtype!r} is unknown: expected 'float32', 'bfloat16', torch.float16 or the like")
    return value


@contextmanager
def _open_store(out: Any, plan: Mapping[str, Any], resume: bool, group: Processes) -> Iterator[Store]:
    """The folder, made by the first process; an error of it is an error of all processes."""
    refusal = None
    if group.rank == 0:
        try:
            store = Store.begin(out, plan, resume)
            store.prepare()
        except InterpError as error:
            refusal = error
    refusal = group.exchange(refusal)[0]
    if refusal:
        raise refusal
    if group.rank != 0:
        store = Store.begin(out, plan, True)
    try:
        yield store
    except BaseException:
        if group.size == 1:  # other processes may still write to the folder
            store.abandon()
        raise
    finally:
        store.release()
    group.exchange(None)


def _fill(store: Store, run: _Pass, work: Work, group: Processes, advance: Advance) -> None:
    """Write the shards of this process that the folder does not have; the first process writes the manifest of all."""
    finished = captured = last = 0
    for index, portion in read_portions(work, group.rank, group.size):
        last = index + 1
        entry = store.entry(index)
        if entry is not None:
            store.compare(index, portion.source)
            finished += 1
            advance(len(portion.ids), entry["bytes"])
        else:
            store.write(index, run.shard(portion, advance))
            captured += len(portion.ids)
    counts = group.exchange({"shards": last, "finished": finished, "captured": captured, "limit": run.halving.limit})
    if group.rank == 0:
        summary = run.summary([each["captured"] for each in counts])
        summary |= {"processes": group.size, "shards_found": sum(each["finished"] for each in counts)}
        summary["batches_halved_to"] = min((each["limit"] for each in counts if each["limit"]), default=None)
        store.finish(max(each["shards"] for each in counts), summary)


def _for_manifest(message: str, row: Row) -> str:
    """A message about a row that names files without their folders and objects without their addresses.

    A manifest may be published, and that of another run is the same.
    """
    message = _ADDRESS.sub("", _FOLDERS.sub("", message))
    for picture in images_in(row.image):
        path = getattr(picture, "filename", picture)
        if isinstance(path, str | os.PathLike):
            message = message.replace(os.fspath(path), os.path.basename(path))
    return message


def _in_order(
    parts: Sequence[tuple[BatchStates, Sequence[int]]], numbers: Sequence[int]
) -> tuple[dict[str, Any], dict[str, Places]]:
    """The states of all batches in the order of the data; `numbers` are those of all rows, which are counted from 0."""
    if not parts:
        return {}, {}
    row_of = {number: row for row, number in enumerate(numbers)}
    rows_of = [torch.tensor([row_of[number] for number in part]) for _, part in parts]
    states = [each for each, _ in parts]
    places, orders = {}, {}
    for kind in states[0].places:
        rows = torch.cat([mine[each.places[kind].rows] for mine, each in zip(rows_of, states, strict=True)])
        orders[kind] = torch.argsort(rows, stable=True)
        columns = torch.cat([each.places[kind].columns for each in states])
        places[kind] = Places(rows[orders[kind]], columns[orders[kind]])
    tensors = {
        site: cat_examples([each.tensors[site] for each in states])[:, orders[kind_of(site)]]
        for site in states[0].tensors
    }
    return tensors, places


@dataclass
class _Pass:
    """One pass over the data: how batches are made and run, and what has happened so far."""

    vlm: VLM
    selection: CaptureRequest
    batch_size: int
    data: Data
    halving: Halving = field(default_factory=lambda: Halving(lambda text: warnings.warn(text, stacklevel=2)))
    start: float = field(default_factory=time.monotonic)

    def summary(self, rows: Sequence[int]) -> dict[str, Any]:
        """How the pass went: the only part of a manifest that differs between two runs of one plan."""
        seconds = time.monotonic() - self.start
        return {
            "seconds": round(seconds, 3),
            "rows_per_second": round(sum(rows) / max(seconds, 1e-6), 3),
            "batches_halved_to": self.halving.limit,
        }

    def shard(self, portion: Portion, advance: Advance) -> Shard:
        """Run the rows of a portion; the results are in their order."""
        skipped: dict[int, dict[str, Any]] = {}

        def skip(row: Row, error: InputError) -> None:
            skipped[row.index] = {"row": row.index, "id": row.id, "error": _for_manifest(str(error), row)}

        skipping = skip if self.data.on_error == "skip" else None
        extract_piece = partial(self._extract, portion=portion, skip=skipping)
        parts: list[tuple[BatchStates, tuple[int, ...]]] = []
        hashes: dict[int, str] = {}
        contents: dict[int, Contents] = {}
        for piece, of_piece, of_rows in pieces(self.vlm, portion, self.batch_size, self.data.chat, skipping):
            new = [part for half in self.halving.run(self._with_positions(piece), extract_piece) for part in half]
            parts += new
            hashes |= of_piece
            contents |= of_rows
            advance(len(piece.numbers), sum(t.nbytes for states, _ in new for t in states.tensors.values()))
        numbers = sorted(number for _, part in parts for number in part)
        idle = [states.idle for states, _ in parts]
        tensors, places = _in_order(parts, numbers)
        labels = [portion.labels[number - portion.first] for number in numbers]
        return Shard(
            tensors=tensors,
            places=places,
            ids=tuple(portion.ids[number - portion.first] for number in numbers),
            labels={
                name: [row.get(name) for row in labels] for name in dict.fromkeys(n for row in labels for n in row)
            },
            # A batch in memory counts as a whole, whichever of its rows are captured.
            data=add_hashes(each for number, each in hashes.items() if portion.batches or number not in skipped),
            source=portion.source,
            contents=tuple(contents[number] for number in numbers),
            skipped=tuple(skipped[number] for number in sorted(skipped)),
            sinks=add_counts(states.sinks for states, _ in parts),
            idle=frozenset[int]().union(*idle[:1]).intersection(*idle),
            pooled=count_pooled([states.pooled for states, _ in parts]),
        )

    def _extract(self, piece: Piece, portion: Portion, skip: Skip | None) -> list[tuple[BatchStates, tuple[int, ...]]]:
        """The states of the rows of a piece; a row that cannot be used goes to `skip`, or is an error without it."""
        try:
            return [(extract(self.vlm, piece.batch, self.selection, piece.numbers), piece.numbers)]
        except RowError as error:
            left = without_faults([portion.row(number) for number in piece.numbers], error, skip)
            return self._extract(piece.part(left), portion, skip) if left else []
        except RowsNotApart as error:
            try:
                rows = [piece.part([row]) for row in range(len(piece.numbers))]
            except InputError as uncut:  # nothing says which pixels of the encoding are whose
                raise InputError(f"{error}; {uncut}") from None
            return [part for row in rows for part in self._extract(row, portion, skip)]

    def _with_positions(self, piece: Piece) -> Piece:
        if not is_mask(self.selection.positions):
            return piece
        return Piece(with_positions(piece.batch, self.selection.positions), piece.numbers)
