"""What a picture moves: image positions found, and proved, by what they depend on.

The pixels are replaced by others, or noise is put on the projector's output, and the states that enter layer 0 are
compared with those of before. Features may be written, added or scaled there: whatever is done, positions that move
are where the image enters the stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.models.batches.batch import Batch
from interp.models.batches.encodings import pixels_of
from interp.models.layout.additions import tolerance
from interp.models.running.steps import Edit, Read, disturb, whole
from interp.models.running.structure import resolve
from interp.models.running.trace import run_for_visits, run_forward, run_until_layers

if TYPE_CHECKING:
    from interp.models.running.core import Core

# A tower that quantises gives some patches the same code under two pictures: several are tried.
_PICTURES = 4


def find_images(core: Core, inputs: Mapping[str, Tensor]) -> Tensor:
    """The image positions of an encoding whose model has no image token: what another picture or the projector moves."""
    return moved_by_pictures(core, inputs) | moved_by_projector(core, inputs)


def moved_by_pictures(core: Core, inputs: Mapping[str, Tensor]) -> Tensor:
    """The positions whose state 0 depends on the pixels, Bool `[batch, seq]`."""
    before = run_until_layers(core, inputs)
    moved = torch.zeros(before.shape[:2], dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for _ in range(_PICTURES):
        other = {**inputs, **{name: _another(inputs[name], generator) for name in pixels_of(inputs)}}
        moved |= _moved(before, run_until_layers(core, other))
    return moved


def _another(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Pixels of about the same range. Whole numbers among them stay: zeros that pad a picture to its tile, and the
    places of patches that some encodings write beside their pixels."""
    noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std().clamp(min=0.1) + tensor.float().mean()
    whole = tensor == tensor.round()
    return torch.where(whole & ~whole.all(), tensor, noise.to(tensor.dtype))


def moved_by_projector(core: Core, inputs: Mapping[str, Tensor]) -> Tensor:
    """The positions whose state 0 depends on what the projector gives when it is first called, Bool `[batch, seq]`."""
    nowhere = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
    if core.structure.projector is None:
        return nowhere
    envoy = resolve(core.nnsight, core.structure.projector)
    if envoy.path not in run_for_visits(core, inputs, [envoy]):  # some models call a method of it, which shows nowhere
        return nowhere
    edit = Edit("projector", 0, disturb)
    return _moved(run_until_layers(core, inputs), run_until_layers(core, inputs, [edit]))


def sees_behind(core: Core, batch: Batch) -> bool | None:
    """Whether an image token sees image tokens behind it; None where no row has two of them."""
    last = batch.positions["last_image"]
    others = batch.positions["image"] & ~last
    if not others.any():
        return None
    read = Read("after", "resid_post", core.structure.n_layers - 1, whole)
    before = run_forward(core, batch, reads=[read], logits=None)["after"]
    after = run_forward(core, batch, [Edit("resid_pre", 0, disturb, (last,))], [read], logits=None)["after"]
    return bool((_moved(before, after, tolerance(before.dtype)) & others).any())


def _moved(before: Tensor, after: Tensor, near: float = 0.0) -> Tensor:
    """Positions that differ by more than `near` times their largest value, Bool `[batch, seq]`."""
    return ((before - after).abs().amax(dim=-1) > near * before.abs().amax(dim=-1)).cpu()
