"""Transplanting weights: a model with some layers of another checkpoint.

Two checkpoints of one architecture, before and after a training, differ only in their weights. A hybrid that has some layers
of one and the rest of the other shows which layers carry what was trained. Layers of the donor are *sufficient* if they bring
the recipient to the donor's answers. They are *necessary* if the donor loses its answers when the recipient's weights
replace them (the same call with the two models exchanged). Choose ``range(0, l)`` for cumulative layers, and
``range(l, l + width)`` for a sliding window.

A language model alone and the VLM that was built on it are such a pair too: the layers of one fit into the other, and so
does whatever else has the same form in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from interp.displays import dtype_name
from interp.errors import InputError, InputTypeError, shown
from interp.models import VLM, load
from interp.models.copying import sharing_module

PARTS = ("layers", "norm", "head", "embed", "projector")


def transplant(recipient: VLM, donor: VLM, layers: int | str | Iterable[int] = "all", parts: Any = ("layers",)) -> VLM:
    """The recipient with these layers, and these other parts, of the donor.

    `parts` are any of "layers", "norm" (the final one), "head", "embed" and "projector". `layers` selects layers if "layers" is
    among the parts, and may be empty. The hybrid is a model of its own that shares its weights with both models. Both stay as
    they are and no weight is copied, so a hybrid costs no memory; a later change of a weight in place, or of whether it is
    trained, changes it everywhere. Generation ends where the recipient's ends. If head and embedding are tied they are one
    part: naming one transplants both.

    The two models must have the same parts, of one class, shape and precision; what is not transplanted may differ, as
    between a language model and the VLM that was built on it. Where a vocabulary grew by the image token, "head" and "embed"
    do not fit, "layers" and "norm" do.

    Raises `InputError` for an unknown part or layer, for parts that do not fit, and for a model whose weights are not on
    this machine.

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
    for vlm in (recipient, donor):
        if any(weights.is_meta for weights in vlm.model.parameters()):
            raise InputError(f"{vlm.name!r} has no weights here: transplants need both models loaded on this machine")
    _check_ties(recipient, donor, names)
    numbers = recipient.layer_indices(layers)
    pairs = [pair for name in names for pair in _paths(recipient, donor, name, numbers)]
    ours, theirs = recipient.model.state_dict(keep_vars=True), donor.model.state_dict(keep_vars=True)
    replacements: dict[str, Tensor] = {}
    for path, other in pairs:
        _check_fit(recipient, donor, path, other)
        replacements |= {key: theirs[other + key.removeprefix(path)] for key in ours if key.startswith(f"{path}.")}
    model = sharing_module(recipient.model, _with_tied(ours, replacements))
    hybrid = load(model=model, processor=recipient.processor, structure=recipient.structure, check=False)
    description = f"{', '.join(names)} {numbers}" if "layers" in names else ", ".join(names)
    hybrid.name = f"{recipient.name} with {description} of {donor.name}"
    hybrid.remote = recipient.remote
    return hybrid


def _paths(recipient: VLM, donor: VLM, part: str, layers: Sequence[int]) -> list[tuple[str, str]]:
    """The paths of a part in both models. Raises `InputError` where one of them lacks it."""
    places = [getattr(vlm.structure, part) for vlm in (recipient, donor)]
    for vlm, path in zip((recipient, donor), places, strict=True):
        if path is None:
            raise InputError(f"{vlm.name!r} has no {part} of its own: leave it out of parts")
    if part != "layers":
        return [(places[0], places[1])]
    depths = [vlm.structure.n_layers for vlm in (recipient, donor)]
    if depths[0] != depths[1]:
        raise InputError(
            f"the number of layers is {depths[0]} in the recipient and {depths[1]} in the donor: expected the same "
            f"({_kinds(recipient, donor)})"
        )
    ours, theirs = (_buffers_beside_layers(vlm) for vlm in (recipient, donor))
    other = next((name for name in ours if name in theirs and not _are_equal(ours[name], theirs[name])), None)
    if layers and other is not None:
        raise InputError(
            f"{other}, which all layers use, is not the same in recipient and donor: the donor's layers would not do in the "
            "recipient what they do in the donor"
        )
    return [(f"{places[0]}.{layer}", f"{places[1]}.{layer}") for layer in layers]


def _buffers_beside_layers(vlm: VLM) -> dict[str, Tensor]:
    """What is computed of the config alone beside the layers, such as the frequencies of rotary positions."""
    owner, _, layers = vlm.structure.layers.rpartition(".")
    beside = vlm.model.get_submodule(owner).named_buffers()
    return {name: buffer for name, buffer in beside if not name.startswith(f"{layers}.")}


def _are_equal(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and bool(torch.equal(ours.cpu(), theirs.cpu()))


def _check_ties(recipient: VLM, donor: VLM, names: Sequence[str]) -> None:
    """Raise `InputError` where one of "head" and "embed" is named, which are one tensor in the recipient and two in the
    donor: the other would get the wrong one of these."""
    tied = [_is_tied(vlm) for vlm in (recipient, donor)]
    if len({"head", "embed"} & set(names)) == 1 and tied == [True, False]:
        raise InputError(
            "head and embed are one tensor in the recipient and two in the donor: name both in parts, or neither"
        )


def _is_tied(vlm: VLM) -> bool:
    weights = [
        getattr(vlm.model.get_submodule(path), "weight", None) for path in (vlm.structure.head, vlm.structure.embed)
    ]
    return weights[0] is not None and weights[0] is weights[1]


def _check_fit(recipient: VLM, donor: VLM, path: str, other: str) -> None:
    """Raise `InputError` for two parts that are not of one class with weights of one shape, precision and device."""
    parts = recipient.model.get_submodule(path), donor.model.get_submodule(other)
    kinds = [type(part).__name__ for part in parts]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"{path} is a {kinds[0]} in the recipient and a {kinds[1]} in the donor: expected the same "
            f"({_kinds(recipient, donor)})"
        )
    states = [part.state_dict() for part in parts]
    for key in sorted({*states[0], *states[1]}):
        ours, theirs = (_description(state[key]) if key in state else "missing" for state in states)
        if ours != theirs:
            grown = path in (recipient.structure.head, recipient.structure.embed)
            advice = ", leave it out of parts where one vocabulary has grown" if grown else ""
            raise InputError(
                f"{path}.{key} is {ours} in the recipient and {theirs} in the donor: expected the same{advice}"
            )


def _kinds(recipient: VLM, donor: VLM) -> str:
    return f"recipient is a {type(recipient.model).__name__}, donor a {type(donor.model).__name__}"


def _description(weights: Tensor) -> str:
    return f"{dtype_name(weights)} {tuple(weights.shape)} on {weights.device}"


def _with_tied(state: dict[str, Any], replacements: dict[str, Tensor]) -> dict[str, Tensor]:
    """The replacements, also under every other name that their place in `state` has."""
    places = {state[key].data_ptr(): weights for key, weights in replacements.items() if state[key].numel()}
    return {key: replacements.get(key, places.get(weights.data_ptr(), weights)) for key, weights in state.items()}
