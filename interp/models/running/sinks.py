"""Sinks: tokens whose state is far larger than the states of other tokens.

Language models park attention that they have no use for on a token without meaning: the first of a row, whatever it is, a
special token, some image tokens (Xiao et al. 2023, "attention sinks"). The state of such a token has a few massive entries
(Sun et al. 2024), and its norm is a hundred times that of other tokens. A mean over tokens with one of them is that one.
Image towers make such tokens too (Darcet et al. 2023, "registers").

A token is a sink if in some state its norm is over `FACTOR` times the reference of its kind:

- for text and special tokens, the model's usual norm at this state: the median over a few ordinary tokens, measured once a
  model. So a row of one word has a reference too, and so has a row of which every token is a sink ("the the the").
- for image tokens, the median over the image tokens of the row, since image features may be many times larger than
  words where they enter the stream. One image token alone is never a sink.

What a row's sinks are depends on no other row and on no padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import InterpError
from interp.models.running.steps import reads_of_states
from interp.models.running.trace import run_forward

if TYPE_CHECKING:
    from interp.models.batches.batch import Batch
    from interp.models.batches.positions import Positions
    from interp.models.running.core import Core

# In SmolLM2-135M the first token of a row reaches 122 to 188 times the usual norm (1,000 rows of 1 to 586 tokens, with and
# without a start token). Every further token of ordinary text reaches at most 13.6 times, but for rare second tokens behind a
# start token ("Engine" 34 times), which are sinks in part. The usual norm of 16 ordinary tokens is 0.86 to 1.35 times the
# median over real texts, at every state. The toy reaches 3.9, random models 3.2.
FACTOR = 20.0


def find_sinks(core: Core, batch: Batch) -> Bool[Tensor, "batch seq"]:
    """The sinks of a batch, by one run of the model without interventions."""
    norms = norms_of_states(core, batch)
    ratios = norm_ratios(core, norms, range(len(norms)), batch.positions)
    return (ratios > FACTOR).any(dim=0)


def norm_ratios(
    core: Core, norms: Float[Tensor, "state batch seq"], states: Sequence[int], positions: Positions
) -> Float[Tensor, "state batch seq"]:
    """The norms of these states as multiples of the reference of each token's kind; 0 for padding."""
    images = positions["image"]
    words = positions["all"] & ~images
    usual = _usual_norms(core) if words.any() else None
    of_words = _medians(norms, words) if usual is None else usual[list(states), None, None]
    reference = torch.where(images, _medians(norms, images), of_words)
    # A reference of 0 (features of a padded tile, say) compares with nothing.
    ratios = torch.where(reference > 0, norms / reference, 1.0)
    return ratios.where(images | words, 0.0)


def measure_usual_norms(core: Core, batch: Batch) -> tuple[float, ...]:
    """The median norm of the text and special tokens of a batch at each state."""
    words = (batch.positions["all"] & ~batch.positions["image"]).flatten()
    return tuple(norms_of_states(core, batch).flatten(1)[:, words].median(dim=1).values.tolist())


def norms_of_states(core: Core, batch: Batch) -> Float[Tensor, "state batch seq"]:
    """The norm of each state at each position; nothing else leaves the trace."""
    norms = run_forward(core, batch, reads=reads_of_states(core, take_norms, ()), logits=None)
    return torch.stack([norms[state].cpu() for state in sorted(norms)])


def take_norms(value):
    """Plain torch, run inside the trace: the norm of each vector, accumulated in float32 at least."""
    return torch.linalg.vector_norm(value, dim=-1, dtype=torch.promote_types(value.dtype, torch.float32))


def _usual_norms(core: Core) -> Tensor | None:
    """The model's usual norm at each state, None where there is nothing to measure it on: then a row is its own reference."""
    if ("usual_norms",) in core.tried:
        return None
    try:
        return torch.tensor(core.trait("usual_norms"), dtype=torch.float32)
    except InterpError:
        core.tried["usual_norms",] = "cannot be measured"
        return None


def _medians(norms: Tensor, mask: Tensor) -> Tensor:
    """The (lower) median over the positions of a mask in each row, `[state, batch, 1]`; NaN where there are none."""
    return norms.masked_fill(~mask, torch.nan).nanmedian(dim=-1, keepdim=True).values
