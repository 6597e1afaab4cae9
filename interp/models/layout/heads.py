"""Where the heads of a layer are: its queries, keys, values and the heads' outputs, found by name and proved by effect.

Attention is a handful of linear maps and a weighted mean. Architectures lay the heads into those maps in different ways:
projections of their own for q, k and v, one for all three, a gate beside each query, a low rank on the way. So each
layer's parts are candidates by name and width. What decides is which outputs of the heads move when a candidate is
moved. `z`, the output of the heads, is the input of the output projection, and every other site leaves its mark on it:

====  =========================================  ============================================
site  half the features of a head, at one place  all features of all heads, at the first place
====  =========================================  ============================================
q     move all z of that head, there alone       nothing: the weight of a single key is 1
k     move all z of its group, from there on     nothing there, and every head after it
v     move z of its group, from there on         every head there
====  =========================================  ============================================

A gate beside a query moves z at the first place too, so it is not a query. To move a value is to change its sign: then a norm
over one head or over all of them keeps every bit, and nothing else moves. If half of a query moves both halves of z, the
head is one head and not two; if either half does, it has no features of another kind. The output projection is linear:
its outputs for a quarter of some heads and three quarters of the others, and the other way round, add up to that for all.

All of this takes two forward passes, one of them without any change. Their rows are one prompt. In each row other heads
move, chosen by the bits of their numbers, so that any two heads are told apart by some row. Every layer gets the states
of the first row, in which nothing moves, so all layers are tried at once. The two passes have the same shapes, so that
whatever was not moved is equal in both, bit for bit.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import repeat
from torch import Tensor

from interp.models.batches.batch import Batch
from interp.models.layout.additions import ROUNDINGS, residue, rounding, visits_to_parts
from interp.models.running.core import Core
from interp.models.running.masks import PATTERNED
from interp.models.running.places import HEADED
from interp.models.running.steps import Edit, Read, whole
from interp.models.running.structure import Added, Heads
from interp.models.running.trace import Visit, run_forward

# The names of the projections of attention: for queries, keys or values alone, and for all three. The output of a latent
# one is, for each head, the part of its key without position, and its value.
NAMES: Mapping[str, tuple[str, ...]] = {
    "q": ("q", "q_proj", "q_b_proj", "query", "query_proj", "to_q", "wq"),
    "k": ("k", "k_proj", "key", "key_proj", "to_k", "wk"),
    "v": ("v", "v_proj", "value", "value_proj", "to_v", "wv"),
    "qkv": ("qkv_proj", "query_key_value", "qkv", "wqkv", "Wqkv", "c_attn", "att_proj", "in_proj"),
    "latent": ("kv_b_proj",),
}
# Single heads are moved at this position, which has others before and after it.
_AT = 2
# So many tokens of a text are enough.
_LENGTH = 4
# A change of sign alone leaves every norm unchanged. Where low precision hides its effect, a larger change is tried.
_STRENGTHS = (1.0, 8.0, 64.0)
_MOVED = ("q", "k", "v")


# Candidates --------------------------------------------------------------------------------------------------------------


def visits_to_attention(core: Core, batch: Batch) -> dict[int, dict[str, Visit]]:
    """Run the model once; for each layer with softmax attention, the visit to its attention (under "") and to each part
    of it that runs once, by dotted path, in the order in which they began."""
    kinds, parts = core.structure.attention, core.structure.attn
    layers = [layer for layer, kind in enumerate(kinds) if parts[layer] is not None and kind in PATTERNED]
    paths = {layer: f"{core.structure.layers}.{layer}.{parts[layer]}" for layer in layers}
    return {layer: visits_once(parts) for layer, parts in visits_to_parts(core, batch, paths).items()}


def visits_once(parts: Mapping[str, list[Visit]]) -> dict[str, Visit]:
    """The visit to each part that runs once."""
    return {name: visits[0] for name, visits in parts.items() if len(visits) == 1}


def candidates(part: str, visits: Mapping[str, Visit], n_heads: int, n_kv_heads: int) -> dict[str, list[Heads]]:
    """Where the sites of one layer may be, by name and width; `part` is the path of its attention in the layer.

    `z` has one candidate or none: the input of the first part whose output is the attention's output. Without `z` the
    other sites have no candidates, since they are known by their effect on it.
    """
    turns = {name: turn for turn, name in enumerate(visits)}
    z = next((name for name in visits if name and _is_last_projection(visits, name, n_heads)), None)
    if z is None:
        return {}
    size = visits[z].input.shape[-1]  # type: ignore[union-attr]
    options = {"z": [Heads(f"{part}.{z}", "input", 1, 0, size, size // n_heads, turns[z])]}
    places = [
        *_own_projections(visits, n_heads, n_kv_heads, size // n_heads),
        *_fused(visits, n_heads, size // n_heads),
    ]
    for site, name, groups, offset, width, d_head in places:
        heads = Heads(f"{part}.{name}", "output", groups, offset, width, d_head, turns[name])
        options.setdefault(site, []).append(heads)
    return options


def _is_last_projection(visits: Mapping[str, Visit], name: str, n_heads: int) -> bool:
    """Whether this part's output is the attention's output, and its input has equally many features for each head."""
    part, output = visits[name], visits[""].output if "" in visits else None
    if part.input is None or part.output is None or output is None or part.output.numel() != output.numel():
        return False
    return part.input.shape[-1] % n_heads == 0 and torch.equal(part.output.reshape(output.shape), output)


def _own_projections(visits: Mapping[str, Visit], n_heads: int, n_kv_heads: int, d: int) -> Iterator[tuple[Any, ...]]:
    """The sites with a projection of their own: site, part, groups, offset, width, features of a head. There are as many
    keys as values."""
    for name, size in _parts_called("v", visits):
        if size % d == 0:
            yield "v", name, 1, 0, size, d
            n_kv_heads = size // d
    for name, size in _parts_called("latent", visits):
        if size % n_heads == 0 and size // n_heads > d:
            yield "v", name, n_heads, size // n_heads - d, d, d
    for name, size in _parts_called("k", visits):
        if size % n_kv_heads == 0:
            yield "k", name, 1, 0, size, size // n_kv_heads
    for name, size in _parts_called("q", visits):
        if size % n_heads == 0:
            yield "q", name, 1, 0, size, size // n_heads
        if size == 2 * n_heads * d:  # a gate beside each query
            yield "q", name, n_heads, 0, d, d
            yield "q", name, n_heads, d, d, d


def _fused(visits: Mapping[str, Visit], n_heads: int, d: int) -> Iterator[tuple[Any, ...]]:
    """The sites of one projection for all three, in sequence or in each group of heads; tuples as `_own_projections`."""
    for name, size in _parts_called("qkv", visits):
        of_k = (size // d - n_heads) // 2
        if of_k < 1 or size != (n_heads + 2 * of_k) * d or n_heads % of_k:
            continue
        for groups, in_group in ((1, (n_heads, of_k, of_k)), (of_k, (n_heads // of_k, 1, 1))):
            offset = 0
            for site, number in zip(_MOVED, in_group, strict=True):
                yield site, name, groups, offset, number * d, d
                offset += number * d


def _parts_called(kind: str, visits: Mapping[str, Visit]) -> Iterator[tuple[str, int]]:
    """The parts whose names are those of this kind of projection, and the width of their output."""
    for name, visit in visits.items():
        if name.rpartition(".")[2] in NAMES[kind] and visit.output is not None:
            yield name, visit.output.shape[-1]


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def as_first_row(value):
    """Every row as the first."""
    return value[:1].expand_as(value).clone()


def scale_halves(value, start, factors):
    """The halves of each head's features times a factor, in rows from `start` on; `factors` are [row, position, head, half]."""
    value, half = value.clone(), value.shape[-1] // 2
    factors = factors.to(value.device, value.dtype)
    rows = value[start : start + len(factors)]
    rows[..., :half] *= factors[..., :1]
    rows[..., half:] *= factors[..., 1:]
    return value


