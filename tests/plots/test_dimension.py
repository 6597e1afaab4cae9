"""Dimensions are drawn with their errors, at their scales, and as rings where they are known to be too low."""

import numpy as np
import pytest

from interp import plots
from interp.errors import InputError
from interp.geometry import dimension_scaling, intrinsic_dimension, plateau


def drawn(figure):
    return [trace for trace in figure.data if trace.type == "scatter"]


@pytest.fixture(scope="module")
def clouds():
    rng = np.random.default_rng(0)
    return [rng.normal(size=(300, d)) for d in (2, 5, 20)]


@pytest.fixture(scope="module")
def sheet():
    """A sheet with noise: four dimensions among the nearest neighbours, two farther out."""
    rng = np.random.default_rng(1)
    return dimension_scaling(
        np.pad(rng.uniform(size=(1500, 2)), ((0, 0), (0, 8))) + 0.003 * rng.normal(size=(1500, 10))
    )


def test_dimensions_have_their_errors_and_rings(clouds):
    estimates = [intrinsic_dimension(cloud) for cloud in clouds]
    for figure in (plots.figure(estimates), plots.dimension_figure({"image": estimates})):
        (line,) = drawn(figure)
        np.testing.assert_allclose(line.y, [item.value for item in estimates])
        np.testing.assert_allclose(line.error_y.array, [item.error for item in estimates])
        assert [colour == "white" for colour in line.marker.color] == [False, False, True]
        assert [row[3] for row in line.customdata] == ["", "", f"<br>{estimates[2].warning}"]
        assert line.customdata[0][2] == "1 and 2"
    assert len(drawn(plots.figure(estimates[0]))[0].y) == 1


def test_scales_are_drawn_in_log_with_their_plateau_shaded(sheet):
    figure = plots.figure(sheet)
    (line,) = drawn(figure)
    np.testing.assert_allclose(line.x, [item.scale for item in sheet])
    np.testing.assert_allclose(line.y, [item.value for item in sheet])
    assert figure.layout.xaxis.type == "log"
    level = plateau(sheet)
    (shade,) = figure.layout.shapes
    assert (shade.x0, shade.x1) == (sheet[level.start].scale, sheet[level.stop - 1].scale)
    assert shade.name == f"plateau, ranks {sheet[level.start].ranks[0]} to {sheet[level.stop - 1].ranks[1]}"


def test_several_scalings_have_names_and_those_without_a_plateau_no_shade(sheet, clouds):
    steep = dimension_scaling(clouds[2])
    assert plateau(steep) is None
    figure = plots.scaling_figure({"<b>sheet</b>": sheet, "steep": steep})
    assert [trace.name for trace in drawn(figure)] == ["&lt;b&gt;sheet&lt;/b&gt;", "steep"]
    assert len(figure.layout.shapes) == 1
    with pytest.raises(InputError, match=r"no estimates for \['none'\]"):
        plots.scaling_figure({"none": []})
