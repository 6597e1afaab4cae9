"""Checks of arguments: numbers, choices, flags and seeds, in any form that is unambiguous.

Every check returns the value as plain Python, so a caller writes ``seed = checked_seed(seed)``. Numbers may come from numpy
or torch. A bool is never a number, and a float is never rounded to an int. An argument that fails a check raises `InputError`
with a message of one line that holds the argument's name, its value and what was expected.

>>> checked_int(3, "k", least=1)
3
>>> checked_choice("mean", "reduce", ("mean", "last"))
'mean'
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection
from typing import Any, TypeVar

from interp.errors import InputError, shown

# The seeds that numpy, torch and scikit-learn all accept.
_SEEDS = 2**32
# From here on a number rounds to infinity in float32.
_FLOAT32_LIMIT = 2.0**128 - 2.0**103
Choice = TypeVar("Choice")


def as_int(value: Any) -> int | None:
    """The value as an int if it is an int of Python, numpy or torch, else None."""
    if _is_bool(value):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def as_ints(values: Any) -> list[int] | None:
    """One int or several (a list, a tuple, a range, an array) as a list; None if any of them is not an int.

    >>> as_ints(range(3)), as_ints(5), as_ints([1, 2.0])
    ([0, 1, 2], [5], None)
    """
    try:
        values = list(values)
    except TypeError:  # a single value, a 0-d array among them
        values = [values]
    numbers = [as_int(value) for value in values]
    return None if None in numbers else [number for number in numbers if number is not None]


def as_number(value: Any) -> float | None:
    """The value as a float if it is one real number of Python, numpy or torch, else None."""
    if _is_bool(value) or not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # several numbers, or one that is too large
        return None


def checked_int(value: Any, name: str, least: int = 0, most: int | None = None, what: str = "an int") -> int:
    """The value as an int from `least` to `most`. Raises `InputError` for anything else; `what` replaces "an int" there."""
    number = as_int(value)
    if number is None or number < least or (most is not None and number > most):
        reach = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise InputError(f"{name}={shown(value)}: expected {what} {reach}")
    return number


def checked_number(value: Any, name: str) -> float:
    """The value as a finite float within the range of float32. Raises `InputError` for anything else."""
    number = as_number(value)
    if number is None or not math.isfinite(number) or abs(number) >= _FLOAT32_LIMIT:
        raise InputError(f"{name}={shown(value)}: expected a finite number in the range of float32")
    return number


def checked_share(value: Any, name: str, below: float = 1.0) -> float:
    """A share above 0 and below `below`. Raises `InputError` for anything else."""
    number = as_number(value)
    if number is None or not 0 < number < below:
        raise InputError(f"{name}={shown(value)}: expected a share between 0 and {below:g}")
    return number


def checked_choice(value: Choice, name: str, choices: Collection[Any]) -> Choice:
    """The one of the `choices` that the value equals, in type too: a string may be numpy's. Raises `InputError`, with all
    choices, if there is none."""
    for choice in choices:
        alike = type(value) is type(choice) or (isinstance(value, str) and isinstance(choice, str))
        if value is choice or (alike and value == choice):
            return choice
    raise InputError(f"{name}={shown(value)} is unknown: use one of {', '.join(map(str, choices))}")


def checked_flag(value: Any, name: str) -> bool:
    """The value if it is True or False. Raises `InputError` for anything else, such as the string "no", which is truthy."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={shown(value)}: expected True or False")
    return value


def checked_seed(seed: Any) -> int:
    """The seed as an int from 0 to 2**32 - 1. Raises `InputError` for anything else."""
    number = as_int(seed)
    if number is None or not 0 <= number < _SEEDS:
        raise InputError(f"seed={shown(seed)}: expected an int of 0 or more, below 2**32")
    return number


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
