"""Curves over windows of layers: the information flow along edges, and a metric under an intervention.

A point stands at the middle of its window and hovering tells which layers these are; where windows reach from a layer to
the last, it stands at that layer. The band is the 95 % interval over rows, the dashed line the same intervention at
random positions, the dotted one the untouched model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from interp.plots.series import Series, series_figure
from interp.plots.theme import label

if TYPE_CHECKING:
    from torch import Tensor

    from interp.patching import FlowResult, SweepResult


def flow_figure(result: FlowResult, title: str | None = None, height: int = 400) -> go.Figure:
    """One curve an edge: how much of the metric is lost, in percent, where the edge is cut around each layer."""
    series = {
        edge: Series(
            values=result.values[number],
            low=_unless_nan(result.low[number]),
            high=_unless_nan(result.high[number]),
            control=None if result.control is None else _unless_nan(result.control[number]),
            places=[_layers(window) for window in result.windows],
        )
        for number, edge in enumerate(result.edges)
    }
    rows, width = len(result.per_row), max(map(len, result.windows))
    beside = "" if result.control is None else "; dashed: from random positions"
    titled = title or f"Information flow: edges cut in windows of up to {width} layers ({_rows(rows)}{beside})"
    y = f"change of the {label(result.metric)} in %"
    return series_figure(series, titled, y, x="layer at the centre", chance={"untouched": 0.0}, height=height)


def sweep_figure(
    results: SweepResult | Mapping[str, SweepResult], title: str | None = None, height: int = 380
) -> go.Figure:
    """The metric over windows of layers, of one sweep or of several of the same model under their names in one figure.

    Each has its untouched level; sweeps that share it get one line for it.
    """
    named = dict(results) if isinstance(results, Mapping) else {results.intervention: results}
    series = {
        name: Series(
            values=result.values,
            low=_unless_nan(result.low),
            high=_unless_nan(result.high),
            control=None if result.control is None else _unless_nan(result.control),
            at=_places(result.windows),
            places=[_layers(window) for window in result.windows],
        )
        for name, result in named.items()
    }
    metrics = list(dict.fromkeys(result.metric for result in named.values()))
    counts = list(dict.fromkeys(_rows(len(result.per_row)) for result in named.values()))
    beside = "; dashed: at random positions" if any(result.control is not None for result in named.values()) else ""
    titled = title or f"{label(', '.join(named), 60)} over layers ({', '.join(counts)}{beside})"
    onward = all(_is_onward(result.windows) for result in named.values())
    x = "from layer" if onward else "layer (middle of the window)"
    return series_figure(series, titled, label(", ".join(metrics), 60), x=x, chance=_levels(named), height=height)


def _levels(named: Mapping[str, SweepResult]) -> dict[str, float]:
    """The untouched levels, one for those that share it."""
    owners: dict[str, list[str]] = {}
    for name, result in named.items():
        owners.setdefault(f"{result.baseline:.6g}", []).append(name)
    if len(owners) == 1:
        return {"untouched": float(next(iter(owners)))}
    return {f"untouched ({', '.join(names)})": float(level) for level, names in owners.items()}


def _places(windows: Sequence[range]) -> list[float]:
    """Where each window is drawn: at its middle, or at its first layer where all reach to the last."""
    if _is_onward(windows):
        return [window.start for window in windows]
    return [(window.start + window.stop - 1) / 2 for window in windows]


def _is_onward(windows: Sequence[range]) -> bool:
    return len(windows) > 1 and all(window.stop == windows[-1].stop for window in windows)


def _layers(window: range) -> str:
    """A window in words; its last layer is one of it."""
    return f"layer {window.start}" if len(window) == 1 else f"layers {window.start} to {window.stop - 1}"


def _unless_nan(line: Tensor) -> Tensor | None:
    """A line, left out where there is none: the bounds of a single row, a control without positions to draw from."""
    return None if line.isnan().any() else line


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"
