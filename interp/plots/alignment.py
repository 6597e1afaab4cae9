"""The visual layer x textual layer matrix, drawn: whole, along its diagonal, and its bypass of early layers.

A bright diagonal band shows that image and caption of one scene have the same neighbours at the same depth: the abstraction
phase, in a rectangle. The dots mark the textual layer most like each visual layer; dots far right of the diagonal in the
bottom rows are features that enter past the early textual layers. A best layer always exists; `bypass_figure` shows whether
it is better than chance.

Measures have chance levels, signs and titles of their own, which come from the registry. The colour scale begins at chance,
or at the least value where that is lower, and is at least a tenth wide, so that noise about chance stays pale.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from interp.geometry.registry import REGISTRY
from interp.plots.series import Series, series_figure
from interp.plots.theme import (
    AMOUNT_SCALE,
    CHANCE,
    COLOURS,
    INK,
    MARK,
    TEMPLATE,
    PageFigure,
    fit_title,
    label,
    markers,
    new_figure,
    numbers,
)

if TYPE_CHECKING:
    from interp.geometry import AlignmentMatrix, BypassResult

LEVEL = 0.05
_NARROWEST = 0.1


def diagonal_figure(
    matrices: AlignmentMatrix | Mapping[str, AlignmentMatrix],
    title: str = "Overlap of image and caption at the same layer",
    height: int = 380,
) -> go.Figure:
    """The diagonal of an alignment matrix, or of several by name: the similarity of image and caption at equal depth, with
    intervals.

    Chance is dotted, or dashed in the line's own colour where it depends on the layer. Rings have a p above 0.05 among all
    layers of the diagonal, where the matrix has shuffles.
    """
    matrices = _by_name(matrices)
    level = all(_is_level(matrix) for matrix in matrices.values())
    series = {
        name: Series(
            values=matrix.values.diagonal(),
            low=matrix.low.diagonal() if matrix.subsamples else None,
            high=matrix.high.diagonal() if matrix.subsamples else None,
            control=None if level else _floor(matrix).diagonal(),
            hollow=None if matrix.null is None else (~(matrix.p_diagonal <= LEVEL)).tolist(),
            colour=COLOURS[index % len(COLOURS)],
        )
        for index, (name, matrix) in enumerate(matrices.items())
    }
    chance = max(matrix.chance for matrix in matrices.values()) if level else None
    return series_figure(series, title, _metric(next(iter(matrices.values()))), chance=chance, height=height)


def _by_name(matrices: AlignmentMatrix | Mapping[str, AlignmentMatrix]) -> Mapping[str, AlignmentMatrix]:
    return matrices if isinstance(matrices, Mapping) else {matrices.metric.replace("_", " "): matrices}


def _floor(matrix: AlignmentMatrix) -> Tensor:
    """The chance level of each pair of layers."""
    return torch.full_like(matrix.values, matrix.chance) if matrix.floor is None else matrix.floor


def _is_level(matrix: AlignmentMatrix) -> bool:
    return matrix.floor is None or bool((matrix.floor == matrix.floor.flatten()[0]).all())


def _metric(matrix: AlignmentMatrix) -> str:
    """What the registry calls the values of the matrix; the name itself for a measure that is not registered."""
    measure = REGISTRY.get(matrix.metric)
    return label(measure.turned.title if measure else matrix.metric.replace("_", " "), 40)


def alignment_figure(
    matrix: AlignmentMatrix, title: str | None = None, tau: float = 0.8, height: int = 440
) -> go.Figure:
    """One alignment matrix, its phase (at `tau`) marked by a rectangle, each row's best textual layer by a dot."""
    metric = _metric(matrix)
    figure = new_figure(title or f"{metric}, chance {matrix.chance:.3g}", "textual state", "visual state", height)
    figure.add_trace(_heatmap(matrix, coloraxis="coloraxis"))
    figure.update_layout(coloraxis=_coloraxis([matrix]), margin={"t": 96})
    for trace in _marks(matrix, tau, legend=True):
        figure.add_trace(trace)
    _square(figure, [matrix])
    return figure


