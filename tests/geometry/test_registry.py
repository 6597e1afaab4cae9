"""One entry for each measure, which comparisons, matrices, figures and docs read; and measures of one's own."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from interp import plots
from interp.errors import InputError
from interp.geometry import (
    MEASURES,
    REGISTRY,
    alignment_matrix,
    compare,
    nearest_neighbors,
    neighbor_overlap,
    register_measure,
    unregister_measure,
)

PAGE = (Path(__file__).parents[2] / "docs" / "geometry.md").read_text()


def energy_distance(x, y):
    pairs = len(x) * (len(x) - 1)
    return 2 * torch.cdist(x, y).mean() - torch.cdist(x, x).sum() / pairs - torch.cdist(y, y).sum() / pairs


@pytest.fixture
def energy():
    yield register_measure("energy_distance", energy_distance, kind="gap", null="exchange", alike="lower")
    unregister_measure("energy_distance")


@pytest.fixture
def own():
    """Register measures for one test."""
    names = []

    def add(name, *arguments, **details):
        names.append(register_measure(name, *arguments, **details).name)

    yield add
    for name in names:
        if name in REGISTRY:
            unregister_measure(name)


def stacks(n=80, d=12, seed=0, states=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, states, n, d))


@pytest.mark.parametrize("name", REGISTRY)
def test_every_measure_is_in_the_docs_and_has_its_panel_and_axis(name):
    measure = REGISTRY[name]
    assert f"`{name}`" in PAGE
    assert measure.title
    result = compare(*stacks(), metrics=[name], labels=np.arange(80) % 3, subsamples=2, permutations=2)
    figure = plots.figure(result)
    assert [each.text for each in figure.layout.annotations] == [measure.compared.title]
    low, high = measure.compared.bounds
    axis = figure.layout.yaxis
    assert (axis.minallowed is None) == math.isinf(low)
    assert (axis.maxallowed is None) == math.isinf(high)
    assert axis.minallowed is None or axis.minallowed <= low
    assert axis.maxallowed is None or axis.maxallowed >= high
    values = result.value[result.value.isfinite()]
    assert bool(((values >= low) & (values <= high)).all())


@pytest.mark.parametrize("name", [name for name, measure in REGISTRY.items() if measure.kind == "gap"])
def test_a_gap_in_a_matrix_is_turned_and_otherwise_what_compare_has(name):
    visual, textual = stacks()
    textual[1] = 0.6 * visual[1] + 0.5
    matrix = alignment_matrix(visual, textual, metric=name, subsamples=3)
    frame = compare(visual, textual, metrics=[name], subsamples=3).to_frame()
    measure = REGISTRY[name]
    sign = -1 if measure.alike == "lower" else 1
    np.testing.assert_allclose(matrix.values.diagonal(), measure.turn + sign * frame.value, atol=1e-6)
    assert matrix.floor.isfinite().all()
    low, high = measure.turned.bounds
    assert bool(((matrix.low >= low) & (matrix.high <= high)).all())
    assert plots.figure(matrix).layout.title.text.startswith(measure.turned.title)


def test_the_views_of_the_registry_are_live_and_read_only(energy):
    assert REGISTRY["energy_distance"] is energy
    assert "energy_distance" not in MEASURES  # those of pairs
    assert set(MEASURES) == {name for name, measure in REGISTRY.items() if measure.kind == "pair"}
    for view in (REGISTRY, MEASURES):
        with pytest.raises(TypeError):
            view["energy_distance"] = energy


def test_an_energy_distance_is_right_in_comparisons_matrices_and_figures(energy):
    visual, textual = stacks()
    textual[2] += 1.0
    found = compare(visual, textual, metrics=["energy_distance"], subsamples=6, permutations=40, seed=3)
    frame = found.to_frame()
    for state, value in zip(frame.state, frame.value, strict=True):
        x, y = visual[state], textual[state]
        across = np.mean([np.linalg.norm(a - b) for a in x for b in y])
        within = sum(
            np.mean([np.linalg.norm(c[i] - c[j]) for i in range(80) for j in range(80) if i != j]) for c in (x, y)
        )
        assert value == pytest.approx(2 * across - within, abs=1e-9)
    assert frame.chance.abs().max() < 0.02  # one distribution once members are exchanged
    assert frame.value[2] > 0.5
    assert frame.p[2] == pytest.approx(1 / 41)
    assert (frame.p[:2] > 0.03).all()
    assert (frame.error > 0).all()
    rng = np.random.default_rng(3)
    sides = torch.from_numpy(rng.random((40, 80)) < 1 / 2)[:, :, None]
    x, y = (torch.from_numpy(stack[1]) for stack in (visual, textual))
    null = [float(energy_distance(torch.where(side, y, x), torch.where(side, x, y))) for side in sides]
    assert frame.chance[1] == pytest.approx(np.mean(null))
    assert frame.p[1] == pytest.approx((1 + sum(drawn >= frame.value[1] for drawn in null)) / 41)

    matrix = alignment_matrix(visual, textual, metric="energy_distance", subsamples=6)
    np.testing.assert_allclose(matrix.values.diagonal(), -frame.value)
    assert float(matrix.values[0, 1]) == -float(
        energy_distance(*(torch.from_numpy(each) for each in (visual[0], textual[1])))
    )
    assert abs(matrix.chance) < 0.05
    assert bool((matrix.low < matrix.values).all())
    assert matrix.bypass().best.tolist() != [2, 2, 2]  # the nearest layer, not the farthest

    panel = plots.comparison_figure(found)
    assert panel.layout.annotations[0].text == "energy distance"
    np.testing.assert_allclose(panel.data[0].y, frame.value)
    np.testing.assert_allclose(panel.data[1].y, frame.chance)
    square = plots.alignment_figure(matrix)
    assert square.layout.title.text.startswith("minus energy distance")
    np.testing.assert_allclose(np.array(square.data[0].z, dtype=float), matrix.values)


def test_p_of_an_energy_distance_is_even_where_there_is_no_gap(energy):
    visual, textual = stacks(n=30, states=60, seed=7)
    p = compare(visual, textual, metrics=["energy_distance"], subsamples=0, permutations=19).p
    assert 0.4 < float(p.mean()) < 0.6
    assert float((p <= 0.05).double().mean()) <= 0.15
    assert 0.1 < float((p <= 0.25).double().mean()) < 0.4


def test_measures_of_each_kind_can_be_added(own):
    visual, textual = stacks()
    labels = np.arange(80) % 2
    own("norm", lambda x: x.norm(dim=1).mean(), "cloud", "permute")
    own("by_formula", lambda x, k: float(k), "cloud", chance=lambda n, k: k / n, k=4)
    own("apart", lambda x, of: float((x[of == 0].mean(dim=0) - x[of == 1].mean(dim=0)).norm()), "labelled", "shuffle")
    own("step", lambda states: (states[2:] - states[:-2]).norm(dim=2), "path", "shuffle")
    own("distance", lambda x, y: float((x - y).norm()), "pair", "shuffle", alike="lower", bounds=(0, math.inf))
    own("lag", lambda x, y, k: float((x[k:] * y[:-k]).mean()), "pair", "shuffle", k=3, title="lagged <product>")
    names = ["norm", "by_formula", "apart", "step", "distance", "lag"]
    found = compare(visual, textual, metrics=names, labels=labels, subsamples=4, permutations=9, seed=1)
    frame = found.to_frame().set_index(["measure", "modality", "state"])
    assert frame.loc[("norm", "visual", 1), "value"] == pytest.approx(np.linalg.norm(visual[1], axis=1).mean())
    assert frame.loc[("by_formula", "textual", 0), "value"] == 4
    assert frame.loc[("by_formula", "textual", 0), "chance"] == 4 / 80
    orders = [np.random.default_rng(1)]
    orders = [orders[0].permutation(80) for _ in range(9)]
    null = [
        np.linalg.norm(visual[2][labels[order] == 0].mean(axis=0) - visual[2][labels[order] == 1].mean(axis=0))
        for order in orders
    ]
    assert frame.loc[("apart", "visual", 2), "chance"] == pytest.approx(np.mean(null))
    assert frame.loc[("step", "visual", 1), "value"] == pytest.approx(
        np.linalg.norm(visual[2] - visual[0], axis=1).mean()
    )
    assert frame.loc[("distance", "both", 0), "value"] == pytest.approx(-np.linalg.norm(visual[0] - textual[0]))
    assert frame.loc[("lag", "both", 0), "value"] == pytest.approx((visual[0][3:] * textual[0][:-3]).mean())
    assert [each.text for each in plots.figure(found).layout.annotations][-2:] == [
        "minus distance",
        "lagged &lt;product&gt;",
    ]
    matrix = alignment_matrix(visual, textual, metric="lag", k=5, subsamples=0)
    assert float(matrix.values[1, 2]) == pytest.approx((visual[1][5:] * textual[2][:-5]).mean())
    assert matrix.k == 5
    with pytest.raises(InputError, match="metric='norm' is unknown"):
        alignment_matrix(visual, textual, metric="norm")


def test_a_measure_may_share_the_graphs_of_others(own):
    visual, textual = stacks()
    own("first", lambda graph, k: float(graph.distances[:, 0].mean()), "cloud", "permute", k=1, graph="euclidean")
    own("overlap", lambda x, y, k: neighbor_overlap(x, y, k), "pair", "shuffle", k=5, graph="euclidean")
    found = compare(visual, textual, metrics=["first", "overlap"], subsamples=0, permutations=2).to_frame()
    assert found.value[0] == pytest.approx(float(nearest_neighbors(textual[0], 1).distances.mean()))
    assert found.value[6] == pytest.approx(neighbor_overlap(visual[0], textual[0], 5))
    halved = compare(visual, textual, metrics=["overlap"], subsamples=3, permutations=2).to_frame()
    assert halved.value.tolist() == found.value[6:].tolist()
    assert (halved.error > 0).all()


def test_a_measure_that_needs_distinct_rows_has_them(own):
    sizes = []
    own("count", lambda x, y: sizes.append(len(x)) or 0.0, "gap", "exchange", distinct=True)
    visual, textual = stacks()
    textual[1, 9] = textual[1, 4]
    found = compare(visual, textual, metrics=["count"], subsamples=0, permutations=1)
    assert found.dropped.tolist() == [9]
    assert set(sizes) == {79}


def test_figures_of_measures_that_are_not_registered_any_more_have_their_names(own):
    own("brief", lambda x, y: float((x * y).mean()), "gap", "exchange", title="a long title", bounds=(-9, 9))
    found = compare(*stacks(), metrics=["brief"], subsamples=0, permutations=2)
    matrix = alignment_matrix(*stacks(), metric="brief", subsamples=0)
    assert plots.figure(found).layout.annotations[0].text == "a long title"
    unregister_measure("brief")
    assert plots.figure(found).layout.annotations[0].text == "brief"
    assert plots.figure(matrix).layout.title.text.startswith("brief, chance")


def test_refusals(unchecked, own):
    def nothing(x, y):
        return 0.0

    own("two_numbers", lambda x, y: torch.zeros(2), "gap", "exchange")
    own("no_number", lambda x: None, "cloud", "permute")
    own("short_path", lambda states: states.norm(dim=2), "path", "shuffle")
    for call, message in [
        (
            lambda: register_measure("cka", nothing, "pair", "shuffle"),
            "name='cka' is the name of a measure of kind 'pair'",
        ),
        (lambda: register_measure("", nothing, "pair", "shuffle"), "name='': expected a word"),
        (lambda: register_measure("new", 3.0, "pair", "shuffle"), "function=3.0: expected a function"),
        (
            lambda: register_measure("new", nothing, "both", "shuffle"),
            "kind='both' is unknown: use one of cloud, labelled",
        ),
        (
            lambda: register_measure("new", nothing, "pair", "swap"),
            "kind='pair' with null='swap' is unknown: use one of shuffle",
        ),
        (
            lambda: register_measure("new", nothing, "gap", "permute"),
            "null='permute' is unknown: use one of exchange, shuffle",
        ),
        (lambda: register_measure("new", nothing, "gap"), "null=None and chance=None for 'new'"),
        (
            lambda: register_measure("new", nothing, "gap", "exchange", alike="no"),
            "alike='no' is unknown: use one of higher",
        ),
        (lambda: register_measure("new", nothing, "gap", "exchange", unit="m"), r"no detail \['unit'\]"),
        (
            lambda: register_measure("new", nothing, "gap", "exchange", layers=nothing),
            "layers= for a measure of kind 'gap'",
        ),
        (lambda: register_measure("new", nothing, "pair", "shuffle", k=0), "k=0: expected an int of 1 or more"),
        (lambda: register_measure("new", nothing, "pair", "shuffle", k=2.5), r"k=2\.5: expected an int"),
        (lambda: register_measure("new", nothing, "pair", "shuffle", bounds=5), "bounds=5: expected the least"),
        (lambda: register_measure("new", nothing, "pair", "shuffle", bounds=(1, 0)), r"bounds=\(1, 0\): expected"),
        (lambda: register_measure("new", nothing, "pair", "shuffle", turn="x"), "turn='x': expected a finite number"),
        (
            lambda: register_measure("new", nothing, "pair", "shuffle", subsamples=0),
            "subsamples=0: expected an int of 2",
        ),
        (lambda: unregister_measure([]), r"name=\[\]: expected the name"),
        (lambda: unregister_measure("cka"), "name='cka': expected the name of a measure that register_measure"),
        (lambda: unregister_measure("new"), "name='new': expected the name"),
        (
            lambda: compare(*stacks(), metrics=["two_numbers"]),
            r"^visual state 0 \(x\) and textual state 0 \(y\): measure 'two_numbers' returned Tensor of shape \(2,\)",
        ),
        (lambda: alignment_matrix(*stacks(), metric="two_numbers"), "measure 'two_numbers' returned Tensor of shape"),
        (
            lambda: compare(*stacks(), metrics=["no_number"]),
            "^visual state 0: measure 'no_number' returned None: expected one",
        ),
        (
            lambda: compare(*stacks(), metrics=["short_path"]),
            r"^visual: measure 'short_path' returned .* \(3, 80\): expected",
        ),
        (
            lambda: alignment_matrix(stacks()[0], stacks(d=4)[1], metric="principal_angle"),
            r"visual state 0 \(x\) and textual state 0 \(y\): x has 12 features and y 4",
        ),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert "new" not in REGISTRY


def test_a_measure_that_is_no_number_has_no_p_and_its_matrix_is_drawn(own):
    own("never_known", lambda x, y: math.nan, "pair", "shuffle")
    frame = compare(*stacks(), metrics=["never_known"], permutations=3).to_frame()
    assert frame[["value", "chance", "p"]].isna().all(axis=None)
    assert alignment_matrix(*stacks(), metric="never_known", subsamples=0).plot().data


def test_a_measure_of_paths_may_count_and_may_have_a_formula(own):
    own(
        "steps",
        lambda states: torch.ones(len(states) - 2, states.shape[1], dtype=torch.long),
        "path",
        chance=lambda n, k: 0.25,
    )
    frame = compare(*stacks(), metrics=["steps"]).to_frame()
    assert frame[["value", "error", "chance"]].drop_duplicates().to_numpy().tolist() == [[1.0, 0.0, 0.25]]


def test_a_bool_is_not_a_share_of_the_maximum():
    matrix = alignment_matrix(*stacks(), metric="cka", subsamples=0)
    assert matrix.phase(tau=1) is None or isinstance(matrix.phase(tau=1), range)
    with pytest.raises(InputError, match="tau=True: expected a share"):
        matrix.phase(tau=True)
