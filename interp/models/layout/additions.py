"""Additions to the stream: which module's output each layer adds, and how the head's output becomes logits.

A layer adds the outputs of attention and MLP to the stream. Which module's output is *added* differs between models: the
block's own, that of a norm after it, either of them times a constant. So it is solved for, on one short prompt. One run
records the output of every part of a layer; ``after - before = a * attention + m * mlp`` is a least-squares problem with
two unknowns and thousands of equations. Each equation is weighted by the error that rounding alone may make, so that
neither one feature much larger than the others nor a low precision hides a wrong answer. On the tiny models of the tests,
in float32, the right pair of modules leaves a residue of 0.15 roundings at most, any other pair 2,300 at least. The scale
of the logits is solved for in the same way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.models.batches.batch import Batch
from interp.models.running.core import Core
from interp.models.running.readout import LogitScaling
from interp.models.running.structure import Added, resolve
from interp.models.running.trace import Visit, run_for_visits

# Two ways to compute one sum agree to this many roundings, root mean square over the equations.
ROUNDINGS = 2.0
# The names of one field in different configs: the largest size that a logit can have.
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
# A measured factor stands for a number from which it differs by no more than this.
_NEAR = 1e-3


@dataclass(frozen=True)
class Sum:
    """What a layer adds to the stream, the residue of that sum in roundings, and whether attention and MLP have a state
    between them."""

    attn: Added | None
    mlp: Added | None
    error: float
    mid: bool


def tolerance(dtype: torch.dtype) -> float:
    """The relative error of one computation that runs twice with different shapes in this precision."""
    return max(1e-5, 2 * torch.finfo(dtype).eps)


# What a layer adds -------------------------------------------------------------------------------------------------------


def visits_to_parts(
    core: Core, batch: Batch, paths: Mapping[int, str], nested: bool = True
) -> dict[int, dict[str, list[Visit]]]:
    """Run the model once, and return for the module at each of these dotted paths the visits to it and to its parts.

    The key of the module itself is "", that of a part its dotted path in the module. Without `nested` only the module's
    children count as parts. Parts come in the order in which they began to run.
    """
    envoys, places = [], {}
    for number, path in paths.items():
        module = resolve(core.model, path)
        for name in dict(module.named_modules()) if nested else ["", *dict(module.named_children())]:
            envoy = resolve(core.nnsight, f"{path}.{name}" if name else path)
            envoys.append(envoy)
            places[envoy.path] = number, name
    parts: dict[int, dict[str, list[Visit]]] = {number: {} for number in paths}
    for path, visits in run_for_visits(core, batch.inputs, envoys).items():
        number, name = places[path]
        parts[number][name] = visits
    return parts


def solve_sum(visits: Mapping[str, list[Visit]], before: Tensor, attn: str | None, mlp: str | None) -> Sum:
    """Which parts of a layer make up its addition to the stream, and how exactly; `before` is the state that enters it."""
    after = visits[""][0].output
    if after is None or after.shape != before.shape:
        return Sum(None, None, math.inf, False)
    states, flat = _states(visits, before)
    fits = []
    for pair in itertools.product(*_candidates(list(visits), states, attn, mlp)):
        names = [name for name in pair if name is not None]
        if names:
            fits.append((pair, names, *_fit(before, after, [states[name] for name in names])))
    best = min((error for *_, error in fits), default=math.inf)
    for pair, names, factors, error in fits:
        # Where a norm after a block leaves its output unchanged, both fit: the first is the block itself.
        if error <= min(ROUNDINGS, 1.001 * best + 1e-6) and all(abs(factor) > _NEAR for factor in factors):
            parts = {name: Added(name, factor, name in flat) for name, factor in zip(names, factors, strict=True)}
            first, second = (parts.get(name) if name is not None else None for name in pair)
            return Sum(first, second, error, _has_mid(visits, states, before, first))
    # The MLP's share stays unknown. Attention's is known all the same if some part gets exactly state plus attention.
    for name in dict.fromkeys(pair[0] for pair, *_ in fits):
        alone = None if name is None else Added(name, flat=name in flat)
        if alone is not None and states[alone.module].any() and _has_mid(visits, states, before, alone):
            return Sum(alone, None, best, True)
    return Sum(None, None, best, False)


def _states(visits: Mapping[str, list[Visit]], like: Tensor) -> tuple[dict[str, Tensor], set[str]]:
    """The output of each part that has one vector a position, and the parts whose output has all rows in one axis."""
    states, flat = {}, set()
    for name, visits_to_part in visits.items():
        output = visits_to_part[0].output if name and len(visits_to_part) == 1 else None
        if output is not None and output.shape in (like.shape, like.flatten(0, 1).shape):
            states[name] = output.reshape(like.shape)
            flat |= {name} if output.ndim != like.ndim else set()
    return states, flat


def _candidates(
    order: list[str], states: Mapping[str, Tensor], attn: str | None, mlp: str | None
) -> tuple[list[str | None], list[str | None]]:
    """The parts that may be attention's addition (from it to the MLP), and the MLP's (from it to the layer's end)."""
    start, turn = (order.index(part) if part in order else len(order) for part in (attn, mlp))
    first: list[str | None] = [name for name in order[start:turn] if name in states]
    second: list[str | None] = [name for name in order[turn:] if name in states]
    return first or [None], second or [None]


def _has_mid(
    visits: Mapping[str, list[Visit]], states: Mapping[str, Tensor], before: Tensor, added: Added | None
) -> bool:
    """Whether some part of the layer gets ``before + attention`` as its input; also where attention adds nothing."""
    if added is None:
        return False
    term = states[added.module] * added.scale
    if not term.any():
        return True
    inputs = [visit.input for name, visits_to_part in visits.items() if name for visit in visits_to_part]
    alike = [state for state in inputs if state is not None and state.shape == before.shape]
    return any(residue((state.double() - before - term) / rounding(before, term)) <= ROUNDINGS for state in alike)


def rounding(*terms: Tensor) -> Tensor:
    """The error that rounding may make in a sum of these terms, element by element, no less than in a median element."""
    size = torch.stack([term.double().abs() for term in terms]).sum(dim=0)
    return (torch.finfo(terms[0].dtype).eps * (size + size.median())).clamp(min=torch.finfo(torch.float32).tiny)


def residue(differences: Tensor) -> float:
    """The root mean square of differences in units of their rounding."""
    return float(differences.square().mean().sqrt())


def _fit(before: Tensor, after: Tensor, terms: Sequence[Tensor]) -> tuple[list[float], float]:
    """The factors of the terms whose sum is ``after - before``, and the residue in roundings."""
    noise = rounding(before, after).flatten()
    columns = torch.stack([term.double().flatten() for term in terms], dim=1) / noise[:, None]
    change = (after.double() - before.double()).flatten() / noise
    size = columns.norm(dim=0)
    ones = torch.ones_like(size)
    solved, nonzero = ones.clone(), size > 0  # a block of zeros counts as added once
    if nonzero.any():
        solved[nonzero] = torch.linalg.lstsq(columns[:, nonzero] / size[nonzero], change).solution / size[nonzero]
    error = residue(columns @ solved - change)
    rounded = torch.where((solved - 1).abs() < 10 * _NEAR, ones, solved)
    # The simplest factors that fit as well: the factor of a term that rounding nearly hides is solved for loosely.
    simple = next(f for f in (ones, rounded, solved) if residue(columns @ f - change) <= 1.02 * error + 1e-3)
    return simple.tolist(), error


# How logits are made -----------------------------------------------------------------------------------------------------


def solve_readout(plain: Tensor, logits: Tensor, config: Any) -> LogitScaling:
    """The function that takes `plain`, ``head(norm(state))``, to the `logits`; both Float `[position, vocab]`.

    The cap is the config's. A scale in the config counts only if the logits show it.
    """
    suppressed = tuple((logits <= torch.finfo(logits.dtype).min / 2).all(dim=0).nonzero().flatten().tolist())
    free = ~torch.isin(torch.arange(logits.shape[-1]), torch.tensor(suppressed, dtype=torch.long))
    x, y = plain[:, : logits.shape[-1]][:, free].double(), logits[:, free].double()
    cap = next((value for name in _CAPS if (value := getattr(config, name, None)) is not None), None)
    if cap is not None:
        inside = y.abs() < 0.9 * cap
        x, y = x[inside], cap * torch.atanh(y[inside] / cap)
    # Where every logit is at its cap, they show no factor, and 1 is as good as any.
    scale = float((x * y).sum() / (x * x).sum()) if len(x) else 1.0
    return LogitScaling(_exact(scale, config), None if cap is None else float(cap), suppressed)


def _exact(scale: float, config: Any) -> float:
    """The number that a measured factor stands for: 1, a scale of the config, or its inverse."""
    words = ("logit", "scal", "multiplier")
    fields = [value for name, value in vars(config).items() if any(word in name for word in words)]
    numbers = [float(value) for value in fields if isinstance(value, int | float) and value > 0]
    closest = min([1.0, *numbers, *(1 / value for value in numbers)], key=lambda value: abs(value - scale))
    return closest if abs(closest - scale) <= _NEAR * abs(scale) else scale
