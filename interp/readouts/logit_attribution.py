"""Direct logit attribution: what each component of a model adds to a logit, straight through the final norm.

The last state is a sum: the embedding, and what every attention block and every MLP added to it. The unembedding is
linear, and so is the final norm once its scale is held at the value that it has for this state
(`interp.readouts.frozen_norm`). So a logit is a sum too, with a term for each component:

    logit = scale * u . norm(h),   h = embedding + sum of attn_out + sum of mlp_out

where u is the target's row of the unembedding. What an attention block adds is in turn the sum of what its heads add
(and a bias), and what a head adds is a weighted mean over the positions that it reads, so that a head's term can be
parted into what it took from the image and what it took from the text. All terms add up to the logit, to rounding,
which is a term as well so that it can be seen.

What it does not say: how a component changed what later ones did. It is the direct effect alone; and the frozen scale is
that of the whole sum, so a term is no prediction of what is lost when the component is taken out. Logits are before a
softcap and times the factor of the model's own readout.

The control is the same with the average token of the vocabulary in the target's place. A component that pushes all
logits alike changes no probability: what counts is the value less its control.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.arguments import checked_flag, checked_seed
from interp.errors import InputError, LayoutError, shown
from interp.models import VLM, Batch, Intervention
from interp.models.batches.targets import target_ids, word_of
from interp.models.layout.additions import tolerance
from interp.models.running.places import CALL
from interp.models.running.steps import Edit, Read, take_each
from interp.models.running.structure import resolve
from interp.models.running.trace import run_forward
from interp.provenance import Provenance, fingerprint
from interp.readouts.frozen_norm import before_linear, before_norm, directions_of_logits, freeze
from interp.results import Result
from interp.statistics.bootstrap import bootstrap_mean

# Edits of these change what leaves a layer and are no part of what its heads and its MLP add.
_BESIDE_BLOCKS = ("attn_out", "resid_mid", "resid_post", CALL)


@dataclass(frozen=True)
class Component:
    """One term of a logit: its kind, and the layer, the head and the positions it was read from where it has these.

    =========== ====================================================================================================
    `embed`     state 0, as it enters layer 0
    `attn_out`  what an attention block adds; one of its heads; what that head took from a source ("other": the rest)
    `attn_bias` what an attention block adds whatever its heads give, where these stand alone
    `mlp_out`   what an MLP adds
    `between`   what is added to the stream on its way into a layer (DeepStack, an intervention)
    `edit`      what an intervention adds within a layer beside its blocks, and to a block beside its heads
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

    def get_state(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Component:
        return cls(**state)


@dataclass(frozen=True)
class AttributionResult(Result):
    """What each component adds to the logit of a target, or to the difference of two.

    `values[component]` is the mean over rows of `per_row[row, component]`, `low` and `high` bound it (95 %, bootstrap over
    rows; NaN for one row). `control[component]` is the same with the average token of the vocabulary in the target's place.
    `total` is the logit itself, the mean of `totals[row]`: the sum of all values. `parts` says what each component is,
    `targets` and `against` name each row's tokens.
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
        columns = {name: getattr(self, name).tolist() for name in ("values", "low", "high", "control")}
        columns["value"] = columns.pop("values")
        named = [{"component": part.name, **asdict(part)} for part in self.parts]
        return pd.DataFrame(named).assign(**{name: columns[name] for name in ("value", "low", "high", "control")})


@torch.inference_mode(False)  # a caller may be in it, and nothing that is made there can take part in a gradient
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
    less that of the other token. Both are one token id or word for all rows or one a row.

    With `heads`, attention blocks are parted into their heads, in the layers in which z was proved; the others stay whole.
    `sources` names groups of positions, as in ``("image", "text")``, by which heads are parted further, in the layers in
    which their z was proved to be ``pattern @ v`` (`vlm.trait("weighed")`); what they take elsewhere is "other".

    One forward pass; nothing wider than ``[component, row]`` leaves it. `seed` is that of the bootstrap.

    Raises `LayoutError` for a model in which some block's addition to the stream was not proved, whose final norm is not
    linear at a frozen scale, or that has no layer to be parted as is asked; `InputError` for a target that is not one token,
    for sources that are unknown, share positions or select none, for `heads` that are neither True nor False, for a seed that
    is no int from 0 on, and for states too large for the final norm.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . what colour is the 3 ?"])
    >>> result = interp.lens.direct_logit_attribution(vlm, batch, "red", against="blue")
    >>> result.components[:3], abs(float(result.values.sum()) - result.total) < 1e-4
    (['embed', 'attn_out.0', 'mlp_out.0'], True)
    """
    edits, seed = vlm.edits_of(batch, interventions), checked_seed(seed)
    checked_flag(heads, "heads")
    refuse_unproved(vlm)
    aims = target_ids(vlm, targets, len(batch))
    others = None if against is None else target_ids(vlm, against, len(batch))
    groups = groups_of(batch, sources)
    parted = _layers_parted(vlm, groups) if heads or groups else {}
    held: dict[tuple[Any, ...], Any] = {}
    reads = _reads(vlm, batch, held, groups, parted)
    arguments = (held, vlm.readout, aims, others, *_maps(vlm, parted))
    reads.append(Read("found", "resid_post", vlm.structure.n_layers - 1, add_up, (*_last(batch), *arguments)))
    seen: Any = run_forward(vlm, batch, edits, reads, logits=None)["found"]
    terms, totals, misfits = seen
    _refuse_misfits(vlm, misfits)
    found = {Component(*key): values.cpu() for key, values in terms.items()}
    found = {part: values for part, values in found.items() if _belongs(vlm, part, values, edits)}
    found[Component("rounding")] = totals.cpu() - torch.stack(list(found.values())).sum(dim=0)
    table = torch.stack(list(found.values()), dim=-1)
    low, high = bootstrap_mean(table[0], seed)
    return AttributionResult(
        values=table[0].mean(dim=0),
        low=low,
        high=high,
        control=table[1].mean(dim=0),
        per_row=table[0],
        totals=totals[0].cpu(),
        parts=tuple(found),
        targets=[word_of(vlm, token) for token in aims.tolist()],
        against=None if others is None else [word_of(vlm, token) for token in others.tolist()],
        provenance=Provenance(
            model=vlm.name,
            revision=vlm.revision,
            data=fingerprint(batch),
            seed=seed,
            interventions=tuple(map(repr, interventions)),
        ),
    )


def refuse_unproved(vlm: VLM) -> None:
    """Refuse a model in which what some block adds to the stream is not known."""
    for site, blocks in (("attn_out", vlm.structure.attn), ("mlp_out", vlm.structure.mlp)):
        places = vlm.trait(site)
        missing = [layer for layer, block in enumerate(blocks) if block is not None and places[layer] is None]
        if missing:
            raise LayoutError(
                f"{vlm.name!r} has no {site} that could be proved in layers {', '.join(map(str, missing))}: its logits cannot "
                "be parted by component, read its states with logit_lens"
            )


def groups_of(batch: Batch, sources: Sequence[str]) -> dict[str, Tensor]:
    """The masks of these names. Raises `InputError` where one is unknown or selects nothing, or two share a position."""
    if (
        isinstance(sources, str)
        or not isinstance(sources, Sequence)
        or not all(isinstance(name, str) for name in sources)
    ):
        raise InputError(f"sources={shown(sources)}: expected names of positions, as in ('image', 'text')")
    if len(set(sources)) < len(sources):
        raise InputError(f"sources={shown(sources)}: a name stands there twice: expected groups that are apart")
    groups = {name: batch.positions.select(name) for name in sources}
    for name, mask in groups.items():
        if name == "other" or not mask.any():
            raise InputError(f"sources={sources!r}: {name!r} selects no position of this batch: expected at least one")
    if groups and int(torch.stack(list(groups.values())).sum(dim=0).max()) > 1:
        raise InputError(f"sources={sources!r}: two of them share a position: expected groups that are apart")
    return groups


def _layers_parted(vlm: VLM, groups: dict[str, Tensor]) -> dict[int, bool]:
    """The layers whose heads are known, and whether what they read is."""
    weighed = vlm.trait("weighed") if groups else [False] * vlm.structure.n_layers
    added = vlm.trait("attn_out")
    parted = {
        layer: weighed[layer]
        for layer, place in enumerate(vlm.trait("z"))
        if place is not None and added[layer] is not None
    }
    if not parted or (groups and not any(parted.values())):
        wanted = "its heads read" if parted else "its heads are (z)"
        raise LayoutError(f"{vlm.name!r}: where {wanted} was proved in no layer: leave out sources= and heads=")
    return parted


def _last(batch: Batch) -> tuple[Tensor, Tensor]:
    rows, columns = batch.positions["last"].nonzero(as_tuple=True)
    return rows, columns


def _reads(
    vlm: VLM, batch: Batch, held: dict[Any, Any], groups: dict[str, Tensor], parted: dict[int, bool]
) -> list[Read]:
    """What is kept of each layer until the last state is there."""
    last, reads = _last(batch), list[Read]()
    for layer in range(vlm.structure.n_layers):
        sites = [site for site in ("attn_out", "mlp_out") if vlm.trait(site)[layer] is not None]
        sites += ["z"] if layer in parted else []
        kept: list[tuple[str, Any, Any]] = [(site, keep_last, last) for site in ("resid_pre", *sites, "resid_post")]
        if parted.get(layer):
            names, masks = list(groups), torch.stack(list(groups.values()))
            kept += [("v", keep_whole, ()), ("pattern", keep_sources, (*last, names, masks))]
        for site, function, arguments in kept:
            reads.append(Read((site, layer), site, layer, function, (held, (site, layer), *arguments)))
    return reads


def _maps(vlm: VLM, parted: dict[int, bool]) -> tuple[dict[int, Any], dict[int, float], dict[int, Any]]:
    """For each parted layer its output projection, the factor behind it, and a norm behind it where there is one."""
    projections, factors, norms = {}, {}, {}
    for layer in parted:
        envoy, added = vlm.layers[layer], vlm.trait("attn_out")[layer]
        projections[layer] = resolve(envoy, vlm.trait("z")[layer].module)
        factors[layer] = added.scale
        if added.module != vlm.structure.attn[layer]:
            norms[layer] = resolve(envoy, added.module)
    return projections, factors, norms


def _refuse_misfits(vlm: VLM, misfits: dict[str, Tensor]) -> None:
    for what, misfit in misfits.items():
        if not misfit.isfinite():
            raise InputError(
                f"{what} gives no finite numbers in this run of {vlm.name!r}: expected states that it can take, make the "
                "interventions smaller"
            )
        if not float(misfit) <= 10 * tolerance(vlm.dtype):
            raise LayoutError(
                f"{vlm.name!r}: {what} is not linear at a frozen scale (it misses by {float(misfit):.1e}): its logits cannot "
                "be parted so, read its states with logit_lens"
            )


def _belongs(vlm: VLM, part: Component, values: Tensor, edits: Sequence[Edit]) -> bool:
    """Whether a term that most models do not have is one of this run."""
    # Without an edit of the layer's own it is rounding.
    if part.kind == "edit":
        return any(edit.site in _BESIDE_BLOCKS and vlm.layer_indices([edit.layer])[0] == part.layer for edit in edits)
    return part.kind not in ("between", "attn_bias", "norm_bias", "head_bias") or bool(values.any())


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def keep_last(value, held, key, rows, columns):
    """Keep what stands at the last positions, `[row, ...]`, for later in the run."""
    held[key] = take_each(value, rows, columns, torch.float32)


def keep_whole(value, held, key):
    """Keep all of it."""
    held[key] = value


def keep_sources(pattern, held, key, rows, columns, names, masks):
    """Keep what the heads of the last positions take from each group of keys, `[row, head, d_head]`; v has been kept."""
    _, layer = key
    values = held.pop(("v", layer))
    weights = pattern[rows.to(pattern.device), columns.to(pattern.device)].float()
    values = values[rows.to(values.device)].float().repeat_interleave(weights.shape[1] // values.shape[2], dim=2)
    for name, mask in zip(names, masks[:, rows], strict=True):
        here = mask.to(weights.device)[:, None, :]
        held["source", layer, name] = torch.einsum("bhk,bkhd->bhd", weights * here, values)


def add_up(value, rows, columns, held, readout, aims, against, projections, factors, norms):
    """The terms of the logits, `[2, row]` each (of the target, of the average token), these logits `[2, row]`, and how far
    each map misses what it stands for."""
    scaling = readout.scaling
    state = take_each(value, rows, columns, None)
    held = {key: kept.to(state.device) for key, kept in held.items()}  # the layers may stand on several devices
    aims = aims.to(state.device)
    against = None if against is None else against.to(state.device)
    normed = readout.norm(state)
    behind, biases, totals = directions_of_logits(
        readout.head, normed, aims, against, readout.vocab_size, scaling.suppressed
    )
    misfits = {"its head": missed(totals, (behind * normed.float()).sum(dim=-1) + biases)}
    slope, centre, bias, misfits["its final norm"] = freeze(readout.norm, state)
    # One number a term is scale * direction . what was added.
    along = before_norm(behind, slope, centre) * scaling.scale
    depth = max(layer for site, layer in (key[:2] for key in held) if site == "resid_post") + 1
    terms = {term("embed"): (along * held["resid_pre", 0]).sum(dim=-1)}
    for layer in range(depth):
        if layer:
            between = held["resid_pre", layer] - held["resid_post", layer - 1]
            terms[term("between", layer)] = (along * between).sum(dim=-1)
        within, beside = held["resid_post", layer] - held["resid_pre", layer], 0
        for site in ("attn_out", "mlp_out"):
            if (site, layer) not in held:
                continue
            within = within - held[site, layer]
            whole = (along * held[site, layer]).sum(dim=-1)
            if site == "attn_out" and layer in projections:
                maps = (projections[layer], factors[layer], norms.get(layer))
                parts, misfit = terms_of_heads(held, layer, along, *maps, value.dtype)
                if misfit is not None:
                    misfits[f"the norm behind the attention of layer {layer}"] = misfit
                terms.update(parts)
                beside = whole - sum(parts.values())
            else:
                terms[term(site, layer)] = whole
        terms[term("edit", layer)] = (along * within).sum(dim=-1) + beside
    terms[term("norm_bias")] = (behind * bias).sum(dim=-1) * scaling.scale
    terms[term("head_bias")] = biases * scaling.scale
    return terms, totals * scaling.scale, misfits


def terms_of_heads(held, layer, along, projection, factor, norm, dtype):
    """The terms of the heads of a layer, parted by source where it was kept, and of the biases behind them; and how far the
    norm behind them misses, None without one."""
    z = held["z", layer]
    flat, misfit, of_norm = z.flatten(1).to(dtype), None, 0
    along = along * factor
    if norm is not None:
        slope, centre, bias, misfit = freeze(norm, projection(flat))
        of_norm = (along * bias).sum(dim=-1)
        along = before_norm(along, slope, centre)
    along, of_projection = before_linear(projection, flat, along)
    along = along.unflatten(-1, z.shape[1:])
    sources = {key[2]: taken for key, taken in held.items() if key[:2] == ("source", layer)}
    if sources:
        sources["other"] = z - sum(sources.values())
    terms = {term("attn_bias", layer): of_projection + of_norm}
    for name, taken in (sources or {None: z}).items():
        of_heads = (along * taken).sum(dim=-1)
        for index in range(z.shape[1]):
            terms[term("attn_out", layer, index, name)] = of_heads[..., index]
    return terms, misfit


def term(kind, layer=None, head=None, source=None):
    """What a `Component` is made of; none is made inside the trace."""
    return kind, layer, head, source


def missed(wanted, made):
    """The largest difference, relative to the largest number."""
    return (wanted - made).abs().max() / wanted.abs().max().clamp(min=1)
