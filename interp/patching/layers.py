"""Sweeps over layers: any intervention, moved through a model's depth in windows, and what is left of its answers.

Which layers need to update the image tokens? Skip a window of them, ask, and go on to the next window. What is asked
for is the metric itself, not a change of it; `score` is its share of the untouched model's.

One such sweep has a name. The *layer contribution* of ShortV (Yuan et al. 2025) freezes the image tokens in a layer,
which leaves their keys and values to be read, and measures how far the prediction moves:

    LC[layer] = KL(prediction with the layer frozen || prediction of the whole model), in nats

The layers of least contribution are those whose work on the image tokens can be spared.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import checked_seed
from interp.errors import InputError, InputTypeError, shown
from interp.interventions import Skip
from interp.models import VLM, Batch
from interp.patching.controls import others_before
from interp.patching.metrics import Measure, Metric, kl_divergence, name_of
from interp.patching.rows import batches_of, logits_of, measures_of
from interp.patching.windows import onward, sliding
from interp.provenance import Provenance, fingerprint
from interp.results import Result
from interp.statistics.bootstrap import bootstrap_mean

Plan = Sequence[Any]  # the interventions of one window
_NOTHING = 1e-12


@dataclass(frozen=True, eq=False)
class SweepResult(Result):
    """A metric over windows of layers.

    `values[window]` is the mean over rows with the intervention in this window, `low` and `high` bound it (95 %,
    bootstrap over rows; NaN for one row), `per_row[row, window]` are the rows, and `baseline_rows` those of the untouched
    model, `baseline` their mean. `score` is ``values / baseline``. `windows` are ranges of layers.

    A layer contribution has a `control`: the same from random positions, `n_control` in a row on average where
    `n_positions` were meant. It is None where there was none to draw, and in every other sweep.
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

    def __post_init__(self) -> None:
        count = len(self.windows)
        if self.values.shape != (count,) or self.per_row.shape != (len(self.baseline_rows), count):
            raise InputError(
                f"values of shape {tuple(self.values.shape)} and per_row of shape {tuple(self.per_row.shape)} do not fit "
                f"{len(self.baseline_rows)} rows and {count} windows"
            )

    @property
    def baseline(self) -> float:
        """The metric of the untouched model, a mean over rows."""
        return self.baseline_rows.mean().item()

    @property
    def score(self) -> Float[Tensor, " window"]:
        """The share of the baseline that is left, NaN where the baseline is 0, as for a divergence from the model itself."""
        return self.values / self.baseline if abs(self.baseline) > _NOTHING else torch.full_like(self.values, torch.nan)

    def ranking(self) -> list[int]:
        """The windows by their first layers, that of the smallest value first; of equal ones the earlier."""
        return [self.windows[index].start for index in self.values.argsort(stable=True).tolist()]

    def to_frame(self) -> pd.DataFrame:
        """One row a window: start and stop of the window, value, low, high, score, control."""
        control = torch.full_like(self.values, torch.nan) if self.control is None else self.control
        parts = {"value": self.values, "low": self.low, "high": self.high, "score": self.score, "control": control}
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
    metric: Metric | Measure,
    interventions: Sequence[Any] = (),
    **fixed: Any,
) -> SweepResult:
    """The metric with an intervention in each window of `window` layers: ``intervention(layers=window, **fixed)``.

    `intervention` is a class of `interp.interventions`, or any function that takes `layers=` and gives an intervention or
    a list of them. One that takes `from_layer=` in its place, as `Truncate` does, is moved from layer to layer and acts
    from there to the last. `interventions` hold in all runs, the untouched ones too. `batch` is one batch or a data set in
    batches; the metric's targets are one for all rows or one for each row of all batches.

    Raises before anything is run `InputError` for a window that is wider than the model is deep, for arguments that the
    intervention does not take, and what it raises itself on this model and these batches.

    >>> import interp
    >>> from interp.interventions import Truncate
    >>> from interp.patching import layer_sweep, probability
    >>> vlm = interp.load("toy")
    >>> scene = interp.toy.scenes(1, seed=0)[0]
    >>> question = scene.questions[0]
    >>> batch = vlm.prepare(texts=[question.prompt], images=[scene.image])
    >>> layer_sweep(vlm, batch, window=2, metric=probability(question.answer), positions="image").windows[-1]
    range(6, 8)
    >>> gone = layer_sweep(vlm, batch, Truncate, metric=probability(question.answer), positions="image")
    >>> [f"{share:.1f}" for share in gone.score[[0, 7]].tolist()]  # the image gone from layer 0 on, and from layer 7 on
    ['0.0', '1.0']
    """
    batches = batches_of(batch)
    fixed = {name: tuple(given) if isinstance(given, Iterator) else given for name, given in fixed.items()}
    windows, plans = _plans(intervention, vlm.structure.n_layers, window, fixed)
    measures = measures_of(metric, vlm, batches)
    _try(vlm, batches, plans, interventions)
    swept = [
        _swept(vlm, each, plans, _always(measure), interventions)
        for each, measure in zip(batches, measures, strict=True)
    ]
    given = "".join(f", {name}={shown(value)}" for name, value in fixed.items())
    return _result(
        vlm,
        batches,
        swept,
        windows,
        (*map(repr, interventions), f"{_name(intervention)}(in each window{given})"),
        metric=name_of(metric),
        intervention=_name(intervention),
    )


