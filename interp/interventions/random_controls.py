"""Controls of interventions: the same change where it has nothing to do with the question.

A cut of 576 image tokens takes away pictures, and it takes away 576 keys. Its control takes away as many other keys. What
control an intervention has depends on what it names, the most special first:

==========  =======================================================================================================
own         an intervention with a method ``control(seed)`` makes its own: `Steer` takes a random direction
heads       of one that names heads: as many random other heads, at the same positions
positions   of one that names positions (of a knockout, a source): in each row as many random other positions
layers      of one that names neither, or all there are: as many random other layers
==========  =======================================================================================================

Positions are drawn before the one where the effect is measured, since a later one could have no effect. A prompt may have
fewer others (it is mostly picture); then all of them are taken, and `Controls` says how many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, is_dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import InputError
from interp.interventions.selection import select_heads, select_layers
from interp.models import VLM, Batch
from interp.models.running.places import proved_place


@dataclass(frozen=True)
class Controls:
    """The control of an intervention on a data set.

    `kind` says what was drawn: "own", "heads", "positions" or "layers". `of_batches` has the interventions to run on each
    batch: one, or none where nothing could be drawn. `wanted` is how many positions, heads or layers a row should have, and
    `drawn` how many it has.
    """

    kind: str
    of_batches: list[list[Any]]
    wanted: Int[Tensor, " row"]
    drawn: Int[Tensor, " row"]


def controls_of(vlm: VLM, batches: Sequence[Batch], intervention: Any, seed: int = 0) -> Controls:
    """The control of an intervention on these batches, of the first kind that it has; the draws depend on `seed`.

    Raises `InputError` for an intervention without a control: it is not a dataclass and makes none, or it names all heads,
    positions and layers.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> batch = vlm.prepare(texts=["a red 3 at top . where is the 3 ?"])
    >>> knockout = interp.interventions.Knockout(source=[2], target="last", layers=[3])
    >>> controls_of(vlm, [batch], knockout).kind
    'positions'
    >>> controls_of(vlm, [batch], interp.interventions.Reweight(kind="uniform", layers=[3])).kind
    'layers'
    """
    if callable(getattr(intervention, "control", None)):
        one = torch.ones(sum(map(len, batches)), dtype=torch.long)
        return Controls("own", [[intervention.control(seed)]] * len(batches), one, one)
    for draw in (random_heads, random_positions, random_layers):
        controls = draw(vlm, batches, intervention, seed) if is_dataclass(intervention) else None
        if controls is not None and controls.drawn.any():
            return controls
    raise InputError(
        f"{type(intervention).__name__} has no control: it leaves no other heads, positions or layers to draw, expected some, "
        "or an intervention with a method control(seed)"
    )


def random_positions(vlm: VLM, batches: Sequence[Batch], intervention: Any, seed: int = 0) -> Controls | None:
    """The same intervention at random other positions, in each row as many as it has before the last token or, of a
    knockout, random other sources, as many as it has before the row's last target. None if it takes no positions."""
    name = next((each for each in ("source", "positions") if hasattr(intervention, each)), None)
    if name is None:
        return None
    generator = torch.Generator().manual_seed(seed)
    of_batches, counts = [], []
    for batch in batches:
        select = batch.positions.select
        chosen, target = select(getattr(intervention, name)), select(getattr(intervention, "target", "last"))
        mask, *numbers = draw_controls(chosen, target, batch.positions["all"], generator)
        of_batches.append([replace(intervention, **{name: mask})] if mask.any() else [])
        counts.append(torch.stack(numbers))
    return Controls("positions", of_batches, *torch.cat(counts, dim=1))


def random_heads(vlm: VLM, batches: Sequence[Batch], intervention: Any, seed: int = 0) -> Controls | None:
    """The same intervention in as many random other heads, the same in all of its layers. None if it names no heads."""
    if getattr(intervention, "heads", None) is None:
        return None
    layers = select_layers(vlm, intervention.layers)
    site = getattr(intervention, "site", None)  # a knockout has query heads
    counts = [vlm.structure.heads[layer] if site is None else proved_place(vlm, layer, site).number for layer in layers]
    own = select_heads(vlm, intervention.heads, min(counts), layers[counts.index(min(counts))]) or []
    return _random_numbers(batches, intervention, ("heads", own, min(counts)), seed)


def random_layers(vlm: VLM, batches: Sequence[Batch], intervention: Any, seed: int = 0) -> Controls | None:
    """The same intervention in as many random other layers. None if it takes no layers."""
    if not hasattr(intervention, "layers") or getattr(intervention, "tower", "language") != "language":
        return None
    own = select_layers(vlm, intervention.layers)
    return _random_numbers(batches, intervention, ("layers", own, vlm.structure.n_layers), seed)


def _random_numbers(
    batches: Sequence[Batch], intervention: Any, field: tuple[str, list[int], int], seed: int
) -> Controls:
    """The intervention with other numbers in a field, given as its name, its own numbers and how many numbers there are."""
    name, own, count = field
    others = torch.tensor([number for number in range(count) if number not in own])
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
    drawn = sorted(others[order[: len(own)]].tolist())
    control = [replace(intervention, **{name: drawn})] if drawn else []
    rows = torch.ones(sum(map(len, batches)), dtype=torch.long)
    return Controls(name, [control] * len(batches), rows * len(own), rows * len(drawn))


def draw_controls(
    source: Tensor, target: Tensor, real: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Random control positions: in each row as many as `source` has before the last `target`, all Bool `[batch, seq]`.

    Returns the controls, Bool `[batch, seq]`, and for each row the number of source positions before the target and the
    number of controls, Int `[row]`. Both are 0 in a row without a target. Padding makes no difference.

    >>> import torch
    >>> row = lambda *columns: torch.tensor([[column in columns for column in range(6)]])
    >>> draw = draw_controls(row(0, 1), row(5), row(0, 1, 2, 3, 4, 5), torch.Generator().manual_seed(0))
    >>> [each.sum().item() for each in draw], bool((draw[0] & row(0, 1, 5)).any())
    ([2, 2, 2], False)
    """
    before = real & (target.flip(1).cumsum(1).flip(1) - target.long() > 0)
    n_source = (source & before).sum(dim=1)
    controls = torch.zeros_like(real)
    for row, count in enumerate(n_source.tolist()):
        free = (before[row] & ~source[row]).nonzero().flatten()
        controls[row, free[torch.randperm(len(free), generator=generator)[:count]]] = True
    return controls, n_source, controls.sum(dim=1)
