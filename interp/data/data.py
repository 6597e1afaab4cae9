"""Data as a value: where rows come from, and how their texts are written.

A study reads one data set many times: to capture activations, to fit a lens, to measure the projector. `Data` says once
which columns of it play which role, what a row's text is and what happens to a row that cannot be read. Whatever takes
data takes such a value, or what it is made from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from interp.arguments import checked_choice, checked_flag
from interp.displays import Display
from interp.errors import InputError, InputTypeError, shown

ROLES = ("image", "text", "id", "label", "group", "answer", "masks")


def as_data(data: Any, **keywords: Any) -> Data:
    """Any data as a `Data` with these keywords.

    Raises `InputError` for a keyword beside a `Data` that already says it.
    """
    if not isinstance(data, Data):
        return Data(data, **keywords)
    defaults = {field.name: field.default for field in fields(Data)}
    changes = {name: value for name, value in keywords.items() if value and value != defaults[name]}
    for name, value in changes.items():
        if getattr(data, name) != defaults[name]:
            raise InputError(
                f"{name}={shown(value)} stands beside a Data with {name}={shown(getattr(data, name))}: say it once"
            )
    return replace(data, **changes)


@dataclass(frozen=True)
class Data(Display):
    """Where rows come from and how their texts are written.

    >>> import interp
    >>> captions = interp.Data([(None, "a red 3"), (None, "a blue 7")], prompt="see {text} .")
    >>> interp.capture(interp.load("toy"), captions, positions="text", progress=False)["resid"].shape
    torch.Size([9, 2, 128])

    `source` is a list of batches, of (image, text), of texts, of pictures or of dicts, an iterator of such items, a frame of
    pandas, a data set of scenes, of torch or of the `datasets` package, or the path of a folder or a file; docs/capture.md
    has an example of each.

    `columns` says which columns play the roles image, text, id, label, group, answer and masks, ``{"text": "caption"}``; a
    column that has the name of a role plays it, unless None says that no column does: ``{"id": None}``. An answer makes the
    row an exchange that a model can be tuned on, and masks say where in its picture words stand. `prompt` is the text of each
    row with columns in braces, ``"<image> {caption}"``; a prompt without ``<image>`` makes rows of text, and their images
    are not used. `spans` names parts of each row's text, as `VLM.prepare` takes them, with columns in braces too:
    ``{"object": "{colour} {digit}"}`` becomes positions ``object`` of every batch; a row in which a column is empty has no
    such position. With `chat` each text is put into the model's chat template. A row that cannot be read, or that the model
    cannot take, is an error, or with ``on_error="skip"`` it is left out. `root` is the folder that relative paths of images
    start from: a file's own folder where it is None, and for data in memory the working directory.

    Raises `InputError` for an unknown role or value and `InputTypeError` for a value of another type. The source itself
    is checked where it is read.
    """

    source: Any
    columns: Any = None
    prompt: Any = None
    chat: Any = False
    on_error: Any = "raise"
    root: Any = None
    spans: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.source, Data):
            raise InputTypeError("source is a Data already: expected what a Data is made from, or use it as it is")
        for name, value, kind, expected in (
            ("columns", self.columns, Mapping, "a dict, as in {'text': 'caption'}"),
            ("prompt", self.prompt, str, "a text, as in '<image> {caption}'"),
            ("root", self.root, str | os.PathLike, "the path of a folder"),
            ("spans", self.spans, Mapping, "a dict, as in {'object': '{colour} {digit}'}"),
        ):
            if value is not None and not isinstance(value, kind):
                raise InputTypeError(f"{name}={shown(value)}: expected {expected}")
        unknown = [role for role in self.columns or {} if role not in ROLES]
        if unknown:
            raise InputError(f"columns has the role {unknown[0]!r}: use {', '.join(ROLES)}")
        wrong = [
            span for span in (self.spans or {}).items() if not all(isinstance(each, str) and each for each in span)
        ]
        if wrong:
            raise InputTypeError(
                f"spans has {shown(wrong[0])}: expected a name and a text, as in 'object': '{{colour}}'"
            )
        checked_flag(self.chat, "chat")
        checked_choice(self.on_error, "on_error", ("raise", "skip"))

    def folder(self, default: Path | None = None) -> Path | None:
        """The folder of `root`, or else the default. Raises `InputError` where `root` is not a folder."""
        if self.root is None:
            return default
        folder = Path(os.path.expanduser(self.root)).absolute()
        if not folder.is_dir():
            raise InputError(
                f"root={os.fspath(self.root)!r} is not a folder: expected the one that images are relative to"
            )
        return folder
