"""Options that several commands have, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interp.errors import InputError

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")]


def role_and_name(text: str) -> tuple[str, str]:
    """The role and the column that a ``ROLE=NAME`` gives it."""
    role, _, name = text.partition("=")
    if not role or not name:
        raise InputError(f"--column {text!r}: expected a role and a column's name, as in label=category")
    return role, name


def name_or_numbers(option: str, text: str) -> Any:
    """A name as it is, numbers with commas as a list of ints."""
    if not any(each.isdigit() for each in text) or any(each.isalpha() for each in text):
        return text
    try:
        return [int(each) for each in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text!r}: expected a name, or numbers with commas between them, 0,4,8") from None


def source_named(text: str) -> Any:
    """The data that an argument names: the toy's scenes, their captions or conversations about them, or a path."""
    kind, _, count = text.partition(":")
    if kind not in ("scenes", "captions", "conversations") or Path(text).exists():
        return text
    if not count.isdecimal() or not int(count):
        raise InputError(f"{text!r}: expected how many, as in {kind}:200, or a folder")
    from interp import toy

    if kind == "conversations":
        return toy.conversations(int(count), seed=0)
    return toy.scenes(int(count), seed=0) if kind == "scenes" else toy.scenes(int(count), seed=0).captions()
