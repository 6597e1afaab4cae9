"""A training: its loss, step by step, and where the time of a step goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.theme import COLOURS, TEMPLATE, PageFigure, numbers

if TYPE_CHECKING:
    from interp.tuning import TuneResult

_PHASES = ("forward", "backward", "optimizer")


def tuning_figure(result: TuneResult, title: str | None = None, height: int = 480) -> go.Figure:
    """The loss of each step, and below it the seconds of its forward pass, its backward pass and the optimiser, as areas on
    each other. A step that was counted, and so not timed, is a gap."""
    steps = list(range(1, len(result.loss) + 1))
    figure = make_subplots(2, 1, figure=PageFigure(), shared_xaxes=True, vertical_spacing=0.08, row_heights=[0.6, 0.4])
    words = f"{result.trained_parameters:,} parameters trained, {result.frozen_parameters:,} frozen"
    figure.update_layout(template=TEMPLATE, height=height, title={"text": title or f"Training: {words}"})
    rates = [[rate] for rate in numbers(result.rate)]
    lines = {"loss": result.loss}
    if bool((result.extra_loss != 0).any()):
        lines = {"loss": result.loss, "of this, the extra loss": result.extra_loss}
    for index, (name, values) in enumerate(lines.items()):
        figure.add_scatter(
            x=steps,
            y=numbers(values),
            mode="lines" if len(steps) > 1 else "markers",
            name=name,
            line={"color": COLOURS[index], "width": 1.8},
            customdata=rates,
            hovertemplate="step %{x}: %{y:.4g}<br>learning rate %{customdata[0]:.3g}<extra></extra>",
            row=1,
            col=1,
        )
    for place, name in enumerate(_PHASES):
        figure.add_scatter(
            x=steps,
            y=numbers(result.seconds[:, place]),
            mode="lines",
            stackgroup="seconds",
            stackgaps="infer zero",
            name=name,
            line={"color": COLOURS[place + 2], "width": 1},
            hovertemplate=f"step %{{x}}, {name}: %{{y:.3g}} s<extra></extra>",
            row=2,
            col=1,
        )
    figure.update_yaxes(title_text="loss", row=1, col=1)
    figure.update_yaxes(title_text="seconds", rangemode="tozero", row=2, col=1)
    figure.update_xaxes(title_text="step", row=2, col=1)
    return figure
