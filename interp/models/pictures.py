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

from interp.models.batch import Batch
from interp.models.encodings import pixels_of
from interp.models.forward import Edit, Read, disturb, run_forward, run_until_layers, run_watched, whole
from interp.models.sites import tolerance
from interp.models.structure import resolve

if TYPE_CHECKING:
    from interp.models.vlm import VLM

# A tower that quantises gives some patches the same code under two pictures: several are tried.
_PICTURES = 4


def find_images(vlm: VLM, inputs: Mapping[str, Tensor]) -> Tensor:
    """The image positions of an encoding whose model has no image token: what another picture or the projector moves."""
    return moved_by_pictures(vlm, inputs) | moved_by_projector(vlm, inputs)


def has_pictures(batch: Batch) -> bool:
    """Whether images are among a batch's inputs."""
    return bool(pixels_of(batch.inputs))


def moved_by_pictures(vlm: VLM, inputs: Mapping[str, Tensor]) -> Tensor:
    """The positions whose state 0 depends on the pixels, Bool `[batch, seq]`."""
    before = run_until_layers(vlm, inputs)
    moved = torch.zeros(before.shape[:2], dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for _ in range(_PICTURES):
        other = {**inputs, **{name: _another(inputs[name], generator) for name in pixels_of(inputs)}}
        moved |= _moved(before, run_until_layers(vlm, other))
    return moved


def _another(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Pixels of about the same range. Whole numbers among them stay: zeros that pad a picture to its tile, and the
    places of patches that some encodings write beside their pixels."""
    noise = torch.randn(tensor.shape, generator=generator) * tensor.float().std().clamp(min=0.1) + tensor.float().mean()
    whole = tensor == tensor.round()
    return torch.where(whole & ~whole.all(), tensor, noise.to(tensor.dtype))


def moved_by_projector(vlm: VLM, inputs: Mapping[str, Tensor]) -> Tensor:
    """The positions whose state 0 depends on what the projector gives when it is first called, Bool `[batch, seq]`."""
    nowhere = torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
    if vlm.structure.projector is None:
        return nowhere
    envoy = resolve(vlm.nnsight, vlm.structure.projector)
    if envoy.path not in run_watched(vlm, inputs, [envoy]):  # some models call a method of it, which shows nowhere
        return nowhere
    edit = Edit("projector", 0, disturb)
    return _moved(run_until_layers(vlm, inputs), run_until_layers(vlm, inputs, [edit]))


def sees_behind(vlm: VLM, batch: Batch) -> bool | None:
    """Whether an image token sees image tokens behind it; None where no row has two of them."""
    last = batch.positions["last_image"]
    others = batch.positions["image"] & ~last
    if not others.any():
        return None
    read = Read("after", "resid_post", vlm.structure.n_layers - 1, whole)
    before = run_forward(vlm, batch, reads=[read], logits=None)["after"]
    after = run_forward(vlm, batch, [Edit("resid_pre", 0, disturb, (last,))], [read], logits=None)["after"]
    return bool((_moved(before, after, tolerance(before.dtype)) & others).any())


def _moved(before: Tensor, after: Tensor, near: float = 0.0) -> Tensor:
    """Positions that differ by more than `near` times their largest value, Bool `[batch, seq]`."""
    return ((before - after).abs().amax(dim=-1) > near * before.abs().amax(dim=-1)).cpu()
