"""Transplanting weights: a model with some layers of another checkpoint.

Two checkpoints of one architecture, before and after a training, differ only in their weights. A hybrid that has some layers
of one and the rest of the other shows which layers carry what was trained. Layers of the donor are *sufficient* if they bring
the recipient to the donor's answers. They are *necessary* if the donor loses its answers when the recipient's weights
replace them (the same call with the two models exchanged). Choose ``range(0, l)`` for cumulative layers, and
``range(l, l + width)`` for a sliding window.
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

    `parts` are any of "layers", "norm" (the final one), "head", "embed" and "projector". `layers` selects layers if "layers" is
    among the parts, and may be empty. The hybrid is a model of its own that shares its weights with both models. Both stay as
    they are and no weight is copied, so a hybrid costs no memory; a later change of a weight in place, or of whether it is
    trained, changes it everywhere. Generation ends where the recipient's ends. If head and embedding are tied they are one
    part: naming one transplants both.

    Raises `InputError` for an unknown part or layer, for models of different architecture or shape, and for a model whose
    weights are not on this machine.

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
    for role, vlm in (("recipient", recipient), ("donor", donor)):
        if not isinstance(vlm, VLM):
            raise InputTypeError(f"{role} is a {type(vlm).__name__}: expected a model, as interp.load gives it")
    numbers = recipient.layer_indices(layers)
    _check_same_architecture(recipient, donor)
    paths = [path for name in names for path in _paths(recipient, name, numbers)]
    ours, theirs = recipient.model.state_dict(keep_vars=True), donor.model.state_dict(keep_vars=True)
    moved = _with_tied(ours, {key for key in ours if any(key.startswith(f"{path}.") for path in paths)})
    model = _build_model(recipient.model, {key: theirs[key] if key in moved else ours[key] for key in ours})
    hybrid = load(model=model, processor=recipient.processor, structure=recipient.structure, check=False)
    description = f"{', '.join(names)} {numbers}" if "layers" in names else ", ".join(names)
    hybrid.name = f"{recipient.name} with {description} of {donor.name}"
    hybrid.remote = recipient.remote
    return hybrid


def _check_same_architecture(recipient: VLM, donor: VLM) -> None:
    """Raise `InputError` for two models that are not one architecture with different weights."""
    for vlm in (recipient, donor):
        if any(weights.is_meta for weights in vlm.model.parameters()):
            raise InputError(f"{vlm.name!r} has no weights here: transplants need both models loaded on this machine")
    kinds = [type(vlm.model).__name__ for vlm in (recipient, donor)]
    if kinds[0] != kinds[1]:
        raise InputError(f"recipient is a {kinds[0]}, donor a {kinds[1]}: expected checkpoints of one architecture")
    states = recipient.model.state_dict(), donor.model.state_dict()
    for key in sorted({*states[0], *states[1]}):
        in_recipient, in_donor = (_description(state[key]) if key in state else "missing" for state in states)
        if in_recipient != in_donor:
            raise InputError(f"{key} is {in_recipient} in the recipient and {in_donor} in the donor: expected the same")


def _description(weights: Tensor) -> str:
    return f"{str(weights.dtype).removeprefix('torch.')} {tuple(weights.shape)} on {weights.device}"


def _paths(recipient: VLM, part: str, layers: Sequence[int]) -> list[str]:
    """The paths of a part, the same in both models."""
    if part == "layers":
        return [f"{recipient.structure.layers}.{layer}" for layer in layers]
    path = getattr(recipient.structure, part)
    if path is None:
        raise InputError(f"{recipient.name!r} has no {part} of its own: leave it out of parts")
    return [path]


def _with_tied(state: dict[str, Any], keys: set[str]) -> set[str]:
    """These weights, and those that are the same tensor under another name."""
    pointers = {state[key].data_ptr() for key in keys if state[key].numel()}
    return {key for key in state if key in keys or (state[key].numel() and state[key].data_ptr() in pointers)}


def _build_model(model: Any, weights: dict[str, Tensor]) -> nn.Module:
    """A model of the same config with these very weights. It shares the buffers that no checkpoint holds with `model`."""
    with torch.device("meta"):
        hybrid = type(model)(model.config)
    # Else assigning would set in the shared weights whether they are trained.
    for name, parameter in hybrid.named_parameters():
        parameter.requires_grad_(weights[name].requires_grad)
    hybrid.load_state_dict(weights, assign=True)
    # A checkpoint keeps its settings for generation (where a text ends) beside its config.
    hybrid.generation_config = copy.deepcopy(getattr(model, "generation_config", None))
    for path, module in model.named_modules():
        own = resolve(hybrid, path) if path else hybrid
        for name, buffer in module.named_buffers(recurse=False):
            if getattr(own, name).is_meta:
                own.register_buffer(name, buffer, persistent=False)
    missing = [name for name, tensor in (*hybrid.named_parameters(), *hybrid.named_buffers()) if tensor.is_meta]
    if missing:
        raise InputError(f"{missing[0]} of {type(model).__name__} is in no checkpoint: this model cannot be rebuilt")
    return hybrid.eval()