def alignment_figures(
    matrices: AlignmentMatrix | Mapping[str, AlignmentMatrix],
    title: str | None = None,
    tau: float = 0.8,
    height: int = 460,
) -> go.Figure:
    """Several alignment matrices side by side on one colour scale, so that they can be compared by eye."""
    matrices = _by_name(matrices)
    names = [f"{label(name, 40)}: {_phase_words(matrix, tau)}" for name, matrix in matrices.items()]
    figure = make_subplots(
        figure=PageFigure(),
        rows=1,
        cols=len(matrices),
        subplot_titles=names,
        shared_yaxes=True,
        horizontal_spacing=0.06,
    )
    metric = _metric(next(iter(matrices.values())))
    chance = max(matrix.chance for matrix in matrices.values())
    figure.update_layout(
        template=TEMPLATE,
        height=height,
        title={"text": title or f"Visual x textual states: {metric}, chance {chance:.3g}"},
        margin={"t": 76, "b": 90},
        legend={"y": -0.2, "yanchor": "top", "x": 0, "xanchor": "left"},
        coloraxis=_coloraxis(list(matrices.values())),
    )
    for column, matrix in enumerate(matrices.values(), start=1):
        figure.add_trace(_heatmap(matrix, coloraxis="coloraxis"), row=1, col=column)
        for trace in _marks(matrix, tau, legend=column == 1):
            figure.add_trace(trace, row=1, col=column)
    figure.update_xaxes(title_text="textual state")
    figure.update_yaxes(title_text="visual state", col=1)
    _square(figure, matrices.values())
    return fit_title(figure)


def _phase_words(matrix: AlignmentMatrix, tau: float) -> str:
    if not _is_square(matrix):
        return "no diagonal"
    phase = matrix.phase(tau)
    if phase is None:
        return "no phase above chance"
    return f"phase {phase.start} to {phase.stop - 1}" if len(phase) > 1 else f"phase {phase.start}"


def _is_square(matrix: AlignmentMatrix) -> bool:
    return matrix.values.shape[0] == matrix.values.shape[1]


def _heatmap(matrix: AlignmentMatrix, coloraxis: str) -> go.Heatmap:
    parts = (numbers(part) for part in (matrix.low, matrix.high, _floor(matrix), matrix.p_family))
    notes = [
        [
            ("" if None in (low, high) else f"<br>95 % {low:.3f} to {high:.3f}")
            + ("" if floor is None else f"<br>chance {floor:.3g}")
            + ("" if p is None else f"<br>p {p:.2g} among all")
            for low, high, floor, p in zip(*row, strict=True)
        ]
        for row in zip(*parts, strict=True)
    ]
    return go.Heatmap(
        z=numbers(matrix.values),
        coloraxis=coloraxis,
        customdata=notes,
        hovertemplate="visual %{y}, textual %{x}: %{z:.3f}%{customdata}<extra></extra>",
    )


def _coloraxis(matrices: Sequence[AlignmentMatrix]) -> dict[str, Any]:
    """From chance, or the least value below it, to the largest value, at least a tenth above chance."""
    values = [value for matrix in matrices for value in numbers(matrix.values.flatten()) if value is not None]
    chances = [matrix.chance for matrix in matrices if matrix.chance == matrix.chance] or [0.0]
    return {
        "colorscale": AMOUNT_SCALE,
        "cmin": min([*values, *chances]),
        "cmax": max([*values, max(chances) + _NARROWEST]),
        "colorbar": {"title": {"text": _metric(matrices[0])}, "thickness": 12},
    }


def _marks(matrix: AlignmentMatrix, tau: float, legend: bool) -> list[go.Scatter]:
    """The rectangle of the abstraction phase, a dot at the best textual layer of each visual one, and crosses where p, among all
    pairs, is above the level."""
    marks = []
    phase = matrix.phase(tau) if _is_square(matrix) else None
    if phase is not None:
        first, last = phase.start - 0.5, phase.stop - 0.5
        marks.append(
            go.Scatter(
                x=[first, last, last, first, first],
                y=[first, first, last, last, first],
                mode="lines",
                line={"color": MARK, "width": 2.5},
                name=f"abstraction phase ({tau:g} of the height above chance)",
                legendgroup="phase",
                showlegend=legend,
                hoverinfo="skip",
            )
        )
    visual, textual = (matrix.p_family > LEVEL).nonzero(as_tuple=True)
    if len(visual):
        marks.append(
            go.Scatter(
                x=textual.tolist(),
                y=visual.tolist(),
                mode="markers",
                marker={"size": 5, "symbol": "x-thin", "line": {"color": CHANCE, "width": 1}},
                name=f"p > {LEVEL:g} among all pairs",
                legendgroup="chance",
                showlegend=legend,
                hoverinfo="skip",
            )
        )
    best = matrix.values.argmax(dim=1).tolist()
    marks.append(
        go.Scatter(
            x=best,
            y=list(range(len(best))),
            mode="markers",
            marker={"size": 7, "color": "white", "line": {"color": INK, "width": 1.5}},
            name="most similar textual state",
            legendgroup="best",
            showlegend=legend,
            hoverinfo="skip",
        )
    )
    return marks


