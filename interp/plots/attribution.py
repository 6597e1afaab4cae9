"""What the components of a model add to a logit: bars for the blocks, a map of layers by heads.

Each bar has its 95 % interval over rows and, as a hollow mark, its control: what the same component adds to the average
token. A bar that ends at its mark raises all tokens alike and so changes no probability.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from interp.errors import InputError
from interp.plots.theme import COLOURS, EFFECT_SCALE, INK, label, new_figure, numbers

if TYPE_CHECKING:
    from interp.lens import AttributionResult

_NAMED = {"attn_out": "attention", "mlp_out": "MLP"}


def attribution_figure(
    result: AttributionResult, source: str | None = None, title: str | None = None, height: int = 400
) -> go.Figure:
    """A bar a component, in the order of the forward pass; of a result that is parted into heads, the map of these, with
    `source` as in `heads_figure`."""
    if source is not None or any(part.head is not None for part in result.parts):
        return heads_figure(result, source, title, height)
    figure = new_figure(title or f"Direct attribution of {_what(result)}", "component", "logits", height)
    kinds = list(dict.fromkeys(_NAMED.get(part.kind, "other") for part in result.parts))
    values, low, high = (numbers(bound) for bound in (result.values, result.low, result.high))
    for kind in kinds:
        chosen = [index for index, part in enumerate(result.parts) if _NAMED.get(part.kind, "other") == kind]
        bounds = [(low[index], values[index], high[index]) for index in chosen]
        figure.add_bar(
            x=[result.components[index] for index in chosen],
            y=[values[index] for index in chosen],
            name=kind,
            marker={"color": COLOURS[kinds.index(kind)]},
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
    """Layers by heads: what each head adds, less its control; with `source`, what it adds of what it read there alone.

    Raises `InputError` for a result without heads, and for a source that it was not parted by.
    """
    chosen = [
        (part, float(result.values[index]), float(result.control[index]))
        for index, part in enumerate(result.parts)
        if part.head is not None and source in (None, part.source)
    ]
    if not chosen:
        known = list(dict.fromkeys(part.source for part in result.parts if part.source is not None))
        raise InputError(
            f"source={source!r}: this result has no such heads, its sources are {', '.join(known) or 'none'}"
        )
    layers = sorted({part.layer for part, *_ in chosen if part.layer is not None})
    heads = range(1 + max(part.head for part, *_ in chosen if part.head is not None))
    cells: dict[tuple[int | None, int | None], tuple[float, float]] = {}
    for part, value, control in chosen:
        before = cells.get((part.layer, part.head), (0.0, 0.0))
        cells[part.layer, part.head] = before[0] + value, before[1] + control
    grid = [[cells.get((layer, head)) for head in heads] for layer in layers]
    less = [[None if cell is None else cell[0] - cell[1] for cell in row] for row in grid]
    largest = max((abs(value) for row in less for value in row if value is not None), default=1.0) or 1.0
    read = "" if source is None else f", read from {label(source)}"
    titled = title or f"Direct attribution of {_what(result)} by head{read}"
    figure = new_figure(titled, "head", "layer", height)
    figure.add_heatmap(
        z=less,
        x=[str(head) for head in heads],
        y=[str(layer) for layer in layers],
        customdata=[[cell or (0.0, 0.0) for cell in row] for row in grid],
        colorscale=EFFECT_SCALE,
        zmin=-largest,
        zmax=largest,
        colorbar={"title": {"text": "logits<br>less control"}, "thickness": 10},
        hovertemplate="layer %{y}, head %{x}: %{z:.4g}<br>value %{customdata[0]:.4g}, control "
        "%{customdata[1]:.4g}<extra></extra>",
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="category")
    return figure


def _what(result: AttributionResult) -> str:
    """The logit, in words that can be shown."""
    targets = list(dict.fromkeys(result.targets))
    others = list(dict.fromkeys(result.against or ()))
    target = f"“{label(targets[0])}”" if len(targets) == 1 else "each row's target"
    if not others:
        return f"the logit of {target} ({result.total:.3g})"
    other = f"“{label(others[0])}”" if len(others) == 1 else "its rival"
    return f"the logit of {target} less that of {other} ({result.total:.3g})"
