"""A comparison is drawn number by number: values, errors, controls and p, each in its measure's own panel."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from interp import plots
from interp.errors import InputError
from interp.geometry import compare


@pytest.fixture(scope="module")
def result():
    rng = np.random.default_rng(0)
    visual = rng.normal(size=(3, 80, 6))
    textual = np.concatenate([rng.normal(size=(2, 80, 6)), visual[2:] + 0.1])
    metrics = ["participation_ratio", "curvature", "cka", "paired_cosine"]
    return compare(visual, textual, metrics=metrics, subsamples=4)


def test_every_number_is_drawn_once_in_its_panel(result):
    figure = plots.figure(result)
    titles = [annotation.text for annotation in figure.layout.annotations]
    assert titles == ["participation ratio", "curvature (radians)", "CKA", "paired cosine"]
    frame = result.to_frame()
    axes = dict(zip(("x", "x2", "x3", "x4"), dict.fromkeys(result.measure), strict=True))
    rows = 0
    for value, control in zip(figure.data[::2], figure.data[1::2], strict=True):
        measure = axes[value.xaxis]
        part = frame[(frame.measure == measure) & (frame.modality == value.name)]
        rows += len(part)
        assert list(value.x) == list(control.x) == part.state.tolist()
        np.testing.assert_allclose(value.y, part.value)
        np.testing.assert_allclose(control.y, part.chance)
        expected = [None if math.isnan(error) else pytest.approx(error) for error in part.error]
        assert list(value.error_y.array) == expected
        assert [colour == "white" for colour in value.marker.color] == [p >= 0.05 for p in part.p_family]
        assert control.line.dash == "dash"
        assert control.line.color == value.line.color
        assert control.xaxis == value.xaxis
    assert rows == len(frame)


def test_rings_are_where_the_test_found_nothing(result):
    p, family = result.p.clone(), result.p_family.clone()
    p[result.measure.index("cka") :][:3] = torch.tensor([0.01, 0.01, torch.nan], dtype=torch.float64)
    family[result.measure.index("cka") :][:3] = torch.tensor([0.05, 0.049, torch.nan], dtype=torch.float64)
    drawn = plots.figure(dataclasses.replace(result, p=p, p_family=family))
    by_name = {(trace.name, trace.xaxis): trace for trace in drawn.data}
    line = by_name["both", "x3"]
    assert [colour == "white" for colour in line.marker.color] == [True, False, False]
    assert [said[said.index("(") :] for said in line.customdata[:2]] == [
        "(p 0.05 among states)",
        "(p 0.049 among states)",
    ]
    assert "(p" not in line.customdata[2]
    assert "white" not in by_name["visual", "x"].marker.color  # no test was made


def test_a_modality_is_named_once(result):
    named = [trace.name for trace in plots.figure(result).data if trace.showlegend]
    assert named == ["visual", "textual", "both"]


def test_what_is_nan_is_a_gap_and_nothing_is_refused(result):
    value = result.value.clone()
    value[result.modality.index("visual")] = torch.nan
    assert plots.figure(dataclasses.replace(result, value=value)).data[0].y[0] is None
    none = torch.zeros(0).double()
    fields = {"measure": [], "modality": [], "state": [], "value": none, "error": none, "chance": none, "p": none}
    fields |= dict.fromkeys(("p_family", "p_all", "parts", "influence"))
    with pytest.raises(InputError, match="no number"):
        plots.figure(dataclasses.replace(result, **fields))


def test_the_imbalance_plane_has_each_pair_where_it_is():
    figure = plots.imbalance_figure({"<a>": (0.05, 0.4), "b": (1.2, math.nan)})
    _, chance, first, second = figure.data
    assert (chance.x, chance.y) == ((1,), (1,))
    assert (first.x[0], first.y[0], first.name, first.text[0]) == (0.05, 0.4, "&lt;a&gt;", "&lt;a&gt;")
    assert (second.x[0], second.y[0]) == (1.2, None)
    assert figure.layout.xaxis.range[1] > 1.2
    for points in ({}, {"a": (0.1,)}):
        with pytest.raises(InputError, match="expected"):
            plots.imbalance_figure(points)
