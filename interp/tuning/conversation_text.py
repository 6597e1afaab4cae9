"""Conversations as one text, with the parts that the model has to write.

A model learns from a conversation by reading all of it and being judged on its own turns alone. So the text comes with the
ranges of characters that the model writes: each answer, and the token that ends it. There are two ways to write it:

- with the chat template, where the model has one. What lies between the prompt that the template makes of the turns so far
  and the end of the answer is the model's, so is the token that the template puts behind the answer (``<|im_end|>``, ``</s>``):

      <|im_start|>user\\nWho ?<|im_end|>\\n<|im_start|>assistant\\nMe.<|im_end|>\\n<|im_start|>user\\nWhy ? ...
                                                          ===============

- else the turns follow each other with a space, unless there is whitespace already or the processor writes something of its own
  behind a prompt (a newline, in PaliGemma).

Where nothing ends an answer, in a template without such a token too, the model still has to stop there. So the end token is
what it should say behind the answer, although it reads the next turn there; the last answer is followed by a real one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from interp.errors import InputError, shown
from interp.models.batches.chats import Content, as_parts, in_either_form, refuse_loss, rendered, template_carrier
from interp.models.batches.prompts import PLACEHOLDER

Turns = Sequence[tuple[str, str]]
# Stands for an answer in a template: no text has these characters.
_MARK = "\ue000{}\ue001"
_MARKS = re.compile("\ue000[0-9]+\ue001")
# What templates do to the whitespace around an answer.
_TRIMS = (str, str.strip, str.lstrip, str.rstrip)


@dataclass(frozen=True)
class Written:
    """One range of the text that the model writes, from `start` to `stop`; `ended` where its end token is in it."""

    start: int
    stop: int
    ended: bool


@dataclass(frozen=True)
class ConversationText:
    """A conversation as one `text`, with ``<image>`` for each image, and the range of each answer in it."""

    text: str
    answers: tuple[Written, ...]


@dataclass(frozen=True)
class ConversationWriter:
    """Writes conversations for one model.

    `processor` has the chat template, or none. `tokens` are the special tokens, `end` the one that ends an answer where the
    template has none, and `behind` what the processor writes behind a prompt.

    >>> written = ConversationWriter(None, (), "<eos>", "").write([("who ?", "me"), ("why ?", "no")])
    >>> written.text, [written.text[each.start : each.stop] for each in written.answers]
    ('who ? me why ? no<eos>', ['me', 'no<eos>'])
    """

    processor: Any
    tokens: tuple[str, ...]
    end: str
    behind: str

    def write(self, turns: Turns, system: str | None = None) -> ConversationText:
        """The text of these turns, each what the human says and the answer, behind what the `system` says.

        Raises `InputError` for a template that fails, leaves something out or changes an answer, and for an answer with the
        token in it that ends answers.
        """
        carrier = template_carrier(self.processor)
        if carrier is None:
            return self._with_spaces(turns, system)
        return in_either_form(lambda content: _Template(self, carrier, content, turns, system).write())

    def _with_spaces(self, turns: Turns, system: str | None) -> ConversationText:
        text, answers = system or "", []
        for human, answer in turns:
            text = f"{_joined(text, human)}{self.behind}"
            whole = _joined(text, answer)
            _refuse_end(answer, self.end)
            answers.append(Written(len(whole) - len(answer), len(whole), False))
            text = whole
        return self.closed(text, answers)

    def closed(self, text: str, answers: Sequence[Written]) -> ConversationText:
        """The text up to the end of its last answer, and a real end token behind it."""
        *others, last = answers
        text = text[: last.stop] + self.end
        return ConversationText(text, (*others, Written(last.start, len(text), True)))


def _refuse_end(answer: str, end: str) -> None:
    if end in answer:
        raise InputError(
            f"its answer {shown(answer)} has {end}, the token that ends answers: write it without, or leave the row out"
        )


def _joined(before: str, after: str) -> str:
    """Two texts with whitespace between them."""
    apart = not before or before[-1].isspace() or after[:1].isspace()
    return before + after if apart else f"{before} {after}"


class _Template:
    """One conversation in a chat template that takes contents of one form."""

    def __init__(self, writer: ConversationWriter, carrier: Any, content: Content, turns: Turns, system: str | None):
        self.writer, self.carrier, self.content, self.turns = writer, carrier, content, turns
        self.system = [] if system is None else [("system", system)]

    def write(self) -> ConversationText:
        answers = [answer for _, answer in self.turns]
        text = self._rendered(answers)
        refuse_loss(
            text, PLACEHOLDER.join([*(said for _, said in self.system), *(s for turn in self.turns for s in turn)])
        )
        spans = self._places(text, answers)
        written = tuple(self._written(text, index, *span) for index, span in enumerate(spans))
        text, written = self._with_placeholders(text, written)
        if written[-1].ended:
            return ConversationText(text, written)
        return self.writer.closed(text, written)

    def _places(self, text: str, answers: Sequence[str]) -> list[tuple[int, int]]:
        """Where each answer is in the text: the template writes marks in the same places."""
        pieces = self._between_marks(len(answers))
        for trim in _TRIMS:
            trimmed = [trim(answer) for answer in answers]
            if _interleaved(pieces, trimmed) == text:
                stops = [len(_interleaved(pieces[: n + 1], trimmed[: n + 1])) for n in range(len(answers))]
                return [(stop - len(answer), stop) for stop, answer in zip(stops, trimmed, strict=True)]
        raise InputError(
            f"the chat template changes an answer: of {shown(answers)} it makes {shown(text)}; write the answers as it does, or "
            "remove the template from the processor"
        )

    def _between_marks(self, count: int) -> list[str]:
        """What the template writes before, between and behind the first `count` answers."""
        marks = [_MARK.format(index) for index in range(count)]
        text = self._rendered(marks)
        if _MARKS.findall(text) != marks:
            raise InputError(
                f"the chat template does not write each answer once and in order: of {count} it makes {shown(text)}; remove the "
                "template from the processor"
            )
        return _MARKS.split(text)

    def _written(self, text: str, index: int, start: int, stop: int) -> Written:
        """The range that the model writes: from the end of the prompt that it gets, to the end token."""
        prompt = self._rendered([answer for _, answer in self.turns[:index]], waiting=True)
        if text.startswith(prompt) and len(prompt) <= start:
            start = len(prompt)
        tail = self._between_marks(index + 1)[-1]
        token = re.search("|".join(map(re.escape, self.writer.tokens)) or r"(?!)", tail)
        ended = token is not None and text.startswith(tail[: token.end()], stop)
        _refuse_end(self.turns[index][1], token.group() if token is not None and ended else self.writer.end)
        return Written(start, stop + token.end() if token is not None and ended else stop, ended)

    def _with_placeholders(self, text: str, written: tuple[Written, ...]) -> tuple[str, tuple[Written, ...]]:
        """The text with ``<image>`` for the template's own placeholders, and the ranges in it."""
        own = str(getattr(self.writer.processor, "image_token", None) or PLACEHOLDER)
        said = [text for _, text in self.system] + [human for human, _ in self.turns]
        count = sum(text.count(PLACEHOLDER) for text in said)
        if text.count(own) != count:
            raise InputError(
                f"the chat template writes {text.count(own)} {own} for {count} images, it makes {shown(text)}: remove the "
                "template from the processor"
            )
        if own == PLACEHOLDER:
            return text, written

        def moved(place: int) -> int:
            return place + (len(PLACEHOLDER) - len(own)) * text.count(own, 0, place)

        ranges = tuple(Written(moved(each.start), moved(each.stop), each.ended) for each in written)
        return text.replace(own, PLACEHOLDER), ranges

    def _rendered(self, answers: Iterable[str], waiting: bool = False) -> str:
        """The turns with these answers; `waiting` for one more, with the question to it."""
        messages = [(role, said) for role, said in self.system]
        answers = list(answers)
        for (human, _), answer in zip(self.turns, answers, strict=False):
            messages += [("user", human), ("assistant", answer)]
        messages += [("user", self.turns[len(answers)][0])] if waiting else []
        parts = [{"role": role, "content": self._content(role, said)} for role, said in messages]
        return rendered(self.carrier, parts, answer=waiting)

    def _content(self, role: str, said: str) -> Any:
        # A list of texts would lose the whitespace around an answer, which the template may keep.
        if role == "assistant" and self.content is as_parts:
            return [{"type": "text", "text": said}]
        return self.content(said)


def _interleaved(pieces: Sequence[str], answers: Sequence[str]) -> str:
    return "".join(part for pair in zip(pieces, [*answers, ""], strict=False) for part in pair)
