"""Targets: the tokens whose logits or probabilities are read, as token ids or as words.

A word is the token with which its row's prompt goes on, and every row has a prompt of its own: "red" is another token
behind "the colour is" than on a new line. `interp.models.batches.continuations` says how a word is written behind a prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from interp.arguments import as_int
from interp.errors import InputError, shown
from interp.models.batches.batch import Batch
from interp.models.batches.continuations import Continuations, Ending
from interp.models.batches.prompts import PLACEHOLDER

# Behind a letter a word has the token that it has in running text.
_RUNNING_TEXT = "a"
_MOST_SHOWN = 30


class Vocabulary(Protocol):
    """The part of a model that targets need: its tokenizer, and the number of its tokens."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def vocab_size(self) -> int: ...


def target_ids(vlm: Vocabulary, batch: Batch, targets: Any) -> Int[Tensor, " row"]:
    """Targets as ids: one token id or word for all rows of a batch, or one a row.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["where is the 3 ?", "what colour is the 3 ?"])
    >>> vlm.tokenizer.convert_ids_to_tokens(target_ids(vlm, batch, ["top", "red"]))
    ['top', 'red']

    A word is the one token with which its row's prompt goes on where the word is written behind it: behind a space, as " red"
    behind "the colour is", or directly where the prompt ends in a space, a newline, a special token or an opening bracket.
    A word that begins with whitespace is taken as it is.

    Raises `InputError` for a word of several tokens (and names its pieces), a word outside the vocabulary, anything that is
    neither id nor word, and another number of targets than rows.
    """
    return target_ids_of(vlm, [batch], targets)[0]


def target_ids_of(vlm: Vocabulary, batches: Sequence[Batch], targets: Any) -> list[Int[Tensor, " row"]]:
    """As `target_ids`, for several batches: one target for all their rows, or one for each row of all batches in order."""
    places = [(batch, row) for batch in batches for row in range(len(batch))]
    each = _one_a_row(targets, len(places))
    continuations = None
    ids = []
    for (batch, row), target in zip(places, each, strict=True):
        if isinstance(target, str):
            _refuse_without_tokenizer(vlm, target)
            continuations = continuations or Continuations(vlm.tokenizer)
            ids.append(_word_behind(vlm, continuations, _ending_of(continuations, batch, row), target, row))
        else:
            ids.append(_checked_id(vlm, target))
    return list(torch.tensor(ids, dtype=torch.long).split([len(batch) for batch in batches]))


def answers_of(vlm: Vocabulary, batches: Sequence[Batch], answers: Any) -> list[Int[Tensor, "row token"]]:
    """Answers of any number of tokens as ids, for several batches: one answer for all rows, or one a row.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["where is the 3 ?", "what colour is the 3 ?"])
    >>> (ids,) = answers_of(vlm, [batch], ["at top", "red"])
    >>> [vlm.tokenizer.convert_ids_to_tokens(row[row >= 0]) for row in ids]
    [['at', 'top'], ['red']]

    An answer is text that is written behind its row's prompt as a word is (see `target_ids`), a token id, or a list of token
    ids. Each row of the result has -1 behind the last token of its answer.

    Raises `InputError` for an answer without a token or with a word outside the vocabulary, anything that is neither text nor
    ids, and another number of answers than rows.
    """
    pieces: list[list[int]] = []
    continuations = None
    places = [(batch, row) for batch in batches for row in range(len(batch))]
    for (batch, row), answer in zip(places, _one_a_row(answers, len(places)), strict=True):
        if isinstance(answer, str):
            _refuse_without_tokenizer(vlm, answer)
            continuations = continuations or Continuations(vlm.tokenizer)
            ending = _ending_of(continuations, batch, row)
            pieces.append(_all_pieces(vlm, continuations, ending, answer, row))
        else:
            ids = answer if isinstance(answer, list | tuple) else [answer]
            pieces.append([_checked_id(vlm, each) for each in ids])
            if not ids:
                raise InputError(f"answer {shown(answer)} of row {row} has no token: expected one at least")
    longest = max(map(len, pieces), default=0)
    padded = torch.tensor([[*own, *[-1] * (longest - len(own))] for own in pieces], dtype=torch.long)
    return list(padded.split([len(batch) for batch in batches]))


def word_id(vlm: Vocabulary, word: Any) -> int:
    """The token of a word that stands behind no prompt, or a token id as it is.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> vlm.tokenizer.convert_ids_to_tokens(word_id(vlm, "red"))
    'red'

    A word is looked up behind a space, as in running text, and where that makes several pieces, without one. A word that
    begins with whitespace is taken as it is. Raises `InputError` for a word of several tokens (and names its pieces), a word
    outside the vocabulary and anything that is neither id nor word.
    """
    if not isinstance(word, str):
        return _checked_id(vlm, word)
    return _only_piece(vlm, _pieces_of(vlm, word), word, "")


