"""A picture behind a figure, and a slider over the heatmaps that lie on it.

`lens_on_image` and `patch_on_image` draw what a model does with each patch on the picture itself: one heatmap for each layer,
one of which is visible, and a slider that selects it. Patches are rectangles that lie side by side. They may differ in
size (those at the edge of a crop are cut), so `lattice` finds the lines between them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from interp.errors import InputTypeError, shown
from interp.plots.theme import GRID, TEMPLATE, PageFigure, fit_title, wrapped

if TYPE_CHECKING:
    from PIL.Image import Image

# Pictures smaller than this, in pixels, are enlarged.
_SHARPEST = 480
# Edges closer together than this share of a picture are one line.
_ONE_LINE = 1e-4


def picture_figure(image: Image, width: float, height: float, start: float, size: int) -> go.Figure:
    """An empty figure with this picture as its background, `size` pixels wide.

    Its axes begin at `start` in the top left corner and extend `width` to the right and `height` down.
    """
    figure = bare_figure(width, height, size, start)
    figure.add_layout_image(
        source=as_uri(image),
        xref="x",
        yref="y",
        x=start,
        y=start,
        sizex=width,
        sizey=height,
        sizing="stretch",
        layer="below",
    )
    return figure


def bare_figure(width: float, height: float, size: int, start: float = 0) -> go.Figure:
    """The same figure without a picture."""
    figure = PageFigure(layout={"template": TEMPLATE, "plot_bgcolor": GRID})
    figure.update_xaxes(range=[start, start + width], visible=False, constrain="domain")
    figure.update_yaxes(
        range=[start + height, start], visible=False, scaleanchor="x", constrain="domain", constraintoward="top"
    )
    margin = {"l": 8, "r": 8, "t": 48, "b": 80}
    figure.update_layout(dragmode=False, height=round(size * height / width) + 140, margin=margin)
    return figure


def add_slider(figure: go.Figure, names: Sequence[str], titles: Sequence[str], first: int, prefix: str) -> None:
    """Add a slider that shows one trace of the figure at a time, with its title; `first` is visible at the start.

    If the figure holds several series of traces, one after the other, with a trace for each name, one trace of each
    series is visible.
    """
    steps = [
        {
            "label": name,
            "method": "update",
            "args": [
                {"visible": [other % len(names) == index for other in range(len(figure.data))]},
                {"title.text": wrapped(titles[index])},
            ],
        }
        for index, name in enumerate(names)
    ]
    for index, trace in enumerate(figure.data):
        trace.visible = index % len(names) == first
    slider = {"active": first, "steps": steps, "currentvalue": {"prefix": prefix}, "pad": {"t": 8}}
    # The longest title says how much room there must be.
    longest = max(titles, key=lambda title: wrapped(title).count("<br>"))
    fit_title(figure.update_layout(title={"text": longest}, sliders=[slider]))
    figure.update_layout(title={"text": wrapped(titles[first])})


def lattice(
    boxes: Sequence[tuple[float, float, float, float]],
) -> tuple[list[float], list[float], list[list[int | None]]]:
    """The lines between boxes (left, top, right, bottom), and the box that each cell between the lines belongs to.

    Returns the positions of the vertical lines, those of the horizontal lines, and row by row the index of each cell's
    box, None for a cell outside all boxes.

    >>> lattice([(0.0, 0.0, 0.5, 1.0), (0.5, 0.5, 0.75, 1.0)])
    ([0.0, 0.5, 0.75], [0.0, 0.5, 1.0], [[0, None], [0, 1]])
    """
    across = _lines([edge for left, _, right, _ in boxes for edge in (left, right)])
    down = _lines([edge for _, top, _, bottom in boxes for edge in (top, bottom)])
    cells: list[list[int | None]] = [[None] * (len(across) - 1) for _ in down[1:]]
    for number, (left, top, right, bottom) in enumerate(boxes):
        for row in range(_nearest(down, top), _nearest(down, bottom)):
            for column in range(_nearest(across, left), _nearest(across, right)):
                cells[row][column] = number
    return across, down, cells


def _lines(edges: Sequence[float]) -> list[float]:
    lines: list[float] = []
    for edge in sorted(edges):
        if not lines or edge - lines[-1] > _ONE_LINE:
            lines.append(edge)
    return lines


def _nearest(lines: Sequence[float], edge: float) -> int:
    return min(range(len(lines)), key=lambda index: abs(lines[index] - edge))


def as_uri(image: Image) -> str:
    """The picture as a PNG data URI. A small picture is enlarged without smoothing, so that its pixels stay sharp."""
    from PIL.Image import Image, Resampling

    from interp.models.batches.images import open_image

    if not isinstance(image, Image):
        raise InputTypeError(f"image={shown(image)} is a {type(image).__name__}: expected a PIL image")
    picture = open_image(image)
    factor = _SHARPEST // max(picture.size)
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Resampling.NEAREST)
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
