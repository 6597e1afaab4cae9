"""The errors of this package.

Every error is an `InterpError`. Its message is one line: the value at fault, what was expected, and what to do.
"""

from __future__ import annotations

from typing import Any


class InterpError(Exception):
    """The base class of the errors that this package raises."""


class InputError(InterpError, ValueError):
    """An argument has a value that cannot be used, or a file has the wrong content."""


class InputTypeError(InterpError, TypeError):
    """An argument has a type that cannot be used."""


class LayoutError(InterpError):
    """A model's parts cannot be found, or a proof of its layout failed. Its layout is never guessed."""


def shown(value: Any) -> str:
    """A value as one line of a message: an array as its type and shape, anything else as its repr, cut to 120 characters.

    >>> shown([1, 2]), shown("x" * 200)[:8]
    ('[1, 2]', "'xxxxxxx")
    """
    if getattr(value, "shape", ()):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 120 else f"{text[:117]}..."
