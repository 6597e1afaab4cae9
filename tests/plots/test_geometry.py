"""Gaps, correlations by dimension, peaks, densities and weights are drawn with what each is read against."""

import dataclasses

import numpy as np
import pytest
import torch

from interp import plots
from interp.geometry import find_peaks, id_correlation, learn_weights, log_density, modality_gap


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def blobs():
    rng = np.random.default_rng(3)
    return np.concatenate([rng.normal(size=(200, 2)), rng.normal(size=(120, 2)) + 3.5])


def test_the_gap_stands_beside_its_controls(rng):
    shared = rng.normal(size=(80, 10))
    gap = modality_gap(shared, shared + 0.5 + 0.5 * rng.normal(size=(80, 10)))
    quartiles, controls, values = plots.figure(gap).data
    low, middle, high = gap.all_pairs
    assert (quartiles.x[0], quartiles.error_x.array[0], quartiles.error_x.arrayminus[0]) == (
        middle,
        pytest.approx(high - middle),
        pytest.approx(middle - low),
    )
    assert dict(zip(values.y, values.x, strict=True)) == {
        "separability": gap.separability,
        "centre distance / spread": gap.centroid_relative,
        "corrected cosine": gap.corrected_cosine,
        "cosine of all pairs": middle,
        f"cosine of pairs (p {gap.p:.2g})": gap.paired_cosine,
    }
    assert list(values.error_x.array) == [gap.separability_error, None, gap.corrected_error, None, None]
    assert list(controls.x) == [0.5, gap.centroid_chance, 0.0, gap.shuffled_cosine]


def test_a_correlation_stands_in_the_histogram_of_its_shuffles(rng):
    x = rng.normal(size=(120, 3))
    found = id_correlation(x, x[:, :2] ** 3, permutations=30)
    figure = plots.figure(found)
    np.testing.assert_allclose(figure.data[0].x, found.null)
    assert figure.layout.shapes[0].x0 == found.value
    assert f"p {found.p:.2g}, 30 shuffles" in figure.layout.title.text
    bare = plots.figure(id_correlation(x, x[:, :2], permutations=0))
    assert list(bare.data[0].x) == []
    assert "(no shuffles)" in bare.layout.title.text


def test_peaks_stand_above_their_saddles(blobs):
    found = find_peaks(blobs)
    frame = found.to_frame()
    assert (frame.neighbor >= 0).all()
    sticks, saddles, peaks = plots.figure(found).data
    np.testing.assert_allclose(peaks.y, frame.log_density)
    np.testing.assert_allclose(saddles.y, frame.saddle)
    np.testing.assert_allclose(saddles.error_y.array, [found.border_errors[0, 1]] * 2)
    assert list(peaks.text) == [f"n = {size}" for size in frame["size"]]
    assert sticks.y[:3] == (saddles.y[0], peaks.y[0], None)


def test_a_cluster_that_touches_no_other_has_no_stick(blobs):
    found = find_peaks(np.concatenate([blobs[:200], blobs[200:] + 50]))
    sticks, saddles, peaks = plots.figure(found).data
    assert (len(peaks.x), len(saddles.x), len(sticks.x)) == (2, 0, 0)


def test_the_densest_examples_come_first(blobs):
    found = log_density(blobs)
    (points,) = plots.figure(found).data
    order = [row[0] for row in points.customdata]
    assert list(points.y) == sorted(points.y, reverse=True)
    np.testing.assert_allclose(points.y, found.values[order])
    np.testing.assert_allclose(points.error_y.array, found.errors[order])
    assert "&lt;" in plots.figure(dataclasses.replace(found, method="<x>")).layout.title.text


def test_weights_stand_beside_what_shuffled_rows_gave(rng):
    x = rng.normal(size=(80, 30))
    found = learn_weights(x, x[:, [1, 3]], steps=20)
    bars, path, *levels = plots.figure(found).data
    heaviest = found.weights.argsort(descending=True)[:24]
    assert list(bars.x) == [str(feature) for feature in heaviest.tolist()]
    np.testing.assert_allclose(bars.y, found.weights[heaviest])
    np.testing.assert_allclose(path.y, found.path)
    assert [level.y[0] for level in levels] == [found.held_out, found.start, float(found.shuffled.mean())]
    single = dataclasses.replace(found, path=torch.tensor([0.3]).double())
    assert list(plots.figure(single).data[2].x) == [0, 1]
