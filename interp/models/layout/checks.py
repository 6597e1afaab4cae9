"""Proving a layout by effect: what `structure` claims is tried on the model itself.

On text alone, when a model is loaded. *layers*: every layer runs once, in order, on states [batch, position, width].
*readout*: norm, head and what follows them make the model's own logits of the last state. *identity*: writing every
state back as it was changes nothing. *effect*: writing another state changes the logits, at every layer. *sites*: what
the toolkit calls attn_out and mlp_out adds up to the stream. *last*: the logits depend on the last real token and on no
padding, wherever that stands. On the first batch with an image: *image*: another picture changes what enters layer 0
at the image positions and nowhere else.

Sites with heads are proved when one is first used, see `interp.models.layout.heads` and `interp.models.layout.patterns`.

A proof that could not be tried is "pending", never "passed". A model that fails one is refused when it is loaded. What
is measured on the way (see `interp.models.layout.additions`) becomes the traits of the model's `structure`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp.errors import InputError
from interp.models.layout.additions import ROUNDINGS, observe, solve_readout, solve_sum, tolerance
from interp.models.layout.heads import prove_heads
from interp.models.layout.image_positions import moved_by_pictures, moved_by_projector, sees_behind
from interp.models.layout.patterns import prove_pattern, prove_weighed
from interp.models.layout.tower_weights import prove_weighings
from interp.models.running.places import HEADED
from interp.models.running.readout import Readout
from interp.models.running.steps import Edit, Read, disturb, take_each, whole
from interp.models.running.trace import run_for_visits, run_forward
from interp.results import Result, StoredValue

if TYPE_CHECKING:
    import pandas as pd

    from interp.models.batches.batch import Batch
    from interp.models.running.core import Core

Outcome = Literal["passed", "failed", "pending"]
# Logits are compared at this many positions of each row.
_POSITIONS_JUDGED = 8
PROOFS = ("layers", "readout", "identity", "effect", "sites", "last", "image")


@dataclass(frozen=True)
class Check(StoredValue):
    """One proof: its outcome, the error that was measured, the bound it was held against, and what it says."""

    name: str
    outcome: Outcome
    error: float
    bound: str
    detail: str


@dataclass(frozen=True)
class CheckReport(Result):
    """All proofs of one model."""

    checks: tuple[Check, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether no proof failed; one that is pending (nothing to try it on) is no failure."""
        return all(check.outcome != "failed" for check in self.checks)

    def to_frame(self) -> pd.DataFrame:
        import pandas as pd

        columns = ["name", "outcome", "error", "bound", "detail"]
        return pd.DataFrame([[getattr(check, column) for column in columns] for check in self.checks], columns=columns)


@dataclass(frozen=True)
class Findings:
    """What trying a model brought: its proofs, and the traits that were measured on the way, by field of `Structure`."""

    report: CheckReport
    traits: dict[str, Any]


def run_checks(core: Core, batch: Batch | None = None) -> Findings:
    """Try every proof on `batch`; without one, on a few token ids, and where there is a processor on a small picture."""
    tried, pictured, why = _tried_on(core, batch)
    if tried is None:
        return Findings(CheckReport(tuple(_pending(name, why) for name in PROOFS)), {})
    layers, visits = _layers(core, tried)
    if layers.outcome == "failed":
        others = (_pending(name, "not tried: the layers are not as found") for name in PROOFS[1:])
        return Findings(CheckReport((layers, *others)), {})
    seen = _untouched(core, tried)
    readout, traits = _readout(core, seen)
    sites, added = _sites(core, visits, seen)
    traits |= {**added, "trims": _trims(core, tried)}
    checks = [layers, readout, _identity(core, tried, seen), _effect(core, tried, seen), *sites, _last(core, tried)]
    if pictured is None:
        checks.append(_pending("image", why))
    else:
        checks.append(_image(core, pictured))
        traits |= _measure_images(core, pictured)
    return Findings(CheckReport(tuple(checks)), traits)


def measure(core: Core, trait: str) -> tuple[dict[str, Any], str]:
    """The trait, and what comes with it, measured alone; empty where it could not be, with the reason."""
    tried, pictured, why = _tried_on(core, None)
    tried = tried or core.checked_on
    if trait in ("continuous", "bidirectional_images"):
        return ({}, why) if pictured is None else (_measure_images(core, pictured), why)
    if trait == "vision_weighed":
        last = core.checked_on
        pictured = pictured or (last if last is not None and last.has_images else None)
        return ({}, why) if pictured is None else ({trait: prove_weighings(core, pictured)}, why)
    if tried is None:
        return {}, why
    if trait == "trims":
        return {"trims": _trims(core, tried)}, why
    if trait in HEADED:
        return dict(prove_heads(core, tried)), why
    if trait == "pattern":
        return {"pattern": prove_pattern(core, tried)}, why
    if trait == "weighed":
        return {"weighed": prove_weighed(core, tried)}, why
    seen = _untouched(core, tried)
    if trait == "readout":
        check, traits = _readout(core, seen)
        return traits, check.detail
    return _sites(core, _layers(core, tried)[1], seen)[1], why


