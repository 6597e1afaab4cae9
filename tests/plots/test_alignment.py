"""What is drawn of an alignment matrix is what it holds, and the marks are where it says."""

import dataclasses

import numpy as np
import pytest
import torch

from interp import plots
from interp.geometry import AlignmentMatrix, alignment_matrix


def drawn(figure, kind="scatter"):
    return [trace for trace in figure.data if trace.type == kind]


@pytest.fixture(scope="module")
def states():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(120, 6))
    return torch.from_numpy(
        np.stack([shared @ rng.normal(size=(6, 12)) + scale * rng.normal(size=(120, 12)) for scale in (3, 0.1, 1)])
    )


@pytest.fixture(scope="module")
def matrix(states):
    return alignment_matrix(states, states.flip(0), k=10)


def test_the_matrix_marks_its_phase(matrix):
    figure = plots.figure(matrix)
    (heatmap,) = drawn(figure, "heatmap")
    np.testing.assert_allclose(np.array(heatmap.z, dtype=float), matrix.values)
    assert f"{matrix.chance:.3g}" in figure.layout.title.text
    said = heatmap.customdata[1][2]
    assert said == (
        f"<br>95 % {matrix.low[1, 2]:.3f} to {matrix.high[1, 2]:.3f}<br>chance {matrix.chance:.3g}"
        f"<br>p {matrix.p_family[1, 2]:.2g} among all"
    )
    rectangle, *crosses, dots = drawn(figure)
    assert bool(crosses) == bool((matrix.p_family > 0.05).any())
    phase = matrix.phase(0.8)
    assert min(rectangle.x) == min(rectangle.y) == phase.start - 0.5
    assert max(rectangle.x) == max(rectangle.y) == phase.stop - 0.5
    assert rectangle.name == "abstraction phase (0.8 of the height above chance)"
    assert list(dots.x) == matrix.bypass().best.tolist()


def test_a_matrix_at_chance_has_no_rectangle_and_stays_pale():
    rng = np.random.default_rng(1)
    matrix = alignment_matrix(rng.normal(size=(2, 60, 5)), rng.normal(size=(2, 60, 5)), k=10)
    assert matrix.phase() is None
    figure = plots.figure(matrix)
    crosses, _ = drawn(figure)
    assert (crosses.name, len(crosses.x)) == ("p > 0.05 among all pairs", 4)
    assert set(drawn(plots.diagonal_figure(matrix))[1].marker.symbol) == {"circle-open"}
    assert figure.layout.coloraxis.cmax == pytest.approx(matrix.chance + 0.1)
    assert "no phase above chance" in plots.alignment_figures({"<x>": matrix}).layout.annotations[0].text


def test_crosses_and_rings_are_where_the_correction_leaves_nothing(states):
    rng = np.random.default_rng(2)
    other = torch.cat([states[1:2], torch.from_numpy(rng.normal(size=(2, 120, 12)))])
    matrix = alignment_matrix(states[[1, 0, 2]], other, k=10)
    crosses = drawn(plots.figure(matrix))[-2]
    assert set(zip(crosses.y, crosses.x, strict=True)) == {(row, column) for row in range(3) for column in (1, 2)}
    line = drawn(plots.diagonal_figure(matrix))[1]
    assert list(line.marker.symbol) == ["circle", "circle-open", "circle-open"]
    bare = dataclasses.replace(matrix, null=None)
    assert len(drawn(plots.figure(bare))) == 2
    assert set(drawn(plots.diagonal_figure(bare))[1].marker.symbol) == {"circle"}


def test_a_matrix_without_a_diagonal_has_its_dots(states):
    oblong = alignment_matrix(states[:2], states, k=10, subsamples=0)
    (dots,) = drawn(plots.figure(oblong))
    assert list(dots.x) == oblong.values.argmax(dim=1).tolist()
    assert plots.alignment_figures({"<x>": oblong}).layout.annotations[0].text == "&lt;x&gt;: no diagonal"
    assert "95 %" not in drawn(plots.figure(oblong), "heatmap")[0].customdata[0][0]


def test_matrices_side_by_side_share_one_scale(states, matrix):
    figure = plots.alignment_figures({"first": alignment_matrix(states, states, k=10), "second": matrix})
    assert {trace.coloraxis for trace in drawn(figure, "heatmap")} == {"coloraxis"}
    assert figure.layout.coloraxis.cmax == pytest.approx(1.0)
    lines = [
        trace for trace in drawn(plots.diagonal_figure({"first": matrix, "second": matrix})) if trace.showlegend is None
    ]
    np.testing.assert_allclose(lines[1].y, matrix.values.diagonal())


def test_one_matrix_needs_no_name(matrix):
    for draw in (plots.diagonal_figure, plots.alignment_figures):
        assert draw(matrix) == draw({"neighbor overlap": matrix})


def test_the_scale_goes_below_chance_where_values_do(states):
    values, none = torch.tensor([[0.75, -0.5], [0.125, 0.25]]).double(), torch.full((2, 2), torch.nan).double()
    signed = AlignmentMatrix(values, 0.0, none, none, "cka", None, 100, 0)
    assert (plots.figure(signed).layout.coloraxis.cmin, plots.figure(signed).layout.coloraxis.cmax) == (-0.5, 0.75)
    turned = alignment_matrix(states, states, metric="procrustes", subsamples=0)
    figure = plots.figure(turned)
    assert figure.layout.title.text.startswith("1 - procrustes, chance 0.")
    assert figure.layout.coloraxis.cmin == min(turned.chance, float(turned.values.min()))
    line, control = drawn(plots.diagonal_figure({"turned": turned}))
    np.testing.assert_allclose(line.y, turned.values.diagonal())
    np.testing.assert_allclose(control.y, turned.floor.diagonal())


def test_the_bypass_shows_gain_interval_p_and_the_best_layer(matrix):
    found = matrix.bypass()
    ps = torch.tensor([0.001, 0.3, torch.nan]).double()
    found = dataclasses.replace(found, p=ps)
    figure = plots.figure(found)
    gain, best, diagonal = drawn(figure)
    np.testing.assert_allclose(gain.y, found.gain)
    np.testing.assert_allclose(np.add(gain.y, gain.error_y.array), found.gain_high)
    np.testing.assert_allclose(np.subtract(gain.y, gain.error_y.arrayminus), found.gain_low)
    assert [colour == "white" for colour in gain.marker.color] == [False, True, False]
    assert list(gain.customdata) == [" (p 0.001)", " (p 0.3)", ""]
    assert list(best.y) == found.best.tolist()
    assert list(diagonal.x) == list(diagonal.y) == [0, 2]
    assert figure.layout.shapes[0].y0 == 0
    two = plots.bypass_figure({"<a>": found, "b": found})
    assert [trace.name for trace in drawn(two) if trace.showlegend] == ["&lt;a&gt;", "b"]


def test_a_bypass_without_intervals_has_no_bars(states):
    gain = drawn(plots.figure(alignment_matrix(states, states, metric="svcca", subsamples=0).bypass()))[0]
    assert set(gain.error_y.array) == {None}
    assert set(gain.customdata) == {""}
