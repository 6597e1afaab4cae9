"""All states in one solve: the probes are scikit-learn's, and its solver is wrong in no state because of another one."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from interp.errors import InputError
from interp.probes import LinearProbe, fit_batched
from interp.probes.batched import logistic_loss, minimise
from interp.probes.probing import _answers, _fit
from interp.progress import Bar


def planted(n_classes, states=4, n=300, d=12, seed=0):
    """States in which classes grow apart: the first cannot be told, the last falls apart into its classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n)
    means = rng.normal(size=(n_classes, d))[y]
    x = rng.normal(size=(states, n, d)) + np.linspace(0, 4, states)[:, None, None] * means
    return x * np.logspace(-2, 3, d) + 50, np.array(["red", "green", "blue", "cyan"])[y]


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("strength", [0.01, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_scikit_learn_at_every_state(n_classes, strength, dtype):
    x, y = planted(n_classes)
    probes = fit_batched(torch.tensor(x[:, :200], dtype=dtype), y[:200], C=strength)
    for state, probe in zip(x, probes, strict=True):
        oracle = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000, tol=1e-8))
        oracle.fit(state[:200], y[:200])
        expected = oracle[-1].coef_
        assert probe.classes_.tolist() == sorted(set(y))
        assert np.abs(probe.coef_ * probe.scale_ - expected).max() < 0.005 * np.abs(expected).max()
        assert abs(probe.score(state[200:], y[200:]) - oracle.score(state[200:], y[200:])) <= 0.01
        np.testing.assert_allclose(probe.predict_proba(state[200:]), oracle.predict_proba(state[200:]), atol=5e-3)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_gradient_is_that_of_autograd(n_classes):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 30, 5, generator=generator, dtype=torch.float64)
    y = torch.arange(30) % n_classes
    at = torch.randn(2, 6, 1 if n_classes == 2 else 3, generator=generator, dtype=torch.float64, requires_grad=True)
    value, gradient = logistic_loss(x, y, n_classes, C=0.3)(at)
    torch.testing.assert_close(gradient.detach(), torch.autograd.grad(value.sum(), at)[0])


def test_each_state_finds_its_own_least_value():
    """Quadratics of very different curvature, one of them solved before the first step."""
    generator = torch.Generator().manual_seed(1)
    curvature = torch.logspace(-2, 3, 6, dtype=torch.float64) * torch.tensor([[1.0], [1e-3], [1.0]])
    middle = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    middle[2] = 0

    calls = []

    def loss(at):
        calls.append(at)
        return (curvature * (at - middle) ** 2).sum(dim=1) / 2, curvature * (at - middle)

    found = minimise(loss, torch.zeros(3, 6, dtype=torch.float64))
    assert (curvature * (found - middle)).abs().max() <= 1e-5
    assert len(calls) < 90
    assert torch.equal(found[2], torch.zeros(6, dtype=torch.float64))


def test_states_that_stay_on_their_device_give_the_same_answers():
    x, y = planted(3)
    numbers = np.unique(y, return_inverse=True)[1]
    rows = np.arange(0, 300, 2)
    batched = _answers(
        _fit(torch.tensor(x), rows, "logistic", 1.0, numbers, Bar("probes", 3, "fits", False)),
        torch.tensor(x),
        rows + 1,
    )
    alone = _answers([LinearProbe().fit(state[rows], numbers[rows]) for state in x], x, rows + 1)
    assert (batched == alone).mean() > 0.995


@pytest.mark.parametrize("unit", [1e30, 1e-30])
def test_probes_do_not_depend_on_the_unit_of_the_features(unit):
    x, y = planted(3)
    x[..., 5], x[..., 6] = 50, 50 * (1 + 1e-7 * (y == "red"))
    x = torch.tensor(x, dtype=torch.float32)
    for plain, scaled, at in zip(fit_batched(x, y), fit_batched(x * unit, y), x, strict=True):
        assert plain.predict(at).tolist() == scaled.predict(at * unit).tolist()
        np.testing.assert_allclose(scaled.coef_ * unit, plain.coef_, atol=2e-3 * abs(plain.coef_).max())


def test_refusals():
    x, y = planted(2)
    with pytest.raises(InputError, match="C=0"):
        fit_batched(torch.tensor(x), y, C=0)
    with pytest.raises(InputError, match=r"all labels are .*'red'.*, one class"):
        fit_batched(torch.tensor(x), ["red"] * 300)
    there = torch.tensor(x)
    for states, labels, message in [
        (there, y[:5], "5 labels for 300 examples"),
        (there, np.linspace(0, 1, 300), r"labels have shape \(300,\) and dtype float64: expected strings or integers"),
        (there / 0, y, "states have numbers that are not finite"),
        (there.half(), y, r"torch.float16: expected a tensor \[state, example, feature\] in float32 or float64"),
        (there[0], y, r"states=Tensor of shape \(300, 12\) of type torch.float64"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            fit_batched(states, labels)
        assert "\n" not in str(caught.value)
