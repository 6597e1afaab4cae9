"""Spans: parts of a prompt that a caller names, as masks over the tokens that the model gets.

A span is a string that occurs once in the text, a range of the text's characters, ints that count the row's real
tokens, a mask of tokens, or a mask of the patches of the row's image `[rows, columns]`. Strings and ranges refer to the
text *as the user wrote it*. On its way to the tokenizer that text changes: ``<image>`` becomes the model's own
placeholders, a chat template puts words around it, a processor adds newlines. But the pieces between the images come
through unchanged and in order. So each piece is searched for in the prompt twice, once as far left and once as far
right as possible. Where both searches agree, no other place is possible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.arguments import as_int, as_ints
from interp.errors import InputError, RowError, for_each_row, shown
from interp.models.batches.positions import Positions, count_tokens, is_kind
from interp.models.batches.prompts import PLACEHOLDER


@dataclass(frozen=True)
class Wording:
    """One row's words: the user's `text`, the `prompt` that the tokenizer reads, and the `offsets` of each real token in it.

    `image_token` is the text of one image token in the prompt, None where the model has no image token.
    """

    text: str
    prompt: str
    offsets: Sequence[tuple[int, int]]
    image_token: str | None


def find_spans(
    spans: Mapping[str, Any] | Sequence[Mapping[str, Any]], positions: Positions, wording: Callable[[int], Wording]
) -> dict[str, Tensor]:
    """Bool `[batch, seq]` of each named span. `wording` is called for rows whose spans are strings or ranges.

    Raises `InputError` for a span that does not occur or occurs twice, lies outside the text or has no token.
    """
    real, wording = positions["all"], cache(wording)
    masks: dict[str, Tensor] = {}
    for name, span in _by_name(spans, len(real)).items():
        if not isinstance(name, str):
            raise InputError(f"span {name!r}: its name is a {type(name).__name__}, expected a string")
        if is_kind(name):
            raise InputError(f"span {name!r} has the name of a kind of position: choose another name")
        if _is_of_batch(span):
            masks[name] = _checked(name, span, [tuple(real.shape)], "(batch, seq)") & real
            if not masks[name].any():
                raise InputError(f"span {name!r}: its mask holds no real token, expected at least one True")
        else:
            of_row = partial(_of_row, name, span, positions, wording)
            masks[name] = torch.stack(for_each_row(of_row, len(real)))
    return masks


def _by_name(spans: Any, rows: int) -> dict[str, Any]:
    """The value of each span: a mask for the whole batch, or a list with the span of each row, None for none."""
    if isinstance(spans, Mapping):
        return {name: span if _is_of_batch(span) else _row_by_row(name, span, rows) for name, span in spans.items()}
    if not isinstance(spans, list | tuple) or not all(isinstance(row, Mapping) for row in spans):
        raise InputError(f"spans={shown(spans)}: expected a dict of names, or a list with one dict a row")
    if len(spans) != rows:
        raise InputError(f"spans has {len(spans)} dicts for {rows} rows: expected one a row")
    return {name: [row.get(name) for row in spans] for name in dict.fromkeys(name for row in spans for name in row)}


def _row_by_row(name: str, span: Any, rows: int) -> list[Any]:
    one_a_row = _is_mask(span) or (isinstance(span, list | tuple) and not (_is_range(span) or _is_count(span)))
    each = list(span) if one_a_row else [span] * rows
    if len(each) != rows:
        raise InputError(f"span {name!r}: {len(each)} spans for {rows} rows, expected one a row or one for all")
    return each


def _is_mask(span: Any) -> bool:
    return isinstance(span, Tensor | np.ndarray)


def _is_of_batch(span: Any) -> bool:
    """Whether this is a mask of the tokens of all rows; one with three axes has the patches of each."""
    return _is_mask(span) and span.ndim != 3


def _is_range(span: Any) -> bool:
    """Whether this is a tuple of two ints, which is a range of characters; ints in a list count tokens."""
    return isinstance(span, tuple) and len(span) == 2 and as_ints(span) is not None


def _is_count(span: Any) -> bool:
    return as_int(span) is not None or (isinstance(span, list) and bool(span) and as_ints(span) is not None)


def _checked(name: str, span: Any, shapes: list[tuple[int, ...]], axes: str) -> Tensor:
    mask = torch.as_tensor(span).cpu()
    if mask.dtype != torch.bool:
        raise InputError(f"span {name!r} is a tensor of {mask.dtype}: expected a bool mask, or a list of ints")
    if tuple(mask.shape) not in shapes:
        expected = " or ".join(str(shape) for shape in dict.fromkeys(shapes))
        raise InputError(f"span {name!r} is a mask of shape {tuple(mask.shape)}: expected {expected} {axes}")
    return mask


def _of_row(
    name: str, spans: Sequence[Any], positions: Positions, wording: Callable[[int], Wording], row: int
) -> Tensor:
    """One row's span as Bool `[seq]`; all False where it has none."""
    real, span = positions["all"][row], spans[row]
    columns, mask = real.nonzero().flatten(), torch.zeros_like(real)
    if span is None:
        return mask
    if _is_mask(span):
        grids = positions.grid(row)
        patches = [grid for grid in grids if grid is not None and len(grids) == 1]
        axes = f"(seq, or the real tokens of row {row}{', or the rows and columns of its patches' if patches else ''})"
        own = _checked(name, span, [tuple(real.shape), (len(columns),), *patches], axes)
        if own.ndim == 2:
            mask[positions["image"][row]] = own.flatten()
        else:
            mask[columns] = own[columns] if own.shape == real.shape else own
    elif _is_count(span):
        mask = count_tokens(real, as_ints(span) or [], row)
    elif isinstance(span, str) or _is_range(span):
        words = wording(row)
        mask = _tokens_of(name, _range_of(name, span, row, words.text), row, words, positions)
    else:
        expected = "expected a string, a (start, end) range, a mask or a list of ints"
        raise RowError({row: (f"span {name!r} of ", f" is {shown(span)}: {expected}")})
    if not mask.any():
        raise RowError({row: (f"span {name!r}: {shown(span)} holds no token of ", ", expected at least one")})
    return mask


