"""Figures of geometry: intrinsic dimension over depth, and the visual layer x textual layer alignment matrix.

In the matrix a bright diagonal band says that image and caption of one scene have the same neighbours at the same
depth: the abstraction phase, marked by a rectangle. The dots mark which textual layer each visual layer is most like;
dots far right of the diagonal in the bottom rows are features that enter past the early textual layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.series import Series, series_figure
from interp.plots.theme import AMOUNT_SCALE, COLOURS, INK, MARK, TEMPLATE, label, new_figure, numbers

if TYPE_CHECKING:
    from interp.geometry import AlignmentMatrix, Estimate


def dimension_figure(
    estimates: Estimate | Sequence[Estimate] | Mapping[str, Sequence[Estimate]],
    title: str = "Intrinsic dimension",
    height: int = 380,
) -> go.Figure:
    """Intrinsic dimension over depth, one estimate a state; several modalities or models under their names.

    Bars are one standard error. A dimension has no chance level: it is bounded by the number of features.
    """
    named = estimates if isinstance(estimates, Mapping) else {"dimension": _listed(estimates)}
    figure = new_figure(title, "state (0 enters layer 0)", "dimension", height)
    for index, (name, line) in enumerate(named.items()):
        colour = COLOURS[index % len(COLOURS)]
        figure.add_scatter(
            x=list(range(len(line))),
            y=numbers(item.value for item in line),
            error_y={"type": "data", "array": numbers(item.error for item in line), "thickness": 1.2, "width": 3},
            mode="lines+markers",
            name=label(name, 60),
            line={"color": colour, "width": 2.2},
            marker={"size": 6},
            customdata=[[label(name, 60), item.n] for item in line],
            hovertemplate="%{customdata[0]}<br>state %{x}: %{y:.2f} ± %{error_y.array:.2f} (n = %{customdata[1]})<extra></extra>",
        )
    figure.update_yaxes(rangemode="tozero")
    figure.update_xaxes(dtick=1 if max(map(len, named.values()), default=0) <= 16 else None)
    return figure


def _listed(estimates: Estimate | Sequence[Estimate]) -> list[Estimate]:
    return list(estimates) if isinstance(estimates, Sequence) else [estimates]


def diagonal_figure(
    matrices: Mapping[str, AlignmentMatrix],
    title: str = "Overlap of image and caption at the same layer",
    height: int = 380,
) -> go.Figure:
    """The diagonals of alignment matrices: the similarity of image and caption at equal depth, with intervals."""
    series = {
        name: Series(
            values=matrix.values.diagonal(),
            low=matrix.low.diagonal(),
            high=matrix.high.diagonal(),
            colour=COLOURS[index],
        )
        for index, (name, matrix) in enumerate(matrices.items())
    }
    chance = max(matrix.chance for matrix in matrices.values())
    metric = label(next(iter(matrices.values())).metric.replace("_", " "))
    return series_figure(series, title, metric, chance=chance, height=height)


def alignment_figure(
    matrix: AlignmentMatrix, title: str | None = None, tau: float = 0.8, height: int = 440
) -> go.Figure:
    """One alignment matrix, its phase (at `tau`) marked by a rectangle, each row's best textual layer by a dot."""
    metric = label(matrix.metric.replace("_", " "))
    figure = new_figure(title or f"{metric}, chance {matrix.chance:.3g}", "textual state", "visual state", height)
    top = max(numbers(matrix.values.flatten()))
    figure.add_trace(_heatmap(matrix, coloraxis="coloraxis"))
    figure.update_layout(coloraxis=_coloraxis(metric, top, matrix.chance))
    for trace in _marks(matrix, tau, legend=True):
        figure.add_trace(trace)
    _square(figure, [matrix])
    return figure


def alignment_figures(
    matrices: Mapping[str, AlignmentMatrix], title: str | None = None, tau: float = 0.8, height: int = 460
) -> go.Figure:
    """Several alignment matrices side by side on one colour scale, so that they can be compared by eye."""
    names = [f"{label(name, 40)}: {_phase_words(matrix, tau)}" for name, matrix in matrices.items()]
    figure = make_subplots(rows=1, cols=len(matrices), subplot_titles=names, shared_yaxes=True, horizontal_spacing=0.06)
    metric = label(next(iter(matrices.values())).metric.replace("_", " "))
    chance = max(matrix.chance for matrix in matrices.values())
    top = max(max(numbers(matrix.values.flatten())) for matrix in matrices.values())
    figure.update_layout(
        template=TEMPLATE,
        height=height,
        title={"text": title or f"Visual x textual states: {metric}, chance {chance:.3g}"},
        margin={"t": 76, "b": 90},
        legend={"y": -0.2, "yanchor": "top", "x": 0, "xanchor": "left"},
        coloraxis=_coloraxis(metric, top, chance),
    )
    for column, matrix in enumerate(matrices.values(), start=1):
        figure.add_trace(_heatmap(matrix, coloraxis="coloraxis"), row=1, col=column)
        for trace in _marks(matrix, tau, legend=column == 1):
            figure.add_trace(trace, row=1, col=column)
    figure.update_xaxes(title_text="textual state")
    figure.update_yaxes(title_text="visual state", col=1)
    _square(figure, matrices.values())
    return figure


def _phase_words(matrix: AlignmentMatrix, tau: float) -> str:
    phase = matrix.phase(tau)
    if phase is None:
        return "no phase above chance"
    return f"phase {phase.start} to {phase.stop - 1}" if len(phase) > 1 else f"phase {phase.start}"


def _heatmap(matrix: AlignmentMatrix, coloraxis: str) -> go.Heatmap:
    low, high = numbers(matrix.low), numbers(matrix.high)
    interval = [
        ["" if None in (a, b) else f"<br>95 % {a:.3f} to {b:.3f}" for a, b in zip(*pair, strict=True)]
        for pair in zip(low, high, strict=True)
    ]
    return go.Heatmap(
        z=numbers(matrix.values),
        coloraxis=coloraxis,
        customdata=interval,
        hovertemplate="visual %{y}, textual %{x}: %{z:.3f}%{customdata}<br>"
        + f"chance {matrix.chance:.3g}<extra></extra>",
    )


def _coloraxis(metric: str, top: float, chance: float) -> dict[str, Any]:
    return {
        "colorscale": AMOUNT_SCALE,
        "cmin": 0,
        "cmax": max(top, 2 * chance),
        "colorbar": {"title": {"text": metric}, "thickness": 12},
    }


def _marks(matrix: AlignmentMatrix, tau: float, legend: bool) -> list[go.Scatter]:
    """The rectangle of the abstraction phase, and a dot at the best textual layer of each visual one."""
    marks = []
    phase = matrix.phase(tau)
    if phase is not None:
        first, last = phase.start - 0.5, phase.stop - 0.5
        marks.append(
            go.Scatter(
                x=[first, last, last, first, first],
                y=[first, first, last, last, first],
                mode="lines",
                line={"color": MARK, "width": 2.5},
                name=f"abstraction phase (diagonal at least {tau:g} of its maximum)",
                legendgroup="phase",
                showlegend=legend,
                hoverinfo="skip",
            )
        )
    best = matrix.bypass().best.tolist()
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
