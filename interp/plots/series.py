"""Lines over depth: a value at each state or layer, with its interval as a band and its chance level as a dotted line.

Probes, dimensions, overlaps and entropies are all drawn by `series_figure`, so that they can be laid side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from interp.errors import InputError
from interp.plots.theme import CHANCE, COLOURS, label, new_figure, numbers, translucent


@dataclass(frozen=True)
class Series:
    """One line: `values` at states 0, 1, ..., its `low` and `high` where there are any, a `control` drawn dashed.

    `at` gives the states where they do not count from 0, and `places` what hovering calls each point where "state" is not
    it; `colour` and `dash` are chosen by the figure where left out. `hollow` says which points are drawn as rings.
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
    """Several named lines in one figure. `chance` is one level for all, or named levels.

    Raises `InputError` where a line is empty, or its interval has another length.
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
    figure.update_xaxes(dtick=1 if _longest(series) <= 16 else None)
    if y_range:
        figure.update_yaxes(range=list(y_range))
    return figure


def _longest(series: Mapping[str, Series]) -> int:
    return max((len(line.values) for line in series.values()), default=0)


def _draw_line(figure: go.Figure, name: str, line: Series, colour: str) -> None:
    values = numbers(line.values)
    at = list(line.at) if line.at is not None else list(range(len(values)))
    places = list(line.places) if line.places is not None else [f"state {state:g}" for state in at]
    parts = {
        "low": line.low,
        "high": line.high,
        "control": line.control,
        "at": at,
        "places": places,
        "hollow": line.hollow,
    }
    wrong = [part for part, given in parts.items() if given is not None and len(given) != len(values)]
    if not values or wrong:
        raise InputError(
            f"series {name!r} has {len(values)} values and another number of {', '.join(wrong) or 'states'}"
        )
    shown, group = label(name, 60), label(name, 60)
    hover = [
        [shown, "" if line.low is None else f"<br>95 % {low:.3g} to {high:.3g}", place]
        for (low, high), place in zip(_bounds(line, values), places, strict=True)
    ]
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
            legendgroup=group,
            name=f"{shown} interval",
            mode="lines",
        )
    figure.add_scatter(
        x=at,
        y=values,
        mode="lines+markers",
        name=shown,
        legendgroup=group,
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
            legendgroup=group,
            showlegend=False,
            line={"color": colour, "width": 1.3, "dash": "dash"},
            customdata=hover,
            hovertemplate="%{customdata[0]}, control<br>%{customdata[2]}: %{y:.4g}<extra></extra>",
        )


def _symbols(line: Series, values: list[Any]) -> list[str]:
    hollow = [False] * len(values) if line.hollow is None else line.hollow
    return ["circle-open" if ring else "circle" for ring in hollow]


def _bounds(line: Series, values: list[Any]) -> list[tuple[float, float]]:
    if line.low is None:
        return [(0.0, 0.0)] * len(values)
    return [(float(low), float(high)) for low, high in zip(line.low, line.high, strict=True)]
