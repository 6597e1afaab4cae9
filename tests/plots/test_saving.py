"""Titles fit the width of a figure, figures show themselves in notebooks, and files have the form that their ending names."""

import importlib.util
import json
import re
import webbrowser

import plotly.graph_objects as go
import plotly.io
import pytest
import torch

import interp
from interp.geometry import intrinsic_dimension
from interp.plots import save_figure
from interp.plots.theme import LONGEST_TITLE, PageFigure, fit_title, new_figure, wrapped


@pytest.fixture(scope="module")
def estimate():
    return intrinsic_dimension(torch.randn(80, 3))


@pytest.mark.parametrize(
    "title",
    ["short", "word " * 60, "x" * 300, "&lt;image&gt; " * 40, "one line<br>" + "and another " * 20, "", "ends in &lt;"],
    ids=lambda title: title[:12],
)
def test_no_line_of_a_title_is_longer_than_a_figure(title):
    lines = wrapped(title).split("<br>")
    assert all(len(re.sub(r"&\w+;", "x", line)) <= LONGEST_TITLE for line in lines)
    words = re.sub(r"\s|<br>", "", title)
    assert re.sub(r"\s", "", "".join(lines)) == words  # nothing is lost, and no entity is torn


def test_lines_of_a_title_have_room():
    short, long = (new_figure(title, "x", "y") for title in ("short", "many words in a long title " * 12))
    lines = long.layout.title.text.count("<br>") + 1
    assert lines > 3
    assert long.layout.height - short.layout.height == 20 * (lines - 2)
    assert long.layout.margin.t == short.layout.template.layout.margin.t + 20 * (lines - 2)
    assert fit_title(fit_title(long)).layout.height == long.layout.height  # fitted once


def test_every_title_of_the_figures_fits(estimate):
    figure = estimate.plot(title="a title that somebody wrote for a paper, with all that is in it, " * 3)
    assert max(map(len, figure.layout.title.text.split("<br>"))) <= LONGEST_TITLE


def test_a_figure_shows_itself_as_html(estimate, monkeypatch):
    figure = estimate.plot()
    assert isinstance(figure, PageFigure)
    assert repr(figure).startswith("PageFigure('Intrinsic dimension'; .show() opens it, ")
    monkeypatch.setattr(plotly.io.renderers, "default", "plotly_mimetype")
    assert "Plotly.newPlot" in figure._repr_mimebundle_()["text/html"]
    monkeypatch.setattr(plotly.io.renderers, "default", "json")  # somebody's own choice
    assert list(figure._repr_mimebundle_()) == ["application/json"]


def test_a_prompt_on_a_machine_without_a_browser(estimate, monkeypatch, capsys):
    def no_browser(using=None):
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(plotly.io.renderers, "default", "browser")
    monkeypatch.setattr(webbrowser, "get", no_browser)
    monkeypatch.setattr("plotly.basedatatypes.BaseFigure._ipython_display_", lambda self: no_browser())
    figure = estimate.plot()
    figure._ipython_display_()
    assert capsys.readouterr().out == f"{figure!r}\n"


def test_a_page_and_plotlys_own_form(estimate, tmp_path):
    page = save_figure(estimate, tmp_path / "figure.html")
    assert page.stat().st_size > 1_000_000  # plotly is in it
    assert json.loads(save_figure(estimate.plot(), tmp_path / "figure.json").read_text())["data"]


def test_a_picture_says_what_it_needs(estimate, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(interp.InputError, match=r"needs kaleido and a Chrome .* pip install \"interp-vlm\[reports\]\""):
        save_figure(estimate, tmp_path / "figure.png")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(
        go.Figure, "write_image", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no Chrome\nhere"))
    )
    with pytest.raises(interp.InputError, match=r"could not be drawn \(RuntimeError: no Chrome here\): install it"):
        save_figure(estimate, tmp_path / "figure.svg")


def test_what_cannot_be_saved(estimate, tmp_path):
    with pytest.raises(interp.InputError, match=r"ends in \.html, \.json, \.png"):
        save_figure(estimate, tmp_path / "figure.bmp")
    with pytest.raises(interp.InputTypeError, match="expected a figure or a result"):
        save_figure([1, 2], tmp_path / "figure.html")
    with pytest.raises(interp.InputError, match="cannot be written"):
        save_figure(estimate, tmp_path / "none" / "figure.html")
