"""Calling a layer again: for other states, from a position on, with keys and values that were kept.

Everything here is plain torch and runs inside a trace, where the layers of a model may be called out of turn. What the
model called a layer with is used again, cut to the positions wanted and spread over as many versions of the run as there
are; in the place of the cache comes one that hands out what was kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from interp.models.running.places import first, put, take
from interp.models.running.tower_places import argument


@dataclass(frozen=True)
class About:
    """What must be known of a layer to call it: the names of its arguments, of its cache and of its mask among them (None
    where it takes none), and whether it is causal without a mask."""

    names: tuple[str, ...]
    cache: str | None
    mask: str | None
    causal: bool = False


class Enough(Exception):
    """A layer has made its keys and values, and no more of it is wanted."""


class Keys:
    """In the place of a cache: keeps the keys and values that each layer makes, `[row, head, position, d_head]`."""

    def __init__(self):
        self.of = {}

    def update(self, keys, values, layer, *rest, **options):
        self.of[layer] = keys, values
        return keys, values

    def get_seq_length(self, *rest):
        return 0


class Past:
    """In the place of a cache: kept keys and values of the positions before `start`, put before those made anew.

    With `enough`, the layer is left as soon as it has made its own; `of` then has them all.
    """

    def __init__(self, kept, start, enough=False):
        self.kept, self.start, self.enough, self.of = kept, start, enough, {}

    def update(self, keys, values, layer, *rest, **options):
        both = [put_before(old, new, self.start) for old, new in zip(self.kept[layer], (keys, values), strict=True)]
        self.of[layer] = both
        if self.enough:
            raise Enough
        return both

    def get_seq_length(self, *rest):
        return self.start


class Run:
    """The untouched run: the layers, what is known of them, and what was seen and kept of it.

    `seen` has, by layer, what it was called with ("call"), and what entered and what left it ("enters", "leaves"); `keys` is
    what went into the cache, None where layers are called without one, at all positions.
    """

    def __init__(self, layers: dict[int, Any], about: dict[int, About], places: dict[int, Any], seen: Any, keys: Any):
        self.layers, self.about, self.places, self.seen, self.keys = layers, about, places, seen, keys
        self.last = max(layers)
        self.length = seen["leaves", self.last].shape[1]
        self.added = {layer: self.added_before(layer) for layer in layers if layer - 1 in layers}

    def added_before(self, layer):
        """What the model adds to the states on their way into a layer, None where that is nothing."""
        more = self.seen["enters", layer] - self.seen["leaves", layer - 1].to(self.seen["enters", layer].device)
        return more if more.any() else None


class Held:
    """What a module is given or gives, as `take` and `put` want it."""

    def __init__(self, inputs=None, output=None):
        self.inputs, self.output = inputs, output
        if inputs is not None:
            self.input = self.given = inputs[0][0] if inputs[0] else next(iter(inputs[1].values()))

    def inputs_now(self):
        args, kwargs = self.inputs
        return (args, kwargs) if self.input is self.given else with_states(args, kwargs, self.input)


# Arguments ---------------------------------------------------------------------------------------------------------------


def with_states(args, kwargs, states):
    """A call's arguments with other states in the place of the first."""
    if args:
        return (states, *args[1:]), kwargs
    return args, {**kwargs, next(iter(kwargs)): states}


def with_argument(args, kwargs, about, name, value):
    """A call's arguments with another value of this name, which may be given by its place."""
    place = about.names.index(name)
    if name not in kwargs and place < len(args):
        return (*args[:place], value, *args[place + 1 :]), kwargs
    return args, {**kwargs, name: value}


def with_cache(call, keys, about):
    """A layer's call with another cache."""
    args, kwargs = call
    return with_argument(args, kwargs, about, about.cache, keys)


def from_position(value, start, length, versions):
    """What an argument says of the positions from `start` on, for so many versions of a single row.

    A tensor's leftmost axis of `length` is taken to be the sequence, an axis of one row before it is spread.
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
    """Kept keys or values of the positions before `start`, and behind them those made anew; those of a picture, which
    layers with cross-attention make of all of it, as they are."""
    if old.shape[2] != start + new.shape[2]:
        return new
    return torch.cat([old[:, :, :start].to(new.device).expand(len(new), -1, -1, -1), new], dim=2)


# Calls -------------------------------------------------------------------------------------------------------------------


def call_layer(run, layer, hidden, start, kept):
    """What leaves a layer when `hidden` `[version, position, width]` enters it at the positions from `start` on."""
    past = None if run.keys is None else Past(kept, start)
    args, kwargs = arguments(run, layer, hidden, start, past)
    return first(run.layers[layer](*args, **kwargs))


def arguments(run, layer, hidden, start, past):
    """What a layer is called with for these states, with this in the place of its cache."""
    about, queries = run.about[layer], run.length - start
    args, kwargs = from_position(run.seen["call", layer], start, run.length, len(hidden))
    if about.cache is not None:
        args, kwargs = with_argument(args, kwargs, about, about.cache, past)
    told = argument(args, kwargs, about.mask, about.names.index(about.mask)) if about.mask else None
    if about.causal and about.mask and told is None and queries > 1:
        # Without a mask, attention with fewer queries than keys would begin to count at the first key.
        seen = torch.ones(queries, run.length, dtype=torch.bool, device=hidden.device).tril(start)
        args, kwargs = with_argument(args, kwargs, about, about.mask, seen[None, None])
    return with_states(args, kwargs, hidden)


def call_for_last(run, layer, hidden, start):
    """What leaves a layer at the last position: of the others only keys and values are made."""
    past = Past(run.keys, start, enough=True)
    args, kwargs = arguments(run, layer, hidden, start, past)
    try:
        run.layers[layer](*args, **kwargs)
    except Enough:
        return call_layer(run, layer, hidden[:, -1:], run.length - 1, past.of)


def call_changed(run, layer, hidden, start, change):
    """What leaves a layer when ``change(value)`` takes the place of the value at the site inside of it."""
    envoy, side, detail = run.places[layer]
    detail = (*detail[:-1], None if detail[-1] is None else len(hidden))
    kept = {"resid_pre": hidden, "past": 0}

    def seen_through(held):
        whole, value = take(held, side, detail, kept)
        put(held, side, detail, kept, whole, value, change(value))
        return held

    def before(module, args, kwargs):
        return seen_through(Held(inputs=(args, kwargs))).inputs_now()

    def behind(module, args, output):
        return seen_through(Held(output=output)).output

    module = envoy._module
    at_input = side == "input" or (side == "heads" and detail[0] == "input")
    hook = (
        module.register_forward_pre_hook(before, with_kwargs=True) if at_input else module.register_forward_hook(behind)
    )
    try:
        return call_layer(run, layer, hidden, start, run.keys)
    finally:
        hook.remove()
