"""Information flow: through which layers an answer's information passes from one group of positions to another.

An *edge* runs from a source, the positions that are read, to a target, the positions that read them: from the image to the
question, from the question to the last token. `flow` cuts the edge in one window of layers after the other, with a
`Knockout` of the target's attention to the source, and asks the model again:

    value[edge, window] = mean over rows of  100 * (p_cut - p_unchanged) / p_unchanged

A value of 0 says that source and target need not exchange anything in these layers; a value of -100 says that nothing is left
of the answer. The curve over windows shows where in the model the transfer takes place. This is the metric of Geva et
al. 2023 ("Dissecting Recall of Factual Associations in Auto-Regressive Language Models"), applied to images by Zhang et al.
2024 ("Cross-modal Information Flow in Multimodal Large Language Models", arXiv 2411.18620).

If the answer was wrong, a cut that breaks it means nothing, so only rows count that the unchanged model answers correctly. A
wide source takes many keys with it, so the control of each curve is the same cut from as many other positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.arguments import checked_seed
from interp.errors import InputError, shown
from interp.interventions import Knockout
from interp.interventions.random_controls import random_positions
from interp.models import VLM, Batch
from interp.models.batches.positions import name_of_positions
from interp.patching.family_changes import common_rows, family_change, few_notes
from interp.patching.metrics import LOG_PROBABILITY, Metric, MetricFunction, bind_to_batches, limits_of, name_of
from interp.patching.window_sweeps import MetricRuns, as_batches, centred_windows
from interp.progress import Bar, progress_bar
from interp.provenance import provenance_of_run
from interp.results import Result
from interp.statistics import Change
from interp.statistics.intervals import difference_interval, few_rows

EDGES = (("image", "question"), ("question", "last"), ("image", "last"))
_NOTHING = 1e-6


@dataclass(frozen=True, eq=False)
class FlowResult(Result):
    """A curve over windows of layers for each edge.

    `values[edge, window]` is the relative change of the metric in percent, a mean over rows. `low` and `high` bound it (95 %,
    over rows; NaN for one row). `control` is the same with random positions as source: None if it was not asked for, NaN if no
    such positions exist. `control_rows` is the metric of each kept row with these. `kept` says which of the given rows count:
    those that the unchanged model answers correctly. `per_row[row, edge, window]` is the metric of each kept row with the edge
    cut, `baseline_rows` that of the unchanged model, and `baseline` its mean. `n_source[edge]` is how many source positions a
    kept row has before its target, on average, and `n_control[edge]` how many random ones stood in for them. `edges` are the
    names of the curves, and `windows` the layers of each point; window l is centred on layer l.
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
    control_rows: Float[Tensor, "row edge window"] | None = None

    def __post_init__(self) -> None:
        grid = (len(self.edges), len(self.windows))
        if self.values.shape != grid or self.per_row.shape != (int(self.kept.sum()), *grid):
            raise InputError(
                f"values of shape {tuple(self.values.shape)} and per_row of shape {tuple(self.per_row.shape)} do not fit "
                f"{int(self.kept.sum())} kept rows, {grid[0]} edges and {grid[1]} windows"
            )

    @property
    def baseline(self) -> float:
        """The metric of the unchanged model, a mean over the kept rows."""
        return self.baseline_rows.mean().item()

    @property
    def pooled(self) -> Float[Tensor, "edge window"]:
        """The relative change of the mean, in percent. A row counts by its baseline, so a small baseline cannot dominate."""
        new, old = self.per_row, self.baseline_rows
        if self.metric == LOG_PROBABILITY:
            new, old = new.exp(), old.exp()
        return relative_change(new.mean(dim=0), old.mean())

    def change(self, other: FlowResult | None = None) -> Change:
        """The change in percent, with its p among all windows of all edges, from signs that are flipped row by row
        (`family_changes`); with `other`, a flow over the same rows, how much larger the change is there, paired by row.

        Rows count that both models answer correctly. Raises `InputError` for flows over other rows, with other edges, or with
        another number of windows.
        """
        rows = self._changes(self.per_row)
        if other is None:
            return family_change(torch.zeros_like(rows), rows, self.provenance.seed or 0)
        one, two = ((each.edges, len(each.windows)) for each in (self, other))
        if one != two:
            raise InputError(
                f"edges {shown(one[0])} in {one[1]} windows and {shown(two[0])} in {two[1]}: expected flows over the same edges"
            )
        mine, theirs = common_rows((self.provenance, self.kept), (other.provenance, other.kept))
        return family_change(rows[mine], other._changes(other.per_row)[theirs], self.provenance.seed or 0)

    def beyond_control(self) -> Change:
        """How far each cut changes the metric beyond the cut from random positions, in percent of the unchanged model's and
        paired by row, over the rows in which each edge has a control that has one in any.

        Raises `InputError` for a flow without a control.
        """
        if self.control_rows is None:
            raise InputError("this flow has no control: expected one with control=True")
        return family_change(self._changes(self.control_rows), self._changes(self.per_row), self.provenance.seed or 0)

    def _changes(self, rows: Float[Tensor, "row edge window"]) -> Float[Tensor, "row edge window"]:
        """The change of each row, in percent."""
        return _change_of(self.metric)(rows, self.baseline_rows[:, None, None])

    def to_frame(self) -> pd.DataFrame:
        """One row an edge and window: edge, layer (the centre), start and stop of the window, value, low, high, control, and p
        among all windows of all edges."""
        parts = {"value": self.values, "low": self.low, "high": self.high}
        parts["control"] = torch.full_like(self.values, torch.nan) if self.control is None else self.control
        parts["p"] = self.change().p
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
    metric: Metric | MetricFunction,
    mode: str = "pre_softmax",
    interventions: Sequence[Any] = (),
    control: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> FlowResult:
    """Cut each edge in one window of layers after the other, and measure how much of the answer is lost.

    `batch` is one batch or a data set in batches. `edges` are pairs (source, target) in any form that `Knockout` takes, or a
    dict of such pairs by name; masks fit one batch, so use names and spans in a data set. Each layer has a window of the
    `window` layers around it, fewer at the ends of the model. `mode` is that of `Knockout`. `interventions` hold in all runs,
    also in those of the baseline.

    The first target of `metric` is the right answer, and ``probability(answers)`` is the metric of the sources: a row counts
    if the unchanged model finds this token the most likely, and with `logprob` each token of the answer; the change is then that
    of the answer's probability, and `per_row` has logarithms. With a metric without targets, such as a function of your own,
    all rows count. The change is the mean of each row's own ratio, as in the sources, so rows weigh the same; a baseline of 0
    is refused, and `FlowResult.pooled` is the ratio of the means. If a metric can be negative, its change is relative to its
    size, so a fall is negative whatever the sign of the metric.

    With `control`, which doubles the runs, each edge is cut once more from random positions: in each row as many as the
    source has before the row's last target, drawn with `seed` among the others before it, or all of these if they are
    fewer. The control is not a zero line, because the other positions may carry the answer too. It says what the loss of so
    many keys costs.

    A row in which the source selects nothing counts as unchanged. A long run shows its progress on a terminal or in a notebook;
    ``progress=False`` hides it.

    Before anything is run, it raises `InputError` for edges that are not pairs or share a name and for a seed below 0 or of
    another type, and what `Knockout` raises; later `InputError` if no row is answered correctly, and if the metric of a row is
    0 to within 1e-6.

    >>> import interp
    >>> from interp.patching import flow, probability
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . what colour is the 3 ?"], spans={"fact": "red 3"})
    >>> curves = flow(vlm, batch, edges=[("fact", "last"), ("question", "last")], window=3, metric=probability("red"))
    >>> curves.edges, curves.values.shape, curves.windows[4]
    (['fact -> last', 'question -> last'], torch.Size([2, 8]), range(3, 6))
    """
    batches, windows = as_batches(batch), centred_windows(vlm.structure.n_layers, window)
    named_cuts, seed = _knockouts(edges, mode), checked_seed(seed)
    cuts = list(named_cuts.values())
    metrics = bind_to_batches(metric, vlm, batches)
    for each in batches:
        vlm.edits_of(each, cuts)
        vlm.edits_of(each, interventions)

    runs = [
        _run_baseline(each, MetricRuns(vlm, of_batch, interventions))
        for each, of_batch in zip(batches, metrics, strict=True)
    ]
    baseline, kept = _kept_baseline(runs, name_of(metric))
    control_cuts, n_source, n_control = _control_cuts(vlm, runs, cuts, seed)
    plans: list[list[Any]] = [[cuts] * len(runs), *([control_cuts] if control else [])]
    total = len(plans) * sum(bool(run.right.any()) for run in runs) * len(cuts) * len(windows)
    with progress_bar("flow", total, "runs", progress) as bar:
        per_row, *of_control = (
            torch.cat([_run_cuts(run, of_run, windows, bar) for run, of_run in zip(runs, plan, strict=True)])
            for plan in plans
        )
    of_control = [each.masked_fill(n_control[:, :, None] == 0, torch.nan) for each in of_control]
    change, *changes = (_change_of(name_of(metric))(each, baseline[:, None, None]) for each in (per_row, *of_control))
    low, high = difference_interval(change, seed=seed)
    if limits_of(metric)[0] == 0 or name_of(metric) == LOG_PROBABILITY:
        low = low.clamp(min=-100)  # nothing falls by more than all of it
    return FlowResult(
        values=change.mean(dim=0),
        low=low,
        high=high,
        control=changes[0].nanmean(dim=0) if control else None,
        per_row=per_row,
        baseline_rows=baseline,
        kept=kept,
        n_source=n_source.mean(dim=0),
        n_control=n_control.mean(dim=0) if control else None,
        edges=list(named_cuts),
        windows=windows,
        metric=name_of(metric),
        mode=mode,
        control_rows=of_control[0] if control else None,
        provenance=provenance_of_run(
            vlm, batches, interventions, seed, (*few_rows(len(change)), *few_notes(len(change)))
        ),
    )


