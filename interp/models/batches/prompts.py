"""Prompts: what a processor makes of texts and images.

``<image>`` stands for an image on every model and is written here as the model's own placeholder. A chat template may
be put around the text before (`interp.models.batches.chats`). The processor then replaces each placeholder by as many image
tokens as the image needs, with breaks, tags or newlines of its own. To follow a text through all this, the tokenizer is
recorded: its last input is the prompt as the model reads it, and a second call says which characters each token stands for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from interp.errors import InputError, is_out_of_memory

PLACEHOLDER = "<image>"
# What processors raise on what they do not take: a picture of one pixel divides by zero, say.
_COMPLAINTS = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, RuntimeError)
Images = Sequence[Sequence[Image.Image]]


class Refusal(InputError):
    """A processor does not take these texts and images."""


@dataclass(frozen=True)
class TokenizerInput:
    """One text that a processor passed to its tokenizer, and the options it passed along."""

    text: str
    options: Mapping[str, Any]


class _Recorder:
    """A tokenizer that records the texts of its last call on a list."""

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self.prompts: list[TokenizerInput] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, text: Any = None, *arguments: Any, **options: Any) -> Any:
        if isinstance(text, list) and not arguments:
            self.prompts = [TokenizerInput(each, options) for each in text]
        return self._tokenizer(text, *arguments, **options)


def encode(
    processor: Any, texts: Sequence[str], images: Images, side: str = "left"
) -> tuple[dict[str, Tensor], list[TokenizerInput]]:
    """The processor's encoding of these rows, padded on this side, and the prompt of each row as its tokenizer reads it.

    There are no prompts where the tokenizer does not read one text for each row. Raises `Refusal` with the processor's own
    complaint where it refuses the rows.
    """
    if processor is None:
        raise InputError("this model was loaded without a processor: pass encoding=, or load it with processor=")
    if not hasattr(processor, "tokenizer"):
        return _tokenize(processor, texts, side)
    own = str(getattr(processor, "image_token", None) or PLACEHOLDER)
    inputs, prompts = _process(processor, [text.replace(PLACEHOLDER, own) for text in texts], images, side)
    if any(images) and prompts and "input_ids" in inputs:
        image_tokens = inputs["input_ids"] == processor.tokenizer.convert_tokens_to_ids(own)
        # Some processors put image tokens before a text by themselves: then there are more than in the prompts.
        if int(image_tokens.sum()) > sum(prompt.text.count(own) for prompt in prompts):
            return _process(processor, [text.replace(PLACEHOLDER, "") for text in texts], images, side)
    return inputs, prompts


def _tokenize(tokenizer: Any, texts: Sequence[str], side: str) -> tuple[dict[str, Tensor], list[TokenizerInput]]:
    """As `encode`, for a model that takes no images, whose processor is a tokenizer."""
    recorder = _Recorder(tokenizer)
    options = _options(tokenizer, texts, side)
    encoding = _first_that_works(lambda: recorder(list(texts), **options))
    return dict(encoding), recorder.prompts


def _process(
    processor: Any, texts: Sequence[str], images: Images, side: str
) -> tuple[dict[str, Tensor], list[TokenizerInput]]:
    """As `encode`, for texts that hold the processor's own placeholders."""
    processor = copy.copy(processor)
    recorder = processor.tokenizer = _Recorder(getattr(processor, "tokenizer", None))
    options = _options(recorder, texts, side)
    nested = [list(row) for row in images] if any(images) else None
    flat = None if nested is None else [image for row in nested for image in row]
    encoding = _first_that_works(
        # Nested first: some processors cut a lone image into tiles, but not several of one row.
        lambda: processor(text=list(texts), images=nested, **options),
        lambda: processor(text=list(texts), images=flat, **options),
    )
    # Labels are for training: with them, a model computes a loss that nobody asked for.
    inputs = {name: value for name, value in encoding.items() if isinstance(value, Tensor) and name != "labels"}
    return inputs, recorder.prompts if len(recorder.prompts) == len(texts) else []


def _options(tokenizer: Any, texts: Sequence[str], side: str) -> dict[str, Any]:
    """The options with which texts are tokenized: padded on this side, and with one token at most that begins a text."""
    options: dict[str, Any] = {"return_tensors": "pt", "padding": len(texts) > 1, "padding_side": side}
    start = getattr(tokenizer, "bos_token", None)
    if start and all(text.startswith(start) for text in texts):
        # A chat template writes the first token itself; the model has never seen two.
        options["add_special_tokens"] = False
    return options


def _first_that_works(*calls: Callable[[], Any]) -> Any:
    """The result of the first of these calls that does not fail; where all fail, the first complaint in one line."""
    complaints: list[Exception] = []
    for call in calls:
        try:
            return call()
        except _COMPLAINTS as error:
            if is_out_of_memory(error):
                raise
            complaints.append(error)
    first = complaints[0]
    reason = " ".join(str(first).split())
    raise Refusal(f"the processor refuses these texts and images ({type(first).__name__}): {reason}") from first


def offsets_of(tokenizer: Any, prompt: TokenizerInput, ids: Sequence[int]) -> list[tuple[int, int]] | None:
    """The characters of the prompt that each of a row's real tokens stands for; None where the tokenizer cannot say."""
    options = {**prompt.options, "return_tensors": None, "padding": False, "return_offsets_mapping": True}
    try:
        encoding = tokenizer(prompt.text, **options)
    except NotImplementedError:  # tokenizers in plain Python have no offsets
        return None
    return list(encoding["offset_mapping"]) if list(encoding["input_ids"]) == list(ids) else None
