"""Slots: how the value of a site is taken from what a module holds, and how another value is put there.

A site such as `z` means the same in every model, but each model keeps it in another form: among the inputs of a module or
among its outputs, scaled, flattened over rows, or cut out of a wider tensor. A *place* is an nnsight envoy (the module
inside a trace) and a *slot*, which knows the form. Every slot has two methods:

    whole, value = slot.take(envoy, context)          what the module holds, and the value of the site in it
    slot.put(envoy, context, whole, before, value)    writes `value` where `take` returned `whole` and `before`

====================  =====================================  ===========================================================
slot                  sites                                  where the value is
====================  =====================================  ===========================================================
`InputSlot`           resid_pre                              the first input
`OutputSlot`          resid_post, attn_out, mlp_out          the first output, times a scale
`MidSlot`             resid_mid                              resid_pre plus the value of an `OutputSlot`
`TokensSlot`          vision_pre, vision_post, projector     the first input or output, as [token, width]
`HeadsSlot`           q, k, v, z, and those of the tower     some features of an input or output, as heads
`MaskSlot`            mask                                   an argument, as who may attend to whom
`TowerMaskSlot`       vision_mask                            the same in a block of the image tower; cannot be written
`PatternSlot`         pattern                                one of the outputs of attention
`TowerPatternSlot`    vision_pattern                         the same, or computed from q and k
`RebuiltSlot`         z and vision_z under edited weights    what a `PatternSlot` wrote
`CallSlot`            a whole call                           all arguments
====================  =====================================  ===========================================================

`context` is a dict of what earlier steps in the same layer took: the values of sites by their names, and under "past" the
number of positions in the cache. `slot.side` says whether it reads and writes the "input" or the "output" of its module,
and `slot.for_rows(n)` is the same slot for a batch of another size.

All of this runs inside a trace, so it is plain torch and can be sent to a server that does not have this package.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from interp.models.running.masks import as_allowed, like
from interp.models.running.structure import Heads

# Inputs and outputs of modules -------------------------------------------------------------------------------------------


def first(value):
    """The tensor of a module's output. Some modules return it alone, others first among several values."""
    if isinstance(value, dict):
        return next(iter(value.values()))
    return value[0] if isinstance(value, tuple | list) else value


def put_first(value, new):
    """A module's output with its tensor replaced by `new`."""
    if isinstance(value, dict):
        return type(value)(**{**value, next(iter(value)): new})
    return type(value)((new, *value[1:])) if isinstance(value, tuple | list) else new


def first_argument(args, kwargs):
    """The first argument of a call, which holds its states."""
    return args[0] if args else next(iter(kwargs.values()))


def is_feature_list(value):
    """Whether a module's output is a list of features of one width, as of several images or tiles."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(each, torch.Tensor) and each.shape[-1] == value[0].shape[-1] for each in value)


def tokens_of(value):
    """The input or output of a module as `[token, width]`; a list of features one after the other."""
    if is_feature_list(value):
        return torch.cat([each.flatten(0, -2) for each in value])
    return first(value).flatten(0, -2)


def put_tokens(value, new):
    """The input or output of a module with its tokens replaced by `new` `[token, width]`."""
    if is_feature_list(value):
        parts = new.split([each.shape[:-1].numel() for each in value])
        return [part.reshape(each.shape) for part, each in zip(parts, value, strict=True)]
    return put_first(value, new.reshape(first(value).shape))


# Heads and attention weights ---------------------------------------------------------------------------------------------


def as_heads(value, heads, rows):
    """The heads in the last axis of a value, `[row, position, head, d_head]`; `heads` is a `Heads`."""
    parts = value.reshape(rows, -1, heads.groups, value.shape[-1] // heads.groups)
    return parts[..., heads.offset : heads.offset + heads.width].flatten(2).unflatten(2, (-1, heads.d_head))


def in_rows(value, rows, context):
    """A value as `[row, position, width]`. Where `rows` is None, a row is a sequence of a block of the image tower."""
    if rows is not None:
        return value.reshape(rows, -1, value.shape[-1])
    sequences, _, length, _ = context["vision_mask"].shape
    return value.reshape(sequences, length, -1)


def mean_of_values(pattern, v):
    """The outputs of heads with these weights, `[batch, query, head, d_head]`. The heads of a group share a value, and
    a sliding window has weights for the last keys alone."""
    v = v[:, -pattern.shape[-1] :]
    each = v.repeat_interleave(pattern.shape[2] // v.shape[2], dim=2)
    return torch.einsum("bqhk,bkhd->bqhd", pattern.to(v.dtype), each)


def unmoved(value, before):
    """True where a value did not change. All False while gradients are recorded, because they must pass through the value."""
    return (value == before) & (not value.requires_grad)


def put_projected(envoy, projection, before, z):
    """Replace the output of attention by the projection of `z` at the positions where `z` differs from `before`."""
    whole = envoy.output
    output = first(whole)
    same = unmoved(z, before).flatten(2).all(dim=2, keepdim=True)
    new = projection(z.flatten(2))
    envoy.output = put_first(whole, torch.where(same, output.reshape(new.shape), new).reshape(output.shape))


# The image tower ---------------------------------------------------------------------------------------------------------


def tower_mask(hidden, visibility, limits):
    """Who may see whom, Bool `[sequence, 1 or head, query, key]`; `limits` is the mask or the bounds of chunks, or None."""
    rows = 1 if hidden.ndim == 2 else hidden.shape[0]
    states = hidden.reshape(rows, -1, hidden.shape[-1])
    if visibility != "chunks" or limits is None:
        return as_allowed(limits, states, False)
    chunk = torch.searchsorted(limits, torch.arange(states.shape[1], device=limits.device), right=True)
    return (chunk[:, None] == chunk)[None, None].expand(rows, -1, -1, -1).to(hidden.device)


def rotated(value, angles):
    """Each head `[.., token, head, d_head]`, its first half of features rotated with its second by the token's angles."""
    cosines, sines = (each.unsqueeze(-2).float() for each in angles)
    first_half, second_half = value.chunk(2, dim=-1)
    return value * cosines + torch.cat([-second_half, first_half], dim=-1) * sines


