"""Figures of patching: a grid with heads in each of its forms, in groups and on the picture, and curves over windows."""

import math
import time

import numpy as np
import pytest
import torch

from interp import plots
from interp.errors import InputError
from interp.patching import FlowResult, PatchResult, SweepResult, attribution_patch, logit_difference
from interp.plots.pictures import lattice
from interp.plots.theme import label
from interp.toy import pairs


def a_grid(layers, columns, heads=None, rows=2, **options):
    """A result of random numbers; `columns` are the lists of positions of its columns."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(layers), len(columns), *(() if heads is None else (len(heads),)))
    effect = torch.randn(shape, generator=generator)
    fields = {
        "values": effect * 3,
        "effect": effect,
        "low": effect - 0.5,
        "high": effect + 0.5,
        "per_row": torch.stack([effect * 3] * rows),
        "clean_rows": torch.full((rows,), 3.0),
        "corrupted_rows": torch.zeros(rows),
        "tokens": [f"<{number}>" for number in range(len(columns))],
        "site": "z" if heads else "resid_pre",
        "metric": "<b>metric</b>",
        "direction": "denoise",
        **options,
    }
    return PatchResult(layers=list(layers), columns=columns, heads=heads, **fields)


def shown(trace):
    return np.array(trace.z, dtype=float)


def singles(count):
    return [[number] for number in range(count)]


# As a heatmap ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(20, None), (44, None), (45, 9), (60, 9), (61, None), (600, 9)])
def test_the_names_of_positions_never_overlap(count, size):
    axis = plots.patch_figure(a_grid([0, 1], singles(count))).layout.xaxis
    width = 620 / len(axis.tickvals)  # of plotly's 700 pixels
    assert axis.tickfont.size == size
    assert width >= (size or 13)
    assert axis.tickvals[-1] == count - 1  # the last position keeps its name
    steps = np.diff(axis.tickvals)
    assert (steps == steps[0]).all()
    assert list(axis.ticktext) == [label(f"<{number}>") for number in axis.tickvals]


def test_titles_say_which_grid_it_is():
    figure = plots.figure(a_grid([0, 1], singles(3)))
    assert figure.layout.title.text.replace("<br>", " ") == (
        "Patching resid_pre (denoise, exact): share of the clean answer that comes back (mean of 2 pairs)"
    )
    figure = plots.figure(a_grid([0, 1], singles(3), rows=1, direction="noise", method="gradient"))
    assert figure.layout.title.text.replace("<br>", " ") == (
        "Patching resid_pre (noise, gradient): share of the clean answer that is left (1 pair)"
    )


def test_what_comes_from_data_is_escaped():
    figure = plots.figure(a_grid([0], singles(1), site="<i>", direction="<u>", method="<s>"))
    for tag in ("<i>", "<u>", "<s>", "<b>", "<0>"):
        assert tag not in figure.to_json().replace("\\u003c", "<").replace("\\u003e", ">")


def test_groups_have_their_names():
    figure = plots.figure(a_grid([2, 5], [[1, 2, 3], [7]], tokens=["object", "last"]))
    assert list(figure.layout.xaxis.ticktext) == ["object", "last"]
    (heatmap,) = figure.data
    assert heatmap.customdata[1][0][:2] == ["object", "3 positions"]
    assert heatmap.customdata[1][1][:2] == ["last", "position 7"]
    assert list(figure.layout.yaxis.ticktext) == ["2", "5"]


def test_layers_stand_in_the_order_in_which_they_were_asked_for():
    """A row of a heatmap is drawn at its number on the axis, so one at the number of its layer would lie under another."""
    result = a_grid([5, 2, 7], singles(3))
    figure = plots.figure(result)
    (heatmap,) = figure.data
    np.testing.assert_array_equal(shown(heatmap), result.effect.numpy())
    assert list(heatmap.y) == list(figure.layout.yaxis.tickvals) == [0, 1, 2]
    assert list(figure.layout.yaxis.ticktext) == ["5", "2", "7"]
    assert heatmap.customdata[1][0][5] == "layer 2"


def test_heads_of_one_position_stand_beside_each_other():
    result = a_grid([0, 3], singles(1), heads=[1, 2, 4])
    figure = plots.figure(result)
    (heatmap,) = figure.data
    np.testing.assert_array_equal(shown(heatmap), result.effect[:, 0].numpy())
    assert list(figure.layout.xaxis.ticktext) == ["1", "2", "4"]
    assert figure.layout.xaxis.title.text == "head"
    assert heatmap.customdata[1][2][5] == "layer 3, head 4"


def test_few_heads_stand_above_each_other():
    result = a_grid([0, 3], singles(5), heads=[1, 2, 4])
    figure = plots.figure(result)
    (heatmap,) = figure.data
    np.testing.assert_array_equal(shown(heatmap), result.effect.permute(0, 2, 1).flatten(0, 1).numpy())
    assert list(figure.layout.yaxis.ticktext) == ["0.1", "0.2", "0.4", "3.1", "3.2", "3.4"]
    assert figure.layout.yaxis.title.text == "layer.head"
    assert heatmap.customdata[4][3][5] == "layer 3, head 2"


def test_many_heads_have_a_slider_and_one_scale():
    result = a_grid(range(8), singles(5), heads=list(range(8)))
    figure = plots.figure(result)
    assert len(figure.data) == len(figure.layout.sliders[0].steps) == 8
    for head, trace in enumerate(figure.data):
        np.testing.assert_array_equal(shown(trace), result.effect[:, :, head].numpy())
        assert trace.zmax == -trace.zmin == pytest.approx(result.effect.abs().max().item())
    first = int(result.effect.abs().amax(dim=(0, 1)).argmax())
    assert [trace.visible for trace in figure.data] == [head == first for head in range(8)]
    assert figure.layout.title.text.endswith(f"head {first}")
    step = figure.layout.sliders[0].steps[3]
    assert step.args[0]["visible"] == [head == 3 for head in range(8)]
    assert step.args[1]["title.text"].endswith("head 3")


def test_a_single_head_is_drawn_as_a_site_without_heads_is():
    result = a_grid([0, 3], singles(5), heads=[4])
    figure = plots.figure(result)
    np.testing.assert_array_equal(shown(figure.data[0]), result.effect[..., 0].numpy())
    assert figure.layout.title.text.endswith("head 4")
    assert figure.layout.yaxis.title.text == "layer"


# On the picture ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(toy):
    """A grid over the patches of a pair that is there twice, so that all rows have one picture, and one over all positions."""
    (pair,) = pairs(1, seed=1)
    clean, corrupted = (toy.prepare([pair.prompt] * 2, [side.image] * 2) for side in (pair.clean, pair.corrupted))
    metric = logit_difference(pair.answer, pair.other)
    return [
        attribution_patch(toy, clean, corrupted, positions=positions, metric=metric) for positions in ("image", "all")
    ]


def test_patches_alone_are_drawn_on_the_picture(swept):
    result, _ = swept
    figure = result.plot()
    assert figure == plots.patch_on_image(result)
    assert len(figure.data) == len(figure.layout.sliders[0].steps) == 8
    for layer, trace in enumerate(figure.data):
        np.testing.assert_array_equal(shown(trace).flatten(), result.effect[layer].numpy())
        assert trace.zmax == -trace.zmin == pytest.approx(result.effect.abs().max().item())
        np.testing.assert_allclose(trace.x, range(0, 49, 8), atol=1e-3)
        np.testing.assert_allclose(trace.y, range(0, 49, 8), atol=1e-3)
    assert figure.layout.images[0].source.startswith("data:image/png;base64,")
    assert (figure.layout.images[0].sizex, figure.layout.images[0].sizey) == (48, 48)
    assert list(figure.layout.yaxis.range) == [48, 0]  # the first row of patches is at the top
    hover = figure.data[3].customdata[1][2]
    assert hover[6] == f"<br>p {result.p[3, 8]:.2g} among all cells" * (len(result.per_row) > 5)
    assert hover[1] == f"position {result.columns[8][0]}"
    assert hover[2] == f"<br>95 % {result.low[3, 8]:.3f} to {result.high[3, 8]:.3f}"
    largest = int(result.effect.abs().amax(dim=1).argmax())
    assert [trace.visible for trace in figure.data] == [layer == largest for layer in range(8)]
    assert figure.data[largest].colorscale[2][1] == "rgba(255,255,255,0.0)"  # no effect hides nothing


def test_a_mean_over_several_pictures_is_drawn_on_none(toy, colour_pairs):
    clean, corrupted, metric = colour_pairs
    result = attribution_patch(toy, clean, corrupted, positions="image", metric=metric)
    figure = result.plot()
    assert figure == plots.patch_on_image(result)
    assert not figure.layout.images
    assert "(mean of 2 pairs with different pictures), layer" in figure.layout.title.text.replace("<br>", " ")
    np.testing.assert_array_equal(shown(figure.data[3]), result.effect[3].view(6, 6).numpy())
    assert [list(figure.data[3].x), list(figure.data[3].y)] == [list(range(7))] * 2
    assert figure.data[3].customdata[2][5][0] == "patch 2,5"
    every = attribution_patch(toy, clean, corrupted, metric=metric)
    assert every.plot() == plots.patch_figure(every)
    some = plots.patch_on_image(every)
    assert "(7 other positions not shown)" in some.layout.title.text.replace("<br>", " ")
    # The line with the metric stands above the picture: each further line of a title makes room for itself.
    lines = [each.layout.title.text.count("<br>") + 1 for each in (figure, some)]
    assert lines == [2, 3]
    assert some.layout.margin.t - figure.layout.margin.t == 20
    assert figure.layout.margin.t >= 12 + 20 * lines[0] + 14


def test_the_patches_of_two_images_are_on_no_one_grid():
    two = [(0, 0), (0, 1)] * 2
    result = a_grid([0], singles(4), patches=two, roles=["image"] * 4)
    assert result.plot() == plots.patch_figure(result)
    with pytest.raises(InputError, match="none of 4 positions"):
        plots.patch_on_image(result)


def test_hovering_says_that_positions_differ():
    (heatmap,) = plots.figure(a_grid([0], [[], [3]])).data
    assert [cell[1] for cell in heatmap.customdata[0]] == ["positions differ", "position 3"]


def test_a_heatmap_is_drawn_where_it_is_asked_for(swept):
    names = [f"place {number}" for number in range(36)]
    assert swept[0].plot(labels=names) == plots.patch_figure(swept[0], labels=names)
    assert swept[1].plot() == plots.patch_figure(swept[1])


def test_other_positions_are_left_out_of_the_picture(swept):
    only, every = swept
    figure = plots.patch_on_image(every, layer=2)
    assert figure.data[2].visible
    np.testing.assert_allclose(shown(figure.data[2]), shown(plots.patch_on_image(only).data[2]), atol=1e-6)
    assert figure.layout.title.text.endswith(f"layer 2 ({len(every.columns) - 36} other positions not shown)")
    reach = every.effect[:, 1:37].abs().max().item()
    assert figure.data[0].zmax == pytest.approx(reach)


def test_boxes_need_not_be_of_one_size_and_those_without_area_are_left_out():
    boxes = torch.tensor([[0.0, 0.0, 0.25, 0.5], [0.25, 0.0, 1.0, 0.5], [0.25, 0.5, 1.0, 1.0], [1.0, 0.5, 1.0, 1.0]])
    picture = torch.zeros(40, 80, 3, dtype=torch.uint8)
    result = a_grid([0, 1], singles(4), picture=picture, boxes=boxes)
    figure = result.plot()
    assert list(figure.data[0].x) == [0, 20, 80]
    assert list(figure.data[0].y) == [0, 20, 40]
    a, b, c, _ = result.effect[1].tolist()
    assert [list(row) for row in figure.data[1].z] == [[a, b], [None, c]]
    assert "(1 other position not shown)" in figure.layout.title.text.replace("<br>", " ")


def test_any_boxes_have_a_lattice():
    boxes = [(0, 0, 1, 2), (1, 0, 2, 1), (1, 1.00001, 2, 2), (2, 1, 3, 2)]
    assert lattice(boxes) == ([0, 1, 2, 3], [0, 1, 2], [[0, 1, None], [0, 2, 3]])


def test_one_head_is_drawn_on_the_picture():
    boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]])
    result = a_grid([0, 1], singles(2), heads=[3, 5], picture=torch.zeros(8, 8, 3, dtype=torch.uint8), boxes=boxes)
    np.testing.assert_array_equal(
        shown(plots.patch_on_image(result, head=5).data[1]).flatten(), result.effect[1, :, 1].numpy()
    )
    assert result.plot() == plots.patch_figure(result)
    with pytest.raises(InputError, match=r"head=None: this result has heads \[3, 5\]"):
        plots.patch_on_image(result)


def test_what_is_on_no_picture(swept):
    with pytest.raises(InputError, match="none of 3 positions of this result is a patch of a known picture"):
        plots.patch_on_image(a_grid([0], singles(3)))
    nowhere = a_grid([0], singles(1), picture=torch.zeros(8, 8, 3, dtype=torch.uint8), boxes=torch.zeros(1, 4))
    with pytest.raises(InputError, match="none of 1 positions"):
        plots.patch_on_image(nowhere)
    with pytest.raises(InputError, match=r"layer=8: this result has layers \[0, 1, 2"):
        plots.patch_on_image(swept[0], layer=8)
    with pytest.raises(InputError, match="head=2: this result has no heads"):
        plots.patch_on_image(swept[0], head=2)


def test_a_large_grid_is_drawn_in_seconds_and_megabytes():
    side, layers = 32, 40
    cell = torch.arange(side * side)
    corners = torch.stack([cell % side, cell // side, cell % side + 1, cell // side + 1], dim=1) / side
    picture = torch.zeros(64, 64, 3, dtype=torch.uint8)
    result = a_grid(range(layers), singles(side * side), picture=picture, boxes=corners.float())
    start = time.process_time()
    page = plots.patch_on_image(result).to_json()
    assert time.process_time() - start < 10
    assert len(page) < 8_000_000
    assert label("<5>") in plots.patch_on_image(result).data[0].customdata[0][5]


# Curves over windows of layers --------------------------------------------------------------------------------------------


def lines(figure):
    """Named curves, without their bands and controls."""
    return [trace for trace in figure.data if trace.type == "scatter" and trace.showlegend is None]


def a_flow(rows=3, control=True):
    values = torch.tensor([[-10.0, -60.0, -5.0], [0.0, -1.0, -2.0]])
    bound = torch.full_like(values, 4.0 if rows > 1 else math.nan)
    return FlowResult(
        values=values,
        low=values - bound,
        high=values + bound,
        control=torch.stack([values[0] / 10, torch.full((3,), math.nan)]) if control else None,
        per_row=torch.rand(rows, 2, 3),
        baseline_rows=torch.rand(rows),
        kept=torch.ones(rows, dtype=torch.bool),
        n_source=torch.tensor([4.0, 4.0]),
        n_control=torch.tensor([4.0, 0.0]) if control else None,
        edges=["image -> last", "<b> -> last"],
        windows=[range(0, 2), range(0, 3), range(1, 3)],
        metric="probability",
        mode="pre_softmax",
    )


def a_sweep(windows, baseline=0.9, **fields):
    values = torch.linspace(0.1, 0.8, len(windows))
    rows = torch.full((2,), baseline)
    return SweepResult(
        values, values - 0.1, values + 0.1, values.repeat(2, 1), rows, windows, "probability", "Skip", **fields
    )


def test_a_flow_is_a_curve_an_edge():
    result = a_flow()
    figure = plots.figure(result)
    assert figure == result.plot() == plots.flow_figure(result)
    first, second = lines(figure)
    assert list(first.y) == result.values[0].tolist()
    assert list(first.x) == [0, 1, 2]
    assert [first.name, second.name] == ["image -&gt; last", "&lt;b&gt; -&gt; last"]
    assert first.customdata[2][2] == "layers 1 to 2"
    assert first.customdata[1][1] == "<br>95 % -64 to -56"
    band = figure.data[0]
    assert list(band.y) == [*result.high[0].tolist(), *reversed(result.low[0].tolist())]
    dashed = [trace for trace in figure.data if trace.line.dash == "dash"]
    assert [list(trace.y) for trace in dashed] == [result.control[0].tolist()]  # that of NaN is left out
    assert figure.layout.shapes[0].y0 == 0
    assert "(mean of 3 rows; dashed: from random positions)" in figure.layout.title.text.replace("<br>", " ")


def test_one_row_has_no_band():
    figure = plots.figure(a_flow(rows=1, control=False))
    assert len(figure.data) == 2
    assert figure.data[0].customdata[0][1] == ""


@pytest.mark.parametrize(
    ("windows", "at", "called"),
    [
        ([range(0, 1), range(1, 2)], [0, 1], "layer 1"),
        ([range(0, 4), range(1, 5)], [1.5, 2.5], "layers 1 to 4"),
        ([range(0, 3), range(1, 3), range(2, 3)], [0, 1, 2], "layers 1 to 2"),
    ],
)
def test_a_sweep_stands_at_the_middle_of_its_windows(windows, at, called):
    figure = plots.figure(a_sweep(windows))
    (line,) = lines(figure)
    assert list(line.x) == at
    assert line.customdata[1][2] == called
    assert figure.layout.shapes[0].y0 == pytest.approx(0.9)


def test_sweeps_side_by_side():
    windows = [range(0, 1), range(1, 2)]
    control = torch.tensor([0.5, 0.25])
    figure = plots.sweep_figure({"image": a_sweep(windows, control=control), "text": a_sweep(windows, baseline=0.5)})
    assert [line.name for line in lines(figure)] == ["image", "text"]
    assert [trace.line.dash for trace in figure.data].count("dash") == 1
    assert [shape.y0 for shape in figure.layout.shapes] == pytest.approx([0.9, 0.5])
    shared = plots.sweep_figure({"image": a_sweep(windows), "text": a_sweep(windows)})
    assert len(shared.layout.shapes) == 1


def test_rows_that_are_right_and_the_control_are_shown(toy):
    """Two of eight rows are asked the wrong way round."""
    found = pairs(8, seed=1, change="colour")
    sides = [
        toy.prepare([pair.prompt for pair in found], [getattr(pair, side).image for pair in found])
        for side in ("clean", "corrupted")
    ]
    words = [(p.other, p.answer) if row < 2 else (p.answer, p.other) for row, p in enumerate(found)]
    metric = logit_difference(*(list(side) for side in zip(*words, strict=True)))
    for keep, words_of_keep in ((None, ""), ("right", " and kept")):
        result = attribution_patch(toy, *sides, positions=["image", "last"], metric=metric, keep=keep, control=True)
        figure = result.plot()
        assert f"; 6 of 8 rows answered rightly{words_of_keep}" in figure.layout.annotations[0].text
        assert f"<br>random donors {result.control[4, 1]:.3f}" in figure.data[0].customdata[4][1][6]