def layer_contribution(
    vlm: VLM,
    batch: Batch | Sequence[Batch],
    positions: Any = "image",
    window: int = 1,
    *,
    interventions: Sequence[Any] = (),
    control: bool = True,
    seed: int = 0,
) -> SweepResult:
    """ShortV's layer contribution: ``KL(frozen || untouched)`` at the last token, in nats, with ``Skip`` at `positions`.

    `ranking()` of the result gives the layers of least contribution first. `positions` are frozen in each window of
    `window` layers; a mask fits one batch, so in a data set use names and spans. A row in which they select nothing has a
    contribution of 0.

    With `control`, which doubles the runs, as many other positions as are frozen before the last one are frozen in their
    place, drawn with `seed` in each row among those before the last, or all of these where they are fewer.

    Raises what `Skip` raises, and `InputError` for a window that is wider than the model is deep and for a seed that is no
    int from 0 on, before anything is run.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> scene = interp.toy.scenes(1, seed=0)[0]
    >>> batch = vlm.prepare(texts=[scene.questions[0].prompt], images=[scene.image])
    >>> contribution = interp.patching.layer_contribution(vlm, batch)
    >>> contribution.values[7].item()  # what the last layer does to the image is read by nobody
    0.0
    """
    batches, windows, seed = batches_of(batch), sliding(vlm.structure.n_layers, window), checked_seed(seed)
    positions = tuple(positions) if isinstance(positions, Iterator) else positions
    plans = [[Skip(layers=layers, positions=positions)] for layers in windows]
    _try(vlm, batches, plans, interventions)
    masks, wanted, drawn = _others(batches, positions, seed)
    counted = control and bool(drawn.any())
    swept = [
        _swept(vlm, each, plans + (_frozen(mask, windows) if counted else []), contribution_from, interventions)
        for each, mask in zip(batches, masks, strict=True)
    ]
    frozen = [(per_row[:, : len(windows)], untouched) for per_row, untouched in swept]
    beside = torch.cat([per_row[:, len(windows) :] for per_row, _ in swept])
    return _result(
        vlm,
        batches,
        frozen,
        windows,
        (*map(repr, interventions), f"Skip(in each window, positions={shown(positions)})"),
        metric="KL divergence",
        intervention="Skip",
        control=beside[drawn > 0].mean(dim=0) if counted else None,
        n_positions=wanted.float().mean().item(),
        n_control=drawn.float().mean().item() if control else None,
        seed=seed,
    )


# Plans -------------------------------------------------------------------------------------------------------------------


def _plans(intervention: Any, n_layers: int, window: int, fixed: dict[str, Any]) -> tuple[list[range], list[Plan]]:
    """The windows that suit an intervention, and what it makes of each."""
    taken = _arguments(intervention)
    if "layers" in taken:
        windows = sliding(n_layers, window)
        return windows, [_made(intervention, {"layers": layers}, fixed) for layers in windows]
    if "from_layer" not in taken:
        raise InputError(
            f"{_name(intervention)} takes {', '.join(taken) or 'no argument'}: expected an intervention or a function that "
            "takes layers= or from_layer="
        )
    if window != 1:
        raise InputError(
            f"window={shown(window)}: {_name(intervention)} acts from a layer to the last, leave window out"
        )
    windows = onward(n_layers)
    return windows, [_made(intervention, {"from_layer": layers.start}, fixed) for layers in windows]


