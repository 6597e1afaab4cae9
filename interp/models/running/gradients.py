"""Gradients: how a measure of the logits changes with the states, at many sites of one run at once.

One forward pass and one backward pass give the states and their gradients at every site. A zero is added to the value of
each site, and the gradient is taken with respect to these zeros alone. So no weight gets a gradient, a model that changes a
state in place later does no harm, and nothing is recorded of what is computed before the first of the sites, such as the
image tower.

States and gradients do not leave the trace: a `GradientRead` says what is computed from both there, and only that is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from torch import Tensor

from interp.models.running.steps import Edit, Read, follow, schedule
from interp.models.running.surroundings import around_run
from interp.models.running.trace import inputs_for_logits, logits_at

if TYPE_CHECKING:
    from interp.models.batches.batch import Batch
    from interp.models.running.core import Core


class GradientRead(Read):
    """Take `function(value, gradient, *arguments)` of `site` of `layer` out of the run under `key`: the site's value after
    every edit there, and the gradient of the measure with respect to it, of the same shape."""


def run_gradients(
    core: Core,
    batch: Batch,
    measure: Callable[[Tensor], Tensor],
    reads: Sequence[GradientRead],
    edits: Sequence[Edit] = (),
) -> dict[Any, Tensor] | None:
    """One forward and one backward pass: each read under its key, and under ``"measure"`` the measure, `[batch]`.

    `measure` maps logits at the last real tokens `[batch, vocab]` to one number a row, each of its own row's logits alone:
    the gradients are those of the sum over rows. It is called inside the trace. The result is None where it does not depend
    on the logits in a way that has a gradient (an argmax).

    The weights, the mode of the model and torch's own gradient mode are as before, and nothing of the graph is kept.
    """
    pairs: dict[int, Any] = {}
    zeros = [Edit(read.site, read.layer, with_zero, (pairs, number)) for number, read in enumerate(reads)]
    steps = schedule(core, len(batch), [*edits, *zeros], ())
    inputs, selection = inputs_for_logits(core, batch, "last", inspected=True)
    model = core.nnsight
    # The end of the surroundings, in which no gradients are recorded, also undoes what `with_zero` switches on.
    with around_run(core, inputs, edits, reads), model.trace(**inputs, **core.trace_options):
        saved = nnsight.save({})
        follow(steps, {})
        value = measure(logits_at(model.output.logits, selection))
        saved["measure"] = value.detach()
        go_back(value, pairs, reads, saved)
    return dict(saved) if len(saved) > 1 else None


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def with_zero(value, pairs, number):
    """A value with a zero added to it, by which its gradient is taken; gradients are recorded from the first one on.

    They are switched on here and not around the trace: only the trace is sent to a server, and the tower and the layers below
    need no gradients. The value and the zero are put into `pairs` under a number.
    """
    torch.set_grad_enabled(True)
    zero = torch.zeros_like(value, requires_grad=True)
    pairs[number] = value.detach(), zero
    return value + zero


def go_back(measure, pairs, reads, saved):
    """Save each read, of its value in `pairs` and of the gradient of the measure with respect to it."""
    values, zeros = zip(*[pairs[number] for number in range(len(reads))], strict=True)
    if not measure.requires_grad:
        return
    gradients = torch.autograd.grad(measure.sum(), zeros, allow_unused=True)
    torch.set_grad_enabled(False)
    for read, value, gradient in zip(reads, values, gradients, strict=True):
        # A site that the logits do not depend on (keys that a later layer brings itself) has no gradient.
        gradient = torch.zeros_like(value) if gradient is None else gradient
        saved[read.key] = read.function(value, gradient, *read.arguments)
