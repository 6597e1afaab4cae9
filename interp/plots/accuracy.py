"""Accuracies, drawn: of probes over depth, and of answers by kind of question. Each is drawn with its chance level.

*Probes*: the accuracy with its interval, the same probe on shuffled labels (dashed), and chance (dotted). A ring marks a state
that is not beyond luck among all states: in more than one of twenty permutations of the test labels some state agrees with its
probe as well (`p_family`). Where the split tears apart what belongs together, a long-dashed line is the accuracy on labels
shuffled by group: what recognising a picture is worth. Where examples have types, a line of dashes and dots is the
accuracy on labels drawn for each type, and selectivity is the distance to it. A *change* of two probes is drawn with its
interval; a ring is a state at which it may be luck (`p_holm` above .05).

*Answers*: a point with its interval for each model, one panel for each modality. The grey mark under each kind is the
accuracy of its most common answer alone; only a point above it shows something.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.series import Series, series_figure
from interp.plots.theme import CHANCE, COLOURS, TEMPLATE, PageFigure, fit_title, label, numbers

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from interp.probes import ProbeChange, ProbeResult

_LEVEL = 0.05


def probe_figure(
    results: ProbeResult | Mapping[str, ProbeResult], title: str = "Linear probes", height: int = 400
) -> go.Figure:
    """The accuracy of one probe over depth, or of several, with their names, in one figure."""
    probes = dict(results) if isinstance(results, Mapping) else {"accuracy": results}
    series: dict[str, Series] = {}
    levels: dict[str, list[str]] = {}  # results with the same chance level share a line
    for index, (name, result) in enumerate(probes.items()):
        colour = COLOURS[index % len(COLOURS)]
        series[name] = Series(
            values=result.accuracy,
            low=result.low,
            high=result.high,
            control=result.control,
            places=[f"state {state}{_details(result, state)}" for state in range(len(result.accuracy))],
            colour=colour,
            hollow=_rings(result.p if result.p_family is None else result.p_family),
        )
        if result.group_control is not None and not _equal(result.group_control, result.control):
            by_group = Series(values=result.group_control, colour=colour, dash="longdash")
            series[f"{name}, labels shuffled by group"] = by_group
        if result.control_task is not None:
            series[f"{name}, control task"] = Series(values=result.control_task, colour=colour, dash="dashdot")
        levels.setdefault(f"{result.chance:.6g}", []).append(name)
    shared = len(levels) == 1
    chance = {"chance" if shared else f"chance ({', '.join(names)})": float(level) for level, names in levels.items()}
    return series_figure(series, title, "accuracy on held-out groups", chance=chance, y_range=(0, 1.03), height=height)


def probe_change_figure(
    result: ProbeChange, title: str = "Linear probes, paired by example", height: int = 400
) -> go.Figure:
    """How much more often the probe of each state is right, on the same test examples, with its interval."""
    places = [
        f"state {state} (p {p:.2g}, of all states {q:.2g})"
        for state, (p, q) in enumerate(zip(result.p, result.p_holm, strict=True))
    ]
    change = Series(result.difference, result.low, result.high, places=places, hollow=_rings(result.p_holm))
    return series_figure({"change": change}, title, "change of the accuracy", chance={"no change": 0.0}, height=height)


def _rings(p: Tensor | None) -> list[bool] | None:
    return None if p is None else [not float(each) <= _LEVEL for each in p]


def _equal(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and bool((one == other).all())


def _details(result: ProbeResult, state: int) -> str:
    """The p and the selectivity of a state, for hovering, where there are any."""
    columns = {"p": result.p, "of all states": result.p_family, "selectivity": result.selectivity}
    details = [f"{name} {float(column[state]):.2g}" for name, column in columns.items() if column is not None]
    return f" ({', '.join(details)})" if details else ""


def accuracy_figure(frame: pd.DataFrame, title: str = "Questions answered rightly", height: int = 400) -> go.Figure:
    """A frame of `interp.toy.evaluate`, or several of them concatenated, by kind, modality and model."""
    modalities, models = list(dict.fromkeys(frame["modality"])), list(dict.fromkeys(frame["model"]))
    figure = make_subplots(
        figure=PageFigure(),
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
    return fit_title(figure)
