"""The one place that runs a trace: edits are applied and states are read in the order the model computes them.

A method says *what* it wants as `Edit`s and `Read`s on sites of layers; `run_forward` and `run_generate` put them in
forward order and carry them out in one nnsight trace, with nothing leaving it but what was asked for.

What runs inside the trace is plain torch: the functions of an edit or a read take a tensor (and the tensors they were
given) and return one, so the trace can be shipped to a server on which this package is not installed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from torch import Tensor

from interp.errors import InputError
from interp.models.structure import resolve

if TYPE_CHECKING:
    from interp.models.batch import Batch
    from interp.models.vlm import VLM

# A site is a place in a layer: the module it belongs to (None = the layer itself), and the side of it that is taken.
# The order is the order in which a layer computes them.
SITES: dict[str, tuple[str | None, str]] = {
    "resid_pre": (None, "input"),
    "attn_out": ("attention", "output"),
    "mlp_out": ("mlp", "output"),
    "resid_post": (None, "output"),
}
_ORDER = {site: index for index, site in enumerate(SITES)}


@dataclass(frozen=True)
class Edit:
    """Change `site` of `layer`: its value becomes `function(value, *arguments)`, all tensors, same shape."""

    site: str
    layer: int
    function: Callable[..., Tensor]
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Read:
    """Take `function(value, *arguments)` of `site` of `layer`, after every edit there, out of the trace under `key`."""

    key: Any
    site: str
    layer: int
    function: Callable[..., Tensor]
    arguments: tuple[Any, ...] = ()


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def whole(value):
    """All of it, as it is now."""
    return value.clone()


def write(value, rows, columns, new):
    """`new` at the selected positions, nothing else changed."""
    value = value.clone()
    value[rows.to(value.device), columns.to(value.device)] = new.to(value.device, value.dtype)
    return value


def take_each(value, rows, columns, dtype):
    """The selected positions, one after the other."""
    taken = value[rows.to(value.device), columns.to(value.device)]
    return taken if dtype is None else taken.to(dtype)


def take_mean(value, mask, dtype):
    """The mean over each row's selected positions, accumulated in float32 at least."""
    weights = mask.to(value.device)
    wide = torch.promote_types(value.dtype, torch.float32)
    total = torch.einsum("bs,bsd->bd", weights.to(wide), value.to(wide))
    mean = total / weights.sum(dim=1, keepdim=True).to(wide)
    return mean.to(value.dtype if dtype is None else dtype)


def read_out(value, norm, head):
    """Final norm and unembedding of a state, ``head(norm(x))``, with the model's own modules."""
    return head(norm(value))


def first(value):
    """The tensor of a module's output, which some modules give alone and some first in a tuple."""
    return value[0] if isinstance(value, tuple) else value


def put_first(value, new):
    """A module's output with its tensor replaced."""
    return (new, *value[1:]) if isinstance(value, tuple) else new


def follow(steps, saved):
    """Go through the steps in forward order: (envoy, side, changes, readers)."""
    for envoy, side, changes, readers in steps:
        output = envoy.input if side == "input" else envoy.output
        value = first(output)
        for function, arguments in changes:
            value = function(value, *arguments)
        if changes and side == "input":
            envoy.input = value
        elif changes:
            envoy.output = put_first(output, value)
        for key, function, arguments in readers:
            saved[key] = function(value, *arguments)


# Around the trace --------------------------------------------------------------------------------------------------------


def run_forward(
    vlm: VLM, batch: Batch, edits: Sequence[Edit] = (), reads: Sequence[Read] = (), logits: str | None = "last"
) -> dict[Any, Tensor]:
    """One forward pass: the value of each read under its key, and under ``"logits"`` the logits.

    `logits` is "last" (of each row's last real token, `[batch, vocab]`), "all" (`[batch, seq, vocab]`) or None (not
    computed further than the last read needs).
    """
    steps = _schedule(vlm, edits, reads)
    model = vlm.nnsight
    inputs = vlm.inputs_of(batch)
    last = batch.positions["last"]
    at_end = bool(last[:, -1].all())
    if logits == "last" and at_end and vlm.accepts("logits_to_keep"):
        inputs = {**inputs, "logits_to_keep": 1}
    rows, columns = last.nonzero(as_tuple=True)
    with torch.no_grad(), model.trace(**inputs, **vlm.trace_options) as tracer:
        saved = nnsight.save({})
        follow(steps, saved)
        if logits is None:
            tracer.stop()
        elif logits == "all":
            saved["logits"] = model.output.logits
        elif at_end:
            saved["logits"] = model.output.logits[:, -1]
        else:
            saved["logits"] = take_each(model.output.logits, rows, columns, None)
    return dict(saved)


def run_generate(vlm: VLM, batch: Batch, edits: Sequence[Edit], **options: Any) -> Tensor:
    """Greedy generation, the prompt's forward pass edited: the ids of prompt and continuation `[batch, seq]`.

    Edits act on the positions of the prompt; later tokens see them through keys and values.
    """
    steps = _schedule(vlm, edits, ())
    model = vlm.nnsight
    inputs = vlm.inputs_of(batch)
    with torch.no_grad(), model.generate(**inputs, **options, **vlm.trace_options) as tracer:
        follow(steps, {})
        ids = nnsight.save(tracer.result)
    return ids


def _schedule(vlm: VLM, edits: Sequence[Edit], reads: Sequence[Read]) -> list[tuple[Any, str, list[Any], list[Any]]]:
    """Edits and reads as the steps of `follow`: one visit to each site of each layer, in forward order."""
    changes: dict[tuple[int, int], list[Any]] = defaultdict(list)
    readers: dict[tuple[int, int], list[Any]] = defaultdict(list)
    for edit in edits:
        changes[_when(vlm, edit.layer, edit.site)].append((edit.function, edit.arguments))
    for read in reads:
        readers[_when(vlm, read.layer, read.site)].append((read.key, read.function, read.arguments))
    sites = list(SITES)
    steps = []
    for layer, order in sorted({*changes, *readers}):
        part, side = SITES[sites[order]]
        steps.append((_envoy(vlm, layer, part), side, changes[layer, order], readers[layer, order]))
    return steps


def _when(vlm: VLM, layer: int, site: str) -> tuple[int, int]:
    if site not in SITES:
        raise InputError(f"site={site!r} is unknown: use one of {', '.join(SITES)}")
    return vlm.layer_indices([layer])[0], _ORDER[site]


def _envoy(vlm: VLM, layer: int, part: str | None) -> Any:
    """The envoy of a layer, or of its attention or MLP: the child of the layer that is called so."""
    envoy = vlm.layers[layer]
    if part is None:
        return envoy
    words = {"attention": ("self_attn", "attn", "attention"), "mlp": ("mlp", "feed_forward", "ffn")}[part]
    module = resolve(vlm.model, f"{vlm.structure.layers}.{layer}")
    for name in words:
        if hasattr(module, name):
            return getattr(envoy, name)
    raise InputError(f"layer {layer} of {vlm.name!r} has no {part} of its own: its site is not to be had")
