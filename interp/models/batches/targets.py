"""Targets: the token ids of answers that are given as ids or as words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any, Protocol

import torch
from torch import Tensor

from interp.arguments import as_int
from interp.errors import InputError, shown


class Vocabulary(Protocol):
    """A model, as far as targets go."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def vocab_size(self) -> int: ...


def target_ids(vlm: Vocabulary, targets: Any, rows: int) -> Tensor:
    """Targets as Int `[rows]`: one token id or word for all rows, or one a row.

    A word must be the one token that continues a prompt: it is tokenized behind a space and, where that gives several
    pieces, as it stands. Raises `InputError` with its pieces where it is more than one token, for one that the vocabulary
    does not have, for what is neither id nor word, and where there are not as many as rows.
    """
    if hasattr(targets, "tolist"):  # torch's and numpy's
        targets = targets.tolist()
    if isinstance(targets, Mapping | Set | bytes | bytearray):  # these have no order of rows, or are numbers unawares
        raise InputError(
            f"targets={shown(targets)}: expected a word or a token id for all rows, or a list of one a row"
        )
    several = isinstance(targets, Iterable) and not isinstance(targets, str)
    each = list(targets) if several else [targets] * rows
    if len(each) != rows:
        raise InputError(f"{len(each)} targets for {rows} rows: expected one for all rows or one a row")
    return torch.tensor([target_id(vlm, target) for target in each])


def word_of(vlm: Vocabulary, token: int) -> str:
    """A token as text; its number where the model was loaded without a tokenizer."""
    return vlm.tokenizer.decode([token]) if vlm.tokenizer is not None else str(token)


def target_id(vlm: Vocabulary, target: Any) -> int:
    """One target as a token id."""
    vocabulary, number = vlm.vocab_size, as_int(target)
    if number is not None:
        if not 0 <= number < vocabulary:
            raise InputError(f"target {number!r}: token ids go from 0 to {vocabulary - 1}")
        return number
    if not isinstance(target, str):
        raise InputError(f"target {shown(target)}: expected a word that is one token, or a token id from 0 on")
    if vlm.tokenizer is None:
        raise InputError(f"target {target!r}: this model was loaded without a tokenizer, give token ids")
    unknown = vlm.tokenizer.unk_token_id
    pieces: list[int] = []
    for text in (f" {target.strip()}", target.strip()):
        pieces = vlm.tokenizer.encode(text, add_special_tokens=False)
        if len(pieces) == 1 and pieces[0] != unknown:
            return pieces[0]
    names = vlm.tokenizer.convert_ids_to_tokens(pieces)
    if pieces == [unknown]:
        raise InputError(
            f"target {target!r} is no word of this vocabulary, it becomes {names[0]!r}: expected a word that is one token, or "
            "an id"
        )
    raise InputError(
        f"target {target!r} is {len(pieces)} tokens, {names!r}: expected a word that is one token, or an id"
    )
