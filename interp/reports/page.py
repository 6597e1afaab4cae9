"""One report, one file: figures, tables and pictures in a single HTML page that makes no network request.

The page contains plotly.js once, which draws all figures. Pictures are data URIs, and the style is a few lines of CSS. A
content security policy in the head forbids every request, so a page that tried to make one would fail visibly. All text
is escaped here, in one place.

A page has a title, a lead and sections. A section has a title and blocks: `TextBlock`, `NoteBlock`, `FigureBlock`,
`TableBlock`, `PictureBlock` and `ColumnsBlock`, which puts blocks side by side if the window is wide enough.

>>> page = Page("Probes", "Accuracy by state.", [Section("Digit", [TableBlock(["state", "accuracy"], [[0, 0.25]])])])
>>> '<td class="number">0.25</td>' in page.html()
True
"""

from __future__ import annotations

import base64
import html
import io
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import InputError
from interp.files import whole_file
from interp.provenance import package_versions

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from PIL.Image import Image

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
# One of plotly's own buttons uploads the figure to its makers' server, so only buttons that stay on the page are shown.
_CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "modeBarButtons": [["toImage", "resetScale2d"]],
}
_STYLE = """
:root { --ink: #1f2933; --muted: #5b6875; --line: #dde3e8; --ground: #f6f8f9; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
       font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.3rem; margin: 0 0 .6rem; }
p { margin: .5rem 0; max-width: 76ch; }
.lead { color: var(--muted); margin-bottom: 1rem; }
nav { font-size: .9rem; margin: 1rem 0 1.5rem; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 22px 24px; margin: 0 0 20px; }
.note { border-left: 4px solid var(--accent); padding: .3rem 0 .3rem 1rem; margin: .9rem 0; }
.muted, figcaption { color: var(--muted); font-size: .88rem; }
.columns { display: flex; flex-wrap: wrap; gap: 18px; align-items: flex-start; }
.columns > * { flex: 1 1 300px; min-width: 0; }
.columns > figure.picture { flex: 0 1 auto; }
figure { margin: .8rem 0; }
.picture img { display: block; max-width: 100%; border-radius: 6px; border: 1px solid var(--line); }
.pixels img { image-rendering: pixelated; }
.scroll { overflow-x: auto; }
.wide { min-width: 720px; }
table { border-collapse: collapse; font-size: .92rem; margin: .6rem 0; }
th, td { padding: .32rem .8rem .32rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; white-space: nowrap; }
td.number { font-variant-numeric: tabular-nums; text-align: right; }
.right { color: #00704f; } .wrong { color: #b04300; }
footer { color: var(--muted); font-size: .82rem; overflow-wrap: anywhere; }
@media (max-width: 560px) { main { padding: 18px 10px 40px; } section { padding: 16px 14px; } h1 { font-size: 1.5rem; } }
"""


@dataclass(frozen=True)
class TextBlock:
    """A paragraph. A `muted` one is small and grey, for explanations."""

    text: str
    muted: bool = False


@dataclass(frozen=True)
class NoteBlock:
    """A paragraph that stands out, for results."""

    text: str


@dataclass(frozen=True)
class FigureBlock:
    """A plotly figure. In a narrow window a `wide` one scrolls sideways instead of shrinking."""

    figure: go.Figure
    caption: str = ""
    wide: bool = False


