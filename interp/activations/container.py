"""Activations: the states of a data set, in memory or in a folder, with the ids and labels of its rows.

A *row* is a row of the data; an *example* is one vector of each state. Where a row's positions were pooled or one of them
was picked, an example is a row; with ``reduce="none"`` it is one selected position, in row order. All sites of the
decoder share their examples, which are tokens; the vision tower and the projector have patches as examples of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from interp.activations.lazy import LazyTensor
from interp.activations.reductions import add_pooled, is_mean
from interp.activations.sink_counts import note_of
from interp.arguments import as_ints
from interp.displays import Display
from interp.errors import InputError, InputTypeError, shown
from interp.provenance import Provenance

if TYPE_CHECKING:
    import pandas as pd


def means(rows: int) -> Places:
    """The places of one mean a row."""
    return Places(torch.arange(rows), torch.full((rows,), -1))


def _examples_of(rows: Tensor, chosen: Sequence[int]) -> Int[Tensor, " example"]:
    """The examples of these rows, row by row; `rows` is sorted."""
    values = torch.tensor(chosen)
    starts, stops = torch.searchsorted(rows, values), torch.searchsorted(rows, values, right=True)
    counts = stops - starts
    within = torch.arange(int(counts.sum())) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    return starts.repeat_interleave(counts) + within


def _part(site: Any, states: Sequence[int], examples: Tensor | None) -> Any:
    if isinstance(site, LazyTensor):
        return site.narrowed(states, examples)
    part = site if len(states) == len(site) and list(states) == list(range(len(site))) else site[list(states)]
    return part if examples is None else part[:, examples]


def _join(ours: Any, theirs: Any) -> Any:
    if isinstance(ours, LazyTensor) and isinstance(theirs, LazyTensor):
        return ours.joined(theirs)
    return cat_examples([ours[...], theirs[...]])


def cat_examples(parts: Sequence[Tensor]) -> Tensor:
    """`[state, example, ...]` joined along the examples; a later axis that differs (keys) is filled with zeros."""
    later = [max(part.shape[axis] for part in parts) for axis in range(2, parts[0].ndim)]
    padded = []
    for part in parts:
        missing = [(0, size - own) for size, own in zip(later, part.shape[2:], strict=True)]
        flat = [number for pair in reversed(missing) for number in pair]
        padded.append(torch.nn.functional.pad(part, flat) if any(flat) else part)
    return torch.cat(padded, dim=1)


@dataclass(frozen=True)
class Places(Display):
    """Where examples are from: the row of each and its token or patch in the row, Int `[example]`.

    Tokens are counted among the row's real ones, patches among the row's patches, from 0; the column of a mean is -1.
    """

    rows: Int[Tensor, " example"]
    columns: Int[Tensor, " example"]


@dataclass(frozen=True, repr=False, eq=False)
class Activations(Display, Mapping[str, Any]):
    """Captured activations: `acts[site]` is `[state, example, ...]`, and `acts[site][...]` a Tensor.

    >>> import interp
    >>> acts = interp.capture(interp.load("toy"), interp.toy.scenes(4, seed=0), progress=False)
    >>> acts.select(rows=[2, 0])["resid"].shape
    torch.Size([9, 2, 128])

    In memory `acts[site]` is a Tensor; of a folder it is a `LazyTensor`, which reads what is indexed. The site `resid` has
    ``n_layers + 1`` states, every other site of the decoder one a layer; `layers[site]` are those that were captured.
    `ids` names the rows of the data, and `labels` has one value a row for each label of the data set. `rows` and `columns`
    Int `[example]` are the row of each example and its real token in that row (-1 for a mean over several);
    `places(site)` has both for any site. `manifest` describes the model, the data and the run.
    """

    sites: Mapping[str, Any]
    layers: Mapping[str, tuple[int, ...]]
    ids: tuple[str, ...]
    labels: Mapping[str, Sequence[Any]]
    manifest: Mapping[str, Any]
    kinds: Mapping[str, str]
    located: Mapping[str, Any]  # kind of example -> Places, or a function that reads them
    contents: tuple[tuple[str, ...], ...] = ()  # hashes of each row's pictures, or of its text; none where unknown

    def __repr__(self) -> str:
        sites = ", ".join(f"{site} {list(value.shape)} {value.dtype}" for site, value in self.sites.items())
        return f"Activations({sites}; {len(self.ids)} rows of {self.manifest.get('model')!r})"

    def __getitem__(self, site: str) -> Any:
        self._check_site(site)
        return self.sites[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __contains__(self, site: object) -> bool:  # Mapping's own and its get() would expect a KeyError
        return isinstance(site, str) and site in self.sites

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.sites)

    def get(self, site: str, default: Any = None) -> Any:
        """`acts[site]` where it was captured, else the default."""
        return self.sites.get(site, default)

    def _check_site(self, site: str) -> None:
        if not isinstance(site, str):
            key, first = "..." if site is Ellipsis else shown(site), next(iter(self.sites))
            raise InputTypeError(
                f"acts[{key}]: expected the name of a site first, as in acts[{first!r}][...]; these have {', '.join(self.sites)}"
            )
        if site not in self.sites:
            raise InputError(f"site {site!r} was not captured: expected one of {', '.join(self.sites)}")

    def __array__(self, *_: Any, **__: Any) -> Any:  # numpy and torch would ask for sites by number
        raise InputTypeError(
            f"activations are not an array: expected the values of a site, as in acts[{next(iter(self.sites))!r}][...];"
            f" these have {', '.join(self.sites)}"
        )

    __dlpack__ = __dlpack_device__ = __array__

    def places(self, site: str) -> Places:
        """The row and the column of each example of a site."""
        self._check_site(site)
        return self._located[self.kinds[site]]

    @cached_property
    def _located(self) -> dict[str, Places]:
        return {kind: places() if callable(places) else places for kind, places in self.located.items()}

    def pooled(self, site: str) -> dict[str, float]:
        """How many positions of a row an example of this site is the mean of: "least", "most" and "mean" over all rows of the
        capture. 1 for single positions; empty for a folder that was written before these were counted."""
        self._check_site(site)
        kind = self.kinds[site]
        parts = self.manifest.get("parts", [self.manifest])
        if not is_mean(self.manifest.get("reduce", "none")):
            return {"least": 1, "most": 1, "mean": 1.0}
        if not all(kind in part.get("pooled", {}) for part in parts):
            return {}
        count = add_pooled([part["pooled"] for part in parts])[kind]
        return {"least": count["least"], "most": count["most"], "mean": count["total"] / count["rows"]}

    @property
    def rows(self) -> Int[Tensor, " example"]:
        """The row of each example of the first site."""
        return self.places(next(iter(self.sites))).rows

    @property
    def columns(self) -> Int[Tensor, " example"]:
        """The real token (or patch) of its row that each example of the first site is, -1 for a mean."""
        return self.places(next(iter(self.sites))).columns

    def groups(self, site: str) -> Int[Tensor, " example"]:
        """The group of each example of a site: rows that share a picture are one, and so are all examples of a row.

        >>> import interp
        >>> scene = interp.toy.scenes(1, seed=0)[0]
        >>> rows = [(scene.image, "<image> colour ?"), (scene.image, "<image> digit ?"), (None, "colour ?")]
        >>> interp.capture(interp.load("toy"), rows, positions="last", progress=False).groups("resid").tolist()
        [0, 0, 1]

        Pictures are equal where all their pixels are. Rows without a picture are one group where their texts are equal. If rows
        have several pictures, those that share any of them are joined, and what is joined to these. Where nothing is known of
        pictures (an encoding that came with them, a folder written by an earlier version), each row is a group.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        pairs = [(row, content) for row, of in enumerate(self.contents) for content in of]
        node_of = {
            content: node for node, content in enumerate(dict.fromkeys(each for _, each in pairs), len(self.ids))
        }
        ends = ([row for row, _ in pairs], [node_of[content] for _, content in pairs])
        links = coo_array((np.ones(len(pairs)), ends), shape=(len(self.ids) + len(node_of),) * 2)
        return torch.from_numpy(connected_components(links, directed=False)[1]).long()[self.places(site).rows]

    @property
    def provenance(self) -> Provenance:
        """Model, data, seed, versions and interventions, as every result has them; joined parts name all of theirs."""
        names = ("model", "revision", "seed", "versions")
        known = {name: self.manifest[name] for name in names if name in self.manifest}
        parts = self.manifest.get("parts", [self.manifest])
        data = dict.fromkeys(part["data"] for part in parts)
        changes = dict.fromkeys(each for part in parts for each in part["interventions"])
        counts = ((part.get("sinks"), part["rows"]) for part in parts)
        notes = [note_of(count, rows) for count, rows in counts if count]
        for part in parts:
            for site, about in part.get("not_finite", {}).items():
                notes.append(f"{about['states']} examples of {site!r} are not finite, the first at {about['layer']}")
        return Provenance(**known, data=" + ".join(data), interventions=tuple(changes), notes=tuple(notes))

    def to_frame(self) -> pd.DataFrame:
        """A frame with a row for each example of the first site: its number, the id and the number of its row, the column,
        and the labels."""
        import pandas as pd

        rows = self.rows.tolist()
        columns = {
            "example": range(len(rows)),
            "id": [self.ids[row] for row in rows],
            "row": rows,
            "column": self.columns.tolist(),
        }
        known = {name: [values[row] for row in rows] for name, values in self.labels.items() if name not in columns}
        return pd.DataFrame({**columns, **known})

    def select(
        self,
        rows: Any = None,
        where: Mapping[str, Any] | None = None,
        sites: str | Sequence[str] | None = None,
        layers: Any = None,
    ) -> Activations:
        """Select rows, sites and layers; no site is read for it.

        `rows` are row numbers in any order, a Bool `[row]`, or ids, in a list, an array or a column of a frame; `where`
        selects the rows whose label has this value, or one of several: ``{"colour": ["red", "blue"]}``. `layers` are
        numbers of layers (of states, for `resid`).

        Raises `InputError` for unknown rows, labels, sites or layers, and where no row is left.
        """
        chosen = self._rows_of(rows)
        for name, value in (where or {}).items():
            if name not in self.labels:
                raise InputError(f"label {name!r} is unknown: these rows have {', '.join(self.labels) or 'none'}")
            value = value.tolist() if hasattr(value, "tolist") else value
            options = list(value) if isinstance(value, list | tuple | set | range) else [value]
            values = self.labels[name]
            unknown = [each for each in options if each not in values]
            if unknown:
                known = ", ".join(repr(each) for each in list(dict.fromkeys(values))[:8])
                raise InputError(f"no row has {unknown[0]!r} as its label {name!r}: expected one of {known}")
            chosen = [row for row in chosen if values[row] in options]
        if not chosen:
            raise InputError(
                f"rows={rows!r} where={where!r} selects none of {len(self.ids)} rows: expected one or more"
            )
        names = tuple(self.sites) if sites is None else (sites,) if isinstance(sites, str) else tuple(sites)
        if not names:
            raise InputError(f"sites={sites!r} selects none: expected one or more of {', '.join(self.sites)}")
        for site in names:
            self._check_site(site)
        places = {site: self._layer_places(site, layers) for site in names}
        whole = rows is None and where is None
        examples = {} if whole else {kind: _examples_of(self._located[kind].rows, chosen) for kind in self.located}
        return replace(
            self,
            sites={site: _part(self.sites[site], places[site], examples.get(self.kinds[site])) for site in names},
            layers={site: tuple(self.layers[site][place] for place in places[site]) for site in names},
            ids=tuple(self.ids[row] for row in chosen),
            labels={name: [values[row] for row in chosen] for name, values in self.labels.items()},
            contents=tuple(self.contents[row] for row in chosen if self.contents),
            kinds={site: self.kinds[site] for site in names},
            located=self.located
            if whole
            else {kind: self._chosen_places(kind, examples[kind], chosen) for kind in examples},
        )

    def concat(self, *others: Activations) -> Activations:
        """Join the rows of these and of other activations; those in folders stay unread.

        Raises `InputError` where model, sites, layers, reduction or dtype differ.
        """
        joined = self
        for other in others:
            if not isinstance(other, Activations):
                raise InputTypeError(
                    f"{type(other).__name__} is joined: expected activations, concat(more, still_more)"
                )
            joined = joined._with(other)
        return joined

    def _with(self, other: Activations) -> Activations:
        ours, theirs = (
            {
                "sites": sorted(acts),
                "layers": {site: acts.layers[site] for site in sorted(acts)},
                "dtypes": {site: str(acts[site].dtype) for site in sorted(acts)},
                "labels": sorted(acts.labels),
                **{name: acts.manifest.get(name) for name in ("model", "revision", "weights", "reduce")},
            }
            for acts in (self, other)
        )
        for name, value in ours.items():
            if value != theirs[name]:
                raise InputError(f"{name} are {value!r} and {theirs[name]!r}: activations that differ are not joined")
        located = {}
        for kind, mine in self._located.items():
            more = other._located[kind]
            located[kind] = Places(
                torch.cat([mine.rows, more.rows + len(self.ids)]), torch.cat([mine.columns, more.columns])
            )
        parts = [*self.manifest.get("parts", [self.manifest]), *other.manifest.get("parts", [other.manifest])]
        return replace(
            self,
            sites={site: _join(self.sites[site], other.sites[site]) for site in self.sites},
            ids=self.ids + other.ids,
            labels={name: [*values, *other.labels[name]] for name, values in self.labels.items()},
            contents=tuple(of for acts in (self, other) for of in acts.contents or ((),) * len(acts.ids)),
            manifest={**self.manifest, "parts": parts},
            located=located,
        )

    def _rows_of(self, rows: Any) -> list[int]:
        count = len(self.ids)
        if rows is None:
            return list(range(count))
        # Arrays, tensors and columns of a frame become lists.
        items = rows.tolist() if hasattr(rows, "tolist") else [rows] if isinstance(rows, str) else rows
        if isinstance(items, list | tuple) and items and all(isinstance(each, bool) for each in items):
            if len(items) != count:
                raise InputError(f"rows is a mask of shape ({len(items)},): expected ({count},), one a row")
            return [row for row, chosen in enumerate(items) if chosen]
        if isinstance(items, list | tuple | set) and all(isinstance(each, str) for each in items):
            row_of = {name: row for row, name in enumerate(self.ids)}
            unknown = [each for each in items if each not in row_of]
            if unknown:
                raise InputError(f"row {unknown[0]!r} is unknown: ids are {', '.join(self.ids[:3])}, ...")
            return [row_of[each] for each in items]
        numbers = as_ints(items)
        if numbers is None or any(not -count <= row < count for row in numbers):
            raise InputError(f"rows={rows!r}: expected numbers from 0 to {count - 1}, ids, or a Bool mask")
        return [row % count for row in numbers]

    def _layer_places(self, site: str, layers: Any) -> list[int]:
        """The places of these layers among the captured ones."""
        own = self.layers[site]
        if layers is None or (isinstance(layers, str) and layers == "all"):
            return list(range(len(own)))
        numbers = None if isinstance(layers, str) else as_ints(layers)
        if not numbers or not set(numbers) <= set(own):
            raise InputError(f"layers={layers!r} of {site!r}: expected some of {', '.join(map(str, own))}")
        return [own.index(layer) for layer in numbers]

    def _chosen_places(self, kind: str, examples: Tensor, chosen: Sequence[int]) -> Places:
        """The places of some examples, their rows numbered as the chosen ones."""
        places = self._located[kind]
        counts = torch.bincount(places.rows, minlength=len(self.ids))[torch.tensor(chosen)]
        return Places(torch.arange(len(chosen)).repeat_interleave(counts), places.columns[examples])
