"""Who sees whom: the attention pattern that a model's own masks leave possible at each layer.

A position sees another where its attention to it may be above 0. In most decoders that is everything before it; in
sliding and chunked layers only the nearest, in a prefix or in an image block also what comes behind. It is read from
the masks that reach the layers, so nothing has to be known about the architecture.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from interp.models.running.masks import PATTERNED
from interp.models.running.trace import Read, run_forward

if TYPE_CHECKING:
    from interp.models.batches.batch import Batch
    from interp.models.running.core import Core


def visible(core: Core, batch: Batch, layers: int | str | Iterable[int] = "all") -> list[Tensor | None]:
    """Who may attend to whom in each of `layers`: Bool `[batch, query, key]`, None for a layer without softmax attention.

    A pair is visible where one head or more may attend; a layer that picks its keys itself (sparse attention with an
    indexer) uses only some of them. Rows of padding say nothing. One trace, ended at the last layer asked for.

    Raises `InputError` for a layer the model does not have and for flash and flex attention.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["where is the 3 ?"])
    >>> visible(vlm, batch, layers=0)[0][0, 2].int().tolist()
    [1, 1, 1, 0, 0, 0]
    """
    chosen = core.layer_indices(layers)
    patterned = sorted({layer for layer in chosen if core.structure.attention[layer] in PATTERNED})
    reads = [Read(layer, "mask", layer, any_head) for layer in patterned]
    seen = run_forward(core, batch, reads=reads, logits=None) if reads else {}
    return [seen[layer].cpu() if layer in seen else None for layer in chosen]


def any_head(allowed):
    """Plain torch, run inside the trace: `[batch, heads, query, key]` to `[batch, query, key]`."""
    return allowed.any(dim=1)
