"""Lines over depth: a value for each state or layer, its interval as a band, its chance level as a dotted line.

`series_figure` draws probes, overlaps, entropies and sweeps alike, so that they can be compared side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from interp.displays import Display
from interp.errors import InputError
from interp.plots.theme import CHANCE, COLOURS, label, new_figure, numbers, translucent


@dataclass(frozen=True)
class Series(Display):
    """One line: `values` at states 0, 1, ..., optionally with an interval (`low`, `high`) and a dashed `control`.

    `at` gives the states if they do not count from 0. `places` names each point when hovering (default "state 0", "state 1",
    ...). Without a `colour` the figure chooses one. Points marked in `hollow` are drawn as rings.
    """

    values: Any
    low: Any = None
    high: Any = None
    control: Any = None
    at: Sequence[float] | None = None
    places: Sequence[str] | None = None
    colour: str | None = None
    dash: str = "solid"
    hollow: Sequence[bool] | None = None


def series_figure(
    series: Mapping[str, Series],
    title: str,
    y: str,
    x: str = "state (0 enters layer 0)",
    chance: float | Mapping[str, float] | None = None,
    y_range: tuple[float, float] | None = None,
    height: int = 380,
) -> go.Figure:
    """Draw several named lines in one figure. `chance` is one level for all lines, or several levels by name.

    Raises `InputError` if a line is empty, or if one of its parts differs in length from its values.

    >>> line = Series(values=[0.2, 0.9], low=[0.1, 0.8], high=[0.3, 1.0])
    >>> figure = series_figure({"digit": line}, "Probes", "accuracy", chance=0.1)
    >>> [trace.name for trace in figure.data]
    ['digit interval', 'digit']
    """
    figure = new_figure(title, x, y, height)
    for index, (name, line) in enumerate(series.items()):
        _draw_line(figure, name, line, line.colour or COLOURS[index % len(COLOURS)])
    levels = {"chance": chance} if isinstance(chance, int | float) else dict(chance or {})
    for name, level in levels.items():
        figure.add_hline(
            y=float(level),
            line={"color": CHANCE, "dash": "dot", "width": 1.5},
            annotation={"text": f"{label(name)} {level:.3g}", "font": {"color": CHANCE, "size": 11}},
            annotation_position="bottom right",
        )
    longest = max((len(line.values) for line in series.values()), default=0)
    figure.update_xaxes(dtick=1 if longest <= 16 else None)
    if y_range:
        figure.update_yaxes(range=list(y_range))
    return figure


def _draw_line(figure: go.Figure, name: str, line: Series, colour: str) -> None:
    values = numbers(line.values)
    at = list(range(len(values)) if line.at is None else line.at)
    places = [f"state {state:g}" for state in at] if line.places is None else list(line.places)
    parts = {"low": line.low, "high": line.high, "control": line.control, "hollow": line.hollow}
    parts |= {"at": at, "places": places}
    wrong = [part for part, entries in parts.items() if entries is not None and len(entries) != len(values)]
    if not values or wrong:
        raise InputError(
            f"series {name!r} has {len(values)} values and a different number of {', '.join(wrong) or 'states'}: "
            "expected one for each value"
        )
    shown = label(name, 60)
    hover = [[shown, interval, place] for interval, place in zip(_intervals(line, values), places, strict=True)]
    if line.low is not None:
        low, high = numbers(line.low), numbers(line.high)
        figure.add_scatter(
            x=[*at, *reversed(at)],
            y=[*high, *reversed(low)],
            fill="toself",
            fillcolor=translucent(colour, 0.16),
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            legendgroup=shown,
            name=f"{shown} interval",
            mode="lines",
        )
    figure.add_scatter(
        x=at,
        y=values,
        mode="lines+markers",
        name=shown,
        legendgroup=shown,
        line={"color": colour, "width": 2.2, "dash": line.dash},
        marker={"size": 6, "color": colour, "symbol": _symbols(line, values)},
        customdata=hover,
        hovertemplate="%{customdata[0]}<br>%{customdata[2]}: %{y:.4g}%{customdata[1]}<extra></extra>",
    )
    if line.control is not None:
        figure.add_scatter(
            x=at,
            y=numbers(line.control),
            mode="lines",
            name=f"{shown}, control",
            legendgroup=shown,
            showlegend=False,
            line={"color": colour, "width": 1.3, "dash": "dash"},
            customdata=hover,
            hovertemplate="%{customdata[0]}, control<br>%{customdata[2]}: %{y:.4g}<extra></extra>",
        )


def _symbols(line: Series, values: list[Any]) -> list[str]:
    hollow = [False] * len(values) if line.hollow is None else line.hollow
    return ["circle-open" if ring else "circle" for ring in hollow]


def _intervals(line: Series, values: list[Any]) -> list[str]:
    """What hovering adds to each value: its interval, if the line has one."""
    if line.low is None:
        return [""] * len(values)
    return [f"<br>95 % {float(low):.3g} to {float(high):.3g}" for low, high in zip(line.low, line.high, strict=True)]
