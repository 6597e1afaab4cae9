"""Which of the things that attention gives are its weights, proved by what is made with them.

A pattern is one number for each query, head and key: how much of that key's value the head takes. So none is negative,
each query's sum to one (attention with a sink, which takes part of the sum and gives nothing, is refused), none is above
zero where the mask forbids, and the mean of the values with these weights is what the head gives:

    pattern @ v = z

where heads of a group share a value. Something may stand between. A norm or a convolution over the values, or a norm over
their mean, is a part of the attention: then the equation holds between what one part gave and another was given. Some
layers have no values of their own and take those of an earlier one. And a gate is a factor on the way that does not
depend on the values, ``z = gate * (pattern @ v)``, so it falls out between two rows that differ in these alone:
``z' * (pattern @ v) = z * (pattern @ v')``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.models.layout.additions import tolerance
from interp.models.layout.heads import as_first_row, as_if, watch
from interp.models.running.attention import eager
from interp.models.running.slots import as_heads
from interp.models.running.steps import Edit, Read, whole
from interp.models.running.trace import Visit, run_forward

if TYPE_CHECKING:
    from interp.models.batches.batch import Batch
    from interp.models.running.core import Core


_READ = ("v", "z", "pattern")


def prove_pattern(core: Core, batch: Batch) -> tuple[int | None, ...]:
    """For each layer, which of the things its attention gives are the weights; None where that cannot be proved.

    Raises what `interp.models.running.attention.eager` raises where attention cannot be switched.
    """
    real = batch.positions["all"]
    with eager(core):
        visits = watch(core, batch)
        masks = [Read(layer, "mask", layer, whole) for layer in visits]
        allowed = run_forward(core, batch, reads=masks, logits=None) if masks else {}
        claimed: dict[int, int] = {}
        patterns: dict[int, Tensor] = {}
        for layer, of_layer in visits.items():
            which, weights = _weights(of_layer, core.structure.heads[layer])
            if weights is not None and are_shares(weights, allowed[layer].cpu(), real):
                claimed[layer], patterns[layer] = which, weights
        values = {layer: list(_values(core, layer, of_layer, len(batch))) for layer, of_layer in visits.items()}
        proved: dict[int, int] = {}
        for layer, weights in patterns.items():
            means = list(_means(visits[layer], core.structure.heads[layer], real))
            # Its own values, else those of the nearest layer before it.
            nearest = (value for other in sorted(values, reverse=True) if other <= layer for value in values[other])
            if explains(weights, nearest, means, real):
                proved[layer] = claimed[layer]
        proved |= _behind_a_gate(core, batch, {layer: claimed[layer] for layer in claimed if layer not in proved})
    return tuple(proved.get(layer) for layer in range(core.structure.n_layers))


def prove_weighed(core: Core, batch: Batch) -> tuple[bool, ...]:
    """For each layer, whether its z is the mean of its v with the weights of its pattern, nothing in between, so that
    other weights give another z that is known."""
    places = [core.trait(site) for site in _READ]
    layers = [layer for layer in range(core.structure.n_layers) if None not in [place[layer] for place in places]]
    reads = [Read((site, layer), site, layer, whole) for layer in layers for site in _READ]
    seen = run_forward(core, batch, reads=reads, logits=None) if layers else {}
    proved = set()
    for layer in layers:
        v, z, pattern = (seen[site, layer].cpu() for site in _READ)
        if explains(pattern.transpose(1, 2), [v.flatten(2)], [z], batch.positions["all"]):
            proved.add(layer)
    return tuple(layer in proved for layer in range(core.structure.n_layers))


def _weights(visits: Mapping[str, Visit], n_heads: int) -> tuple[int, Tensor | None]:
    """Which of the things that attention gave has one number for each head, query and key, and these."""
    for index, other in enumerate(visits[""].others if "" in visits else ()):
        if other is not None and other.ndim == 4 and other.shape[1] == n_heads and other.shape[2] == other.shape[3]:
            return index + 1, other.cpu()
    return 0, None


def are_shares(weights: Tensor, allowed: Tensor, real: Tensor) -> bool:
    """Whether these are shares that a real query gives to keys it may see: none negative, one in all."""
    near = tolerance(weights.dtype)
    of_real = weights.transpose(1, 2)[real].double()
    forbidden = ~allowed.expand(-1, weights.shape[1], -1, -1).transpose(1, 2)[real]
    sums = of_real.sum(dim=-1)
    return bool((of_real >= 0).all() and (of_real[forbidden] == 0).all() and ((sums - 1).abs() <= near).all())


def _values(core: Core, layer: int, visits: Mapping[str, Visit], rows: int) -> Iterator[Tensor]:
    """What may be a layer's values: where they were proved to be, and what each of its parts gives, as a vector a position."""
    v = core.trait("v")[layer]
    for name, visit in visits.items():
        gave = visit.output.cpu() if name and visit.output is not None else None
        if gave is None:
            continue
        if v is not None and v.module == f"{core.structure.attn[layer]}.{name}":
            yield as_heads(gave, v, rows).flatten(2)
        yield gave.reshape(rows, -1, gave.shape[-1] if gave.ndim < 4 else gave[0, 0].numel())


