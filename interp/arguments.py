"""Checks of arguments: a number, a choice or a seed, taken in any form that means it and refused in one line otherwise.

Every check gives the value back as plain Python, so a caller writes ``seed = checked_seed(seed)``. A number may come from
numpy or torch; a bool is never a number, and no float is rounded to an int.

>>> checked_int(3, "k", least=1)
3
>>> checked_choice("mean", "reduce", ("mean", "last"))
'mean'
"""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable
from typing import Any, TypeVar

from interp.errors import InputError, shown

# numpy, torch and scikit-learn all take a seed; scikit-learn takes the fewest.
_SEEDS = 2**32
_FLOAT32_MAX = 3.4028234663852886e38
Choice = TypeVar("Choice")


def as_int(value: Any) -> int | None:
    """The value as an int, numpy's and torch's too; None for anything else."""
    if _is_bool(value):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def as_ints(values: Any) -> list[int] | None:
    """One int, or several (a list, a tuple, a range, an array), as a list; None where any of them is not an int."""
    values = values.tolist() if hasattr(values, "tolist") else values
    numbers = [as_int(value) for value in (values if isinstance(values, Iterable) else [values])]
    return None if None in numbers else [number for number in numbers if number is not None]


def as_number(value: Any) -> float | None:
    """The value as a float, numpy's and torch's too; None for anything that is not one real number."""
    if _is_bool(value) or not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # more than one number, or one that is too large
        return None


def checked_int(value: Any, name: str, least: int = 0, most: int | None = None, what: str = "an int") -> int:
    """An int from `least` to `most`. Raises `InputError` for anything else."""
    number = as_int(value)
    if number is None or number < least or (most is not None and number > most):
        reach = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise InputError(f"{name}={shown(value)}: expected {what} {reach}")
    return number


def checked_number(value: Any, name: str) -> float:
    """A real number that float32 holds. Raises `InputError` for anything else."""
    number = as_number(value)
    if number is None or not math.isfinite(number) or abs(number) > _FLOAT32_MAX:
        raise InputError(f"{name}={shown(value)}: expected a finite number, as float32 holds it")
    return number


def checked_share(value: Any, name: str, below: float = 1.0) -> float:
    """A share above 0 and below `below`. Raises `InputError` for anything else."""
    number = as_number(value)
    if number is None or not 0 < number < below:
        raise InputError(f"{name}={shown(value)}: expected a share between 0 and {below:g}")
    return number


def checked_choice(value: Choice, name: str, choices: Collection[Any]) -> Choice:
    """One of the `choices`. Raises `InputError`, with all of them, for anything else."""
    if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in choices):
        raise InputError(f"{name}={shown(value)} is unknown: use one of {', '.join(map(str, choices))}")
    return value


def checked_flag(value: Any, name: str) -> bool:
    """True or False. Raises `InputError` for anything else: a word would count as True, whatever it says."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={shown(value)}: expected True or False")
    return value


def checked_seed(seed: Any) -> int:
    """What random draws begin with: an int from 0 to 2**32 - 1. Raises `InputError` for anything else."""
    number = as_int(seed)
    if number is None or not 0 <= number < _SEEDS:
        raise InputError(f"seed={shown(seed)}: expected an int of 0 or more, below 2**32")
    return number


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
