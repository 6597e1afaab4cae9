"""Comparisons of clouds, drawn: all measures over depth in small panels, and information imbalance in a square.

Each measure has its own unit, so each has its panel, with the title and the bounds of its entry in the registry. All panels
read alike: a line with its standard error, the control dashed in the same colour, and a ring at each state with a `p_family` of
0.05 or more: it does not survive the look at all states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.errors import InputError
from interp.geometry.registry import REGISTRY
from interp.plots.alignment import diagonal
from interp.plots.theme import CHANCE, COLOURS, TEMPLATE, PageFigure, fit_title, label, markers, new_figure, numbers

if TYPE_CHECKING:
    from interp.geometry import GeometryComparison

LEVEL = 0.05
_COLOUR = {"visual": COLOURS[0], "textual": COLOURS[1], "both": COLOURS[2]}
_ACROSS = 3
_ROOM = 0.05  # of an axis, beyond the bounds of a measure
_PANEL = 240  # pixels from one row of panels to the next


def comparison_figure(result: GeometryComparison, title: str | None = None, height: int | None = None) -> go.Figure:
    """A panel for each measure: states to the right, a line for each modality, its control dashed.

    Bars are one standard error, where it is known. Rings have a p of 0.05 or more among the states of the line (`p_family`,
    Holm's where that is unknown); filled markers less, or no test. NaN is a gap in the line.
    """
    frame = result.to_frame()
    measures = list(dict.fromkeys(result.measure))
    if not measures:
        raise InputError("the comparison has no number: expected one measure or more")
    across = min(_ACROSS, len(measures))
    down = math.ceil(len(measures) / across)
    names = [label(_title(name), 40) for name in measures]
    figure = make_subplots(
        down, across, figure=PageFigure(), subplot_titles=names, horizontal_spacing=0.08, vertical_spacing=0.26 / down
    )
    figure.update_layout(
        template=TEMPLATE,
        height=height or _PANEL * down + 130,
        title={"text": title or f"Geometry of {result.n} examples (dashed: chance, ring: p ≥ {LEVEL:g})"},
        margin={"t": 96},
        legend={"y": 1 + 34 / (_PANEL * down)},
    )
    named: set[str] = set()
    for index, measure in enumerate(measures):
        row, column = divmod(index, across)
        part = frame[frame["measure"] == measure]
        figure.update_yaxes(_axis(measure), row=row + 1, col=column + 1)
        for modality in (each for each in _COLOUR if (part["modality"] == each).any()):
            line = part[part["modality"] == modality]
            for trace in _line(measure, modality, line, legend=modality not in named):
                figure.add_trace(trace, row=row + 1, col=column + 1)
            named.add(modality)
    states = max(result.state, default=0)
    figure.update_xaxes(dtick=1 if states < 10 else None, range=[-0.5, states + 0.5])
    for column in range(min(across, len(measures))):
        last = (len(measures) - 1 - column) // across + 1
        figure.update_xaxes(title_text="state", row=last, col=column + 1)
    return fit_title(figure)


def _title(measure: str) -> str:
    """What the registry calls the numbers of a comparison; the name itself for a measure that is not registered."""
    return REGISTRY[measure].compared.title if measure in REGISTRY else measure.replace("_", " ")


def _axis(measure: str) -> dict[str, float]:
    """The ends beyond which the axis of a measure does not reach: its bounds, with room for markers."""
    bounds = REGISTRY[measure].compared.bounds if measure in REGISTRY else (-math.inf, math.inf)
    room = _ROOM * min(bounds[1] - bounds[0], 1.0)
    ends = {"minallowed": bounds[0] - room, "maxallowed": bounds[1] + room}
    return {name: end for name, end in ends.items() if math.isfinite(end)}


def _line(measure: str, modality: str, line: pd.DataFrame, legend: bool) -> list[go.Scatter]:
    """The line of one modality in one panel, and its control."""
    colour = _COLOUR[modality]
    states, errors, ps = (
        line["state"].tolist(),
        numbers(line["error"]),
        numbers(line["p_family"].fillna(line["p_holm"])),
    )
    notes = [
        ("" if error is None else f" ± {error:.3g}") + ("" if p is None else f" (p {p:.2g} among states)")
        for error, p in zip(errors, ps, strict=True)
    ]
    value = go.Scatter(
        x=states,
        y=numbers(line["value"]),
        error_y={"type": "data", "array": errors, "thickness": 1.2, "width": 3},
        mode="lines+markers",
        name=modality,
        legendgroup=modality,
        showlegend=legend,
        line={"color": colour, "width": 2},
        marker=markers(colour, [p is not None and p >= LEVEL for p in ps]),
        customdata=notes,
        hovertemplate=f"{label(measure)}, {modality}<br>state %{{x}}: %{{y:.4g}}%{{customdata}}<extra></extra>",
    )
    control = go.Scatter(
        x=states,
        y=numbers(line["chance"]),
        mode="lines",
        name=f"{modality}, control",
        legendgroup=modality,
        showlegend=False,
        line={"color": colour, "width": 1.3, "dash": "dash"},
        hovertemplate=f"{label(measure)}, {modality}, control<br>state %{{x}}: %{{y:.4g}}<extra></extra>",
    )
    return [value, control]


def imbalance_figure(
    points: Mapping[str, tuple[float, float]], title: str = "Information imbalance", height: int = 480
) -> go.Figure:
    """Which cloud predicts which: each pair of clouds, by its name, a point at its `information_imbalance`, (x to y, y to x).

    Near the lower left corner each predicts the neighbours in the other; at the cross, which is chance, neither does. Above
    the diagonal x predicts y better than y predicts x.

    Raises `InputError` without points, and for one that is not two numbers.
    """
    wrong = [name for name, pair in points.items() if len(pair) != 2]
    if wrong or not points:
        raise InputError(f"points={dict(points)!r}: expected the two numbers of information_imbalance for each name")
    figure = new_figure(title, "x to y (0: x predicts y)", "y to x (0: y predicts x)", height)
    figure.add_trace(diagonal(1))
    figure.add_scatter(
        x=[1],
        y=[1],
        mode="markers",
        name="unrelated clouds",
        marker={"size": 12, "symbol": "x-thin", "line": {"color": CHANCE, "width": 2.5}},
        showlegend=True,
        hovertemplate="unrelated clouds<extra></extra>",
    )
    for index, (name, (there, back)) in enumerate(points.items()):
        figure.add_scatter(
            x=numbers([there]),
            y=numbers([back]),
            mode="markers+text",
            text=[label(name)],
            textposition="middle right" if there < 1 / 2 else "middle left",
            name=label(name, 60),
            showlegend=False,
            cliponaxis=False,
            marker={"size": 9, "color": COLOURS[index % len(COLOURS)]},
            hovertemplate=f"{label(name, 60)}<br>x to y %{{x:.3f}}, y to x %{{y:.3f}}<extra></extra>",
        )
    most = max(1.0, *(float(number) for pair in points.values() for number in pair if number == number))
    figure.update_xaxes(range=[0, most + 0.05], constrain="domain", dtick=0.2)
    figure.update_yaxes(range=[0, most + 0.05], constrain="domain", dtick=0.2, scaleanchor="x")
    return figure
