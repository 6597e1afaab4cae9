"""States in words, drawn: the words of a decomposition, the heads of a concept, a projector, the ranks of visual tokens.

Each figure shows its number beside what to compare it with: vectors turned at random, other lists of words, a random map,
uniform codes.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from interp.arguments import checked_choice
from interp.plots.readouts import around_zero, head_map
from interp.plots.theme import CHANCE, COLOURS, label, new_figure, numbers

if TYPE_CHECKING:
    from interp.words import DecompositionResult, HeadResult, ProjectorResult, TokenStats

_MOST_WORDS = 24


def decomposition_figure(result: DecompositionResult, title: str | None = None, height: int = 380) -> go.Figure:
    """The most frequent words, by the number of vectors that have them. The title says what they explain, and what random
    dictionaries explain where any were drawn. Tokens with the same text, up to a space before it, are one word."""
    words = (dict.fromkeys(result.words(vector)) for vector in range(len(result.ids)))
    counts = Counter(chain.from_iterable(words)).most_common(_MOST_WORDS)
    random = "" if math.isnan(result.chance) else f", turned at random {result.chance:.1%}"
    titled = title or f"Words taken: {float(result.explained.nanmean()):.1%} explained{random}"
    figure = new_figure(titled, "word", "vectors", height)
    figure.add_bar(
        x=[label(word) for word, _ in counts],
        y=[count for _, count in counts],
        marker={"color": COLOURS[0]},
        hovertemplate="%{x}: %{y} vectors<extra></extra>",
    )
    figure.update_xaxes(type="category")  # plotly would put a word such as "3" on an axis of numbers
    return figure


def pursuit_figure(result: HeadResult, title: str | None = None, height: int = 380) -> go.Figure:
    """Layers by heads: what the concept's words explain beyond matched ones. Hovering shows score, null, p and words."""
    heads = range(result.scores.shape[1])

    def details(at: int, head: int) -> str:
        if head >= len(result.words[at]):
            return ""
        score, null, p = (float(each[at, head]) for each in (result.scores, result.null, result.p))
        return (
            f"score {score:.3f}, matched words {null:.3f}, p {p:.3f}<br>{label(' '.join(result.words[at][head]), 60)}"
        )

    return head_map(
        title or f"Heads that write {label(' '.join(result.concept), 40)}",
        heads,
        result.layers,
        height,
        **around_zero(numbers(result.margin)),
        customdata=[[details(at, head) for head in heads] for at in range(len(result.layers))],
        colorbar={"title": {"text": "beyond<br>random"}, "thickness": 10},
        hovertemplate="layer %{y}, head %{x}: %{z:.3f}<br>%{customdata}<extra></extra>",
    )


def projector_figure(
    result: ProjectorResult, measure: str = "participation", title: str | None = None, height: int = 380
) -> go.Figure:
    """One measure ("entropy", "participation" or "kept") of the patches before and after the projector, and after a random
    map to the same width. Raises `InputError` for another measure."""
    names = {"entropy": "spectral entropy (nats)", "participation": "participation ratio", "kept": "neighbours kept"}
    name = names[checked_choice(measure, "measure", names)]
    figure = new_figure(title or f"Through the projector: {name}", "", name, height)
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
    """The frequency of each code over its rank, both in log; the dotted line is that of equal frequencies."""
    counts = numbers(result.counts)
    titled = (
        title or f"Visual tokens by rank: exponent {result['zipf']:.2f}, uniform codes {float(result.uniform[0]):.2f}"
    )
    figure = new_figure(titled, "rank of the code", "frequency", height)
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
