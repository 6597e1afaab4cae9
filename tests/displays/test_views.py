"""What notebooks show: parts, tokens, pictures and figures, escaped and limited; and nothing that fails breaks a cell."""

import json
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import interp
from interp import patching
from interp.displays import hypertext, views
from interp.models import Batch
from interp.results import Result


class Tags(HTMLParser):
    """The tags of a page, whether all of them are closed, and its text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def kernel(monkeypatch):
    """As within a kernel: the cell that runs, which a test may set."""
    cell = [("first", 1)]
    monkeypatch.setattr(hypertext, "running_cell", lambda: cell[0])
    monkeypatch.setattr(hypertext, "_BROUGHT_BY", [])
    return cell


@pytest.fixture(scope="module")
def acts(toy, few):
    return interp.capture(toy, few, progress=False)


def test_each_has_its_view(toy, mixed, few, acts):
    pair = interp.toy.pairs(1, seed=0)[0]
    shown = [
        (toy, ("model.language_model.layers", "width 128", "8 layers")),
        (toy.structure, ("projector", "id ")),
        (mixed, ("<image> x36", "special", "grid 6x6", "3 rows")),
        (mixed.positions, ("last_image", "6x6", "72")),
        (toy.check(), ("readout", "passed")),
        (acts, ("resid", "[9, 3, 128]", "float32", "count")),
        (few, (few[0].caption, "3 of them")),
        (few[0], (few[0].questions[0].answer,)),
        (pair, (pair.answer, pair.other, pair.question)),
    ]
    for value, words in shown:
        page = Tags(value._repr_html_())
        assert all(word in page.text for word in words), (type(value), page.text)


def test_pictures_are_small_and_few(toy):
    large = Image.fromarray(np.random.default_rng(0).integers(0, 255, (3000, 2000, 3), dtype=np.uint8))
    batch = toy.prepare(["<image>"] * 12, [large] * 12)
    page = batch._repr_html_()
    assert page.count("<img") == page.count(' alt="') == views._PICTURES
    assert len(page) < 3_000_000
    assert "... of 12 rows" in Tags(page).text


def test_long_rows_are_cut(toy):
    page = Tags(toy.prepare(["a red 3 at top . " * 100] * 30)._repr_html_())
    assert "…" in page.text
    assert len(page.text) < 20_000
    assert "... of 30 rows" in page.text


def test_tokens_have_the_colour_of_their_role(toy, few):
    batch = toy.prepare(["<image> where is the 3 ?", "where ?"], [few[0].image, None], spans=[{"digit": "3"}, {}])
    page = batch._repr_html_()
    coloured = dict.fromkeys(re.findall(r"background:([^;]+);padding:0 2px[^>]*>([^<]+)", page))
    assert (views._ROLES["span"], "3") in coloured
    assert (views._ROLES["image"], "&lt;image&gt; x36") in coloured
    assert (views._ROLES["text"], "where is the") in coloured
    assert any(role == views._ROLES["padding"] for role, _ in coloured)


def test_a_grid_is_drawn_where_the_tokens_see_the_picture(toy):
    black = Image.new("RGB", (48, 48))
    (boxes,) = toy.prepare(["<image>"], [black]).positions.boxes(0)
    drawn = np.asarray(views._with_grid(black, boxes))
    edges = (drawn[5].sum(axis=-1) > 0).nonzero()[0]
    assert len(edges) >= 6  # a line at the left and right of each of the six patches of a row
    assert np.asarray(views._with_grid(black, None)).sum() == 0


EVIL = "<script>alert(1)</script>&\"'"


def test_what_comes_from_data_is_escaped(toy, mixed, acts):
    batch = toy.prepare(["a red 3 at top ."], spans={EVIL: "3"})
    batch = replace(batch, tokens=[[EVIL] * len(batch.tokens[0])])
    structure = replace(toy.structure, layers=EVIL)
    evil_acts = replace(acts, labels={EVIL: [EVIL] * 3}, manifest={**acts.manifest, "model": EVIL, "notes": [EVIL]})
    scene = replace(interp.toy.scenes(1, seed=0)[0], id=EVIL)
    for value in (batch, batch.positions, structure, evil_acts, scene, Evil()):
        page = value._repr_html_()
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert" in page


@dataclass(frozen=True)
class Evil(Result):
    def to_frame(self):
        return pd.DataFrame({EVIL: [EVIL]})


def spec_of(page):
    (spec,) = re.findall(r"var spec=(.*?),tries=0", page, flags=re.DOTALL)
    return json.loads(spec)


@pytest.fixture(scope="module")
def sweep(toy, mixed):
    return patching.layer_sweep(toy, mixed.row(1), metric=patching.probability("top"), window=4)


def test_a_result_has_its_figure_and_its_first_rows(sweep):
    page = sweep._repr_html_()
    drawn, plotted = spec_of(page), json.loads(sweep.plot().to_json())
    assert drawn["layout"]["title"] == plotted["layout"]["title"]
    assert len(drawn["data"]) == len(plotted["data"])
    assert all(str(name) in page for name in sweep.to_frame().columns)


def test_words_in_a_figure_end_no_script(sweep):
    figure = sweep.plot()
    figure.update_layout(title={"text": "</script><!-- PLACE SPEC SOURCE"})
    page = hypertext.figure_html(figure)
    assert page.count("</script>") == 1
    assert spec_of(page)["layout"]["title"]["text"] == "</script><!-- PLACE SPEC SOURCE"


def test_the_library_comes_once_a_kernel(sweep, kernel):
    sizes = [len(sweep._repr_html_()), len(sweep._repr_html_())]  # two figures of one cell
    for kernel[0] in (("second", 2), ("first", 3), ("third", 4)):
        sizes.append(len(sweep._repr_html_()))
    # The cell that brought it runs again: what it showed before is gone, so it brings it again.
    assert [size > 1_000_000 for size in sizes] == [True, False, False, True, False]


def test_outside_a_kernel_no_library_is_repeated(sweep):
    page = sweep._repr_html_()
    assert len(page) < 100_000
    assert "https://cdn.plot.ly/plotly-" in page


@dataclass(frozen=True)
class Huge(Result):
    values: torch.Tensor

    def to_frame(self):
        raise AssertionError("nobody asked for it")


@dataclass(frozen=True)
class Broken(Result):
    values: torch.Tensor = None

    def to_frame(self):
        raise RuntimeError("no rows")


def test_nothing_is_computed_for_huge_results():
    page = Tags(Huge(torch.zeros(1000, 1000))._repr_html_()).text
    assert "Tensor[1000, 1000] float32" in page


def test_what_cannot_be_drawn_is_shown_as_text(mixed):
    assert Broken()._repr_html_() is None
    assert repr(Broken()) == "Broken(values=None)"
    assert replace(mixed, tokens=None)._repr_html_() is None
    assert Batch({}, [], None)._repr_html_() is None
    assert object.__new__(interp.VLM)._repr_html_() is None
    assert interp.Provenance()._repr_html_() is None  # no view of its kind


def test_names_complete(mixed, acts):
    assert acts._ipython_key_completions_() == ["resid"]
    assert {"image", "last", "after_image"} <= set(mixed.positions._ipython_key_completions_())
    assert {"select", "places", "to_frame"} <= set(dir(acts))


def test_cells_of_a_frame_are_short():
    frame = pd.DataFrame({f"c{n}": [0.123456789, None, "x" * 999, [1] * 900] for n in range(30)})
    page = Tags(hypertext.frame_table(frame))
    assert "0.1235" in page.text
    assert "30 columns" in page.text
    assert len(page.text) < 10_000
