"""Lenses: states read in the model's own vocabulary. The names of `interp.readouts` and `interp.words` are here too.

>>> import interp
>>> from interp.lens import logit_lens
>>> vlm = interp.load("toy")
>>> batch = vlm.prepare(texts=["a red 3 at top . what colour is the 3 ?"])
>>> logit_lens(vlm, batch, positions="last").words(8, 0)[0]
'red'
"""

from __future__ import annotations

from interp.lens.logit import logit_lens, unnormed_lens
from interp.lens.reading import LensResult
from interp.lens.tuned import TunedLens, tuned_lens
from interp.readouts.attention_shares import MassResult, ShareResult, attention_masses, attention_share
from interp.readouts.logit_attribution import AttributionResult, Component, direct_logit_attribution
from interp.words.decomposition import DecompositionResult, Dictionary, dictionary_of, vocabulary_decomposition
from interp.words.head_pursuit import HeadResult, head_pursuit, scale_heads
from interp.words.projector import ProjectorResult, neighbours_kept, projector_report, spread_of, word_alignment
from interp.words.projector import WordAlignment as Alignment
from interp.words.visual_tokens import TokenStats, quantise, visual_token_stats

__all__ = [
    "Alignment",
    "AttributionResult",
    "Component",
    "DecompositionResult",
    "Dictionary",
    "HeadResult",
    "LensResult",
    "MassResult",
    "ProjectorResult",
    "ShareResult",
    "TokenStats",
    "TunedLens",
    "attention_masses",
    "attention_share",
    "dictionary_of",
    "direct_logit_attribution",
    "head_pursuit",
    "logit_lens",
    "neighbours_kept",
    "projector_report",
    "quantise",
    "scale_heads",
    "spread_of",
    "tuned_lens",
    "unnormed_lens",
    "visual_token_stats",
    "vocabulary_decomposition",
    "word_alignment",
]
