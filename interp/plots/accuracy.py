"""Answers right by kind of question: a point with its interval for each model, one panel for each modality.

The grey mark under each kind is what its most common answer alone would get; a point is worth something above it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.theme import CHANCE, COLOURS, TEMPLATE, label, numbers

if TYPE_CHECKING:
    import pandas as pd


def accuracy_figure(frame: pd.DataFrame, title: str = "Questions answered rightly", height: int = 400) -> go.Figure:
    """A frame of `interp.toy.evaluate`, or several of them on top of each other, by kind, modality and model."""
    modalities, models = list(dict.fromkeys(frame["modality"])), list(dict.fromkeys(frame["model"]))
    figure = make_subplots(
        rows=1,
        cols=len(modalities),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[f"from {label(m)}" for m in modalities],
    )
    kinds = list(dict.fromkeys(frame["kind"]))
    for column, modality in enumerate(modalities, start=1):
        here = frame[frame["modality"] == modality]
        levels = here.drop_duplicates("kind").set_index("kind")["chance"]
        figure.add_scatter(
            x=[kinds.index(kind) for kind in levels.index],
            y=numbers(levels),
            mode="markers",
            marker={"symbol": "line-ew", "size": 26, "line": {"width": 3, "color": CHANCE}},
            name="most common answer",
            legendgroup="chance",
            showlegend=column == 1,
            hovertemplate="most common answer: %{y:.1%}<extra></extra>",
            row=1,
            col=column,
        )
        for index, model in enumerate(models):
            part = here[here["model"] == model]
            shift = 0.24 * (index - (len(models) - 1) / 2)
            figure.add_scatter(
                x=[kinds.index(kind) + shift for kind in part["kind"]],
                y=numbers(part["accuracy"]),
                error_y={
                    "type": "data",
                    "array": numbers(part["high"] - part["accuracy"]),
                    "arrayminus": numbers(part["accuracy"] - part["low"]),
                    "width": 3,
                },
                mode="markers",
                marker={"size": 9, "color": COLOURS[index], "symbol": ("circle", "diamond", "square")[index % 3]},
                name=label(model),
                legendgroup=str(index),
                showlegend=column == 1,
                customdata=[[label(kind), int(n)] for kind, n in zip(part["kind"], part["n"], strict=True)],
                hovertemplate=f"{label(model)}<br>%{{customdata[0]}}: %{{y:.1%}} (n = %{{customdata[1]}})<extra></extra>",
                row=1,
                col=column,
            )
    figure.update_layout(template=TEMPLATE, height=height, title={"text": title}, margin={"t": 96}, legend={"y": 1.07})
    figure.update_xaxes(tickvals=list(range(len(kinds))), ticktext=[label(kind) for kind in kinds], showgrid=False)
    figure.update_yaxes(range=[-0.03, 1.05], tickformat=".0%")
    return figure
