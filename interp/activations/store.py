"""Activations in a folder: safetensors shards and one JSON manifest, which survive a run that is killed.

A shard has the activations of consecutive rows. It is written under another name and then renamed, so it is there whole
or not at all. Its entry, `shard-00007.json`, has a description and a checksum of it; a shard without an entry does not
count. When all shards are written the manifest takes the entries in, and their files are removed. So a run can be killed
at any time: what counts is complete, and the rest is made again. Several processes write their own shards to one folder.
docs/store.md describes the format.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.activations.container import Activations, Places, means
from interp.activations.lazy import LazyTensor, Part
from interp.activations.reductions import is_mean
from interp.activations.shards import FORMAT, Shard, as_activations, merge
from interp.errors import InputError, InputTypeError, InterpError, reason_of, shown
from interp.files import whole_file

MANIFEST = "manifest.json"
_SHARD = re.compile(r"shard-\d{5,}\.safetensors")
# What every entry has.
_FIELDS = {
    "file",
    "sha256",
    "bytes",
    "rows",
    "examples",
    "shapes",
    "dtypes",
    "data",
    "source",
    "skipped",
    "ids",
    "labels",
}


def open_activations(folder: str | os.PathLike[str]) -> Activations:
    """Open the activations that `capture(..., out=folder)` wrote; their states are read when they are indexed.

    A shard's checksum is compared once a process, when the shard is first read.

    Raises `InputError` where there is no manifest, where the run is not finished, and for a shard that is missing or
    damaged, by its name.
    """
    path = _folder("folder", folder)
    manifest = _read_manifest(path)
    with _naming_manifest(path):
        return _open_shards(path, manifest)


def _folder(name: str, path: Any) -> Path:
    """The absolute path of a folder, which stays the same when the working directory changes."""
    if not isinstance(path, str | os.PathLike) or not os.fspath(path):
        raise InputTypeError(f"{name}={path!r}: expected the path of a folder")
    return Path(os.path.expanduser(path)).absolute()


def _read_entry(path: Path) -> dict[str, Any] | None:
    """The entry at a path, None where it is missing or not whole."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return entry if isinstance(entry, dict) and entry.keys() >= _FIELDS else None


