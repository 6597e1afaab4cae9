"""`bypass` and `no_bypass`: image tokens enter as words are at state 3, or as words are at state 0.

Words enter in a *spelling*: each has a direction of its own, in features that the toy's layers do not read. Three layers in front
of the toy's read it: the first two leave every state as it is, and the MLP of the third looks each spelling up. A unit a word,
silu(x) x with x the part of the normed state along the word's direction, adds the toy's vector of the word and takes the spelling
away. From state 3 on, text is in the states of `toy:tuned`, to float precision.

Both connectors know the same, the weights of three words for each patch of an object (`interp.toy.word_connector`):

- `bypass` reads them into the words' vectors of *state 3*. No unit of the three layers sees them, so an image token passes
  these layers without a change of one bit: it has bypassed them.
- `no_bypass` reads them into the *spellings*. The third layer looks them up as it does words.

Everything else is the same in both. So whatever tells them apart speaks of where image tokens enter.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from interp.toy.grown import OWN, WIDTH, grown_toy
from interp.toy.language import COLOURS, DIGITS, IDS, PLACES
from interp.toy.organism import Truth
from interp.toy.word_connector import word_connector

ENTRY = 3  # the state at which words are in the toy's vectors
# The lengths of spellings. They are not alike, so that captions have other neighbours in spellings than at state 3.
LENGTHS = {COLOURS: 1.0, DIGITS: 2.0, PLACES: 0.5}


def bypass(seed: int) -> tuple[LlavaForConditionalGeneration, Truth]:
    """Image tokens enter like the captions' words at state 3, and no earlier layer changes them."""
    model, _, vectors = _reading_toy(seed)
    _set_connector(model, vectors)
    statement = (
        f"Image tokens enter as the mean of the vectors that their words have at state {ENTRY}; "
        f"layers 0 to {ENTRY - 1} add exactly 0 to them."
    )
    return model, Truth("bypass", statement, tuple(range(ENTRY)), ("image",), effects={"entry": ENTRY, "added": 0.0})


def no_bypass(seed: int) -> tuple[LlavaForConditionalGeneration, Truth]:
    """Image tokens enter like words, and the third layer turns them into what words are at state 3."""
    model, spellings, _ = _reading_toy(seed)
    _set_connector(model, spellings)
    statement = (
        f"Image tokens enter as the mean of the vectors that their words have at state 0; layer {ENTRY - 1} turns them "
        f"into what words are at state {ENTRY}."
    )
    return model, Truth("no_bypass", statement, (ENTRY - 1,), ("image",), effects={"entry": 0})


def _set_connector(model: LlavaForConditionalGeneration, vectors: Tensor) -> None:
    projector = model.model.multi_modal_projector
    projector.load_state_dict(word_connector(vectors))


@torch.no_grad()
def _reading_toy(seed: int) -> tuple[LlavaForConditionalGeneration, Tensor, Tensor]:
    """The toy behind three layers that read spellings, and what words are at state 0 and at state 3, `[word, feature]`."""
    model = grown_toy(ENTRY)
    language = model.model.language_model
    vectors = language.embed_tokens.weight.clone()
    draw = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(WIDTH - OWN, len(IDS), generator=draw, dtype=torch.float64))[0].T
    lengths = torch.ones(len(IDS), 1, dtype=torch.float64)
    for words, length in LENGTHS.items():
        lengths[[IDS[word] for word in words]] = length
    spellings = torch.cat([torch.zeros(len(IDS), OWN, dtype=torch.float64), lengths * directions], dim=1)
    language.embed_tokens.weight.copy_(spellings)
    mlp, eps = language.layers[ENTRY - 1].mlp, language.config.rms_norm_eps
    # What a word's own unit sees of it, and what the unit then gives.
    seen = lengths / (lengths.square() / WIDTH + eps).sqrt()
    given = torch.nn.functional.silu(seen) * seen
    for name in ("gate_proj", "up_proj"):
        getattr(mlp, name).weight[: len(IDS), OWN:] = directions.float()
    mlp.down_proj.weight[:, : len(IDS)] = ((vectors - spellings) / given).T.float()
    return model, spellings.float(), vectors
