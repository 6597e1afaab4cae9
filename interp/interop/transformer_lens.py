"""TransformerLens: captured activations as an `ActivationCache`, under its names and in its shapes.

The sites already have TransformerLens's short names. A cache has one tensor for each layer, with the axes batch and
position where activations have examples. transformer-lens is imported when it is first needed.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.activations import Activations
from interp.errors import InputError

if TYPE_CHECKING:
    from transformer_lens import ActivationCache

_IN_ATTENTION = ("q", "k", "v", "z", "pattern")
_NAMELESS = ("vision", "projector")


def to_transformer_lens(acts: Activations, model: Any = None) -> ActivationCache:
    """Make TransformerLens's `ActivationCache` of activations; everything is read into memory.

    >>> import interp
    >>> acts = interp.capture(interp.load("toy"), interp.toy.scenes(2, seed=0), positions="all", reduce="none", progress=False)
    >>> to_transformer_lens(acts)["resid_pre", 3].shape
    torch.Size([2, 37, 128])

    ``cache["resid_pre", 3]`` is `[batch, position, d_model]`, `z` and `q` have the axes batch, position, head, d_head, `k`
    and `v` those with the key-value heads, `pattern` batch, head, query, key. A position is an example of the row: rows
    with fewer examples have zeros on the left, like padding; pooled rows have one position. State l of `resid` enters
    layer l, and its last state leaves the last layer. The keys of a pattern count a row's real tokens, with zeros on their
    right; with ``positions="all"`` they are on the right, as the queries are.

    `model` is a `TransformerBridge` of the same model, for the methods of the cache that use weights (`logit_attrs`);
    without it the cache has no more than its number of layers.

    Raises `InputError` for sites of the image tower, which TransformerLens has no name for.
    """
    from transformer_lens import ActivationCache

    nameless = [site for site in acts if site in _NAMELESS]
    if nameless:
        others = [site for site in acts if site not in _NAMELESS]
        raise InputError(
            f"{nameless[0]!r} has no name in TransformerLens: expected sites of the decoder, take acts.select(sites={others!r})"
        )
    depth = acts.manifest["n_layers"]
    shared = acts.manifest["positions"] == "all"
    cache: dict[str, Tensor] = {}
    for site in sorted(acts, key=lambda name: name != "resid"):  # then a captured resid_pre replaces its states
        for place, layer in enumerate(acts.layers[site]):
            padded = _by_row(acts[site][place], acts.places(site).rows, len(acts.ids))
            if site == "pattern":
                padded = (_keys_on_the_right(padded, acts.places(site).rows) if shared else padded).transpose(1, 2)
            cache[_name(site, layer, depth)] = padded
    return ActivationCache(cache, model or SimpleNamespace(cfg=SimpleNamespace(n_layers=depth)))


def _name(site: str, layer: int, depth: int) -> str:
    if site == "resid":
        site, layer = ("resid_pre", layer) if layer < depth else ("resid_post", depth - 1)
    return f"blocks.{layer}.{'attn.' if site in _IN_ATTENTION else ''}hook_{site}"


def _by_row(examples: Tensor, rows: Tensor, count: int) -> Tensor:
    """`[example, ...]` as `[row, position, ...]`, zeros on the left of rows that have fewer."""
    lengths = torch.bincount(rows, minlength=count)
    longest = int(lengths.max())
    within = torch.arange(len(rows)) - (lengths.cumsum(0) - lengths)[rows]
    padded = torch.zeros(count, longest, *examples.shape[1:], dtype=examples.dtype)
    padded[rows, longest - lengths[rows] + within] = examples
    return padded


def _keys_on_the_right(pattern: Tensor, rows: Tensor) -> Tensor:
    """`[row, query, head, key]` with each row's keys moved to where its queries are."""
    lengths = torch.bincount(rows, minlength=len(pattern)).tolist()
    size = pattern.shape[1]
    pairs = zip(pattern[..., :size], lengths, strict=True)
    return torch.stack([row.roll(size - length, dims=-1) for row, length in pairs])
