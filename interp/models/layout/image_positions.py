"""Image positions: the positions of the stream that depend on the picture, found and proved by changing it.

The pixels are replaced by noise, or noise is added to the projector's output, and the states that enter layer 0 are
compared with those of the unchanged run. A model may write, add or scale image features there. In each case the
positions whose states move are those at which the image enters the stream.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from interp.displays import dtype_name
from interp.errors import InputError
from interp.models.batches.batch import Batch
from interp.models.batches.encodings import pixels_of
from interp.models.layout.additions import tolerance
from interp.models.running.core import Core
from interp.models.running.finite import cause_of, holds_no_numbers
from interp.models.running.steps import Edit, Read, disturb, whole
from interp.models.running.structure import resolve
from interp.models.running.trace import run_for_visits, run_forward, run_until_layers, run_until_reads

# A tower that quantises may give a patch of two pictures the same code, so several pictures are tried.
_PICTURES = 4


def find_images(core: Core, inputs: Mapping[str, Tensor]) -> Tensor:
    """The image positions of an encoding for a model without an image token, Bool `[batch, seq]`."""
    return moved_by_pictures(core, inputs) | moved_by_projector(core, inputs)


def moved_by_pictures(core: Core, inputs: Mapping[str, Tensor], before: Tensor | None = None) -> Tensor:
    """The positions whose state 0 depends on the pixels, Bool `[batch, seq]`; `before` is state 0 where it is known."""
    before = run_until_layers(core, inputs) if before is None else before
    if holds_no_numbers(before.abs()):
        cause = cause_of(core, lambda reads: run_until_reads(core, inputs, reads), has_images=True)
        raise InputError(cause or f"the states that enter {core.name!r} are not finite in {dtype_name(core)}")
    moved = torch.zeros(before.shape[:2], dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for _ in range(_PICTURES):
        moved |= _moved(before, run_until_layers(core, other_picture(inputs, generator)))
    return moved


def other_picture(inputs: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """The same encoding with noise in place of its pixels, padding included, so that every patch changes.

    Tiles that are all zeros stay, since models count tiles by them. So do columns of whole numbers among the values of
    patches, which are the patches' places.
    """
    others = {}
    for name in pixels_of(inputs):
        pixels = inputs[name]
        noise = torch.randn(pixels.shape, dtype=torch.float32, generator=generator) * pixels.float().std().clamp(
            min=0.1
        )
        constant = torch.zeros_like(pixels, dtype=torch.bool)
        if pixels.ndim == 5:
            constant = (pixels == 0).flatten(2).all(dim=2)[..., None, None, None]
        elif pixels.ndim == 3:
            places = (pixels == pixels.round()).flatten(0, 1).all(dim=0)
            constant = places & ~places.all()
        others[name] = torch.where(constant, pixels, (noise + pixels.float().mean()).to(pixels.dtype))
    return {**inputs, **others}


def moved_by_projector(core: Core, inputs: Mapping[str, Tensor], before: Tensor | None = None) -> Tensor:
    """The positions whose state 0 depends on the first output of the projector, Bool `[batch, seq]`; for `before` see
    `moved_by_pictures`."""
    path = core.structure.projector
    # Some models call a method of the projector, which no trace shows.
    if path is None or (envoy := resolve(core.nnsight, path)).path not in run_for_visits(core, inputs, [envoy]):
        return torch.zeros(inputs["input_ids"].shape, dtype=torch.bool)
    before = run_until_layers(core, inputs) if before is None else before
    return _moved(before, run_until_layers(core, inputs, [Edit("projector", 0, disturb)]))


def apart(one: Tensor, other: Tensor) -> float:
    """How far two states are apart, as a part of the largest entry."""
    size = one.float().abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return float((one.float() - other.float()).abs().max() / size)


def images_see_later_tokens(core: Core, batch: Batch) -> bool | None:
    """Whether an image token sees image tokens after it; None where no row has two of them."""
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