def _tried_on(core: Core, batch: Batch | None) -> tuple[Batch | None, Batch | None, str]:
    """What most proofs are tried on, what those about images are, None where there is nothing, and why."""
    if batch is not None:
        return (
            batch,
            batch if batch.has_images else None,
            "no image was in the batch: check(batch) with one tries it",
        )
    text, on_text = _text_batch(core)
    pictured, on_picture = _small_picture(core)
    return text or pictured, pictured, on_picture if text else f"{on_text}; {on_picture}"


# What the proofs are tried on --------------------------------------------------------------------------------------------


def _in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _text_batch(core: Core) -> tuple[Batch | None, str]:
    """Two rows of ordinary token ids, padded, so that neither processor nor picture is needed; or None, and why the
    model does not run on text alone."""
    ids = torch.arange(core.structure.vocab_size)
    special = getattr(core.tokenizer, "all_special_ids", [])
    image = [] if core.structure.image_token_id is None else [core.structure.image_token_id]
    ordinary = ids[~torch.isin(ids, torch.tensor([*special, *image], dtype=ids.dtype))]
    # Ids that mean something stand at the ends of a vocabulary, and without a tokenizer nothing else tells them.
    chosen = ordinary[torch.linspace(len(ordinary) // 10, len(ordinary) * 3 // 4, 16).long()].reshape(2, 8)
    mask = torch.ones_like(chosen)
    mask[1, :3] = 0
    batch = core.maker.from_encoding({"input_ids": chosen, "attention_mask": mask})
    if core.device.type == "meta":
        return batch, ""
    try:
        with torch.no_grad():
            core.model(**core.inputs_of(batch))
    except Exception as error:  # each model that wants an image says so in its own way
        return None, f"the model does not run on text alone ({_in_one_line(error)})"
    return batch, ""


def _small_picture(core: Core) -> tuple[Batch | None, str]:
    """Noise of 64 x 48 pixels and a few words, where there is a processor; or None, and why there is no such batch.

    A processor that does not belong to the model is an error here. One that wants a prompt of another kind is none: the
    proof waits for the first batch with an image.
    """
    from PIL import Image

    if getattr(core.processor, "image_processor", None) is None:
        return None, "there is no image processor: check(batch) with an image tries it"
    noise = torch.randint(0, 256, (48, 64, 3), generator=torch.Generator().manual_seed(0))
    picture = Image.fromarray(noise.byte().numpy())
    try:
        batch = core.maker.prepare(["<image> a b", "<image> a"], [picture, picture], chat=False)
        run_forward(core, batch)
    except InputError:
        raise
    except Exception as error:  # whatever a processor or a model makes of a prompt that is not its own
        return None, f"a small picture could not be run ({_in_one_line(error)}): check(batch) with an image tries it"
    return batch, ""


# The proofs --------------------------------------------------------------------------------------------------------------


def _check(name: str, holds: bool, error: float, bound: str, detail: str) -> Check:
    return Check(name, "passed" if holds else "failed", error, bound, detail)


def _pending(name: str, detail: str) -> Check:
    return Check(name, "pending", float("nan"), "", detail)


def _difference(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


def _judged(batch: Batch) -> Tensor:
    """Where logits are compared, Bool `[batch, seq]`: the last real positions of each row. A vocabulary is wide."""
    real = batch.positions["all"]
    return real & (real.flip(1).cumsum(1).flip(1) <= _POSITIONS_JUDGED)


def _untouched(core: Core, batch: Batch) -> dict[Any, Tensor]:
    """The model as it is: what enters each layer, ``head(norm(state))`` of the last state, and the logits."""
    depth, judged = core.structure.n_layers, _judged(batch)
    reads = [Read(("before", layer), "resid_pre", layer, whole) for layer in range(depth)]
    places = judged.nonzero(as_tuple=True)
    reads.append(Read("plain", "resid_post", depth - 1, _head_of_norm, (*places, core.norm, core.head)))
    return run_forward(core, batch, reads=reads, logits=judged)


def _head_of_norm(value, rows, columns, norm, head):
    return head(norm(take_each(value, rows, columns, None)))


def _trims(core: Core, batch: Batch) -> bool:
    """Whether asking for the last logits alone makes some layer leave out the other positions."""
    if not core.accepts("logits_to_keep"):
        return False
    visits = run_for_visits(core, batch.inputs, list(core.layers), logits_to_keep=1)
    gave = [seen[0].output for seen in visits.values()]
    return any(state is None or state.shape[1] != batch.inputs["input_ids"].shape[1] for state in gave)


def _layers(core: Core, batch: Batch) -> tuple[Check, list[dict[str, Any]]]:
    visits = observe(core, batch)
    shape = (*batch.inputs["input_ids"].shape, core.structure.d_model)
    wrong = None
    for layer, seen in enumerate(visits):
        times = len(seen.get("", ()))
        if times != 1:
            wrong = f"layer {layer} ran {times} times in one forward pass, expected once"
        elif any(state is None or tuple(state.shape) != shape for state in (seen[""][0].input, seen[""][0].output)):
            given = seen[""][0].input
            wrong = f"layer {layer} is given {None if given is None else tuple(given.shape)}, expected states {shape}"
        if wrong:
            break
    detail = wrong or f"{len(visits)} layers run once each, in order, on states [batch, position, {shape[-1]}]"
    return _check("layers", wrong is None, 0.0 if wrong is None else 1.0, "== 0", detail), visits


def _readout(core: Core, seen: dict[Any, Tensor]) -> tuple[Check, dict[str, Any]]:
    """The proof, and the traits it brings where it holds."""
    plain, logits = seen["plain"].cpu(), seen["logits"].cpu()
    bound = tolerance(logits.dtype)
    if logits.isnan().any() or logits.isposinf().any():
        return _check(
            "readout", False, float("inf"), f"<= {bound:.1e}", f"the logits are not finite in {logits.dtype}"
        ), {}
    wrong = "norm and head on the last state do not give the model's own logits"
    if plain.shape[-1] < logits.shape[-1]:
        return _check("readout", False, float("inf"), f"<= {bound:.1e}", wrong), {}
    readout = solve_readout(plain, logits, core.model.config.get_text_config(decoder=True))
    as_it_is, size = torch.nn.Identity(), logits.shape[-1]
    made = Readout(as_it_is, as_it_is, size, readout).logits(plain.float())
    answers = logits > torch.finfo(logits.dtype).min / 2
    error = (made - logits.float()).abs()[answers].max().item() / max(1.0, logits[answers].abs().max().item())
    right = f"norm and head on the last state give the model's own logits ({readout.kind})"
    holds = error <= bound
    traits = {"readout": readout, "vocab_size": size} if holds else {}
    return _check("readout", holds, error, f"<= {bound:.1e}", right if holds else wrong), traits


def _rewrite(core: Core, batch: Batch, states: dict[int, Tensor]) -> Tensor:
    edits = [Edit("resid_pre", layer, _replace, (state,)) for layer, state in states.items()]
    return run_forward(core, batch, edits, logits=_judged(batch))["logits"]


def _replace(value, new):
    return new.to(value.device, value.dtype)


def _identity(core: Core, batch: Batch, seen: dict) -> Check:
    """Exactly nothing changes, or no more than when the model is simply run twice, for one that is not deterministic."""
    states = {layer: seen["before", layer] for layer in range(core.structure.n_layers)}
    error = _difference(_rewrite(core, batch, states), seen["logits"])
    drift = 0.0 if error == 0 else _difference(_untouched(core, batch)["logits"], seen["logits"])
    says = "nothing" if error == 0 else "as little as running twice" if error <= drift else "the logits"
    return _check(
        "identity", error <= drift, error, f"<= {drift:.3g}", f"writing every state back as it was changes {says}"
    )


def _effect(core: Core, batch: Batch, seen: dict) -> Check:
    effects = []
    for layer in range(core.structure.n_layers):
        rolled = seen["before", layer].roll(1, dims=-1)
        effects.append(_difference(_rewrite(core, batch, {layer: rolled}), seen["logits"]))
    smallest = min(effects)
    where = "at every layer" if smallest > 0 else f"but not at layer {effects.index(smallest)}"
    return _check("effect", smallest > 0, smallest, "> 0", f"writing another state changes the logits, {where}")


def _sites(core: Core, visits: list[dict[str, Any]], seen: dict[Any, Tensor]) -> tuple[list[Check], dict[str, Any]]:
    """The sums that hold become the sites this model has; a sum that does not hold costs the site, not the model.

    A model without any of them claims nothing, so there is no proof of it in the report.
    """
    parts = zip(visits, core.structure.attn, core.structure.mlp, strict=True)
    sums = [
        solve_sum(of_layer, seen["before", layer].cpu(), attn, mlp) for layer, (of_layer, attn, mlp) in enumerate(parts)
    ]
    attn_out, mlp_out = tuple(found.attn for found in sums), tuple(found.mlp for found in sums)
    traits = {"attn_out": attn_out, "mlp_out": mlp_out, "mid": tuple(found.mid for found in sums)}
    counts = [sum(added is not None for added in site) for site in (attn_out, mlp_out)]
    if not any(counts):
        return [], traits
    proved = max((found.error for found in sums if found.error <= ROUNDINGS), default=0.0)
    detail = f"add up to the stream: attn_out in {counts[0]} of {len(sums)} layers, mlp_out in {counts[1]}"
    return [_check("sites", True, proved, f"<= {ROUNDINGS:g} roundings", detail)], traits


def _last(core: Core, batch: Batch) -> Check:
    """Noise in the state of the last token moves the logits there, noise in the padding's does not, on either side."""
    sides = [batch, core.maker.from_encoding(_padded_on_the_other_side(batch.inputs))]
    effect = min(float(_moved_by_noise(core, side, "last").min()) for side in sides)
    leak = max(float(_moved_by_noise(core, side, "padding").max()) for side in sides)
    bound = tolerance(run_forward(core, batch)["logits"].dtype)
    detail = f"the logits depend on the last real token ({effect:.2g}) and not on padding, on either side"
    if effect <= leak:
        detail = "noise in the state of the last real token does not move its logits"
    if leak > bound:
        detail = "noise in the padding moves the logits: rows of different length cannot share a batch"
    return _check("last", leak <= bound and effect > leak, leak, f"<= {bound:.1e}", detail)


def _moved_by_noise(core: Core, batch: Batch, positions: str) -> Tensor:
    """How far noise in state 0 at these positions moves each row's last logits, relative to the largest of them."""
    mask = batch.positions[positions]
    noise = [Edit("resid_pre", 0, disturb, (mask,))] if mask.any() else []
    before, after = (run_forward(core, batch, edits)["logits"] for edits in ([], noise))
    answers = before > torch.finfo(before.dtype).min / 2  # some models overwrite logits with the lowest number
    moved = (after.float() - before.float()).abs().where(answers, 0.0)
    return moved.amax(dim=-1) / before[answers].abs().max().float().clamp(min=1)


def _padded_on_the_other_side(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same rows with their padding at the other end: whatever is given for each token is turned around it."""
    mask = inputs.get("attention_mask")
    if mask is None or bool(mask.all()):
        return inputs
    padding = (mask == 0).sum(dim=1)
    shifts = torch.where(mask[:, 0] == 0, -padding, padding).tolist()
    turned = {}
    for name, tensor in inputs.items():
        if name == "position_ids":  # they are counted again
            continue
        by_token = tensor.shape == mask.shape
        turned[name] = torch.stack([row.roll(n) for row, n in zip(tensor, shifts, strict=True)]) if by_token else tensor
    return turned


def _image(core: Core, batch: Batch) -> Check:
    """Another picture, and noise on what the projector gives, must move image positions alone, some in every row that
    has any. Those that stay hold a constant (a newline between tiles) or, in towers that quantise, the same code.
    """
    expected = batch.positions["image"]
    projected = moved_by_projector(core, batch.inputs)
    moved = moved_by_pictures(core, batch.inputs) | projected
    wrong = int((moved & ~expected).sum()) + int((expected.any(dim=1) & ~moved.any(dim=1)).sum())
    through = "the pixels and the projector" if projected.any() else "the pixels"
    detail = (
        f"{through} move state 0 at {int((moved & expected).sum())} of {int(expected.sum())} image positions and "
        f"at {int((moved & ~expected).sum()) or 'no'} others"
    )
    return _check("image", wrong == 0 and bool(expected.any()), float(wrong), "== 0", detail)


def _measure_images(core: Core, batch: Batch) -> dict[str, Any]:
    """The traits that only a batch with images shows. Continuous: each layer is given what the one before it gave."""
    depth = core.structure.n_layers
    reads = [Read(("before", layer), "resid_pre", layer, whole) for layer in range(1, depth)]
    reads += [Read(("after", layer), "resid_post", layer, whole) for layer in range(depth - 1)]
    seen = run_forward(core, batch, reads=reads, logits=None)
    pairs = ((seen["after", layer].cpu(), seen["before", layer + 1].cpu()) for layer in range(depth - 1))
    return {
        "continuous": all(torch.equal(after, before) for after, before in pairs),
        "bidirectional_images": sees_behind(core, batch),
    }
