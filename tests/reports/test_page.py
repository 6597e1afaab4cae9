"""One page, one file: escaped, written atomically, and without network requests, in a real browser."""

import os
from html.parser import HTMLParser
from pathlib import Path

import plotly.graph_objects as go
import pytest
from PIL import Image

from interp.errors import InputError
from interp.reports.page import (
    ColumnsBlock,
    FigureBlock,
    Mark,
    NoteBlock,
    Page,
    PictureBlock,
    Section,
    TableBlock,
    TextBlock,
    check_writable,
    footer_text,
)
from reports.browser import CHROMIUM, visit

EVIL = "</script><script>window.broken = 1</script><img src=https://example.org/x.png onerror=alert(1)> & \"'"
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def page(text=EVIL):
    figure = go.Figure(go.Scatter(x=[0, 1], y=[1, 2], text=[text, text], name=text))
    figure.update_layout(title={"text": "two points"}, height=300)
    blocks = [
        TextBlock(text),
        NoteBlock(text),
        TableBlock([text, "b"], [[text, 0.25], [Mark(text, True), 3], [Mark(text, False), None]], caption=text),
        ColumnsBlock([PictureBlock(Image.new("RGB", (8, 8), "red"), text), FigureBlock(figure, text)]),
        FigureBlock(figure, wide=True),
    ]
    return Page(text, text, [Section(text, blocks), Section("second", [TextBlock("end")])], footer=text)


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text without scripts and styles."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.inside = [], "", ""

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, attributes))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside not in ("script", "style"):
            self.text += data


def test_everything_is_escaped_and_inside():
    html = page().html()
    tags = Tags()
    tags.feed(html)
    sources = [value for _, attributes in tags.tags for name, value in attributes if name in ("src", "srcset", "data")]
    assert sources
    assert all(value.startswith("data:image/png;base64,") for value in sources)
    links = [value for _, attributes in tags.tags for name, value in attributes if name == "href"]
    assert links == ["data:,", "#s1", "#s2"]
    names = [name for name, _ in tags.tags]
    assert names.count("script") == 3  # plotly.js once, and one for each figure
    assert not [name for _, attributes in tags.tags for name, _ in attributes if name.startswith("on")]
    assert tags.text.count(EVIL) == 15


def test_plotly_is_left_out_where_no_figure_is_drawn():
    assert "plotly.js v" not in Page("t", "l", [Section("s", [TextBlock("only words")])]).html()


@needs_chromium
def test_the_page_opens_without_complaint_or_request(tmp_path):
    target = page().write(tmp_path / "page.html")
    visited = visit(
        target,
        "window.broken === undefined",
        "document.querySelectorAll('.main-svg').length > 0",
        "document.querySelectorAll('.js-plotly-plot').length",
        "document.title",
        "document.querySelector('.modebar').innerHTML.includes('loud')",
    )
    assert visited.complaints == []
    assert visited.outside(target) == []
    assert visited.values == [True, True, 2, EVIL, False]


@needs_chromium
@pytest.mark.parametrize(
    "broken",
    [
        "<script>throw new Error('broken')</script>",
        "<script>console.error('broken')</script>",
        "<script>Plotly.newPlot('nowhere', [])</script>",
        "<script>Promise.reject(new Error('broken'))</script>",
    ],
)
def test_a_broken_script_is_seen(tmp_path, broken):
    target = tmp_path / "broken.html"
    target.write_text(f'<link rel="icon" href="data:,"><p>text</p>{broken}')
    assert visit(target).complaints != []


@needs_chromium
@pytest.mark.parametrize(
    "asking",
    [
        '<img src="https://example.org/picture.png">',
        '<script src="http://127.0.0.1:9/plotly.js"></script>',
        '<link rel="stylesheet" href="https://example.org/style.css">',
        "<script>fetch('http://127.0.0.1:9/data').catch(() => 0)</script>",
        '<img src="beside.png">',
    ],
)
def test_a_request_is_seen(tmp_path, asking):
    target = tmp_path / "asking.html"
    target.write_text(f'<link rel="icon" href="data:,"><p>text</p>{asking}')
    assert visit(target).outside(target) != []


@needs_chromium
def test_what_a_page_asks_for_is_blocked_and_complained_about(tmp_path):
    html = page("text").html().replace("</main>", '<img src="https://example.org/x.png"></main>')
    target = tmp_path / "page.html"
    target.write_text(html)
    assert any("Content Security Policy" in line or "violates" in line for line in visit(target).complaints)


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "page.html"
    target.write_text("before")
    page("one").write(target)
    assert target.read_text().startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [target]

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    target.write_text("before")
    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(InputError, match="No space left"):
        page("two").write(target)
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("path", ["missing/page.html", "", ".", "file.txt/page.html"])
def test_a_path_that_cannot_be_written_is_refused_before_anything_is_made(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(InputError, match=r"expected|choose another|create it first"):
        check_writable(path)
    with pytest.raises(InputError):
        page("text").write(path)
    assert [item.name for item in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        check_writable(tmp_path / "page.html")


def test_a_device_is_not_replaced():
    with pytest.raises(InputError, match="'/dev/null' is not a regular file: expected the path of a file"):
        check_writable(os.devnull)


def test_a_check_leaves_nothing_behind(tmp_path):
    assert check_writable(tmp_path / "page.html") == tmp_path / "page.html"
    assert list(tmp_path.iterdir()) == []


def test_a_footer_names_the_command_and_the_versions():
    import torch

    assert footer_text("interp demo, seed 3").startswith("interp demo, seed 3. python 3.")
    assert f"torch {torch.__version__}" in footer_text("interp demo")
