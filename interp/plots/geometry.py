"""Results about one cloud or a pair of clouds, drawn beside their controls.

The gap between two clouds beside the same numbers of shuffled pairs, a correlation by dimension in the histogram of its
shuffles, the peak of a cluster above its densest saddle, learnt weights beside those fitted to shuffled rows. Measures over
depth are drawn in `interp.plots.comparison`, dimensions in `interp.plots.dimension`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots.series import Series, series_figure
from interp.plots.theme import CHANCE, COLOURS, MARK, TEMPLATE, PageFigure, fit_title, label, new_figure, numbers

if TYPE_CHECKING:
    from interp.geometry import Density, FeatureWeights, IdCorrelation, ModalityGap, Peaks, PoolSizes

_MOST = 24  # bars, or clusters with their sizes written out


def gap_figure(result: ModalityGap, title: str | None = None, height: int = 340) -> go.Figure:
    """The numbers of a modality gap, one a row, with their standard errors; grey marks are their controls.

    The bar of the cosine of all pairs goes from quartile to quartile. The distance of the centres is in units of the spread.
    """
    named = {
        "separability": (result.separability, result.separability_error, 0.5, "chance"),
        "centre distance / spread": (result.centroid_relative, None, result.centroid_chance, "exchanged in pairs"),
        "corrected cosine": (result.corrected_cosine, result.corrected_error, 0.0, "unrelated pairs"),
        "cosine of all pairs": (result.all_pairs[1], None, None, ""),
        f"cosine of pairs (p {result.p:.2g})": (result.paired_cosine, None, result.shuffled_cosine, "shuffled pairs"),
    }
    figure = new_figure(title or f"Modality gap of {result.n} pairs", "value", "", height)
    low, middle, high = result.all_pairs
    figure.add_scatter(
        x=[middle],
        y=["cosine of all pairs"],
        error_x={"type": "data", "array": [high - middle], "arrayminus": [middle - low], "thickness": 6, "width": 0},
        mode="markers",
        marker={"size": 1, "color": COLOURS[0]},
        opacity=0.35,
        hoverinfo="skip",
        showlegend=False,
    )
    controlled = {name: each for name, each in named.items() if each[2] is not None}
    figure.add_scatter(
        x=[each[2] for each in controlled.values()],
        y=list(controlled),
        mode="markers",
        name="control",
        marker={"size": 14, "symbol": "line-ns", "line": {"color": CHANCE, "width": 3}},
        customdata=[each[3] for each in controlled.values()],
        hovertemplate="%{y}, %{customdata}: %{x:.3f}<extra></extra>",
    )
    figure.add_scatter(
        x=numbers(each[0] for each in named.values()),
        y=list(named),
        error_x={"type": "data", "array": [each[1] for each in named.values()], "thickness": 1.4, "width": 4},
        mode="markers",
        name="value",
        marker={"size": 9, "color": COLOURS[0]},
        hovertemplate="%{y}: %{x:.3f}<extra></extra>",
    )
    figure.update_yaxes(categoryorder="array", categoryarray=list(named))
    figure.add_vline(x=0, line={"color": CHANCE, "width": 1})
    return figure


def pooling_figure(result: PoolSizes, title: str | None = None, height: int = 380) -> go.Figure:
    """The likeness of two modalities at each state, a line for each number of tokens that an example is the mean of. Rings are
    states outside the phase, the dashed line is the chance level."""
    inside = [[state in (result.phase(size) or ()) for state in range(result.values.shape[1])] for size in result.sizes]
    lines = {
        f"{size} tokens" if size else "all ({:.3g} and {:.3g})".format(*result.pooled): Series(
            result.values[at], result.low[at], result.high[at], hollow=[not each for each in inside[at]]
        )
        for at, size in enumerate(result.sizes)
    }
    title = title or "Likeness by number of pooled tokens"
    return series_figure(lines, title, result.metric, chance=float(result.chance.mean()), height=height)


def correlation_figure(result: IdCorrelation, title: str | None = None, height: int = 340) -> go.Figure:
    """The correlation by dimension (line) in the histogram of its values for shuffled rows, whose centre is not 0."""
    p = "no shuffles" if result.p != result.p else f"p {result.p:.2g}, {len(result.null)} shuffles"
    figure = new_figure(
        title or f"Correlation by dimension {result.value:.2f} ({p})",
        f"({result.d_x:.1f} + {result.d_y:.1f} - d of both) / {max(result.d_x, result.d_y):.1f}",
        "shuffles",
        height,
    )
    figure.add_histogram(
        x=numbers(result.null),
        name="rows shuffled",
        marker={"color": CHANCE},
        showlegend=True,
        hovertemplate="%{x}: %{y} shuffles<extra></extra>",
    )
    figure.add_vline(
        x=result.value,
        line={"color": MARK, "width": 2.5},
        name=f"as paired (d of both {result.d_joint:.1f})",
        showlegend=True,
    )
    return figure


def peaks_figure(result: Peaks, title: str | None = None, height: int = 380) -> go.Figure:
    """Each cluster as a stick from its densest saddle (ring) to its peak (filled); a longer stick is stronger evidence.

    Bars are the errors of the densities. A cluster that touches no other has no stick. A few clusters have their sizes beside
    them.
    """
    frame = result.to_frame()
    count = len(frame)
    clusters = "1 cluster" if count == 1 else f"{count} clusters"
    figure = new_figure(
        title or f"{clusters} at z = {result.z:g}, volumes in {result.dimension:.1f} dimensions",
        "cluster",
        "log density",
        height,
    )
    touching = frame[frame["neighbor"] >= 0]
    errors = [result.border_errors[row, other] for row, other in zip(touching.cluster, touching.neighbor, strict=True)]
    figure.add_scatter(
        x=[place for cluster in touching["cluster"] for place in (cluster, cluster, None)],
        y=[at for row in touching.itertuples() for at in (row.saddle, row.log_density, None)],
        mode="lines",
        line={"color": COLOURS[0], "width": 4},
        opacity=0.35,
        hoverinfo="skip",
        showlegend=False,
    )
    figure.add_scatter(
        x=touching["cluster"].tolist(),
        y=numbers(touching["saddle"]),
        error_y={"type": "data", "array": numbers(errors), "thickness": 1.2, "width": 3},
        mode="markers",
        name="densest saddle",
        marker={"size": 9, "color": COLOURS[1], "symbol": "circle-open"},
        customdata=touching[["neighbor", "z"]].to_numpy().tolist(),
        hovertemplate="cluster %{x} to %{customdata[0]}: %{y:.2f}, %{customdata[1]:.1f} errors down<extra></extra>",
    )
    figure.add_scatter(
        x=frame["cluster"].tolist(),
        y=numbers(frame["log_density"]),
        error_y={"type": "data", "array": numbers(frame["error"]), "thickness": 1.2, "width": 3},
        mode="markers+text" if count <= _MOST else "markers",
        text=[f"n = {size}" for size in frame["size"]],
        textposition="middle right",
        name="peak",
        marker={"size": 9, "color": COLOURS[0]},
        customdata=frame[["size", "centre"]].to_numpy().tolist(),
        hovertemplate="cluster %{x}: %{y:.2f}, %{customdata[0]} examples about %{customdata[1]}<extra></extra>",
    )
    figure.update_xaxes(dtick=1 if count <= _MOST else None, range=[-0.5, count - 0.3])
    return figure


def density_figure(result: Density, title: str | None = None, height: int = 340) -> go.Figure:
    """The log density of all examples, densest first, with their errors; only differences have a meaning."""
    order = result.values.argsort(descending=True)
    values, errors = result.values[order], result.errors[order]
    figure = new_figure(
        title or f"Log density ({label(result.method)}), volumes in {result.dimension:.1f} dimensions",
        "examples, densest first",
        "log density",
        height,
    )
    figure.add_scatter(
        x=list(range(len(order))),
        y=numbers(values),
        error_y={"type": "data", "array": numbers(errors), "thickness": 0.8, "width": 0, "color": CHANCE},
        mode="markers",
        marker={"size": 4, "color": COLOURS[0]},
        customdata=[list(pair) for pair in zip(order.tolist(), result.neighbors[order].tolist(), strict=True)],
        hovertemplate="example %{customdata[0]}: %{y:.2f} ± %{error_y.array:.2f} (%{customdata[1]} neighbours)<extra></extra>",
    )
    return figure


def weights_figure(result: FeatureWeights, title: str | None = None, height: int = 380) -> go.Figure:
    """The heaviest features, and the imbalance on the examples of the fit, step by step.

    Dotted levels are on held-out examples: with the weights at the end, with those at the start, and with weights fitted to
    shuffled rows (their mean). In a good fit the first is far below the other two.
    """
    frame = result.to_frame()[:_MOST]
    shuffled = float(result.shuffled.mean())
    figure = make_subplots(1, 2, figure=PageFigure(), column_widths=[0.45, 0.55], horizontal_spacing=0.1)
    text = title or f"Weights: imbalance {result.start:.3f} to {result.held_out:.3f} (shuffled {shuffled:.3f})"
    figure.update_layout(template=TEMPLATE, height=height, title={"text": text})
    figure.add_bar(
        x=[str(feature) for feature in frame["feature"]],
        y=numbers(frame["weight"]),
        marker={"color": COLOURS[0]},
        showlegend=False,
        hovertemplate="feature %{x}: %{y:.3f}<extra></extra>",
        row=1,
        col=1,
    )
    end = max(1, len(result.path) - 1)
    lines = {
        "fitted to": (list(range(len(result.path))), numbers(result.path), COLOURS[0], "solid"),
        "held out": ([0, end], [result.held_out] * 2, COLOURS[1], "dot"),
        "held out, at the start": ([0, end], [result.start] * 2, COLOURS[2], "dot"),
        "held out, shuffled": ([0, end], [shuffled] * 2, CHANCE, "dot"),
    }
    for name, (x, y, colour, dash) in lines.items():
        line, hover = {"color": colour, "dash": dash, "width": 2}, f"{name}, step %{{x}}: %{{y:.4f}}<extra></extra>"
        figure.add_scatter(x=x, y=y, mode="lines", name=name, line=line, hovertemplate=hover, row=1, col=2)
    figure.update_xaxes(title_text="feature", type="category", row=1, col=1)
    figure.update_yaxes(title_text="weight (largest 1)", row=1, col=1)
    figure.update_xaxes(title_text="step", row=1, col=2)
    figure.update_yaxes(title_text="imbalance", rangemode="tozero", row=1, col=2)
    return fit_title(figure)
