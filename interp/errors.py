"""The errors of this package. Every one is an `InterpError` and says in one line what was seen and what to do."""

from __future__ import annotations

from typing import Any


class InterpError(Exception):
    """The base of every error this package raises on purpose."""


class InputError(InterpError, ValueError):
    """A value that a caller passed cannot be used: the message names it, what was expected and what to do."""


class InputTypeError(InterpError, TypeError):
    """An argument is of a kind that is not taken here."""


class LayoutError(InterpError):
    """A model whose parts cannot be found, or that failed a proof by effect: it is refused by name, never guessed at."""


def shown(value: Any) -> str:
    """A value as a message names it, in one line: an array by its kind and shape, anything else as it is written."""
    if getattr(value, "shape", ()):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    written = " ".join(repr(value).split())
    return written if len(written) <= 120 else f"{written[:117]}..."
