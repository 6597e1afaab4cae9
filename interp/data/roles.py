"""Roles: which column of a table is a row's text, answer, masks, id, label, group; the rest are labels by their own names.

Data sets have different names for the same things, so the user maps their names to the roles once
(``columns={"text": "question", "label": "category"}``; None for a role that no column plays), and one place turns the cells
of any table into a `Row`.

A prompt writes the text of every row from its cells: ``"<image> {question} Answer yes or no."``. A field in braces is the
name of a column and nothing else: no attribute, index or format is followed, and braces in the data mean nothing. A
prompt without ``<image>`` makes rows of text: the captions of pictures, say, without the pictures.

A row with an answer is an exchange: its text, and the answer. Where the data has conversations, their turns are the
exchanges, unless ``columns={"answer": ...}`` names an answer; a prompt writes the first thing that the human says.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from interp.data.conversations import Conversation, read_turns
from interp.data.data import Data
from interp.data.rows import Row
from interp.errors import InputError, shown
from interp.models.batches.images import images_in
from interp.models.batches.prompts import PLACEHOLDER


def parse_prompt(prompt: str, fields: Sequence[str], argument: str = "prompt") -> Prompt:
    """A template with `fields` in braces. Raises `InputError` for any other field and for an open brace."""
    try:
        parsed = list(string.Formatter().parse(prompt))
    except ValueError as error:
        raise InputError(f"{argument}={shown(prompt)}: {error}, write {{{{ and }}}} for braces themselves") from None
    for _, name, form, conversion in parsed:
        if name is None:
            continue
        if form or conversion or "." in name or "[" in name:
            raise InputError(
                f"{argument}={shown(prompt)}: expected the plain name of a column in braces, as in {{text}}"
            )
        if name not in fields:
            known = ", ".join(fields) or "none"
            raise InputError(f"{argument}={shown(prompt)} has the unknown field {name!r}: use {known}")
    return Prompt(tuple((words, name) for words, name, _, _ in parsed))


def find_roles(
    data: Data,
    names: Sequence[str],
    plain_names: Sequence[str],
    image: str | None,
    turns: str | None = None,
    masks: str | None = None,
) -> Roles:
    """The roles of a table with the columns `names`, of which `plain_names` hold plain values, `image` the pictures, `turns`
    conversations and `masks` masks, unless the user names another.

    Raises `InputError` for a role or a prompt with an unknown column, and for a table without images and texts.
    """
    text, identity = (column_of(role, data, plain_names, default=role) for role in ("text", "id"))
    if image is None and (not plain_names or (text is None and data.prompt is None)):
        raise InputError(
            f"the data has the columns {', '.join(names)}: none is named image or text, "
            'say which are with columns={"image": ..., "text": ...}'
        )
    columns = data.columns or {}
    labels = {role: columns[role] for role in _LABELS if column_of(role, data, plain_names)}
    masks = column_of("masks", data, names) if "masks" in columns else masks
    special = {image, text, identity, masks, *labels.values(), *({*_LABELS} & columns.keys())}
    others = {name: name for name in plain_names if name not in special}
    template = None if data.prompt is None else parse_prompt(data.prompt, plain_names)
    spans = {name: parse_prompt(span, plain_names, f"spans[{name!r}]") for name, span in (data.spans or {}).items()}
    answer = column_of("answer", data, plain_names, default="answer")
    turns = None if columns.get("answer") else turns
    return Roles(text, identity, {**labels, **others}, template, {}, spans, answer, turns, masks)


def column_of(role: str, data: Data, names: Sequence[str], default: str | None = None) -> str | None:
    """The column that plays a role: the one that the user names (None: no column), else the default where the table has it."""
    columns = data.columns or {}
    if role not in columns:
        return default if default in names else None
    column: str | None = columns[role]
    if column is not None and column not in names:
        kind = "columns" if role in ("image", "masks") else "columns of plain values"
        raise InputError(f"columns says {column!r} for {role}: the data has the {kind} {', '.join(names)}")
    return column


# Roles whose column is a label of the row by the name of the role.
_LABELS = ("label", "group", "answer")
_NO_ID = "has no id: fill it in, or name another column with columns={'id': ...}"


def check_unique_ids(cells: Iterable[Any], data: Data) -> None:
    """Refuse ids that repeat, and rows without one unless rows that cannot be read are skipped."""
    rows: dict[str, int] = {}
    for index, cell in enumerate(cells):
        if cell is None:
            if data.on_error == "raise":
                raise InputError(f"row {index} {_NO_ID}")
            continue
        name = str(cell)
        if name in rows:
            raise InputError(
                f"rows {rows[name]} and {index} have the same id {name!r}: rename that column, or name one without "
                "repeats with columns={'id': ...}, or none with columns={'id': None}"
            )
        rows[name] = index


def plain(value: Any) -> Any:
    """A number of numpy or torch as Python's own; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def is_plain(value: Any) -> bool:
    """Whether a value can be a label."""
    return value is None or isinstance(value, str | int | float | bool)


