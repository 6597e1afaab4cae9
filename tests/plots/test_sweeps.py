"""Curves over windows of layers show what their results hold, and hovering says which layers a point is of."""

import math

import pytest
import torch

from interp import plots
from interp.patching import FlowResult, SweepResult


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
    assert "(3 rows; dashed: from random positions)" in figure.layout.title.text


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