def weights_of(q, k, allowed, angles):
    """The weights `[sequence, query, head, key]` of queries and keys; without rotation where `angles` is None."""
    q, k = q.float(), k.float().repeat_interleave(q.shape[2] // k.shape[2], dim=2)
    if angles is not None:
        q, k = rotated(q, angles), rotated(k, angles)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1).transpose(1, 2)


# Slots -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Argument:
    """An argument of a module's call, by its name and its place."""

    name: str
    place: int

    def of(self, args, kwargs):
        """Its value in a call; None where the call does not have it."""
        return kwargs.get(self.name, args[self.place] if self.place < len(args) else None)

    def put(self, args, kwargs, value):
        """The arguments of a call with another value for this one."""
        if self.name in kwargs or self.place >= len(args):
            return args, {**kwargs, self.name: value}
        return (*args[: self.place], value, *args[self.place + 1 :]), kwargs


class Slot:
    """What all slots have. One that depends on the number of rows in a batch has it in `rows`."""

    side: str = "output"
    rows: int | None = None

    def for_rows(self, rows):
        """The same slot for a batch of so many rows."""
        return self if self.rows is None else replace(self, rows=rows)  # type: ignore[type-var]


@dataclass(frozen=True)
class InputSlot(Slot):
    """The first input."""

    side = "input"

    def take(self, envoy, context):
        whole = envoy.input
        return whole, first(whole)

    def put(self, envoy, context, whole, before, value):
        envoy.input = value


@dataclass(frozen=True)
class OutputSlot(Slot):
    """The first output times `scale`; `rows` is the number of rows where the module returns them one after the other."""

    scale: float = 1.0
    rows: int | None = None

    def take(self, envoy, context):
        whole = envoy.output
        value = first(whole) if self.scale == 1 else first(whole) * self.scale
        return whole, self.by_row(value)

    def put(self, envoy, context, whole, before, value):
        self.put_where_moved(envoy, whole, unmoved(value, before), value)

    def put_where_moved(self, envoy, whole, same, value):
        """Put `value`, except where it is the `same` as before: the way to the site and back would round there."""
        new = value if self.scale == 1 else value / self.scale
        new = torch.where(same, self.by_row(first(whole)), new)
        envoy.output = put_first(whole, new if self.rows is None else new.flatten(0, 1))

    def by_row(self, value):
        return value if self.rows is None else value.unflatten(0, (self.rows, -1))


@dataclass(frozen=True)
class MidSlot(Slot):
    """The state between attention and MLP: the state that entered the layer plus what attention has `added`."""

    added: OutputSlot = OutputSlot()

    def for_rows(self, rows):
        return MidSlot(self.added.for_rows(rows))

    def take(self, envoy, context):
        whole, value = self.added.take(envoy, context)
        return whole, context["resid_pre"] + value

    def put(self, envoy, context, whole, before, value):
        self.added.put_where_moved(envoy, whole, unmoved(value, before), value - context["resid_pre"])


@dataclass(frozen=True)
class TokensSlot(Slot):
    """The first input or output as `[token, width]`, whatever its shape; see `tokens_of`."""

    side: str = "output"

    def take(self, envoy, context):
        whole = getattr(envoy, self.side)
        return whole, tokens_of(whole)

    def put(self, envoy, context, whole, before, value):
        setattr(envoy, self.side, put_tokens(whole, value))


