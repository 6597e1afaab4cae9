"""Where the heads of a layer are: its queries, keys, values and what each head gives, found by name, proved by effect.

Attention is a handful of linear maps and a weighted mean. Architectures differ in how they lay the heads into those maps:
projections of their own for q, k and v, one for all three, a gate beside each query, a low rank on the way. So each
layer's parts are candidates by what they are called and how wide they are, and what decides is what moves when one is
moved. `z` is what the heads give to the output projection, and every other site is known by its mark on it:

====  =========================================  ============================================
site  half the features of a head, at one place  all features of all heads, at the first place
====  =========================================  ============================================
q     move all z of that head, there alone       nothing: of one key the weight is 1
k     move all z of its group, from there on     nothing there, and every head behind it
v     move z of its group, from there on         every head there
====  =========================================  ============================================

A gate beside a query moves z at the first place too, so it is no query. To move is to change the sign: a norm over a head
or over all of them stays what it was to the bit, so nothing else moves. That half of a query moves both halves of z
shows that the head is one and not two taken together; that either half does, that it has no features of another kind.
The output projection is linear: what a quarter of some heads and three quarters of the others give, and the other way
round, adds up to what all give.

All of this is one forward pass beside one in which nothing is touched. Its rows are one prompt; in each row other heads
are moved, chosen by the bits of their numbers, so that any two heads are told apart by some row. Every layer is given
what the first row gives it, in which nothing is moved, so all layers are tried at once. The two passes have the same
shapes, and what was not moved is the same in both, bit for bit.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.models.layout.additions import ROUNDINGS, residue, rounding
from interp.models.running.masks import PATTERNED
from interp.models.running.places import HEADED
from interp.models.running.steps import Edit, Read, whole
from interp.models.running.structure import Added, Heads, resolve
from interp.models.running.trace import Visit, run_for_visits, run_forward

if TYPE_CHECKING:
    from interp.models.batches.batch import Batch
    from interp.models.running.core import Core

# What the projections of attention are called: of queries, keys, values alone, and of all three. A latent one gives each
# head the part of its key that has no position, and its value.
NAMES: Mapping[str, tuple[str, ...]] = {
    "q": ("q", "q_proj", "q_b_proj", "query", "query_proj", "to_q", "wq"),
    "k": ("k", "k_proj", "key", "key_proj", "to_k", "wk"),
    "v": ("v", "v_proj", "value", "value_proj", "to_v", "wv"),
    "qkv": ("qkv_proj", "query_key_value", "qkv", "wqkv", "Wqkv", "c_attn", "att_proj", "in_proj"),
    "latent": ("kv_b_proj",),
}
# The position at which single heads are moved: some stand before it, some behind.
_AT = 2
# As many tokens of a text are enough.
_LENGTH = 4
# A sign alone leaves every norm as it is; where it moves too little for a low precision to show, it is tried with more.
_STRENGTHS = (1.0, 8.0, 64.0)
_MOVED = ("q", "k", "v")


# Candidates --------------------------------------------------------------------------------------------------------------


def watch(core: Core, batch: Batch) -> dict[int, dict[str, Visit]]:
    """Run the model once; for each layer with softmax attention, the visit to its attention (under "") and to each part
    of it that runs once, by dotted path, in the order in which they began."""
    kinds = zip(core.structure.attention, core.structure.attn, strict=True)
    parts = {
        layer: f"{core.structure.layers}.{layer}.{part}"
        for layer, (kind, part) in enumerate(kinds)
        if part is not None and kind in PATTERNED
    }
    return {
        layer: {name: visits[0] for name, visits in found.items() if len(visits) == 1}
        for layer, found in watch_parts(core, batch, parts).items()
    }


def watch_parts(core: Core, batch: Batch, paths: Mapping[int, str]) -> dict[int, dict[str, list[Visit]]]:
    """Run the model once; for the module at each of these dotted paths, the visits to it (under "") and to each part of it,
    by dotted path, in the order in which they began."""
    envoys, places = [], {}
    for number, path in paths.items():
        for name, _ in resolve(core.model, path).named_modules():
            envoy = resolve(core.nnsight, f"{path}.{name}" if name else path)
            envoys.append(envoy)
            places[envoy.path] = number, name
    found: dict[int, dict[str, list[Visit]]] = {number: {} for number in paths}
    for path, visits in run_for_visits(core, batch.inputs, envoys).items():
        number, name = places[path]
        found[number][name] = visits
    return found


def candidates(part: str, visits: Mapping[str, Visit], n_heads: int, n_kv_heads: int) -> dict[str, list[Heads]]:
    """Where the sites of one layer may be, by name and width; `part` is the path of its attention in the layer.

    `z` has one candidate or none: what is given to the first part whose output is what the attention gives. Without it
    there is none for the others, since they are known by what they do to it.
    """
    turns = {name: turn for turn, name in enumerate(visits)}
    z = next((name for name in visits if name and _gives_it_all(visits, name, n_heads)), None)
    if z is None:
        return {}
    size = visits[z].input.shape[-1]  # type: ignore[union-attr]
    found = {"z": [Heads(f"{part}.{z}", "input", 1, 0, size, size // n_heads, turns[z])]}
    places = [*_alone(visits, n_heads, n_kv_heads, size // n_heads), *_fused(visits, n_heads, size // n_heads)]
    for site, name, groups, offset, width, d_head in places:
        heads = Heads(f"{part}.{name}", "output", groups, offset, width, d_head, turns[name])
        found.setdefault(site, []).append(heads)
    return found


def _gives_it_all(visits: Mapping[str, Visit], name: str, n_heads: int) -> bool:
    """Whether what this part gives is what the attention gives, and it is given as many features for each head."""
    part, whole_block = visits[name], visits[""].output if "" in visits else None
    if part.input is None or part.output is None or whole_block is None or part.output.numel() != whole_block.numel():
        return False
    return part.input.shape[-1] % n_heads == 0 and torch.equal(part.output.reshape(whole_block.shape), whole_block)


def _alone(visits: Mapping[str, Visit], n_heads: int, n_kv_heads: int, d: int) -> Iterator[tuple[Any, ...]]:
    """The sites that have a projection of their own: site, part, groups, offset, width, features of a head. There are as
    many keys as values."""
    for name, size in _called("v", visits):
        if size % d == 0:
            yield "v", name, 1, 0, size, d
            n_kv_heads = size // d
    for name, size in _called("latent", visits):
        if size % n_heads == 0 and size // n_heads > d:
            yield "v", name, n_heads, size // n_heads - d, d, d
    for name, size in _called("k", visits):
        if size % n_kv_heads == 0:
            yield "k", name, 1, 0, size, size // n_kv_heads
    for name, size in _called("q", visits):
        if size % n_heads == 0:
            yield "q", name, 1, 0, size, size // n_heads
        if size == 2 * n_heads * d:  # a gate beside each query
            yield "q", name, n_heads, 0, d, d
            yield "q", name, n_heads, d, d, d


def _fused(visits: Mapping[str, Visit], n_heads: int, d: int) -> Iterator[tuple[Any, ...]]:
    """The sites of one projection for all three, behind each other or in each group of heads: as `_alone` gives them."""
    for name, size in _called("qkv", visits):
        of_k = (size // d - n_heads) // 2
        if of_k < 1 or size != (n_heads + 2 * of_k) * d or n_heads % of_k:
            continue
        for groups, in_group in ((1, (n_heads, of_k, of_k)), (of_k, (n_heads // of_k, 1, 1))):
            offset = 0
            for site, number in zip(_MOVED, in_group, strict=True):
                yield site, name, groups, offset, number * d, d
                offset += number * d


def _called(kind: str, visits: Mapping[str, Visit]) -> Iterator[tuple[str, int]]:
    """The parts that are called so and how many features they give."""
    for name, visit in visits.items():
        if name.rpartition(".")[2] in NAMES[kind] and visit.output is not None:
            yield name, visit.output.shape[-1]


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def as_first_row(value):
    """Every row as the first."""
    return value[:1].expand_as(value).clone()


def turn_over(value, start, factors):
    """The halves of each head's features times a factor, in rows from `start` on; `factors` are [row, position, head, half]."""
    value, half = value.clone(), value.shape[-1] // 2
    factors = factors.to(value.device, value.dtype)
    moved = value[start : start + len(factors)]
    moved[..., :half] *= factors[..., :1]
    moved[..., half:] *= factors[..., 1:]
    return value