def weight_heads(value, start, shares):
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
    """The change in each row: none in row 0, then equally many rows each for q, k and v, and the rest for z.

    Each of `bits` bits chooses the heads whose number has it, and then those whose number does not.
    """

    bits: int
    length: int

    @property
    def rows_a_site(self) -> int:
        """The number of rows each for q, k and v."""
        return 4 * self.bits + 1

    @property
    def rows(self) -> int:
        """The number of all rows."""
        return self.start("z") + 2 * self.bits + 1

    def start(self, site: str) -> int:
        """The first row of a site."""
        return 1 + HEADED.index(site) * self.rows_a_site

    def chosen(self, n_heads: int) -> Tensor:
        """Bool `[2 * bits, head]`."""
        numbers = torch.arange(n_heads)
        bits = [(numbers >> bit & 1).bool() for bit in range(self.bits)]
        return torch.stack([chosen for bit in bits for chosen in (bit, ~bit)])

    def factors(self, n_heads: int, strength: float) -> Tensor:
        """`[row, position, head, half]`, below zero where a head moves: in the first rows the first half of the chosen
        heads, in the next their second half, and in the last row all heads at the first position."""
        factors = torch.ones(self.rows_a_site, self.length, n_heads, 2, dtype=torch.float32)
        chosen = self.chosen(n_heads).float() * (1 + strength)
        factors[: len(chosen), _AT, :, 0] -= chosen
        factors[len(chosen) : -1, _AT, :, 1] -= chosen
        factors[-1, 0] = -strength
        return factors

    def shares(self, n_heads: int) -> Tensor:
        """`[row, head]`, the share of each head of z that remains; none in the last row."""
        return torch.cat([0.25 + 0.5 * self.chosen(n_heads).float(), torch.zeros(1, n_heads, dtype=torch.float32)])


