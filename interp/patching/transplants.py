"""Transplanting weights: a model some of whose layers are another checkpoint's.

Two checkpoints of one architecture, before and after a training, differ in their weights alone. A hybrid that has some
layers of one and the rest of the other says which layers carry what was trained: *sufficient* are those of the donor that
bring the recipient to the donor's answers, *necessary* those whose return to the recipient's weights loses them (the same
call with the two exchanged). Cumulative choices are ``range(0, l)``, sliding ones ``range(l, l + width)``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import InputError, InputTypeError, shown
from interp.models import VLM, load
from interp.models.running.structure import resolve

PARTS = ("layers", "norm", "head", "embed", "projector")


def transplant(recipient: VLM, donor: VLM, layers: int | str | Iterable[int] = "all", parts: Any = ("layers",)) -> VLM:
    """The recipient with these layers, and these other parts, of the donor.

    `parts` are any of "layers", "norm" (the final one), "head", "embed" and "projector"; `layers` says which layers,
    where they are among them, and may be empty. The hybrid is a model of its own that shares its weights with both: they
    are left as they are and none is copied, so a hybrid costs no memory, and what later changes a weight in place, or
    whether it is trained, changes it in both. It generates as the recipient does: where that ends, the hybrid ends. Where
    head and embedding are tied they are one part: naming one brings both.

    Raises `InputError` for an unknown part or layer, for models of different architecture or shape, and for one whose
    weights are not here.

    >>> import interp
    >>> tuned, stage1 = interp.load("toy:tuned"), interp.load("toy:stage1")
    >>> batch = tuned.prepare(texts=["a red 3 at top . what colour is the 3 ?"])
    >>> whole = transplant(stage1, tuned, "all", parts=("layers", "norm", "head", "embed"))
    >>> bool((whole.logits(batch) == tuned.logits(batch)).all())
    True
    """
    names = (parts,) if isinstance(parts, str) else tuple(parts) if isinstance(parts, Iterable) else ()
    if not names or any(name not in PARTS for name in names):
        raise InputError(f"parts={shown(parts)}: expected one or more of {', '.join(PARTS)}")
    for what, vlm in (("recipient", recipient), ("donor", donor)):
        if not isinstance(vlm, VLM):
            raise InputTypeError(f"{what} is a {type(vlm).__name__}: expected a model, as interp.load gives it")
    chosen = recipient.layer_indices(layers)
    _check_alike(recipient, donor)
    given = [path for name in names for path in _paths(recipient, donor, name, chosen)]
    ours, theirs = recipient.model.state_dict(keep_vars=True), donor.model.state_dict(keep_vars=True)
    moved = _with_tied(ours, {key for key in ours if any(key.startswith(f"{path}.") for path in given)})
    hybrid = _built(recipient.model, {key: theirs[key] if key in moved else ours[key] for key in ours})
    made = load(model=hybrid, processor=recipient.processor, structure=recipient.structure, check=False)
    said = f"{', '.join(names)} {chosen}" if "layers" in names else ", ".join(names)
    made.name = f"{recipient.name} with {said} of {donor.name}"
    made.remote = recipient.remote
    return made


def _check_alike(recipient: VLM, donor: VLM) -> None:
    """Refuse two models that are not one architecture with other weights."""
    for vlm in (recipient, donor):
        if any(weights.is_meta for weights in vlm.model.parameters()):
            raise InputError(f"{vlm.name!r} has no weights here: transplants need both models loaded on this machine")
    kinds = [type(vlm.model).__name__ for vlm in (recipient, donor)]
    if kinds[0] != kinds[1]:
        raise InputError(f"recipient is a {kinds[0]}, donor a {kinds[1]}: expected checkpoints of one architecture")
    ours, theirs = recipient.model.state_dict(), donor.model.state_dict()
    for key in sorted({*ours, *theirs}):
        seen = [_about(state[key]) if key in state else "not there" for state in (ours, theirs)]
        if seen[0] != seen[1]:
            raise InputError(f"{key} is {seen[0]} in the recipient and {seen[1]} in the donor: expected the same")


def _about(weights: Tensor) -> str:
    return f"{str(weights.dtype).removeprefix('torch.')} {tuple(weights.shape)} on {weights.device}"


def _paths(recipient: VLM, donor: VLM, part: str, layers: Sequence[int]) -> list[str]:
    """Where a part is, the same in both models."""
    if part == "layers":
        return [f"{recipient.structure.layers}.{layer}" for layer in layers]
    path = getattr(recipient.structure, part)
    if path is None:
        raise InputError(f"{recipient.name!r} has no {part} of its own: leave it out of parts")
    return [path]


def _with_tied(state: dict[str, Any], moved: set[str]) -> set[str]:
    """The chosen weights and those that are the same tensor under another name."""
    places = {state[key].data_ptr() for key in moved if state[key].numel()}
    return {key for key in state if key in moved or (state[key].numel() and state[key].data_ptr() in places)}


def _built(model: Any, weights: dict[str, Tensor]) -> nn.Module:
    """A model of the same config with these very weights; its buffers that no checkpoint holds are the recipient's."""
    with torch.device("meta"):
        built = type(model)(model.config)
    for (
        name,
        parameter,
    ) in built.named_parameters():  # or assigning would set in the shared weights whether they are trained
        parameter.requires_grad_(weights[name].requires_grad)
    built.load_state_dict(weights, assign=True)
    # What a checkpoint says of generation (where a text ends) lies beside its config.
    built.generation_config = copy.deepcopy(getattr(model, "generation_config", None))
    for path, module in model.named_modules():
        own = resolve(built, path) if path else built
        for name, buffer in module.named_buffers(recurse=False):
            if getattr(own, name).is_meta:
                own.register_buffer(name, buffer, persistent=False)
    left = [name for name, tensor in (*built.named_parameters(), *built.named_buffers()) if tensor.is_meta]
    if left:
        raise InputError(f"{left[0]} of {type(model).__name__} is in no checkpoint: this model cannot be taken apart")
    return built.eval()
