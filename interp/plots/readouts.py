"""Readouts, drawn: what components add to a logit, and where heads look.

In the bars of an attribution, each bar has its 95 % interval over rows and its control as a hollow mark: what the same
component adds to the average token. A bar that ends at its mark raises all tokens alike, so it changes no probability.
In maps of layers by heads, an attribution is drawn less its control, and a share of attention beside its chance level, which
is the last column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from interp.errors import InputError
from interp.plots.series import Series, series_figure
from interp.plots.theme import AMOUNT_SCALE, COLOURS, EFFECT_SCALE, INK, label, mean_of, new_figure, numbers

if TYPE_CHECKING:
    from interp.readouts import AttributionResult, MassResult, OffDistribution, ShareResult

_KINDS = {"attn_out": "attention", "mlp_out": "MLP"}


def head_map(title: str, heads: Iterable[Any], layers: Iterable[Any], height: int, **cells: Any) -> go.Figure:
    """Layers by heads as a heatmap; `cells` are the options of its trace."""
    figure = new_figure(title, "head", "layer", height)
    figure.add_heatmap(x=list(map(str, heads)), y=list(map(str, layers)), **cells)
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category")
    return figure


def around_zero(cells: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """The colours of signed cells, on a scale that is white at 0."""
    largest = max((abs(value) for row in cells for value in row if value is not None), default=0) or 1
    return {"z": cells, "zmin": -largest, "zmax": largest, "colorscale": EFFECT_SCALE}


# Attribution -------------------------------------------------------------------------------------------------------------


def attribution_figure(
    result: AttributionResult, source: str | None = None, title: str | None = None, height: int = 400
) -> go.Figure:
    """A bar a component, in the order of the forward pass. A result with heads is drawn as their map, with `source` as in
    `heads_figure`."""
    if source is not None or any(part.head is not None for part in result.parts):
        return heads_figure(result, source, title, height)
    figure = new_figure(title or f"Direct attribution of {_logit(result)}", "component", "logits", height)
    kinds = [_KINDS.get(part.kind, "other") for part in result.parts]
    values, low, high = (numbers(bound) for bound in (result.values, result.low, result.high))
    for colour, kind in zip(COLOURS, dict.fromkeys(kinds), strict=False):
        bars = [index for index, each in enumerate(kinds) if each == kind]
        bounds = [(low[index], values[index], high[index]) for index in bars]
        figure.add_bar(
            x=[result.components[index] for index in bars],
            y=[values[index] for index in bars],
            name=kind,
            marker={"color": colour},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [0 if top is None else top - value for _, value, top in bounds],
                "arrayminus": [0 if bottom is None else value - bottom for bottom, value, _ in bounds],
                "thickness": 1.2,
            },
            hovertemplate="%{x}: %{y:.4g}<extra></extra>",
        )
    figure.add_scatter(
        x=result.components,
        y=numbers(result.control),
        mode="markers",
        name="control: the average token",
        marker={"symbol": "diamond-open", "color": INK, "size": 8},
        hovertemplate="%{x}, control: %{y:.4g}<extra></extra>",
    )
    figure.update_xaxes(categoryorder="array", categoryarray=result.components)
    return figure


def heads_figure(
    result: AttributionResult, source: str | None = None, title: str | None = None, height: int = 400
) -> go.Figure:
    """Layers by heads: what each head adds, less its control; with `source`, only what it adds of what it read there.

    Raises `InputError` for a result without heads, and for a source that the result does not have.
    """
    terms = [
        (part, float(result.values[index]), float(result.control[index]))
        for index, part in enumerate(result.parts)
        if part.head is not None and source in (None, part.source)
    ]
    if not terms:
        known = list(dict.fromkeys(part.source for part in result.parts if part.source is not None))
        raise InputError(
            f"source={source!r}: this result has no such heads, its sources are {', '.join(known) or 'none'}"
        )
    layers = sorted({part.layer for part, *_ in terms if part.layer is not None})
    heads = range(1 + max(part.head for part, *_ in terms if part.head is not None))
    cells: dict[tuple[int | None, int | None], tuple[float, float]] = {}
    for part, value, control in terms:
        before = cells.get((part.layer, part.head), (0.0, 0.0))
        cells[part.layer, part.head] = before[0] + value, before[1] + control
    grid = [[cells.get((layer, head)) for head in heads] for layer in layers]
    read = "" if source is None else f", read from {label(source)}"
    return head_map(
        title or f"Direct attribution of {_logit(result)} by head{read}",
        heads,
        layers,
        height,
        **around_zero([[None if cell is None else cell[0] - cell[1] for cell in row] for row in grid]),
        customdata=[[cell or (0.0, 0.0) for cell in row] for row in grid],
        colorbar={"title": {"text": "logits<br>less control"}, "thickness": 10},
        hovertemplate="layer %{y}, head %{x}: %{z:.4g}<br>value %{customdata[0]:.4g}, control "
        "%{customdata[1]:.4g}<extra></extra>",
    )


def _logit(result: AttributionResult) -> str:
    """The logit of a result, in words."""
    rows = len(result.totals)
    total = f"{result.total:.3g}" if rows == 1 else f"{result.total:.3g}, {mean_of(rows)}"
    targets = list(dict.fromkeys(result.targets))
    others = list(dict.fromkeys(result.against or ()))
    target = f"“{label(targets[0])}”" if len(targets) == 1 else "each row's target"
    if not others:
        return f"the logit of {target} ({total})"
    other = f"“{label(others[0])}”" if len(others) == 1 else "its rival"
    return f"the logit of {target} less that of {other} ({total})"


# Attention shares --------------------------------------------------------------------------------------------------------


def share_figure(result: ShareResult, title: str | None = None, height: int = 400) -> go.Figure:
    """Layers by heads: the share of attention; in the last column, that of evenly spread attention. Layers without attention
    weights are blank."""
    values, low, high, chance = (numbers(part) for part in (result.values, result.low, result.high, result.chance))
    intervals = [[_interval(*pair) for pair in zip(*rows, strict=True)] for rows in zip(low, high, strict=True)]
    return head_map(
        title
        or f"Share of attention from {label(result.queries, 40)} to {label(result.keys, 40)} ({mean_of(_rows(result))})",
        [*range(len(values[0])), "chance"],
        range(len(values)),
        height,
        z=[[*row, level] for row, level in zip(values, chance, strict=True)],
        customdata=[[*row, ""] for row in intervals],
        colorscale=AMOUNT_SCALE,
        zmin=0,
        zmax=1,
        colorbar={"title": {"text": "share"}, "thickness": 10},
        hovertemplate="layer %{y}, head %{x}: %{z:.3g}%{customdata}<extra></extra>",
    )


def mass_figure(result: MassResult, title: str | None = None, height: int = 400) -> go.Figure:
    """Four lines over layers, the mean share over heads from each kind to each; dashed: evenly spread attention."""
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
    rows = mean_of(_rows(result.shares[0]))
    titled = title or f"Attention within and between kinds of position ({rows}; dashed: spread evenly)"
    return series_figure(series, titled, "share of attention", x="layer", y_range=(0, 1), height=height)


def distribution_figure(result: OffDistribution, title: str | None = None, height: int = 380) -> go.Figure:
    """The distance of the states to captured ones by depth, in units of the distance among these; dashed: the unchanged run."""
    line = Series(
        values=result.distance.nanmean(dim=0), control=result.distance_unchanged.nanmean(dim=0), at=result.states
    )
    before, after = float(result.entropy_unchanged.mean()), float(result.entropy.mean())
    titled = (
        title or f"Distance to {result.n_reference} captured states (output entropy {before:.2f} to {after:.2f} nats)"
    )
    return series_figure(
        {"with the interventions": line}, titled, "distance / that among captured states", height=height
    )


def _rows(result: ShareResult) -> int:
    """The number of rows that count."""
    return int((~result.per_row.isnan()).flatten(1).any(dim=1).sum())


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"<br>95 % {low:.3g} to {high:.3g}"
