"""Layer against layer gives what each pair of layers gives alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from interp.errors import InputError
from interp.geometry import (
    MEASURES,
    alignment_matrix,
    cka,
    cknna,
    cycle_knn,
    distance_correlation,
    id_correlation,
    information_imbalance,
    mutual_knn,
    neighbor_overlap,
    procrustes,
    pwcca,
    rsa,
    svcca,
)
from interp.geometry.layer_grids import NO_HALVES, LayerStacks, Resampling
from interp.geometry.registry import measure_of
from interp.statistics.half_samples import half_samples, reach

ALONE = {
    "neighbor_overlap": neighbor_overlap,
    "mutual_knn": mutual_knn,
    "cycle_knn": cycle_knn,
    "cknna": cknna,
    "information_imbalance": lambda x, y, k: 1 - sum(information_imbalance(x, y, k)) / 2,
    "cka": cka,
    "cka_rbf": lambda x, y: cka(x, y, kernel="rbf"),
    "cka_biased": lambda x, y: cka(x, y, debiased=False),
    "distance_correlation": distance_correlation,
    "rsa": rsa,
    "svcca": svcca,
    "pwcca": pwcca,
    "procrustes": lambda x, y: 1 - procrustes(x, y),
    "id_correlation": lambda x, y: id_correlation(x, y, permutations=0).value,
}
NAMES = ["visual state 0", "visual state 1"], [f"textual state {number}" for number in range(3)]


def stacks(n=60, dtype=torch.float64):
    rng = np.random.default_rng(0)
    visual = rng.normal(size=(2, n, 11))
    textual = np.stack([visual[0] + rng.normal(size=(n, 11)), rng.normal(size=(n, 11)), visual[1] ** 2])
    return torch.tensor(visual, dtype=dtype), torch.tensor(textual, dtype=dtype)


def called(name, x, y, k):
    return ALONE[name](x, y) if k is None else ALONE[name](x, y, k=k)


def test_every_measure_is_compared():
    assert set(ALONE) == set(MEASURES)


@pytest.mark.parametrize("name", MEASURES)
def test_each_value_and_each_half_is_what_the_pair_gives_alone(name):
    visual, textual = stacks()
    measure = MEASURES[name].turned
    k = None if measure.k is None else min(measure.k, 7)
    halves = half_samples(60, 3, seed=1)
    found = measure.grid(LayerStacks(list(visual), list(textual), NAMES), halves, k)
    for i in range(2):
        for j in range(3):
            assert float(found.values[i, j]) == pytest.approx(called(name, visual[i], textual[j], k), abs=1e-7)
            if name == "cka_rbf":  # a half keeps the bandwidth of the whole
                continue
            near = None if k is None else reach(k, 60, 30)
            for part, half in zip(found.parts, halves, strict=True):
                expected = called(name, visual[i][half], textual[j][half], near)
                assert float(part[i, j]) == pytest.approx(expected, abs=1e-7)
    if found.influence is not None:
        torch.testing.assert_close(found.influence.mean(dim=2), found.values)


@pytest.mark.parametrize("name", MEASURES)
def test_unrelated_layers_are_at_their_floor_and_equal_ones_are_at_the_top(name):
    rng = np.random.default_rng(0)
    visual, textual = (torch.tensor(rng.normal(size=(3, 100, 12))) for _ in range(2))
    found = alignment_matrix(visual, textual, metric=name, subsamples=0)
    spread = 0.2 if name in ("id_correlation", "information_imbalance") else 0.06
    assert found.chance == pytest.approx(float(found.values.mean()), abs=spread)
    same = alignment_matrix(visual, visual, metric=name, subsamples=0).values.diagonal()
    low = 0.97 if name in ("information_imbalance", "cycle_knn") else 0.85
    assert (same > low).all()
    assert (same > found.values.max()).all()


@pytest.mark.parametrize("name", [name for name in MEASURES if MEASURES[name].chance is None])
def test_the_floor_is_that_of_shuffled_rows(name):
    visual, textual = stacks()
    measure = MEASURES[name].turned
    floor = measure.floor(LayerStacks(list(visual), list(textual), NAMES), measure.k, Resampling(NO_HALVES, 3, 0))
    rng = np.random.default_rng(0)
    orders = [torch.from_numpy(rng.permutation(60)) for _ in range(3)]
    expected = np.mean([called(name, visual[1], textual[2][order], measure.k) for order in orders])
    assert float(floor[1, 2]) == pytest.approx(expected, abs=1e-9)


def test_errors_name_the_layers():
    visual, textual = stacks()
    visual[1] = 1.5
    for name, message in [
        ("cka", "the 60 rows of visual state 1 are all equal"),
        ("svcca", r"visual state 1 \(x\) and textual state 0 \(y\): the 60 rows of x are all equal"),
    ]:
        with pytest.raises(InputError, match=message):
            alignment_matrix(visual, textual, metric=name)
    with pytest.raises(InputError, match="visual state 1 has 60 rows of zeros"):
        alignment_matrix(visual * torch.tensor([1.0, 0.0])[:, None, None], textual, metric="mutual_knn")
    with pytest.raises(InputError, match="k=5 for metric='cka': this measure has no neighbours"):
        alignment_matrix(visual, textual, metric="cka", k=5)
    with pytest.raises(InputError, match="metric='cosine' is unknown: use one of"):
        measure_of("cosine")


@pytest.mark.parametrize("name", ["cka", "cka_rbf", "distance_correlation"])
def test_tables_of_which_nothing_is_left_are_refused_and_not_measured_by_their_rounding(name):
    visual, textual = stacks()
    alike = torch.stack([torch.eye(60, dtype=torch.float64)] * 3)
    with pytest.raises(InputError, match="all pairs of the 60 rows of textual state 0 are equally alike"):
        alignment_matrix(visual, alike, metric=name)
    for n, subsamples in ((7, 2), (3, 0)):
        with pytest.raises(InputError, match=f"{n} examples leave nothing when debiased: pass four or more, eight for"):
            alignment_matrix(visual[:, :n], textual[:, :n], metric=name, subsamples=subsamples)
    assert alignment_matrix(visual[:, :4], textual[:, :4], metric=name, subsamples=0).values.isfinite().all()


def test_a_bandwidth_of_zero_is_refused():
    visual, textual = stacks()
    visual[1, 15:] = visual[1, 15]
    with pytest.raises(InputError, match="half of the pairs of visual state 1 are equal rows"):
        alignment_matrix(visual, textual, metric="cka_rbf")


def test_a_half_too_small_for_a_measure_is_said_to_be_one():
    visual, textual = stacks()
    message = (
        r"a half of 20 examples, for an interval, of visual state 0 \(x\) and textual state 0 \(y\): components=10"
    )
    with pytest.raises(InputError, match=message):
        alignment_matrix(visual[:, :20], textual[:, :20], metric="svcca")
    assert alignment_matrix(visual[:, :12], textual[:, :12], metric="cycle_knn", k=10).low.isfinite().all()


def test_float32_layers_give_the_same_to_single_precision():
    for name in ("neighbor_overlap", "information_imbalance", "cka", "distance_correlation"):
        one = alignment_matrix(*stacks(), metric=name, k=5 if MEASURES[name].k else None)
        other = alignment_matrix(*stacks(dtype=torch.float32), metric=name, k=5 if MEASURES[name].k else None)
        torch.testing.assert_close(one.values, other.values, atol=2e-3, rtol=0)
        torch.testing.assert_close(one.low, other.low, atol=1e-2, rtol=0)


def test_bounds_hold():
    for name, measure in MEASURES.items():
        found = alignment_matrix(*stacks(), metric=name, k=7 if measure.k else None)
        low, high = measure.turned.bounds
        assert float(found.low.min()) >= low
        assert float(found.high.max()) <= high
        assert not math.isnan(float(found.low.min()))


@pytest.mark.parametrize(
    "name", [name for name in MEASURES if name in ("neighbor_overlap", "cka", "information_imbalance")]
)
def test_influence_gives_the_error_of_a_difference_on_the_safe_side(name):
    measure, k = MEASURES[name], {"neighbor_overlap": 10}.get(name, MEASURES[name].k)
    errors, values = [], []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(120, 10))
        others = [torch.tensor(x + rng.normal(size=(120, 10))) for _ in range(2)]
        found = measure.grid(LayerStacks([torch.tensor(x)], others, (["x"], ["y", "y"])), NO_HALVES, k)
        values.append(float(found.values.diff(dim=1)))
        errors.append(float(found.influence.diff(dim=1).std()) / math.sqrt(120))
    assert 0.95 < np.mean(errors) / np.std(values) < 2.2