def _arguments(intervention: Any) -> list[str]:
    """The names of what it takes."""
    if not callable(intervention):
        raise InputTypeError(
            f"intervention={shown(intervention)}: expected a class such as Skip, or a function that takes layers="
        )
    try:
        return list(inspect.signature(intervention).parameters)
    except ValueError:  # something built in, which does not tell
        return []


def _made(intervention: Callable[..., Any], where: dict[str, Any], fixed: dict[str, Any]) -> Plan:
    try:
        made = intervention(**where, **fixed)
    except TypeError as error:
        raise InputError(
            f"{_name(intervention)} cannot be made for each window with {', '.join(fixed) or 'nothing else'} ({error}): give "
            "the arguments that it takes, without layers"
        ) from error
    return made if isinstance(made, list | tuple) else [made]


def _frozen(mask: Tensor, windows: Sequence[range]) -> list[Plan]:
    """Skipping each window at these positions; nothing to do where there are none."""
    return [[Skip(layers=layers, positions=mask)] if mask.any() else [] for layers in windows]


def _name(intervention: Any) -> str:
    inner = getattr(intervention, "func", intervention)  # of a functools.partial
    return getattr(inner, "__name__", type(inner).__name__)


def _others(batches: Sequence[Batch], positions: Any, seed: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Random positions before the last token for each batch, and how many were wanted and drawn in each row of all."""
    generator = torch.Generator().manual_seed(seed)
    kinds = [each.positions for each in batches]
    found = [others_before(each.select(positions), each["last"], each["all"], generator) for each in kinds]
    masks, wanted, drawn = zip(*found, strict=True)
    return list(masks), torch.cat(wanted), torch.cat(drawn)


# Runs --------------------------------------------------------------------------------------------------------------------


def _try(vlm: VLM, batches: Sequence[Batch], plans: Sequence[Plan], interventions: Sequence[Any]) -> None:
    """Raise what these interventions raise: for each window on the first batch, and for each batch in the first window."""
    for number, batch in enumerate(batches):
        vlm.edits_of(batch, interventions)
        for plan in plans if number == 0 else plans[:1]:
            vlm.edits_of(batch, plan)


def contribution_from(untouched: Tensor) -> Measure:
    """How far a prediction is from the untouched one; what falls below 0 is rounding."""
    divergence = kl_divergence(untouched)
    return lambda logits: divergence(logits).clamp(min=0)


def _always(measure: Measure) -> Callable[[Tensor], Measure]:
    """A metric that does not hang on the untouched logits."""
    return lambda _: measure


def _swept(
    vlm: VLM,
    batch: Batch,
    plans: Sequence[Plan],
    measure_from: Callable[[Tensor], Measure],
    interventions: Sequence[Any],
) -> tuple[Tensor, Tensor]:
    """The metric `[row, plan]` with each plan, and `[row]` of the untouched model, from whose logits the metric is made."""
    held = vlm.edits_of(batch, interventions)
    untouched = logits_of(vlm, batch, held)
    measure = measure_from(untouched)
    found = [measure(logits_of(vlm, batch, held, plan)).cpu() for plan in plans]
    return torch.stack(found, dim=1), measure(untouched).cpu()


def _result(
    vlm: VLM,
    batches: Sequence[Batch],
    swept: Sequence[tuple[Tensor, Tensor]],
    windows: list[range],
    interventions: tuple[str, ...],
    seed: int = 0,
    **fields: Any,
) -> SweepResult:
    """The result of what `_swept` gave for each batch."""
    per_row, baseline = (torch.cat(parts) for parts in zip(*swept, strict=True))
    low, high = bootstrap_mean(per_row, seed)
    provenance = Provenance(
        model=vlm.name,
        revision=vlm.revision,
        data=fingerprint(*batches),
        seed=seed,
        interventions=interventions,
    )
    return SweepResult(
        values=per_row.mean(dim=0),
        low=low,
        high=high,
        per_row=per_row,
        baseline_rows=baseline,
        windows=windows,
        provenance=provenance,
        **fields,
    )
