"""Lazy tensors: tensors in many files, which are read when they are indexed.

A captured site is `[state, example, ...]`, cut along its examples into shards. A `LazyTensor` is the whole of it unread:
it has the shape and the dtype, and indexing it reads what is indexed from the shards and nothing else.

>>> first = Part(lambda states, examples: torch.ones(9, 4, 2)[states, examples], examples=4)
>>> second = Part(lambda states, examples: torch.zeros(9, 3, 2)[states, examples], examples=3)
>>> site = LazyTensor((first, second), (9, 7, 2), torch.float32)
>>> site[8, 2:6].tolist()
[[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import InputError


def _indices(key: Any, size: int, what: str) -> tuple[Tensor, bool]:
    """An index of one axis as Int `[n]`, and whether it is one number, which removes the axis."""
    try:
        key = key.item() if isinstance(key, np.generic) else key
        plain = isinstance(key, int | slice | Tensor)
        index = torch.arange(size)[key if plain else torch.as_tensor(key, dtype=None if len(key) else torch.long)]
    except (IndexError, TypeError, ValueError) as error:
        raise InputError(f"{what} index {key!r}: {error}, expected what fits an axis of {size}") from None
    if index.ndim > 1:
        raise InputError(f"{what} index of shape {tuple(index.shape)}: expected a number or a list of them")
    return index.reshape(-1), index.ndim == 0


@dataclass(frozen=True)
class Part:
    """The examples of one shard: `read(states, examples)` gives `[state, example, ...]` of two slices."""

    read: Callable[[slice, slice], Tensor]
    examples: int


class LazyTensor:
    """A tensor `[state, example, ...]` in parts, read when it is indexed; `site[...]` reads the whole of it.

    Indexing is torch's, by ints, slices, lists, tensors of ints or of bools, and gives a Tensor. Of the first two axes the
    smallest range that has all indices is read, shard by shard. Where the parts differ in a later axis (the keys of an
    attention pattern), it is filled with zeros.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        shape: Sequence[int],
        dtype: torch.dtype,
        states: Sequence[int] | None = None,
        examples: Tensor | None = None,
    ) -> None:
        """`states` and `examples` select from the parts, in the order of this tensor; None selects all."""
        self._parts, self._whole, self.dtype = tuple(parts), tuple(shape), dtype
        self._states = list(range(shape[0])) if states is None else list(states)
        self._examples = examples
        self._starts = torch.tensor([0, *itertools.accumulate(part.examples for part in self._parts)])

    @property
    def shape(self) -> torch.Size:
        examples = self._whole[1] if self._examples is None else len(self._examples)
        return torch.Size((len(self._states), examples, *self._whole[2:]))

    @property
    def ndim(self) -> int:
        return len(self._whole)

    def __len__(self) -> int:
        return len(self._states)

    def __repr__(self) -> str:
        return f"LazyTensor(shape={tuple(self.shape)}, dtype={self.dtype}, in {len(self._parts)} parts)"

    def __iter__(self) -> Iterator[Tensor]:
        """The states one after the other; only one of them is in memory."""
        return (self[state] for state in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        value = self[...]
        array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        return array if dtype is None else array.astype(dtype)

    def __dlpack__(self, **options: Any) -> Any:  # torch reads a sequence number by number, but asks for this first
        return self[...].__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[Any, int]:
        return torch.empty(0, dtype=torch.float32).__dlpack_device__()

    def __getitem__(self, key: Any) -> Tensor:
        first, second, rest = self._split(key)
        states, one_state = _indices(first, len(self), "state")
        examples, one_example = _indices(second, self.shape[1], "example")
        value = self._read([self._states[state] for state in states.tolist()], examples)
        first_two = (0 if one_state else slice(None), 0 if one_example else slice(None))
        value = value[first_two]
        before = [slice(None)] * (2 - one_state - one_example)
        return value[(*before, *rest)] if rest else value

    def narrowed(self, states: Sequence[int] | None, examples: Tensor | None) -> LazyTensor:
        """These states and examples of it, still unread."""
        chosen = self._states if states is None else [self._states[state] for state in states]
        if examples is None:
            examples = self._examples
        elif self._examples is not None:
            examples = self._examples[examples]
        return LazyTensor(self._parts, self._whole, self.dtype, chosen, examples)

    def joined(self, other: LazyTensor) -> LazyTensor:
        """The examples of both, still unread."""
        ours, theirs = (
            torch.arange(each._whole[1]) if each._examples is None else each._examples for each in (self, other)
        )
        later = [max(pair) for pair in zip(self._whole[2:], other._whole[2:], strict=True)]
        if self._states != other._states:
            raise InputError(f"states {self._states!r} and {other._states!r} cannot be joined: expected the same ones")
        shape = (self._whole[0], self._whole[1] + other._whole[1], *later)
        both = torch.cat([ours, theirs + self._whole[1]])
        return LazyTensor((*self._parts, *other._parts), shape, self.dtype, self._states, both)

    def _split(self, key: Any) -> tuple[Any, Any, tuple[Any, ...]]:
        """The indices of the states, of the examples, and of the axes after them."""
        keys = list(key) if isinstance(key, tuple) else [key]
        dots = [place for place, each in enumerate(keys) if each is Ellipsis]
        if len(dots) > 1 or any(each is None for each in keys) or len(keys) - len(dots) > self.ndim:
            raise InputError(f"index {key!r} does not fit shape {tuple(self.shape)}: take [...] of it first")
        if dots:
            keys[dots[0] : dots[0] + 1] = [slice(None)] * (self.ndim - len(keys) + 1)
        keys += [slice(None)] * (2 - len(keys))
        return keys[0], keys[1], tuple(keys[2:])

    def _read(self, states: list[int], examples: Tensor) -> Tensor:
        """`[state, example, ...]` of these states of the parts and these of our examples."""
        examples = examples if self._examples is None else self._examples[examples]
        result = torch.zeros(len(states), len(examples), *self._whole[2:], dtype=self.dtype)
        if not states or not len(examples):
            return result
        low, high = min(states), max(states) + 1
        order = torch.argsort(examples, stable=True)
        cuts = torch.searchsorted(examples[order], self._starts)
        for index in cuts.diff().nonzero().flatten().tolist():
            here = order[cuts[index] : cuts[index + 1]]
            local = examples[here] - self._starts[index]
            first, last = int(local.min()), int(local.max()) + 1
            part = self._parts[index].read(slice(low, high), slice(first, last))
            part = part[torch.tensor(states) - low][:, local - first]
            place: tuple[Any, ...] = (slice(None), here, *(slice(size) for size in part.shape[2:]))
            result[place] = part
        return result
