"""Probes over depth: accuracy with its interval, the same probe on shuffled labels (dashed), and chance (dotted).

A probe is only worth reading above its control: what a linear map can memorise of the examples it was fitted on does
not carry over to others, and the control shows what is left by luck. A ring marks a state at which the test labels in
another order agree with the probe as well in more than one of twenty permutations. Where examples have types, the
accuracy on labels drawn for each type is drawn in dashes and dots: selectivity is the distance to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from interp.plots.series import Series, series_figure
from interp.plots.theme import COLOURS

if TYPE_CHECKING:
    from interp.probes import ProbeResult

_LEVEL = 0.05


def probe_figure(
    results: ProbeResult | Mapping[str, ProbeResult], title: str = "Linear probes", height: int = 400
) -> go.Figure:
    """The accuracy of one probe over depth, or of several under their names in one figure."""
    named = dict(results) if isinstance(results, Mapping) else {"accuracy": results}
    series: dict[str, Series] = {}
    for index, (name, result) in enumerate(named.items()):
        colour = COLOURS[index % len(COLOURS)]
        series[name] = _line(result, colour)
        if result.control_task is not None:
            series[f"{name}, control task"] = Series(values=result.control_task, colour=colour, dash="dashdot")
    # Results that share a chance level get one line for it.
    levels: dict[str, list[str]] = {}
    for name, result in named.items():
        levels.setdefault(f"{result.chance:.6g}", []).append(name)
    if len(levels) == 1:
        chance = {"chance": float(next(iter(levels)))}
    else:
        chance = {f"chance ({', '.join(names)})": float(level) for level, names in levels.items()}
    return series_figure(series, title, "accuracy on held-out groups", chance=chance, y_range=(0, 1.03), height=height)


def _line(result: ProbeResult, colour: str) -> Series:
    return Series(
        values=result.accuracy,
        low=result.low,
        high=result.high,
        control=result.control,
        places=[f"state {state}{_said(result, state)}" for state in range(len(result.accuracy))],
        colour=colour,
        hollow=None if result.p is None else [float(p) > _LEVEL for p in result.p],
    )


def _said(result: ProbeResult, state: int) -> str:
    """What hovering says of a state beside its accuracy: p and selectivity, where there are any."""
    numbers = {"p": result.p, "selectivity": result.selectivity}
    said = [f"{name} {float(each[state]):.2g}" for name, each in numbers.items() if each is not None]
    return f" ({', '.join(said)})" if said else ""
