"""Intrinsic dimension, drawn over depth or over scale.

An estimate depends on its scale: noise raises it among the nearest neighbours, borders and curvature lower it among far ones.
So there are two figures: one estimate for each state, and one for each scale of a single cloud, where a level stretch
(`interp.geometry.plateau`, shaded) shows that the cloud has a dimension. A ring is an estimate that is surely too low
(`Estimate.warning`). A dimension has no chance level: read it against its error, other scales, and other clouds of as many
points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from interp.errors import InputError
from interp.geometry.dimension import Estimate, plateau
from interp.plots.theme import COLOURS, label, markers, new_figure, numbers, translucent

Lines = Estimate | Sequence[Estimate] | Mapping[str, Sequence[Estimate]]


def estimates_figure(estimates: Lines, **options: object) -> go.Figure:
    """A list of `Estimate`: over scale where their ranks differ, else over depth."""
    ranks = {item.ranks for line in _named(estimates).values() for item in line}
    draw = scaling_figure if len(ranks) > 1 else dimension_figure
    return draw(estimates, **options)  # type: ignore[arg-type]


def dimension_figure(estimates: Lines, title: str = "Intrinsic dimension", height: int = 380) -> go.Figure:
    """Intrinsic dimension over depth, one estimate for each state; several modalities or models under their names.

    Bars are one standard error. Rings are surely too low; the text on hovering says why.
    """
    named = _named(estimates)
    figure = new_figure(title, "state (0 enters layer 0)", "dimension", height)
    for index, (name, line) in enumerate(named.items()):
        _add_line(figure, name, line, range(len(line)), COLOURS[index % len(COLOURS)], "state %{x}")
    figure.update_yaxes(rangemode="tozero")
    figure.update_xaxes(dtick=1 if max(map(len, named.values()), default=0) <= 16 else None)
    return figure


def scaling_figure(
    estimates: Lines, title: str = "Intrinsic dimension over scale", tolerance: float = 0.1, height: int = 380
) -> go.Figure:
    """The estimates of `dimension_scaling` over the mean distance of the farther neighbour, in log; several clouds under names.

    The plateau at this `tolerance`, if one exists, is shaded in the colour of its line. Bars are one standard error.

    Raises `InputError` where a line is empty.
    """
    named = _named(estimates)
    empty = [name for name, line in named.items() if not line]
    if empty or not named:
        raise InputError(f"no estimates for {empty!r}: expected the list that dimension_scaling returns")
    figure = new_figure(title, "distance of the neighbours", "dimension", height)
    for index, (name, line) in enumerate(named.items()):
        colour = COLOURS[index % len(COLOURS)]
        level = plateau(line, tolerance)
        if level is not None:
            first, last = line[level.start], line[level.stop - 1]
            figure.add_vrect(
                x0=first.scale,
                x1=last.scale,
                fillcolor=translucent(colour, 0.12),
                line={"width": 0},
                layer="below",
                name=f"plateau, ranks {first.ranks[0]} to {last.ranks[1]}",
                showlegend=True,
            )
        _add_line(figure, name, line, [item.scale for item in line], colour, "distance %{x:.3g}")
    figure.update_xaxes(type="log")
    figure.update_yaxes(rangemode="tozero")
    return figure


def _named(estimates: Lines) -> dict[str, list[Estimate]]:
    if isinstance(estimates, Mapping):
        return {name: list(line) for name, line in estimates.items()}
    return {"dimension": list(estimates) if isinstance(estimates, Sequence) else [estimates]}


def _add_line(
    figure: go.Figure, name: str, line: Sequence[Estimate], x: Sequence[float], colour: str, place: str
) -> None:
    figure.add_scatter(
        x=list(x),
        y=numbers(item.value for item in line),
        error_y={"type": "data", "array": numbers(item.error for item in line), "thickness": 1.2, "width": 3},
        mode="lines+markers",
        name=label(name, 60),
        line={"color": colour, "width": 2.2},
        marker=markers(colour, [bool(item.warning) for item in line]),
        customdata=[
            [label(name, 60), item.n, "{} and {}".format(*item.ranks), item.warning and f"<br>{item.warning}"]
            for item in line
        ],
        hovertemplate=f"%{{customdata[0]}}<br>{place}: %{{y:.2f}} ± %{{error_y.array:.2f}}"
        + " (ranks %{customdata[2]} of n = %{customdata[1]})%{customdata[3]}<extra></extra>",
    )
