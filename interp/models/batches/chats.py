"""Chat templates: a text as the user's turn, up to where the model's answer begins.

A template takes the content of a turn as a list of images and texts, as those of vision-language models do, or as one
string, as those of language models do. Which of them it takes is not written down anywhere, and one that takes a string may
print a list as code. So the template is rendered and its prompt read: it counts if it says what the user wrote and changes
where the user put an image. In a string ``<image>`` stays where the user wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from interp.errors import InputError, shown
from interp.models.batches.prompts import PLACEHOLDER

_Written = TypeVar("_Written")
# The form in which a template takes the content of a turn, made of its text.
Content = Callable[[str], Any]
# A list that was printed as code, in Python's or JSON's way.
_PRINTED = re.compile(r"""["']type["']: ?["'](text|image)["']""", re.IGNORECASE)


class _PrintedCode(InputError):
    """A template prints a content that is a list as code."""


def has_chat_template(processor: Any) -> bool:
    """Whether a processor, or its tokenizer, has a chat template."""
    return template_carrier(processor) is not None


def as_chat(processor: Any, text: str) -> str:
    """The text as the user's turn in the model's chat template, up to where the model's answer begins.

    Raises `InputError` where there is no template, and for one that fails or leaves out a part of the text or an image.
    """
    carrier = template_carrier(processor)
    if carrier is None:
        raise InputError(
            "chat=True: this model's processor has no chat template, write the prompt yourself with chat=False"
        )
    return in_either_form(lambda content: _as_prompt(carrier, text, content))


def template_carrier(processor: Any) -> Any:
    """What has the template: the processor, or its tokenizer; None without one."""
    carriers = (processor, getattr(processor, "tokenizer", None))
    return next((each for each in carriers if getattr(each, "chat_template", None)), None)


def in_either_form(write: Callable[[Content], _Written]) -> _Written:
    """What `write` makes with the first form of contents that the template takes, `as_parts` or `as_string`."""
    problems = []
    for content in (as_parts, as_string):
        try:
            return write(content)
        except InputError as error:
            problems.append(error)
    # A template that joins or prints strings says of a list only that it is none.
    no_list = isinstance(problems[0], _PrintedCode) or isinstance(problems[0].__cause__, TypeError)
    raise problems[1] if no_list else problems[0]


def as_parts(text: str) -> list[dict[str, str]]:
    """The content of a turn as a list of images and texts."""
    parts: list[dict[str, str]] = []
    for index, piece in enumerate(text.split(PLACEHOLDER)):
        parts += [{"type": "image"}] if index else []
        parts += [{"type": "text", "text": piece.strip()}] if piece.strip() else []
    return parts


def as_string(text: str) -> str:
    """The content of a turn as one string."""
    return text


def _as_prompt(carrier: Any, text: str, content: Content) -> str:
    """The prompt of a template that takes contents of this form."""
    made = content(text)
    prompt = rendered(carrier, [{"role": "user", "content": made}])
    refuse_loss(prompt, text)
    if isinstance(made, str):
        if prompt.count(PLACEHOLDER) != text.count(PLACEHOLDER):
            raise InputError(f"the chat template changes the number of {PLACEHOLDER}: it makes {shown(prompt)}")
    elif PLACEHOLDER in text and prompt == _rendered_or_none(
        carrier, [part for part in made if part["type"] == "text"]
    ):
        raise InputError(
            f"the chat template leaves out the images, it makes {shown(prompt)}: write the prompt yourself with chat=False"
        )
    return prompt


def refuse_loss(prompt: str, text: str) -> None:
    """Refuse a prompt that leaves out a piece of the text or puts the pieces in another order; spaces do not count."""
    if _PRINTED.search(prompt) and not _PRINTED.search(text):
        raise _PrintedCode(
            f"the chat template prints its content as code, {shown(prompt)}: expected one for texts and images"
        )
    rest = _without_spaces(prompt)
    for piece in text.split(PLACEHOLDER):
        _, match, rest = rest.partition(_without_spaces(piece)) if piece.strip() else ("", True, rest)
        if not match:
            raise InputError(
                f"the chat template leaves out {shown(piece.strip())}, it makes {shown(prompt)}: write the prompt yourself "
                "with chat=False"
            )


def _without_spaces(text: str) -> str:
    return "".join(text.split())


def rendered(carrier: Any, messages: Sequence[Mapping[str, Any]], answer: bool = True) -> str:
    """The text that the template makes of messages, with `answer` up to where the model's next answer begins."""
    try:
        return str(carrier.apply_chat_template(list(messages), add_generation_prompt=answer, tokenize=False))
    except Exception as error:  # a template is a program of its own, and fails in its own ways
        reason = " ".join(str(error).split())
        raise InputError(
            f"the model's chat template fails ({type(error).__name__}): {reason}; write the prompt yourself with chat=False"
        ) from error


def _rendered_or_none(carrier: Any, content: Any) -> str | None:
    try:
        return rendered(carrier, [{"role": "user", "content": content}])
    except InputError:  # it cannot do without an image
        return None
