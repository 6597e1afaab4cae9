"""Gradients: how a measure of the logits moves with the states, at many sites of one run at once.

Beside a run's states, their gradients: one forward pass and one backward pass give both for every site that is asked for.
A zero is added to the value of each site, and the gradient is taken with respect to these zeros alone. So no weight gets
a gradient, a model that changes a state in place later does not change what was asked, and nothing is recorded of what
is computed before the first of the sites, the image tower among it.

States and gradients do not leave the trace: a `Slope` says what is made of both there, and only that is given back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from torch import Tensor

from interp.models.batches.encodings import explained
from interp.models.running.trace import Edit, as_needed, follow, let_go, logits_wanted, schedule, take_each

if TYPE_CHECKING:
    from interp.models.batches.batch import Batch
    from interp.models.running.core import Core


@dataclass(frozen=True)
class Slope:
    """Take `function(value, gradient, *arguments)` of `site` of `layer` out of the run under `key`: the site's value after
    every edit there, and the gradient of the measure with respect to it, of the same shape."""

    key: Any
    site: str
    layer: int
    function: Callable[..., Tensor]
    arguments: tuple[Any, ...] = ()


def run_gradients(
    core: Core, batch: Batch, measure: Callable[[Tensor], Tensor], slopes: Sequence[Slope], edits: Sequence[Edit] = ()
) -> dict[Any, Tensor] | None:
    """One forward and one backward pass: each slope under its key, and under ``"measured"`` the measure, `[batch]`.

    `measure` maps logits at the last real tokens `[batch, vocab]` to one number a row, each of its own row's logits alone:
    the gradients are those of the sum over rows. It is called inside the trace. None where it does not depend on the
    logits in a way that has a gradient (an argmax).

    The weights, the mode of the model and torch's own gradient mode are as before, and nothing of the graph is kept.
    """
    held: dict[int, Any] = {}
    zeros = [Edit(slope.site, slope.layer, with_zero, (held, number)) for number, slope in enumerate(slopes)]
    wanted = [(slope.key, slope.function, slope.arguments) for slope in slopes]
    steps = schedule(core, len(batch), [*edits, *zeros], ())
    inputs, at_end = logits_wanted(core, batch, "last", touched=True)
    rows, columns = batch.positions["last"].nonzero(as_tuple=True)
    model = core.nnsight
    with (
        as_needed(core, edits, slopes),
        let_go(),
        explained(),
        torch.no_grad(),  # whose end also undoes what `with_zero` switches on
        model.trace(**inputs, **core.trace_options),
    ):
        saved = nnsight.save({})
        follow(steps, {})
        logits = model.output.logits
        measured = measure(logits[:, -1] if at_end else take_each(logits, rows, columns, None))
        saved["measured"] = measured.detach()
        go_back(measured, held, wanted, saved)
    return dict(saved) if len(saved) > 1 else None


# Plain torch, run inside the trace ---------------------------------------------------------------------------------------


def with_zero(value, held, number):
    """A value with a zero added to it, by which its gradient is asked for; gradients are recorded from the first one on.

    They are switched on here and not around the trace, which is sent without what stands around it, and in which the
    tower and the layers below need none.
    """
    torch.set_grad_enabled(True)
    zero = torch.zeros_like(value, requires_grad=True)
    held[number] = value.detach(), zero
    return value + zero


def go_back(measured, held, wanted, saved):
    """What is wanted of the held values and of the gradients of the measure with respect to them."""
    values, zeros = zip(*[held[number] for number in range(len(wanted))], strict=True)
    if not measured.requires_grad:
        return
    gradients = torch.autograd.grad(measured.sum(), zeros, allow_unused=True)
    torch.set_grad_enabled(False)
    for (key, function, arguments), value, gradient in zip(wanted, values, gradients, strict=True):
        # A site that the logits do not depend on (keys that a later layer brings itself) has no gradient.
        saved[key] = function(value, torch.zeros_like(value) if gradient is None else gradient, *arguments)