def word_ids(vlm: Vocabulary, word: str) -> list[int]:
    """The tokens of a word that stands behind no prompt, looked up as `word_id` does: one or several.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> vlm.tokenizer.convert_ids_to_tokens(word_ids(vlm, "top-left"))
    ['top-left']

    Raises `InputError` for a word without a token, and for one with a part outside the vocabulary.
    """
    pieces = _pieces_of(vlm, word)
    if not pieces or vlm.tokenizer.unk_token_id in pieces:
        names = vlm.tokenizer.convert_ids_to_tokens(pieces)
        raise InputError(f"word {word!r} becomes {names!r}: expected a word of this vocabulary")
    return [_checked_id(vlm, piece) for piece in pieces]


def _pieces_of(vlm: Vocabulary, word: str) -> list[int]:
    _refuse_without_tokenizer(vlm, word)
    continuations = Continuations(vlm.tokenizer)
    running = Ending(_RUNNING_TEXT, tuple(continuations.encode(_RUNNING_TEXT)), closed=False)
    pieces = continuations.pieces(running, word) if word else []
    if not _is_one_word(vlm, pieces) and not word[:1].isspace():
        bare = continuations.encode(word)
        pieces = bare if _is_one_word(vlm, bare) or not pieces else pieces
    return pieces


def word_of(vlm: Vocabulary, token: int) -> str:
    """A token as text; its number where the model was loaded without a tokenizer."""
    return vlm.tokenizer.decode([token]) if vlm.tokenizer is not None else str(token)


def _one_a_row(targets: Any, rows: int) -> list[Any]:
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
    return each


def _checked_id(vlm: Vocabulary, target: Any) -> int:
    number = as_int(target)
    if number is None:
        raise InputError(f"target {shown(target)}: expected a word that is one token, or a token id from 0 on")
    if not 0 <= number < vlm.vocab_size:
        raise InputError(f"target {number!r}: token ids go from 0 to {vlm.vocab_size - 1}")
    return number


def _refuse_without_tokenizer(vlm: Vocabulary, word: str) -> None:
    if vlm.tokenizer is None:
        raise InputError(f"target {word!r}: this model was loaded without a tokenizer, give token ids")


def _ending_of(continuations: Continuations, batch: Batch, row: int) -> Ending:
    """The end of a row's prompt."""
    positions = batch.positions
    real = positions["all"][row]
    row_ids = batch.inputs["input_ids"][row][real]
    # An unknown word is called special too, but ends no text.
    special = positions["special"][row][real] & (row_ids != continuations.unknown)
    marks, ids = (special | positions["image"][row][real]).nonzero().flatten().tolist(), row_ids.tolist()
    text = batch.texts[row].rpartition(PLACEHOLDER)[2] if batch.texts else ""
    return continuations.ending(ids, marks[-1] + 1 if marks else 0, text)


def _word_behind(vlm: Vocabulary, continuations: Continuations, ending: Ending, word: str, row: int) -> int:
    pieces = continuations.pieces(ending, word) if word else []
    return _only_piece(vlm, pieces, word, f"; row {row} ends in {ending.text[-_MOST_SHOWN:]!r}")


def _all_pieces(vlm: Vocabulary, continuations: Continuations, ending: Ending, answer: str, row: int) -> list[int]:
    """The tokens of an answer, which the vocabulary must have all."""
    pieces = continuations.pieces(ending, answer) if answer else []
    place = f"; row {row} ends in {ending.text[-_MOST_SHOWN:]!r}"
    if not pieces:
        raise InputError(f"answer {answer!r} adds no token to a text: expected words, or a list of token ids{place}")
    if continuations.unknown in pieces:
        names = vlm.tokenizer.convert_ids_to_tokens(pieces)
        raise InputError(f"answer {answer!r} has a word outside this vocabulary, it becomes {names!r}{place}")
    return [_checked_id(vlm, piece) for piece in pieces]


def _is_one_word(vlm: Vocabulary, pieces: Sequence[int]) -> bool:
    return len(pieces) == 1 and pieces[0] != vlm.tokenizer.unk_token_id


def _only_piece(vlm: Vocabulary, pieces: list[int], word: str, place: str) -> int:
    """The token of a word that is one token, which stands at this `place`."""
    if _is_one_word(vlm, pieces):
        return _checked_id(vlm, pieces[0])
    names = vlm.tokenizer.convert_ids_to_tokens(pieces)
    problem = f"is {len(pieces)} tokens, {names!r}" if pieces else "adds no token to a text"
    if len(pieces) == 1:
        problem = f"is not a word of this vocabulary, it becomes {names[0]!r}"
    answer = ", or for an answer of several tokens the metric interp.patching.logprob" if len(pieces) > 1 else ""
    raise InputError(f"target {word!r} {problem}: expected a word that is one token, or an id{answer}{place}")
