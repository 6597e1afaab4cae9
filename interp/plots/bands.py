"""Bands of layers, drawn: what each keeps of full tuning, and what it does to text.

One panel has the score of each band as a share of full tuning, and where questions without a picture were asked, a second one
what is left of the untuned model's score on them. Points have the 95 % intervals of `BandComparison`, over other questions and
other seeds. A ring is a band whose interval does not decide whether it is inferior. The dotted line is what everything is a
share of, and the dashed one the untuned model: a band shows something only above it. Layers, verdicts and costs appear on
hovering.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.theme import CHANCE, COLOURS, TEMPLATE, PageFigure, fit_title, label, markers, numbers

if TYPE_CHECKING:
    import pandas as pd

    from interp.tuning import BandComparison

_BYTES = {"gradient_bytes": "gradients", "optimizer_bytes": "optimizer", "activation_bytes": "activations"}


def bands_figure(
    result: BandComparison,
    kinds: Iterable[str] | str | None = None,
    margin: float = 0.95,
    title: str = "Tuning a band of layers",
    height: int = 420,
) -> go.Figure:
    """The score of each band as a share of full tuning, on questions of these `kinds`, and its text retention."""
    frame = result.table(kinds, margin).set_index("band")
    untuned, frame = float(frame["of_full"]["untuned"]), frame.iloc[:-2]
    panels = [("of_full", "score, of full tuning", "verdict")]
    if result.text is not None:
        panels.append(("text_kept", "text, of the untuned model", "text_verdict"))
    figure = make_subplots(1, len(panels), figure=PageFigure(), subplot_titles=[name for _, name, _ in panels])
    names = [label(name) for name in frame.index]
    for column, (value, _, verdict) in enumerate(panels, start=1):
        figure.add_scatter(
            x=names,
            y=numbers(frame[value]),
            error_y={
                "type": "data",
                "array": numbers(frame[f"{value}_high"] - frame[value]),
                "arrayminus": numbers(frame[value] - frame[f"{value}_low"]),
                "width": 4,
            },
            mode="markers",
            marker=markers(COLOURS[column - 1], frame[verdict] == "undecided", size=10),
            customdata=[_details(row, value) for _, row in frame.iterrows()],
            hovertemplate="%{x}: %{y:.1%}%{customdata}<extra></extra>",
            showlegend=False,
            row=1,
            col=column,
        )
        figure.add_hline(y=1, line={"color": CHANCE, "dash": "dot", "width": 1.5}, row=1, col=column)
    figure.add_hline(
        y=untuned,
        line={"color": CHANCE, "dash": "dash", "width": 1.5},
        annotation={"text": f"untuned {untuned:.1%}", "font": {"color": CHANCE, "size": 11}},
        annotation_position="bottom right",
        row=1,
        col=1,
    )
    seeds = len(result.seeds)
    heading = f"{title} (95 % over questions and {seeds} seeds)" if seeds > 1 else f"{title} (one seed)"
    figure.update_layout(template=TEMPLATE, height=height, title={"text": heading}, margin={"t": 96})
    figure.update_yaxes(tickformat=".0%")
    return fit_title(figure)


def _details(row: pd.Series, value: str) -> str:
    """The interval, the layers, the verdict and the costs of a band, for hovering."""
    lines = [f" [{row[f'{value}_low']:.1%}, {row[f'{value}_high']:.1%}]", f"layers {label(row['layers'], 60)}"]
    verdict = row["verdict" if value == "of_full" else "text_verdict"]
    lines += [verdict] if verdict else []
    costs = {"time": row["time"], "operations": row["flops"]}
    lines += [f"{name} of a step {share:.0%} of full" for name, share in costs.items() if not math.isnan(share)]
    lines.append(", ".join(f"{name} {_size(row[column])}" for column, name in _BYTES.items()))
    return "<br>".join(lines)


def _size(count: Any) -> str:
    """A number of bytes in words: 3.2 MB."""
    if math.isnan(count):
        return "unknown"
    power = min(int(math.log10(max(count, 1)) // 3), 4)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
