"""Proofs of a layout by effect: each claim of `structure` is tried on the model itself.

On text alone, when a model is loaded. *layers*: every layer runs once, in order, on states [batch, position, width].
*readout*: norm, head and the logit scaling make the model's own logits of the last state. *identity*: writing every
state back unchanged changes nothing. *effect*: writing another state changes the logits, at every layer. *sites*:
attn_out and mlp_out add up to the stream. *last*: the logits depend on the last real token and on no padding, on either
side. On the first batch with an image: *image*: another picture changes the states that enter layer 0 at the image
positions and nowhere else, and the same picture changes nothing. A model that takes no images has no such proof.

Sites with heads are proved when one is first used, see `interp.models.layout.heads` and `interp.models.layout.patterns`.

A proof that could not be tried is "pending", never "passed". A model that fails one is refused when it is loaded. The
measurements on the way (see `interp.models.layout.additions`) become the traits of the model's `structure`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp.displays.brief import WIDTH, shortened
from interp.errors import InputError
from interp.models.batches.batch import Batch
from interp.models.layout.additions import ROUNDINGS, solve_readout, solve_sum, tolerance, visits_to_parts
from interp.models.layout.heads import prove_heads
from interp.models.layout.image_positions import (
    apart,
    images_see_later_tokens,
    moved_by_pictures,
    moved_by_projector,
)
from interp.models.layout.patterns import prove_pattern, prove_plain_means
from interp.models.layout.tower_weights import prove_tower_weights
from interp.models.layout.trials import padded_on_the_other_side, trials_for
from interp.models.running.core import Core
from interp.models.running.finite import holds_no_numbers
from interp.models.running.places import HEADED
from interp.models.running.readout import Readout
from interp.models.running.sinks import measure_usual_norms
from interp.models.running.steps import Edit, Read, disturb, take_each, whole
from interp.models.running.trace import (
    Visit,
    cause_not_finite,
    run_for_visits,
    run_forward,
    run_unrefused,
    run_until_layers,
)
from interp.results import Result, StoredValue

if TYPE_CHECKING:
    import pandas as pd

Outcome = Literal["passed", "failed", "pending"]
Traits = dict[str, Any]
# Logits are compared at this many positions of each row.
_POSITIONS_COMPARED = 8
# A model whose runs differ passes `identity` if some write-back is as near to some run as two runs are to each other. For a
# write-back that changes nothing, these 16 passes are draws of one kind (the write-backs repeat the first run's states, so
# they are if anything nearer to it). The 9 runs must all be nearer to each other than to any of the 7 write-backs for a
# refusal. Of the C(16, 9) = 11,440 choices of 9 draws at most one can have that property, since any two share a draw. So
# whatever the noise is, an innocent model is refused at most once in 11,440 loads; in a million simulated loads each, 0
# times for Gaussian noise in one logit, once for Cauchy noise, 31 times for a bit that flips in half of the passes. A
# write-back that shifts some logit by over twice the largest difference between two runs is always refused.
_RUNS, _REWRITES = 9, 7
PROOFS = ("layers", "readout", "identity", "effect", "sites", "last", "image")


@dataclass(frozen=True)
class Check(StoredValue):
    """The outcome of one proof, the measured error, its bound, and the result in words."""

    name: str
    outcome: Outcome
    error: float
    bound: str
    detail: str

    @property
    def measured(self) -> str:
        """The error as text."""
        return "not measured" if math.isnan(self.error) else f"{self.error:.3g}"


@dataclass(frozen=True)
class CheckReport(Result):
    """The outcomes of all proofs of one model.

    >>> import interp
    >>> interp.load("toy").check().passed
    True
    """

    checks: tuple[Check, ...] = ()

    def __repr__(self) -> str:
        counts = Counter(check.outcome for check in self.checks)
        lines = [f"CheckReport({', '.join(f'{count} {outcome}' for outcome, count in counts.items())})"]
        for each in self.checks:
            what = each.detail if each.outcome == "pending" else f"{each.measured} ({each.bound}), {each.detail}"
            lines.append(shortened(f"  {each.name:<8} {each.outcome}: {' '.join(what.split())}", WIDTH))
        return "\n".join(lines)

    @property
    def passed(self) -> bool:
        """Whether no proof failed; a pending proof, which had nothing to run on, did not fail."""
        return all(check.outcome != "failed" for check in self.checks)

    def to_frame(self) -> pd.DataFrame:
        import pandas as pd

        return pd.DataFrame(map(asdict, self.checks), columns=["name", "outcome", "error", "bound", "detail"])


def run_checks(core: Core, batch: Batch | None = None) -> tuple[CheckReport, Traits]:
    """Try every proof, and return the report and the traits that were measured on the way, by field of `Structure`.

    Without a `batch` the proofs run on a few token ids, and where there is a processor on a small picture. Raises `InputError`
    where the model's states are not finite, with the layer.
    """
    trials = trials_for(core, batch)
    names = [name for name in PROOFS if core.takes_images or name != "image"]
    if trials.batch is None:
        # A batch with an image may still show what a model needs one for; a language model alone has no other batch.
        failed = () if core.takes_images else (_check("layers", False, float("nan"), "a run", trials.reason),)
        return CheckReport((*failed, *(_pending(name, trials.reason) for name in names[len(failed) :]))), {}
    layers, visits = _layers(core, trials.batch)
    if layers.outcome == "failed":
        others = (_pending(name, "not tried: the layers are not where they should be") for name in names[1:])
        return CheckReport((layers, *others)), {}
    untouched = _untouched(core, trials.batch)
    readout, traits = _readout(core, untouched)
    if holds_no_numbers(untouched["logits"]):
        others = (_pending(name, "not tried: the logits are not finite") for name in PROOFS[2:])
        return CheckReport((layers, readout, *others)), {}
    sites, additions = _sites(core, visits, untouched)
    traits |= {**additions, "trims": _trims(core, trials.batch)}
    checks = [layers, readout, _identity(core, trials.batch, untouched), _effect(core, trials.batch, untouched)]
    checks += [*sites, _last(core, trials.batch)]
    if trials.pictured is None:
        checks += [_pending("image", trials.reason)] if core.takes_images else []
    else:
        checks.append(_image(core, trials.pictured))
        traits |= _measure_images(core, trials.pictured)
    return CheckReport(tuple(checks)), traits


# Traits alone ------------------------------------------------------------------------------------------------------------


def measure(core: Core, trait: str) -> tuple[Traits, str]:
    """The trait, and those that one measurement brings with it; empty where it could not be measured, with the reason."""
    trials, last = trials_for(core), core.checked_on
    on_images = trait in ("continuous", "bidirectional_images", "vision_weighed")
    batch = trials.pictured if on_images else trials.batch
    if batch is None and last is not None and (last.has_images or not on_images):
        batch = last
    if batch is None:
        return {}, trials.reason
    traits, problem = _MEASUREMENTS[trait](core, batch)
    return traits, problem or trials.reason


def _measure_readout(core: Core, batch: Batch) -> tuple[Traits, str]:
    check, traits = _readout(core, _untouched(core, batch))
    return traits, check.detail


def _measure_additions(core: Core, batch: Batch) -> tuple[Traits, str]:
    return _sites(core, _layers(core, batch)[1], _untouched(core, batch))[1], ""


# The measurement of each trait: other traits that it brings, and a reason of its own where it brings none.
_MEASUREMENTS: Mapping[str, Callable[[Core, Batch], tuple[Traits, str]]] = {
    "readout": _measure_readout,
    **dict.fromkeys(("attn_out", "mlp_out", "mid"), _measure_additions),
    **dict.fromkeys(HEADED, lambda core, batch: (prove_heads(core, batch), "")),
    "pattern": lambda core, batch: ({"pattern": prove_pattern(core, batch)}, ""),
    "weighed": lambda core, batch: ({"weighed": prove_plain_means(core, batch)}, ""),
    "trims": lambda core, batch: ({"trims": _trims(core, batch)}, ""),
    "usual_norms": lambda core, batch: ({"usual_norms": measure_usual_norms(core, batch)}, ""),
    **dict.fromkeys(("continuous", "bidirectional_images"), lambda core, batch: (_measure_images(core, batch), "")),
    "vision_weighed": lambda core, batch: ({"vision_weighed": prove_tower_weights(core, batch)}, ""),
}


# The proofs --------------------------------------------------------------------------------------------------------------


def _check(name: str, holds: bool, error: float, bound: str, detail: str) -> Check:
    return Check(name, "passed" if holds else "failed", error, bound, detail)


def _pending(name: str, detail: str) -> Check:
    return Check(name, "pending", float("nan"), "", detail)


def _difference(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).abs().max().item()


def _compared(batch: Batch) -> Tensor:
    """The last real positions of each row, where logits are compared, Bool `[batch, seq]`: a vocabulary is wide."""
    real = batch.positions["all"]
    return real & (real.flip(1).cumsum(1).flip(1) <= _POSITIONS_COMPARED)


def _untouched(core: Core, batch: Batch) -> dict[Any, Tensor]:
    """The model as it is: the state that enters each layer, ``head(norm(state))`` of the last state, and the logits.

    Raises `InputError` where states or weights are not finite: no proof can be tried on them.
    """
    depth, mask = core.structure.n_layers, _compared(batch)
    reads = [Read(("before", layer), "resid_pre", layer, whole) for layer in range(depth)]
    places = mask.nonzero(as_tuple=True)
    reads.append(Read("plain", "resid_post", depth - 1, _head_of_norm, (*places, core.norm, core.head)))
    states = run_unrefused(core, batch, reads=reads, logits=mask)
    cause = cause_not_finite(core, batch) if holds_no_numbers(states["logits"]) else ""
    if cause:
        raise InputError(cause)
    return states


def _head_of_norm(value, rows, columns, norm, head):
    return head(norm(take_each(value, rows, columns, None)))


def _trims(core: Core, batch: Batch) -> bool:
    """Whether some layer leaves out the other positions when only the last logits are asked for."""
    if not core.accepts("logits_to_keep"):
        return False
    visits = run_for_visits(core, batch.inputs, list(core.layers), logits_to_keep=1)
    states = [visits_to_layer[0].output for visits_to_layer in visits.values()]
    return any(state is None or state.shape[1] != batch.inputs["input_ids"].shape[1] for state in states)


def _layers(core: Core, batch: Batch) -> tuple[Check, dict[int, dict[str, Any]]]:
    """The proof, and the visits to each layer and its children."""
    paths = {layer: f"{core.structure.layers}.{layer}" for layer in range(core.structure.n_layers)}
    visits = visits_to_parts(core, batch, paths, nested=False)
    shape = (*batch.inputs["input_ids"].shape, core.structure.d_model)
    problem = next(
        (p for layer, parts in visits.items() if (p := _problem_of_layer(layer, parts.get("", []), shape))), ""
    )
    detail = problem or f"{len(visits)} layers run once each, in order, on states [batch, position, {shape[-1]}]"
    return _check("layers", not problem, float(bool(problem)), "== 0", detail), visits


def _problem_of_layer(layer: int, visits: Sequence[Visit], shape: tuple[int, ...]) -> str:
    if len(visits) != 1:
        return f"layer {layer} ran {len(visits)} times in one forward pass, expected once"
    shapes = [None if state is None else tuple(state.shape) for state in (visits[0].input, visits[0].output)]
    return "" if shapes == [shape, shape] else f"layer {layer} is given {shapes[0]}, expected states {shape}"


def _readout(core: Core, untouched: dict[Any, Tensor]) -> tuple[Check, Traits]:
    """The proof, and the traits it brings where it holds."""
    plain, logits = untouched["plain"].cpu(), untouched["logits"].cpu()
    bound, size = tolerance(logits.dtype), logits.shape[-1]
    error, traits = float("inf"), {}
    detail = "norm and head on the last state do not give the model's own logits"
    if logits.isnan().any() or logits.isposinf().any():
        detail = f"the logits are not finite in {logits.dtype}"
    elif plain.shape[-1] >= size:
        scaling = solve_readout(plain, logits, core.model.config.get_text_config(decoder=True))
        identity = torch.nn.Identity()
        replica = Readout(identity, identity, size, scaling).logits(plain.float())
        answers = logits > torch.finfo(logits.dtype).min / 2
        error = (replica - logits.float()).abs()[answers].max().item() / max(1.0, logits[answers].abs().max().item())
        if error <= bound:
            traits = {"readout": scaling, "vocab_size": size}
            detail = f"norm and head on the last state give the model's own logits ({scaling.kind})"
    return _check("readout", bool(traits), error, f"<= {bound:.1e}", detail), traits


def _rewrite(core: Core, batch: Batch, states: dict[int, Tensor]) -> Tensor:
    edits = [Edit("resid_pre", layer, _replace, (state,)) for layer, state in states.items()]
    return run_forward(core, batch, edits, logits=_compared(batch))["logits"]


def _replace(value, new):
    return new.to(value.device, value.dtype)


def _identity(core: Core, batch: Batch, untouched: dict[Any, Tensor]) -> Check:
    """Writing every state back changes nothing, or no more than running the model again, see `_RUNS`."""
    states = {layer: untouched["before", layer] for layer in range(core.structure.n_layers)}
    runs, rewrites = [untouched["logits"]], [_rewrite(core, batch, states)]
    error, noise = _difference(rewrites[0], runs[0]), 0.0
    # Further runs only lower the error and raise the noise, so the first that settles it is the last.
    while error > noise and len(runs) < _RUNS:
        runs.append(_untouched(core, batch)["logits"])
        noise = max(noise, *(_difference(runs[-1], run) for run in runs[:-1]))
        error = min(error, *(_difference(runs[-1], rewrite) for rewrite in rewrites))
        if error > noise and len(rewrites) < _REWRITES:
            rewrites.append(_rewrite(core, batch, states))
            error = min(error, *(_difference(rewrites[-1], run) for run in runs))
    change = (
        "nothing" if error == 0 else "the logits by no more than a second run does" if error <= noise else "the logits"
    )
    detail = f"writing every state back as it was changes {change}"
    return _check("identity", error <= noise, error, f"<= {noise:.3g}", detail)


def _effect(core: Core, batch: Batch, untouched: dict[Any, Tensor]) -> Check:
    """Another state at any one layer changes the logits."""
    others = [{layer: untouched["before", layer].roll(1, dims=-1)} for layer in range(core.structure.n_layers)]
    effects = [_difference(_rewrite(core, batch, other), untouched["logits"]) for other in others]
    smallest = min(effects)
    where = "at every layer" if smallest > 0 else f"but not at layer {effects.index(smallest)}"
    return _check("effect", smallest > 0, smallest, "> 0", f"writing another state changes the logits, {where}")


def _sites(
    core: Core, visits: Mapping[int, dict[str, Any]], untouched: dict[Any, Tensor]
) -> tuple[list[Check], Traits]:
    """The sums that hold become sites of this model; a sum that does not hold costs the site, not the model.

    A model without any of them claims nothing, so its report has no proof of them.
    """
    structure = core.structure
    sums = [
        solve_sum(parts, untouched["before", layer].cpu(), structure.attn[layer], structure.mlp[layer])
        for layer, parts in visits.items()
    ]
    attn_out, mlp_out = tuple(each.attn for each in sums), tuple(each.mlp for each in sums)
    traits = {"attn_out": attn_out, "mlp_out": mlp_out, "mid": tuple(each.mid for each in sums)}
    counts = [sum(added is not None for added in site) for site in (attn_out, mlp_out)]
    if not any(counts):
        return [], traits
    error = max((each.error for each in sums if each.error <= ROUNDINGS), default=0.0)
    detail = f"add up to the stream: attn_out in {counts[0]} of {len(sums)} layers, mlp_out in {counts[1]}"
    return [_check("sites", True, error, f"<= {ROUNDINGS:g} roundings", detail)], traits


def _last(core: Core, batch: Batch) -> Check:
    """Noise in the state of the last token moves the logits there, noise in the padding's does not, on either side."""
    sides = [batch, core.maker.from_encoding(padded_on_the_other_side(batch.inputs))]
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


