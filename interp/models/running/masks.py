"""What an attention mask says, whatever form it has: who may attend to whom, as Bool `[batch, heads, query, key]`.

transformers hands a layer's attention its mask in the form that the implementation wants (seen in transformers 5.23):

=========  ===========  ==============================================================================================
``eager``  float        ``[batch, 1, query, key]``, added to the scores: 0 where a query may attend, the lowest number of
                        its precision where not. It may also carry a bias (ALiBi, relative positions).
``eager``  None         every query attends to every key
``sdpa``   bool         ``[batch, 1, query, key]``, True where a query may attend
``sdpa``   None         causal where the module's `is_causal` says so, else every query attends to every key
=========  ===========  ==============================================================================================

Sliding windows, chunks, image blocks that see both ways and prefixes are all written into these tensors; None comes
where nothing is left to say, as without padding. So "the mask" cannot be edited without knowing its form: False in a
float mask is 0 and means *attend*. `as_allowed` reads every form as one, `like` writes an edited one back in a form
that the layer takes. The site "mask" of `interp.models.running.trace` puts one before the edits of a layer and one after.

Flash attention gets a mask of padding alone and flex attention a compressed one; neither can be cut at single edges, and
`none_is_causal` refuses them by name before a model is run.
"""

from __future__ import annotations

from typing import Any

import torch

from interp.errors import InputError

# The kinds of layer, in `Structure.attention`, in which each query spreads its attention over keys; the others mix
# positions without a weight for each pair, so they have no mask of pairs.
PATTERNED = ("softmax", "sliding", "chunked")
# A number this low makes a weight of exactly 0 in every precision, and no bias reaches it. Masks made by hand hold
# -1e4 (-9984 in bfloat16) or -1e9 where transformers' own hold the lowest number.
_NEVER = -5e3


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def as_allowed(mask, hidden, causal, past=0):
    """Who may attend to whom: Bool `[batch, 1 or heads, query, key]` of a layer's own `mask`.

    `hidden` are the states `[batch, query, width]` that enter the attention, `causal` is what None stands for. None
    comes with as many keys as there are queries and `past` positions in the cache.
    """
    batch, length = hidden.shape[:2]
    if mask is None:
        allowed = torch.ones(1, 1, length, past + length, dtype=torch.bool, device=hidden.device)
        allowed = allowed.tril(past) if causal else allowed
    elif not isinstance(mask, torch.Tensor) or mask.ndim != 4:
        seen = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ValueError(f"attention mask {seen!r}: expected (batch, heads, query, key), as sdpa and eager have it")
    else:
        allowed = mask if mask.dtype == torch.bool else mask > _NEVER
    return allowed.expand(batch, -1, -1, -1)


def like(allowed, before, mask, hidden):
    """`allowed` as a mask that the layer takes, where `mask` was its own and ``before = as_allowed(mask, ...)``.

    The same mask where nothing was changed, bit for bit. A bool mask stays bool. A float mask keeps its values, and so
    its bias, wherever `allowed` is as it was; a place that was cut gets the lowest number, one that was opened gets 0.
    None becomes a float mask in the precision of `hidden`, which both implementations take.

    A query whose every key was cut would get zeros from a bool mask and the mean of all values from a float one, those
    behind it included: raises ValueError.
    """
    same = allowed == before
    if same.all():
        return mask
    if (before.any(dim=-1) & ~allowed.any(dim=-1)).any():
        raise ValueError("a position would attend to nothing: together, the edits of this mask cut every key it sees")
    if mask is not None and mask.dtype == torch.bool:
        return allowed
    dtype = hidden.dtype if mask is None else mask.dtype
    written = torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    return written if mask is None else torch.where(same, mask, written)


# Before the trace --------------------------------------------------------------------------------------------------------


def none_is_causal(module: Any) -> bool:
    """Whether None, given to this attention module as its mask, means causal attention (else: every key).

    Raises `InputError` for an attention implementation whose masks cannot be read.
    """
    implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if implementation not in ("eager", "sdpa", None):
        raise InputError(
            f"attn_implementation={implementation!r} has no mask of single edges: load the model with "
            f"attn_implementation='sdpa' or 'eager'"
        )
    # Eager attention adds what it is given and nothing else; without a mask, sdpa makes the causal one itself.
    return implementation != "eager" and bool(getattr(module, "is_causal", True))