def relative_change(new: Tensor, old: Tensor) -> Tensor:
    """The change from `old` to `new` in percent of the size of `old`.

    >>> import torch
    >>> relative_change(torch.tensor(0.2), torch.tensor(0.8))
    tensor(-75.)
    """
    return 100 * (new - old) / old.abs()


def _change_of(metric: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The change of a metric of this name, in percent."""
    return probability_change if metric == LOG_PROBABILITY else relative_change


def probability_change(new: Tensor, old: Tensor) -> Tensor:
    """The change of a probability in percent, from its logarithms.

    >>> import torch
    >>> probability_change(torch.tensor(0.2).log(), torch.tensor(0.8).log())
    tensor(-75.)
    """
    return 100 * (new - old).expm1()


# Edges -------------------------------------------------------------------------------------------------------------------


def _knockouts(edges: Any, mode: str) -> dict[str, Knockout]:
    """The knockout of each edge by name, in all layers until a window is set."""
    named = list(edges.items()) if isinstance(edges, Mapping) else None
    pairs = [pair for _, pair in named] if named is not None else edges
    if isinstance(pairs, str) or not isinstance(pairs, Iterable):
        raise InputError(f"edges={shown(edges)}: expected pairs (source, target), such as [('image', 'last')]")
    cuts: dict[str, Knockout] = {}
    for number, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InputError(f"edge {shown(pair)}: expected a pair (source, target), such as ('image', 'last')")
        cut = Knockout(source=pair[0], target=pair[1], layers="all", mode=mode)
        name = (
            str(named[number][0])
            if named is not None
            else f"{name_of_positions(cut.source)} -> {name_of_positions(cut.target)}"
        )
        if name in cuts:
            raise InputError(f"two edges are named {name!r}: give edges as a dict, with a name for each")
        cuts[name] = cut
    if not cuts:
        raise InputError(f"edges={shown(edges)} is empty: expected at least one pair (source, target)")
    return cuts


# Runs --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _BaselineRun:
    """One batch, the runs of its metric, and those without a cut: the metric's value in each row, and which rows are right."""

    batch: Batch
    runs: MetricRuns
    values: Tensor
    right: Tensor


def _run_baseline(batch: Batch, runs: MetricRuns) -> _BaselineRun:
    logits = runs.logits()
    return _BaselineRun(batch, runs, runs.metric(*logits), runs.metric.right(logits[0]))


def _kept_baseline(runs: Sequence[_BaselineRun], name: str) -> tuple[Tensor, Tensor]:
    """The metric of the rows that count, Float `[row]`, and which rows these are, Bool `[given]`."""
    kept = torch.cat([run.right for run in runs])
    if not kept.any():
        raise InputError(
            f"0 of {len(kept)} rows are answered correctly by the unchanged model, so no row counts: expected prompts that "
            "end where the answer begins, and targets that this model gives"
        )
    values = torch.cat([run.values for run in runs])[kept]
    zeros = 0 if name == LOG_PROBABILITY else int((values.abs() <= _NOTHING).sum())
    if zeros or not values.isfinite().all():
        raise InputError(
            f"the metric {name!r} of the unchanged model is 0 or not finite in {zeros or 'some'} of {len(values)} rows, so a "
            "relative change is undefined: choose one that is not 0, such as probability(answers)"
        )
    return values, kept


def _run_cuts(run: _BaselineRun, cuts: Sequence[Knockout | None], windows: Sequence[range], bar: Bar) -> Tensor:
    """The metric `[row, edge, window]` of the rows that count, with one edge cut in one window at a time; NaN for no cut."""
    values = torch.full((int(run.right.sum()), len(cuts), len(windows)), torch.nan, dtype=torch.float32)
    if not len(values):  # no row of this batch counts
        return values
    for edge, cut in enumerate(cuts):
        if cut is None:
            bar.advance(len(windows))
            continue
        for index, layers in enumerate(windows):
            values[:, edge, index] = run.runs.values([replace(cut, layers=layers)])[run.right]
            bar.advance()
    return values


def _control_cuts(
    vlm: VLM, runs: Sequence[_BaselineRun], cuts: Sequence[Knockout], seed: int
) -> tuple[list[list[Knockout | None]], Tensor, Tensor]:
    """For each batch the cuts from random positions, None where there are none. For the rows that count, Float `[row, edge]`:
    the number of source positions before the target, and of random ones."""
    batches, kept = [run.batch for run in runs], torch.cat([run.right for run in runs])
    # Each edge draws anew, so its draws do not depend on the other edges.
    controls: list[Any] = [random_positions(vlm, batches, cut, seed) for cut in cuts]
    of_batches = [[next(iter(each.of_batches[number]), None) for each in controls] for number in range(len(batches))]
    wanted, drawn = (
        torch.stack([getattr(each, name)[kept] for each in controls], dim=-1) for name in ("wanted", "drawn")
    )
    return of_batches, wanted.float(), drawn.float()
