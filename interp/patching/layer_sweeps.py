"""Sweeps over layers: any intervention, moved through a model's depth in windows, and the answers that are left.

Which layers need to update the image tokens? Skip a window of them, ask, and go on to the next window. A sweep reports the
metric itself, not a change of it; `score` is its share of the unchanged model's metric.

One such sweep has a name. The *layer contribution* of ShortV (Yuan et al. 2025) freezes the image tokens in a layer, whose
attention still reads their keys and values, and measures how far the prediction moves:

    LC[layer] = KL(prediction with the layer frozen || prediction of the whole model), in nats

A model can do without the work of the layers of least contribution on the image tokens.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import checked_flag, checked_seed
from interp.errors import InputError, InputTypeError, shown
from interp.interventions import Skip
from interp.interventions.random_controls import controls_of, random_positions
from interp.models import VLM, Batch
from interp.patching.family_changes import change_from, common_rows, family_change, few_notes
from interp.patching.metrics import (
    DIVERGENCE,
    BatchMetric,
    Metric,
    MetricFunction,
    bind_to_batches,
    kl_divergence,
    limits_of,
    name_of,
)
from interp.patching.window_sweeps import MetricRuns, as_batches, sliding_windows, windows_to_end
from interp.progress import Bar, progress_bar
from interp.provenance import provenance_of_run
from interp.results import Result
from interp.statistics import Change
from interp.statistics.intervals import few_rows, mean_interval

Plan = Sequence[Any]  # the interventions of one window
_NOTHING = 1e-12
# What a control draws, in words.
_KINDS = {
    "own": "the one that the intervention makes",
    "heads": "as many random other heads",
    "positions": "as many random other positions",
    "layers": "as many random other layers",
}


@dataclass(frozen=True, eq=False)
class SweepResult(Result):
    """A metric over windows of layers.

    `values[window]` is the mean over rows with the intervention in this window. `low` and `high` bound it (95 %,
    `interp.statistics.mean_interval`; NaN for one row). `per_row[row, window]` are the rows, `baseline_rows` those of the
    unchanged model, and `baseline` their mean. `score` is ``values / baseline``. `windows` are ranges of layers.

    `control[window]` is the mean with the control of the intervention in its place, such as the same at random positions, and
    `control_rows` its rows (NaN where nothing could be drawn); None if it was not asked for or does not exist. A row should
    have `n_positions` random positions (or heads, or layers), and has `n_control` on average.
    """

    values: Float[Tensor, " window"]
    low: Float[Tensor, " window"]
    high: Float[Tensor, " window"]
    per_row: Float[Tensor, "row window"]
    baseline_rows: Float[Tensor, " row"]
    windows: list[range]
    metric: str
    intervention: str
    control: Float[Tensor, " window"] | None = None
    n_positions: float | None = None
    n_control: float | None = None
    control_rows: Float[Tensor, "row window"] | None = None

    def __post_init__(self) -> None:
        count = len(self.windows)
        if self.values.shape != (count,) or self.per_row.shape != (len(self.baseline_rows), count):
            raise InputError(
                f"values of shape {tuple(self.values.shape)} and per_row of shape {tuple(self.per_row.shape)} do not fit "
                f"{len(self.baseline_rows)} rows and {count} windows"
            )

    @property
    def baseline(self) -> float:
        """The metric of the unchanged model, a mean over rows."""
        return self.baseline_rows.mean().item()

    @property
    def score(self) -> Float[Tensor, " window"]:
        """The share of the baseline that is left, NaN if the baseline is 0, as for a divergence from the model itself."""
        return self.values / self.baseline if abs(self.baseline) > _NOTHING else torch.full_like(self.values, torch.nan)

    def change(self, other: SweepResult | None = None) -> Change:
        """How far each window changes the metric from the unchanged model's, paired by row, with its bounds and its p among all
        windows (`family_changes`); with `other`, a sweep of the same rows, how much larger that change is there.

        The windows of two sweeps are compared in their order. A divergence from the unchanged model is never below 0, so it has
        no p: compare it with its control (`beyond_control`).

        Raises `InputError` for sweeps of other rows, other metrics or other numbers of windows.
        """
        seed = self.provenance.seed or 0
        if other is None:
            found = family_change(self.baseline_rows[:, None].expand_as(self.per_row), self.per_row, seed)
            if self.metric == DIVERGENCE and self.baseline_rows.abs().max() <= _NOTHING:
                return replace(found, low=found.low.clamp(min=0), p=torch.full_like(found.p, torch.nan))
            return found
        one, two = ((each.metric, len(each.windows)) for each in (self, other))
        if one != two:
            raise InputError(
                f"{one[0]} in {one[1]} windows and {two[0]} in {two[1]}: expected sweeps of one metric in as many windows"
            )
        everything = [torch.ones(len(each.per_row), dtype=torch.bool) for each in (self, other)]
        common_rows((self.provenance, everything[0]), (other.provenance, everything[1]))
        before, after = (change_from(each.baseline_rows, each.per_row) for each in (self, other))
        return family_change(before, after, seed)

    def beyond_control(self) -> Change:
        """How far each window changes the metric beyond its control, paired by row, over the rows that have a control.

        Raises `InputError` for a sweep without a control.
        """
        if self.control_rows is None:
            raise InputError("this sweep has no control: expected one with control=True")
        return family_change(self.control_rows, self.per_row, self.provenance.seed or 0)

    def ranking(self) -> list[int]:
        """The first layers of the windows, by ascending value; of equal values the earlier window comes first."""
        return [self.windows[index].start for index in self.values.argsort(stable=True).tolist()]

    def to_frame(self) -> pd.DataFrame:
        """One row a window: start and stop of the window, value, low, high, score, control, the change from the baseline, its
        bounds change_low and change_high, and its p among all windows."""
        control = torch.full_like(self.values, torch.nan) if self.control is None else self.control
        parts = {"value": self.values, "low": self.low, "high": self.high, "score": self.score, "control": control}
        change = self.change()
        parts |= {"change": change.difference, "change_low": change.low, "change_high": change.high, "p": change.p}
        frame = pd.DataFrame({name: part.numpy() for name, part in parts.items()})
        frame.insert(0, "start", [window.start for window in self.windows])
        frame.insert(1, "stop", [window.stop for window in self.windows])
        return frame


def layer_sweep(
    vlm: VLM,
    batch: Batch | Sequence[Batch],
    intervention: Callable[..., Any] = Skip,
    window: int = 1,
    *,
    metric: Metric | MetricFunction,
    interventions: Sequence[Any] = (),
    control: bool = False,
    progress: bool = True,
    **fixed: Any,
) -> SweepResult:
    """The metric with an intervention in each window of `window` layers: ``intervention(layers=window, **fixed)``.

    `intervention` is a class of `interp.interventions`, or any function that takes `layers=` and returns an intervention or a
    list of them. One that takes `from_layer=` instead, as `Truncate` does, moves from layer to layer and acts from there to
    the last. `interventions` hold in all runs, also in those of the baseline. `batch` is one batch or a data set in batches;
    the metric's targets are one for all rows or one for each row of all batches. A long run shows its progress on a terminal or
    in a notebook; ``progress=False`` hides it.

    With `control`, which doubles the runs, the same is done with the control of the intervention: as many random other heads of
    one that names heads, else as many random other positions before the last token, else as many random other layers; an
    intervention with a method ``control(seed)`` makes its own, as `Steer` does along a random direction. The draws depend on
    the `seed` that the intervention is given, 0 if it takes none. The notes of the provenance say what was drawn.

    Before anything is run, it raises `InputError` for a window that is wider than the model is deep, for arguments that the
    intervention does not take, for those that the intervention refuses on this model and these batches, and for a control
    where nothing else can be drawn.

    >>> import interp
    >>> from interp.interventions import Truncate
    >>> from interp.patching import layer_sweep, probability
    >>> vlm = interp.load("toy")
    >>> scene = interp.toy.scenes(1, seed=0)[0]
    >>> question = scene.questions[0]
    >>> batch = vlm.prepare(texts=[question.prompt], images=[scene.image])
    >>> layer_sweep(vlm, batch, window=2, metric=probability(question.answer), positions="image").windows[-1]
    range(6, 8)
    >>> sweep = layer_sweep(vlm, batch, Truncate, metric=probability(question.answer), positions="image")
    >>> [f"{share:.1f}" for share in sweep.score[[0, 7]].tolist()]  # without the image from layer 0 on, and from layer 7 on
    ['0.0', '1.0']
    """
    batches, control = as_batches(batch), checked_flag(control, "control")
    fixed = {name: tuple(value) if isinstance(value, Iterator) else value for name, value in fixed.items()}
    windows, plans = _plans(intervention, vlm.structure.n_layers, window, fixed)
    metrics = bind_to_batches(metric, vlm, batches)
    _check_plans(vlm, batches, plans, interventions)
    seed = checked_seed(fixed.get("seed", 0))
    controls = _control_plans(vlm, batches, plans, controls_of, seed) if control else None
    name, arguments = _name(intervention), "".join(f", {key}={shown(value)}" for key, value in fixed.items())
    run = _Run(vlm, batches, plans, controls, interventions, metrics, limits_of(metric))
    return run.result(windows, name_of(metric), (name, f"{name}(in each window{arguments})"), seed, progress)


def layer_contribution(
    vlm: VLM,
    batch: Batch | Sequence[Batch],
    positions: Any = "image",
    window: int = 1,
    *,
    interventions: Sequence[Any] = (),
    control: bool = True,
    seed: int = 0,
    progress: bool = True,
) -> SweepResult:
    """ShortV's layer contribution: ``KL(frozen || unchanged)`` at the last token, in nats, with ``Skip`` at `positions`.

    `ranking()` of the result gives the layers of least contribution first. `positions` are frozen in each window of
    `window` layers; a mask fits one batch, so use names and spans in a data set. A row in which they select nothing has a
    contribution of 0.

    With `control`, which doubles the runs, the same is done at random positions: in each row as many as are frozen before the
    last token, drawn with `seed` among the others before it, or all of these if they are fewer. A long run shows its progress
    on a terminal or in a notebook; ``progress=False`` hides it.

    Before anything is run, it raises what `Skip` raises, and `InputError` for a window that is wider than the model is deep
    and for a seed below 0 or of another type.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> scene = interp.toy.scenes(1, seed=0)[0]
    >>> batch = vlm.prepare(texts=[scene.questions[0].prompt], images=[scene.image])
    >>> contribution = interp.patching.layer_contribution(vlm, batch)
    >>> contribution.values[7].item()  # nothing reads what the last layer does to the image
    0.0
    """
    batches, windows, seed = as_batches(batch), sliding_windows(vlm.structure.n_layers, window), checked_seed(seed)
    positions = tuple(positions) if isinstance(positions, Iterator) else positions
    plans = [[Skip(layers=layers, positions=positions)] for layers in windows]
    _check_plans(vlm, batches, plans, interventions)
    vlm.refuse_image_positions(positions)
    controls = _control_plans(vlm, batches, plans, random_positions, seed)
    if not control or not controls.drawn.any():
        controls = replace(controls, of_batches=None)
    run = _Run(vlm, batches, plans, controls, interventions, None)
    description = f"Skip(in each window, positions={shown(positions)})"
    found = run.result(windows, DIVERGENCE, ("Skip", description), seed, progress)
    return found if control else replace(found, n_control=None)


def contribution_from(logits: Tensor) -> MetricFunction:
    """The divergence from the prediction of these logits; a value below 0 is a rounding error and becomes 0."""
    divergence = kl_divergence(logits)
    return lambda changed: divergence(changed).clamp(min=0)


# Plans -------------------------------------------------------------------------------------------------------------------


def _plans(intervention: Any, n_layers: int, window: int, fixed: dict[str, Any]) -> tuple[list[range], list[Plan]]:
    """The windows that suit an intervention, and its plan for each."""
    parameters = _parameters(intervention)
    if "layers" in parameters:
        windows = sliding_windows(n_layers, window)
        return windows, [_plan(intervention, {"layers": layers}, fixed) for layers in windows]
    if "from_layer" not in parameters:
        raise InputError(
            f"{_name(intervention)} takes {', '.join(parameters) or 'no argument'}: expected an intervention or a function "
            "that takes layers= or from_layer="
        )
    if window != 1:
        raise InputError(
            f"window={shown(window)}: {_name(intervention)} acts from a layer to the last, leave window out"
        )
    windows = windows_to_end(n_layers)
    return windows, [_plan(intervention, {"from_layer": layers.start}, fixed) for layers in windows]


def _parameters(intervention: Any) -> list[str]:
    """The names of the parameters of an intervention."""
    if not callable(intervention):
        raise InputTypeError(
            f"intervention={shown(intervention)}: expected a class such as Skip, or a function that takes layers="
        )
    try:
        return list(inspect.signature(intervention).parameters)
    except ValueError:  # a builtin without a signature
        return []


def _plan(intervention: Callable[..., Any], layers: dict[str, Any], fixed: dict[str, Any]) -> Plan:
    """The interventions of one window."""
    try:
        plan = intervention(**layers, **fixed)
    except TypeError as error:
        raise InputError(
            f"{_name(intervention)} cannot be made for each window with {', '.join(fixed) or 'nothing else'} ({error}): give "
            "the arguments that it takes, without layers"
        ) from error
    return plan if isinstance(plan, list | tuple) else [plan]


def _name(intervention: Any) -> str:
    inner = getattr(intervention, "func", intervention)  # of a functools.partial
    return getattr(inner, "__name__", type(inner).__name__)


@dataclass(frozen=True)
class _ControlPlans:
    """The control of each plan: `of_batches[batch][window]`, None for no runs, how many positions (heads, layers) a row should
    have, `wanted`, and how many can be drawn, `drawn`. `kinds` says what was drawn."""

    of_batches: list[list[Plan]] | None
    wanted: Tensor
    drawn: Tensor
    kinds: tuple[str, ...]


def _control_plans(vlm: VLM, batches: Sequence[Batch], plans: Sequence[Plan], draw: Any, seed: int) -> _ControlPlans:
    """The control of each plan, where `draw` makes that of one intervention. All windows have the same random positions.

    Raises what the controls raise on this model and these batches, in the first window.
    """
    of_windows = [[draw(vlm, batches, each, seed) for each in plan] for plan in plans]
    of_batches: list[list[Plan]] = [
        [[one for controls in window for one in controls.of_batches[number]] for window in of_windows]
        for number in range(len(batches))
    ]
    for batch, of_batch in zip(batches, of_batches, strict=True):
        vlm.edits_of(batch, of_batch[0])
    counted = [controls for controls in of_windows[0] if controls.kind != "own"] or of_windows[0]
    wanted = torch.stack([controls.wanted for controls in counted]).amax(dim=0)
    drawn = torch.stack([controls.drawn for controls in counted]).amin(dim=0)
    return _ControlPlans(of_batches, wanted, drawn, tuple(dict.fromkeys(controls.kind for controls in of_windows[0])))


# Runs --------------------------------------------------------------------------------------------------------------------


def _check_plans(vlm: VLM, batches: Sequence[Batch], plans: Sequence[Plan], interventions: Sequence[Any]) -> None:
    """Raise what these interventions raise: for every window on the first batch, for the first window on every batch."""
    for number, batch in enumerate(batches):
        vlm.edits_of(batch, interventions)
        for plan in plans if number == 0 else plans[:1]:
            vlm.edits_of(batch, plan)


@dataclass(frozen=True)
class _Run:
    """What a sweep runs: a plan for each window and its control on every batch, the metric of each batch, and the smallest and
    the largest value that it can have. Without metrics the metric is the divergence from the run without a plan."""

    vlm: VLM
    batches: Sequence[Batch]
    plans: Sequence[Plan]
    controls: _ControlPlans | None
    interventions: Sequence[Any]
    metrics: Sequence[BatchMetric] | None
    limits: tuple[float, float] = (0.0, math.inf)

    def result(
        self, windows: list[range], metric: str, intervention: tuple[str, str], seed: int, progress: bool
    ) -> SweepResult:
        """Run it. `intervention` is its name and its description."""
        controls, name = self.controls, intervention[0]
        extra = [[]] * len(self.batches) if controls is None or controls.of_batches is None else controls.of_batches
        plans = [[*self.plans, *more] for more in extra]
        with progress_bar(
            "layer sweep" if self.metrics is not None else "layer contribution", sum(map(len, plans)), "runs", progress
        ) as bar:
            parts = [self._run_batch(number, of_batch, bar) for number, of_batch in enumerate(plans)]
        per_row, baseline = (torch.cat(part) for part in zip(*parts, strict=True))
        per_row, of_control = per_row[:, : len(windows)], per_row[:, len(windows) :]
        low, high = (bound.clamp(*self.limits) for bound in mean_interval(per_row, seed=seed))
        fields: dict[str, Any] = {}
        kinds: tuple[str, ...] = ()
        if controls is not None:
            fields["n_positions"] = controls.wanted.float().mean().item()
            fields["n_control"] = controls.drawn.float().mean().item()
            if controls.of_batches is not None:
                of_control = of_control.masked_fill(controls.drawn[:, None] == 0, torch.nan)
                fields |= {"control_rows": of_control, "control": of_control.nanmean(dim=0)}
                short = fields["n_control"] < fields["n_positions"]
                counts = f", {fields['n_control']:.3g} of {fields['n_positions']:.3g} on average" if short else ""
                kinds = tuple(f"control: {_KINDS[kind]}{counts}" for kind in controls.kinds)
        provenance = provenance_of_run(
            self.vlm,
            self.batches,
            self.interventions,
            seed,
            (*kinds, *few_rows(len(per_row)), *few_notes(len(per_row))),
        )
        return SweepResult(
            values=per_row.mean(dim=0),
            low=low,
            high=high,
            per_row=per_row,
            baseline_rows=baseline,
            windows=windows,
            metric=metric,
            intervention=name,
            provenance=replace(provenance, interventions=(*provenance.interventions, intervention[1])),
            **fields,
        )

    def _run_batch(self, number: int, plans: Sequence[Plan], bar: Bar) -> tuple[Tensor, Tensor]:
        """The metric `[row, plan]` of a batch with each plan and `[row]` without."""
        metric = None if self.metrics is None else self.metrics[number]
        runs = MetricRuns(self.vlm, metric or BatchMetric((self.batches[number],), ()), self.interventions)
        baseline = runs.logits()
        measure = metric or contribution_from(baseline[0])
        values = []
        for plan in plans:
            values.append(measure(*runs.logits(plan)).cpu())
            bar.advance()
        return torch.stack(values, dim=1), measure(*baseline).cpu()