def _range_of(name: str, span: str | tuple[int, int], row: int, text: str) -> tuple[int, int]:
    if isinstance(span, str):
        times = text.count(span) if span else 0
        if times != 1:
            raise RowError({row: (f"span {name!r}: {span!r} occurs {times} times in ", f", {text!r}; expected once")})
        return text.index(span), text.index(span) + len(span)
    start, end = span
    if not 0 <= start < end <= len(text):
        raise RowError(
            {row: (f"span {name!r}: {span!r} is not a range of the {len(text)} characters of ", f", {text!r}")}
        )
    return start, end


def _tokens_of(name: str, span: tuple[int, int], row: int, words: Wording, positions: Positions) -> Tensor:
    """The tokens of a range of the user's characters; those of ``<image>`` are all tokens of that image."""
    start, end = span
    columns = positions["all"][row].nonzero().flatten()
    mask = torch.zeros_like(positions["all"][row])
    pieces = words.text.split(PLACEHOLDER)
    at = 0
    for index, (piece, place) in enumerate(zip(pieces, _align(pieces, words), strict=True)):
        first, last = max(start, at), min(end, at + len(piece))
        if first < last:
            if place is None:
                prompt = f"{shown(words.prompt)}, the prompt that the processor makes; pass a mask instead"
                raise RowError(
                    {row: (f"span {name!r} cannot be found: {piece!r} of ", f" does not occur once in {prompt}")}
                )
            # A template may leave out the spaces around a piece: the rest of the range is inside it.
            low, high = (min(max(edge - at + place[0], place[1]), place[2]) for edge in (first, last))
            begin, end_of = torch.from_numpy(np.array(words.offsets)).T
            mask[columns[(begin < high) & (end_of > low) & (end_of > begin)]] = True
        at += len(piece)
        if start < at + len(PLACEHOLDER) and end > at and index < len(pieces) - 1:
            if f"image_{index}" not in positions:
                raise RowError(
                    {row: (f"span {name!r}: the tokens of image {index} of ", " are not known, pass a mask")}
                )
            mask |= positions[f"image_{index}"][row]
        at += len(PLACEHOLDER)
    return mask


def _align(pieces: Sequence[str], words: Wording) -> list[tuple[int, int, int] | None]:
    """The place of each piece in the prompt, None where it is not certain.

    A place is three indices: where the piece's first character would be, where its unstripped part begins, and where
    that ends.
    """
    prompt, token = words.prompt, words.image_token
    for parts in (list(pieces), [piece.strip() for piece in pieces]):
        left = _leftmost(parts, prompt, token)
        # Read backwards, the leftmost places are the rightmost.
        back = _leftmost([part[::-1] for part in reversed(parts)], prompt[::-1], token and token[::-1])
        if left is None or back is None:
            continue
        right = [len(prompt) - at - len(part) for at, part in zip(reversed(back), parts, strict=True)]
        return [
            (at - piece.index(part), at, at + len(part)) if at == other else None
            for at, other, part, piece in zip(left, right, parts, pieces, strict=True)
        ]
    return [None] * len(pieces)


def _leftmost(pieces: Sequence[str], prompt: str, image_token: str | None) -> list[int] | None:
    """The first places at which the pieces occur in order, an image token between each two."""
    places, at = [], 0
    for index, piece in enumerate(pieces):
        if index and image_token:
            at = prompt.find(image_token, at) + len(image_token)
            if at < len(image_token):
                return None
        at = prompt.find(piece, at)
        if at < 0:
            return None
        places.append(at)
        at += len(piece)
    return places
