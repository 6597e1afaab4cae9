"""Which patches become one token: shown by disturbing them.

Some projectors merge: four neighbours of the picture come in one behind the other and leave as one token. To set tokens
beside what they were made of one must know which patches these are. The guess is that they stand together, the first m of
them for the first token, the next m for the second. It is proved by effect:

- *No other patch counts.* Tokens are numbered in binary. For each digit, the patches of all tokens with a 1 there are
  disturbed: just these tokens may move; then those with a 0. Any two tokens differ in a digit, so a token that depends on a
  patch of another one moves in some trial in which it must not.
- *All its patches count.* The first patch of every token is disturbed, then the second, and so on: each time all tokens
  must move.

A projector that takes more than patches (the grid of the images) cannot be tried in this way.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.models import Batch
from interp.models.running.slots import first
from interp.models.running.steps import Read
from interp.models.running.structure import resolve
from interp.models.running.trace import run_until_reads

if TYPE_CHECKING:
    from interp.models import VLM

# A token that moves by less than this, relative to its length, stands still but for rounding.
_STILL = 1e-2


def merged_in_order(vlm: VLM, batch: Batch, given: Tensor, tokens: int) -> bool:
    """Whether the projector makes each of its `tokens` of as many patches of `given` `[..., width]` as stand together, and
    of no others; tried on this batch.
    """
    patches = given[..., 0].numel()
    path = vlm.structure.projector or ""
    if patches % tokens or not _takes_patches_alone(resolve(vlm.model, path)):
        return False
    # It is tried where the layers begin: by then the projector has run.
    arguments = (resolve(vlm.nnsight, path), given, trials(tokens, patches // tokens), _STILL)
    read = Read("held", "resid_pre", 0, move_as_told, arguments)
    return bool(run_until_reads(vlm, batch.inputs, [read])["held"])


def trials(tokens: int, merged: int) -> tuple[Tensor, Tensor]:
    """Which patches are disturbed in each trial, Bool `[trial, patch]`, and which tokens must move, Bool `[trial, token]`.

    >>> disturbed, moved = trials(2, 2)
    >>> disturbed.int().tolist()
    [[0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]]
    >>> moved.int().tolist()
    [[0, 1], [1, 0], [1, 1], [1, 1]]
    """
    digits = [torch.arange(tokens) >> digit & 1 == 1 for digit in range((tokens - 1).bit_length())]
    told = [each for ones in digits for each in (ones, ~ones)]
    disturbed = [each.repeat_interleave(merged) for each in told]
    disturbed += [torch.arange(tokens * merged) % merged == place for place in range(merged)]
    return torch.stack(disturbed), torch.stack([*told, *[torch.ones(tokens, dtype=torch.bool)] * merged])


def _takes_patches_alone(projector: torch.nn.Module) -> bool:
    """Whether a projector can be called with nothing but patches."""
    asked = inspect.signature(type(projector).forward).parameters.values()
    needed = [each for each in asked if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]
    return len(needed) == 2  # itself and the patches


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def move_as_told(value, projector, given, trials, still):
    """Whether in each trial just those tokens move that must."""
    given = given.to(value.device)
    noise = torch.randn(given.shape, generator=torch.Generator().manual_seed(0)).to(given.device, given.dtype)
    noise = noise * given.std()
    before = first(projector(given)).flatten(0, -2).float()
    held = torch.ones((), dtype=torch.bool)
    for disturbed, told in zip(*trials, strict=True):
        mask = disturbed.to(given.device).reshape(given.shape[:-1])[..., None]
        after = first(projector(given + noise * mask)).flatten(0, -2).float()
        moved = (after - before).norm(dim=-1) > still * before.norm(dim=-1)
        held = held & (moved.cpu() == told).all()
    return held
