"""The errors of this package.

Every error is an `InterpError`. Its message is one line: the value at fault, what was expected, and what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

_Value = TypeVar("_Value")


class InterpError(Exception):
    """The base class of the errors that this package raises."""


class InputError(InterpError, ValueError):
    """An argument has a value that cannot be used, or a file has the wrong content."""


class NothingSelected(InputError):
    """Positions select nothing in any row of a batch. A run over many batches can leave these rows as they are."""


class RowError(InputError):
    """Rows of a batch cannot be used, each by a fault of its own; a run can go on without them.

    `faults` has the number of each such row, and the words before and after the name of the row. The message is that of
    the first: whoever knows the rows by better names than their numbers says them with `messages`.

    >>> error = RowError({1: ("position 9: ", " has 5 real tokens")})
    >>> str(error), error.messages(["row 70 ('cat')", "row 71 ('dog')"])
    ('position 9: row 1 has 5 real tokens', {1: "position 9: row 71 ('dog') has 5 real tokens"})
    """

    def __init__(self, faults: Mapping[int, tuple[str, str]]):
        super().__init__(faults)
        self.faults = dict(faults)

    def __str__(self) -> str:
        row, (before, after) = next(iter(self.faults.items()))
        return f"{before}row {row}{after}"

    def messages(self, names: Sequence[str]) -> dict[int, str]:
        """What is wrong with each of the rows, whose names are those of all rows of the batch."""
        return {row: f"{before}{names[row]}{after}" for row, (before, after) in self.faults.items()}


def for_each_row(function: Callable[[int], _Value], rows: int) -> list[_Value]:
    """`function` of the number of each row, in order. Raises `RowError` with the faults of all rows at which it fails."""
    results, faults = [], dict[int, tuple[str, str]]()
    for row in range(rows):
        try:
            results.append(function(row))
        except RowError as error:
            faults |= error.faults
    if faults:
        raise RowError(faults)
    return results


class InputTypeError(InterpError, TypeError):
    """An argument has a type that cannot be used."""


class LayoutError(InterpError):
    """A model's parts cannot be found, or a proof of its layout failed. Its layout is never guessed."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or on a GPU: then what was computed is not at fault."""
    # torch has an error of its own, and torch is not loaded here.
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error) or "not enough memory" in str(error)


def reason_of(error: BaseException, longest: int = 200) -> str:
    """An error of another package as a part of a line: its type and its message, cut to `longest` characters.

    >>> reason_of(ValueError("two\\nlines"))
    'ValueError: two lines'
    """
    return " ".join(f"{type(error).__name__}: {error}".split())[:longest]


def shown(value: Any) -> str:
    """A value as one line of a message: an array as its type and shape, anything else as its repr, cut to 120 characters.

    >>> shown([1, 2]), shown("x" * 200)[:8]
    ('[1, 2]', "'xxxxxxx")
    """
    if getattr(value, "shape", ()):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 120 else f"{text[:117]}..."
