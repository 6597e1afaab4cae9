"""Offloaded weights: weights that are on disk or in other memory until their module runs, as `device_map=` asks for.

accelerate keeps them: outside of their module's forward pass they are on no device ("meta"), and a hook of the module loads
them. A model on NDIF has weights on no device too, but no hooks. So where a model runs is not where its first weights are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def run_device(model: nn.Module) -> torch.device:
    """The device that a model takes its inputs on: that of the first weights here, or else of its hooks; "meta" for a model
    without weights on this machine."""
    for weights in model.parameters():
        if not weights.is_meta:
            return weights.device
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    return torch.device(next((device for device in devices if device is not None), "meta"))


def send_inputs_where_it_runs(wrapped: Any) -> Any:
    """A model of nnsight that sends inputs where the model runs; by itself it sends them to the device of the first weights,
    which for offloaded ones is none."""
    first = next(wrapped._module.parameters(), None)
    if first is not None and first.is_meta and run_device(wrapped._module).type != "meta":
        kind = type(wrapped)
        own = {"device": property(lambda self: run_device(self._module)), "__module__": kind.__module__}
        wrapped.__class__ = type(kind.__name__, (kind,), own)
    return wrapped


@contextmanager
def device_first(model: Any) -> Iterator[None]:
    """Within it the model's map of places names the device where it runs: a pipeline takes the first place for a device, and
    a disk is none."""
    places = getattr(model, "hf_device_map", None)
    if not places:
        yield
        return
    model.hf_device_map = {"": run_device(model)}
    try:
        yield
    finally:
        model.hf_device_map = places


@contextmanager
def weights_here(module: nn.Module) -> Iterator[None]:
    """Within it the module's own weights are on the device where it runs, also if they are offloaded."""
    if not any(weights.is_meta for weights in module.parameters(recurse=False)) or not hasattr(module, "_hf_hook"):
        yield
        return
    from accelerate.utils.modeling import align_module_device

    with align_module_device(module):
        yield