def _means(visits: Mapping[str, Visit], n_heads: int, real: Tensor) -> Iterator[Tensor]:
    """What may be the mean of values: what is given to a part, as `[batch, position, head, d_head]`."""
    for name, visit in visits.items():
        if name and visit.input is not None and visit.input.numel() % (real.numel() * n_heads) == 0:
            yield visit.input.cpu().reshape(*real.shape, n_heads, -1)


def _mean(weights: Tensor, values: Tensor, d_head: int) -> Tensor | None:
    """``weights @ values`` as `[batch, query, head, d_head]`; None where the values are not so many heads."""
    heads, width = weights.shape[1], values.shape[-1]
    if values.shape[1] != weights.shape[3] or width % d_head or heads % (width // d_head):
        return None
    each = values.unflatten(2, (-1, d_head)).repeat_interleave(heads // (width // d_head), dim=2)
    return torch.einsum("bhqk,bkhd->bqhd", weights.double(), each.double())


def _evened(weights: Tensor) -> Tensor:
    """The same share for every key that has one."""
    there = (weights > 0).double()
    return there / there.sum(dim=-1, keepdim=True).clamp(min=1)


def explains(weights: Tensor, values: Iterable[Tensor], means: list[Tensor], real: Tensor) -> bool:
    """Whether some values, weighed so, are some mean at every real position."""
    for value in values:
        for mean in means:
            made = _mean(weights, value, mean.shape[-1])
            near = tolerance(mean.dtype)
            if made is None or not _equal(made[real], mean[real], near):
                continue
            # Values that are alike everywhere, or zero, have one mean under any weights and prove none.
            even = _mean(_evened(weights), value, mean.shape[-1])
            if even is not None and not _equal(even[real], mean[real], near):
                return True
    return False


def _equal(a: Tensor, b: Tensor, near: float) -> bool:
    return bool((a.double() - b.double()).abs().max() <= near * b.double().abs().max())


# Behind a gate -----------------------------------------------------------------------------------------------------------


def move_values(value):
    """Plain torch, run inside the trace: the second row's values one position on."""
    value = value.clone()
    value[1] = value[1].roll(1, dims=0)
    return value


def _behind_a_gate(core: Core, batch: Batch, claimed: Mapping[int, int]) -> dict[int, int]:
    """The layers in which a factor that does not depend on the values stands between pattern and z."""
    v, z = core.trait("v"), core.trait("z")
    claimed = {layer: which for layer, which in claimed.items() if v[layer] is not None and z[layer] is not None}
    if not claimed:
        return {}
    depth = range(core.structure.n_layers)
    trial = as_if(core, pattern=tuple(claimed.get(layer) for layer in depth))
    edits = [Edit("resid_pre", layer, as_first_row) for layer in depth]
    edits += [Edit("v", layer, move_values) for layer in claimed]
    reads = [Read((site, layer), site, layer, whole) for layer in claimed for site in _READ]
    seen = {
        key: value.cpu() for key, value in run_forward(trial, batch.row(0).repeat(2), edits, reads, logits=None).items()
    }
    return {layer: which for layer, which in claimed.items() if _factor_cancels(*(seen[site, layer] for site in _READ))}


def _factor_cancels(values: Tensor, given: Tensor, pattern: Tensor) -> bool:
    """Whether two rows with equal weights and other values give the same factor ``z / (pattern @ v)``, and would not with
    other weights."""
    near, weights = tolerance(given.dtype), pattern.transpose(1, 2)
    if not _equal(weights[0], weights[1], near):
        return False
    crossed = []
    for tried in (weights, _evened(weights)):
        mean = _mean(tried, values.flatten(2), given.shape[-1])
        crossed.append(mean is not None and _equal(given[1].double() * mean[0], given[0].double() * mean[1], near))
    return crossed == [True, False]
