"""Attention patterns: which of the attention's outputs are its weights, proved by the means they make.

A pattern has one number for each query, head and key: the share of that key's value in the head's output. So no number
is negative, those of a query sum to one (attention with a sink, which takes a share of the sum without a value, is
refused), those that the mask forbids are zero, and the mean of the values with these weights is the head's output:

    pattern @ v = z

where heads of a group share a value. Something may come between. A norm or a convolution over the values, or a norm over
their mean, is a part of the attention: then the equation holds between the output of one part and the input of another.
Some layers have no values of their own and take those of an earlier one. A gate is a factor that does not depend on the
values, ``z = gate * (pattern @ v)``, so it cancels between two rows that differ in their values alone:
``z' * (pattern @ v) = z * (pattern @ v')``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from einops import einsum, repeat
from torch import Tensor

from interp.models.batches.batch import Batch
from interp.models.layout.additions import tolerance
from interp.models.layout.heads import as_first_row, as_if, visits_to_attention
from interp.models.running.attention import eager
from interp.models.running.core import Core
from interp.models.running.slots import as_heads
from interp.models.running.steps import Edit, Read, whole
from interp.models.running.trace import Visit, run_forward

_SITES = ("v", "z", "pattern")


def prove_pattern(core: Core, batch: Batch) -> tuple[int | None, ...]:
    """For each layer, the index of the weights among its attention's outputs; None where no proof holds.

    Raises the errors of `interp.models.running.attention.eager` where attention cannot be switched.
    """
    real, n_heads = batch.positions["all"], core.structure.heads
    with eager(core):
        visits = visits_to_attention(core, batch)
        masks = [Read(layer, "mask", layer, whole) for layer in visits]
        allowed = run_forward(core, batch, reads=masks, logits=None) if masks else {}
        claims: dict[int, tuple[int, Tensor]] = {}
        for layer, parts in visits.items():
            index, weights = _weights(parts, n_heads[layer])
            if weights is not None and are_shares(weights, allowed[layer].cpu(), real):
                claims[layer] = index, weights
        values = {layer: list(_values(core, layer, parts, len(batch))) for layer, parts in visits.items()}
        proved: dict[int, int] = {}
        for layer, (index, weights) in claims.items():
            # Its own values, else those of the nearest layer before it.
            nearest = (value for other in sorted(values, reverse=True) if other <= layer for value in values[other])
            if explains(weights, nearest, list(_means(visits[layer], n_heads[layer], real)), real):
                proved[layer] = index
        unproved = {layer: index for layer, (index, _) in claims.items() if layer not in proved}
        proved |= _prove_behind_gates(core, batch, unproved)
    return tuple(proved.get(layer) for layer in range(core.structure.n_layers))


def prove_plain_means(core: Core, batch: Batch) -> tuple[bool, ...]:
    """For each layer, whether its z is exactly the mean of its v with the weights of its pattern.

    Then z is known for other weights too.
    """
    places = [core.trait(site) for site in _SITES]
    layers = [layer for layer in range(core.structure.n_layers) if None not in [place[layer] for place in places]]
    values, real = _run(core, batch, layers), batch.positions["all"]
    plain = {layer for layer in layers if is_plain_mean(real, *(values[site, layer] for site in _SITES))}
    return tuple(layer in plain for layer in range(core.structure.n_layers))


def is_plain_mean(real: Tensor, v: Tensor, z: Tensor, pattern: Tensor) -> bool:
    """Whether the heads' outputs `z` are the mean of their values `v` with these weights, at every real position."""
    return explains(pattern.transpose(1, 2), [v.flatten(2)], [z], real)


def _run(core: Core, batch: Batch, layers: Iterable[int], edits: Sequence[Edit] = ()) -> dict[tuple[str, int], Tensor]:
    """v, z and pattern of these layers, by site and layer."""
    reads = [Read((site, layer), site, layer, whole) for layer in layers for site in _SITES]
    values = run_forward(core, batch, edits, reads, logits=None) if reads else {}
    return {key: value.cpu() for key, value in values.items()}


def _weights(visits: Mapping[str, Visit], n_heads: int) -> tuple[int, Tensor | None]:
    """The first output of the attention that has one number for each head, query and key, with its index."""
    for index, output in enumerate(visits[""].others if "" in visits else ()):
        if (
            output is not None
            and output.ndim == 4
            and output.shape[1] == n_heads
            and output.shape[2] == output.shape[3]
        ):
            return index + 1, output.cpu()
    return 0, None


