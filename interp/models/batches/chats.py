"""Chat templates: a text as the user's turn, up to where the model's answer begins.

A template takes the content of a turn as a list of images and texts, as those of vision-language models do, or as one
string, as those of language models do. Which of them it takes is not written down anywhere, and one that takes a string may
print a list as code. So the template is rendered and its prompt read: it counts if it says what the user wrote and changes
where the user put an image. In a string ``<image>`` stays where the user wrote it.
"""

from __future__ import annotations

import re
from typing import Any

from interp.errors import InputError, shown
from interp.models.batches.prompts import PLACEHOLDER

# A list that was printed as code, in Python's or JSON's way.
_PRINTED = re.compile(r"""["']type["']: ?["'](text|image)["']""", re.IGNORECASE)


def has_chat_template(processor: Any) -> bool:
    """Whether a processor, or its tokenizer, has a chat template."""
    return _carrier_of(processor) is not None


def as_chat(processor: Any, text: str) -> str:
    """The text as the user's turn in the model's chat template, up to where the model's answer begins.

    Raises `InputError` where there is no template, and for one that fails or leaves out a part of the text or an image.
    """
    carrier = _carrier_of(processor)
    if carrier is None:
        raise InputError(
            "chat=True: this model's processor has no chat template, write the prompt yourself with chat=False"
        )
    problems = []
    for write in (_from_list, _from_string):
        try:
            return write(carrier, text)
        except InputError as error:
            problems.append(error)
    # A template that joins strings says of a list only that it is none.
    raise problems[1] if isinstance(problems[0].__cause__, TypeError) else problems[0]


def _carrier_of(processor: Any) -> Any:
    """What has the template: the processor, or its tokenizer."""
    carriers = (processor, getattr(processor, "tokenizer", None))
    return next((each for each in carriers if getattr(each, "chat_template", None)), None)


def _from_list(carrier: Any, text: str) -> str:
    """The prompt of a template that takes the content as a list of images and texts."""
    parts: list[dict[str, str]] = []
    for index, piece in enumerate(text.split(PLACEHOLDER)):
        parts += [{"type": "image"}] if index else []
        parts += [{"type": "text", "text": piece.strip()}] if piece.strip() else []
    prompt = _rendered(carrier, parts)
    if _PRINTED.search(prompt) and not _PRINTED.search(text):
        raise InputError(
            f"the chat template prints its content as code, {shown(prompt)}: expected one for texts and images"
        )
    _refuse_loss(prompt, text)
    if PLACEHOLDER in text and prompt == _rendered_or_none(carrier, [part for part in parts if part["type"] == "text"]):
        raise InputError(
            f"the chat template leaves out the images, it makes {shown(prompt)}: write the prompt yourself with chat=False"
        )
    return prompt


def _from_string(carrier: Any, text: str) -> str:
    """The prompt of a template that takes the content as one string."""
    prompt = _rendered(carrier, text)
    _refuse_loss(prompt, text)
    if prompt.count(PLACEHOLDER) != text.count(PLACEHOLDER):
        raise InputError(f"the chat template changes the number of {PLACEHOLDER}: it makes {shown(prompt)}")
    return prompt


def _refuse_loss(prompt: str, text: str) -> None:
    """Refuse a prompt that leaves out a piece of the text or puts the pieces in another order; spaces do not count."""
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


def _rendered(carrier: Any, content: Any) -> str:
    try:
        messages = [{"role": "user", "content": content}]
        return str(carrier.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except Exception as error:  # a template is a program of its own, and fails in its own ways
        reason = " ".join(str(error).split())
        raise InputError(
            f"the model's chat template fails ({type(error).__name__}): {reason}; write the prompt yourself with chat=False"
        ) from error


def _rendered_or_none(carrier: Any, content: Any) -> str | None:
    try:
        return _rendered(carrier, content)
    except InputError:  # it cannot do without an image
        return None
