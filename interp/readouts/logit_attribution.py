"""Direct logit attribution: what each component of a model adds to a logit, straight through the final norm.

The last state is a sum: the embedding, and what every attention block and every MLP added to it. The unembedding is
linear. So is the final norm, once its scale is fixed at the value that it has for this state
(`interp.readouts.frozen_norm`). So a logit is a sum too, with one term for each component:

    logit = scale * u . norm(h),   h = embedding + sum of attn_out + sum of mlp_out

where u is the target's row of the unembedding. The addition of an attention block is in turn the sum of what its heads add
(and a bias). A head adds a weighted mean over the positions that it reads, so its term splits into what it took from the
image and what it took from the text. All terms add up to the logit, up to rounding, which is reported as a term.

Direct attribution does not say how a component changed what later ones did. And the fixed scale is that of the whole sum,
so a term does not predict what is lost when the component is ablated. Logits are taken before a softcap and times the
scale of the model's own readout.

The control is the same attribution of the average token of the vocabulary. A component that raises all logits alike changes
no probability, so read the value less its control.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.activations.sink_counts import count_sinks, notes_of_sinks, reads_of_norms
from interp.arguments import checked_flag, checked_seed
from interp.errors import InputError, LayoutError, shown
from interp.models import VLM, Batch, Intervention
from interp.models.batches.targets import target_ids, word_of
from interp.models.layout.additions import tolerance
from interp.models.running.places import CALL
from interp.models.running.steps import Edit, Read, take_each
from interp.models.running.structure import resolve
from interp.models.running.trace import refuse_no_numbers, run_forward
from interp.provenance import provenance_of_run
from interp.readouts.frozen_norm import before_linear, before_norm, directions_of_logits, freeze
from interp.results import Result, StoredValue
from interp.statistics.intervals import few_rows, mean_interval

# Edits of these sites change what leaves a layer, but not what its heads and its MLP add.
_BESIDE_BLOCKS = ("attn_out", "resid_mid", "resid_post", CALL)


@dataclass(frozen=True)
class Component(StoredValue):
    """One term of a logit: its kind, and its layer, its head and the positions that the head read, where it has these.

    =========== ====================================================================================================
    `embed`     state 0, as it enters layer 0
    `attn_out`  what an attention block adds; one of its heads; what that head took from a source ("other": the rest)
    `attn_bias` what an attention block adds whatever its heads write, where heads are separate terms
    `mlp_out`   what an MLP adds
    `between`   what is added to the stream on its way into a layer (DeepStack, an intervention)
    `edit`      what an intervention adds within a layer outside its blocks, and to a block outside its heads
    `norm_bias` the bias of the final norm; `head_bias` that of the unembedding
    `rounding`  the logit less all other terms
    =========== ====================================================================================================
    """

    kind: str
    layer: int | None = None
    head: int | None = None
    source: str | None = None

    @property
    def name(self) -> str:
        """As in ``embed``, ``mlp_out.3``, ``attn_out.3.head.1`` and ``attn_out.3.head.1.image``."""
        layer = "" if self.layer is None else f".{self.layer}"
        head = "" if self.head is None else f".head.{self.head}"
        return f"{self.kind}{layer}{head}" + ("" if self.source is None else f".{self.source}")


@dataclass(frozen=True)
class AttributionResult(Result):
    """What each component adds to the logit of a target, or to the difference of two logits.

    `values[component]` is the mean over rows of `per_row[row, component]`, with 95 % bounds `low` and `high`
    (`interp.statistics.mean_interval`; NaN for one row). `control[component]` is the same for the average token of the
    vocabulary. `total` is the logit itself, the mean of `totals[row]` and the sum of all values. `parts` describes each
    component; `targets` and `against` are the words of each row.
    """

    values: Float[Tensor, " component"]
    low: Float[Tensor, " component"]
    high: Float[Tensor, " component"]
    control: Float[Tensor, " component"]
    per_row: Float[Tensor, "row component"]
    totals: Float[Tensor, " row"]
    parts: tuple[Component, ...]
    targets: list[str]
    against: list[str] | None = None

    def __post_init__(self) -> None:
        if self.per_row.shape != (len(self.totals), len(self.parts)) or len(self.values) != len(self.parts):
            raise InputError(
                f"per_row of shape {tuple(self.per_row.shape)} does not fit {len(self.totals)} rows and "
                f"{len(self.parts)} components: expected [row, component]"
            )

    @property
    def components(self) -> list[str]:
        """The names of the components, in the order of `values`."""
        return [part.name for part in self.parts]

    @property
    def total(self) -> float:
        """The logit that all values add up to, mean over rows."""
        return float(self.totals.mean())

    def to_frame(self) -> pd.DataFrame:
        """One row a component: its name and parts, value, low, high, control."""
        frame = pd.DataFrame([{"component": part.name, **asdict(part)} for part in self.parts])
        columns = {"value": self.values, "low": self.low, "high": self.high, "control": self.control}
        return frame.assign(**{name: column.tolist() for name, column in columns.items()})


class Logits(NamedTuple):
    """The logits to attribute: the readout that makes them, the target of each row, and the token of each row whose logit
    is taken off, or None."""

    readout: Any
    targets: Any
    against: Any


class HeadMap(NamedTuple):
    """How the heads of a layer write to the stream: the output projection, the factor after it, and the norm after it, or
    None without one."""

    projection: Any
    factor: Any
    norm: Any


@torch.inference_mode(False)  # the caller may be in it, and its tensors could not take part in a gradient
def direct_logit_attribution(
    vlm: VLM,
    batch: Batch,
    targets: Any,
    interventions: Sequence[Intervention] = (),
    against: Any = None,
    heads: bool = False,
    sources: Sequence[str] = (),
    seed: int = 0,
) -> AttributionResult:
    """What each component adds to the target's logit at each row's last token; with `against`, to the logit of the target
    less that of the other token. Both are one token id or word for all rows, or one a row; a word is the token that continues
    its row's prompt.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . what colour is the 3 ?"])
    >>> result = interp.lens.direct_logit_attribution(vlm, batch, "red", against="blue")
    >>> result.components[:3], abs(float(result.values.sum()) - result.total) < 1e-4
    (['embed', 'attn_out.0', 'mlp_out.0'], True)

    With `heads`, an attention block becomes one term a head, in the layers in which z was proved; other blocks stay whole.
    `sources` names groups of positions, as in ``("image", "text")``. Each head then becomes one term a group, in the layers
    in which z was proved to be ``pattern @ v`` (`vlm.trait("weighed")`); what it takes elsewhere is "other".

    It takes one forward pass, and nothing wider than ``[component, row]`` leaves it. `seed` is for the bootstrap.

    Raises `LayoutError` for a model in which some block's addition to the stream was not proved, whose final norm is not
    linear at a fixed scale, or without a layer whose heads were proved. Raises `InputError` for a target that is not one
    token; for sources that are unknown, overlap or select nothing; for `heads` that is not True or False; for a seed that is
    not an int from 0; and for states too large for the final norm.
    """
    edits, seed = vlm.edits_of(batch, interventions), checked_seed(seed)
    checked_flag(heads, "heads")
    refuse_unproved(vlm)
    ids = target_ids(vlm, batch, targets)
    others = None if against is None else target_ids(vlm, batch, against)
    groups = groups_of(batch, sources)
    split = _split_layers(vlm, groups) if heads or groups else {}
    states: dict[tuple[Any, ...], Any] = {}
    reads = _reads(vlm, batch, states, groups, split)
    arguments = (*_last(batch), states, Logits(vlm.readout, ids, others), _head_maps(vlm, split))
    reads.append(Read("terms", "resid_post", vlm.structure.n_layers - 1, add_up, arguments))
    norms = reads_of_norms(vlm, edits) if groups else []
    outputs: Any = run_forward(vlm, batch, edits, [*reads, *norms], logits=None)
    terms, totals, misfits = outputs["terms"]
    notes = few_rows(len(totals[0]))
    if groups:
        sinks = count_sinks(vlm, batch, edits, norms, outputs, torch.stack(list(groups.values())).any(dim=0))
        notes = (*notes, *notes_of_sinks(sinks, len(batch), "whose values are not of what stands there"))
    refuse_no_numbers(vlm, batch, totals, "logits")
    _refuse_misfits(vlm, misfits)
    parts = {Component(*key): values.cpu() for key, values in terms.items()}
    parts = {part: values for part, values in parts.items() if _belongs(vlm, part, values, edits)}
    parts[Component("rounding")] = totals.cpu() - torch.stack(list(parts.values())).sum(dim=0)
    table = torch.stack(list(parts.values()), dim=-1)
    low, high = mean_interval(table[0], seed=seed)
    return AttributionResult(
        values=table[0].mean(dim=0),
        low=low,
        high=high,
        control=table[1].mean(dim=0),
        per_row=table[0],
        totals=totals[0].cpu(),
        parts=tuple(parts),
        targets=[word_of(vlm, token) for token in ids.tolist()],
        against=None if others is None else [word_of(vlm, token) for token in others.tolist()],
        provenance=provenance_of_run(vlm, [batch], interventions, seed, notes),
    )


def refuse_unproved(vlm: VLM) -> None:
    """Refuse a model with a block whose addition to the stream was not proved."""
    for site, blocks in (("attn_out", vlm.structure.attn), ("mlp_out", vlm.structure.mlp)):
        places = vlm.trait(site)
        missing = [layer for layer, block in enumerate(blocks) if block is not None and places[layer] is None]
        if missing:
            raise LayoutError(
                f"{vlm.name!r}: {site} was not proved in layers {', '.join(map(str, missing))}, so its logits cannot be split "
                "into components: read its states with logit_lens"
            )


def groups_of(batch: Batch, sources: Sequence[str]) -> dict[str, Tensor]:
    """The masks of these names. Raises `InputError` where one is unknown or selects nothing, or two overlap."""
    named = isinstance(sources, Sequence) and not isinstance(sources, str)
    if not named or not all(isinstance(name, str) for name in sources):
        raise InputError(f"sources={shown(sources)}: expected names of positions, as in ('image', 'text')")
    if len(set(sources)) < len(sources):
        raise InputError(f"sources={shown(sources)}: a name is repeated: expected groups without a common position")
    groups = {name: batch.positions.select(name) for name in sources}
    for name, mask in groups.items():
        if name == "other" or not mask.any():
            raise InputError(f"sources={sources!r}: {name!r} selects no position of this batch: expected at least one")
    if groups and int(torch.stack(list(groups.values())).sum(dim=0).max()) > 1:
        raise InputError(
            f"sources={sources!r}: two of them share a position: expected groups without a common position"
        )
    return groups


def _split_layers(vlm: VLM, groups: dict[str, Tensor]) -> dict[int, bool]:
    """The layers whose heads become terms, and whether each splits by source too."""
    weighed = vlm.trait("weighed") if groups else [False] * vlm.structure.n_layers
    places = zip(vlm.trait("z"), vlm.trait("attn_out"), strict=True)
    split = {layer: weighed[layer] for layer, pair in enumerate(places) if None not in pair}
    if not split or (groups and not any(split.values())):
        missing = "what its heads read (weighed)" if split else "the output of its heads (z)"
        raise LayoutError(f"{vlm.name!r}: {missing} was proved in no layer: leave out sources= and heads=")
    return split


def _last(batch: Batch) -> tuple[Tensor, Tensor]:
    rows, columns = batch.positions["last"].nonzero(as_tuple=True)
    return rows, columns


def _reads(
    vlm: VLM, batch: Batch, states: dict[Any, Any], groups: dict[str, Tensor], split: dict[int, bool]
) -> list[Read]:
    """The reads that collect in `states` what the last read adds up."""
    last, reads = _last(batch), list[Read]()
    for layer in range(vlm.structure.n_layers):
        sites = [site for site in ("attn_out", "mlp_out") if vlm.trait(site)[layer] is not None]
        sites += ["z"] if layer in split else []
        keeps: list[tuple[str, Any, Any]] = [(site, keep_last, last) for site in ("resid_pre", *sites, "resid_post")]
        if split.get(layer):
            keeps += [("v", keep_whole, ()), ("pattern", keep_sources, (*last, groups))]
        for site, function, arguments in keeps:
            reads.append(Read((site, layer), site, layer, function, (states, (site, layer), *arguments)))
    return reads


def _head_maps(vlm: VLM, layers: Iterable[int]) -> dict[int, HeadMap]:
    """For each of these layers how its heads write to the stream."""
    maps = {}
    for layer in layers:
        envoy, added = vlm.layers[layer], vlm.trait("attn_out")[layer]
        norm = None if added.module == vlm.structure.attn[layer] else resolve(envoy, added.module)
        maps[layer] = HeadMap(resolve(envoy, vlm.trait("z")[layer].module), added.scale, norm)
    return maps


def _refuse_misfits(vlm: VLM, misfits: dict[str, Tensor]) -> None:
    for part, misfit in misfits.items():
        if not misfit.isfinite():
            raise InputError(
                f"{part} gives no finite numbers in this run of {vlm.name!r}: expected states that it can take, make the "
                "interventions smaller"
            )
        if not float(misfit) <= 10 * tolerance(vlm.dtype):
            raise LayoutError(
                f"{vlm.name!r}: {part} is not linear at a fixed scale (it misses by {float(misfit):.1e}), so its logits cannot "
                "be split into components: read its states with logit_lens"
            )


def _belongs(vlm: VLM, part: Component, values: Tensor, edits: Sequence[Edit]) -> bool:
    """Whether a term that most models lack is part of this run."""
    # In a layer without an edit of its own, this term is rounding.
    if part.kind == "edit":
        return any(edit.site in _BESIDE_BLOCKS and vlm.layer_indices([edit.layer])[0] == part.layer for edit in edits)
    return part.kind not in ("between", "attn_bias", "norm_bias", "head_bias") or bool(values.any())


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def keep_last(value, states, key, rows, columns):
    """Keep the last positions, `[row, ...]`, for later in the run."""
    states[key] = take_each(value, rows, columns, torch.float32)


def keep_whole(value, states, key):
    """Keep a value whole."""
    states[key] = value


def keep_sources(pattern, states, key, rows, columns, groups):
    """Keep what the heads of the last positions take from each group of keys, `[row, head, d_head]`; v was kept before."""
    _, layer = key
    values = states.pop(("v", layer))
    weights = pattern[rows.to(pattern.device), columns.to(pattern.device)].float()
    values = values[rows.to(values.device)].float().repeat_interleave(weights.shape[1] // values.shape[2], dim=2)
    for name, mask in groups.items():
        here = mask[rows].to(weights.device)[:, None, :]
        states["source", layer, name] = torch.einsum("bhk,bkhd->bhd", weights * here, values)


def add_up(value, rows, columns, states, logits, maps):
    """The terms of the logits, `[2, row]` each (of the target, of the average token), these logits `[2, row]`, and how far
    each map misses the module that it stands for."""
    readout, scaling = logits.readout, logits.readout.scaling
    state = take_each(value, rows, columns, None)
    states = {key: each.to(state.device) for key, each in states.items()}  # the layers may be on several devices
    targets = logits.targets.to(state.device)
    against = None if logits.against is None else logits.against.to(state.device)
    normed = readout.norm(state)
    after, biases, totals = directions_of_logits(
        readout.head, normed, targets, against, readout.vocab_size, scaling.suppressed
    )
    misfits = {"its head": missed(totals, (after * normed.float()).sum(dim=-1) + biases)}
    slope, centre, bias, misfits["its final norm"] = freeze(readout.norm, state)
    # A term is one number: scale * direction . addition.
    along = before_norm(after, slope, centre) * scaling.scale
    depth = max(layer for site, layer in (key[:2] for key in states) if site == "resid_post") + 1
    terms = {term("embed"): (along * states["resid_pre", 0]).sum(dim=-1)}
    for layer in range(depth):
        if layer:
            between = states["resid_pre", layer] - states["resid_post", layer - 1]
            terms[term("between", layer)] = (along * between).sum(dim=-1)
        within, beside = states["resid_post", layer] - states["resid_pre", layer], 0
        for site in ("attn_out", "mlp_out"):
            if (site, layer) not in states:
                continue
            within = within - states[site, layer]
            whole = (along * states[site, layer]).sum(dim=-1)
            if site == "attn_out" and layer in maps:
                parts, misfit = terms_of_heads(states, layer, along, maps[layer], value.dtype)
                if misfit is not None:
                    misfits[f"the norm after the attention of layer {layer}"] = misfit
                terms.update(parts)
                beside = whole - sum(parts.values())
            else:
                terms[term(site, layer)] = whole
        terms[term("edit", layer)] = (along * within).sum(dim=-1) + beside
    terms[term("norm_bias")] = (after * bias).sum(dim=-1) * scaling.scale
    terms[term("head_bias")] = biases * scaling.scale
    return terms, totals * scaling.scale, misfits


def terms_of_heads(states, layer, along, head_map, dtype):
    """The terms of a layer's heads, by source where sources were kept, and of the biases after them; and how far the norm
    after them misses, None without one."""
    z = states["z", layer]
    flat, misfit, of_norm = z.flatten(1).to(dtype), None, 0
    along = along * head_map.factor
    if head_map.norm is not None:
        slope, centre, bias, misfit = freeze(head_map.norm, head_map.projection(flat))
        of_norm = (along * bias).sum(dim=-1)
        along = before_norm(along, slope, centre)
    along, of_projection = before_linear(head_map.projection, flat, along)
    along = along.unflatten(-1, z.shape[1:])
    sources = {key[2]: part for key, part in states.items() if key[:2] == ("source", layer)}
    if sources:
        sources["other"] = z - sum(sources.values())
    terms = {term("attn_bias", layer): of_projection + of_norm}
    for name, part in (sources or {None: z}).items():
        of_heads = (along * part).sum(dim=-1)
        for index in range(z.shape[1]):
            terms[term("attn_out", layer, index, name)] = of_heads[..., index]
    return terms, misfit


def term(kind, layer=None, head=None, source=None):
    """The fields of a `Component`, which is made outside the trace."""
    return kind, layer, head, source


def missed(expected, actual):
    """The largest difference, relative to the largest expected number."""
    return (expected - actual).abs().max() / expected.abs().max().clamp(min=1)
