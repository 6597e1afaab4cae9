"""Measuring on one short prompt what only a run can tell: what each layer adds to the stream, and how logits are made.

Between a layer's input and its output stand an attention block and an MLP, but which module's output is *added*
differs: the block itself, a norm behind it, either of them times a constant. So it is solved for. One run records what
every part of a layer gives; ``after - before = a * attention + m * mlp`` is a least-squares problem with two unknowns and
thousands of equations, each weighed by how far rounding alone may take it, so that neither one feature much larger than
the others nor a low precision hides a wrong answer. On the tiny models of the tests, in float32, the right pair of
modules leaves a residue of 0.15 roundings at most, any other 2,300 at least. How logits come out of the head is solved
for alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.models.running.readout import LogitScaling
from interp.models.running.structure import Added, resolve
from interp.models.running.trace import Visit, run_for_visits

if TYPE_CHECKING:
    from interp.models.batches.batch import Batch
    from interp.models.running.core import Core


# Two ways to add up one thing agree to this many roundings, root mean square over the equations.
ROUNDINGS = 2.0
# How near a measured factor must be to a number to stand for it.
_NEAR = 1e-3


@dataclass(frozen=True)
class Sum:
    """What a layer adds to the stream, the residue of that sum in roundings, and whether there is a state between
    attention and MLP."""

    attn: Added | None
    mlp: Added | None
    error: float
    mid: bool


def tolerance(dtype: torch.dtype) -> float:
    """The relative error up to which one computation, run twice with other shapes, agrees in this precision."""
    return max(1e-5, 2 * torch.finfo(dtype).eps)


# What a layer adds -------------------------------------------------------------------------------------------------------


def observe(core: Core, batch: Batch) -> list[dict[str, list[Visit]]]:
    """Run the model once; for each layer, the visits to itself (under "") and to its children, in the order they began."""
    envoys, places = [], {}
    for index, layer in enumerate(core.layers):
        below = resolve(core.model, f"{core.structure.layers}.{index}").named_children()
        for name, envoy in [("", layer), *((name, getattr(layer, name)) for name, _ in below)]:
            envoys.append(envoy)
            places[envoy.path] = (index, name)
    found: list[dict[str, list[Visit]]] = [{} for _ in core.layers]
    for path, visits in run_for_visits(core, batch.inputs, envoys).items():
        index, name = places[path]
        found[index][name] = visits
    return found


def solve_sum(visits: dict[str, list[Visit]], before: Tensor, attn: str | None, mlp: str | None) -> Sum:
    """Which parts of a layer are what it adds to the stream, and how exactly; `before` is what entered the layer."""
    after = visits[""][0].output
    if after is None or after.shape != before.shape:
        return Sum(None, None, math.inf, False)
    states, flat = _states(visits, before)
    ahead, behind = _candidates(list(visits), states, attn, mlp)
    fits = []
    for pair in itertools.product(ahead, behind):
        names = [name for name in pair if name is not None]
        if names:
            fits.append((pair, names, *_fit(before, after, [states[name] for name in names])))
    best = min((error for *_, error in fits), default=math.inf)
    for pair, names, factors, error in fits:
        # Where a norm follows a block and leaves it as it is, both fit: the first is the block itself.
        if error <= min(ROUNDINGS, 1.001 * best + 1e-6) and all(abs(factor) > _NEAR for factor in factors):
            found = {name: Added(name, factor, name in flat) for name, factor in zip(names, factors, strict=True)}
            first, second = (found.get(name) if name is not None else None for name in pair)
            return Sum(first, second, error, _has_mid(visits, states, before, first))
    # The MLP's share cannot be told. What attention adds may still be seen: some part is given exactly that sum.
    for name in ahead:
        alone = None if name is None else Added(name, flat=name in flat)
        if alone is not None and states[alone.module].any() and _has_mid(visits, states, before, alone):
            return Sum(alone, None, best, True)
    return Sum(None, None, best, False)


def _states(visits: dict[str, list[Visit]], like: Tensor) -> tuple[dict[str, Tensor], set[str]]:
    """What each part gave where that is one vector a position, and the parts that gave the rows one after the other."""
    states, flat = {}, set()
    for name, seen in visits.items():
        gave = seen[0].output if name and len(seen) == 1 else None
        if gave is not None and gave.shape in (like.shape, like.flatten(0, 1).shape):
            states[name] = gave.reshape(like.shape)
            flat |= {name} if gave.ndim != like.ndim else set()
    return states, flat


def _candidates(
    order: list[str], states: dict[str, Tensor], attn: str | None, mlp: str | None
) -> tuple[list[str | None], list[str | None]]:
    """The parts that may be what attention adds (from it to the MLP), and what the MLP adds (from it to the end)."""
    start = order.index(attn) if attn in order else len(order)
    turn = order.index(mlp) if mlp in order else len(order)
    ahead: list[str | None] = [name for name in order[start:turn] if name in states]
    behind: list[str | None] = [name for name in order[turn:] if name in states]
    return ahead or [None], behind or [None]


def _has_mid(visits: dict[str, list[Visit]], states: dict[str, Tensor], before: Tensor, added: Added | None) -> bool:
    """Whether some part of the layer is given ``before + attention``. Where attention adds nothing, nothing speaks
    against it."""
    if added is None:
        return False
    term = states[added.module] * added.scale
    if not term.any():
        return True
    given = [visit.input for name, seen in visits.items() if name for visit in seen]
    alike = [g for g in given if g is not None and g.shape == before.shape]
    return any(residue((g.double() - before - term) / rounding(before, term)) <= ROUNDINGS for g in alike)


def rounding(*terms: Tensor) -> Tensor:
    """How far rounding may take a sum of these terms, element by element; of a tiny element what it takes the others."""
    size = torch.stack([term.double().abs() for term in terms]).sum(dim=0)
    return (torch.finfo(terms[0].dtype).eps * (size + size.median())).clamp(min=torch.finfo(torch.float32).tiny)


def residue(weighed: Tensor) -> float:
    """The root mean square of differences, each weighed by its rounding."""
    return float(weighed.square().mean().sqrt())


def _fit(before: Tensor, after: Tensor, terms: Sequence[Tensor]) -> tuple[list[float], float]:
    """Factors with which the terms make ``after - before``, and the residue in roundings."""
    noise = rounding(before, after).flatten()
    columns = torch.stack([term.double().flatten() for term in terms], dim=1) / noise[:, None]
    wanted = (after.double() - before.double()).flatten() / noise
    size = columns.norm(dim=0)
    ones = torch.ones_like(size)
    solved, there = ones.clone(), size > 0  # a block that gives zeros everywhere is added once
    if there.any():
        solved[there] = torch.linalg.lstsq(columns[:, there] / size[there], wanted).solution / size[there]
    error = residue(columns @ solved - wanted)
    rounded = torch.where((solved - 1).abs() < 10 * _NEAR, ones, solved)
    # The plainest factors that fit as well: of what hardly shows beside rounding the solved one is loose.
    plain = next(f for f in (ones, rounded, solved) if residue(columns @ f - wanted) <= 1.02 * error + 1e-3)
    return plain.tolist(), error


# How logits are made -----------------------------------------------------------------------------------------------------


def solve_readout(plain: Tensor, logits: Tensor, config: Any) -> LogitScaling:
    """What the model does to ``head(norm(state))`` to get its logits; both Float `[position, vocab]`.

    The cap is the config's; whether a scale that the config names is applied is seen, not believed.
    """
    suppressed = tuple((logits <= torch.finfo(logits.dtype).min / 2).all(dim=0).nonzero().flatten().tolist())
    kept = ~torch.isin(torch.arange(logits.shape[-1]), torch.tensor(suppressed, dtype=torch.long))
    x, y = plain[:, : logits.shape[-1]][:, kept].double(), logits[:, kept].double()
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        inside = y.abs() < 0.9 * cap
        x, y = x[inside], cap * torch.atanh(y[inside] / cap)
    # Where every logit is at its cap no factor can be seen, and 1 is as good as any.
    scale = float((x * y).sum() / (x * x).sum()) if len(x) else 1.0
    return LogitScaling(_named(scale, config), None if cap is None else float(cap), suppressed)


def _named(scale: float, config: Any) -> float:
    """A measured factor as the number it stands for: 1, or a scale that the config names, or its inverse."""
    words = ("logit", "scal", "multiplier")
    named = [value for name, value in vars(config).items() if any(word in name for word in words)]
    numbers = [float(value) for value in named if isinstance(value, int | float) and value > 0]
    closest = min([1.0, *numbers, *(1 / value for value in numbers)], key=lambda value: abs(value - scale))
    return closest if abs(closest - scale) <= _NEAR * abs(scale) else scale
