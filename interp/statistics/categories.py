"""Categories: labels of any kind as numbers of classes. Labels, groups, types and clusters are all read here.

A label is a string, a bool or a number, in a list, an array, a tensor or a column of a frame. A missing entry (None, NaN,
pandas' NA and NaT, a masked entry) has no class, and neither has an infinite number. An empty string is a label. Labels of two
kinds that look alike, `1` and `"1"` or `1` and `True`, are refused: one of the two is a mistake, and nobody can say which. 1 and
1.0 are one number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from numbers import Integral, Real
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from interp.errors import InputError, InputTypeError, shown

Label = str | bool | int | float
Labels = Any  # one label for each example: a list, an array, a tensor, a column of a frame


def read_labels(values: Any, n: int | None = None, name: str = "labels") -> tuple[list[Label], Int[np.ndarray, " n"]]:
    """The distinct labels as plain Python, in order of appearance, and the number of each example's label among them.

    >>> distinct, numbers = read_labels(["b", "a", "b"])
    >>> distinct, numbers.tolist()
    (['b', 'a'], [0, 1, 0])

    `n` is the number of examples, None where any will do, and `name` the argument's name in messages.

    Raises `InputTypeError` for anything but a sequence; `InputError` where there is not one label for each example, where some
    are missing or not finite, and where two look alike (1 and "1") or one is neither string nor bool nor number.
    """
    listed = _listed(values, n, name)
    read = [_plain(label, name) for label in listed]
    labels = [label for label in read if label is not None]
    missing = [place for place, label in enumerate(read) if label is None]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(read)} {name} are missing or not finite, the first at example {missing[0]} ({name} contain"
            f" {shown(listed[missing[0]])}): drop these examples, or give them a label"
        )
    classes: dict[str, tuple[Label, int]] = {}
    numbers = np.empty(len(labels), dtype=np.int64)
    for place, label in enumerate(labels):
        known, number = classes.setdefault(_face(label), (label, len(classes)))
        if _kind(known) is not _kind(label):
            raise _look_alike(name, known, label)
        numbers[place] = number
    truth, number_like = (
        next((label for label, _ in classes.values() if _kind(label) is kind), None) for kind in (bool, float)
    )
    if truth is not None and number_like is not None:
        raise _look_alike(name, truth, number_like)
    return [label for label, _ in classes.values()], numbers


def _look_alike(name: str, one: Label, other: Label) -> InputError:
    return InputError(
        f"{name} have both {shown(one)} and {shown(other)}, which look alike: expected labels of one kind, such as strings"
    )


def labels_of(values: Any, acts: Any, site: str, name: str = "labels") -> Any:
    """The labels that an argument means: a string names a label of the activations, and gives one label for each example of a
    site; everything else stays as it is.

    Raises `InputError` for a name that the activations do not have, and for one label a row where rows have several examples.
    """
    columns = getattr(acts, "labels", None)
    if not isinstance(columns, Mapping):
        return values
    rows = acts.places(site).rows.tolist()
    if isinstance(values, str):
        if values not in columns:
            known = ", ".join(map(repr, columns)) or "none: pass one label an example"
            raise InputError(f"{name}={values!r} is not a label of these activations: they have {known}")
        return [columns[values][row] for row in rows]
    if hasattr(values, "__len__") and len(values) == len(acts.ids) != len(rows):
        raise InputError(
            f"{len(values)} {name}, one a row, for {len(rows)} examples: expected one an example, as [{name}[row] for row in"
            f" acts.places({site!r}).rows]"
        )
    return values


def _listed(values: Any, n: int | None, name: str) -> list[Any]:
    """The labels as a list; a masked entry becomes None."""
    expected = "expected one label an example"
    if isinstance(values, str | bytes):
        raise InputError(
            f"{len(values)} {name}{'' if n is None else f' for {n} examples'}: {name}={shown(values)} is a string; {expected}, or"
            " activations, whose labels have names"
        )
    if isinstance(values, Mapping | Set) or not hasattr(values, "__len__"):
        raise InputTypeError(f"{name} is a {type(values).__name__}: {expected}")
    shape = getattr(values, "shape", None)
    if shape is not None and len(shape) != 1:
        raise InputError(f"{name} have shape {tuple(shape)!r}: {expected}")
    if n is not None and len(values) != n:
        raise InputError(f"{len(values)} {name} for {n} examples: expected one an example")
    if not len(values):
        raise InputError(f"{name} have shape (0,): {expected}")
    if isinstance(values, np.ndarray) and values.dtype.kind == "U":
        _refuse_words_for_nan(values, name)
    dates = getattr(getattr(values, "dtype", None), "kind", "") in ("m", "M")  # numpy lists them as ints
    listed = list(values) if dates or not hasattr(values, "tolist") else values.tolist()
    sizes = {np.shape(label) if isinstance(label, list | tuple) else np.ndim(label) for label in listed}
    if sizes - {0}:
        if len(sizes) > 1:
            raise InputError(
                f"{name}={shown(values)} have several lengths: expected strings or integers, one an example"
            )
        raise InputError(f"{name} have shape {np.shape(listed)!r}: {expected}")
    return listed


def _refuse_words_for_nan(values: np.ndarray, name: str) -> None:
    """Numpy turns NaN in a list of strings into the string "nan", in an array wide enough for any number."""
    lost = np.flatnonzero(values == "nan")
    if len(lost) and values.dtype.itemsize // 4 >= 32 > max(map(len, values.tolist())):
        raise InputError(
            f"{len(lost)} of {len(values)} {name} are missing, the first at example {lost[0]}, where numpy has written 'nan' for"
            " NaN: drop these examples, or pass a list"
        )


def _plain(label: Any, name: str) -> Label | None:
    """A label as plain Python, None where it is missing or not finite."""
    if isinstance(label, np.generic) or type(label).__module__.startswith("torch"):
        label = label.item()
    if isinstance(label, bytes):
        return label.decode("utf-8", "backslashreplace")
    if isinstance(label, str | bool):
        return str(label) if isinstance(label, str) else label
    if label is None or label is np.ma.masked or label is pd.NA or pd.isna(label):
        return None
    if isinstance(label, Integral):
        return int(label)
    if isinstance(label, Real):
        number = float(label)
        return number if math.isfinite(number) else None
    raise InputError(f"{name} contain {shown(label)}: expected strings or integers")


def _kind(label: Label) -> type:
    return next((kind for kind in (str, bool) if isinstance(label, kind)), float)


def _face(label: Label) -> str:
    """How a label looks; numbers as large as each other look alike, and so do 1 and True."""
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label)
