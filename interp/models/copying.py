"""Copies of a model: a deep copy in this process, a pickle for another one, and a module that shares its weights.

`copy.deepcopy(vlm)` has weights of its own, so that changing them leaves the original as it is; `copy.copy(vlm)` shares them.
A pickle takes the weights along, to workers of multiprocessing, of joblib or of a `DataLoader`. Both keep the structure and
all traits that were measured, so that nothing is proved again. `sharing_module` is for models that differ in some weights.

nnsight's wrapper belongs to the module that it was put around. A copied module gets a wrapper of its own kind.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Mapping
from contextlib import suppress
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from interp.errors import InputError

# What nnsight's wrapper of a transformers model was made with.
_PARTS = ("task", "processor", "tokenizer", "image_processor", "feature_extractor")


def copied(vlm: Any, memo: dict[int, Any]) -> Any:
    """A copy of a `VLM` with weights of its own. One that runs on a server has none here, so its copy shares the wrapper.

    Raises `InputError` for a model that accelerate spreads over devices.
    """
    refuse_spread(vlm, "copied")
    wrapped = vlm.nnsight
    if not vlm.remote:
        wrapped = type(wrapped)(copy.deepcopy(vlm.model, memo), **copy.deepcopy(_parts(wrapped), memo))
    new = type(vlm)(wrapped, vlm.structure, vlm.name, vlm.revision, vlm.remote)
    memo[id(vlm)] = new
    new.checked_on, new.tried = vlm.checked_on, dict(vlm.tried)
    return new


def pickled(vlm: Any) -> tuple[Any, ...]:
    """What `pickle` makes a `VLM` of again: its kind, its weights, and what is known of it.

    Raises `InputError` for a model with something that cannot be pickled, such as a hook that is a lambda.
    """
    refuse_spread(vlm, "pickled")
    model, wrapped = _without_records(vlm.model), vlm.nnsight
    try:
        _WithoutWeights(io.BytesIO()).dump((model, _parts(wrapped)))
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise InputError(
            f"{vlm.name!r} cannot be pickled ({error}): load it in each process, or remove the hook that holds this"
        ) from error
    known = {"structure": vlm.structure, "name": vlm.name, "revision": vlm.revision}
    state = {"checked_on": vlm.checked_on, "tried": vlm.tried}
    return unpickled, (type(vlm), type(wrapped), model, _parts(wrapped), known, vlm.maker.key), state


def unpickled(
    kind: Any,
    wrapper: type,
    model: nn.Module,
    parts: dict[str, Any],
    known: dict[str, Any],
    key: str,
) -> Any:
    """The model that `pickled` described; `pickle` then sets its further attributes."""
    _register_records(model)
    vlm = kind(wrapper(model, **parts), **known)
    vlm.maker.goes_by(key)
    return vlm


class Unsendable:
    """Stands in the state of a model that runs on a server, so that a trace can be sent there and nothing else can.

    nnsight replaces what bears such an id by an object of the server, and does not look into it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._persistent_id = "Interleaver"

    def __reduce__(self) -> Any:
        raise InputError(
            f"{self.name!r} runs remotely and cannot be pickled: load it in each process, which takes no weights there"
        )


class _WithoutWeights(pickle.Pickler):
    """Pickles all but the tensors, which shows within milliseconds whether a model can be pickled."""

    def persistent_id(self, value: Any) -> str | None:
        return "weights" if isinstance(value, Tensor) else None


def sharing_module(model: nn.Module, others: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A module like `model`, in eval mode, that shares every tensor with it but for these `others`, by all of their names.

    Modules, hooks, config and settings for generation are its own, and weights that are tied are tied in it. What nnsight
    and transformers keep on the modules that they watch stays behind.

    Raises `InputError` for a module whose forward pass was replaced by a function that holds on to other weights.
    """
    module = _without_records(model)
    for path, part in module.named_modules():
        _unwrap(part, path)
    for name, tensor in (others or {}).items():
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, tensor)
    return module.eval()


def _unwrap(part: nn.Module, path: str) -> None:
    """Take nnsight's stand-in for the forward pass off a module. A pass that was this module's alone comes back."""
    state, forward = vars(part).pop("__nnsight__", None), vars(part).pop("forward", None)
    forward = forward if state is None else state.original
    if forward is None or forward is type(part).forward:
        return
    function = getattr(forward, "__func__", forward)
    if not isinstance(function, FunctionType) or function.__closure__:  # it may hold on to the other module's weights
        raise InputError(
            f"the forward pass of {path!r} ({type(part).__name__}) was replaced by another function, which cannot be "
            "copied: load the model a second time"
        )
    vars(part)["forward"] = MethodType(function, part)


def refuse_spread(vlm: Any, what: str) -> None:
    """Raise `InputError` for a model that accelerate spreads over devices, or keeps on a disk."""
    if any("_hf_hook" in vars(module) for module in vlm.model.modules()):
        raise InputError(
            f"{vlm.name!r} is spread over devices by accelerate, whose hooks cannot be {what}: load it a second time"
        )


def _parts(wrapped: Any) -> dict[str, Any]:
    parts = {name: getattr(wrapped, name, None) for name in _PARTS}
    return {name: part for name, part in parts.items() if part is not None} if hasattr(wrapped, "task") else {}


# transformers records hidden states by hooks that it adds when a model first runs. They are local functions, which cannot
# be pickled, and it adds them again where they are missing. Which outputs a class records it notes when the first model
# of the class is built, which never happens to a model that comes out of a pickle.


def _without_records(model: nn.Module) -> nn.Module:
    """The same model with the same weights, without the hooks that transformers added."""
    tensors = [*model.parameters(), *model.buffers()]
    bare = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    for module in bare.modules():
        vars(module).pop("_output_capturing_hooks_installed", None)
        for key, hook in list(module._forward_hooks.items()):
            if getattr(hook, "__module__", "") == "transformers.utils.output_capturing":
                del module._forward_hooks[key]
    return bare


def _register_records(model: nn.Module) -> None:
    """Note which outputs the classes of this model record, as building them would have done."""
    with suppress(ImportError):
        from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY as registry

        for module in model.modules():
            if hasattr(module, "_can_record_outputs"):
                registry[module] = module._can_record_outputs
