"""Spans: parts of a prompt that a caller names, as masks over the tokens that the model gets.

A span is a string that stands once in the text, a range of the text's characters, ints that count the row's real
tokens, or a mask. Strings and ranges refer to the text *as the user wrote it*. On its way to the tokenizer that text
changes: ``<image>`` becomes the model's own placeholders, a chat template puts words around it, a processor adds
newlines. But the pieces between the images come through as they are, in order, and so each is looked for there, first
as far left and then as far right as possible: where both agree, it can stand nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.arguments import as_int, as_ints
from interp.errors import InputError
from interp.models.batches.positions import Positions, count_tokens, is_kind
from interp.models.batches.prompts import PLACEHOLDER


@dataclass(frozen=True)
class Wording:
    """One row's text on its way: `said` by the user, `heard` by the tokenizer; `offsets` of each real token in that.

    `image_token` is what the tokenizer hears for one image token, None where the model has none.
    """

    said: str
    heard: str
    offsets: Sequence[tuple[int, int]]
    image_token: str | None


def find_spans(
    spans: Mapping[str, Any] | Sequence[Mapping[str, Any]], positions: Positions, wording: Callable[[int], Wording]
) -> dict[str, Tensor]:
    """Bool `[batch, seq]` of each named span; `wording` is asked for rows whose spans are strings or ranges.

    Raises `InputError` for a span that is not there, is there twice, lies outside the text or holds no token.
    """
    real = positions["all"]
    found: dict[str, Tensor] = {}
    for name, each in _by_name(spans, len(real)).items():
        if not isinstance(name, str):
            raise InputError(f"span {name!r}: its name is a {type(name).__name__}, expected a string")
        if is_kind(name):
            raise InputError(f"span {name!r} has the name of a kind of position: choose another name")
        if _is_mask(each):
            found[name] = _whole_mask(name, each, real)
        else:
            rows = [_of_row(name, span, row, positions, wording) for row, span in enumerate(each)]
            found[name] = torch.stack(rows)
    return found


def _by_name(spans: Any, rows: int) -> dict[str, Any]:
    """Each span's mask for the batch, or its spans row by row: None for a row that has none of that name."""
    if isinstance(spans, Mapping):
        return {name: span if _is_mask(span) else _row_by_row(name, span, rows) for name, span in spans.items()}
    if not isinstance(spans, list | tuple) or not all(isinstance(row, Mapping) for row in spans):
        raise InputError(f"spans={spans!r}: expected a dict of names, or a list with one dict a row")
    if len(spans) != rows:
        raise InputError(f"spans has {len(spans)} dicts for {rows} rows: expected one a row")
    return {name: [row.get(name) for row in spans] for name in dict.fromkeys(name for row in spans for name in row)}


def _row_by_row(name: str, span: Any, rows: int) -> list[Any]:
    one_for_all = isinstance(span, str) or _is_range(span) or _is_counted(span)
    each = [span] * rows if one_for_all or not isinstance(span, list | tuple) else list(span)
    if len(each) != rows:
        raise InputError(f"span {name!r}: {len(each)} spans for {rows} rows, expected one a row or one for all")
    return each


def _is_mask(span: Any) -> bool:
    return isinstance(span, Tensor | np.ndarray)


def _is_range(span: Any) -> bool:
    """A tuple of two ints is a range of characters; ints in a list count tokens."""
    return isinstance(span, tuple) and len(span) == 2 and as_ints(span) is not None


def _is_counted(span: Any) -> bool:
    return as_int(span) is not None or (isinstance(span, list) and bool(span) and as_ints(span) is not None)


def _whole_mask(name: str, given: Any, real: Tensor) -> Tensor:
    mask = _checked(name, given, [tuple(real.shape)], "(batch, seq)") & real
    if not mask.any():
        raise InputError(f"span {name!r}: its mask holds no real token, expected at least one True")
    return mask


def _checked(name: str, given: Any, shapes: list[tuple[int, ...]], axes: str) -> Tensor:
    mask = torch.as_tensor(given).cpu()
    if mask.dtype != torch.bool:
        raise InputError(f"span {name!r} is a tensor of {mask.dtype}: expected a bool mask, or a list of ints")
    if tuple(mask.shape) not in shapes:
        expected = " or ".join(str(shape) for shape in dict.fromkeys(shapes))
        raise InputError(f"span {name!r} is a mask of shape {tuple(mask.shape)}: expected {expected} {axes}")
    return mask


