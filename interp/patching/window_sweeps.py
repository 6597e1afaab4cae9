"""What a sweep over windows of layers needs: the windows, the batches of a data set, and control positions.

*Windows.* Often a layer on its own is not missed, because its neighbours do the same work. So a sweep changes a *window*, a
few layers next to each other, and moves it through the depth of the model. Windows are half-open ranges of layers:

- *centred* windows, one for each layer, cut off at the ends of the model (Geva et al. 2023). They give a curve with a point
  a layer, in which the windows at the ends are narrower than the others;
- *sliding* windows of equal width, from ``range(0, width)`` to the one that ends with the last layer;
- windows *to the end*, from each layer to the last, for what cannot be undone later, such as dropping tokens.

*Controls.* Cutting off 576 image tokens takes away pictures, and it takes away 576 keys. So the same intervention is also
made at as many other positions, drawn at random. They are drawn before the position where the effect is measured, since a
later one could have no effect. A prompt may have fewer others (it is mostly picture); then all of them are taken, and the
result reports their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interp.arguments import checked_int
from interp.errors import InputError, InputTypeError, shown
from interp.models import VLM, Batch, Edit
from interp.models.running.trace import run_forward


def centred_windows(n_layers: int, width: Any) -> list[range]:
    """For each layer the window of `width` layers around it; an even width has one more layer before it than after it.

    >>> centred_windows(4, 3)
    [range(0, 2), range(0, 3), range(1, 4), range(2, 4)]
    """
    width = _checked_width(width)
    before, after = width // 2, (width + 1) // 2
    return [range(max(0, layer - before), min(n_layers, layer + after)) for layer in range(n_layers)]


def sliding_windows(n_layers: int, width: Any) -> list[range]:
    """Every window of `width` layers. Raises `InputError` if the model has fewer layers.

    >>> sliding_windows(4, 2)
    [range(0, 2), range(1, 3), range(2, 4)]
    """
    width = _checked_width(width)
    if width > n_layers:
        raise InputError(f"window={width!r}: the model has {n_layers} layers, expected at most as many")
    return [range(start, start + width) for start in range(n_layers - width + 1)]


def windows_to_end(n_layers: int) -> list[range]:
    """The window from each layer to the last.

    >>> windows_to_end(3)
    [range(0, 3), range(1, 3), range(2, 3)]
    """
    return [range(start, n_layers) for start in range(n_layers)]


def _checked_width(width: Any) -> int:
    return checked_int(width, "window", 1, what="a number of layers")


def as_batches(batch: Any) -> list[Batch]:
    """A batch or a list of batches, as a list. Raises `InputTypeError` for anything else, `InputError` for an empty list."""
    batches = [batch] if isinstance(batch, Batch) else batch
    if not isinstance(batches, list | tuple) or not all(isinstance(each, Batch) for each in batches):
        raise InputTypeError(f"batch={shown(batch)}: expected a batch, as vlm.prepare makes it, or a list of them")
    if not batches:
        raise InputError("batch is an empty list: expected at least one batch")
    return list(batches)


def last_logits(vlm: VLM, batch: Batch, edits: Sequence[Edit], interventions: Sequence[Any] = ()) -> Tensor:
    """The logits at the last token of each row, with these edits and then these interventions."""
    return run_forward(vlm, batch, [*edits, *vlm.edits_of(batch, interventions)])["logits"]


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
