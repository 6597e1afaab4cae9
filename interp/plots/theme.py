"""One look for all figures, and safe text in them.

Colours are those of Okabe and Ito, which people with any kind of colour vision can tell apart. An effect, which has a sign,
is drawn on a scale from blue through white to vermilion, with white at 0. plotly reads text as a small dialect of HTML, so
a token such as ``<image>`` would disappear from an axis: every string that comes from data goes through `label`.
"""

from __future__ import annotations

import html
import importlib
import re
import textwrap
import unicodedata
import webbrowser
from collections.abc import Iterable
from typing import Any

import plotly.graph_objects as go
import plotly.io

from interp.displays.hypertext import figure_html

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ec"
CHANCE = "#8a94a0"
EFFECT_SCALE = [(0.0, "#053e6b"), (0.25, "#5a9bc9"), (0.5, "#ffffff"), (0.75, "#f0a06a"), (1.0, "#a33c00")]
AMOUNT_SCALE = [(0.0, "#f7f9fb"), (0.35, "#a9cbe3"), (0.7, "#3b82b5"), (1.0, "#08325c")]
MARK = "#D55E00"
LONGEST_LABEL = 24
# plotly draws a figure 700 pixels wide if nobody says how wide, of which margins take 80; a letter of a title takes some 8.5.
LONGEST_TITLE = 72
# The height of a line of a title, in pixels.
_LINE = 20
# The renderers that plotly chooses by itself in notebooks.
_AUTOMATIC = ("plotly_mimetype", "plotly_mimetype+notebook", "vscode")

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": list(COLOURS),
        "title": {
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 12},
            "font": {"size": 15},
        },
        "margin": {"l": 64, "r": 16, "t": 76, "b": 56},
        "modebar": {"bgcolor": "rgba(255,255,255,0)", "color": "#c3cbd3", "activecolor": MUTED},
        "hoverlabel": {"align": "left", "bgcolor": "white", "font": {"color": INK}},
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.0, "xanchor": "left", "x": 0.0},
        "xaxis": {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "ticks": "outside", "automargin": True},
        "yaxis": {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "ticks": "outside", "automargin": True},
    }
)


def label(text: Any, longest: int = LONGEST_LABEL) -> str:
    """A string from data in a form that plotly can show: escaped, control characters visible, shortened to `longest`.

    >>> label("<image>")
    '&lt;image&gt;'
    """
    visible = "".join(_visible(character) for character in str(text))
    if len(visible) > longest:
        visible = visible[: longest - 1] + "…"
    return html.escape(visible, quote=False)


def _visible(character: str) -> str:
    if character in "\n\u010a":
        return "⏎"
    # Byte-level and sentencepiece tokenizers write a leading space as one of these.
    if character in "\t\u0120\u2581":
        return " "
    return "·" if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co") else character


def mean_of(count: int, what: str = "row") -> str:
    """Of how many a mean is: nothing to say for a single one.

    >>> mean_of(50, "pair"), mean_of(1)
    ('mean of 50 pairs', '1 row')
    """
    return f"1 {what}" if count == 1 else f"mean of {count} {what}s"


class PageFigure(go.Figure):
    """A plotly figure that shows itself in notebooks and in what nbconvert writes of them.

    plotly's own default there is a form that nbconvert leaves out. Whoever sets ``plotly.io.renderers.default`` gets that.
    """

    def __repr__(self) -> str:
        title = (self.layout.title.text or "").replace("<br>", " ")
        return f"{type(self).__name__}({title!r}; .show() opens it, interp.plots.save_figure writes it to a file)"

    def _repr_html_(self) -> str:
        return figure_html(self)

    def _repr_mimebundle_(self, *args: Any, **options: Any) -> Any:
        if plotly.io.renderers.default in _AUTOMATIC:
            return {"text/html": self._repr_html_(), "text/plain": repr(self)}
        return super()._repr_mimebundle_(*args, **options)

    def _ipython_display_(self) -> None:
        if plotly.io.renderers.default not in _AUTOMATIC:
            try:
                super()._ipython_display_()
            except webbrowser.Error:  # a terminal on a machine without one, where a prompt asks for it unasked
                print(repr(self))
            return
        # Whoever asks for a display has IPython, which this package itself does not need.
        importlib.import_module("IPython.display").display(self._repr_mimebundle_(), raw=True)


def fit_title(figure: go.Figure) -> go.Figure:
    """The figure with its title broken into lines that fit the width that plotly gives a figure by default.

    A title is not broken by plotly, and a picture in a file loses its end.
    """
    title = figure.layout.title.text or ""
    lines = wrapped(title).split("<br>")
    more = max(0, len(lines) - max(2, title.count("<br>") + 1))
    if len(lines) > title.count("<br>") + 1:
        figure.update_layout(title={"text": "<br>".join(lines)})
    if more:
        # Two lines fit into the margin at the top.
        top, height = figure.layout.margin.t or TEMPLATE.layout.margin.t, figure.layout.height
        figure.update_layout(margin={"t": top + _LINE * more})
        figure.update_layout(height=None if height is None else height + _LINE * more)
    return figure


def wrapped(title: str, longest: int = LONGEST_TITLE) -> str:
    """A title in lines of at most `longest` characters.

    >>> wrapped("one two three", longest=8)
    'one two<br>three'
    """
    lines = []
    for line in title.split("<br>"):
        # An entity such as "&lt;" is one character: a private one stands for it while the lines are made.
        entities = list(dict.fromkeys(re.findall(r"&\w+;", line)))
        for number, entity in enumerate(entities):
            line = line.replace(entity, chr(0xE000 + number))
        for part in textwrap.wrap(line, longest) or [""]:
            for number, entity in enumerate(entities):
                part = part.replace(chr(0xE000 + number), entity)
            lines.append(part)
    return "<br>".join(lines)


def new_figure(title: str, x: str, y: str, height: int = 380) -> go.Figure:
    """An empty figure in the shared look. The title and the axis titles are not escaped: they must not come from data."""
    figure = PageFigure(layout={"template": TEMPLATE, "height": height, "title": {"text": title}})
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y)
    return fit_title(figure)


def numbers(values: Iterable[Any]) -> list[Any]:
    """A tensor, array or list as (nested) lists of floats. NaN becomes None, which plotly draws as a gap."""
    plain = values.tolist() if hasattr(values, "tolist") else list(values)
    return [_plain(value) for value in plain]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    number = float(value)
    return None if number != number else number


def markers(colour: str, hollow: Iterable[bool], size: int = 7) -> dict[str, Any]:
    """The markers of a line in its colour. `hollow` ones are rings, filled with white so that error bars end at them."""
    inside = ["white" if ring else colour for ring in hollow]
    return {"size": size, "color": inside, "line": {"color": colour, "width": 1.8}}


def translucent(colour: str, opacity: float) -> str:
    """The colour ``#rrggbb`` with an opacity, for bands behind a line."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"
