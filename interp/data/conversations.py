"""Conversations: what a human and a model say in turn, in LLaVA's format and in that of chat templates.

LLaVA's is a column ``conversations``: ``[{"from": "human", "value": "<image>\\nWhat is this?"}, {"from": "gpt", "value": "A
cat."}]``. That of chat templates is a column ``messages``: ``[{"role": "user", "content": ...}, {"role": "assistant",
"content": "A cat."}]``, where the content is a text or a list of ``{"type": "text", "text": ...}`` and ``{"type":
"image"}``, which become lines and ``<image>``. The pictures themselves stand in the row's column of pictures, in the order
of their places; an image may say which it is, ``"index": 0``.

A conversation has two readings. A capture reads the first turn of the human, the column ``text``, and the first answer to it
is the column ``answer``. Tuning reads all of it: the exchanges of a `Conversation`. So a conversation whose turns do not
alternate is a row that can be captured, and its `fault` says why it cannot be trained on. A conversation without a turn of
the human is a row that cannot be read. A column with one of these names in another format is an ordinary column.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from interp.errors import InputError, shown
from interp.models.batches.prompts import PLACEHOLDER

# The columns of conversations, with the keys of a turn: who speaks, and what is said.
_FORMATS = {"conversations": ("from", "value"), "messages": ("role", "content")}
_HUMAN, _MODEL, _SYSTEM = ("human", "user"), ("gpt", "assistant"), "system"
_Said = Sequence[tuple[Any, Any]]


def conversation_column(columns: Mapping[str, Any]) -> str | None:
    """The column that holds conversations in one of the two formats, of columns with the features or the cells of each."""
    for name, (speaker, _) in _FORMATS.items():
        if name in columns and holds_dicts(columns[name], speaker):
            return name
    return None


def is_empty_conversation(cells: Mapping[str, Any]) -> bool:
    """Whether a column that is named as conversations are is an empty list, which says nothing of its format."""
    return any(isinstance(cells.get(name), list) and not cells[name] for name in _FORMATS)


def holds_dicts(value: Any, key: str) -> bool:
    """Whether a cell, or the feature of a column, is a list of dicts with a key, or as `datasets` has it a dict of lists."""
    dicts = getattr(value, "feature", value)
    if isinstance(dicts, Mapping):
        return key in dicts
    return isinstance(dicts, list | tuple) and bool(dicts) and all(isinstance(d, Mapping) and key in d for d in dicts)


def with_turns(cells: Mapping[str, Any], column: str | None, place: object) -> Mapping[str, Any]:
    """The cells with `text` and `answer` for the conversation in a column, unless they have such columns themselves.

    The conversation becomes a `Conversation`. For one without a turn of the human, text and answer are None, and the
    conversation is the `InputError` that says so. It begins with the `place` of the cells.

    >>> turns = [{"from": "human", "value": "<image> what ?"}, {"from": "gpt", "value": "a cat"}]
    >>> cells = with_turns({"id": "7", "conversations": turns}, "conversations", "row 0")
    >>> cells["text"], cells["answer"], cells["conversations"].turns
    ('<image> what ?', 'a cat', (('<image> what ?', 'a cat'),))
    """
    if column is None or column not in cells:
        return cells
    said = _said(cells[column], *_FORMATS[column])
    starts = [start for start, (speaker, text) in enumerate(said) if speaker in _HUMAN and isinstance(text, str)]
    if not starts:
        human = _HUMAN[list(_FORMATS).index(column)]
        what = f'the conversation {shown(cells[column])}: expected a list with a turn from "{human}"'
        what = next((f"a conversation with the {text}" for _, text in said if isinstance(text, InputError)), what)
        error = InputError(f"{place} has {what}")
        return {"text": None, "answer": None, **cells, column: error}
    answer = next((text for speaker, text in said[starts[0] :] if speaker in _MODEL), None)
    label = answer if isinstance(answer, str | int | float) else None
    return {"text": said[starts[0]][1], "answer": label, **cells, column: read_turns(said)}


def _said(value: Any, speaker: str, words: str) -> _Said:
    """Who says what in a cell of turns; nothing where it holds anything else."""
    pictures = count()
    if isinstance(value, Mapping) and all(isinstance(value.get(key), Sequence) for key in (speaker, words)):
        return [(who, _as_text(what, pictures)) for who, what in zip(value[speaker], value[words], strict=False)]
    if not isinstance(value, list | tuple) or not all(isinstance(turn, Mapping) and speaker in turn for turn in value):
        return []
    return [(turn[speaker], _as_text(turn.get(words), pictures)) for turn in value]


def _as_text(content: Any, pictures: Iterator[int]) -> Any:
    """The content of a turn as one text: lines for its texts, ``<image>`` for its images; of other parts an `InputError`.

    `pictures` counts the images of the conversation.
    """
    if not isinstance(content, list | tuple) or not all(isinstance(part, Mapping) for part in content):
        return content
    lines = []
    for part in content:
        # A table gives each part the keys of all others, with None.
        filled = {name: cell for name, cell in part.items() if cell is not None}
        if filled.get("type") == "text" and isinstance(filled.get("text"), str):
            lines.append(filled["text"])
        elif filled in ({"type": "image"}, {"type": "image", "index": next(pictures)}):
            lines.append(PLACEHOLDER)
        else:
            expected = (
                'expected {"type": "text", "text": ...} or {"type": "image"}, and the pictures, in their order, in a column '
                '"image"'
            )
            return InputError(f"part {shown(part)}: {expected}")
    return "\n".join(lines)


def read_turns(said: Iterable[tuple[Any, Any]]) -> Conversation:
    """The conversation in which each speaker says each text; what is wrong with it is its fault.

    >>> read_turns([("human", "Who ?"), ("gpt", "Me."), ("human", "Why ?")]).fault
    InputError('its conversation ends with a turn of the human: expected an answer to it, or leave that turn out')
    """
    turns = list(said)
    first = int(bool(turns) and turns[0][0] == _SYSTEM)
    for number, (speaker, text) in enumerate(turns):
        expected = (_HUMAN, _MODEL)[(number - first) % 2] if number >= first else (_SYSTEM,)
        wrong = ""
        if speaker not in expected:
            wrong = f"is from {shown(speaker)}: expected {expected[0]!r}, the human and the model speak in turn"
        elif not isinstance(text, str) or not text.strip():
            wrong = f"has the {text}" if isinstance(text, InputError) else f"holds {shown(text)}: expected words"
        elif PLACEHOLDER in text and expected is not _HUMAN:
            wrong = f"is from {shown(speaker)} and has an {PLACEHOLDER}: expected images in turns of the human alone"
        if wrong:
            return Conversation(fault=InputError(f"turn {number} of its conversation {wrong}"))
    if (len(turns) - first) % 2:
        what = "ends with a turn of the human: expected an answer to it, or leave that turn out"
        return Conversation(fault=InputError(f"its conversation {what}"))
    texts = [text for _, text in turns]
    pairs = tuple(zip(texts[first::2], texts[first + 1 :: 2], strict=True))
    return Conversation(pairs, texts[0] if first else None)


@dataclass(frozen=True)
class Conversation:
    """The exchanges of a conversation, each what the human says and the answer, and what the system says before them.

    With a `fault` there are none.
    """

    turns: tuple[tuple[str, str], ...] = ()
    system: str | None = None
    fault: InputError | None = None
