from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from interp.errors import InputError
from interp.geometry import differentiable_imbalance, information_imbalance, learn_weights, nearest_neighbors
from interp.geometry.imbalance import rank_matrix

quick = settings(max_examples=15, deadline=None)


def by_hand(x, y, k):
    """The imbalance from x to y, with whole matrices of ranks."""
    near, far = cdist(x, x), cdist(y, y)
    np.fill_diagonal(near, np.inf)
    np.fill_diagonal(far, np.inf)
    ranks = far.argsort(axis=1).argsort(axis=1) + 1
    return 2 / len(x) * np.take_along_axis(ranks, near.argsort(axis=1)[:, :k], axis=1).mean()


@pytest.mark.parametrize("k", [1, 3, 20])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_is_the_mean_rank_of_the_nearest(k, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(150, 5))
    y = np.concatenate([x[:, :2], rng.normal(size=(150, 2))], axis=1)
    expected = by_hand(x, y, k), by_hand(y, x, k)
    assert information_imbalance(x.astype(dtype), y.astype(dtype), k=k) == pytest.approx(expected, abs=1e-9)


def test_known_values():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 1000, 2))
    assert information_imbalance(x, x) == pytest.approx((2 / 1000, 2 / 1000))
    assert information_imbalance(x, 3 - x, k=4) == pytest.approx((5 / 1000, 5 / 1000))
    assert information_imbalance(x, y) == pytest.approx((1, 1), abs=0.05)
    down, up = information_imbalance(x, x[:, :1])
    assert down < 0.06
    assert 0.35 < up < 0.6


@quick
@given(st.integers(0, 2**16), st.floats(0.01, 100), st.floats(-50, 50))
def test_unchanged_by_rotation_shift_scale_and_order_of_rows(seed, scale, shift):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 60, 4))
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    order = rng.permutation(60)
    moved = (scale * x @ turn + shift)[order]
    assert information_imbalance(moved, y[order], k=2) == pytest.approx(information_imbalance(x, y, k=2), abs=1e-9)
    assert information_imbalance(y, x, k=2) == pytest.approx(information_imbalance(x, y, k=2)[::-1], abs=1e-12)


def test_blocks_of_rows_and_graphs_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 70, 4))
    whole = information_imbalance(x, y, k=3)
    assert information_imbalance(nearest_neighbors(x, 3), nearest_neighbors(y, 5), k=3) == whole
    assert information_imbalance(nearest_neighbors(x, 3), y, k=3) == whole
    monkeypatch.setattr("interp.geometry.neighbors._BLOCK", 70 * 40)
    assert information_imbalance(x, y, k=3) == pytest.approx(whole, abs=1e-12)


def test_ties_are_the_mean_over_random_choices():
    rng = np.random.default_rng(0)
    x, same = rng.normal(size=(40, 3)), np.full((40, 2), 0.3)
    assert information_imbalance(x, same, k=3) == pytest.approx((1, 1))
    assert information_imbalance(same, same) == pytest.approx((1, 1))
    # two copies of each of 20 points: the nearest is the copy, whose rank is 1; equal points of y share ranks 1 and 2
    pairs = np.repeat(rng.normal(size=(20, 3)), 2, axis=0)
    assert information_imbalance(pairs, pairs)[0] == pytest.approx(2 / 40)
    triples = np.repeat(rng.normal(size=(20, 3)), 3, axis=0)
    assert information_imbalance(triples, triples)[0] == pytest.approx(1.5 * 2 / 60)


def test_ranks_are_those_of_scipy():
    from scipy.stats import rankdata

    y = np.random.default_rng(0).integers(0, 3, size=(30, 2)).astype(float)
    found = rank_matrix(y)
    distances = cdist(y, y)
    for row in range(30):
        others = np.arange(30) != row
        np.testing.assert_allclose(found[row, others], rankdata(distances[row, others]))
        assert found[row, row] == 0


def test_the_gradient_is_that_of_differences():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 4))
    y = x[:, :2]
    weights = torch.tensor([1.0, 0.5, 2.0, 1.0], dtype=torch.float64, requires_grad=True)
    differentiable_imbalance(x, y, weights).backward()
    for feature in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[feature] = 1e-5
        up, down = (float(differentiable_imbalance(x, y, weights.detach() + sign * step)) for sign in (1, -1))
        assert float(weights.grad[feature]) == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-6)


def test_it_nears_the_imbalance_as_neighbourhoods_shrink():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    y = x + 0.5 * rng.normal(size=(200, 3))
    assert float(differentiable_imbalance(x, y, k=1, factor=1e-4)) == pytest.approx(
        information_imbalance(x, y)[0], rel=0.02
    )


