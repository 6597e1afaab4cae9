"""States in words, drawn: what k words explain, which heads write a concept, what a projector does, how codes are spread.

Each figure shows the number beside what it is read against: random dictionaries, random lists of words, a random map,
uniform codes.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from interp.errors import InputError
from interp.plots.theme import CHANCE, COLOURS, EFFECT_SCALE, label, new_figure, numbers

if TYPE_CHECKING:
    from interp.lens import DecompositionResult, HeadResult, ProjectorResult, TokenStats

_MOST_WORDS = 24


def decomposition_figure(result: DecompositionResult, title: str | None = None, height: int = 380) -> go.Figure:
    """The words that were taken most, by the number of vectors that took them; the title says what they explain, beside
    random dictionaries where any were drawn. Tokens that read alike, as one with a space before it does, are one word."""
    vectors = range(len(result.ids))
    taken = Counter(word for vector in vectors for word in dict.fromkeys(result.words(vector))).most_common(_MOST_WORDS)
    drawn = "" if math.isnan(result.chance) else f", random dictionaries {result.chance:.1%}"
    titled = title or f"Words taken: {float(result.explained.nanmean()):.1%} explained{drawn}"
    figure = new_figure(titled, "word", "vectors", height)
    figure.add_bar(
        x=[label(word) for word, _ in taken],
        y=[count for _, count in taken],
        marker={"color": COLOURS[0]},
        hovertemplate="%{x}: %{y} vectors<extra></extra>",
    )
    return figure


def pursuit_figure(result: HeadResult, title: str | None = None, height: int = 380) -> go.Figure:
    """Layers by heads, in the colour of what the concept's words explain beyond random ones; hovering shows score, null,
    p and words."""
    margins = numbers(result.margin)
    largest = max((abs(value) for row in margins for value in row if value is not None), default=0) or 1
    hover = [
        [
            f"score {float(result.scores[at, head]):.3f}, random words {float(result.null[at, head]):.3f}, "
            f"p {float(result.p[at, head]):.3f}<br>{label(' '.join(words), 60)}"
            for head, words in enumerate(result.words[at])
        ]
        + [""] * (result.scores.shape[1] - len(result.words[at]))
        for at in range(len(result.layers))
    ]
    concept = label(" ".join(result.concept), 40)
    figure = new_figure(title or f"Heads that write {concept}", "head", "layer", height)
    figure.add_heatmap(
        z=margins,
        y=[str(layer) for layer in result.layers],
        x=[str(head) for head in range(result.scores.shape[1])],
        customdata=hover,
        zmin=-largest,
        zmax=largest,
        colorscale=EFFECT_SCALE,
        colorbar={"title": {"text": "beyond<br>random"}, "thickness": 10},
        hovertemplate="layer %{y}, head %{x}: %{z:.3f}<br>%{customdata}<extra></extra>",
    )
    figure.update_yaxes(type="category")
    figure.update_xaxes(type="category")
    return figure


def projector_figure(
    result: ProjectorResult, measure: str = "participation", title: str | None = None, height: int = 380
) -> go.Figure:
    """One measure ("entropy", "participation" or "kept") of the patches before and after the projector, and after a random
    map to the same width. Raises `InputError` for another measure."""
    if measure not in ("entropy", "participation", "kept"):
        raise InputError(f"measure={measure!r}: expected 'entropy', 'participation' or 'kept'")
    named = {"entropy": "spectral entropy (nats)", "participation": "participation ratio", "kept": "neighbours kept"}
    figure = new_figure(title or f"Through the projector: {named[measure]}", "", named[measure], height)
    figure.add_bar(
        x=["before", "after", "random map"],
        y=numbers(getattr(result, measure)),
        marker={"color": [COLOURS[0], COLOURS[1], CHANCE]},
        hovertemplate="%{x}: %{y:.4g}<extra></extra>",
    )
    if measure == "kept":
        figure.add_hline(
            y=result.kept_chance,
            line={"color": CHANCE, "dash": "dot"},
            annotation={"text": f"chance {result.kept_chance:.3g}"},
        )
    return figure


def tokens_figure(result: TokenStats, title: str | None = None, height: int = 380) -> go.Figure:
    """How often each code comes, over its rank, both in log; the dotted line is what equal frequencies would be."""
    counts = numbers(result.counts)
    titled = (
        title or f"Visual tokens by rank: exponent {result['zipf']:.2f}, uniform codes {float(result.uniform[0]):.2f}"
    )
    figure = new_figure(titled, "rank of the code", "times it comes", height)
    figure.add_scatter(
        x=list(range(1, len(counts) + 1)),
        y=counts,
        mode="lines+markers",
        line={"color": COLOURS[0]},
        marker={"size": 4},
        hovertemplate="rank %{x}: %{y}<extra></extra>",
    )
    equal = sum(counts) / len(counts)
    figure.add_scatter(
        x=[1, len(counts)],
        y=[equal, equal],
        mode="lines",
        line={"color": CHANCE, "dash": "dot"},
        hovertemplate="equal frequencies: %{y:.4g}<extra></extra>",
    )
    figure.update_layout(showlegend=False)
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    return figure
