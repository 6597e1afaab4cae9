"""The errors of this package. Every one is an `InterpError` and says in one line what was seen and what to do."""

from __future__ import annotations


class InterpError(Exception):
    """The base of every error this package raises on purpose."""


class InputError(InterpError, ValueError):
    """A value that a caller passed cannot be used: the message names it, what was expected and what to do."""


class InputTypeError(InterpError, TypeError):
    """An argument is of a kind that is not taken here."""


class LayoutError(InterpError):
    """A model whose parts cannot be found, or that failed a proof by effect: it is refused by name, never guessed at."""
