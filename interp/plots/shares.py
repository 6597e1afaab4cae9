"""Attention shares: a map of layers by heads with the chance level as a column of its own, and self and cross mass as
lines over depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from interp.plots.series import Series, series_figure
from interp.plots.theme import AMOUNT_SCALE, label, new_figure, numbers

if TYPE_CHECKING:
    from interp.lens import MassResult, ShareResult


def share_figure(result: ShareResult, title: str | None = None, height: int = 400) -> go.Figure:
    """Layers by heads: the share of attention, and in the last column what evenly spread attention gives. Layers without
    attention weights are blank."""
    values, low, high, chance = (numbers(part) for part in (result.values, result.low, result.high, result.chance))
    layers, heads = range(len(values)), range(len(values[0]))
    between = [[_between(low[layer][head], high[layer][head]) for head in heads] for layer in layers]
    titled = title or f"Share of attention from {label(result.queries)} to {label(result.keys)}"
    figure = new_figure(titled, "head", "layer", height)
    figure.add_heatmap(
        z=[[*row, level] for row, level in zip(values, chance, strict=True)],
        x=[*map(str, heads), "chance"],
        y=[str(layer) for layer in layers],
        customdata=[[*row, ""] for row in between],
        colorscale=AMOUNT_SCALE,
        zmin=0,
        zmax=1,
        colorbar={"title": {"text": "share"}, "thickness": 10},
        hovertemplate="layer %{y}, head %{x}: %{z:.3g}%{customdata}<extra></extra>",
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category")
    return figure


def mass_figure(result: MassResult, title: str | None = None, height: int = 400) -> go.Figure:
    """Four lines over layers, the mean over heads from each kind to each; dashed: evenly spread attention."""
    values, chance = result.values, result.chance
    series = {
        f"{query} to {key}": Series(
            values=values[row, column],
            control=chance[row, column],
            places=[f"layer {layer}" for layer in range(values.shape[2])],
        )
        for row, query in enumerate(result.kinds)
        for column, key in enumerate(result.kinds)
    }
    titled = title or "Attention within and between kinds of position (dashed: spread evenly)"
    return series_figure(series, titled, "share of attention", x="layer", y_range=(0, 1), height=height)


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"<br>95 % {low:.3g} to {high:.3g}"
