"""Continuations: the tokens with which a tokenizer goes on where a word is written behind a prompt.

To a model "red" behind a space and "red" on a new line are two words with two tokens. Which of them can follow a prompt
is decided by how the prompt ends, so the word is written behind it as people write:

==================================================================  =====================
the prompt ends in                                                  a word is written
==================================================================  =====================
a letter, a digit, ``:``, ``?``, ``.``, ...                         behind a space
a space, a newline                                                  directly
a special token, as ``<|assistant|>``                               directly
an opening bracket, quote, backtick, ``**`` or tag as ``<answer>``  directly
a joint without a space before it: ``a/``, ``re-``, ``x=``, ``_``   directly
a script that is written without spaces                             directly
==================================================================  =====================

A mark that opens and closes alike, as ``"``, opens where its line has an odd number of it, and never behind a letter. A
word that begins with whitespace is taken as it is: the caller says what stands before it. So is one that begins with
closing punctuation, a special token, and a word of a script that is written without spaces.

The tokenizer then reads prompt and word together, and the tokens behind the prompt's own are the word's. Some tokenizers
make one token of the end of a prompt and the word, as of "is " and "red". The model has read the prompt's own tokens, so
the word is then made of the tokens with which *these* read on as the same text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# Beginnings of the Unicode names of characters of scripts that are written without spaces between words.
_SPACELESS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "IDEOGRAPHIC", "FULLWIDTH")
# Marks that open and close alike; a quote between letters is an apostrophe. One star may be a bullet or a product.
_MARKS = re.compile(r"\*\*|`+|\"|(?<!\w)'|'(?!\w)")
# The end of an opening tag, of a joint of two words with nothing between them, and the sign of a price.
_GLUED = re.compile(
    r"(?<!\w)<(?!unk>)[A-Za-z][^<>]*(?<!/)>$|[\w)\]}\"'][-/\\@=~\u2013\u2014]$|:[/\\]+$|[^\W_]_$|(^|\(|(^|\D)\s)[$£€]$"
)
# Text that ends before the word, for the tokens that a word has where nothing before it can merge with it.
_APART = ("", "\n", "(")


@dataclass(frozen=True)
class Ending:
    """The end of a prompt: its `text`, the `ids` that the tokenizer makes of this text, and whether a special token ends it."""

    text: str
    ids: tuple[int, ...]
    closed: bool


def written_behind(ending: Ending, word: str, special: bool = False) -> str:
    """The word as it is written behind a prompt: with a space before it, or as it is; `special` says that it is a token
    and no word.

    >>> written_behind(Ending("the colour is", (), False), "red"), written_behind(Ending("Answer: (", (), False), "A")
    (' red', 'A')
    """
    before, first = ending.text[-1:], word[:1]
    directly = (
        special
        or ending.closed
        or not before
        or any(character.isspace() for character in (before, first))
        or _opens(ending.text)
        or _closes(word)
        or _is_spaceless(before)
        or _is_spaceless(first)
    )
    return word if directly else f" {word}"


def _opens(text: str) -> bool:
    """Whether the word belongs right behind the end of a text: behind an opening bracket, quote or tag, or a joint."""
    if unicodedata.category(text[-1]) in ("Ps", "Pi"):
        return True
    line = text.rpartition("\n")[2]
    marks = list(_MARKS.finditer(line))
    if marks and marks[-1].end() == len(line):
        mark, before = marks[-1].group(), line[: marks[-1].start()]
        alike = sum(each.group() == mark for each in marks)
        return (not before or before[-1].isspace() or alike % 2 == 1) and not before[-1:].isalnum()
    return bool(_GLUED.search(line))


def _closes(word: str) -> bool:
    """Whether a word begins with punctuation that stands at the end of the word before it."""
    return word[0] in ".,;:!?%…'" or unicodedata.category(word[0]) in ("Pe", "Pf")


def _is_spaceless(character: str) -> bool:
    return bool(character) and unicodedata.name(character, "").startswith(_SPACELESS)


class Continuations:
    """The tokens of words behind prompts, for one tokenizer; what it has read once it does not read again."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        ends = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        unknown = tokenizer.unk_token_id
        # The id of an unknown word; -1 where there is none, or where the same token begins and ends texts.
        self.unknown = -1 if unknown is None or unknown in ends else unknown
        self._specials = {str(token) for token in tokenizer.all_special_tokens}
        added = getattr(tokenizer, "added_tokens_decoder", {})
        # Tokens as </think> are not words, whether they are called special or not.
        self._closing = {token for token, entry in added.items() if not str(entry)[-1:].isalnum()} - {self.unknown}
        self._endings: dict[Any, Ending] = {}
        self._pieces: dict[tuple[Ending, str], list[int]] = {}

    def ending(self, ids: Sequence[int], start: int, text: str = "") -> Ending:
        """The end of a prompt of these ids, whose last image or special token stands before `start`.

        `text` is what is known of the text behind it. Nothing but the ids tells the model how its prompt ends, so a text
        counts where it makes these ids again; a tokenizer may leave something out when it decodes.
        """
        key = tuple(ids[max(start - 1, 0) :]), text
        if key not in self._endings:
            self._endings[key] = self._find_ending(ids, start, text)
        return self._endings[key]

    def _find_ending(self, ids: Sequence[int], start: int, text: str) -> Ending:
        closed = start == len(ids) or ids[-1] in self._closing
        marks = [token for token in ids[max(start - 1, 0) : start] if 0 <= token < len(self.tokenizer)]
        # Some tokenizers put a space before a text behind a special token, and some only at the very beginning.
        candidates = (lambda: text, lambda: self.decode([*marks, *ids[start:]]), lambda: self.decode(ids[start:]))
        for candidate in (make() for make in candidates):
            again = self.encode(candidate)
            if again and list(ids[-len(again) :]) == again:
                return Ending(candidate, tuple(again), closed)
        # No text makes these very ids, as after a cut inside a word. What follows the same text in other pieces follows it.
        return Ending(candidate, tuple(again), closed)

    def pieces(self, ending: Ending, word: str) -> list[int]:
        """The tokens with which the prompt goes on where this word stands behind it; none where no token does."""
        key = ending, word
        if key not in self._pieces:
            written = written_behind(ending, word, special=word in self._specials)
            # A tokenizer of whole words may read nothing that is not behind a space.
            self._pieces[key] = self._read_on(ending, written) or self._read_on(ending, f" {word}")
        return self._pieces[key]

    def _read_on(self, ending: Ending, written: str) -> list[int]:
        size = len(ending.ids)
        together = self.encode(ending.text + written)
        if tuple(together[:size]) == ending.ids:
            return together[size:]
        expected = self.decode(ending.ids) + written
        candidates = [pieces for pieces in self._apart(written) if self.decode([*ending.ids, *pieces]) == expected]
        return min(candidates, key=len, default=[])

    def _apart(self, written: str) -> Iterator[list[int]]:
        """The tokens of a text that merges with nothing before it, read in several ways."""
        token = self.tokenizer.convert_tokens_to_ids(written)
        if isinstance(token, int):
            yield [token]
        for before in _APART:
            ids, own = self.encode(before + written), self.encode(before)
            if ids[: len(own)] == own:
                yield ids[len(own) :]

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens around it."""
        return list(self.tokenizer.encode(text, add_special_tokens=False)) if text else []

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids as it is, with special tokens."""
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False) if ids else ""
