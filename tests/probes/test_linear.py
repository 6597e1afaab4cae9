from __future__ import annotations

import doctest
import importlib

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from interp.errors import InputError
from interp.probes import LinearProbe
from interp.probes.linear import check_strength

KINDS = ["logistic", "ridge", "mean_difference"]
ORACLES = {
    "logistic": lambda strength: LogisticRegression(C=strength, max_iter=5000),
    "ridge": lambda strength: RidgeClassifier(alpha=1 / strength),
    "mean_difference": lambda strength: NearestCentroid(),
}


def data(n_classes=3, n=240, d=6, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n)
    x = rng.normal(size=(n, d)) + rng.normal(size=(n_classes, d))[y]
    return x * np.logspace(-2, 3, d) + 50, np.array(["red", "green", "blue", "cyan"])[y]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("strength", [0.01, 1.0])
def test_agrees_with_scikit_learns_pipeline(kind, n_classes, strength):
    x, y = data(n_classes)
    oracle = make_pipeline(StandardScaler(), ORACLES[kind](strength)).fit(x[:160], y[:160])
    probe = LinearProbe(kind, C=strength).fit(x[:160], y[:160])
    assert np.array_equal(probe.predict(x[160:]), oracle.predict(x[160:]))
    assert probe.classes_.tolist() == sorted(set(y))
    rows = 1 if n_classes == 2 else n_classes
    assert (probe.coef_.shape, probe.intercept_.shape) == ((rows, 6), (rows,))
    if kind != "mean_difference":
        np.testing.assert_allclose(probe.decision_function(x), oracle.decision_function(x), rtol=1e-5, atol=1e-6)
    if kind == "logistic":
        np.testing.assert_allclose(probe.predict_proba(x), oracle.predict_proba(x), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_passes_scikit_learns_own_checks(kind):
    found = check_estimator(LinearProbe(kind), on_fail=None, on_skip=None)
    failed = {one["check_name"] for one in found if one["status"] == "failed"}
    # which passes nonsense to __init__: fine for the library, refused here by the tests' own type checks
    assert failed <= {"check_do_not_raise_errors_in_init_or_set_params"}
    assert len(found) > 40


def test_mean_difference_gives_back_the_difference_of_means():
    x, y = data(2)
    probe = LinearProbe("mean_difference").fit(x, y)
    first, second = (x[y == name].mean(axis=0) for name in probe.classes_)
    np.testing.assert_allclose((probe.coef_ * probe.scale_**2)[0], second - first, rtol=1e-9)


def test_probabilities_are_of_logistic_alone():
    x, y = data()
    assert np.allclose(LinearProbe().fit(x, y).predict_proba(x).sum(axis=1), 1)
    for kind in ("ridge", "mean_difference"):
        assert not hasattr(LinearProbe(kind), "predict_proba")


@pytest.mark.parametrize("kind", KINDS)
def test_state_makes_the_probe_again(kind):
    x, y = data()
    probe = LinearProbe(kind, C=0.3).fit(x, y)
    state = probe.get_state()
    assert all(isinstance(value, np.ndarray | str | float | list) for value in state.values())
    again = LinearProbe.from_state(state)
    assert again.get_params() == probe.get_params()
    assert np.array_equal(again.decision_function(x), probe.decision_function(x))
    assert np.array_equal(again.predict(x), probe.predict(x))


def test_takes_tensors_of_half_precision_and_features_that_do_not_vary():
    x, y = data()
    x[:, 2] = 0.1
    probe = LinearProbe().fit(torch.tensor(x).bfloat16(), y)
    assert probe.score(torch.tensor(x), y) > 0.5
    assert np.isfinite(probe.coef_).all()
    assert probe.scale_[2] == 1


def test_works_in_scikit_learns_tools():
    x, y = data()
    assert cross_val_score(clone(LinearProbe(C=0.1)), x, y, cv=3).mean() > 0.5


def test_refusals():
    x, y = data()
    for probe, labels, message in [
        (LinearProbe("svm"), y, "kind='svm' is unknown"),
        (LinearProbe(C=0), y, "C=0"),
        (LinearProbe(), np.full(240, "red"), "all labels are .*'red'.*, one class"),
    ]:
        with pytest.raises(InputError, match=message):
            probe.fit(x, labels)
    for strength in ("1", None):
        with pytest.raises(InputError, match=f"C={strength!r}: expected a positive number"):
            check_strength(strength)
    with pytest.raises(NotFittedError):
        LinearProbe().get_state()


@pytest.mark.parametrize("module", ["", ".batched", ".linear", ".probe_result", ".probing"])
def test_examples_in_docstrings(module):
    assert doctest.testmod(importlib.import_module(f"interp.probes{module}")).failed == 0


@pytest.mark.parametrize(
    "labels",
    [
        np.ma.array([1, 2, 3] * 4, mask=[True] + [False] * 11),
        np.array([float("nan"), *["a", "b", "c"] * 3, "a", "b"]),
        pd.Series([None, *["a", "b"] * 5, "a"]),
        pd.Categorical([None, *["a", "b"] * 5, "a"]),
        pd.array([None, *[1, 2] * 5, 1], dtype="Int64"),
    ],
    ids=lambda labels: type(labels).__name__,
)
def test_a_missing_label_is_no_class(labels):
    x = np.random.default_rng(0).normal(size=(12, 3))
    with pytest.raises(InputError, match="1 of 12 labels are missing"):
        LinearProbe().fit(x, labels)
    with pytest.raises(InputError, match="1 of 12 labels are missing"):
        LinearProbe().fit(x, [1, 2, 3] * 4).score(x, labels)


def test_a_score_compares_labels_of_one_kind():
    x = np.random.default_rng(0).normal(size=(12, 3))
    probe = LinearProbe().fit(x, [0, 1] * 6)
    predicted = probe.predict(x)
    assert probe.score(x, predicted) == probe.score(x, predicted.astype(float)) == probe.score(x, list(predicted)) == 1
    assert probe.score(x, 1 - predicted) == probe.score(x, predicted + 7) == 0
    assert probe.score(x, [*predicted[:9], *(1 - predicted[9:])]) == 0.75
    with pytest.raises(InputError, match="the labels of fit and score have both"):
        probe.score(x, predicted.astype(str))
    for wrong in ([1], predicted[:, None]):  # numpy would compare every label with every other
        with pytest.raises(InputError, match="expected one"):
            probe.score(x, wrong)
