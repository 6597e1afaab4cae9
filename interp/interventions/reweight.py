"""Counterfactual attention: give every row of attention other weights, and see what its own weights were worth.

If a model answers as well with weights that do not depend on the prompt, its attention did not carry the answer. Each row of
each head keeps the keys that it may see, and gets other weights over them, which again sum to one:

==========  ===============================================================================================
uniform     ``1 / n`` for each of the n keys
random      ``u[k] / sum of u``, with u drawn uniformly between 0 and 1
reversed    ``(max + min - w[k]) / sum``: the largest weight becomes the smallest, and two keys swap weights
shuffled    the row's own weights, randomly permuted among its keys
==========  ===============================================================================================

This works in the language model and in its image tower. There the rows are patches that look at patches, and an answer that
survives was carried by each patch alone.

The four kinds are those of CausalMM (Zhou et al. 2024). The formulas are this toolkit's own: those of the paper divide by a sum
that includes hidden keys, so their rows do not sum to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from interp.arguments import checked_choice, checked_seed
from interp.errors import InputError, LayoutError
from interp.interventions.knockout import check_softmax
from interp.interventions.selection import Reusable, select_blocks, select_layers
from interp.models import VLM, Batch, Edit
from interp.models.layout.patches import times_run
from interp.models.running.attention import eager_tower

# The sites of the weights and of the mask.
_TOWERS = {"language": ("pattern", "mask"), "vision": ("vision_pattern", "vision_mask")}


@dataclass(frozen=True, kw_only=True)
class Reweight(Reusable):
    """Every row of attention in these layers gets other weights over the keys it may see: counterfactual attention.

    `kind` is "uniform", "random", "reversed" or "shuffled". The draws of "random" and "shuffled" depend on `seed`; they differ
    between layers, heads and rows, and depend on the batch that a row is in. As a knockout after the softmax does, it needs
    eager attention for the run, and layers in which ``z = pattern @ v`` was proved.

    In generation the rows of new tokens get other weights too.

    With `tower` "vision" the layers are blocks of the image tower in which the same was proved
    (`vlm.structure.vision_weighed`, measured at the first use). The mask or the bounds of its attention say which keys a token
    may see there: all of its image in most towers, those of its window in some. The tower runs once, with the prompt.

    Raises `InputError` for an unknown kind, tower, layer or seed, for no layer, for one without softmax attention, and for a
    batch without images with `tower` "vision"; `LayoutError` for a layer or a block whose z is not ``pattern @ v``, and for a
    tower that runs more than once.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . where is the 3 ?"])
    >>> even = interp.interventions.Reweight(kind="uniform", layers=[3, 4])
    >>> bool((vlm.logits(batch) == vlm.logits(batch, interventions=[even])).all())
    False
    >>> scene = interp.toy.scenes(1, seed=0)[0]
    >>> pictures = vlm.prepare(texts=[scene.questions[0].prompt], images=[scene.image])
    >>> tower = interp.interventions.Reweight(kind="uniform", layers="all", tower="vision")
    >>> bool((vlm.logits(pictures) == vlm.logits(pictures, interventions=[tower])).all())
    False
    """

    kind: str
    layers: Any
    tower: str = "language"
    seed: int = 0

    @property
    def needs_weights(self) -> bool:
        """Whether it edits weights of the decoder's attention, which makes the run eager."""
        return self.tower == "language"

    @property
    def needs_tower_weights(self) -> bool:
        """Whether it edits weights of the image tower's attention, which makes the tower eager."""
        return self.tower == "vision"

    def edits(self, vlm: VLM, batch: Batch, new: int = 0) -> list[Edit]:
        kind, seed = KINDS[checked_choice(self.kind, "kind", KINDS)], checked_seed(self.seed)
        weights, mask = _TOWERS[checked_choice(self.tower, "tower", _TOWERS)]
        if self.tower == "vision":
            layers, depth = _select_blocks(vlm, batch, self.layers), len(vlm.block_indices("all"))
        else:
            layers, depth = check_softmax(vlm, select_layers(vlm, self.layers)), vlm.structure.n_layers
        return [Edit(weights, layer, reweigh, (kind, seed * depth + layer), (mask, "past")) for layer in layers]


def _select_blocks(vlm: VLM, batch: Batch, layers: Any) -> list[int]:
    """These blocks of the image tower. Refuses a tower that does not run once for this batch: an edit is made in one run."""
    blocks = select_blocks(vlm, layers)
    if not batch.has_images:
        raise InputError("tower='vision': the batch has no image, so the image tower does not run: expected images")
    with eager_tower(vlm):  # a server that cannot switch to eager attention is refused before anything is sent
        times = times_run(vlm, batch)
    if times != 1:
        raise LayoutError(
            f"{vlm.name!r} runs its image tower {times} times for this batch, expected once: its weights cannot be changed"
        )
    return blocks


# Plain torch, run inside the trace: weights, and which keys a row sees, `[batch, query, head, key]` --------------------


def reweigh(pattern, allowed, past, weigh, seed):
    """The rows of `pattern` with new weights over the keys that `allowed` `[batch, 1 or heads, query, key]` shows them. A row
    of padding, which sees nothing, keeps its weights."""
    visible = allowed.transpose(1, 2).expand(pattern.shape)
    # Each step of a generation has draws of its own.
    draws = torch.rand(
        pattern.shape, dtype=torch.float32, generator=torch.Generator().manual_seed(seed + 1_000_003 * past)
    )
    new = weigh(pattern.float(), visible, draws.to(pattern.device)) * visible
    new = new / new.sum(dim=-1, keepdim=True)
    return torch.where(visible.any(dim=-1, keepdim=True), new, pattern.float()).to(pattern.dtype)


def uniform(weights, visible, draws):
    """The same weight for every key."""
    return torch.ones_like(weights)


def random(weights, visible, draws):
    """The draws themselves."""
    return draws


def reversed_(weights, visible, draws):
    """The weights mirrored between the largest and the smallest of the row."""
    highest = weights.masked_fill(~visible, 0).amax(dim=-1, keepdim=True)
    lowest = weights.masked_fill(~visible, torch.inf).amin(dim=-1, keepdim=True)
    return highest + lowest.clamp(max=1) - weights


def shuffled(weights, visible, draws):
    """The weights in the order of the draws. Visible keys come first in both orders, and are as many in both."""
    own = (~visible).float().argsort(dim=-1, stable=True)
    permuted = draws.masked_fill(~visible, torch.inf).argsort(dim=-1)
    return torch.zeros_like(weights).scatter(-1, own, weights.gather(-1, permuted))


KINDS = {"uniform": uniform, "random": random, "reversed": reversed_, "shuffled": shuffled}
