"""Probes over depth: accuracy with its interval, the same probe on shuffled labels (dashed), and chance (dotted).

A probe is only worth reading above its control: what a linear map can memorise of the examples it was fitted on does
not carry over to others, and the control shows what is left by luck.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from interp.plots.series import Series, series_figure

if TYPE_CHECKING:
    from interp.probes import ProbeResult


def probe_figure(
    results: ProbeResult | Mapping[str, ProbeResult], title: str = "Linear probes", height: int = 400
) -> go.Figure:
    """The accuracy of one probe over depth, or of several under their names in one figure."""
    named = dict(results) if isinstance(results, Mapping) else {"accuracy": results}
    series = {
        name: Series(values=result.accuracy, low=result.low, high=result.high, control=result.control)
        for name, result in named.items()
    }
    # Results that share a chance level get one line for it.
    levels: dict[str, list[str]] = {}
    for name, result in named.items():
        levels.setdefault(f"{result.chance:.6g}", []).append(name)
    if len(levels) == 1:
        chance = {"chance": float(next(iter(levels)))}
    else:
        chance = {f"chance ({', '.join(names)})": float(level) for level, names in levels.items()}
    return series_figure(series, title, "accuracy on held-out groups", chance=chance, y_range=(0, 1.03), height=height)
