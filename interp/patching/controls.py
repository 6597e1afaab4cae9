"""Control positions: what would have happened had as many others been chosen.

Cutting off 576 image tokens takes away more than pictures: it takes away 576 keys. So beside an intervention on
chosen positions stands the same one on as many others, drawn at random: from those that come before the place where
the effect is looked for, as what comes after it could not have any. There may be fewer others than were chosen (a
prompt is mostly picture); then all of them are taken, and how many these were is told with the result.
"""

from __future__ import annotations

import torch
from torch import Tensor


def others_before(
    chosen: Tensor, target: Tensor, real: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """As many other real positions in each row as are `chosen` before the row's last `target`, all Bool `[batch, seq]`.

    The others, Bool `[batch, seq]`, and for each row how many were chosen before the target and how many others there
    are in their place, Int `[row]`. A row without a target has none of both. Padding makes no difference.

    >>> import torch
    >>> row = lambda *columns: torch.tensor([[column in columns for column in range(6)]])
    >>> drawn = others_before(row(0, 1), row(5), row(0, 1, 2, 3, 4, 5), torch.Generator().manual_seed(0))
    >>> [each.sum().item() for each in drawn], bool((drawn[0] & row(0, 1, 5)).any())
    ([2, 2, 2], False)
    """
    before = real & (target.flip(1).cumsum(1).flip(1) - target.long() > 0)
    wanted = (chosen & before).sum(dim=1)
    others = torch.zeros_like(real)
    for row, count in enumerate(wanted.tolist()):
        free = (before[row] & ~chosen[row]).nonzero().flatten()
        others[row, free[torch.randperm(len(free), generator=generator)[:count]]] = True
    return others, wanted, others.sum(dim=1)
