"""Counterfactual attention: give every row of attention other weights, and see what its own were worth.

If a model answers as well with weights that know nothing of the prompt, its attention was not what carried the answer.
Each row of each head keeps the keys it may see and gets other weights over them, which sum to one as before:

==========  ==============================================================================================
uniform     ``1 / n`` for each of the n keys
random      ``u[k] / sum of u``, the u drawn evenly between 0 and 1
reversed    ``(max + min - w[k]) / sum``: what weighed most weighs least, of two keys each takes the other's
shuffled    the row's own weights, dealt out anew among its keys
==========  ==============================================================================================

The four kinds are those of CausalMM (Zhou et al. 2024); the formulas are this toolkit's own, since theirs are divided by a
sum that hidden keys belong to as well, so that their rows do not sum to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from interp.errors import InputError
from interp.interventions.choices import chosen_layers, keep_iterators
from interp.interventions.knockout import patterned
from interp.models.encodings import shown
from interp.models.forward import Edit
from interp.models.positions import as_int

if TYPE_CHECKING:
    from interp.models import VLM, Batch


@dataclass(frozen=True, kw_only=True)
class Reweight:
    """Every row of attention in these layers gets other weights over the keys it may see: counterfactual attention.

    `kind` is "uniform", "random", "reversed" or "shuffled"; the draws of "random" and "shuffled" depend on `seed`, differ
    between layers, heads and rows, and depend on the batch that a row is in. Like a knockout after the softmax it needs
    eager attention for the run, and layers in which ``z = pattern @ v`` was proved.

    In generation the rows of new tokens get other weights too.

    `tower` is "language"; the weights of an image tower were not proved to make what its heads give, so "vision" is refused.

    Raises `InputError` for an unknown kind, tower, layer or seed, for no layer and for one without softmax attention;
    `LayoutError` for a layer whose z is not ``pattern @ v``.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . where is the 3 ?"])
    >>> even = interp.interventions.Reweight(kind="uniform", layers=[3, 4])
    >>> bool((vlm.logits(batch) == vlm.logits(batch, interventions=[even])).all())
    False
    """

    kind: str
    layers: Any
    tower: str = "language"
    seed: int = 0

    def __post_init__(self) -> None:
        keep_iterators(self)

    @property
    def needs_weights(self) -> bool:
        """Whether it edits the weights of attention, for which the run is eager."""
        return True

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]:
        if self.kind not in KINDS:
            raise InputError(f"kind={self.kind!r}: expected one of {', '.join(KINDS)}")
        if self.tower == "vision":
            raise InputError(
                "tower='vision': the attention weights of an image tower are not proved, use tower='language'"
            )
        if self.tower != "language":
            raise InputError(f"tower={self.tower!r}: expected 'language'")
        seed = as_int(self.seed)
        if seed is None or seed < 0:
            raise InputError(f"seed={shown(self.seed)}: expected an int from 0 on")
        layers = patterned(vlm, chosen_layers(vlm, self.layers))
        depth = vlm.structure.n_layers
        return [
            Edit("pattern", layer, reweigh, (KINDS[self.kind], seed * depth + layer), ("mask", "past"))
            for layer in layers
        ]


# Plain torch, run inside the trace: weights, and which keys a row sees, `[batch, query, head, key]` --------------------


def reweigh(pattern, allowed, past, weigh, seed):
    """The rows of `pattern` weighed anew over the keys that `allowed` `[batch, 1 or heads, query, key]` shows them. A row
    that sees nothing, of padding, stays as it is."""
    sees = allowed.transpose(1, 2).expand(pattern.shape)
    # Each step of a generation draws anew.
    drawn = torch.rand(pattern.shape, generator=torch.Generator().manual_seed(seed + 1_000_003 * past))
    new = weigh(pattern.float(), sees, drawn.to(pattern.device)) * sees
    new = new / new.sum(dim=-1, keepdim=True)
    return torch.where(sees.any(dim=-1, keepdim=True), new, pattern.float()).to(pattern.dtype)


def uniform(weights, sees, drawn):
    """The same for every key."""
    return torch.ones_like(weights)


def random(weights, sees, drawn):
    """The draws themselves."""
    return drawn


def reversed_(weights, sees, drawn):
    """Mirrored between a row's largest and smallest."""
    highest = weights.masked_fill(~sees, 0).amax(dim=-1, keepdim=True)
    lowest = weights.masked_fill(~sees, torch.inf).amin(dim=-1, keepdim=True)
    return highest + lowest.clamp(max=1) - weights


def shuffled(weights, sees, drawn):
    """Dealt out in the order of the draws: keys that are seen come first in both orders, and are as many."""
    own = (~sees).float().argsort(dim=-1, stable=True)
    dealt = drawn.masked_fill(~sees, torch.inf).argsort(dim=-1)
    return torch.zeros_like(weights).scatter(-1, own, weights.gather(-1, dealt))


KINDS = {"uniform": uniform, "random": random, "reversed": reversed_, "shuffled": shuffled}
