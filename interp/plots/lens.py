"""The logit lens, drawn: over depth as lines, and on the picture as the words its patches read as.

`lens_on_image` lays the patch grid over the picture and writes into each patch the word that the final norm and the
unembedding read off its state, the more opaque the more probable; a slider goes through the layers, hovering shows the
words that came next.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from interp.errors import InputError
from interp.plots.pictures import add_slider, picture_figure
from interp.plots.series import Series, series_figure
from interp.plots.theme import label, numbers

if TYPE_CHECKING:
    from PIL.Image import Image

    from interp.lens import LensResult

_VEIL = [(0.0, "rgba(15,23,32,0.45)"), (1.0, "rgba(0,90,140,0.85)")]


def lens_figure(result: LensResult, title: str | None = None, height: int = 380) -> go.Figure:
    """The lens over depth: the targets' probability where there were targets, else the entropy in nats.

    The line is the mean over positions, the band reaches from the 10th to the 90th percentile of them. The dotted line is
    the chance level: a uniform reading of the vocabulary.
    """
    grid = result.entropy if result.target_probs is None else result.target_probs
    name = "entropy (nats)" if result.target_probs is None else "probability of the target"
    several = grid.shape[1] > 1
    line = Series(
        values=grid.mean(dim=1),
        low=grid.quantile(0.1, dim=1) if several else None,
        high=grid.quantile(0.9, dim=1) if several else None,
    )
    chance = math.log(result.vocab_size) if result.target_probs is None else 1 / result.vocab_size
    titled = title or f"Logit lens: {name} ({grid.shape[1]} position{'s' if several else ''})"
    return series_figure({name: line}, titled, name, chance=chance, height=height)


def lens_on_image(
    result: LensResult,
    image: Image,
    grid: Any,
    row: int = 0,
    state: int | None = None,
    title: str = "Logit lens on the image patches",
    size: int = 560,
) -> go.Figure:
    """The picture with its patch grid, the top word of each patch of batch row `row`, and a slider over states.

    `grid` is (rows, columns) of the patches, one of those that `batch.positions.grid(row)` lists; `state` is shown first
    (default the last). Raises `InputError` where it is no such pair (of an image whose tokens are no rectangle there is
    none), and where it does not hold as many patches as the result has positions in this row.
    """
    if not isinstance(grid, tuple | list) or len(grid) != 2 or not all(isinstance(side, int) for side in grid):
        raise InputError(f"grid={grid!r}: expected (rows, columns), one of those in batch.positions.grid({row})")
    rows, columns = grid
    of_row = [index for index, at in enumerate(list(result.rows)) if int(at) == row]
    if rows * columns != len(of_row):
        raise InputError(
            f"a grid of {rows} x {columns} patches for {len(of_row)} positions of row {row}: expected as many"
        )
    states = result.top_probs.shape[0]
    first = states - 1 if state is None else state
    if not 0 <= first < states:
        raise InputError(f"state={state!r}: this result has states 0 to {states - 1}")
    font = max(7, min(14, round(size / columns / 6.5)))
    longest = max(3, int(size / columns / (0.58 * font)))
    figure = picture_figure(image, columns, rows, -0.5, size)
    for index in range(states):
        figure.add_trace(_words(result, index, of_row, (rows, columns), font, longest))
    lines = {"color": "rgba(255,255,255,0.35)", "width": 1}
    edges = [{"x0": x - 0.5, "x1": x - 0.5, "y0": -0.5, "y1": rows - 0.5} for x in range(1, columns)]
    edges += [{"x0": -0.5, "x1": columns - 0.5, "y0": y - 0.5, "y1": y - 0.5} for y in range(1, rows)]
    figure.update_layout(shapes=[{"type": "line", "line": lines, **edge} for edge in edges])
    titles = [_titled(title, index, states) for index in range(states)]
    add_slider(figure, list(map(str, range(states))), titles, first, "state ")
    return figure


def _titled(title: str, state: int, states: int) -> str:
    where = "enters layer 0" if state == 0 else f"leaves layer {state - 1}"
    return f"{title}: state {state} of {states - 1} ({where})"


def _words(
    result: LensResult, state: int, of_row: list[int], grid: tuple[int, int], font: int, longest: int
) -> go.Heatmap:
    """One state: a cell a patch, coloured by the probability of its top word."""
    rows, columns = grid
    probabilities = numbers(result.top_probs[state])
    cells: list[tuple[float, str, str]] = []
    for number, index in enumerate(of_row):
        words = result.words(state, index)
        listed = "<br>".join(
            f"{label(word)}  {share:.1%}" for word, share in zip(words, probabilities[index], strict=True)
        )
        where = f"patch row {number // columns}, column {number % columns}"
        cells.append((probabilities[index][0], label(words[0].strip() or words[0], longest), f"{where}<br>{listed}"))

    def spread(part: int) -> list[list[Any]]:
        return [[cell[part] for cell in cells[start : start + columns]] for start in range(0, rows * columns, columns)]

    return go.Heatmap(
        z=spread(0),
        text=spread(1),
        customdata=spread(2),
        texttemplate="%{text}",
        textfont={"color": "white", "size": font},
        hovertemplate="%{customdata}<extra></extra>",
        colorscale=_VEIL,
        zmin=0,
        zmax=1,
        colorbar={"title": {"text": "p"}, "thickness": 10, "len": 0.6},
        name=f"state {state}",
    )