def _of_row(name: str, span: Any, row: int, positions: Positions, wording: Callable[[int], Wording]) -> Tensor:
    """One row's span as Bool `[seq]`; all False where it has none."""
    real = positions["all"][row]
    places = real.nonzero().flatten()
    if span is None:
        return torch.zeros_like(real)
    if _is_mask(span):
        given = _checked(name, span, [tuple(real.shape), (len(places),)], f"(seq, or the real tokens of row {row})")
        mask = torch.zeros_like(real)
        mask[places] = given[places] if given.shape == real.shape else given
    elif _is_counted(span):
        mask = count_tokens(real, as_ints(span) or [], row)
    elif isinstance(span, str) or _is_range(span):
        words = wording(row)
        start, end = _range_of(name, span, row, words.said)
        mask = _tokens_of(name, start, end, row, words, positions)
    else:
        raise InputError(
            f"span {name!r} of row {row} is {span!r}: expected a string, a (start, end) range, a mask or a list of ints"
        )
    if not mask.any():
        raise InputError(f"span {name!r}: {span!r} holds no token of row {row}, expected at least one")
    return mask


def _range_of(name: str, span: str | tuple[int, int], row: int, said: str) -> tuple[int, int]:
    if isinstance(span, str):
        times = said.count(span) if span else 0
        if times != 1:
            raise InputError(f"span {name!r}: {span!r} stands {times} times in row {row}, {said!r}; expected once")
        return said.index(span), said.index(span) + len(span)
    start, end = span
    if not 0 <= start < end <= len(said):
        raise InputError(f"span {name!r}: {span!r} is no range of the {len(said)} characters of row {row}, {said!r}")
    return start, end


def _tokens_of(name: str, start: int, end: int, row: int, words: Wording, positions: Positions) -> Tensor:
    """The tokens of some characters that the user wrote; those of ``<image>`` stand for all tokens of that image."""
    places = positions["all"][row].nonzero().flatten()
    mask = torch.zeros_like(positions["all"][row])
    pieces = words.said.split(PLACEHOLDER)
    heard_at = _align(pieces, words)
    at = 0
    for index, piece in enumerate(pieces):
        first, last = max(start, at), min(end, at + len(piece))
        if first < last:
            where = heard_at[index]
            if where is None:
                raise InputError(
                    f"span {name!r} cannot be found: {piece!r} of row {row} does not stand once in {words.heard!r}, "
                    "what the processor makes of it; pass a mask instead"
                )
            # A template may leave out the spaces around a piece: what is left of the range is inside it.
            low, high = (min(max(edge - at + where[0], where[1]), where[2]) for edge in (first, last))
            for place, (begin, stop) in zip(places, words.offsets, strict=True):
                mask[place] |= begin < high and stop > low and stop > begin
        at += len(piece)
        if start < at + len(PLACEHOLDER) and end > at and index < len(pieces) - 1:
            if f"image_{index}" not in positions:
                raise InputError(f"span {name!r}: the tokens of image {index} of row {row} are not known, pass a mask")
            mask |= positions[f"image_{index}"][row]
        at += len(PLACEHOLDER)
    return mask


def _align(pieces: Sequence[str], words: Wording) -> list[tuple[int, int, int] | None]:
    """Where each piece stands in what the tokenizer hears, None where that is not certain.

    A place is (where its first character is, or would be; where what is left of it begins; where that ends).
    """
    for kept in (list(pieces), [piece.strip() for piece in pieces]):
        left = _leftmost(kept, words.heard, words.image_token)
        # Seen from behind, the leftmost places are the rightmost.
        back = _leftmost(
            [piece[::-1] for piece in reversed(kept)],
            words.heard[::-1],
            None if words.image_token is None else words.image_token[::-1],
        )
        if left is None or back is None:
            continue
        right = [len(words.heard) - at - len(piece) for at, piece in zip(reversed(back), kept, strict=True)]
        return [
            (at - piece.index(part), at, at + len(part)) if at == other else None
            for at, other, part, piece in zip(left, right, kept, pieces, strict=True)
        ]
    return [None] * len(pieces)


def _leftmost(pieces: Sequence[str], heard: str, image_token: str | None) -> list[int] | None:
    """The first places at which the pieces stand in order, an image token between each two."""
    places, at = [], 0
    for index, piece in enumerate(pieces):
        if index and image_token:
            at = heard.find(image_token, at) + len(image_token)
            if at < len(image_token):
                return None
        at = heard.find(piece, at)
        if at < 0:
            return None
        places.append(at)
        at += len(piece)
    return places