def test_learned_weights_find_the_features_whatever_their_units():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 8))
    y = x[:, [2, 6]] @ rng.normal(size=(2, 4))
    found = learn_weights(x * np.logspace(-3, 3, 8), y, steps=80)
    assert set(found.to_frame().feature[:2]) == {2, 6}
    assert float(found.weights[[0, 1, 3, 4, 5, 7]].max()) < 0.3 * float(found.weights[[2, 6]].min())
    assert found.held_out < 0.2 * found.start
    assert len(found.shuffled) == 3
    assert found.shuffled.mean() > 0.6 * found.start
    assert found.path[-1] < found.path[0]
    again = learn_weights(x, y, steps=80)
    torch.testing.assert_close(again.weights, found.weights, rtol=1e-3, atol=1e-3)


def test_what_predicts_nothing_is_worth_nothing_on_held_out_examples():
    rng = np.random.default_rng(0)
    found = learn_weights(rng.normal(size=(200, 6)), rng.normal(size=(200, 3)), steps=60)
    assert found.path[-1] < 0.95  # it fits noise
    assert abs(found.held_out - 1) < 0.2


def test_a_penalty_leaves_fewer_features():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6))
    y = x[:, :3] * [3, 1, 0.3]
    free, bound = (learn_weights(x, y, steps=80, penalty=penalty) for penalty in (0.0, 0.2))
    assert bound.weights.sum() < free.weights.sum()


def test_constant_features_weigh_nothing():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(100, 2)), np.ones((100, 1))], axis=1)
    assert learn_weights(x, x[:, :1], steps=5).weights[2] == 0


def test_refusals():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 20, 3))
    same = np.repeat(x[:4], 5, axis=0)
    for call, message in [
        (lambda: information_imbalance(x, y[:19]), "x has 20 examples and y 19"),
        (lambda: information_imbalance(x, y, k=20), "k=20 neighbours of 20 examples: expected"),
        (lambda: information_imbalance(x, y * np.nan), "y has 20 rows that are not finite"),
        (lambda: information_imbalance(x, y, metric="dot"), "metric='dot'"),
        (
            lambda: differentiable_imbalance(x, y, torch.ones(2)),
            r"weights=Tensor of shape \(2,\): expected one finite number for each of the 3",
        ),
        (lambda: differentiable_imbalance(x, y, factor=0), "factor=0"),
        (lambda: differentiable_imbalance(same, same), "20 of 20 examples have 1 copies in weighted x"),
        (lambda: learn_weights(x, y, steps=0), "steps=0"),
        (lambda: learn_weights(x, y, shuffles=0), "shuffles=0"),
        (lambda: learn_weights(x, y, held_out=1.0), "held_out=1.0"),
        (lambda: learn_weights(x, y, penalty=-1), "penalty=-1"),
        (lambda: learn_weights(x, y, learning_rate=0.0), "learning_rate=0.0"),
        (lambda: learn_weights(x, y, seed=-1), "seed=-1"),
        (lambda: learn_weights(x[:8], y[:8]), "8 examples leave 2 held out"),
        (lambda: learn_weights(np.ones((20, 3)), y), "all 3 features of x are constant"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_weights_may_be_an_array():
    x, y = np.random.default_rng(0).normal(size=(2, 40, 3))
    expected = differentiable_imbalance(x, y, torch.tensor([1.0, 2.0, 0.5]), factor=0.5)
    assert differentiable_imbalance(x, y, np.array([1.0, 2.0, 0.5]), factor=0.5) == expected
    for weights in ([1.0, 2.0, 0.5], 1.0, np.array([1.0, np.nan, 1.0])):
        with pytest.raises(InputError, match="expected one finite number for each of the 3 features"):
            differentiable_imbalance(x, y, weights)


def test_the_imbalance_with_learned_weights_is_that_of_examples_they_were_not_fitted_to():
    x, y = np.random.default_rng(0).normal(size=(2, 60, 3))
    found = learn_weights(x, y, steps=20, held_out=0.25, seed=3)
    order = np.random.default_rng(3).permutation(60)
    train, test = order[:45], order[45:]
    weights = found.weights / torch.from_numpy(x[train].std(axis=0, ddof=1))
    assert found.held_out == pytest.approx(float(differentiable_imbalance(x[test], y[test], weights)))
    assert found.start == pytest.approx(float(differentiable_imbalance(x[test] / x[train].std(axis=0), y[test])))
    assert float(differentiable_imbalance(x[train], y[train], weights)) < float(found.path[0])


def test_weights_are_learned_where_gradients_are_off():
    x, y = np.random.default_rng(0).normal(size=(2, 40, 3))
    with torch.no_grad():
        found = learn_weights(x, y, steps=3)
    assert torch.equal(found.weights, learn_weights(x, y, steps=3).weights)