def weigh_heads(value, start, shares):
    """Each head times its share, in rows from `start` on; `shares` are [row, head]."""
    value = value.clone()
    value[start : start + len(shares)] *= shares.to(value.device, value.dtype)[:, None, :, None]
    return value


def rows_from(value, start):
    """The rows from `start` on."""
    return value[start:].clone()


# The proof ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What is done in which rows: row 0 is left alone, then each of q, k and v has as many, and the rest are of z.

    Of `bits` bits, each chooses the heads whose number has it, and those whose number does not.
    """

    bits: int
    length: int

    @property
    def of_moved(self) -> int:
        return 4 * self.bits + 1

    @property
    def rows(self) -> int:
        return self.start("z") + 2 * self.bits + 1

    def start(self, site: str) -> int:
        return 1 + HEADED.index(site) * self.of_moved

    def chosen(self, n_heads: int) -> Tensor:
        """Bool `[2 * bits, head]`."""
        numbers = torch.arange(n_heads)
        having = [(numbers >> bit & 1).bool() for bit in range(self.bits)]
        return torch.stack([chosen for bit in having for chosen in (bit, ~bit)])

    def factors(self, n_heads: int, strength: float) -> Tensor:
        """`[row, position, head, half]`, below zero where a head is moved: the first half of the chosen, the second half of
        them, and in the last row all at the first position."""
        factors = torch.ones(self.of_moved, self.length, n_heads, 2)
        chosen = self.chosen(n_heads).float() * (1 + strength)
        factors[: len(chosen), _AT, :, 0] -= chosen
        factors[len(chosen) : -1, _AT, :, 1] -= chosen
        factors[-1, 0] = -strength
        return factors

    def shares(self, n_heads: int) -> Tensor:
        """`[row, head]`, how much of each head of z is kept; in the last row nothing."""
        return torch.cat([0.25 + 0.5 * self.chosen(n_heads).float(), torch.zeros(1, n_heads)])


def prove_heads(core: Core, batch: Batch) -> dict[str, tuple[Heads | None, ...]]:
    """The sites q, k, v and z of every layer, None where no candidate passes; tried on the first row of `batch`."""
    one = batch.row(0)
    if not one.has_images:
        one = core.maker.from_encoding({name: given[..., :_LENGTH] for name, given in one.inputs.items()})
    options = {
        layer: candidates(
            core.structure.attn[layer] or "", visits, core.structure.heads[layer], core.structure.n_kv_heads
        )
        for layer, visits in watch(core, one).items()
        if core.structure.heads[layer]
    }
    options = {layer: sites for layer, sites in options.items() if sites}
    plan = Plan(max(1, (core.structure.n_heads - 1).bit_length()), one.inputs["input_ids"].shape[1])
    rows = one.repeat(plan.rows)
    proved: dict[tuple[str, int], Heads] = {}
    before = _run(core, rows, plan, {layer: {"z": sites["z"][0]} for layer, sites in options.items()}, None)
    most = max((len(found) for sites in options.values() for found in sites.values()), default=0)
    for strength, turn in itertools.product(_STRENGTHS, range(most)):
        tried = {layer: _next(sites, turn, layer, proved) for layer, sites in options.items()}
        tried = {layer: sites for layer, sites in tried.items() if any((site, layer) not in proved for site in sites)}
        after = _run(core, rows, plan, tried, strength)
        for layer, sites in tried.items():
            holding = [site for site in sites if _holds(plan, site, sites, before, after, layer)]
            proved |= {(site, layer): sites[site] for site in holding}
    for layer in options:
        # How many heads z has is proved by a query or a key that moves them, and without z there is nothing to move.
        if not ({("q", layer), ("k", layer)} & proved.keys() and ("z", layer) in proved):
            proved = {(site, other): heads for (site, other), heads in proved.items() if other != layer}
    return {site: tuple(proved.get((site, layer)) for layer in range(core.structure.n_layers)) for site in HEADED}


def _next(
    sites: Mapping[str, Sequence[Heads]], turn: int, layer: int, proved: Mapping[tuple[str, int], Heads]
) -> dict[str, Heads]:
    """What is tried in a layer: z, where the others are seen, and the next candidate of what is not proved yet."""
    left = {site: found[turn] for site, found in sites.items() if turn < len(found) and (site, layer) not in proved}
    return {**left, "z": sites["z"][0]}


def _run(
    core: Core, rows: Batch, plan: Plan, tried: Mapping[int, Mapping[str, Heads]], strength: float | None
) -> dict[Any, Tensor]:
    """z of each layer, and what its output projection gives in the rows of z, with these places taken for its sites;
    nothing is moved where the strength is None."""
    if not tried:
        return {}
    depth = range(core.structure.n_layers)
    places = {site: tuple(tried.get(layer, {}).get(site) for layer in depth) for site in HEADED}
    raw = tuple(None if z is None else Added(z.module) for z in places["z"])
    trial = as_if(core, attn_out=raw, **places)
    edits = [Edit("resid_pre", layer, as_first_row) for layer in range(core.structure.n_layers)]
    reads = [Read(("z", layer), "z", layer, whole) for layer in tried]
    if strength is not None:
        for layer, sites in tried.items():
            for site in (site for site in _MOVED if site in sites):
                edits.append(
                    Edit(site, layer, turn_over, (plan.start(site), plan.factors(sites[site].number, strength)))
                )
            edits.append(Edit("z", layer, weigh_heads, (plan.start("z"), plan.shares(sites["z"].number))))
    reads += [Read(("sum", layer), "attn_out", layer, rows_from, (plan.start("z"),)) for layer in tried]
    return {key: value.cpu() for key, value in run_forward(trial, rows, edits, reads, logits=None).items()}


def as_if(core: Core, **traits: Any) -> Core:
    """The same model with these traits taken as measured, to be tried."""
    trial = copy.copy(core)
    trial.structure = replace(core.structure, **traits)
    return trial


def _holds(
    plan: Plan, site: str, sites: Mapping[str, Heads], before: dict[Any, Tensor], after: dict[Any, Tensor], layer: int
) -> bool:
    """Whether moving this site of a layer leaves its mark on z, and no other."""
    if site == "z":
        return _adds_up(before["sum", layer][0], after["sum", layer])
    n_heads, number = sites["z"].number, sites[site].number
    if n_heads % number or (site == "q" and number != n_heads):
        return False
    block = slice(plan.start(site), plan.start(site) + plan.of_moved)
    # Bool [row, position, head, half of its features]
    moved = _halves(before["z", layer][block] != after["z", layer][block])
    wanted = plan.chosen(number).repeat_interleave(n_heads // number, dim=1).repeat(2, 1)
    return _MARKS[site](moved[:-1], moved[-1], wanted)


def _halves(moved: Tensor) -> Tensor:
    half = moved.shape[-1] // 2
    return torch.stack([moved[..., :half].any(dim=-1), moved[..., half:].any(dim=-1)], dim=-1)


def _mark_of_queries(moved: Tensor, at_first: Tensor, wanted: Tensor) -> bool:
    expected = torch.zeros_like(moved)
    expected[:, _AT] = wanted[..., None]
    return torch.equal(moved, expected) and not at_first.any()


def _mark_of_keys(moved: Tensor, at_first: Tensor, wanted: Tensor) -> bool:
    within = torch.equal(moved.any(dim=1), wanted[..., None].expand(-1, -1, 2)) and not moved[:, :_AT].any()
    return within and not at_first[0].any() and bool(at_first[1:].any(dim=0).all())


def _mark_of_values(moved: Tensor, at_first: Tensor, wanted: Tensor) -> bool:
    within = torch.equal(moved.any(dim=1).any(dim=-1), wanted) and not moved[:, :_AT].any()
    return within and bool(at_first[0].any(dim=-1).all())


_MARKS = {"q": _mark_of_queries, "k": _mark_of_keys, "v": _mark_of_values}


def _adds_up(together: Tensor, parts: Tensor) -> bool:
    """Whether what complementary shares of the heads give adds up to what all give, and what none gives once more."""
    none = parts[-1]
    for a, b in zip(parts[:-1:2], parts[1:-1:2], strict=True):
        difference = a.double() + b.double() - together.double() - none.double()
        if residue(difference / rounding(a, b, together, none)) > ROUNDINGS:
            return False
    return True
