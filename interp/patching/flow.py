"""Information flow: through which layers an answer's information passes from one group of positions to another.

An *edge* runs from a source, the positions that are read, to a target, the positions that read them: from the image to
the question, from the question to the last token. In one window of layers after the other the edge is cut, by a
`Knockout` of the target's attention to the source, and the model is asked again:

    value[edge, window] = mean over rows of  100 * (p_cut - p_untouched) / p_untouched

A value of 0 says that these layers need not hand anything on from source to target, one of -100 that nothing is left of
the answer without it. The curve over windows shows when the transfer takes place. This is the measure of Geva et al.
2023 ("Dissecting Recall of Factual Associations in Auto-Regressive Language Models"), taken to images by Zhang et al.
2024 ("Cross-modal Information Flow in Multimodal Large Language Models", arXiv 2411.18620).

A cut that breaks an answer which was wrong would mean nothing, so only rows count which the untouched model answers
rightly. A wide source takes many keys away with it, so the same cut from as many other positions stands beside each
curve as its control.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.arguments import as_ints, checked_seed
from interp.errors import InputError, shown
from interp.interventions import Knockout
from interp.models import VLM, Batch
from interp.patching.controls import others_before
from interp.patching.metrics import Measure, Metric, name_of
from interp.patching.rows import answers_of, batches_of, logits_of, measures_of
from interp.patching.windows import centred
from interp.provenance import Provenance, fingerprint
from interp.results import Result
from interp.statistics.bootstrap import bootstrap_mean

EDGES = (("image", "question"), ("question", "last"), ("image", "last"))
_NOTHING = 1e-6


@dataclass(frozen=True, eq=False)
class FlowResult(Result):
    """A curve over windows of layers for each edge.

    `values[edge, window]` is the relative change of the metric in percent, a mean over rows, `low` and `high` bound it
    (95 %, bootstrap over rows; NaN for one row). `control` is the same with random positions for a source, None where
    not asked for, NaN where there are none. Of the rows that were given, `kept` says which count: those answered rightly
    by the untouched model. `per_row[row, edge, window]` is the metric itself of each kept row with the edge cut,
    `baseline_rows` that of the untouched model and `baseline` its mean. `n_source[edge]` is how many source positions a
    kept row has before its target, on average, and `n_control[edge]` how many random ones were cut in their place.
    `edges` are the curves' names and `windows` the layers of each point, window l being centred on layer l.
    """

    values: Float[Tensor, "edge window"]
    low: Float[Tensor, "edge window"]
    high: Float[Tensor, "edge window"]
    control: Float[Tensor, "edge window"] | None
    per_row: Float[Tensor, "row edge window"]
    baseline_rows: Float[Tensor, " row"]
    kept: Bool[Tensor, " given"]
    n_source: Float[Tensor, " edge"]
    n_control: Float[Tensor, " edge"] | None
    edges: list[str]
    windows: list[range]
    metric: str
    mode: str

    def __post_init__(self) -> None:
        grid = (len(self.edges), len(self.windows))
        if self.values.shape != grid or self.per_row.shape != (int(self.kept.sum()), *grid):
            raise InputError(
                f"values of shape {tuple(self.values.shape)} and per_row of shape {tuple(self.per_row.shape)} do not fit "
                f"{int(self.kept.sum())} kept rows, {grid[0]} edges and {grid[1]} windows"
            )

    @property
    def baseline(self) -> float:
        """The metric of the untouched model, a mean over the kept rows."""
        return self.baseline_rows.mean().item()

    @property
    def pooled(self) -> Float[Tensor, "edge window"]:
        """The relative change of the mean, in percent: a row counts by its baseline, so that a small one cannot blow it up."""
        return relative_change(self.per_row.mean(dim=0), self.baseline_rows.mean())

    def to_frame(self) -> pd.DataFrame:
        """One row an edge and window: edge, layer (the centre), start and stop of the window, value, low, high, control."""
        parts = {"value": self.values, "low": self.low, "high": self.high}
        parts["control"] = torch.full_like(self.values, torch.nan) if self.control is None else self.control
        rows = [
            [edge, layer, window.start, window.stop, *(float(part[number, layer]) for part in parts.values())]
            for number, edge in enumerate(self.edges)
            for layer, window in enumerate(self.windows)
        ]
        return pd.DataFrame(rows, columns=["edge", "layer", "start", "stop", *parts])


def flow(
    vlm: VLM,
    batch: Batch | Sequence[Batch],
    edges: Any = EDGES,
    window: int = 9,
    *,
    metric: Metric | Measure,
    mode: str = "pre_softmax",
    interventions: Sequence[Any] = (),
    control: bool = True,
    seed: int = 0,
) -> FlowResult:
    """Cut each edge in one window of layers after the other, and measure how much of the answer is lost.

    `batch` is one batch or a data set in batches. `edges` are pairs (source, target) of whatever `Knockout` takes there,
    or a dict of such pairs by name; masks fit one batch, so in a data set use names and spans. Each layer has a window
    of the `window` layers around it, fewer at the ends of the model. `mode` is that of `Knockout`. `interventions` hold
    in all runs, the untouched ones too.

    `metric` says by its first target what the right answer is, `probability(answers)` being the measure of the sources:
    a row counts if that is the token which the untouched model holds most likely. With a metric without targets, such as
    a function of your own, all rows count. The change is a mean of each row's own ratio, as in the sources, so that rows
    weigh the same; a ratio to nothing is refused, and `FlowResult.pooled` is the ratio of the means. A metric that can be
    negative changes relative to its size, so that a fall is negative whatever its sign.

    With `control`, which doubles the runs, each edge is cut once more from random positions: in each row as many as the
    source has before the row's last target, drawn with `seed` among the others there, or all of these where they are
    fewer. It is no zero line, as the others may carry the answer too; it says what so many keys are worth.

    A row in which the source selects nothing counts as unchanged.

    Raises `InputError` before anything is run for edges that are no pairs or share a name and for a seed that is no int
    from 0 on, and what `Knockout` raises; then where no row is answered rightly, and where the metric of a row is 0 to
    within 1e-6.

    >>> import interp
    >>> from interp.patching import flow, probability
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . what colour is the 3 ?"], spans={"fact": "red 3"})
    >>> found = flow(vlm, batch, edges=[("fact", "last"), ("question", "last")], window=3, metric=probability("red"))
    >>> found.edges, found.values.shape, found.windows[4]
    (['fact -> last', 'question -> last'], torch.Size([2, 8]), range(3, 6))
    """
    batches, windows, cuts = batches_of(batch), centred(vlm.structure.n_layers, window), _knockouts(edges, mode)
    seed = checked_seed(seed)
    measures, answers = measures_of(metric, vlm, batches), answers_of(metric, vlm, batches)
    for each in batches:
        vlm.edits_of(each, list(cuts.values()))
        vlm.edits_of(each, interventions)

    parts = [_part(vlm, *each, interventions) for each in zip(batches, measures, answers, strict=True)]
    untouched, kept = _baseline(parts, name_of(metric))
    per_row = torch.cat([_cut(vlm, part, list(cuts.values()), windows, interventions) for part in parts])
    change = relative_change(per_row, untouched[:, None, None])
    low, high = bootstrap_mean(change, seed)
    elsewhere, n_source, n_control = _random_sources(parts, list(cuts.values()), seed)
    beside = None
    if control:
        random_cuts = [_cut(vlm, *each, windows, interventions) for each in zip(parts, elsewhere, strict=True)]
        beside = relative_change(torch.cat(random_cuts), untouched[:, None, None])
        beside = beside.masked_fill(n_control[:, :, None] == 0, torch.nan).nanmean(dim=0)
    return FlowResult(
        values=change.mean(dim=0),
        low=low,
        high=high,
        control=beside,
        per_row=per_row,
        baseline_rows=untouched,
        kept=kept,
        n_source=n_source.mean(dim=0),
        n_control=n_control.mean(dim=0) if control else None,
        edges=list(cuts),
        windows=windows,
        metric=name_of(metric),
        mode=mode,
        provenance=Provenance(
            model=vlm.name,
            revision=vlm.revision,
            data=fingerprint(*batches),
            seed=seed,
            interventions=tuple(map(repr, interventions)),
        ),
    )


def relative_change(new: Tensor, old: Tensor) -> Tensor:
    """The change from `old` to `new` in percent of the size of `old`."""
    return 100 * (new - old) / old.abs()


# Edges -------------------------------------------------------------------------------------------------------------------


def _knockouts(edges: Any, mode: str) -> dict[str, Knockout]:
    """The cut of each edge under its name, through all layers until a window is chosen."""
    named = list(edges.items()) if isinstance(edges, Mapping) else None
    pairs = [pair for _, pair in named] if named is not None else edges
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        raise InputError(f"edges={shown(edges)}: expected pairs (source, target), such as [('image', 'last')]")
    cuts: dict[str, Knockout] = {}
    for number, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(f"edge {shown(pair)}: expected a pair (source, target), such as ('image', 'last')")
        cut = Knockout(source=pair[0], target=pair[1], layers="all", mode=mode)
        name = str(named[number][0]) if named is not None else f"{_called(cut.source)} -> {_called(cut.target)}"
        if name in cuts:
            raise InputError(f"two edges are named {name!r}: give edges as a dict, with a name for each")
        cuts[name] = cut
    if not cuts:
        raise InputError(f"edges={shown(edges)} is empty: expected at least one pair (source, target)")
    return cuts


def _called(positions: Any) -> str:
    """What one end of an edge is called: its name, its ints, or how many positions a mask has."""
    if isinstance(positions, str):
        return positions
    ints = as_ints(positions)
    if ints is not None:
        return shown(ints)
    return f"mask of {int(positions.sum())} positions" if hasattr(positions, "sum") else shown(positions)


# Runs --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """One batch of the data, its metric, and what the untouched model says: the metric of each row, and which count."""

    batch: Batch
    measure: Measure
    untouched: Tensor
    right: Tensor


def _part(vlm: VLM, batch: Batch, measure: Measure, answers: Tensor | None, interventions: Sequence[Any]) -> _Part:
    logits = logits_of(vlm, batch, vlm.edits_of(batch, interventions))
    right = torch.ones(len(batch), dtype=torch.bool) if answers is None else logits.argmax(dim=-1).cpu() == answers
    return _Part(batch, measure, measure(logits), right)


def _baseline(parts: Sequence[_Part], name: str) -> tuple[Tensor, Tensor]:
    """The metric of the rows that count, Float `[row]`, and which rows these are, Bool `[given]`."""
    kept = torch.cat([part.right for part in parts])
    if not kept.any():
        raise InputError(
            f"0 of {len(kept)} rows are answered rightly by the untouched model and all {len(kept)} are dropped: expected "
            "prompts that end where the answer begins, and targets that this model gives"
        )
    untouched = torch.cat([part.untouched for part in parts])[kept]
    nothing = int((untouched.abs() <= _NOTHING).sum())
    if nothing or not untouched.isfinite().all():
        raise InputError(
            f"the metric {name!r} of the untouched model is 0 or not finite in {nothing or 'some'} of {len(untouched)} rows, so "
            "that a relative change means nothing: choose one that is not 0, such as probability(answers)"
        )
    return untouched, kept


def _cut(
    vlm: VLM, part: _Part, cuts: Sequence[Knockout], windows: Sequence[range], interventions: Sequence[Any]
) -> Tensor:
    """The metric `[row, edge, window]` of the rows that count, with one edge cut in one window at a time."""
    grid = torch.empty(int(part.right.sum()), len(cuts), len(windows))
    if not len(grid):  # no row of this batch counts
        return grid
    held = vlm.edits_of(part.batch, interventions)
    for edge, cut in enumerate(cuts):
        for index, layers in enumerate(windows):
            logits = logits_of(vlm, part.batch, held, [replace(cut, layers=layers)])
            grid[:, edge, index] = part.measure(logits)[part.right]
    return grid


def _random_sources(
    parts: Sequence[_Part], cuts: Sequence[Knockout], seed: int
) -> tuple[list[list[Knockout]], Tensor, Tensor]:
    """For each batch the cuts from random positions; and of the rows that count how many positions each edge's source
    has before the target and how many random ones were drawn, Float `[row, edge]`."""
    replaced: list[list[Knockout]] = [[] for _ in parts]
    counts = []
    for cut in cuts:
        generator = torch.Generator().manual_seed(seed)  # one for each edge, so that no edge's draw hangs on the others
        of_edge = []
        for part, mine in zip(parts, replaced, strict=True):
            positions = part.batch.positions
            source, target = positions.select(cut.source), positions.select(cut.target)
            others, wanted, drawn = others_before(source, target, positions["all"], generator)
            mine.append(replace(cut, source=others))
            of_edge.append(torch.stack([wanted, drawn])[:, part.right])
        counts.append(torch.cat(of_edge, dim=1))
    n_source, n_control = torch.stack(counts, dim=-1).float()
    return replaced, n_source, n_control
