"""The grid of a patching sweep, as a heatmap and on the picture.

White, or no colour over the picture, is no effect; vermilion is the clean answer coming back, blue is the answer moving
further away. The scale is centred at 0 whatever the data, and the same in all layers and heads of a figure, so a colour
always means the same. Hovering shows the interval over rows.

Layers stand upwards and positions to the right. Heads are a third axis: with a single position they stand to the right;
few rows of (layer, head) are shown one above the other, as "layer.head"; for more of them a slider goes through the heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from interp.errors import InputError
from interp.plots.pictures import add_slider, lattice, picture_figure
from interp.plots.theme import EFFECT_SCALE, label, new_figure, numbers, translucent

if TYPE_CHECKING:
    from torch import Tensor

    from interp.patching import PatchResult

# As many rows of (layer, head) are still told apart at a glance.
_MOST_ROWS = 48
# What the name of a row takes, in pixels.
_NAME_HEIGHT = 16
# How much of the picture each colour hides, from one end of the scale to the other.
_OPACITY = (0.9, 0.75, 0.0, 0.75, 0.9)
_VEIL = [(share, translucent(colour, opacity)) for (share, colour), opacity in zip(EFFECT_SCALE, _OPACITY, strict=True)]
# A cell of a result: its layer, position and, where there are any, head, as indices; None where nothing is drawn.
_Cell = tuple[int, ...]
_Cells = list[list[_Cell | None]]


def patching_figure(
    result: PatchResult, labels: Sequence[str] | None = None, title: str | None = None, height: int | None = None
) -> go.Figure:
    """On the picture where every column is a patch of it and nothing else is asked for, else `patch_figure`."""
    plain = labels is None and height is None and result.heads is None
    if plain and result.boxes is not None and not result.boxes.isnan().any():
        return patch_on_image(result, title=title)
    return patch_figure(result, labels, title, height)


def patch_figure(
    result: PatchResult, labels: Sequence[str] | None = None, title: str | None = None, height: int | None = None
) -> go.Figure:
    """The effect in each cell of the grid; `labels` replaces the names of the positions.

    Raises `InputError` where there are not as many labels as positions.
    """
    names = list(result.tokens if labels is None else labels)
    if len(names) != len(result.columns):
        raise InputError(f"{len(names)} labels for {len(result.columns)} positions: expected one a position")
    title = _titled(result) if title is None else title
    layers, places, heads = range(len(result.layers)), range(len(names)), result.heads or []
    by_layer, ticks = list(map(str, result.layers)), [label(name) for name in names]
    if not heads:
        grid: _Cells = [[(layer, place) for place in places] for layer in layers]
        return _drawn(result, names, [grid], ticks, by_layer, title, height)
    several = range(len(heads))
    if len(places) == 1:
        grid = [[(layer, 0, head) for head in several] for layer in layers]
        return _drawn(result, names, [grid], None, by_layer, f"{title}, {ticks[0]}", height)
    if len(heads) > 1 and len(layers) * len(heads) <= _MOST_ROWS:
        grid = [[(layer, place, head) for place in places] for layer in layers for head in several]
        rows = [f"{layer}.{head}" for layer in result.layers for head in heads]
        return _drawn(result, names, [grid], ticks, rows, title, height)
    panels: list[_Cells] = [[[(layer, place, head) for place in places] for layer in layers] for head in several]
    figure = _drawn(result, names, panels, ticks, by_layer, title, height)
    largest = result.effect.abs().nan_to_num().amax(dim=(0, 1)).argmax()
    add_slider(figure, list(map(str, heads)), [f"{title}, head {head}" for head in heads], int(largest), "head ")
    return figure


def patch_on_image(
    result: PatchResult, layer: int | None = None, head: int | None = None, title: str | None = None, size: int = 560
) -> go.Figure:
    """The picture of the first pair, each patch coloured by its effect, and a slider over layers.

    `layer` is seen first (default that of the largest effect); of a result with heads, `head` says which is drawn. Columns
    that are no single patch are left out, and the title says how many.

    Raises `InputError` where no column is a patch of a known picture, and for a layer or head that was not patched.
    """
    from PIL.Image import fromarray

    seen, corners = _on_picture(result)
    if result.picture is None or not seen:
        raise InputError(
            f"none of {len(result.columns)} positions of this result is a patch of a known picture: expected a sweep over "
            "positions='image' of rows that were made from texts and images"
        )
    height, width = result.picture.shape[:2]
    if result.heads is None and head is not None:
        raise InputError(f"head={head!r}: this result has no heads, leave head out")
    of_head = () if result.heads is None else (_index("head", head, result.heads),)
    shown = result.effect[(slice(None), seen, *of_head)].nan_to_num().abs()
    first = int(shown.amax(dim=1).argmax()) if layer is None else _index("layer", layer, result.layers)
    across, down, boxes = lattice([corners[number] for number in seen])
    figure = picture_figure(fromarray(result.picture.numpy()), width, height, 0, size)
    drawer = _Numbers(result, result.tokens, _reach(shown))
    for index in range(len(result.layers)):
        cells: _Cells = [[None if box is None else (index, seen[box], *of_head) for box in row] for row in boxes]
        figure.add_trace(drawer.heatmap(cells, across, down, colorscale=_VEIL, xgap=1, ygap=1))
    title = _titled(result) if title is None else title
    left = len(result.columns) - len(seen)
    titles = [f"{title}, layer {number}" for number in result.layers]
    titles = [f"{each} ({left} other position{'s' * (left > 1)} not shown)" if left else each for each in titles]
    add_slider(figure, list(map(str, result.layers)), titles, first, "layer ")
    figure.update_layout(margin={"t": 64})
    _add_ends(figure, result)
    return figure


def _on_picture(result: PatchResult) -> tuple[list[int], list[tuple[float, float, float, float]]]:
    """The columns that have an area on the picture, and the corners of all columns in its pixels."""
    if result.picture is None or result.boxes is None:
        return [], []
    height, width = result.picture.shape[:2]
    scale = result.boxes.new_tensor([width, height, width, height])
    corners = [(box[0], box[1], box[2], box[3]) for box in (result.boxes.nan_to_num() * scale).tolist()]
    return [number for number, (x, y, right, bottom) in enumerate(corners) if right > x and bottom > y], corners


def _index(what: str, wanted: int | None, there: Sequence[int]) -> int:
    """The place of a layer or a head among those of a result; of a single one none need be named."""
    if wanted is None and len(there) == 1:
        return 0
    if wanted not in there:
        raise InputError(f"{what}={wanted!r}: this result has {what}s {list(there)}, expected one of them")
    return there.index(wanted)


def _titled(result: PatchResult) -> str:
    rows = len(result.per_row)
    moves = "comes back" if result.direction == "denoise" else "is left"
    how = f"{label(result.direction)}, {label(result.method)}"
    return (
        f"Patching {label(result.site)} ({how}): share of the clean answer that {moves} "
        f"({rows} {'pair' if rows == 1 else 'pairs'})"
    )


def _drawn(
    result: PatchResult,
    names: Sequence[str],
    panels: Sequence[_Cells],
    ticks: Sequence[str] | None,
    rows: Sequence[str],
    title: str,
    height: int | None,
) -> go.Figure:
    """A figure of one heatmap a panel, its rows named by `rows`, its columns by `ticks` or else by the heads."""
    by_layer = len(rows) == len(result.layers)
    # Cells stand at their number and not at that of their layer: layers may be any, in any order.
    tall, wide = list(range(len(rows))), list(range(len(panels[0][0])))
    height = height or 200 + max(160, (26 if by_layer else 16) * len(rows)) + 90 * (len(panels) > 1)
    x_name, y_name = "head" if ticks is None else "position", "layer" if by_layer else "layer.head"
    figure = new_figure(title, x_name, y_name, height)
    drawer = _Numbers(result, names, _reach(result.effect))
    for cells in panels:
        figure.add_trace(drawer.heatmap(cells, wide, tall, colorscale=EFFECT_SCALE))
    columns = list(map(str, result.heads or ())) if ticks is None else ticks
    figure.update_xaxes(tickvals=wide, ticktext=columns, tickangle=0 if ticks is None else -90, showgrid=False)
    # Names that would run into each other are left out.
    step = math.ceil(_NAME_HEIGHT * len(rows) / max(height - 200, 1))
    figure.update_yaxes(tickvals=tall[::step], ticktext=list(rows)[::step], showgrid=False)
    _add_ends(figure, result)
    return figure


class _Numbers:
    """The numbers of a result as plotly takes them, and heatmaps of some of its cells."""

    def __init__(self, result: PatchResult, names: Sequence[str], reach: float):
        self.result, self.names, self.reach = result, [label(name) for name in names], reach
        self.metric = label(result.metric)
        self.grids = [numbers(grid) for grid in (result.effect, result.low, result.high, result.values)]

    def heatmap(self, cells: _Cells, x: Sequence[float], y: Sequence[float], **look: Any) -> go.Heatmap:
        """The effect in these cells, row by row, nothing where there is none; over each the rest is shown."""
        return go.Heatmap(
            z=[[None if cell is None else _at(self.grids[0], cell) for cell in row] for row in cells],
            x=list(x),
            y=list(y),
            zmid=0,
            zmin=-self.reach,
            zmax=self.reach,
            colorbar={"title": {"text": "effect"}, "thickness": 12},
            customdata=[[None if cell is None else self._hover(cell) for cell in row] for row in cells],
            hovertemplate="%{customdata[0]} (%{customdata[1]}), %{customdata[5]}<br>effect %{z:.3f}%{customdata[2]}<br>"
            + "%{customdata[3]} %{customdata[4]}<extra></extra>",
            hoverongaps=False,
            **look,
        )

    def _hover(self, cell: _Cell) -> list[str]:
        """Token, positions, interval, name and value of the metric, layer and head."""
        columns = self.result.columns[cell[1]]
        where = f"position {columns[0]}" if len(columns) == 1 else f"{len(columns)} positions"
        low, high, value = (_at(grid, cell) for grid in self.grids[1:])
        interval = "" if None in (low, high) else f"<br>95 % {low:.3f} to {high:.3f}"
        head = f", head {(self.result.heads or ())[cell[2]]}" if len(cell) > 2 else ""
        place = f"layer {self.result.layers[cell[0]]}{head}"
        return [self.names[cell[1]], where, interval, self.metric, "nan" if value is None else f"{value:.4g}", place]


def _at(nested: Any, cell: _Cell) -> Any:
    for index in cell:
        nested = nested[index]
    return nested


def _reach(effect: Tensor) -> float:
    """How far the scale goes to either side of 0."""
    return float(effect.nan_to_num().abs().max()) or 1.0


def _add_ends(figure: go.Figure, result: PatchResult) -> None:
    """The metric at the two ends of the scale, above the figure."""
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