def are_shares(weights: Tensor, allowed: Tensor, real: Tensor) -> bool:
    """Whether these are shares of 1 that each real query gives to keys it may see: no weight is negative."""
    near = tolerance(weights.dtype)
    of_real = weights.transpose(1, 2)[real].double()
    forbidden = ~allowed.expand(-1, weights.shape[1], -1, -1).transpose(1, 2)[real]
    sums = of_real.sum(dim=-1)
    return bool((of_real >= 0).all() and (of_real[forbidden] == 0).all() and ((sums - 1).abs() <= near).all())


def _values(core: Core, layer: int, visits: Mapping[str, Visit], rows: int) -> Iterator[Tensor]:
    """The candidates for a layer's values, one vector a position: its proved v, and the output of each of its parts."""
    v = core.trait("v")[layer]
    for name, visit in visits.items():
        if not name or visit.output is None:
            continue
        output = visit.output.cpu()
        if v is not None and v.module == f"{core.structure.attn[layer]}.{name}":
            yield as_heads(output, v, rows).flatten(2)
        yield output.reshape(rows, -1, output.shape[-1] if output.ndim < 4 else output[0, 0].numel())


def _means(visits: Mapping[str, Visit], n_heads: int, real: Tensor) -> Iterator[Tensor]:
    """The candidates for the mean of values: the input of each part, as `[batch, position, head, d_head]`."""
    for name, visit in visits.items():
        if name and visit.input is not None and visit.input.numel() % (real.numel() * n_heads) == 0:
            yield visit.input.cpu().reshape(*real.shape, n_heads, -1)


def _mean(weights: Tensor, values: Tensor, d_head: int) -> Tensor | None:
    """``weights @ values`` as `[batch, query, head, d_head]`; None where the values do not fit the heads."""
    heads, width = weights.shape[1], values.shape[-1]
    if values.shape[1] != weights.shape[3] or width % d_head or heads % (width // d_head):
        return None
    n_groups = width // d_head
    each = repeat(values.double(), "b k (g d) -> b k (g heads) d", g=n_groups, heads=heads // n_groups)
    return einsum(weights.double(), each, "b h q k, b k h d -> b q h d")


def _evened(weights: Tensor) -> Tensor:
    """The same share for every key that has one."""
    nonzero = (weights > 0).double()
    return nonzero / nonzero.sum(dim=-1, keepdim=True).clamp(min=1)


def explains(weights: Tensor, values: Iterable[Tensor], means: list[Tensor], real: Tensor) -> bool:
    """Whether some of the values, with these weights, have some of the means at every real position."""
    for value in values:
        for mean in means:
            near, d_head = tolerance(mean.dtype), mean.shape[-1]
            own = _mean(weights, value, d_head)
            if own is None or not _equal(own[real], mean[real], near):
                continue
            # Values that are alike everywhere, or zero, have one mean under any weights and prove nothing.
            even = _mean(_evened(weights), value, d_head)
            if even is not None and not _equal(even[real], mean[real], near):
                return True
    return False


def _equal(a: Tensor, b: Tensor, near: float) -> bool:
    return bool((a.double() - b.double()).abs().max() <= near * b.double().abs().max())


# Gates -------------------------------------------------------------------------------------------------------------------


def move_values(value):
    """Plain torch, run inside the trace: the second row's values, each one position later."""
    value = value.clone()
    value[1] = value[1].roll(1, dims=0)
    return value


def _prove_behind_gates(core: Core, batch: Batch, claims: Mapping[int, int]) -> dict[int, int]:
    """The claims that hold in layers with a gate: a factor, between pattern and z, that does not depend on the values."""
    v, z = core.trait("v"), core.trait("z")
    claims = {layer: index for layer, index in claims.items() if v[layer] is not None and z[layer] is not None}
    if not claims:
        return {}
    depth = range(core.structure.n_layers)
    trial = as_if(core, pattern=tuple(claims.get(layer) for layer in depth))
    edits = [Edit("resid_pre", layer, as_first_row) for layer in depth]
    edits += [Edit("v", layer, move_values) for layer in claims]
    values = _run(trial, batch.row(0).repeat(2), claims, edits)
    return {layer: index for layer, index in claims.items() if _cancels(*(values[site, layer] for site in _SITES))}


def _cancels(v: Tensor, z: Tensor, pattern: Tensor) -> bool:
    """Whether two rows with equal weights and other values have the same factor ``z / (pattern @ v)``, and would have
    different factors with other weights."""
    near, weights = tolerance(z.dtype), pattern.transpose(1, 2)
    if not _equal(weights[0], weights[1], near):
        return False
    means = (_mean(each, v.flatten(2), z.shape[-1]) for each in (weights, _evened(weights)))
    cross = [m is not None and _equal(z[1].double() * m[0], z[0].double() * m[1], near) for m in means]
    return cross == [True, False]