def prove_heads(core: Core, batch: Batch) -> dict[str, tuple[Heads | None, ...]]:
    """The sites q, k, v and z of every layer, None where no candidate passes; tried on the first row of `batch`."""
    structure, row = core.structure, batch.row(0)
    if not row.has_images:
        row = core.maker.from_encoding({name: value[..., :_LENGTH] for name, value in row.inputs.items()})
    options = {
        layer: candidates(structure.attn[layer] or "", parts, structure.heads[layer], structure.n_kv_heads)
        for layer, parts in visits_to_attention(core, row).items()
        if structure.heads[layer]
    }
    options = {layer: sites for layer, sites in options.items() if sites}
    plan = Plan(max(1, (structure.n_heads - 1).bit_length()), row.inputs["input_ids"].shape[1])
    rows = row.repeat(plan.rows)
    proved: dict[int, dict[str, Heads]] = {layer: {} for layer in options}
    before = _run(core, rows, plan, {layer: {"z": sites["z"][0]} for layer, sites in options.items()})
    most = max((len(heads) for sites in options.values() for heads in sites.values()), default=0)
    for strength, turn in itertools.product(_STRENGTHS, range(most)):
        trial = {layer: _next(sites, turn, proved[layer]) for layer, sites in options.items()}
        trial = {layer: sites for layer, sites in trial.items() if sites.keys() - proved[layer].keys()}
        after = _run(core, rows, plan, trial, strength)
        for layer, sites in trial.items():
            proved[layer] |= {site: sites[site] for site in sites if _holds(plan, site, sites, before, after, layer)}
    # A query or a key that moves z proves the number of its heads, and without z there is nothing to move.
    proved = {layer: sites for layer, sites in proved.items() if "z" in sites and {"q", "k"} & sites.keys()}
    return {site: tuple(proved.get(layer, {}).get(site) for layer in range(structure.n_layers)) for site in HEADED}


def _next(sites: Mapping[str, Sequence[Heads]], turn: int, proved: Mapping[str, Heads]) -> dict[str, Heads]:
    """The candidates of a layer for the next trial: z, which shows the others, and one of each site without a proof."""
    others = {site: heads[turn] for site, heads in sites.items() if turn < len(heads) and site not in proved}
    return {**others, "z": sites["z"][0]}


