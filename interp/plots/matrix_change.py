"""What changed between two alignment matrices, and how sure the peak of one is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from interp.plots.theme import COLOURS, EFFECT_SCALE, INK, new_figure, numbers

if TYPE_CHECKING:
    from interp.geometry import DiagonalPeak, MatrixChange

LEVEL = 0.05


def matrix_change_figure(result: MatrixChange, title: str | None = None, height: int = 440) -> go.Figure:
    """The change of each pair of layers, white where there is none; dots have a p of at most 0.05 among all pairs."""
    words = title or f"Change of {result.metric.replace('_', ' ')}, {result.n} examples (dots: p ≤ {LEVEL:g} among all)"
    figure = new_figure(words, "textual state", "visual state", height)
    cells = numbers(result.difference)
    largest = max([abs(value) for row in cells for value in row if value is not None], default=0) or 1.0
    rows = zip(*(numbers(part) for part in (result.low, result.high, result.p, result.p_family)), strict=True)
    figure.add_trace(
        go.Heatmap(
            z=cells,
            zmin=-largest,
            zmax=largest,
            colorscale=EFFECT_SCALE,
            colorbar={"title": {"text": "after - before"}, "thickness": 12},
            customdata=[[_words(*cell) for cell in zip(*row, strict=True)] for row in rows],
            hovertemplate="visual %{y}, textual %{x}: %{z:.3f}%{customdata}<extra></extra>",
        )
    )
    visual, textual = (result.p_family <= LEVEL).nonzero(as_tuple=True)
    figure.add_scatter(
        x=textual.tolist(),
        y=visual.tolist(),
        mode="markers",
        marker={"size": 6, "color": "white", "line": {"color": INK, "width": 1.5}},
        name=f"p ≤ {LEVEL:g} among all pairs",
        showlegend=False,
        hoverinfo="skip",
    )
    figure.update_xaxes(dtick=1, showgrid=False, constrain="domain")
    figure.update_yaxes(dtick=1, showgrid=False)
    return figure


def _words(low: float | None, high: float | None, p: float | None, family: float | None) -> str:
    bounds = "" if low is None or high is None else f"<br>95 % {low:.3f} to {high:.3f}"
    return bounds + ("" if p is None else f"<br>p {p:.2g}") + ("" if family is None else f", {family:.2g} among all")


def peak_figure(result: DiagonalPeak, title: str | None = None, height: int = 320) -> go.Figure:
    """How often each layer was chosen as the peak of the diagonal, and its value on the examples that did not choose."""
    words = f"Peak of {result.metric.replace('_', ' ')}: {result.value:.3f} ({result.low:.3f} to {result.high:.3f})"
    figure = new_figure(title or words, "state", "share of choices", height)
    figure.add_bar(
        x=list(range(len(result.shares))), y=numbers(result.shares), marker={"color": COLOURS[0]}, showlegend=False
    )
    figure.update_yaxes(range=[0, 1])
    return figure