def _entries_of(manifest: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The entries that a manifest took in, by their numbers."""
    entries, start = {}, 0
    for index, shard in enumerate(manifest["shards"]):
        stop = start + shard["rows"]
        labels = {name: values[start:stop] for name, values in manifest["labels"].items()}
        entry = {**shard, "ids": manifest["ids"][start:stop], "labels": labels}
        entry |= {"contents": manifest["contents"][start:stop]} if "contents" in manifest else {}
        if not entry.keys() >= _FIELDS:
            raise KeyError(*sorted(_FIELDS - entry.keys())[:1])
        entries[index] = entry
        start = stop
    return entries


@contextmanager
def _naming_manifest(folder: Path) -> Iterator[None]:
    """What a manifest lacks, in one line."""
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(
            f"{str(folder / MANIFEST)!r} is not as capture writes it ({reason_of(error)}): capture anew, into another folder"
        ) from error


def _open_shards(path: Path, manifest: Mapping[str, Any]) -> Activations:
    if not manifest["complete"]:
        done = len(list(path.glob("shard-*.json")))
        raise InputError(f"{str(path)!r} is not finished ({done} shards are): run the same capture again")
    shards = manifest["shards"]
    for entry in shards:
        if not _SHARD.fullmatch(entry["file"]):
            raise InputError(f"{str(path)!r} names a shard {entry['file']!r}: expected shard-00000.safetensors or so")
        file = path / entry["file"]
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise _damaged(file, f"it has {file.stat().st_size} bytes" if file.is_file() else "it is missing")
    pooled = is_mean(manifest["reduce"])  # then the places of examples are known
    return as_activations(
        manifest,
        {site: _lazy_site(path, shards, site, about["kind"]) for site, about in manifest["sites"].items()},
        {
            kind: means(manifest["rows"]) if pooled else functools.partial(_read_places, path, shards, kind)
            for kind in manifest["examples"]
        },
    )


def _lazy_site(folder: Path, shards: Sequence[Mapping[str, Any]], site: str, kind: str) -> LazyTensor:
    parts = []
    shards = [entry for entry in shards if entry["rows"]]
    for entry in shards:
        path, sha256 = folder / entry["file"], entry["sha256"]
        parts.append(Part(functools.partial(_read_slice, path, sha256, site), entry["examples"][kind]))
    shapes = [entry["shapes"][site] for entry in shards]
    later = [max(sizes) for sizes in zip(*(shape[2:] for shape in shapes), strict=True)]
    shape = (shapes[0][0], sum(part.examples for part in parts), *later)
    return LazyTensor(parts, shape, getattr(torch, shards[0]["dtypes"][site]))


def _read_slice(path: Path, sha256: str, name: str, states: slice, examples: slice) -> Tensor:
    with _open_shard(path, sha256) as shard:
        return shard.get_slice(name)[states, examples]


def _read_places(folder: Path, shards: Sequence[Mapping[str, Any]], kind: str) -> Places:
    rows, columns, before = [], [], 0
    for entry in (each for each in shards if each["rows"]):
        with _open_shard(folder / entry["file"], entry["sha256"]) as shard:
            rows.append(shard.get_tensor(f"{kind}.rows") + before)
            columns.append(shard.get_tensor(f"{kind}.columns"))
        before += entry["rows"]
    return Places(torch.cat(rows), torch.cat(columns))


def _open_shard(path: Path, sha256: str) -> Any:
    """Open a shard; its checksum is compared unless it was compared with this version of the file."""
    try:
        stat = path.stat()
        _verify(path, sha256, (stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return safe_open(str(path), framework="pt")
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from error


@functools.cache
def _verify(path: Path, sha256: str, version: tuple[int, ...]) -> None:
    checksum = _checksum(path)
    if checksum != sha256:
        raise _damaged(path, f"its checksum is {checksum[:12]}..., the manifest has {sha256[:12]}...")


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{str(path)!r} is damaged ({reason}): run the same capture again, it writes this shard anew")


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(
            f"{str(folder)!r} holds no activations: expected a folder with a {MANIFEST} that capture wrote"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = "is not JSON" if isinstance(error, ValueError) else "cannot be read"
        raise InputError(
            f"{str(path)!r} {what} ({error}): expected a manifest that capture wrote, capture anew into another folder"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        value = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise InputError(f"{str(path)!r} has the format {value!r}: expected {FORMAT!r}")
    return {"complete": False, **manifest}


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(index: int) -> str:
    return f"shard-{index:05d}.safetensors"


def _entry_name(index: int) -> str:
    return f"shard-{index:05d}.json"


@dataclass
class Store:
    """A folder that is filled according to a `plan`: what is captured of which model, as plain values."""

    folder: Path
    plan: Mapping[str, Any]
    complete: bool = False
    _entries: dict[int, dict[str, Any]] = field(default_factory=dict)
    _lock: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def begin(cls, out: str | os.PathLike[str], plan: Mapping[str, Any], resume: bool) -> Store:
        """Take a folder that is empty or has a part of the same run. Raises `InputError` for any other."""
        folder = _folder("out", out)
        plan = json.loads(json.dumps(plan))
        if folder.exists() and not folder.is_dir():
            raise InputError(f"out={str(out)!r} is a file: expected a folder, or a name for a new one")
        manifest = _read_manifest(folder) if (folder / MANIFEST).exists() else None
        if manifest is None:
            others = sorted(each.name for each in folder.glob("[!.]*")) if folder.exists() else []
            if others:
                raise InputError(f"out={str(out)!r} holds {others[0]!r} but no activations: expected an empty folder")
            return cls(folder, plan)
        if not manifest["complete"] and not any(folder.glob("shard-*")):
            return cls(folder, plan)  # stopped before its first shard
        if not resume:
            raise InputError(f"out={str(out)!r} holds activations already: pass resume=True, or another folder")
        for name, value in plan.items():
            if manifest.get(name) != value:
                raise InputError(
                    f"out={str(out)!r} holds activations with {name}={shown(manifest.get(name))}, this run has "
                    f"{shown(value)}: pass the same, or another folder"
                )
        with _naming_manifest(folder):
            return cls(folder, plan, manifest["complete"], _entries_of(manifest) if manifest["complete"] else {})

    def prepare(self) -> None:
        """Make and lock the folder, remove what a killed run left half-written, and write the plan into it.

        Raises `InputError` while another run writes to it; `release` takes the lock away.
        """
        try:
            with self._naming(MANIFEST):
                self.folder.mkdir(parents=True, exist_ok=True)
                self._take_lock()
                for partial in self.folder.glob(".*.partial"):
                    partial.unlink()
            if not self.complete:
                self._write_json(MANIFEST, {"format": FORMAT, "complete": False, **self.plan})
        except BaseException:
            self.release()
            raise

    def _take_lock(self) -> None:
        """Lock the folder itself: the lock leaves no file and ends with this process, however that ends."""
        try:
            import fcntl
        except ImportError:  # Windows does not have these locks
            return
        handle = os.open(self.folder, os.O_RDONLY)
        self._lock.callback(os.close, handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"out={str(self.folder)!r} is being written by another run: wait for its end, or take another folder"
            ) from None
        except OSError:  # some network drives do not have them either
            pass

    def release(self) -> None:
        """Let others write to the folder."""
        self._lock.close()

    def abandon(self) -> None:
        """Remove the folder where no shard was finished."""
        if not self.complete and not any(self.folder.glob("shard-*")):
            with suppress(OSError):
                (self.folder / MANIFEST).unlink(missing_ok=True)
                self.folder.rmdir()

    def entry(self, index: int) -> dict[str, Any] | None:
        """The entry of a finished shard, None where it is missing or damaged.

        A shard without rows counts only when the whole run is complete: its pictures may be readable by now.
        """
        entry = self._entries.get(index) or _read_entry(self.folder / _entry_name(index))
        path = self.folder / _name(index)
        if entry is None or not path.is_file() or _checksum(path) != entry["sha256"]:
            return None
        if not entry["rows"] and not self.complete:
            return None
        self._entries[index] = entry
        return entry

    def write(self, index: int, shard: Shard) -> dict[str, Any]:
        """Write a shard and its entry. Raises `InterpError` where the disk is full; finished shards stay."""
        name = _name(index)
        tensors = {site: tensor.contiguous() for site, tensor in shard.tensors.items()}
        for kind, places in shard.places.items():
            tensors |= {f"{kind}.rows": places.rows, f"{kind}.columns": places.columns}
            tensors[f"{kind}.offsets"] = torch.searchsorted(places.rows, torch.arange(len(shard.ids) + 1))
        with self._writing(name) as partial:
            save_file(tensors, partial, metadata={"format": FORMAT})
        with self._naming(name):
            path = self.folder / name
            entry = {"file": name, "sha256": _checksum(path), "bytes": path.stat().st_size, **shard.about()}
        self._write_json(_entry_name(index), entry)
        self._entries[index] = entry
        return entry

    def compare(self, index: int, source: str) -> None:
        """Refuse data other than what a finished shard was made of."""
        if self._entries[index]["source"] != source:
            raise InputError(
                f"the rows of {str(self.folder / _name(index))!r} have other ids, texts or labels: expected the data that "
                "the folder was begun with, or another folder"
            )

    def finish(self, shards: int, run: Mapping[str, Any]) -> None:
        """Write the manifest of the shards of all processes, and remove their entries."""
        more = sorted(index for index in {*self._entries, *self._with_entry()} if index >= shards)
        if more:
            raise InputError(
                f"{str(self.folder)!r} holds {_name(more[0])!r}, but the data ends before it: expected the data that "
                "it was begun with"
            )
        if self.complete and not self._with_entry():
            return
        for index in self._with_entry():
            self._entries[index] = _read_entry(self.folder / _entry_name(index)) or {}
        missing = [index for index in range(shards) if not self._entries.get(index)]
        if missing:
            raise InterpError(
                f"{str(self.folder / _name(missing[0]))!r} is not there: do all processes see this folder?"
            )
        self._write_json(MANIFEST, merge(self.plan, [self._entries[index] for index in range(shards)], run))
        for index in self._with_entry():
            (self.folder / _entry_name(index)).unlink()

    def _with_entry(self) -> list[int]:
        """The numbers of the shards that have an entry file, of every process."""
        return sorted(int(path.stem.removeprefix("shard-")) for path in self.folder.glob("shard-*.json"))

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        with self._writing(name) as partial:
            # In ASCII, for no other encoding has names that the system could not read as text.
            partial.write_text(json.dumps(value, indent=1) + "\n", encoding="ascii")

    @contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        """A path to write to: renamed to `name` when all is on the disk, removed where something fails."""
        with self._naming(name), whole_file(self.folder / name) as partial:
            yield partial

    @contextmanager
    def _naming(self, name: str) -> Iterator[None]:
        """What the system refuses of this file, in one line."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            finished = sum(1 for each in self.folder.glob("shard-*.safetensors")) if self.folder.exists() else 0
            raise InterpError(
                f"{str(self.folder / name)!r} cannot be written ({error}): {finished} finished shards stay, check the "
                "room on the disk and the rights, and run the same again"
            ) from error
