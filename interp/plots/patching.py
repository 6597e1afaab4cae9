"""Figures of patching: the grid of a sweep as a heatmap or on the picture, and curves over windows of layers.

**Grids.** White, or no colour over the picture, means no effect. Vermilion means that the clean answer comes back, blue
that the model moves further away from it. The scale is centred at 0 and is the same for all layers and heads of a figure,
so a colour always means the same number. Hovering shows the interval over rows. Layers run upwards and positions to the
right. Heads are a third axis: with a single position they run to the right; a few rows of (layer, head) are stacked and
named "layer.head"; more of them get a slider over heads.

**Curves.** `flow` and `layer_sweep` give one number for each window of layers. A point stands at the middle of its window, or
at its first layer if every window reaches to the last layer, and hovering names the layers. The band is the 95 % interval
over rows, the dashed line is the control, the dotted line is the model without intervention.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from interp.errors import InputError
from interp.plots.pictures import add_slider, bare_figure, lattice, picture_figure
from interp.plots.series import Series, series_figure
from interp.plots.theme import EFFECT_SCALE, label, mean_of, new_figure, numbers, translucent

if TYPE_CHECKING:
    from torch import Tensor

    from interp.patching import FlowResult, PatchResult, SweepResult

# With more rows of (layer, head) than this, neighbouring rows are hard to tell apart.
_MOST_ROWS = 48
# The height of a row's name, in pixels.
_NAME_HEIGHT = 16
# The names that fit below a heatmap of plotly's default width, in the usual letters and in small ones of `_SMALL` pixels.
_NAMES, _SMALL_NAMES, _SMALL = 44, 60, 9
# How much of the picture each colour hides, from one end of the scale to the other.
_OPACITY = (0.9, 0.75, 0.0, 0.75, 0.9)
_VEIL = [(share, translucent(colour, opacity)) for (share, colour), opacity in zip(EFFECT_SCALE, _OPACITY, strict=True)]
# A cell of a result as indices: layer, position and, for a site with heads, head. None leaves a hole in the heatmap.
_Cell = tuple[int, ...]
_Cells = list[list[_Cell | None]]


# Grids -------------------------------------------------------------------------------------------------------------------


def patching_figure(
    result: PatchResult, labels: Sequence[str] | None = None, title: str | None = None, height: int | None = None
) -> go.Figure:
    """Draw a sweep with `patch_on_image` if every column is a patch, else with `patch_figure`.

    `labels`, `height` or a site with heads also select `patch_figure`.
    """
    plain = labels is None and height is None and result.heads is None
    on_picture = result.picture is not None and result.boxes is not None and not result.boxes.isnan().any()
    if plain and (
        on_picture or (len(result.columns) > 1 and len(_patches_of_one_image(result)) == len(result.columns))
    ):
        return patch_on_image(result, title=title)
    return patch_figure(result, labels, title, height)


def patch_figure(
    result: PatchResult, labels: Sequence[str] | None = None, title: str | None = None, height: int | None = None
) -> go.Figure:
    """Draw the effect in each cell as a heatmap, layer by position; `labels` replaces the names of the positions.

    Raises `InputError` if the number of labels differs from the number of positions.
    """
    names = list(result.tokens if labels is None else labels)
    if len(names) != len(result.columns):
        raise InputError(
            f"{len(names)} labels for {len(result.columns)} positions: expected one label for each position"
        )
    title = _default_title(result) if title is None else title
    ticks = [label(name) for name in names]
    layout = _arrange(result, ticks)
    if layout.x == "head":
        title = f"{title}, {ticks[0]}"
    figure = _draw_panels(result, names, layout, title, height)
    if layout.slider:
        largest = int(result.effect.abs().nan_to_num().amax(dim=(0, 1)).argmax())
        add_slider(figure, layout.slider, [f"{title}, head {head}" for head in layout.slider], largest, "head ")
    return figure


def patch_on_image(
    result: PatchResult, layer: int | None = None, head: int | None = None, title: str | None = None, size: int = 560
) -> go.Figure:
    """Draw the effect on the picture of the clean runs, one colour for each patch, with a slider over layers.

    A mean over pairs with different pictures belongs to none of them, so it is drawn on the bare grid of patches. The slider
    starts at `layer` (default: the layer with the largest effect). For a result with heads, `head` selects the one to draw.
    Columns that are not the same single patch in all rows are left out; the title says how many.

    Raises `InputError` if no column is a patch of a known picture or grid, and for a layer or head that was not patched.
    """
    from PIL.Image import fromarray

    patches, corners = _find_patches(result)
    if not patches:
        raise InputError(
            f"none of {len(result.columns)} positions of this result is a patch of a known picture: expected a sweep over "
            "positions='image' of rows whose image tokens form a grid"
        )
    if result.heads is None and head is not None:
        raise InputError(f"head={head!r}: this result has no heads, leave head out")
    of_head = () if result.heads is None else (_index("head", head, result.heads),)
    sizes = result.effect[(slice(None), patches, *of_head)].nan_to_num().abs()
    first = int(sizes.amax(dim=1).argmax()) if layer is None else _index("layer", layer, result.layers)
    across, down, boxes = lattice([corners[number] for number in patches])
    if result.picture is None:
        figure = bare_figure(across[-1], down[-1], size)
    else:
        height, width = result.picture.shape[:2]
        figure = picture_figure(fromarray(result.picture.numpy()), width, height, 0, size)
    scale = EFFECT_SCALE if result.picture is None else _VEIL
    drawer = _Drawer(result, result.tokens, _limit(sizes))
    for index in range(len(result.layers)):
        cells: _Cells = [[None if box is None else (index, patches[box], *of_head) for box in row] for row in boxes]
        figure.add_trace(drawer.heatmap(cells, across, down, colorscale=scale, xgap=1, ygap=1))
    title = _default_title(result, " with different pictures" * _has_many_pictures(result)) if title is None else title
    others = len(result.columns) - len(patches)
    remark = f" ({others} other position{'s' * (others > 1)} not shown)" if others else ""
    titles = [f"{title}, layer {number}{remark}" for number in result.layers]
    figure.update_layout(margin={"t": 68})  # the metric stands between title and picture
    add_slider(figure, list(map(str, result.layers)), titles, first, "layer ")
    _add_ends(figure, result)
    return figure


def _find_patches(result: PatchResult) -> tuple[list[int], list[tuple[float, float, float, float]]]:
    """The columns that have an area on the picture, and the corners of all columns in its pixels; without a picture, the
    columns that are patches, and their corners in a grid of squares."""
    if result.picture is None or result.boxes is None:
        places = _patches_of_one_image(result)
        squares = [places.get(number, (0, 0)) for number in range(len(result.columns))]
        return list(places), [(column, row, column + 1, row + 1) for row, column in squares]
    height, width = result.picture.shape[:2]
    scale = result.boxes.new_tensor([width, height, width, height])
    corners = [(box[0], box[1], box[2], box[3]) for box in (result.boxes.nan_to_num() * scale).tolist()]
    return [number for number, (x, y, right, bottom) in enumerate(corners) if right > x and bottom > y], corners


def _patches_of_one_image(result: PatchResult) -> dict[int, tuple[int, int]]:
    """The row and column of each column of the grid that is a patch in all rows; nothing if two are patches of different
    images, which no one grid holds."""
    places = {number: patch for number, patch in enumerate(result.patches or ()) if patch is not None}
    return places if len(set(places.values())) == len(places) else {}


def _has_many_pictures(result: PatchResult) -> bool:
    return result.picture is None and len(result.per_row) > 1


def _index(what: str, value: int | None, choices: Sequence[int]) -> int:
    """The index of a layer or head among those of a result; None selects the only one."""
    if value is None and len(choices) == 1:
        return 0
    if value not in choices:
        raise InputError(f"{what}={value!r}: this result has {what}s {list(choices)}, expected one of them")
    return choices.index(value)


def _default_title(result: PatchResult, remark: str = "") -> str:
    outcome = "comes back" if result.direction == "denoise" else "is left"
    return (
        f"Patching {label(result.site)} ({label(result.direction)}, {label(result.method)}): share of the clean answer "
        f"that {outcome} ({mean_of(len(result.per_row), 'pair')}{remark})"
    )


def _limit(effect: Tensor) -> float:
    """How far the colour scale reaches to either side of 0."""
    return float(effect.nan_to_num().abs().max()) or 1.0


def _add_ends(figure: go.Figure, result: PatchResult) -> None:
    """Write the metric at effect 1 and at effect 0 above the figure, and how many rows are answered rightly on both sides."""
    text = f"{label(result.metric)}: clean {result.clean:.3g} (effect 1), corrupted {result.corrupted:.3g} (effect 0)"
    if result.right_clean is not None and result.right_corrupted is not None:
        both = result.right_clean & result.right_corrupted
        text += f"; {int(both.sum())} of {len(both)} rows answered rightly" + " and kept" * (
            len(both) > len(result.per_row)
        )
    figure.add_annotation(
        text=text,
        xref="paper",
        yref="paper",
        x=0,
        y=1.0,
        yanchor="bottom",
        xanchor="left",
        showarrow=False,
        font={"size": 11},
    )


def _arrange(result: PatchResult, ticks: list[str]) -> _Layout:
    """Choose the form of the grid: without heads, heads to the right, stacked heads, or a panel for each head."""
    layers, places, heads = range(len(result.layers)), range(len(ticks)), range(len(result.heads or ()))
    layer_names, head_names = list(map(str, result.layers)), list(map(str, result.heads or ()))
    if not heads:
        return _Layout([[[(layer, place) for place in places] for layer in layers]], ticks, layer_names)
    if len(ticks) == 1:
        return _Layout([[[(layer, 0, head) for head in heads] for layer in layers]], head_names, layer_names, x="head")
    if len(heads) > 1 and len(layers) * len(heads) <= _MOST_ROWS:
        grid: _Cells = [[(layer, place, head) for place in places] for layer in layers for head in heads]
        rows = [f"{layer}.{head}" for layer in layer_names for head in head_names]
        return _Layout([grid], ticks, rows, y="layer.head")
    panels: list[_Cells] = [[[(layer, place, head) for place in places] for layer in layers] for head in heads]
    return _Layout(panels, ticks, layer_names, slider=head_names)


def _draw_panels(
    result: PatchResult, names: Sequence[str], layout: _Layout, title: str, height: int | None
) -> go.Figure:
    """Draw one heatmap for each panel of the layout, on the same axes."""
    # A cell stands at its index, not at the number of its layer: layers may come in any order.
    down, across = list(range(len(layout.rows))), list(range(len(layout.columns)))
    row_height = 26 if layout.y == "layer" else 16
    height = height or 200 + max(160, row_height * len(down)) + 90 * (len(layout.panels) > 1)
    figure = new_figure(title, layout.x, layout.y, height)
    drawer = _Drawer(result, names, _limit(result.effect))
    for cells in layout.panels:
        figure.add_trace(drawer.heatmap(cells, across, down, colorscale=EFFECT_SCALE))
    angle = 0 if layout.x == "head" else -90
    # Skip names that would overlap; the last position, where the answer is read, keeps its name.
    named = across[:: -math.ceil(len(across) / _SMALL_NAMES)][::-1]
    names_of = [layout.columns[column] for column in named]
    font = {"size": _SMALL} if len(named) > _NAMES else None
    figure.update_xaxes(tickvals=named, ticktext=names_of, tickfont=font, tickangle=angle, showgrid=False)
    step = math.ceil(_NAME_HEIGHT * len(down) / max(height - 200, 1))
    figure.update_yaxes(tickvals=down[::step], ticktext=layout.rows[::step], showgrid=False)
    _add_ends(figure, result)
    return figure


@dataclass(frozen=True)
class _Layout:
    """Which cell stands where: panels of rows of cells, the names of columns and rows, the titles of both axes.

    `slider` names the panels if there is one for each head.
    """

    panels: Sequence[_Cells]
    columns: list[str]
    rows: list[str]
    x: str = "position"
    y: str = "layer"
    slider: Sequence[str] = ()


class _Drawer:
    """Draws heatmaps of some cells of a result, all on one colour scale that reaches to `limit`."""

    def __init__(self, result: PatchResult, names: Sequence[str], limit: float):
        self.result, self.names, self.limit = result, [label(name) for name in names], limit
        self.metric = label(result.metric)
        self.grids = [numbers(grid) for grid in (result.effect, result.low, result.high, result.values, result.p)]
        self.control = None if result.control is None else numbers(result.control)

    def heatmap(self, cells: _Cells, x: Sequence[float], y: Sequence[float], **options: Any) -> go.Heatmap:
        """The effect in these cells, row by row; hovering over a cell shows its other numbers."""
        return go.Heatmap(
            z=[[None if cell is None else _at(self.grids[0], cell) for cell in row] for row in cells],
            x=list(x),
            y=list(y),
            zmid=0,
            zmin=-self.limit,
            zmax=self.limit,
            colorbar={"title": {"text": "effect"}, "thickness": 12},
            customdata=[[None if cell is None else self._hover(cell) for cell in row] for row in cells],
            hovertemplate="%{customdata[0]} (%{customdata[1]}), %{customdata[5]}<br>effect %{z:.3f}%{customdata[2]}"
            + "%{customdata[6]}<br>%{customdata[3]} %{customdata[4]}<extra></extra>",
            hoverongaps=False,
            **options,
        )

    def _hover(self, cell: _Cell) -> list[str]:
        """Token, positions, interval, name and value of the metric, layer and head, p and control."""
        columns = self.result.columns[cell[1]]
        where = {0: "positions differ", 1: f"position {columns[0] if columns else ''}"}.get(
            len(columns), f"{len(columns)} positions"
        )
        low, high, value, p = (_at(grid, cell) for grid in self.grids[1:])
        others = "" if p is None else f"<br>p {p:.2g} among all cells"
        others += "" if self.control is None else f"<br>random donors {_at(self.control, cell):.3f}"
        interval = "" if None in (low, high) else f"<br>95 % {low:.3f} to {high:.3f}"
        head = f", head {(self.result.heads or ())[cell[2]]}" if len(cell) > 2 else ""
        place = f"layer {self.result.layers[cell[0]]}{head}"
        return [
            self.names[cell[1]],
            where,
            interval,
            self.metric,
            "nan" if value is None else f"{value:.4g}",
            place,
            others,
        ]


def _at(nested: Any, cell: _Cell) -> Any:
    for index in cell:
        nested = nested[index]
    return nested


# Curves ------------------------------------------------------------------------------------------------------------------


def flow_figure(result: FlowResult, title: str | None = None, height: int = 400) -> go.Figure:
    """Draw one curve for each edge: the change of the metric, in percent, when the edge is cut around each layer."""
    series = {edge: _curve(result, (number,)) for number, edge in enumerate(result.edges)}
    width = max(map(len, result.windows))
    remark = "" if result.control is None else "; dashed: from random positions"
    title = title or (f"Information flow: edges cut in windows of up to {width} layers ({_row_count(result)}{remark})")
    y = f"change of the {label(result.metric)} in %"
    return series_figure(series, title, y, x="layer at the centre", chance={"untouched": 0.0}, height=height)


def sweep_figure(
    results: SweepResult | Mapping[str, SweepResult], title: str | None = None, height: int = 380
) -> go.Figure:
    """Draw the metric over windows of layers, for one sweep or for several of the same model, by name.

    A dotted line shows the metric without intervention, once for all sweeps that share it.
    """
    named = dict(results) if isinstance(results, Mapping) else {results.intervention: results}
    series = {name: _curve(result, at=_middles(result.windows)) for name, result in named.items()}
    metrics = dict.fromkeys(result.metric for result in named.values())
    counts = dict.fromkeys(map(_row_count, named.values()))
    remark = "; dashed: control" if any(result.control is not None for result in named.values()) else ""
    title = title or f"{label(', '.join(named), 60)} over layers ({', '.join(counts)}{remark})"
    x = "from layer" if all(_reach_end(result.windows) for result in named.values()) else "layer (middle of the window)"
    return series_figure(series, title, label(", ".join(metrics), 60), x=x, chance=_levels(named), height=height)


def _curve(result: FlowResult | SweepResult, index: tuple[int, ...] = (), at: Sequence[float] | None = None) -> Series:
    """The line at this index of a result; bounds and controls that contain NaN are left out."""
    low, high, control = (
        None if line is None or line[index].isnan().any() else line[index]
        for line in (result.low, result.high, result.control)
    )
    places = [_layers(window) for window in result.windows]
    return Series(values=result.values[index], low=low, high=high, control=control, at=at, places=places)


def _levels(named: Mapping[str, SweepResult]) -> dict[str, float]:
    """The metric without intervention, one level for all sweeps that share it."""
    owners: dict[str, list[str]] = {}
    for name, result in named.items():
        owners.setdefault(f"{result.baseline:.6g}", []).append(name)
    if len(owners) == 1:
        return {"untouched": float(next(iter(owners)))}
    return {f"untouched ({', '.join(names)})": float(level) for level, names in owners.items()}


def _middles(windows: Sequence[range]) -> list[float]:
    """Where each window is drawn: at its middle, or at its first layer if all windows reach to the last layer."""
    if _reach_end(windows):
        return [window.start for window in windows]
    return [(window.start + window.stop - 1) / 2 for window in windows]


def _reach_end(windows: Sequence[range]) -> bool:
    return len(windows) > 1 and all(window.stop == windows[-1].stop for window in windows)


def _layers(window: range) -> str:
    """A window in words, with its last layer included."""
    return f"layer {window.start}" if len(window) == 1 else f"layers {window.start} to {window.stop - 1}"


def _row_count(result: FlowResult | SweepResult) -> str:
    return mean_of(len(result.per_row))