def _square(figure: go.Figure, matrices: Iterable[AlignmentMatrix]) -> None:
    """Axes that end where the cells do, with room for the line around a phase."""
    rows, columns = (max(sizes) for sizes in zip(*(matrix.values.shape for matrix in matrices), strict=True))
    figure.update_xaxes(dtick=1, showgrid=False, constrain="domain", range=[-0.6, columns - 0.4])
    figure.update_yaxes(dtick=1, showgrid=False, range=[-0.6, rows - 0.4])


def bypass_figure(
    results: BypassResult | Mapping[str, BypassResult], title: str | None = None, height: int = 460
) -> go.Figure:
    """The gain of intermediate textual layers over the first, for each visual layer, and the best textual layer.

    Above, the gain with its 95 % interval; rings have a p of 0.05 or more. Below, the best textual layer: on the dotted
    line it is as deep as the visual one. Draws several results under their names.
    """
    named = dict(results) if isinstance(results, Mapping) else {"gain": results}
    figure = make_subplots(2, 1, figure=PageFigure(), shared_xaxes=True, vertical_spacing=0.08, row_heights=[0.6, 0.4])
    first = next(iter(named.values()))
    words = f"Intermediate textual states ({first.band[0]:g} to {first.band[1]:g}) over the first"
    figure.update_layout(template=TEMPLATE, height=height, title={"text": title or words})
    for index, (name, result) in enumerate(named.items()):
        for row, trace in enumerate(_bypass_lines(name, result, COLOURS[index % len(COLOURS)]), start=1):
            figure.add_trace(trace, row=row, col=1)
    layers = max(len(result.gain) for result in named.values())
    figure.add_hline(y=0, line={"color": CHANCE, "dash": "dot", "width": 1.5}, row=1, col=1)
    figure.add_trace(diagonal(layers - 1), row=2, col=1)
    figure.update_xaxes(dtick=1 if layers <= 16 else None)
    figure.update_xaxes(title_text="visual state", row=2, col=1)
    figure.update_yaxes(title_text="gain", row=1, col=1)
    figure.update_yaxes(title_text="best textual state", row=2, col=1)
    return fit_title(figure)


def diagonal(end: float) -> go.Scatter:
    """The dotted line of equal coordinates, from 0 to `end`."""
    line = {"color": CHANCE, "dash": "dot", "width": 1.5}
    return go.Scatter(x=[0, end], y=[0, end], mode="lines", line=line, showlegend=False, hoverinfo="skip")


def _bypass_lines(name: str, result: BypassResult, colour: str) -> tuple[go.Scatter, go.Scatter]:
    text = label(name, 60)
    layers = list(range(len(result.gain)))
    gains, ps = numbers(result.gain), numbers(result.p)
    look = {"mode": "lines+markers", "legendgroup": text, "line": {"color": colour, "width": 2.2}}
    gain = go.Scatter(
        x=layers,
        y=gains,
        error_y={
            "type": "data",
            "array": numbers(result.gain_high - result.gain),
            "arrayminus": numbers(result.gain - result.gain_low),
            "thickness": 1.2,
            "width": 3,
        },
        name=text,
        showlegend=True,
        marker=markers(colour, [p is not None and p >= LEVEL for p in ps]),
        customdata=["" if p is None else f" (p {p:.2g})" for p in ps],
        hovertemplate=f"{text}<br>visual %{{x}}: gain %{{y:.3f}}%{{customdata}}<extra></extra>",
        **look,
    )
    best = go.Scatter(
        x=layers,
        y=numbers(result.best),
        name=text,
        showlegend=False,
        marker={"size": 7, "color": colour},
        customdata=[
            f"{value:.3f}" + ("" if low is None else f", 95 % {low:.3f} to {high:.3f}")
            for value, low, high in zip(numbers(result.values), numbers(result.low), numbers(result.high), strict=True)
        ],
        hovertemplate=f"{text}<br>visual %{{x}}: textual %{{y}}, %{{customdata}}<extra></extra>",
        **look,
    )
    return gain, best