@dataclass(frozen=True)
class CallSlot(Slot):
    """All arguments of the call, as `(args, kwargs)`."""

    side = "input"

    def take(self, envoy, context):
        return None, envoy.inputs

    def put(self, envoy, context, whole, before, value):
        envoy.inputs = value


@dataclass(frozen=True)
class MaskSlot(Slot):
    """The mask argument of attention, as Bool `[batch, 1 or head, query, key]`; None is causal or not."""

    argument: Argument
    causal: bool

    side = "input"

    def take(self, envoy, context):
        args, kwargs = envoy.inputs
        mask, hidden = self.argument.of(args, kwargs), first_argument(args, kwargs)
        return (args, kwargs), as_allowed(mask, hidden, self.causal, context["past"])

    def put(self, envoy, context, whole, before, value):
        args, kwargs = whole
        new = like(value, before, self.argument.of(args, kwargs), first_argument(args, kwargs))
        envoy.inputs = self.argument.put(args, kwargs, new)


@dataclass(frozen=True)
class TowerMaskSlot(Slot):
    """Who may see whom in a block of the image tower, as Bool `[sequence, 1 or head, query, key]`.

    `visibility` is that of `TowerWeights`, `limits` the argument with the mask or the bounds of chunks, and `angles` the
    argument with the angles of the rotation, which is kept in the context.
    """

    visibility: str
    limits: Argument | None
    angles: Argument | None

    side = "input"

    def take(self, envoy, context):
        args, kwargs = envoy.inputs
        context["angles"] = None if self.angles is None else self.angles.of(args, kwargs)
        limits = None if self.limits is None else self.limits.of(args, kwargs)
        return (args, kwargs), tower_mask(first_argument(args, kwargs), self.visibility, limits)


@dataclass(frozen=True)
class HeadsSlot(Slot):
    """One vector a head, `[row, position, head, d_head]`; `heads` is a `Heads`. In the image tower `rows` is None, and the
    rows are the sequences of the block."""

    heads: Heads
    rows: int | None

    @property
    def side(self):  # type: ignore[override]
        return self.heads.side

    def take(self, envoy, context):
        whole = getattr(envoy, self.side)
        value = in_rows(first(whole), self.rows, context)
        return whole, as_heads(value, self.heads, len(value))

    def put(self, envoy, context, whole, before, value):
        heads, tensor = self.heads, first(whole)
        new = in_rows(tensor, self.rows, context).clone().unflatten(2, (heads.groups, -1))
        new[..., heads.offset : heads.offset + heads.width] = value.flatten(2).unflatten(2, (heads.groups, heads.width))
        setattr(envoy, self.side, put_first(whole, new.reshape(tensor.shape)))


@dataclass(frozen=True)
class PatternSlot(Slot):
    """The attention weights `[batch, query, head, key]`, at `index` among the outputs of attention.

    Other weights give another z, the mean of v with them, and so another output of attention: the `projection` of that z.
    """

    index: int | None
    projection: Any

    prefix = ""

    def take(self, envoy, context):
        whole = envoy.output
        return whole, whole[self.index].transpose(1, 2)

    def put(self, envoy, context, whole, before, value):
        v, old = context[f"{self.prefix}v"], context[f"{self.prefix}z"]
        moved = (value != before).any(dim=-1, keepdim=True)
        z = torch.where(moved, mean_of_values(value, v), old)
        if self.index is not None:
            weights = value.transpose(1, 2).reshape(whole[self.index].shape)
            envoy.output = type(whole)((*whole[: self.index], weights, *whole[self.index + 1 :]))
        put_projected(envoy, self.projection, old, z)
        context[f"{self.prefix}z"] = z


@dataclass(frozen=True)
class TowerPatternSlot(PatternSlot):
    """The weights `[sequence, query, head, key]` of a block of the image tower. Where attention does not return them
    (`index` is None) they are computed from its queries and keys."""

    prefix = "vision_"

    def take(self, envoy, context):
        whole, allowed = envoy.output, context["vision_mask"]
        if self.index is None:
            return whole, weights_of(context["vision_q"], context["vision_k"], allowed, context["angles"])
        # Attention may have put sequences and heads on one axis.
        rows, _, length, _ = allowed.shape
        return whole, whole[self.index].reshape(rows, -1, length, length).transpose(1, 2)


@dataclass(frozen=True)
class RebuiltSlot(Slot):
    """z under edited weights: the value of `site` that a `PatternSlot` put into the context, and its `projection`."""

    projection: Any
    site: str

    def take(self, envoy, context):
        return None, context[self.site]

    def put(self, envoy, context, whole, before, value):
        put_projected(envoy, self.projection, before, value)