@dataclass(frozen=True)
class Prompt:
    """A template as its pieces in order: words as they are, each followed by the name of a column or by None."""

    pieces: tuple[tuple[str, str | None], ...]

    def fill(self, cells: Mapping[str, Any]) -> str:
        """The text of one row; empty where one of its cells is, for half a text is a wrong one."""
        if any(name is not None and cells[name] is None for _, name in self.pieces):
            return ""
        return "".join(words + ("" if name is None else str(cells[name])) for words, name in self.pieces)


@dataclass(frozen=True)
class Roles:
    """The columns of `text` and `id` (None where the data has none) and of each label by its name, and the `prompt`.

    `kinds` holds, for a column whose cells are text, the type that its labels are made with (`int`, `float`). `spans` are the
    templates of named parts of the text. `answer`, `turns` and `masks` are the columns of answers, conversations and masks.
    """

    text: str | None
    id: str | None
    labels: Mapping[str, str]
    prompt: Prompt | None = None
    kinds: Mapping[str, Callable[[str], Any]] = field(default_factory=dict)
    spans: Mapping[str, Prompt] = field(default_factory=dict)
    answer: str | None = None
    turns: str | None = None
    masks: str | None = None

    def row(self, index: int, image: Any, cells: Mapping[str, Any]) -> Row:
        """The row of these pictures and cells.

        It cannot be read if it has no id where the others do, a label that is not a plain value, or a text of its own without
        a place for its pictures. An `InputError` as its text says why else.
        """
        labels, error = {}, None
        for label, column in self.labels.items():
            try:
                labels[label] = self._label(column, cells[column])
            except InputError as wrong:
                labels[label], error = None, wrong
        name = cells[self.id] if self.id is not None else index
        if name is None:
            name, error = index, InputError(f"it {_NO_ID}")
        error = cells["text"] if isinstance(cells.get("text"), InputError) else error
        if error is not None:
            return Row(index, str(name), None, "", labels, error)
        count = len(images_in(image))
        text = self._text(cells, count)
        said, unread = self._conversation(cells, text), cells.get(self.turns) if self.turns else None
        in_turns = self.prompt is None and any(PLACEHOLDER in asked for asked, _ in said.turns)
        if self.text is not None and cells[self.text] is None and isinstance(unread, InputError):
            # Without its conversation the row has a text only where a prompt writes one without it.
            error = unread if self.prompt is None or not text else None
        elif count and text and PLACEHOLDER not in text and self.prompt is None and not in_turns:
            error = InputError(
                f'its text {shown(text)} has no {PLACEHOLDER}: give prompt="{PLACEHOLDER} {{{self.text}}}", or '
                f'prompt="{{{self.text}}}" for the text without its image'
            )
        if text and PLACEHOLDER not in text and not in_turns:
            count = 0
        spans = {span: template.fill(cells) or None for span, template in self.spans.items()}
        masks = () if self.masks is None else cells.get(self.masks) or ()
        image = image if count else None
        return Row(index, str(name), image, text, labels, error, spans, said.turns, said.system, said.fault, masks)

    def _conversation(self, cells: Mapping[str, Any], text: str) -> Conversation:
        """The exchanges of a row with this text."""
        held = None if self.turns is None else cells.get(self.turns)
        answer = None if self.answer is None else plain(cells.get(self.answer))
        if isinstance(held, InputError):
            return Conversation(fault=held)
        if not isinstance(held, Conversation):
            if answer is None:
                return Conversation()
            if not isinstance(answer, str) and type(answer) is not int:
                what = "expected a text or a whole number, write it as the model shall say it"
                return Conversation(fault=InputError(f"its answer is {shown(answer)}: {what}"))
            held = read_turns([("human", text), ("gpt", str(answer))])
        if self.prompt is None or not held.turns:
            return held
        if any(name == self.answer for _, name in self.prompt.pieces if name):
            return Conversation(fault=InputError(f"the prompt has {{{self.answer}}}, its answer: leave that field out"))
        if not text:
            return Conversation(fault=InputError("a column that the prompt is made of is empty: fill it in"))
        return replace(held, turns=((text, held.turns[0][1]), *held.turns[1:]))

    def _text(self, cells: Mapping[str, Any], count: int) -> str:
        if self.prompt is not None:
            return self.prompt.fill(cells)
        text = None if self.text is None else cells[self.text]
        return " ".join([PLACEHOLDER] * count) if text is None else str(text)

    def _label(self, column: str, cell: Any) -> Any:
        value = plain(cell)
        if not is_plain(value):
            raise InputError(
                f"column {column!r} holds {shown(value)}: expected a plain value as in the rows before, or remove that column"
            )
        return self.kinds[column](value) if column in self.kinds and value is not None else value
