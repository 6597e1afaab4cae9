"""Measuring on one short prompt what only a run can tell: what each layer adds to the stream, and how logits are made.

Between a layer's input and its output stand an attention block and an MLP, but which module's output is *added*
differs: the block itself, a norm behind it, either of them times a constant. So it is solved for. One run records what
every part of a layer gives; ``after - before = a * attention + m * mlp`` is a least-squares problem with two unknowns and
thousands of equations, and only the right pair of modules leaves no residue. The readout is solved for alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.models.forward import Visit, run_watched
from interp.models.structure import Added, Readout, resolve

if TYPE_CHECKING:
    from interp.models.batch import Batch
    from interp.models.vlm import VLM


@dataclass(frozen=True)
class Sum:
    """What a layer adds to the stream, the largest error of that sum relative to the states, and whether there is a
    state between attention and MLP."""

    attn: Added | None
    mlp: Added | None
    error: float
    mid: bool


def tolerance(dtype: torch.dtype) -> float:
    """The relative error up to which two ways to compute one thing agree in this precision."""
    return max(1e-5, 8 * torch.finfo(dtype).eps)


# What a layer adds -------------------------------------------------------------------------------------------------------


def observe(vlm: VLM, batch: Batch) -> list[dict[str, list[Visit]]]:
    """Run the model once; for each layer, the visits to itself (under "") and to its children, in the order they began."""
    envoys, places = [], {}
    for index, layer in enumerate(vlm.layers):
        below = resolve(vlm.model, f"{vlm.structure.layers}.{index}").named_children()
        for name, envoy in [("", layer), *((name, getattr(layer, name)) for name, _ in below)]:
            envoys.append(envoy)
            places[envoy.path] = (index, name)
    found: list[dict[str, list[Visit]]] = [{} for _ in vlm.layers]
    for path, visits in run_watched(vlm, batch.inputs, envoys).items():
        index, name = places[path]
        found[index][name] = visits
    return found


def solve_sum(visits: dict[str, list[Visit]], attn: str | None, mlp: str | None, bound: float) -> Sum:
    """Which parts of a layer are what it adds to the stream, and how exactly."""
    before, after = visits[""][0].given, visits[""][0].gave
    if before is None or after is None or before.shape != after.shape:
        return Sum(None, None, math.inf, False)
    states, flat = _states(visits, before)
    closest = math.inf
    for pair in itertools.product(*_candidates(list(visits), states, attn, mlp)):
        names = [name for name in pair if name is not None]
        factors, error = _fit(after - before, [states[name] for name in names], before)
        closest = min(closest, error)
        # Where a norm follows a block and leaves it as it is, both fit: the first is the block itself.
        if error <= bound:
            found = {name: Added(name, factor, name in flat) for name, factor in zip(names, factors, strict=True)}
            ahead, behind = (found.get(name) if name is not None else None for name in pair)
            return Sum(ahead, behind, error, _has_mid(visits, states, before, ahead, bound))
    # The MLP's share cannot be told. What attention adds may still be seen: some part is given exactly that sum.
    for name in _candidates(list(visits), states, attn, mlp)[0]:
        alone = None if name is None else Added(name, flat=name in flat)
        if _has_mid(visits, states, before, alone, bound):
            return Sum(alone, None, closest, False)
    return Sum(None, None, closest, False)


def _states(visits: dict[str, list[Visit]], like: Tensor) -> tuple[dict[str, Tensor], set[str]]:
    """What each part gave where that is one vector a position, and the parts that gave the rows one after the other."""
    states, flat = {}, set()
    for name, seen in visits.items():
        gave = seen[0].gave if name and len(seen) == 1 else None
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


def _has_mid(
    visits: dict[str, list[Visit]], states: dict[str, Tensor], before: Tensor, added: Added | None, bound: float
) -> bool:
    """Whether some part of the layer is given ``before + attention``."""
    if added is None:
        return False
    mid = before + added.scale * states[added.module]
    given = [visit.given for name, seen in visits.items() if name for visit in seen]
    return any(
        g.shape == mid.shape and (g - mid).abs().max() <= bound * mid.abs().max() for g in given if g is not None
    )


def _fit(target: Tensor, terms: Sequence[Tensor], scale_of: Tensor) -> tuple[list[float], float]:
    """Factors of the terms that come closest to the target, and the largest error relative to the states."""
    if not terms:
        return [], math.inf
    columns = torch.stack([term.double().flatten() for term in terms], dim=1)
    wanted = target.double().flatten()
    factors = torch.linalg.lstsq(columns, wanted).solution
    factors = torch.where((factors - 1).abs() < 1e-3, torch.ones_like(factors), factors)
    error = (columns @ factors - wanted).abs().max() / scale_of.abs().max()
    return factors.tolist(), float(error)


# How logits are made -----------------------------------------------------------------------------------------------------


def solve_readout(plain: Tensor, logits: Tensor, config: Any, dtype: torch.dtype) -> Readout:
    """What the model does to ``head(norm(state))`` to get its logits; both Float `[position, vocab]`.

    The cap is the config's; whether a scale that the config names is applied is seen, not believed.
    """
    lowest = torch.finfo(dtype).min / 2
    plain = plain[:, : logits.shape[-1]]
    suppressed = tuple((logits <= lowest).all(dim=0).nonzero().flatten().tolist())
    kept = torch.ones(logits.shape[-1], dtype=torch.bool)
    kept[list(suppressed)] = False
    x, y = plain[:, kept].double(), logits[:, kept].double()
    cap = getattr(config, "final_logit_softcapping", None)
    if cap is not None:
        inside = y.abs() < 0.9 * cap
        x, y = x[inside], cap * torch.atanh(y[inside] / cap)
    scale = float((x * y).sum() / (x * x).sum())
    return Readout(_named(scale, config, tolerance(dtype)), None if cap is None else float(cap), suppressed)


def _named(scale: float, config: Any, near: float) -> float:
    """A measured factor as the number it stands for: 1, or a number of the config or its inverse."""
    numbers = [value for value in vars(config).values() if isinstance(value, int | float) and value > 0]
    exact = [1.0, *numbers, *(1 / value for value in numbers)]
    closest = min(exact, key=lambda value: abs(value - scale))
    return float(closest) if abs(closest - scale) <= near * abs(scale) else scale


def apply_readout(plain: Tensor, readout: Readout) -> Tensor:
    """Logits of ``head(norm(state))``; suppressed tokens stay as they are."""
    logits = plain * readout.scale
    return logits if readout.cap is None else readout.cap * torch.tanh(logits / readout.cap)
