"""Pieces of HTML for notebooks: escaped text, tables, small pictures and figures.

Everything that comes from data is escaped. Colours are translucent or inherited, so that a piece can be read on a light and
on a dark page, and styles stand in the elements, since notebooks take ``<style>`` away from what they do not trust.

*Figures.* plotly's own HTML repeats its library of several megabytes in each cell. Here the first figure of a kernel
brings it, and the page keeps it for all others. It is part of the notebook, so that figures show in JupyterLab, in VS Code and
in what nbconvert writes, without a network. A page that does not have it, as after its cell was deleted, asks plotly's server.
"""

from __future__ import annotations

import base64
import html
import io
import sys
from collections.abc import Iterable, Sequence
from typing import Any
from uuid import uuid4

_FONT = "font-family:system-ui,sans-serif;font-size:13px;line-height:1.45"
_CELL = "padding:2px 10px;text-align:left;vertical-align:top;border-bottom:1px solid rgba(128,128,128,.25)"
# A figure that takes more characters is not put into a notebook, which keeps every version of it.
_LARGEST_FIGURE = 2_000_000
# The cell that brought plotly's library and the run in which it did, empty as long as there is none.
_BROUGHT_BY: list[tuple[Any, int]] = []


def escaped(text: Any, longest: int = 120) -> str:
    """A value as text of a page, cut to `longest` characters.

    >>> escaped("<script>")
    '&lt;script&gt;'
    """
    text = str(text)
    return html.escape(text if len(text) <= longest else f"{text[: longest - 1]}…")


def boxed(*blocks: str | None) -> str:
    """Blocks of HTML, one below the other."""
    return f'<div style="{_FONT}">{"".join(block for block in blocks if block)}</div>'


def heading(text: Any, beside: Any = "") -> str:
    """A line with a name and, in a weaker colour, what is said of it."""
    return (
        f'<div style="margin:4px 0"><b>{escaped(text)}</b> <span style="opacity:.7">{escaped(beside, 400)}</span></div>'
    )


def note(text: Any) -> str:
    """A line in a weaker colour."""
    return f'<div style="opacity:.7;margin:4px 0">{escaped(text, 400)}</div>'


def table(columns: Sequence[Any], rows: Iterable[Sequence[Any]], colours: Sequence[str] = ()) -> str:
    """A table of escaped cells; `colours` are the backgrounds of its rows."""
    head = "".join(f'<th style="{_CELL};opacity:.7">{escaped(name)}</th>' for name in columns)
    body = []
    for number, row in enumerate(rows):
        tint = f' style="background:{colours[number]}"' if number < len(colours) and colours[number] else ""
        cells = "".join(f'<td style="{_CELL}">{escaped(cell)}</td>' for cell in row)
        body.append(f"<tr{tint}>{cells}</tr>")
    start = '<table style="border-collapse:collapse;margin:4px 0">'
    return f"{start}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def frame_table(frame: Any, rows: int = 8, columns: int = 12) -> str:
    """The first rows and columns of a frame."""
    first = frame.iloc[:rows, :columns]
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row] for row in first.values.tolist()]
    hidden = [f"{len(frame)} rows"] if len(frame) > rows else []
    hidden += [f"{frame.shape[1]} columns"] if frame.shape[1] > columns else []
    return table(list(first.columns), cells) + (note(f"... of {', '.join(hidden)}") if hidden else "")


def picture(image: Any, caption: Any = "", size: int = 144) -> str:
    """A picture, made small, with a line below it."""
    image = image.convert("RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB")
    image.thumbnail((2 * size, 2 * size))
    with io.BytesIO() as file:
        image.save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode()
    shape = f"width:{size}px" if image.width >= image.height else f"height:{size}px"
    below = f'<div style="max-width:{size}px;opacity:.7">{escaped(caption, 160)}</div>' if caption else ""
    words = escaped(caption or "picture", 160)
    source = f'<img src="data:image/png;base64,{data}" alt="{words}" style="{shape};image-rendering:pixelated">'
    return f'<div style="display:inline-block;vertical-align:top;margin:4px 8px 4px 0">{source}{below}</div>'


# Figures -----------------------------------------------------------------------------------------------------------------


def figure_html(figure: Any) -> str:
    """A plotly figure as HTML that draws itself when the page has plotly's library, and brings it where it is missing."""
    spec = figure.to_json().replace("<", "\\u003c")
    if len(spec) > _LARGEST_FIGURE:
        return note(f"the figure has {len(spec):,} characters: .plot() draws it")
    place = f"interp-{uuid4().hex}"
    height = figure.layout.height or 450
    draw = _DRAW.replace("PLACE", place).replace("SOURCE", _server_source()).replace("SPEC", spec)
    return f'{_library()}<div id="{place}" style="height:{height}px;background:white"></div><script>{draw}</script>'


_DRAW = """(function(){
var spec=SPEC,tries=0,asked=false;
function step(){
var place=document.getElementById("PLACE");
if(place&&window.Plotly){window.Plotly.newPlot(place,spec.data,spec.layout,{responsive:true});return;}
if(!asked&&tries>20&&!window.Plotly){
asked=true;var loader=document.createElement("script");loader.src="SOURCE";document.head.appendChild(loader);}
if(tries++<600){setTimeout(step,100);}}
step();})();"""


def _server_source() -> str:
    from plotly.offline import get_plotlyjs_version

    return f"https://cdn.plot.ly/plotly-{get_plotlyjs_version()}.min.js"


def _library() -> str:
    """plotly's library for the first figure of a kernel, or for the cell that brought it and runs again; else nothing."""
    ran = running_cell()
    if ran is None:
        return ""
    if _BROUGHT_BY and (_BROUGHT_BY[0][0] != ran[0] or _BROUGHT_BY[0] == ran):
        return ""
    _BROUGHT_BY[:] = [ran]
    from plotly.offline import get_plotlyjs

    # In a function of its own: a page with another loader of modules would not get the name `window.Plotly` else.
    return f"<script>if(!window.Plotly){{(function(module,define){{{get_plotlyjs()}\n}}).call(window);}}</script>"


def running_cell() -> tuple[Any, int] | None:
    """The id of the cell that runs (its number where it has none) and the number of this run; None outside a kernel."""
    ipython: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if getattr(ipython, "kernel", None) is None:
        return None
    metadata = ipython.kernel.get_parent().get("metadata", {})
    return metadata.get("cellId", ipython.execution_count), ipython.execution_count