def _image(core: Core, batch: Batch) -> Check:
    """Another picture, and noise on the projector's output, move image positions alone, and some in every row that has
    any. Image positions that stay hold a constant (a newline between tiles) or, in towers that quantise, the same code.
    The same picture moves nothing, but for rounding.
    """
    one, other = (run_until_layers(core, batch.inputs) for _ in range(2))
    drawn, bound = apart(one, other), max(1e-3, 8 * torch.finfo(one.dtype).eps)
    if drawn > bound:
        random = "two runs of one picture differ: its features are drawn at random, as with dropout that is always on"
        return _check("image", False, drawn, f"<= {bound:.1e}", random)
    expected = batch.positions["image"]
    projected = moved_by_projector(core, batch.inputs, other)
    moved = moved_by_pictures(core, batch.inputs, one) | projected
    others, inside = int((moved & ~expected).sum()), int((moved & expected).sum())
    wrong = others + int((expected.any(dim=1) & ~moved.any(dim=1)).sum())
    through = "the pixels and the projector" if projected.any() else "the pixels"
    detail = (
        f"{through} move state 0 at {inside} of {int(expected.sum())} image positions and at {others or 'no'} others"
    )
    return _check("image", wrong == 0 and bool(expected.any()), float(wrong), "== 0", detail)


def _measure_images(core: Core, batch: Batch) -> Traits:
    """The traits that only a batch with images shows. Continuous: each layer gets the output of the one before it."""
    depth = core.structure.n_layers
    reads = [Read(("before", layer), "resid_pre", layer, whole) for layer in range(1, depth)]
    reads += [Read(("after", layer), "resid_post", layer, whole) for layer in range(depth - 1)]
    states = run_forward(core, batch, reads=reads, logits=None)
    pairs = ((states["after", layer].cpu(), states["before", layer + 1].cpu()) for layer in range(depth - 1))
    return {
        "continuous": all(torch.equal(after, before) for after, before in pairs),
        "bidirectional_images": images_see_later_tokens(core, batch),
    }