def _run(
    core: Core, rows: Batch, plan: Plan, sites: Mapping[int, Mapping[str, Heads]], strength: float = 0.0
) -> dict[Any, Tensor]:
    """z of each layer, and the output of its projection in the rows of z, if its sites are in these places.

    Nothing moves where the strength is 0.
    """
    if not sites:
        return {}
    depth = range(core.structure.n_layers)
    places = {site: tuple(sites.get(layer, {}).get(site) for layer in depth) for site in HEADED}
    trial = as_if(core, attn_out=tuple(None if z is None else Added(z.module) for z in places["z"]), **places)
    edits = [Edit("resid_pre", layer, as_first_row) for layer in depth]
    for layer, of_layer in sites.items() if strength else ():
        for site in (site for site in _MOVED if site in of_layer):
            factors = plan.factors(of_layer[site].number, strength)
            edits.append(Edit(site, layer, scale_halves, (plan.start(site), factors)))
        edits.append(Edit("z", layer, weight_heads, (plan.start("z"), plan.shares(of_layer["z"].number))))
    reads = [Read(("z", layer), "z", layer, whole) for layer in sites]
    reads += [Read(("sum", layer), "attn_out", layer, rows_from, (plan.start("z"),)) for layer in sites]
    return {key: value.cpu() for key, value in run_forward(trial, rows, edits, reads, logits=None).items()}


def as_if(core: Core, **traits: Any) -> Core:
    """The same model with these traits in place of the measured ones, for a trial."""
    trial = copy.copy(core)
    trial.structure = replace(core.structure, **traits)
    return trial


def _holds(
    plan: Plan, site: str, sites: Mapping[str, Heads], before: dict[Any, Tensor], after: dict[Any, Tensor], layer: int
) -> bool:
    """Whether a change at this site of a layer leaves the site's mark on z, and no other."""
    if site == "z":
        return _adds_up(before["sum", layer][0], after["sum", layer])
    n_heads, number = sites["z"].number, sites[site].number
    if n_heads % number or (site == "q" and number != n_heads):
        return False
    rows = slice(plan.start(site), plan.start(site) + plan.rows_a_site)
    features = before["z", layer][rows] != after["z", layer][rows]
    half = features.shape[-1] // 2
    # Bool [row, position, head, half of its features]
    moved = torch.stack([features[..., :half].any(dim=-1), features[..., half:].any(dim=-1)], dim=-1)
    heads = repeat(plan.chosen(number), "row head -> (half row) (head group)", half=2, group=n_heads // number)
    return _MARKS[site](moved[:-1], moved[-1], heads)


def _mark_of_queries(moved: Tensor, at_first: Tensor, heads: Tensor) -> bool:
    expected = torch.zeros_like(moved)
    expected[:, _AT] = heads[..., None]
    return torch.equal(moved, expected) and not at_first.any()


def _mark_of_keys(moved: Tensor, at_first: Tensor, heads: Tensor) -> bool:
    within = torch.equal(moved.any(dim=1), heads[..., None].expand(-1, -1, 2)) and not moved[:, :_AT].any()
    return within and not at_first[0].any() and bool(at_first[1:].any(dim=0).all())


def _mark_of_values(moved: Tensor, at_first: Tensor, heads: Tensor) -> bool:
    within = torch.equal(moved.any(dim=1).any(dim=-1), heads) and not moved[:, :_AT].any()
    return within and bool(at_first[0].any(dim=-1).all())


_MARKS = {"q": _mark_of_queries, "k": _mark_of_keys, "v": _mark_of_values}


def _adds_up(together: Tensor, parts: Tensor) -> bool:
    """Whether the outputs for complementary shares of the heads add up to those for all heads and for none."""
    none = parts[-1]
    for a, b in zip(parts[:-1:2], parts[1:-1:2], strict=True):
        difference = a.double() + b.double() - together.double() - none.double()
        if residue(difference / rounding(a, b, together, none)) > ROUNDINGS:
            return False
    return True
