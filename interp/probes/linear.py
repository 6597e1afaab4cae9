"""A linear probe: a classifier so simple that what it reads must already be in the states.

If a hyperplane separates the states of "red" scenes from those of "blue" ones, then the states hold the colour in a form
that the model's next layer, itself linear at its entry, can use. Three ways to choose the hyperplane:

- *logistic*: regularised logistic regression, the usual probe. It finds any separating direction, however small.
- *ridge*: least squares on labels of -1 and 1. It is close to logistic, and has a closed form.
- *mean_difference*: the nearest class mean. Only means are fitted, so it finds only what most examples show. Its direction
  is the one that steering with a difference of means uses.

Features are standardised on the training data first. Otherwise the few huge features of a language model would decide
everything. Float32 and float64 are solved in their precision and scored in float64. A fitted probe of any kind is one
matrix: class scores are `x @ coef_.T + intercept_`.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from interp.arguments import checked_choice
from interp.errors import InputError, shown
from interp.results import StoredValue
from interp.statistics.categories import read_labels

Features = Any  # a tensor of any floating type or an array [example, feature]; scikit-learn's checks run on it
_MAX_ITERATIONS = 5000
_ROUNDINGS = 100  # a spread of fewer roundings of the mean counts as 0
_STATE = ("classes_", "coef_", "intercept_", "mean_", "scale_")


def _logistic(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    fitted = LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS).fit(x, y)
    return fitted.coef_, fitted.intercept_


def _ridge(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    fitted = RidgeClassifier(alpha=1 / strength).fit(x, y)
    return np.atleast_2d(fitted.coef_), np.atleast_1d(fitted.intercept_)


def _mean_difference(x: np.ndarray, y: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """The nearest mean as linear scores: -|x - m|^2 / 2 is x.m - |m|^2 / 2, less |x|^2 / 2, which all classes share."""
    means = np.stack([x[y == label].mean(axis=0) for label in np.unique(y)])
    offsets = -np.square(means).sum(axis=1) / 2
    if len(means) == 2:
        return means[1:] - means[:1], offsets[1:] - offsets[:1]
    return means, offsets


KINDS: dict[str, Callable[[np.ndarray, np.ndarray, float], tuple[np.ndarray, np.ndarray]]] = {
    "logistic": _logistic,
    "ridge": _ridge,
    "mean_difference": _mean_difference,
}


def check_strength(C: Any) -> None:
    """Raises `InputError` for a `C` that is not a positive number."""
    if not isinstance(C, Real) or not float(C) > 0:
        raise InputError(f"C={shown(C)}: expected a positive number, the inverse of the regularisation")


def _has_probabilities(probe: LinearProbe) -> bool:
    if probe.kind != "logistic":
        raise AttributeError(f"a probe of kind {probe.kind!r} has scores but no probabilities: use decision_function")
    return True


class LinearProbe(ClassifierMixin, BaseEstimator, StoredValue):
    """A linear classifier of standardised features, as a scikit-learn estimator; the module explains its three kinds.

    >>> x = np.random.default_rng(0).normal(size=(200, 5))
    >>> probe = LinearProbe(kind="mean_difference").fit(x, np.where(x[:, 0] > 0, "right", "left"))
    >>> probe.predict([[2.0, 0, 0, 0, 0]]).tolist(), int(np.abs(probe.coef_).argmax())
    (['right'], 0)

    `C` is the inverse of the strength of regularisation, as in scikit-learn: the `C` of LogisticRegression, 1/alpha
    of RidgeClassifier. "mean_difference" has no regularisation.

    After `fit`: `classes_`; `mean_` and `scale_` [feature] of the training data; `coef_` [class, feature] and
    `intercept_` [class], one row for two classes, in the units of the features as they came in. So `coef_`
    is a direction in the model's own space, and `coef_ * scale_` says how much each feature matters. For
    "mean_difference" of two classes, `coef_ * scale_**2` is the plain difference of their means.

    `fit` raises `InputError` for an unknown kind, for a `C` that is not positive, for labels of one class, and where some are
    missing.
    scikit-learn's own `ValueError` says what is wrong with malformed features.
    """

    def __init__(self, kind: str = "logistic", C: float = 1.0) -> None:
        self.kind = kind
        self.C = C

    def fit(self, X: Features, y: Any) -> LinearProbe:
        """Standardise `X` [example, feature] and choose hyperplanes that separate the classes of `y` [example]."""
        checked_choice(self.kind, "kind", KINDS)
        check_strength(self.C)
        if not _are_numbers(y):
            read_labels(y)  # what numpy would turn into strings or numbers: missing labels, and 1 beside "1"
        X, y = validate_data(self, _array(X), y, dtype=[np.float64, np.float32], ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(f"all labels are {self.classes_[0]!r}, one class: expected two classes or more")
        self.mean_ = X.mean(axis=0, dtype=np.float64)
        centred = X - self.mean_.astype(X.dtype)
        unit = _power_of_two(np.maximum(centred.max(axis=0), -centred.min(axis=0)))
        centred /= unit  # squares of huge or tiny features would overflow or vanish
        spread = np.sqrt(np.einsum("ij,ij->j", centred, centred) / len(X)) * unit.astype(np.float64)
        size = np.abs(self.mean_)
        # a feature that varies by rounding alone is brought near 0, so that it does not become noise of size 1
        varies = spread > _ROUNDINGS * np.finfo(X.dtype).eps * size
        self.scale_ = np.where(varies, spread, np.where(spread > 0, size, 1.0))
        centred *= (unit / self.scale_).astype(X.dtype)
        weights, offsets = KINDS[self.kind](centred, numbers, float(self.C))
        self.coef_ = weights / self.scale_
        self.intercept_ = offsets - self.coef_ @ self.mean_
        return self

    def decision_function(self, X: Features) -> np.ndarray:
        """The scores [example, class]; for two classes [example], positive for the second."""
        check_is_fitted(self)
        X = validate_data(self, _array(X), dtype=np.float64, reset=False)
        scores = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Features) -> np.ndarray:
        """The class of each example: the one with the highest score."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]

    @available_if(_has_probabilities)
    def predict_proba(self, X: Features) -> np.ndarray:
        """The probability of each class [example, class]; for "logistic" only."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            scores = np.stack([np.zeros_like(scores), scores], axis=1)
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def score(self, X: Features, y: Any, sample_weight: Any = None) -> float:
        """The accuracy on `X` and `y`.

        Raises `InputError` where there is not one label an example, where some are missing, and where they look like the classes
        but are of another kind (1 and "1").
        """
        predicted = self.predict(X)
        labels, numbers = read_labels(y, len(predicted))
        classes = self.classes_.tolist()
        _, joint = read_labels([*classes, *labels], name="the labels of fit and score")
        right = joint[np.searchsorted(self.classes_, predicted)] == joint[len(classes) :][numbers]
        return float(np.average(right, weights=sample_weight))

    def get_state(self) -> dict[str, Any]:
        """The fitted probe as arrays and plain values; `from_state` makes it again."""
        check_is_fitted(self)
        state = {name: getattr(self, name) for name in _STATE}
        return {"kind": self.kind, "C": float(self.C), **state, "classes_": self.classes_.tolist()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> LinearProbe:
        """The probe that `get_state` described."""
        probe = cls(kind=state["kind"], C=state["C"])
        for name in _STATE:
            setattr(probe, name, np.asarray(state[name]))
        probe.n_features_in_ = probe.coef_.shape[1]
        return probe


def _power_of_two(sizes: np.ndarray) -> np.ndarray:
    """The powers of two just below these sizes, in their precision, and 1 for 0: division by them rounds nothing."""
    return np.where(sizes > 0, np.ldexp(np.ones_like(sizes), np.frexp(sizes)[1] - 1), 1)


def _are_numbers(labels: Any) -> bool:
    """Whether scikit-learn reads these as the numbers that they are, and refuses NaN among them."""
    if isinstance(labels, torch.Tensor) or not hasattr(labels, "__len__") or getattr(labels, "ndim", 1) != 1:
        return True
    return type(labels) is np.ndarray and labels.dtype.kind in "fiubc"


def _array(x: Features) -> Any:
    """An array in the precision of `x`, or in float32 where numpy or scikit-learn lack that precision."""
    if not isinstance(x, torch.Tensor):
        return x
    x = x.detach().cpu()
    return (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).numpy()
