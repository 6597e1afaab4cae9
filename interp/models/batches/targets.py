"""Targets: the tokens whose logits or probabilities are read, as token ids or as words.

A word is a target where one token continues a prompt with it, as "red" is one token and "reddish" may be three. So words
are looked up after a space first, as in running text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any, Protocol

import torch
from torch import Tensor

from interp.arguments import as_int
from interp.errors import InputError, shown


class Vocabulary(Protocol):
    """The part of a model that targets need: its tokenizer, and the number of its tokens."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def vocab_size(self) -> int: ...


def target_ids(vlm: Vocabulary, targets: Any, rows: int) -> Tensor:
    """Targets as Int `[rows]`: one token id or word for all rows, or one a row.

    A word must be the one token that continues a prompt: it is tokenized after a space and, where that makes several
    pieces, without one. Raises `InputError` for a word of several tokens (and names its pieces), a word outside the
    vocabulary, anything that is neither id nor word, and another number of targets than rows.
    """
    if hasattr(targets, "tolist"):  # torch's and numpy's
        targets = targets.tolist()
    if isinstance(targets, Mapping | Set | bytes | bytearray):  # without an order of rows, or numbers by accident
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
    problem = f"is {len(pieces)} tokens, {names!r}"
    if pieces == [unknown]:
        problem = f"is no word of this vocabulary, it becomes {names[0]!r}"
    raise InputError(f"target {target!r} {problem}: expected a word that is one token, or an id")
