"""Counterfactual attention: give every row of attention other weights, and see what its own were worth.

If a model answers as well with weights that know nothing of the prompt, its attention was not what carried the answer.
Each row of each head keeps the keys it may see and gets other weights over them, which sum to one as before:

==========  ==============================================================================================
uniform     ``1 / n`` for each of the n keys
random      ``u[k] / sum of u``, the u drawn evenly between 0 and 1
reversed    ``(max + min - w[k]) / sum``: what weighed most weighs least, of two keys each takes the other's
shuffled    the row's own weights, dealt out anew among its keys
==========  ==============================================================================================

It can be done to the language model and to its image tower, whose rows are patches that look at patches: an answer that
survives other weights in the tower was carried by what each patch shows alone.

The four kinds are those of CausalMM (Zhou et al. 2024); the formulas are this toolkit's own, since theirs are divided by a
sum that hidden keys belong to as well, so that their rows do not sum to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from interp.arguments import checked_seed
from interp.errors import InputError, LayoutError
from interp.interventions.knockout import patterned
from interp.interventions.selection import chosen_blocks, chosen_layers, keep_iterators
from interp.models.layout.patches import times_run
from interp.models.running.attention import eager_tower
from interp.models.running.steps import Edit

if TYPE_CHECKING:
    from interp.models import VLM, Batch

# The sites of the weights and of who sees whom.
_TOWERS = {"language": ("pattern", "mask"), "vision": ("vision_pattern", "vision_mask")}


@dataclass(frozen=True, kw_only=True)
class Reweight:
    """Every row of attention in these layers gets other weights over the keys it may see: counterfactual attention.

    `kind` is "uniform", "random", "reversed" or "shuffled"; the draws of "random" and "shuffled" depend on `seed`, differ
    between layers, heads and rows, and depend on the batch that a row is in. Like a knockout after the softmax it needs
    eager attention for the run, and layers in which ``z = pattern @ v`` was proved.

    In generation the rows of new tokens get other weights too.

    With `tower` "vision" the layers are blocks of the image tower, in which the same was proved (`vlm.structure.vision_weighed`,
    measured at the first use). Which keys a token may see there is told by the mask or the bounds that its attention is
    given: all of its image in most, those of its window in some. The tower runs once, with the prompt.

    Raises `InputError` for an unknown kind, tower, layer or seed, for no layer and for one without softmax attention, and
    for a batch without images where the tower's weights are to change; `LayoutError` for a layer or a block whose z is not
    ``pattern @ v``, and for a tower that runs more than once.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . where is the 3 ?"])
    >>> even = interp.interventions.Reweight(kind="uniform", layers=[3, 4])
    >>> bool((vlm.logits(batch) == vlm.logits(batch, interventions=[even])).all())
    False
    >>> scene = interp.toy.scenes(1, seed=0)[0]
    >>> pictured = vlm.prepare(texts=[scene.questions[0].prompt], images=[scene.image])
    >>> blurred = interp.interventions.Reweight(kind="uniform", layers="all", tower="vision")
    >>> bool((vlm.logits(pictured) == vlm.logits(pictured, interventions=[blurred])).all())
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
        """Whether it edits the weights of the decoder's attention, for which the run is eager."""
        return self.tower == "language"

    @property
    def needs_tower_weights(self) -> bool:
        """Whether it edits the weights of the image tower's attention, which is eager for the run then."""
        return self.tower == "vision"

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]:
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise InputError(f"kind={self.kind!r}: expected one of {', '.join(KINDS)}")
        if self.tower not in _TOWERS:
            raise InputError(f"tower={self.tower!r}: expected {' or '.join(map(repr, _TOWERS))}")
        seed = checked_seed(self.seed)
        if self.tower == "vision":
            layers, depth = _seeing(vlm, batch, self.layers), len(vlm.block_indices("all"))
        else:
            layers, depth = patterned(vlm, chosen_layers(vlm, self.layers)), vlm.structure.n_layers
        weights, mask = _TOWERS[self.tower]
        return [
            Edit(weights, layer, reweigh, (KINDS[self.kind], seed * depth + layer), (mask, "past")) for layer in layers
        ]


def _seeing(vlm: VLM, batch: Batch, layers: Any) -> list[int]:
    """These blocks of the image tower, which runs once for this batch: an edit is made in its first run."""
    chosen = chosen_blocks(vlm, layers)
    if not batch.has_images:
        raise InputError("tower='vision': the batch has no image, so the image tower does not run: expected images")
    with eager_tower(vlm):  # a model on a server that cannot be switched is refused before anything is sent
        times = times_run(vlm, batch)
    if times != 1:
        raise LayoutError(
            f"{vlm.name!r} runs its image tower {times} times for this batch, expected once: its weights cannot be changed"
        )
    return chosen


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
