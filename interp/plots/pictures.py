"""Pictures under figures, and a slider that goes through what is laid on them.

What a model does with the patches of a picture is drawn on the picture: one heatmap a layer, of which one is seen, and a
slider. `lens_on_image` and `patch_on_image` share what they need for that. Patches are rectangles that lie side by side
but need not be of one size (those at the edge of a crop are cut), so `lattice` finds the lines between them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from interp.errors import InputTypeError, shown
from interp.plots.theme import TEMPLATE

if TYPE_CHECKING:
    from PIL.Image import Image

_SHARPEST = 480
# Lines nearer to each other than this share of a picture are one.
_ONE_LINE = 1e-4


def picture_figure(image: Image, width: float, height: float, start: float, size: int) -> go.Figure:
    """An empty figure with this picture for its ground, `size` pixels wide.

    Its axes go from `start`, at the left and at the top, over `width` to the right and over `height` downwards.
    """
    figure = go.Figure(layout={"template": TEMPLATE})
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
    figure.update_xaxes(range=[start, start + width], visible=False, constrain="domain")
    figure.update_yaxes(
        range=[start + height, start], visible=False, scaleanchor="x", constrain="domain", constraintoward="top"
    )
    margin = {"l": 8, "r": 8, "t": 48, "b": 80}
    figure.update_layout(dragmode=False, height=round(size * height / width) + 140, margin=margin)
    return figure


def add_slider(figure: go.Figure, names: Sequence[str], titles: Sequence[str], first: int, prefix: str) -> None:
    """A slider that shows one trace of the figure at a time, under its title; `first` is seen at the start.

    Where the figure has several series of as many traces as there are names, one behind the other, it shows one of each.
    """
    steps = [
        {
            "label": name,
            "method": "update",
            "args": [
                {"visible": [other % len(names) == index for other in range(len(figure.data))]},
                {"title.text": titles[index]},
            ],
        }
        for index, name in enumerate(names)
    ]
    for index, trace in enumerate(figure.data):
        trace.visible = index % len(names) == first
    slider = {"active": first, "steps": steps, "currentvalue": {"prefix": prefix}, "pad": {"t": 8}}
    figure.update_layout(title={"text": titles[first]}, sliders=[slider])


def lattice(
    boxes: Sequence[tuple[float, float, float, float]],
) -> tuple[list[float], list[float], list[list[int | None]]]:
    """The lines between boxes (left, top, right, bottom): those across the picture, those down it, and for each cell
    between them, row by row, the number of the box it belongs to, None for none.

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
    """The picture as a data URI; a small one enlarged without smoothing, so that its pixels stay what they are."""
    from PIL.Image import Image, Resampling

    if not isinstance(image, Image):
        raise InputTypeError(f"image={shown(image)} is a {type(image).__name__}: expected a picture of PIL")
    factor = _SHARPEST // max(image.size)
    picture = image.convert("RGB")
    if factor > 1:
        picture = picture.resize((image.width * factor, image.height * factor), Resampling.NEAREST)
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
