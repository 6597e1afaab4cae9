"""Words: states, heads, projectors and visual tokens described by words of the vocabulary.

>>> import interp
>>> from interp.words import dictionary_of, vocabulary_decomposition
>>> words = dictionary_of(interp.load("toy"), "embed")
>>> vector = words.rows[words.words.index("red")] + words.rows[words.words.index("3")]
>>> sorted(vocabulary_decomposition(vector[None], words, k=2).words(0))
['3', 'red']
"""

from __future__ import annotations

from interp.words.decomposition import DecompositionResult, Dictionary, dictionary_of, vocabulary_decomposition
from interp.words.head_pursuit import HeadResult, head_pursuit, scale_heads
from interp.words.projector import (
    ProjectorResult,
    WordAlignment,
    neighbours_kept,
    projector_report,
    spread_of,
    word_alignment,
)
from interp.words.visual_tokens import TokenStats, quantise, visual_token_stats

__all__ = [
    "DecompositionResult",
    "Dictionary",
    "HeadResult",
    "ProjectorResult",
    "TokenStats",
    "WordAlignment",
    "dictionary_of",
    "head_pursuit",
    "neighbours_kept",
    "projector_report",
    "quantise",
    "scale_heads",
    "spread_of",
    "visual_token_stats",
    "vocabulary_decomposition",
    "word_alignment",
]
