"""The heatmap of a patching sweep: layers upwards, positions to the right, each column named by its token.

White is no effect, vermilion is the clean answer coming back, blue is the answer moving further away. The scale is
centred at 0 whatever the data, so white always means the same. Hovering shows the interval over rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from interp.errors import InputError
from interp.plots.theme import EFFECT_SCALE, label, new_figure, numbers

if TYPE_CHECKING:
    from interp.patching import PatchResult


def patch_figure(
    result: PatchResult, labels: Sequence[str] | None = None, title: str | None = None, height: int | None = None
) -> go.Figure:
    """The effect at each layer and position; `labels` replaces the names of the positions.

    Raises `InputError` where there are not as many labels as positions.
    """
    names = list(result.tokens if labels is None else labels)
    if len(names) != len(result.columns):
        raise InputError(f"{len(names)} labels for {len(result.columns)} positions: expected one a position")
    effect = numbers(result.effect)
    reach = max((abs(value) for row in effect for value in row if value is not None), default=0.0) or 1.0
    rows = len(result.per_row)
    if title is None:
        title = (
            f"Patching {label(result.site)}: share of the clean answer that comes back ({rows} "
            f"{'pair' if rows == 1 else 'pairs'})"
        )
    figure = new_figure(title, "position", "layer", height or 200 + max(160, 26 * len(result.layers)))
    places = list(range(len(names)))
    figure.add_heatmap(
        z=effect,
        x=places,
        y=list(result.layers),
        zmid=0,
        zmin=-reach,
        zmax=reach,
        colorscale=EFFECT_SCALE,
        colorbar={"title": {"text": "effect"}, "thickness": 12},
        customdata=_hover(result, names),
        hovertemplate="%{customdata[0]} (position %{customdata[1]}), layer %{y}<br>effect %{z:.3f}%{customdata[2]}<br>"
        + "%{customdata[3]} %{customdata[4]}<extra></extra>",
    )
    figure.update_xaxes(tickvals=places, ticktext=[label(name) for name in names], tickangle=-90, showgrid=False)
    figure.update_yaxes(dtick=1 if len(result.layers) <= 16 else None, showgrid=False)
    figure.add_annotation(
        text=f"{label(result.metric)}: clean {result.clean:.3g} (effect 1), corrupted {result.corrupted:.3g} (effect 0)",
        xref="paper",
        yref="paper",
        x=0,
        y=1.0,
        yanchor="bottom",
        xanchor="left",
        showarrow=False,
        font={"size": 11},
    )
    return figure


def _hover(result: PatchResult, names: Sequence[str]) -> list[list[list[object]]]:
    """For each cell: token, column, interval, name and value of the metric."""
    low, high, values = numbers(result.low), numbers(result.high), numbers(result.values)
    metric = label(result.metric)

    def cell(layer: int, place: int) -> list[object]:
        bounds = low[layer][place], high[layer][place]
        interval = "" if None in bounds else f"<br>95 % {bounds[0]:.3f} to {bounds[1]:.3f}"
        return [label(names[place]), result.columns[place], interval, metric, f"{values[layer][place]:.4g}"]

    return [[cell(layer, place) for place in range(len(names))] for layer in range(len(result.layers))]