@dataclass(frozen=True)
class TableBlock:
    """A table of texts and numbers. A cell may be a `Mark`."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclass(frozen=True)
class Mark:
    """A text that is right or wrong, marked by a sign and by colour."""

    text: str
    right: bool


@dataclass(frozen=True)
class PictureBlock:
    """A picture, at most `width` pixels wide. A small one is enlarged with sharp pixels."""

    image: Image
    caption: str = ""
    width: int = 320


@dataclass(frozen=True)
class ColumnsBlock:
    """Blocks side by side."""

    blocks: Sequence[Any]


@dataclass(frozen=True)
class Section:
    """A titled part of the page."""

    title: str
    blocks: Sequence[Any]


@dataclass(frozen=True)
class Page:
    """A report. `html()` returns it as one string, `write()` writes it to a file, completely or not at all."""

    title: str
    lead: str
    sections: Sequence[Section]
    footer: str = ""

    def html(self) -> str:
        """The complete page, including plotly.js."""
        from plotly.offline import get_plotlyjs

        writer = _Writer()
        sections = "\n".join(writer.section(section, number) for number, section in enumerate(self.sections, start=1))
        links = "".join(f'<a href="#s{n}">{_text(s.title)}</a>' for n, s in enumerate(self.sections, start=1))
        head = [
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{_text(self.title)}</title>",
            f"<style>{_STYLE}</style>",
            f"<script>{get_plotlyjs()}</script>" if writer.figures else "",
        ]
        body = [
            f"<main><h1>{_text(self.title)}</h1>",
            f'<p class="lead">{_text(self.lead)}</p>',
            f"<nav>{links}</nav>",
            sections,
            f"<footer>{_text(self.footer)}</footer></main>",
        ]
        return "<!doctype html>\n" + "\n".join(
            ['<html lang="en"><head>', *head, "</head><body>", *body, "</body></html>", ""]
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page and return its path, replacing an existing file. Raises `InputError` if it cannot be written."""
        target = check_writable(path)
        content = self.html()
        try:
            with whole_file(target) as partial:
                partial.write_text(content, encoding="utf-8")
        except OSError as error:
            raise _unwritable(target, error) from error
        return target


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Return the path if a file can be written there. Call this before work that takes long; it leaves no file behind.

    Raises `InputError` if the folder does not exist or cannot be written to, and if the path is a folder or a device.
    """
    target = Path(path)
    if not str(path) or target.is_dir():
        raise InputError(f"{str(path)!r} is a folder: expected the path of a file, such as 'report.html'")
    if target.exists() and not target.is_file():
        raise InputError(f"{str(path)!r} is not a regular file: expected the path of a file, such as 'report.html'")
    if not target.parent.is_dir():
        raise InputError(f"{str(path)!r} cannot be written: {str(target.parent)!r} is not a folder, create it first")
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}."):
            pass
    except OSError as error:
        raise _unwritable(target, error) from error
    return target


def _unwritable(target: Path, error: OSError) -> InputError:
    return InputError(f"{str(target)!r} cannot be written ({error.strerror or error}): choose another path")


def footer_text(command: str) -> str:
    """The command that made a report, and the versions that its numbers depend on."""
    return f"{command}. {', '.join(f'{name} {version}' for name, version in package_versions().items())}."


def picture_uri(image: Image) -> str:
    """A picture as a PNG data URI."""
    from interp.models.batches.images import open_image

    stream = io.BytesIO()
    open_image(image).save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _text(value: Any) -> str:
    return html.escape(str(value))


@dataclass
class _Writer:
    """Turns blocks into HTML and counts the figures, because each needs its own id."""

    figures: int = 0
    _writers: dict[type, Any] = field(init=False)

    def __post_init__(self) -> None:
        self._writers = {
            TextBlock: lambda block: f'<p class="{"muted" if block.muted else ""}">{_text(block.text)}</p>',
            NoteBlock: lambda block: f'<p class="note">{_text(block.text)}</p>',
            FigureBlock: self._figure,
            TableBlock: self._table,
            PictureBlock: self._picture,
            ColumnsBlock: lambda block: f'<div class="columns">{self._blocks(block.blocks)}</div>',
        }

    def section(self, section: Section, number: int) -> str:
        return f'<section id="s{number}"><h2>{_text(section.title)}</h2>{self._blocks(section.blocks)}</section>'

    def _blocks(self, blocks: Sequence[Any]) -> str:
        return "\n".join(self._writers[type(block)](block) for block in blocks)

    def _figure(self, block: FigureBlock) -> str:
        import plotly.io

        self.figures += 1
        height = block.figure.layout.height or 400
        plot = plotly.io.to_html(
            block.figure,
            full_html=False,
            include_plotlyjs=False,
            div_id=f"figure-{self.figures}",
            default_height=f"{height}px",
            config=_CONFIG,
        )
        size = "wide" if block.wide else ""
        return f'<figure><div class="scroll"><div class="{size}">{plot}</div></div>{_caption(block.caption)}</figure>'

    def _picture(self, block: PictureBlock) -> str:
        small = max(block.image.size) < block.width
        width = block.width if small else min(block.width, block.image.width)
        kind = "picture pixels" if small else "picture"
        label = _text(block.caption or "picture")
        image = f'<img src="{picture_uri(block.image)}" width="{width}" alt="{label}">'
        return (
            f'<figure class="{kind}" style="width:{width}px;max-width:100%">{image}{_caption(block.caption)}</figure>'
        )

    def _table(self, block: TableBlock) -> str:
        head = "".join(f"<th>{_text(name)}</th>" for name in block.columns)
        body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in block.rows)
        caption = f'<p class="muted">{_text(block.caption)}</p>' if block.caption else ""
        return f'{caption}<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _caption(text: str) -> str:
    return f"<figcaption>{_text(text)}</figcaption>" if text else ""


def _cell(value: Any) -> str:
    if isinstance(value, Mark):
        kind, sign = ("right", "✓") if value.right else ("wrong", "✗")
        return f'<td class="{kind}">{sign} {_text(value.text)}</td>'
    if isinstance(value, float):
        return f'<td class="number">{value:.3g}</td>'
    if isinstance(value, int) and not isinstance(value, bool):
        return f'<td class="number">{value}</td>'
    return f"<td>{_text(value)}</td>"
