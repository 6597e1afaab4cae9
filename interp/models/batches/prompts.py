"""Prompts: what a processor makes of texts and images.

``<image>`` stands for an image on every model and is written here as the model's own placeholder; a chat template may
be put around the text; the processor then puts as many image tokens in the place of each placeholder as the image
needs, with breaks, tags or newlines of its own. To follow a text through all this, the tokenizer is listened to: what it is
given last is the prompt as the model reads it, and asked once more it says which characters each token stands for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from interp.errors import InputError

PLACEHOLDER = "<image>"
Images = Sequence[Sequence[Image.Image]]


@dataclass(frozen=True)
class Heard:
    """One text that a tokenizer was given, and how it was asked to take it."""

    text: str
    options: Mapping[str, Any]


class _Listener:
    """A tokenizer that remembers the texts it is given."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.heard: list[Heard] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, text: Any = None, *arguments: Any, **options: Any) -> Any:
        if isinstance(text, list) and not arguments:
            self.heard = [Heard(each, options) for each in text]
        return self._tokenizer(text, *arguments, **options)


def encode(processor: Any, texts: Sequence[str], images: Images) -> tuple[dict[str, Tensor], list[Heard]]:
    """The processor's encoding of these rows, and what its tokenizer heard of each: nothing where that was not one text.

    Raises `InputError` with the processor's own complaint where it refuses them.
    """
    if processor is None:
        raise InputError("this model was loaded without a processor: pass encoding=, or load it with processor=")
    own = str(getattr(processor, "image_token", None) or PLACEHOLDER)
    inputs, heard = _process(processor, [text.replace(PLACEHOLDER, own) for text in texts], images)
    if any(images) and _puts_images_first(processor, own, inputs, heard):
        return _process(processor, [text.replace(PLACEHOLDER, "") for text in texts], images)
    return inputs, heard


def _puts_images_first(processor: Any, own: str, inputs: Mapping[str, Tensor], heard: Sequence[Heard]) -> bool:
    """Whether the processor puts image tokens before a text by itself: there are more of them than in what was heard."""
    if not heard or "input_ids" not in inputs:
        return False
    token = processor.tokenizer.convert_tokens_to_ids(own)
    return int((inputs["input_ids"] == token).sum()) > sum(each.text.count(own) for each in heard)


def _process(processor: Any, written: Sequence[str], images: Images) -> tuple[dict[str, Tensor], list[Heard]]:
    """The processor's encoding, and what its tokenizer heard."""
    listener = _Listener(getattr(processor, "tokenizer", None))
    listening = copy.copy(processor)
    listening.tokenizer = listener
    options: dict[str, Any] = {"return_tensors": "pt", "padding": len(written) > 1, "padding_side": "left"}
    start = getattr(listener, "bos_token", None)
    if start and all(text.startswith(start) for text in written):
        # A chat template writes the first token itself; the model has never seen two.
        options["add_special_tokens"] = False
    nested = [list(row) for row in images] if any(images) else None
    flat = None if nested is None else [image for row in nested for image in row]
    encoding = _first_that_works(
        # Nested first: some processors cut a lone image into tiles, but not several of one row.
        lambda: listening(text=list(written), images=nested, **options),
        lambda: listening(text=list(written), images=flat, **options),
    )
    # Labels are for training: given to a model, they make it compute a loss that nobody asked for.
    inputs = {name: value for name, value in encoding.items() if isinstance(value, Tensor) and name != "labels"}
    return inputs, listener.heard if len(listener.heard) == len(written) else []


def _first_that_works(*ways: Callable[[], Any]) -> Any:
    """What the first of these ways gives that does not fail; where all fail, the first one's complaint in one line."""
    complaints: list[Exception] = []
    for way in ways:
        try:
            return way()
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            complaints.append(error)
    first = complaints[0]
    said = " ".join(str(first).split())
    raise InputError(f"the processor refuses these texts and images ({type(first).__name__}): {said}") from first


def as_chat(processor: Any, text: str) -> str:
    """The text as the user's turn in the model's chat template, up to where the model's answer begins."""
    if not getattr(processor, "chat_template", None):
        raise InputError(
            "chat=True: this model's processor has no chat template, write the prompt yourself with chat=False"
        )
    content: list[dict[str, str]] = []
    for index, piece in enumerate(text.split(PLACEHOLDER)):
        content += [{"type": "image"}] if index else []
        content += [{"type": "text", "text": piece.strip()}] if piece.strip() else []
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def offsets_of(tokenizer: Any, heard: Heard, ids: Sequence[int]) -> list[tuple[int, int]] | None:
    """The characters of what was heard that each of a row's real tokens stands for; None where that cannot be said."""
    options = {**heard.options, "return_tensors": None, "padding": False, "return_offsets_mapping": True}
    try:
        again = tokenizer(heard.text, **options)
    except NotImplementedError:  # a tokenizer in plain Python knows no offsets
        return None
    return list(again["offset_mapping"]) if list(again["input_ids"]) == list(ids) else None
