"""Replay: call a layer again for other states, from a position on, with stored keys and values.

Everything here is plain torch and runs inside a trace, where the layers of a model may be called again after they ran. The
arguments of the model's own call are used again, cut to the positions from `start` on and expanded to as many versions of
the run as there are. A `Cache` that returns the stored keys and values takes the place of the model's own:

    call_layer(run, 5, states, start, keys)     what leaves layer 5 for these states at the positions from start on
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from interp.models.running.slots import Argument, first, first_argument


@dataclass(frozen=True)
class Signature:
    """The arguments of a layer that have its cache and its mask, None where it takes none, and whether it is causal
    without a mask."""

    cache: Argument | None
    mask: Argument | None
    causal: bool = False


class KeysMade(Exception):
    """A layer has made its keys and values, and the rest of it is not needed."""


class Cache:
    """Stands for a layer's cache, and has in `keys` the keys and values that each layer made, `[row, head, position, d_head]`.

    With `stored` ones, those of the positions before `start` are put before the new ones. With `leave`, the layer is left as
    soon as it has made its own.
    """

    def __init__(self, stored=None, start=0, leave=False):
        self.stored, self.start, self.leave, self.keys = stored, start, leave, {}

    def update(self, keys, values, layer, *rest, **options):
        if self.stored is not None:
            old_keys, old_values = self.stored[layer]
            keys, values = put_before(old_keys, keys, self.start), put_before(old_values, values, self.start)
        self.keys[layer] = keys, values
        if self.leave:
            raise KeysMade
        return keys, values

    def get_seq_length(self, *rest):
        return self.start


class Run:
    """The untouched run: its layers, their signatures and places, and the values that were taken from it.

    `values` has, by layer, what it was called with ("call"), and what entered and what left it ("enters", "leaves"); `keys`
    are the keys and values at all positions, None where layers are called without a cache. `tail` positions are read out.
    """

    def __init__(
        self,
        layers: dict[int, Any],
        signatures: dict[int, Signature],
        places: Any,
        values: Any,
        keys: Any,
        tail: int = 1,
    ):
        self.layers, self.signatures, self.places, self.values, self.keys = layers, signatures, places, values, keys
        self.tail = tail
        self.last = max(layers)
        self.length = values["leaves", self.last].shape[1]
        self.added = {layer: self.added_before(layer) for layer in layers if layer - 1 in layers}

    def added_before(self, layer):
        """What the model adds to the states on their way into a layer, None where that is nothing."""
        states = self.values["enters", layer]
        added = states - self.values["leaves", layer - 1].to(states.device)
        return added if added.any() else None


# Arguments ---------------------------------------------------------------------------------------------------------------


def with_states(args, kwargs, states):
    """The arguments of a call with other states in the place of the first."""
    if args:
        return (states, *args[1:]), kwargs
    return args, {**kwargs, next(iter(kwargs)): states}


def with_cache(call, cache, argument):
    """The arguments of a layer's call with another cache."""
    return argument.put(*call, cache)


def from_position(value, start, length, versions):
    """An argument cut to the positions from `start` on, and expanded from a single row to so many versions.

    A tensor's leftmost axis of `length` is taken to be the sequence, an axis of one row before it is expanded.
    """
    if isinstance(value, torch.Tensor):
        axis = next((axis for axis, size in enumerate(value.shape) if size == length), None)
        value = value if axis is None else value.narrow(axis, start, length - start)
        return value.expand(versions, *value.shape[1:]) if value.ndim > 1 and len(value) == 1 else value
    if isinstance(value, tuple | list):
        return type(value)(from_position(each, start, length, versions) for each in value)
    if isinstance(value, dict):
        return {name: from_position(each, start, length, versions) for name, each in value.items()}
    return value


def put_before(old, new, start):
    """Stored keys or values of the positions before `start`, and after them the new ones. Keys of a picture, which layers
    with cross-attention make of all of it, are returned as they are."""
    if old.shape[2] != start + new.shape[2]:
        return new
    return torch.cat([old[:, :, :start].to(new.device).expand(len(new), -1, -1, -1), new], dim=2)


# Calls -------------------------------------------------------------------------------------------------------------------


def call_layer(run, layer, hidden, start, stored):
    """What leaves a layer when `hidden` `[version, position, width]` enters it at the positions from `start` on."""
    cache = None if run.keys is None else Cache(stored, start)
    args, kwargs = arguments(run, layer, hidden, start, cache)
    return first(run.layers[layer](*args, **kwargs))


def arguments(run, layer, hidden, start, cache):
    """What a layer is called with for these states and this cache."""
    signature, queries = run.signatures[layer], run.length - start
    args, kwargs = from_position(run.values["call", layer], start, run.length, len(hidden))
    if signature.cache is not None:
        args, kwargs = signature.cache.put(args, kwargs, cache)
    if signature.causal and queries > 1 and signature.mask is not None and signature.mask.of(args, kwargs) is None:
        # Without a mask, attention with fewer queries than keys would begin to count at the first key.
        mask = torch.ones(queries, run.length, dtype=torch.bool, device=hidden.device).tril(start)
        args, kwargs = signature.mask.put(args, kwargs, mask[None, None])
    return with_states(args, kwargs, hidden)


def call_for_last(run, layer, hidden, start):
    """What leaves a layer at the positions that are read out: of the others only keys and values are made."""
    cache = Cache(run.keys, start, leave=True)
    args, kwargs = arguments(run, layer, hidden, start, cache)
    try:
        run.layers[layer](*args, **kwargs)
    except KeysMade:
        return call_layer(run, layer, hidden[:, -run.tail :], run.length - run.tail, cache.keys)


def call_changed(run, layer, hidden, start, change):
    """What leaves a layer when ``change(value)`` takes the place of the value at the site inside of it."""
    envoy, slot = run.places[layer]
    slot = slot.for_rows(len(hidden))
    context = {"resid_pre": hidden, "past": 0}

    def changed(**content):
        module = SimpleNamespace(**content)
        whole, value = slot.take(module, context)
        slot.put(module, context, whole, value, change(value))
        return getattr(module, slot.side)

    def before(module, args, kwargs):
        return with_states(args, kwargs, changed(input=first_argument(args, kwargs)))

    def after(module, args, output):
        return changed(output=output)

    module = envoy._module
    if slot.side == "input":
        hook = module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        hook = module.register_forward_hook(after)
    try:
        return call_layer(run, layer, hidden, start, run.keys)
    finally:
        hook.remove()
