"""The model that is trained, and the one that comes of it.

Training needs a model of its own: the given one must stay as it is, and nnsight watches its modules. A second model of 7 B would
need 14 GB for weights of which most never change. So `tunable_model` shares with the given model every tensor that is frozen,
and copies those alone that are trained. `finished` makes a `VLM` of it that shares them too.

The trained copies are float32, whatever the precision of the model: a step of AdamW is often smaller than the spacing of numbers
in bfloat16, so that weights in bfloat16 would stand still. A trained parameter then takes 16 bytes: 4 for the copy, 4 for the
gradient and 8 for AdamW's two states. A frozen one takes none beside what the given model has. Half of the 32 layers of a 7 B
model are 3.2 B parameters, 52 GB (worked out, not measured).

    model = tunable_model(vlm, trained_names(vlm, layers=range(2, 6)))
    ...                                     # steps of an optimiser on the parameters with requires_grad
    tuned = finished(model, vlm)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interp.errors import InputError
from interp.models import VLM, load
from interp.models.adapters import merged_weights
from interp.models.copying import sharing_module
from interp.tuning.lora import add_adapters
from interp.tuning.trained_parts import is_within, layer_of


def tunable_model(vlm: VLM, names: Iterable[str], lora: Any = None) -> nn.Module:
    """A model of the class of `vlm.model` that shares all tensors with it but for these, which are float32 copies to train.

    >>> import interp
    >>> from interp.tuning.trained_parts import trained_names
    >>> vlm = interp.load("toy")
    >>> model = tunable_model(vlm, trained_names(vlm, layers=[3]))
    >>> sum(weights.requires_grad for weights in model.parameters())
    9

    `names` are names of parameters, as `trained_names` gives them. `requires_grad` is True for these alone, so that the backward
    pass stops below the lowest of them. With `lora`, a rank or a `peft.LoraConfig`, the layers among `names` get adapters and
    stay frozen themselves (see `interp.tuning.lora`); other parts are trained in full beside them. Adapters are drawn at random:
    set torch's seed before.

    The model is in eval mode. Where the given model is in bfloat16 or float16, its passes need autocast to that precision
    (`TrainingArguments(bf16=True)`, or `fp16=True` on a GPU), because bfloat16 states meet float32 weights; `autocast_precision`
    says whether. Buffers are copied, so that nothing that training does reaches the given model.

    Raises `InputError` for a name that no parameter has, a module whose forward pass was replaced by a function, and what
    `add_adapters` raises.
    """
    names = list(names)
    _check_names(vlm, names, "names")
    adapted = (
        sorted({layer for name in names if (layer := layer_of(vlm, name)) is not None}) if lora is not None else []
    )
    full = {name for name in names if lora is None or layer_of(vlm, name) is None}
    copies: dict[int, nn.Parameter] = {}
    others: dict[str, Tensor] = {}
    for name, weights in vlm.model.named_parameters(remove_duplicate=False):
        if id(weights) not in copies:  # the first of its names is the one that `trained_names` gives
            trained = name in full
            values = weights.detach()
            values = values.to(torch.promote_types(values.dtype, torch.float32), copy=True) if trained else values
            copies[id(weights)] = nn.Parameter(values, requires_grad=trained)
        others[name] = copies[id(weights)]
    others |= {name: buffer.detach().clone() for name, buffer in vlm.model.named_buffers(remove_duplicate=False)}
    model = sharing_module(vlm.model, others)
    if lora is not None:
        config = add_adapters(model, vlm.structure.layers, adapted, lora)
        config.base_model_name_or_path, config.revision = vlm.name, vlm.revision
    return model.eval()


def autocast_precision(vlm: VLM) -> torch.dtype | None:
    """The precision that passes of a tunable model must be autocast to: that of a model in half precision, else None."""
    return vlm.dtype if vlm.dtype in (torch.bfloat16, torch.float16) else None


def fingerprints(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """A SHA-256 of the dtype, the shape and the bytes of each of these parameters or buffers, by name.

    Equal tensors have equal ones, bit for bit; a layer's own weight keeps its name under an adapter.

    >>> import interp
    >>> vlm = interp.load("toy")
    >>> before, after = (fingerprints(each, ["lm_head.weight"]) for each in (vlm.model, tunable_model(vlm, [])))
    >>> before == after
    True
    """
    return {name: _fingerprint(_tensor(model, name)) for name in names}


def finished(model: nn.Module, vlm: VLM) -> VLM:
    """The `VLM` that a tunable model of `vlm` has become: adapters merged, trained tensors in the precision they came from.

    It runs where `vlm` does, also where a trainer has moved the tunable model to another device.

    All that was frozen is shared with `vlm`. Nothing else of the training stays on it: neither hooks nor wrappers nor settings.
    It is not proved again; `check()` does.

    Raises `InputError` for a model that was made of another one.
    """
    tuned: dict[str, Tensor] = merged_weights(model)
    for name, weights in model.named_parameters():
        if weights.requires_grad and ".lora_" not in name:
            tuned[name] = weights.detach()
    _check_names(vlm, tuned, "the model that was trained")
    copies: dict[int, nn.Parameter] = {}
    others: dict[str, Tensor] = {}
    for name, weights in vlm.model.named_parameters(remove_duplicate=False):
        if name in tuned:
            values = tuned[name].to(weights.device, weights.dtype, copy=True)
            copies.setdefault(id(weights), nn.Parameter(values, requires_grad=weights.requires_grad))
        if id(weights) in copies:
            others[name] = copies[id(weights)]
    new = load(model=sharing_module(vlm.model, others), processor=vlm.processor, structure=vlm.structure, check=False)
    new.name, new.checked_on = f"{vlm.name} tuned in {_description(vlm, sorted(tuned))}", vlm.checked_on
    new.remote = vlm.remote
    return new


def _check_names(vlm: VLM, names: Iterable[str], what: str) -> None:
    own = {name for name, _ in vlm.model.named_parameters()}
    foreign = next((name for name in names if name not in own), None)
    if foreign is not None:
        raise InputError(
            f"{what} has {foreign!r}, and {vlm.name!r} has no parameter of that name: expected some of trained_names(vlm)"
        )


def _description(vlm: VLM, names: Sequence[str]) -> str:
    """These parts in words, "layers 2 to 5, connector and head"."""
    s = vlm.structure
    numbers = sorted({layer for name in names if (layer := layer_of(vlm, name)) is not None})
    gapless = len(numbers) > 1 and numbers == list(range(numbers[0], numbers[-1] + 1))
    words = f"{numbers[0]} to {numbers[-1]}" if gapless else ", ".join(map(str, numbers))
    parts = [f"layer{'s' * (len(numbers) > 1)} {words}"] if numbers else []
    rest = {name for name in names if layer_of(vlm, name) is None}
    # The connector comes first, since it may stand inside the tower.
    for word, paths in (
        ("connector", (s.projector,)),
        ("image tower", (s.vision,)),
        ("head", (s.norm, s.head, s.embed)),
    ):
        here = {name for name in rest if any(is_within(name, path) for path in paths)}
        parts += [word] if here else []
        rest -= here
    return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part) or "nothing"


def _tensor(model: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    tensor = getattr(model.get_submodule(owner), leaf)
    assert isinstance(tensor, Tensor)
    return tensor


def _fingerprint(tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    # The new last axis has stride 1, so that any tensor can be viewed as bytes.
    digest.update(tensor.detach().cpu().contiguous().unsqueeze(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
