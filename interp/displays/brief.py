"""Objects in a few lines of text: what they hold, never the numbers themselves.

A tensor is its shape and type, a long list its first entries and its length. So an object is at most `MOST_LINES` lines,
however much it holds. A class that derives from `Display` has such a repr, a dataclass too, and a view in notebooks
where `interp.displays.views` has one for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

MOST_LINES, WIDTH = 18, 118
# The longest form of one value, and the entries of a list that are shown.
_LONGEST, _ENTRIES = 90, 4


class Display:
    """The base of values that users look at: a short repr, and a view in notebooks."""

    # How many digits of a number are shown, and whether a long repr is broken into lines.
    _digits, _broken = 6, True

    def __init_subclass__(cls) -> None:
        # A dataclass would write a repr of its own, which prints whole tensors; it leaves one that the class itself has.
        cls.__repr__ = cls.__repr__  # type: ignore[method-assign]

    def __repr__(self) -> str:
        name = type(self).__name__
        try:
            shown = [each for each in fields(self) if each.repr]  # type: ignore[arg-type]
            items = [f"{each.name}={brief(getattr(self, each.name), self._digits)}" for each in shown]
            return in_lines(name, items) if self._broken else f"{name}({', '.join(items)})"
        except Exception:  # an object that is not complete, as while it is made
            return f"{name}(...)"

    def _repr_html_(self) -> str | None:
        """The view of this object in a notebook, None where it has none: then the notebook shows its repr."""
        # Called up by name: values depend on no figures, and nothing of this is loaded outside a notebook.
        return importlib.import_module("interp.displays.views").view(self)


def in_lines(name: str, items: list[str]) -> str:
    """``name(item, item, ...)``, in one line where it fits, else in as few as it needs.

    >>> in_lines("Point", ["x=1", "y=2"])
    'Point(x=1, y=2)'
    """
    whole = f"{name}({', '.join(items)})"
    if len(whole) <= WIDTH:
        return whole
    lines = [""]
    for number, item in enumerate(items):
        item = f"{item[: WIDTH - 7]}..." if len(item) > WIDTH - 4 else item
        item += "," if number + 1 < len(items) else ")"
        if lines[-1] and len(lines[-1]) + len(item) + 3 > WIDTH:
            lines.append("")
        lines[-1] += f" {item}" if lines[-1] else f"  {item}"
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], "  ...)"]
    return "\n".join([f"{name}(", *lines])


def brief(value: Any, digits: int = 6) -> str:
    """A value in a part of a line: an array as its type and shape, a long list as its first entries and its length.

    >>> brief(["a"] * 9), brief("x" * 200)[:4], brief(range(3))
    ("9 x 'a'", "'xxx", 'range(0, 3)')
    """
    if isinstance(value, float):
        return min(repr(value), f"{value:.{digits}g}", key=len)
    if value is None or isinstance(value, bool | int | range):
        return repr(value)
    if isinstance(value, str):
        # The start of a long text is enough: the repr of all of a document takes long.
        return shortened(repr(value if len(value) <= 2 * _LONGEST else value[: 2 * _LONGEST]))
    if isinstance(value, Display):
        return _inline(repr(value), type(value).__name__)
    if getattr(value, "shape", None) is not None and hasattr(value, "dtype"):
        return array_form(value)
    if isinstance(value, list | tuple | set | frozenset):
        return _several(list(value), ("[", "]") if isinstance(value, list) else ("(", ")"), digits)
    if isinstance(value, Mapping):
        pairs = [f"{brief(key)}: {brief(item, digits)}" for key, item in list(value.items())[:_ENTRIES]]
        return _joined(pairs, len(value), ("{", "}"))
    return _other(value)


def array_form(value: Any) -> str:
    """An array as its type, its shape and its dtype; of a mask also how much of it is True."""
    if not tuple(value.shape) and hasattr(value, "item"):
        return repr(value.item())
    dtype = dtype_name(value)
    chosen = f", {int(value.sum())} True" if dtype == "bool" else ""
    return f"{type(value).__name__}{list(value.shape)} {dtype}{chosen}"


def dtype_name(value: Any) -> str:
    """The dtype of an array or of a model by its short name, such as ``"float32"``."""
    return str(value.dtype).removeprefix("torch.")


def _other(value: Any) -> str:
    name = type(value).__name__
    if hasattr(value, "columns") and hasattr(value, "iloc"):
        return f"{name} of {len(value)} rows: {', '.join(map(str, list(value.columns)[:8]))}"
    if hasattr(value, "convert") and hasattr(value, "mode"):
        return f"{name} {value.size[0]}x{value.size[1]} {value.mode}"
    if isinstance(value, type | Callable) and hasattr(value, "__qualname__"):
        return value.__qualname__
    if is_dataclass(value):
        return f"{name}({', '.join(f'{each.name}={brief(getattr(value, each.name))}' for each in fields(value)[:6])})"
    if type(value).__repr__ is object.__repr__:
        return f"{name}(...)"
    return _inline(repr(value), name)


def _several(values: list[Any], marks: tuple[str, str], digits: int) -> str:
    if len(values) > 2 and all(isinstance(each, str | int | None) and each == values[0] for each in values):
        return f"{len(values)} x {values[0]!r}"
    if len(values) > 2 and {brief(each, digits) for each in values} == {f"{type(values[0]).__name__}(...)"}:
        return f"{len(values)} x {type(values[0]).__name__}"
    return _joined([brief(each, digits) for each in values[:_ENTRIES]], len(values), marks, single=marks[0] == "(")


def _joined(items: list[str], count: int, marks: tuple[str, str], single: bool = False) -> str:
    more = f", ... {count} in all" if count > len(items) else "," if single and count == 1 else ""
    text = f"{marks[0]}{', '.join(items)}{more}{marks[1]}"
    if len(text) <= _LONGEST:
        return text
    first: list[str] = []
    for item in items:
        if first and sum(map(len, first)) + len(item) > _LONGEST - 20:
            break
        first.append(shortened(item, _LONGEST - 20))
    more = f", ... {count} in all" if count > len(first) else ""
    return f"{marks[0]}{', '.join(first)}{more}{marks[1]}"


def _inline(text: str, name: str) -> str:
    """A repr as a part of a line: its name alone where it is longer."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{name}(...)"


def shortened(text: str, longest: int = _LONGEST) -> str:
    """The beginning of a text that is longer than this, with three dots after it.

    >>> shortened("a long text", 8)
    'a lon...'
    """
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
