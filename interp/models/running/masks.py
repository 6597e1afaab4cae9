"""What an attention mask says, whatever form it has: who may attend to whom, as Bool `[batch, heads, query, key]`.

transformers passes a mask to a layer's attention in the form that the implementation takes (as of transformers 5.23):

=========  ===========  ==============================================================================================
``eager``  float        ``[batch, 1, query, key]``, added to the scores: 0 where a query may attend, the lowest number of
                        its precision where not. It may also carry a bias (ALiBi, relative positions).
``eager``  None         every query attends to every key
``sdpa``   bool         ``[batch, 1, query, key]``, True where a query may attend
``sdpa``   None         causal where the module's `is_causal` says so, else every query attends to every key
=========  ===========  ==============================================================================================

Sliding windows, chunks, image blocks that see both ways and prefixes are all written into these tensors. A mask that
would say nothing more, for example without padding, is None. So a mask cannot be edited without knowing its form: False
in a float mask is 0 and means *attend*. `as_allowed` reads every form as one, and `like` writes an edited one back in a form
that the layer takes. `MaskSlot` (`interp.models.running.slots`) calls the first before the edits of a layer and the second
after them.

Flash attention gets a mask of padding alone and flex attention a compressed one. Neither can be cut at single edges, so
`none_is_causal` refuses them by name before a model is run.
"""

from __future__ import annotations

from typing import Any

import torch

from interp.errors import InputError

# The kinds of attention (`Structure.attention`) with a weight for each query and key. The others mix positions in another
# way, so they have no mask of pairs.
PATTERNED = ("softmax", "sliding", "chunked")
# A score this low gives a weight of exactly 0 in every precision, and no bias is as low. Masks made by hand have -1e4
# (-9984 in bfloat16) or -1e9 where transformers' own have the lowest number.
_NEVER = -5e3


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def as_allowed(mask, hidden, causal, past=0):
    """Who may attend to whom: Bool `[batch, 1 or heads, query, key]` of a layer's own `mask`.

    `hidden` are the states `[batch, query, width]` that enter the attention. Where the mask is None, `causal` says which of the
    two it means, and there are as many keys as queries and `past` positions in the cache.
    """
    batch, length = hidden.shape[:2]
    if mask is None:
        allowed = torch.ones(1, 1, length, past + length, dtype=torch.bool, device=hidden.device)
        allowed = allowed.tril(past) if causal else allowed
    elif not isinstance(mask, torch.Tensor) or mask.ndim != 4:
        form = tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ValueError(f"attention mask {form!r}: expected (batch, heads, query, key), as sdpa and eager have it")
    else:
        allowed = mask if mask.dtype == torch.bool else mask > _NEVER
    return allowed.expand(batch, -1, -1, -1)


def like(allowed, before, mask, hidden):
    """`allowed` as a mask that the layer takes, where `mask` was its own and ``before = as_allowed(mask, ...)``.

    The same mask where nothing was changed, bit for bit. A bool mask stays bool. A float mask keeps its values, and so
    its bias, wherever `allowed` is as it was; an edge that was cut gets the lowest number, one that was opened gets 0.
    None becomes a float mask in the precision of `hidden`, which both implementations take.

    Raises ValueError where every key of a query was cut: it would get zeros from a bool mask, and from a float one the mean
    of all values, also of later positions.
    """
    same = allowed == before
    if same.all():
        return mask
    if (before.any(dim=-1) & ~allowed.any(dim=-1)).any():
        raise ValueError("a position would attend to nothing: together, the edits of this mask cut every key it sees")
    if mask is not None and mask.dtype == torch.bool:
        return allowed
    dtype = hidden.dtype if mask is None else mask.dtype
    additive = torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)
    return additive if mask is None else torch.where(same, mask, additive)


# Before the trace --------------------------------------------------------------------------------------------------------


def none_is_causal(module: Any) -> bool:
    """Whether this attention module is causal when its mask is None (else every query attends to every key).

    Raises `InputError` for an attention implementation whose masks cannot be read.
    """
    implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if implementation not in ("eager", "sdpa", None):
        raise InputError(
            f"attn_implementation={implementation!r} has no mask of single edges: load the model with "
            f"attn_implementation='sdpa' or 'eager'"
        )
    # Eager attention adds its mask and nothing else; without a mask, sdpa makes the causal one itself.
    return implementation != "eager" and bool(getattr(module, "is_causal", True))
