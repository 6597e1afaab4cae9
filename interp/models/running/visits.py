"""Visits: what chosen modules take and return when the model runs, without anything known of them.

A visit is one run of a module within a trace. `run_for_visits` returns the tensors of every visit, from which
`interp.models.layout` solves what a part does; `run_for_shapes` returns shapes alone and stops before layer 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from torch import Tensor

from interp.models.batches.encodings import explained
from interp.models.running.slots import InputSlot, first, is_feature_list
from interp.models.running.steps import Step, follow
from interp.models.running.trace import memory_freed

if TYPE_CHECKING:
    from interp.models.running.core import Core


@dataclass(frozen=True)
class Visit:
    """The first input and the first output of a module when it ran, None where that is no floating-point tensor, and the
    `others` among its outputs."""

    input: Tensor | None
    output: Tensor | None
    others: tuple[Tensor | None, ...] = ()


@dataclass(frozen=True)
class Shapes:
    """The shape of the first input of a module and those of all its outputs, on one visit. `is_list` says whether the
    output was a list of features."""

    input: tuple[int, ...] | None
    outputs: list[tuple[int, ...]]
    is_list: bool


def run_for_visits(
    core: Core, inputs: Mapping[str, Tensor], envoys: Sequence[Any], **options: Any
) -> dict[str, list[Visit]]:
    """One forward pass: the visits to these modules by their nnsight paths, in the order in which they began."""
    options = {**core.on_device(inputs), **options, **core.trace_options}
    with explained(), torch.no_grad(), core.nnsight.trace(**options) as tracer:
        cache = tracer.cache(modules=list(envoys), include_inputs=True).save()
    return {
        path: [Visit(_tensor(value), _tensor(output), _others(output)) for value, output in visits]
        for path, visits in visits_in(cache).items()
    }


def run_for_shapes(core: Core, inputs: Mapping[str, Tensor], envoys: Sequence[Any]) -> dict[str, list[Shapes]]:
    """The shapes at each visit to these modules before layer 0, by their nnsight paths; nothing else leaves the trace."""
    options = {**core.on_device(inputs), **core.trace_options}
    # The step is made here: a trace that names the core would be sent with all of it.
    steps = [Step(core.layers[0], InputSlot())]
    with memory_freed(), explained(), torch.no_grad(), core.nnsight.trace(**options) as tracer:
        cache = tracer.cache(modules=list(envoys), include_inputs=True)
        follow(steps, {})
        shapes = nnsight.save(shapes_of(cache))
        tracer.stop()
    return {
        path: [Shapes(inputs[0] if inputs else None, outputs, is_list) for inputs, outputs, is_list in visits]
        for path, visits in shapes.items()
    }


def _tensor(value: Any) -> Tensor | None:
    value = first(value) if isinstance(value, tuple | list | dict) and len(value) else value
    return value if isinstance(value, Tensor) and value.is_floating_point() else None


def _others(value: Any) -> tuple[Tensor | None, ...]:
    if not isinstance(value, tuple | list):
        return ()
    return tuple(_tensor(other) if isinstance(other, Tensor) else None for other in value[1:])


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def visits_in(cache):
    """The visits to each module in a cache, as pairs of its input and its output."""
    visits = {}
    for path in cache.keys():  # noqa: SIM118  a cache's iteration is over what is below it, by number
        module = cache[path]
        once = len(module) == 1
        visits[path] = [(module.input, module.output)] if once else list(zip(module.input, module.output, strict=True))
    return visits


def shapes_of(cache):
    """For each module in a cache, each of its visits: the shapes of its inputs and of its outputs, and whether these are
    a list of features."""
    return {
        path: [(shapes_in(value), shapes_in(output), is_feature_list(output)) for value, output in visits]
        for path, visits in visits_in(cache).items()
    }


def shapes_in(value):
    """The shapes of the tensors among what a module takes or returns; of named ones only that of the first."""
    value = first(value) if isinstance(value, dict) and len(value) else value
    values = value if isinstance(value, tuple | list) else [value]
    return [tuple(each.shape) for each in values if isinstance(each, torch.Tensor)]
